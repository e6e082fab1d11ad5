"""What the target holds, as tables of the workspace beside the mart's rows: how rows compare, and which keys.

The target's reports come from the caller. It asks no target and changes no baseline.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

from retl.engine import baseline
from retl.engine.baseline import BASELINE
from retl.engine.diff import CANDIDATES
from retl.engine.hash import ROWS, USABLE_FAULTS
from retl.engine.mapping import FieldMap
from retl.engine.workspace import Workspace
from retl.values import keys, storage

COMPARED = "compared"  # pos, key, hash, owned, ref, there, fields (those that differ, as a JSON list)
SCANNED = "scanned"  # key, folded (as the target compares it), times: of everything at the target
ASKED = "asked_keys"  # pos, key, hash, owned, ref, of: keys whose rows cannot be compared
PRESENT = "present_keys"  # the same columns and `there`
OF_MART, LEFT, DELETED, FOREIGN = "mart", "left", "deleted", "foreign"  # whose key it is (`of`)
SCAN = "scan"  # key of each row at the target, and further texts of it; dropped once it was compared
_ROW = "pos, key, hash, owned, ref"
_SAME = "[]"


def compare(workspace: Workspace, rows: str, differing: Iterable[tuple[str, ...] | None]) -> None:
    """Create COMPARED from a relation with pos, key, hash, owned and ref, and what the target reported
    of each row, in the order of `pos`."""
    reports = (None if one is None else json.dumps(one) for one in differing)
    _join(workspace, COMPARED, f"SELECT {_ROW} FROM {rows}", reports)


def keep_same(workspace: Workspace, rows: str) -> None:
    """Add rows (SQL) to COMPARED that do not differ."""
    workspace.run(f"INSERT INTO {COMPARED} SELECT {_ROW}, TRUE, '{_SAME}' FROM ({rows})")


def load_scan(workspace: Workspace, field_map: FieldMap, found: Iterable[Sequence[str]]) -> None:
    """Create SCANNED from key values as text, without those that no row of this sync can have."""
    workspace.load("listed", dict.fromkeys(key_columns(field_map), "VARCHAR"), found)
    keep_scan(workspace, field_map, "listed")
    count_scan(workspace, field_map)
    workspace.run(f"DROP TABLE {SCAN}; DROP TABLE listed")


def key_columns(field_map: FieldMap) -> list[str]:
    """The names of the columns of key values."""
    return [f"k{i}" for i in range(len(field_map.shape.key))]


def keep_scan(workspace: Workspace, field_map: FieldMap, found: str, others: Sequence[str] = ()) -> None:
    """Create SCAN from a relation of key values as text, and other columns."""
    workspace.run(f"CREATE TABLE {SCAN} AS {scanned(field_map, found, others)}")


def scanned(field_map: FieldMap, found: str, others: Sequence[str]) -> str:
    """SQL of the rows of such a relation as SCAN has them."""
    types = [one.type for one in field_map.shape.key]
    columns = [
        (name, type, storage.storage_type(type))
        for name, type in zip(key_columns(field_map), types, strict=True)
    ]
    cast = ", ".join([*(f"TRY_CAST({name} AS {stored}) AS {name}" for name, _, stored in columns), *others])
    usable = " AND ".join(
        f"{name} IS NOT NULL AND {storage.exact(type, name, stored)}" for name, type, stored in columns
    )
    key = keys.key_sql(types, key_columns(field_map))
    selected = ", ".join([f"{key} AS key", *others])
    return f"SELECT {selected} FROM (SELECT {cast} FROM {found}) WHERE {usable}"


def count_scan(workspace: Workspace, field_map: FieldMap, among: str = "TRUE") -> None:
    """Create SCANNED from the rows of SCAN that match the SQL predicate `among`."""
    workspace.run(
        f"CREATE TABLE {SCANNED} AS SELECT key, {field_map.folded('key')} AS folded, count(*) AS times"
        f" FROM {SCAN} WHERE {among} GROUP BY key"
    )


def list_keys(
    workspace: Workspace, field_map: FieldMap, among: str, *, scanned: str | None, left: bool, deleted: bool
) -> None:
    """Create ASKED from the keys of the mart's rejected rows and of keys that the mart lacks, as the target
    compares keys: those of the baseline (`left`), those that were deleted, and those of SCANNED that
    `scanned` (SQL) names. Keys that do not match the SQL predicate `among` are in mart and baseline."""
    parts = [
        f"SELECT c.key, min(r.hash) AS hash, bool_or(c.owned) AS owned, min(c.ref) AS ref, '{OF_MART}' AS of"
        f" FROM {CANDIDATES} c JOIN {ROWS} r USING (row)"
        f" WHERE c.ending = 'rejected' AND (r.fault IS NULL OR r.fault IN {USABLE_FAULTS})"
        " GROUP BY c.key"
    ]
    folded = field_map.folded("key")
    absent = f"{folded} NOT IN (SELECT {folded} FROM {ROWS} WHERE key IS NOT NULL AND {among})"
    if left:
        also = f" AND {absent}" if field_map.folds else ""
        gone = f"SELECT key, NULL, owned, ref, '{LEFT}' FROM {CANDIDATES} WHERE op = 'delete'"
        parts.append(gone + also)
    if deleted:
        parts.append(
            f"SELECT key, NULL, FALSE, NULL, '{DELETED}' FROM ({baseline.deleted(0)}) WHERE {absent}"
        )
    workspace.run(f"CREATE TABLE known_keys AS {' UNION ALL '.join(parts)}")
    if scanned is not None:
        foreign = f"SELECT key FROM {SCANNED} WHERE key IN ({scanned}) AND {absent}"
        workspace.run(
            f"INSERT INTO known_keys SELECT s.key, NULL, b.owned, b.ref, '{FOREIGN}'"
            f" FROM ({foreign} AND folded NOT IN (SELECT {folded} FROM known_keys)) s"
            f" LEFT JOIN {BASELINE} b USING (key)"
        )
    workspace.run(f"CREATE TABLE {ASKED} AS SELECT row_number() OVER () - 1 AS pos, * FROM known_keys")


def keep_present(workspace: Workspace, present: Iterable[bool]) -> None:
    """Create PRESENT from what the target reported of each key of ASKED, in their order."""
    _join(workspace, PRESENT, f"FROM {ASKED}", (_SAME if one else None for one in present))


def keep_scanned(workspace: Workspace, field_map: FieldMap) -> None:
    """Create PRESENT from ASKED and SCANNED."""
    there = f"{field_map.folded('key')} IN (SELECT folded FROM {SCANNED})"
    workspace.run(f"CREATE TABLE {PRESENT} AS SELECT *, {there} AS there FROM {ASKED}")


def _join(workspace: Workspace, table: str, rows: str, reported: Iterable[str | None]) -> None:
    """Create `table` from `rows` (SQL) and one report per row: NULL if the target lacks it."""
    workspace.load("reported", {"first": "BIGINT", "fields": "VARCHAR"}, _spans(reported))
    workspace.run(
        f"CREATE TABLE {table} AS SELECT r.*, s.fields IS NOT NULL AS there, s.fields FROM ({rows}) r"
        " ASOF JOIN reported s ON r.pos >= s.first"
    )


def _spans(reported: Iterable[str | None]) -> Iterator[tuple[int, str | None]]:
    """The first row of each span of rows with the same report; often there is one span in total."""
    last: object = ...
    for row, report in enumerate(reported):
        if report != last:
            yield row, report
            last = report
