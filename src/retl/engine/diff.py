"""Diff: the hashed mart against the baseline → candidates, the rows that are due or gone.

One join finds changed rows, keys that left the mart and duplicate keys. Nothing here knows a target.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from retl.engine import hash
from retl.engine.baseline import BASELINE, ENTRIES
from retl.engine.feed import LEFT
from retl.engine.hash import ROWS
from retl.engine.mapping import FieldMap
from retl.engine.workspace import Workspace
from retl.values.sql import literal

# row (NULL if the key left the mart), key, op, ending, cleared, owned, ref, seen, former (hash). `op` is
# insert, update, refresh, delete, or none where the row has no usable key. `ending` is NULL while the row is
# due.
CANDIDATES = "candidates"
NEVER = "unhex('0000000000000000')"  # digests that no value has
OUTSIDE = "outside"  # the ending of a key that left the mart and is not in the scope of deletes
UPSERTS = ("insert", "update", "refresh")
Ends = Mapping[tuple[str, str | None], int]  # rows by (op, ending)


@dataclass(frozen=True)
class Strategy:
    """Which rows are due, and what to do with keys that left the mart."""

    everything: bool  # every row, changed or not
    absence: bool  # a key that left the mart is deleted
    once: bool  # a key that the target confirmed is never sent again
    hold_unknown: bool  # a row with an unknown outcome is not sent again
    scope: str | None = None  # a table: the only keys that are deleted by absence
    refresh_before: datetime | None = None  # rows confirmed before this are sent again, because they expire
    held: Sequence[int] = ()  # epochs of runs whose rows are not sent again because they expire
    again: bool = False  # what did not change is sent too
    learns: bool = False  # a row of which it is not known what the target holds is due once
    compares: str | None = None  # the payload fingerprint, if rows are written only where nobody edited them


def diff(
    workspace: Workspace,
    field_map: FieldMap,
    strategy: Strategy,
    baseline_rows: int,
    *,
    whole: bool,
    fed: bool = False,
) -> None:
    """Create CANDIDATES from ROWS and BASELINE, without unchanged rows. In a `whole` mart duplicate keys get
    their fault here, otherwise they have it already. Of a mart that was `fed`, only keys in LEFT are gone."""
    known = BASELINE
    if fed:
        touched = f"SELECT key FROM {LEFT} UNION SELECT key FROM {ROWS}"
        known = f"(SELECT * FROM {BASELINE} WHERE key IN ({touched}))"
    join = f"{'FULL' if whole or fed else 'LEFT'} JOIN {known}"
    _compare(workspace, strategy, join)
    if whole and _repeats_keys(workspace, field_map, baseline_rows):
        hash.mark_duplicates(workspace, field_map)
        _compare(workspace, strategy, join)


def leave_due(workspace: Workspace, keys: Iterable[str]) -> None:
    """Do not attempt the candidates that are unknown, or have one of these keys: a later run will."""
    workspace.load("left", {"key": "VARCHAR"}, ((key,) for key in keys))
    workspace.run(
        f"UPDATE {CANDIDATES} SET ending = 'not_attempted' WHERE ending IS NULL AND key IN"
        f' (SELECT key FROM {BASELINE} WHERE hash IS NULL UNION ALL SELECT key FROM "left")'
    )


def settle(workspace: Workspace) -> None:
    """Let the unchanged rows be unchanged, if no row is due for another reason."""
    if not any(op != "refresh" and ending is None for op, ending in ends(workspace)):
        workspace.run(f"DELETE FROM {CANDIDATES} WHERE op = 'refresh' AND ending IS NULL")


def ends(workspace: Workspace) -> Ends:
    """The number of candidates by op and ending, so far."""
    rows = workspace.run(f"SELECT op, ending, count(*) FROM {CANDIDATES} GROUP BY ALL")
    return {(op, ending): number for op, ending, number in rows}


def forgotten(workspace: Workspace) -> int:
    """The number of keys of ours that the whole mart lacks."""
    number: int = workspace.one(f"SELECT count(*) FROM {CANDIDATES} WHERE op = 'delete' AND owned")[0]
    return number


def _compare(workspace: Workspace, strategy: Strategy, join: str) -> None:
    changed = "TRUE" if strategy.everything and not strategy.once else "b.hash IS DISTINCT FROM r.hash"
    if strategy.learns:
        changed = f"({changed} OR b.seen IS NULL)"
    refresh = ""
    if strategy.refresh_before is not None:
        before = f"{literal(strategy.refresh_before.isoformat())}::TIMESTAMPTZ"
        late = f"b.confirmed_at < {before}"
        if strategy.held:
            epochs = ", ".join(map(str, strategy.held))
            late += f" AND b.key NOT IN (SELECT key FROM {ENTRIES} WHERE epoch IN ({epochs}))"
        refresh = f" WHEN {late} THEN 'refresh'"
    if strategy.again:
        refresh = " WHEN TRUE THEN 'refresh'"
    op = (
        "CASE WHEN r.row IS NULL THEN 'delete' WHEN r.fault IS NOT NULL THEN 'none'"
        f" WHEN b.key IS NULL THEN 'insert' WHEN {changed} THEN 'update'{refresh} ELSE 'unchanged' END"
    )
    stays = "'kept'"
    if strategy.absence:
        outside = f" WHEN b.key NOT IN (SELECT key FROM {strategy.scope}) THEN '{OUTSIDE}'"
        stays = f"CASE WHEN NOT b.owned THEN 'kept'{outside if strategy.scope else ''} END"
    doubt = " WHEN b.hash IS NULL THEN 'in_doubt'" if strategy.hold_unknown else ""
    once = " WHEN b.hash IS NOT NULL THEN 'skipped'" if strategy.once else ""
    ending = (
        f"CASE WHEN r.row IS NULL THEN {stays} WHEN r.fault IS NOT NULL THEN 'rejected'"
        f" WHEN b.key IS NULL THEN NULL{doubt}{once} END"
    )
    workspace.run(
        f"CREATE OR REPLACE TABLE {CANDIDATES} AS SELECT * FROM ("
        f"SELECT r.row, coalesce(r.key, b.key) AS key, {op} AS op, {ending} AS ending,"
        f" r.cleared, b.owned, b.ref, {seen_sql(strategy.compares)} AS seen,"
        f" {'NULL::BLOB' if strategy.compares is None else 'b.hash'} AS former"
        f" FROM {ROWS} r {join} b ON b.key = r.key"
        ") WHERE op <> 'unchanged'"
    )


def seen_sql(compares: str | None) -> str:
    """SQL of what the target held after our last write, from the baseline `b`. Digests of other fields are no
    digests of these; an unknown row may not be there at all."""
    if compares is None:
        return "CAST(NULL AS BLOB)"
    other = f"b.seen IS NULL OR right(hex(b.hash), 8) <> {literal(compares[:8].upper())}"
    return f"CASE WHEN b.hash IS NULL THEN NULL WHEN {other} THEN {NEVER} ELSE b.seen END"


def _repeats_keys(workspace: Workspace, field_map: FieldMap, baseline_rows: int) -> bool:
    """Whether the whole mart has a key twice, or two that the target does not tell apart. The baseline has
    each key once, so the number of rows that match it must equal the number of matched keys. Only the other
    keys need a query of their own."""
    found = ends(workspace)
    new = sum(number for (op, _), number in found.items() if op == "insert")
    unmet = sum(number for (op, _), number in found.items() if op == "delete")
    usable = workspace.one(f"SELECT count(*) FROM {ROWS} WHERE fault IS NULL")[0]
    return (
        usable - new > baseline_rows - unmet
        or bool(
            workspace.run(
                f"SELECT key FROM {CANDIDATES} WHERE op = 'insert' GROUP BY key HAVING count(*) > 1 LIMIT 1"
            )
        )
        or (bool(field_map.folds) and hash.collide(workspace, field_map))
    )
