"""The foundation of the ledger: the database, the run files, and the fence.

The fence is the only concurrency control of the ledger: a transaction first updates the row of the sync in
`retl_locks` under the caller's epoch. Until the transaction ends, no run can take a newer epoch. If there is
a newer epoch already, the update finds no row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import datetime

from retl.ledger.database import Database
from retl.ledger.files import Files
from retl.ledger.lock import Lock, lost

_TOUCH = """
UPDATE retl_locks SET epoch = epoch
WHERE epoch = ? AND name = COALESCE(?, (SELECT sync FROM retl_runs WHERE run_id = ?))
"""

_DELTAS_OF = """
SELECT delta FROM retl_runs WHERE sync = ? AND object = COALESCE(?, object) AND delta IS NOT NULL
"""
_SNAPSHOTS_OF = """
SELECT snapshot FROM retl_checkpoints
WHERE sync = ? AND object = COALESCE(?, object) AND snapshot IS NOT NULL
"""
_REQUESTS_OF = """
SELECT batch_id FROM retl_batches b JOIN retl_runs r USING (run_id)
WHERE r.sync = ? AND r.object = COALESCE(?, r.object) AND b.status = 'open'
"""


class State:
    """The database and files of an open ledger."""

    def __init__(self, database: Database, files: Files) -> None:
        self._database = database
        self._files = files
        self._locks: dict[str, Lock] = {}  # by sync
        self._holding: dict[str, Lock] = {}  # by run

    def now(self) -> datetime:
        """The ledger's clock, aware and in UTC: the server's for PostgreSQL, else this machine's."""
        return self._database.now()

    @contextlib.contextmanager
    def _fenced(
        self,
        epoch: int,
        *,
        run_id: str | None = None,
        sync: str | None = None,
        database: Database | None = None,
    ) -> Iterator[Database]:
        """A transaction under the newest epoch of the sync. LedgerError LOCK_LOST if `epoch` is older."""
        database = database or self._database
        with database.transaction():
            if database.change(_TOUCH, epoch, sync, run_id) != 1:
                raise lost()
            yield database

    def _forget(self, sync: str, object: str | None, keep: Sequence[str] = ()) -> list[str]:
        """Delete checkpoints and deltas, except those of the runs in `keep`; returns the run files that are
        no longer needed."""
        database, of = self._database, (sync, object)
        others = f"AND run_id NOT IN ({', '.join('?' * len(keep))})" if keep else ""
        files = [str(name) for (name,) in database.query(_DELTAS_OF + others, *of, *keep)]
        files += [str(name) for (name,) in database.query(_SNAPSHOTS_OF, *of)]
        opened = database.query(_REQUESTS_OF + others, *of, *keep)
        files += [f"request-{batch_id}" for (batch_id,) in opened]
        where = "WHERE sync = ? AND object = COALESCE(?, object)"
        database.change(f"UPDATE retl_runs SET delta = NULL, distrusts = NULL {where} {others}", *of, *keep)
        database.change(f"DELETE FROM retl_checkpoints {where}", *of)
        return files
