"""Open rejects: one per sync and key, until the row is applied, withdrawn or dismissed.

A row without a usable key is identified by its digest. A retry uses the current row of the mart. A sync may
keep a copy of the rejected row: it is only for people to read, and is deleted when the reject is closed.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from retl.ledger.rows import Cell, Reject, RejectChanges, RejectRow, cell
from retl.ledger.state import State

# A reject that one run reports twice counts once, so a merge may be repeated. A dismissed reject stays
# dismissed while the row is unchanged and fails with the same code. `kept_since` is the first time that this
# unchanged row was kept: a daily reject does not renew it.
_SAME_ROW = "COALESCE(retl_rejects.hash, '') = COALESCE(excluded.hash, '')"
_STAYS_DISMISSED = f"retl_rejects.state = 'dismissed' AND retl_rejects.code = excluded.code AND {_SAME_ROW}"
_OPEN = f"""
INSERT INTO retl_rejects (sync, key, row_id, hash, stage, code, reason, run_id, first_seen, last_seen,
  attempts, state, payload, kept_since)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, 'open', ?, ?)
ON CONFLICT (sync, key, row_id) DO UPDATE SET
  hash = excluded.hash, stage = excluded.stage, code = excluded.code, reason = excluded.reason,
  run_id = excluded.run_id, last_seen = excluded.last_seen,
  first_seen = CASE WHEN retl_rejects.state IN ('open', 'dismissed')
    THEN retl_rejects.first_seen ELSE excluded.first_seen END,
  attempts = CASE WHEN retl_rejects.state NOT IN ('open', 'dismissed') THEN 1
    WHEN retl_rejects.run_id = excluded.run_id THEN retl_rejects.attempts
    ELSE retl_rejects.attempts + 1 END,
  state = CASE WHEN {_STAYS_DISMISSED} THEN 'dismissed' ELSE 'open' END,
  payload = CASE WHEN {_STAYS_DISMISSED} THEN NULL ELSE excluded.payload END,
  kept_since = CASE WHEN retl_rejects.state = 'open' AND {_SAME_ROW}
    THEN COALESCE(retl_rejects.kept_since, excluded.kept_since) ELSE excluded.kept_since END
"""
_CLOSE = """
UPDATE retl_rejects SET state = ?, last_seen = ?, payload = NULL, kept_since = NULL
WHERE sync = ? AND key = ? AND row_id = ? AND state = 'open'
"""
_FORGET = """
UPDATE retl_rejects SET payload = NULL
WHERE sync = ? AND payload IS NOT NULL AND kept_since <= COALESCE(?, kept_since)
"""
_DISMISS = """
UPDATE retl_rejects SET state = 'dismissed', payload = NULL, kept_since = NULL
WHERE state = 'open' AND sync = ?
"""


class Rejects(State):
    """The ledger's rejects."""

    def rejects(self, sync: str | None = None, state: str = "open") -> list[RejectRow]:
        """Rejects in one state, by sync and key."""
        where = "WHERE state = ? AND sync = COALESCE(?, sync) ORDER BY sync, key, row_id"
        return self._database.rows(RejectRow, "retl_rejects", where, state, sync)

    def record_rejects(self, sync: str, epoch: int, changes: RejectChanges) -> None:
        """Make the changes durable; LedgerError LOCK_LOST for a stale epoch."""
        with self._fenced(epoch, sync=sync):
            self._merge(sync, epoch, changes)

    def dismiss(self, sync: str, keys: Sequence[str] | None) -> int:
        """Dismiss these open rejects, or all of the sync; returns how many there were."""
        with self._decided():
            if keys is None:
                return self._database.change(_DISMISS, sync)
            return self._database.change_many(f"{_DISMISS} AND key = ?", [(sync, key) for key in keys])

    def _merge(self, sync: str, epoch: int, changes: RejectChanges) -> None:
        moment = self.now()
        now = cell(moment)
        sql = "SELECT max(run_id) FROM retl_runs WHERE sync = ? AND epoch = ?"
        run_id = self._database.query(sql, sync, epoch)[0][0]
        self._database.change_many(_CLOSE, ((state, now, sync, *reject) for *reject, state in changes.closed))
        self._database.change_many(_OPEN, (_opened(sync, run_id, now, one) for one in changes.opened))
        until = None if changes.retain is None else cell(moment - timedelta(seconds=changes.retain))
        self._database.change(_FORGET, sync, until)


def _opened(sync: str, run_id: str, now: Cell, one: Reject) -> tuple[Cell, ...]:
    kept_since = None if one.payload is None else now
    content = (one.hash, one.stage, one.code, one.reason)
    return (sync, one.key, one.row_id, *content, run_id, now, now, one.payload, kept_since)
