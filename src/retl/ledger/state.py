"""The foundation of the ledger: the database, the run files, and the fence.

The fence is the only concurrency control of the ledger: a transaction first updates the row of the sync in
`retl_locks` under the caller's epoch. Until the transaction ends, no run can take a newer epoch. If there is
a newer epoch already, the update finds no row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from retl.ledger.charge import assert_in_charge
from retl.ledger.database import Database
from retl.ledger.files import Files, stored_for
from retl.ledger.lock import Attempt, Lock, lost
from retl.ledger.rows import cell

_TOUCH = """
UPDATE retl_locks SET epoch = epoch
WHERE epoch = ? AND name = COALESCE(?, (SELECT sync FROM retl_runs WHERE run_id = ?))
"""

_FORGET = """
UPDATE retl_runs SET forgotten_at = ? WHERE sync = ? AND object = COALESCE(?, object) AND status <> 'RUNNING'
AND forgotten_at IS NULL AND (delta IS NOT NULL OR distrusts IS NOT NULL)
"""
_RECORD_FILE = """
INSERT INTO retl_digests (name, run_id, digest, bytes) VALUES (?, ?, ?, ?)
ON CONFLICT (name) DO UPDATE SET digest = excluded.digest, bytes = excluded.bytes, removed_at = NULL
"""
_SNAPSHOTS_OF = """
SELECT snapshot FROM retl_checkpoints
WHERE sync = ? AND object = COALESCE(?, object) AND snapshot IS NOT NULL
"""
_OPEN_OF = """
SELECT batch_id FROM retl_batches b JOIN retl_runs r USING (run_id)
WHERE r.sync = ? AND r.object = COALESCE(?, r.object) AND b.status = 'open'
"""


class State:
    """The database and files of an open ledger."""

    def __init__(self, database: Database, files: Files, home: Path) -> None:
        self._database = database
        self._files = files
        self._home = home
        self.state_id = str(database.query("SELECT value FROM retl_meta WHERE name = 'state_id'")[0][0])
        self._locks: dict[str, Lock] = {}  # by sync
        self._holding: dict[str, Lock | Attempt] = {}  # by run
        self._stored: dict[str, tuple[str, int]] = {}  # digest and bytes of files that no row names yet

    @property
    def lock_files(self) -> Path:
        """The folder with a file per lock, if the ledger is not on a server."""
        return self._home / "locks"

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
        """A transaction under the newest epoch of the sync, and of the shard if it is one's. LedgerError
        LOCK_LOST if `epoch` is older."""
        database = database or self._database
        with database.transaction():
            if database.change(_TOUCH, epoch, sync, run_id) != 1:
                raise lost()
            if isinstance(attempt := self._holding.get(run_id or ""), Attempt):
                attempt.touch(database)
            yield database

    @contextlib.contextmanager
    def _decided(self) -> Iterator[Database]:
        """A transaction of what a person decides without the lock of a sync. LedgerError STATE_MOVED if the
        state was moved since it was opened: a move has ended when the first change of this goes through."""
        with self._database.transaction():
            yield self._database
            assert_in_charge(self._database, self._database.place)

    def _end_shards(self, run_id: str) -> None:
        """In a transaction: no attempt at a shard of this run records anything more."""
        self._database.change("DELETE FROM retl_locks WHERE name LIKE ?", f"{run_id}/%")

    def _record_files(self, run_id: str) -> None:
        """In a transaction: record the digests of the run's files that were stored since the last time."""
        for name in [one for one in self._stored if one.split(".")[0] == run_id]:
            self._database.change(_RECORD_FILE, name, run_id, *self._stored.pop(name))

    def _forget(self, sync: str, object: str | None, keep: Sequence[str] = ()) -> list[str]:
        """Delete checkpoints; the deltas, except those of the runs in `keep`, are only history from now on.
        Returns the run files that are no longer needed."""
        database, of = self._database, (sync, object)
        others = f"AND run_id NOT IN ({', '.join('?' * len(keep))})" if keep else ""
        files = [str(name) for (name,) in database.query(_SNAPSHOTS_OF, *of)]
        opened = database.query(_OPEN_OF + others, *of, *keep)
        stored = [name for (batch_id,) in opened for name in stored_for(batch_id)]
        where = "WHERE sync = ? AND object = COALESCE(?, object)"
        database.change(_FORGET + others, cell(self.now()), *of, *keep)
        database.change(
            f"UPDATE retl_runs SET delta = NULL, distrusts = NULL {where} AND status = 'RUNNING' {others}",
            *of,
            *keep,
        )
        database.change(f"DELETE FROM retl_checkpoints {where}", *of)
        self._mark_removed(files)
        return files + stored

    def _mark_removed(self, files: Sequence[str]) -> None:
        """In a transaction, before they are removed: nobody misses these files."""
        sql = "UPDATE retl_digests SET removed_at = ? WHERE name = ? AND removed_at IS NULL"
        now = cell(self.now())
        self._database.change_many(sql, [(now, name) for name in files])
