"""Which of a sync's history may be removed, and how: the chain of its runs still verifies afterwards.

It removes no run that a baseline, a row in doubt, an open reject, an image of a rollback or the verification
of another run needs, however old it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from msgspec import Struct

from retl.destinations.batch import SETTLED
from retl.ledger.database import Database
from retl.ledger.rows import Cell, cell

# A snapshot belongs to the run that made it.
_OLD = """
SELECT run_id, object, epoch, delta, of_run, amends, chain_id, chain_no, chain FROM retl_runs
WHERE sync = ? AND started_at < ?
AND chain IS NOT NULL AND run_id NOT IN (SELECT run_id FROM retl_checkpoints)
AND NOT EXISTS (SELECT 1 FROM retl_checkpoints AS c
  WHERE substr(c.newest, 3, length(retl_runs.run_id)) = retl_runs.run_id
  OR substr(c.snapshot, 1, length(retl_runs.run_id) + 1) = retl_runs.run_id || '.')
AND ((delta IS NULL AND distrusts IS NULL) OR forgotten_at IS NOT NULL
  OR epoch <= (SELECT c.snapshot_epoch FROM retl_checkpoints AS c
    WHERE c.sync = retl_runs.sync AND c.object = retl_runs.object))
AND run_id NOT IN (SELECT run_id FROM retl_rejects WHERE state = 'open' AND run_id IS NOT NULL)
AND run_id NOT IN (SELECT run_id FROM retl_paused WHERE run_id IS NOT NULL)
AND run_id NOT IN (SELECT run_id FROM retl_erasures WHERE run_id IS NOT NULL)
AND run_id NOT IN (SELECT run_id FROM retl_digests WHERE removed_at IS NULL AND name LIKE ?)
"""
# The newest run before an epoch that left a mark at the target.
_LEFT_A_MARK = """
SELECT max(epoch) FROM retl_runs AS r WHERE sync = ? AND object = ? AND epoch < ? AND delta IS NOT NULL
AND EXISTS (SELECT 1 FROM retl_batches AS b WHERE b.run_id = r.run_id AND attempts > 0
  AND (outcome LIKE ? OR outcome LIKE ? OR outcome LIKE ? OR outcome LIKE ?))
"""
_ARRIVED = tuple(f'%"kind":"{kind}"%' for kind in sorted(SETTLED))
_UNANSWERED = """
SELECT min(epoch) FROM retl_runs AS r WHERE sync = ? AND object = ? AND EXISTS
(SELECT 1 FROM retl_batches AS b WHERE b.run_id = r.run_id AND b.status = 'open')
"""
_NEVER = 1 << 62  # later than any epoch
_SUCCEEDED = """
SELECT max(epoch) FROM retl_runs WHERE sync = ? AND object = ? AND epoch < ?
AND status IN ('SUCCESS', 'SUCCESS_WITH_REJECTS')
"""
_CLOSED = "FROM retl_rejects WHERE sync = ? AND state IN ('applied', 'withdrawn') AND last_seen < ?"


class Pruned(Struct, frozen=True):
    """What was removed: runs and closed rejects. `files` are the files of these runs."""

    runs: int
    rejects: int
    files: tuple[str, ...]


class _Run(Struct, frozen=True):
    run_id: str
    object: str
    epoch: int
    delta: str | None
    of_run: str | None
    amends: str | None
    chain_id: str
    chain_no: int
    chain: str

    @property
    def about(self) -> frozenset[str]:
        """The runs whose record is not complete without this one."""
        return frozenset([*json.loads(self.amends or "{}"), *([self.of_run] if self.of_run else [])])


def prune(database: Database, sync: str, before: Cell, *, dry_run: bool) -> Pruned:
    """In a transaction: remove what is older than `before` and not needed; a dry run only counts it."""
    runs = [_Run(*row) for row in database.query(_OLD, sync, before, "%.images-%")]
    marked = {name: _marked_since(database, sync, name) for name in {run.object for run in runs}}
    old = {one.run_id: one for one in runs if one.delta is None or one.epoch < marked[one.object]}
    kept = {run_id for (run_id,) in database.query("SELECT run_id FROM retl_runs WHERE sync = ?", sync)}
    kept -= old.keys()
    while needed := [run_id for run_id, run in old.items() if run.about & kept]:
        kept.update(needed)
        for run_id in needed:
            del old[run_id]
    rejects = int(database.query(f"SELECT count(*) {_CLOSED}", sync, before)[0][0])
    files = [
        str(name)
        for run_id in old
        for (name,) in database.query("SELECT name FROM retl_digests WHERE run_id = ?", run_id)
    ]
    if not dry_run:
        _record(database, old.values())
        for table in ("retl_batches", "retl_digests", "retl_runs"):
            sql = f"DELETE FROM {table} WHERE run_id = ?"
            database.change_many(sql, [(run_id,) for run_id in old])
        sql = "DELETE FROM retl_requests WHERE state <> 'open' AND run_id = ?"
        database.change_many(sql, [(run_id,) for run_id in old])
        database.change(f"DELETE {_CLOSED}", sync, before)
    return Pruned(len(old), rejects, tuple(files))


def _marked_since(database: Database, sync: str, object: str) -> int:
    """The epoch of the oldest run whose mark the target may still have: a run removes older marks, but not
    those since the checkpoint that it started from. A mark of an unknown run would be STATE_BEHIND."""

    def left_a_mark(before: int) -> int:
        return int(database.query(_LEFT_A_MARK, sync, object, before, *_ARRIVED)[0][0] or 0)

    last = left_a_mark(_NEVER)
    if not last:  # a batch without an answer may have left one
        return int(database.query(_UNANSWERED, sync, object)[0][0] or _NEVER)
    succeeded = int(database.query(_SUCCEEDED, sync, object, last)[0][0] or 0)
    return left_a_mark(succeeded + 1)


def _record(database: Database, gone: Iterable[_Run]) -> None:
    """Keep the last link of each row of pruned runs: from there the chain goes on."""
    by_chain: dict[str, list[tuple[int, int, str]]] = {}
    for run in gone:
        by_chain.setdefault(run.chain_id, []).append((run.chain_no, run.chain_no, run.chain))
    for chain_id, pruned in by_chain.items():
        known = database.query("SELECT anchors FROM retl_chains WHERE chain_id = ?", chain_id)
        joined: list[tuple[int, int, str]] = []
        for first, last, link in sorted([*(tuple(one) for one in json.loads(known[0][0])), *pruned]):
            if joined and joined[-1][1] == first - 1:
                first = joined.pop()[0]
            joined.append((first, last, link))
        total = sum(last - first + 1 for first, last, _ in joined)
        sql = "UPDATE retl_chains SET pruned = ?, anchors = ? WHERE chain_id = ?"
        database.change(sql, total, cell(joined), chain_id)
