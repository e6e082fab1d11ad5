"""Diff: the hashed mart against the baseline → candidates, the rows that are due or gone.

One join finds what changed, what left the mart and which keys stand there twice. Nothing here knows a
target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from retl.engine import hash
from retl.engine.baseline import BASELINE
from retl.engine.hash import ROWS
from retl.engine.workspace import Workspace
from retl.values.sql import literal

# row (NULL of a key that left the mart), key, op, ending, cleared, owned, ref. `op` is insert, update,
# refresh, delete, or none where the row has no usable key. `ending` is NULL while the row is due.
CANDIDATES = "candidates"
UPSERTS = ("insert", "update", "refresh")
Ends = Mapping[tuple[str, str | None], int]  # rows by (op, ending)


@dataclass(frozen=True)
class Strategy:
    """What makes a row due, and what absence means."""

    everything: bool  # every row, changed or not
    absence: bool  # a key that left the mart is deleted
    once: bool  # append: a key in the baseline is never sent again
    hold_unknown: bool  # a row nobody knows about is not sent again
    refresh_before: datetime | None = None  # confirmed before this: send again, it would expire


def diff(workspace: Workspace, strategy: Strategy, baseline_rows: int, *, whole: bool) -> None:
    """Make CANDIDATES of ROWS and BASELINE; unchanged rows are left out. In a `whole` mart the rows of a key
    that stands there twice get their fault here, elsewhere they have it."""
    _compare(workspace, strategy, whole)
    if whole and _repeats_keys(workspace, baseline_rows):
        hash.mark_duplicates(workspace)
        _compare(workspace, strategy, whole)


def ends(workspace: Workspace) -> Ends:
    """The candidates by op and ending, so far."""
    rows = workspace.run(f"SELECT op, ending, count(*) FROM {CANDIDATES} GROUP BY ALL")
    return {(op, ending): number for op, ending, number in rows}


def _compare(workspace: Workspace, strategy: Strategy, whole: bool) -> None:
    changed = "TRUE" if strategy.everything and not strategy.once else "b.hash IS DISTINCT FROM r.hash"
    refresh = ""
    if strategy.refresh_before is not None:
        before = f"{literal(strategy.refresh_before.isoformat())}::TIMESTAMPTZ"
        refresh = f" WHEN b.confirmed_at < {before} THEN 'refresh'"
    op = (
        "CASE WHEN r.row IS NULL THEN 'delete' WHEN r.fault IS NOT NULL THEN 'none'"
        f" WHEN b.key IS NULL THEN 'insert' WHEN {changed} THEN 'update'{refresh} ELSE 'unchanged' END"
    )
    stays = "CASE WHEN b.owned THEN NULL ELSE 'kept' END" if strategy.absence else "'kept'"
    doubt = " WHEN b.hash IS NULL THEN 'in_doubt'" if strategy.once or strategy.hold_unknown else ""
    once = " ELSE 'skipped'" if strategy.once else ""
    ending = (
        f"CASE WHEN r.row IS NULL THEN {stays} WHEN r.fault IS NOT NULL THEN 'rejected'"
        f" WHEN b.key IS NULL THEN NULL{doubt}{once} END"
    )
    workspace.run(
        f"CREATE OR REPLACE TABLE {CANDIDATES} AS SELECT * FROM ("
        f"SELECT r.row, coalesce(r.key, b.key) AS key, {op} AS op, {ending} AS ending,"
        " r.cleared, b.owned, b.ref"
        f" FROM {ROWS} r {'FULL' if whole else 'LEFT'} JOIN {BASELINE} b ON b.key = r.key"
        ") WHERE op <> 'unchanged'"
    )


def _repeats_keys(workspace: Workspace, baseline_rows: int) -> bool:
    """Whether any key stands in the whole mart twice. The baseline has each key once, so the rows that met
    it must be as many as the keys that were met; only the others need a look of their own."""
    found = ends(workspace)
    new = sum(number for (op, _), number in found.items() if op == "insert")
    unmet = sum(number for (op, _), number in found.items() if op == "delete")
    usable = workspace.one(f"SELECT count(*) FROM {ROWS} WHERE fault IS NULL")[0]
    return usable - new > baseline_rows - unmet or bool(
        workspace.run(
            f"SELECT key FROM {CANDIDATES} WHERE op = 'insert' GROUP BY key HAVING count(*) > 1 LIMIT 1"
        )
    )
