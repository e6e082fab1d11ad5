"""Open rejects: one per sync and key, until the row is applied, withdrawn or dismissed.

It keeps no payload: a reject is tried again from the mart's current row.
"""

from __future__ import annotations

from collections.abc import Sequence

from retl.ledger.rows import RejectChanges, RejectRow, cell
from retl.ledger.state import State

# Told twice by one run it counts once, so a merge may be repeated. A dismissed reject stays dismissed
# for as long as the row is the very row that was dismissed and fails in the same way.
_OPEN = """
INSERT INTO retl_rejects
  (sync, key, hash, stage, code, reason, run_id, first_seen, last_seen, attempts, state)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 1, 'open')
ON CONFLICT (sync, key) DO UPDATE SET
  hash = excluded.hash, stage = excluded.stage, code = excluded.code, reason = excluded.reason,
  run_id = excluded.run_id, last_seen = excluded.last_seen,
  first_seen = CASE WHEN retl_rejects.state IN ('open', 'dismissed')
    THEN retl_rejects.first_seen ELSE excluded.first_seen END,
  attempts = CASE WHEN retl_rejects.state NOT IN ('open', 'dismissed') THEN 1
    WHEN retl_rejects.run_id = excluded.run_id THEN retl_rejects.attempts
    ELSE retl_rejects.attempts + 1 END,
  state = CASE WHEN retl_rejects.state = 'dismissed' AND retl_rejects.code = excluded.code
    AND COALESCE(retl_rejects.hash, '') = COALESCE(excluded.hash, '') THEN 'dismissed' ELSE 'open' END
"""
_CLOSE = "UPDATE retl_rejects SET state = ?, last_seen = ? WHERE sync = ? AND key = ? AND state = 'open'"


class Rejects(State):
    """The ledger's rejects."""

    def rejects(self, sync: str | None = None, state: str = "open") -> list[RejectRow]:
        """Rejects in one state, by sync and key."""
        where = "WHERE state = ? AND sync = COALESCE(?, sync) ORDER BY sync, key"
        return self._database.rows(RejectRow, "retl_rejects", where, state, sync)

    def record_rejects(self, sync: str, epoch: int, changes: RejectChanges) -> None:
        """Make the changes durable; LedgerError LOCK_LOST for a stale epoch."""
        with self._fenced(epoch, sync=sync):
            self._merge(sync, epoch, changes)

    def dismiss(self, sync: str, keys: Sequence[str] | None) -> int:
        """Give up these open rejects, or all of the sync's; how many there were."""
        sql = "UPDATE retl_rejects SET state = 'dismissed' WHERE state = 'open' AND sync = ?"
        with self._database.transaction():
            if keys is None:
                return self._database.change(sql, sync)
            return self._database.change_many(f"{sql} AND key = ?", [(sync, key) for key in keys])

    def _merge(self, sync: str, epoch: int, changes: RejectChanges) -> None:
        now = cell(self.now())
        sql = "SELECT max(run_id) FROM retl_runs WHERE sync = ? AND epoch = ?"
        run_id = self._database.query(sql, sync, epoch)[0][0]
        self._database.change_many(_CLOSE, ((state, now, sync, key) for key, state in changes.closed))
        self._database.change_many(
            _OPEN,
            ((sync, r.key, r.hash, r.stage, r.code, r.reason, run_id, now, now) for r in changes.opened),
        )
