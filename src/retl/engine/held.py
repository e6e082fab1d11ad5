"""What the target holds, as tables of the workspace beside the mart's rows: how rows compare, and which keys.

The target's reports come from the caller. It asks no target and changes no baseline.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from retl.engine.baseline import BASELINE
from retl.engine.diff import CANDIDATES
from retl.engine.hash import ROWS, USABLE_FAULTS
from retl.engine.mapping import FieldMap
from retl.engine.workspace import Workspace
from retl.values import keys, storage

COMPARED = "compared"  # of CHANGES: key, hash, owned, ref, same (NULL: the target lacks the key)
SCANNED = "scanned"  # k0…: the keys at the target, as values of the sync's key; NULL if they are none
ASKED = "asked_keys"  # pos, key, hash, owned, ref, taken: keys whose rows cannot be compared
PRESENT = "present_keys"  # of ASKED: the keys that the target has


def compare(workspace: Workspace, rows: str, same: Iterable[bool | None]) -> None:
    """Create COMPARED from a relation with pos, key, hash, owned and ref, and what the target reported
    of each row, in the order of `pos`."""
    _join(workspace, COMPARED, rows, same)


def load_scan(workspace: Workspace, field_map: FieldMap, found: Iterable[Sequence[str]]) -> None:
    """Create SCANNED from key values as text."""
    types = {f"k{i}": storage.storage_type(one.type) for i, one in enumerate(field_map.shape.key)}
    workspace.load(SCANNED, types, found, lenient=True)


def list_keys(workspace: Workspace, field_map: FieldMap, *, scanned: bool) -> None:
    """Create ASKED from the keys of the mart's rejected rows and, if the target was scanned, from the keys
    that the mart lacks, as the target compares keys (`taken`)."""
    listed = (
        "SELECT c.key, min(r.hash) AS hash, bool_or(c.owned) AS owned, min(c.ref) AS ref, FALSE AS taken"
        f" FROM {CANDIDATES} c JOIN {ROWS} r USING (row)"
        f" WHERE c.ending = 'rejected' AND (r.fault IS NULL OR r.fault IN {USABLE_FAULTS})"
        " GROUP BY c.key"
    )
    if scanned:
        listed += (
            f" UNION ALL SELECT key, NULL, b.owned, b.ref, TRUE FROM ({_scanned(field_map)})"
            f" LEFT JOIN {BASELINE} b USING (key)"
            f" WHERE {field_map.folded('key')} NOT IN"
            f" (SELECT {field_map.folded('key')} FROM {ROWS} WHERE key IS NOT NULL)"
        )
    workspace.run(f"CREATE TABLE {ASKED} AS SELECT row_number() OVER () - 1 AS pos, * FROM ({listed})")


def keep_present(workspace: Workspace, present: Iterable[bool]) -> None:
    """Create PRESENT from what the target reported of each key of ASKED, in their order."""
    _join(workspace, "answered_keys", ASKED, present)
    workspace.run(f"CREATE TABLE {PRESENT} AS SELECT * FROM answered_keys WHERE same")


def _scanned(field_map: FieldMap) -> str:
    """SQL of the distinct scanned keys as text, without those that no row of this sync can have."""
    types = [one.type for one in field_map.shape.key]
    values = [f"k{i}" for i in range(len(types))]
    usable = " AND ".join(
        f"{value} IS NOT NULL AND {storage.exact(type, value, storage.storage_type(type))}"
        for type, value in zip(types, values, strict=True)
    )
    return f"SELECT DISTINCT {keys.key_sql(types, values)} AS key FROM {SCANNED} WHERE {usable}"


def _join(workspace: Workspace, table: str, rows: str, reported: Iterable[bool | None]) -> None:
    """Create `table` from `rows` and one report per row, as its column `same`."""
    workspace.load("reported", {"first": "BIGINT", "same": "BOOLEAN"}, _spans(reported))
    workspace.run(
        f"CREATE TABLE {table} AS SELECT r.*, s.same FROM {rows} r ASOF JOIN reported s ON r.pos >= s.first"
    )


def _spans(reported: Iterable[bool | None]) -> Iterator[tuple[int, bool | None]]:
    """The first row of each span of rows with the same report; often there is one span in total."""
    last: object = ...
    for row, report in enumerate(reported):
        if report is not last:
            yield row, report
            last = report
