"""The requests that follow a run: recorded with its end, before each send, and after each answer.

A request that is open is never forgotten: it belongs to the sync until it has an answer, or until the sync
does not have it any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from retl.ledger.paces import Paces
from retl.ledger.rows import FollowUpRow, columns, packed

# Rows that may have reached the target since the sync last ended well, by runs that were not its own success.
_WROTE = """
SELECT 1 FROM retl_runs AS r WHERE sync = ? AND object = ? AND epoch < ? AND epoch > COALESCE((
  SELECT max(epoch) FROM retl_runs AS g WHERE g.sync = ? AND g.object = ? AND g.epoch < ?
  AND status IN ('SUCCESS', 'SUCCESS_WITH_REJECTS') AND purpose IN ('sync', 'apply')), 0)
AND EXISTS (SELECT 1 FROM retl_batches AS b
  WHERE b.run_id = r.run_id AND (b.attempts > 0 OR b.status = 'open')) LIMIT 1
"""


class Requests(Paces):
    """The ledger's requests that follow runs."""

    def put_requests(self, rows: Iterable[FollowUpRow]) -> None:
        """In a transaction: record new requests."""
        names = columns(FollowUpRow)
        sql = f"INSERT INTO retl_requests ({', '.join(names)}) VALUES ({', '.join('?' for _ in names)})"
        self._database.change_many(sql, [packed(row) for row in rows])

    def change_requests(self, epoch: int, rows: Sequence[FollowUpRow]) -> None:
        """Record what became of requests of one sync; `epoch` is that of the lock the caller holds."""
        names = columns(FollowUpRow)[5:]
        sql = f"UPDATE retl_requests SET {', '.join(f'{one} = ?' for one in names)}"
        with self._fenced(epoch, sync=rows[0].sync) as database:
            changed = [(*packed(row)[5:], row.run_id, row.request) for row in rows]
            database.change_many(f"{sql} WHERE run_id = ? AND request = ?", changed)

    def open_requests(self, sync: str) -> list[FollowUpRow]:
        """The requests of a sync that have no answer, oldest first."""
        where = "WHERE sync = ? AND state = 'open' ORDER BY due_at, run_id, request"
        return self._database.rows(FollowUpRow, "retl_requests", where, sync)

    def doubt_requests(self, epoch: int, sync: str) -> None:
        """Runs that this ledger lost may have sent the open requests of a sync. `epoch` is that of the
        lock."""
        sql = "UPDATE retl_requests SET doubts = doubts + 1 WHERE sync = ? AND state = 'open'"
        with self._fenced(epoch, sync=sync) as database:
            database.change(sql, sync)

    def requests_of(self, run_id: str) -> list[FollowUpRow]:
        """The requests that follow a run."""
        where = "WHERE run_id = ? ORDER BY request"
        return self._database.rows(FollowUpRow, "retl_requests", where, run_id)

    def wrote(self, sync: str, object: str, epoch: int) -> bool:
        """Whether earlier runs may have written rows since the last one before `epoch` that was a success of
        the sync itself."""
        return bool(self._database.query(_WROTE, sync, object, epoch, sync, object, epoch))
