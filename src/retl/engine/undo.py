"""The change set that takes a run back: from the rows as they were before it, less what was written since.

What the run wrote is told by its images and answers; what the target holds since then by the baseline. It
asks no target: whether somebody else touched a row is found out where it is restored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from retl.engine import baseline, change_set, judge
from retl.engine.answers import IMAGES
from retl.engine.baseline import ENTRIES, Acknowledged
from retl.engine.change_set import CHANGES, ChangeSet, Phase
from retl.engine.diff import CANDIDATES
from retl.engine.mapping import FieldMap
from retl.engine.workspace import Workspace
from retl.values import csv_text
from retl.values.keys import key_value_sql

# key, undo, before, state (undo, already, since), hash, owned, ref, seen, dropped: rows the run wrote
WROTE = "wrote"
_COUNTED = {"restore": "update", "flag": "update", "remake": "insert", "remove": "delete"}
_BLANK = "unhex('00000000000000000000000000000000')"  # the hash of a row that the mart does not have


class Wrote(Struct, frozen=True):
    """What the run wrote, in keys: to be taken back, taken back already, and written again since."""

    undo: int
    already: int
    since: int


class Undo(ChangeSet):
    """Rows to restore, in the form that `Batch.csv` has for it."""

    def csv(self, first: int, last: int, *, delete: bool, numbered: bool) -> Iterator[bytes]:
        keys = [(csv_text.csv_sql(f.type, f"k{i}"), f"k{i}") for i, f in enumerate(self.field_map.shape.key)]
        listed = ", ".join(f"{sql} AS {name}" for sql, name in keys)
        texts = [f"k{i}" for i, f in enumerate(self.field_map.shape.key) if csv_text.is_text(f.type)]
        columns = f"pos - {first} AS pos, undo, {listed}, before, '\\x' || hex(seen) AS seen"
        return self.copied(columns, first, last, [*texts, "undo", "before"])

    def write_delta(self, path: Path, *, compares: bool = False) -> None:
        """A restored row keeps its hash, so no sync sends it before its mart row changes. What a rollback
        made or removed is nobody's to delete."""
        hash = f"CASE undo WHEN 'remake' THEN coalesce(hash, {_BLANK}) ELSE hash END"
        owned = "CASE WHEN undo IN ('restore', 'flag') THEN nullif(owned, FALSE) END"
        rows = (
            f"SELECT pos, undo AS op, key, {hash} AS hash, {owned} AS owned, ref, seen, dropped,"
            f" NULL AS unsent FROM {CHANGES}"
        )
        change_set.write_delta(self.workspace, f"({rows})", path)


def find(
    workspace: Workspace,
    images: Sequence[Path],
    answers: Sequence[Acknowledged],
    epoch: int,
    undone: Sequence[int],
    *,
    soft: bool,
    keys: Sequence[str] = (),
    without: Callable[[str], object] = lambda _table: None,
) -> Wrote:
    """Create WROTE from a run's images and answers; `epoch` is that of the run, `undone` those of the
    rollbacks of it. Only of these `keys`, if there are any. `without` removes rows of suppressed keys from a
    table."""
    read = " UNION ALL ".join(
        f"SELECT *, {number} AS file FROM {baseline.opened(workspace, path, IMAGES)}"
        for number, path in enumerate(images)
    )
    newest = (
        "(SELECT row, arg_max(op, file) AS op, arg_max(key, file) AS key,"
        f" arg_max({{b: before}}, file).b AS before,"
        f" arg_max({{b: seen}}, file).b AS told FROM ({read}) GROUP BY row)"
    )
    written = f"({baseline.answered(workspace, newest, answers)}) WHERE kind IN ('written', 'merged')"
    undo = (
        "CASE WHEN op = 'delete' THEN CASE WHEN before IS NOT NULL THEN 'remake' END"
        " WHEN before IS NULL THEN 'remove' ELSE 'restore' END"
    )
    if soft:
        undo = "CASE WHEN op <> 'delete' THEN 'flag' END"
    listed = ", ".join(map(str, undone)) or "NULL"
    workspace.load("asked", {"key": "VARCHAR"}, ((key,) for key in keys))
    chosen = " AND w.key IN (SELECT key FROM asked)" if keys else ""
    workspace.run(
        f"CREATE TABLE {WROTE} AS SELECT w.key, w.undo, w.before, e.hash, e.owned, e.ref,"
        " coalesce(e.seen, w.told) AS seen, e.dropped,"
        f" CASE WHEN e.epoch = {epoch} THEN 'undo' WHEN e.epoch IN ({listed}) THEN 'already' ELSE 'since' END"
        f" AS state FROM (SELECT key, {undo} AS undo, before, told FROM {written}) w"
        f" LEFT JOIN {ENTRIES} e USING (key) WHERE undo IS NOT NULL{chosen}"
    )
    without(WROTE)
    counts = dict(workspace.run(f"SELECT state, count(*) FROM {WROTE} GROUP BY 1"))
    return Wrote(counts.get("undo", 0), counts.get("already", 0), counts.get("since", 0))


def count_missing(workspace: Workspace) -> int:
    """How many of the keys that `find` was asked for the run did not write."""
    sql = f"SELECT count(*) FROM (SELECT DISTINCT key FROM asked) ANTI JOIN {WROTE} USING (key)"
    return int(workspace.one(sql)[0])


def assemble(workspace: Workspace, field_map: FieldMap) -> Undo:
    """Create CHANGES from WROTE: rows are made and restored first, and removed last. No row of the mart is a
    candidate, and none is judged."""
    workspace.run(f"CREATE TABLE {CANDIDATES} (row BIGINT, key VARCHAR, op VARCHAR, ending VARCHAR)")
    judge.reject_nothing(workspace)
    types = [one.type for one in field_map.shape.key]
    typed = ", ".join(f"{key_value_sql(types, i, 'key')} AS k{i}" for i in range(len(types)))
    op = " ".join(f"WHEN '{undo}' THEN '{op}'" for undo, op in _COUNTED.items())
    workspace.run(
        f"CREATE TABLE {CHANGES} AS SELECT row_number() OVER (ORDER BY undo = 'remove', key) - 1 AS pos,"
        f" CASE undo {op} END AS op, *, {typed} FROM {WROTE} WHERE state = 'undo'"
    )
    counts = dict(workspace.run(f"SELECT op, count(*) FROM {CHANGES} GROUP BY op"))
    number = sum(counts.values())
    phases = (Phase("restore", 0, number - 1),) if number else ()
    return Undo(workspace, replace(field_map), phases, counts)
