"""One writer per sync and per object: the kernel's lock, or the server's.

There is no lease and nobody is dead by the clock: the operating system or PostgreSQL lets go when the
holder does. What holding cannot prevent (a connection cut off unnoticed) the epoch does: it grows with
every lock taken, and whoever has an older one can record nothing. It never waits for a lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from types import TracebackType

from retl.errors import Later, LedgerError
from retl.ledger.database import Database, PostgreSQL
from retl.ledger.files import make_private, private, writing
from retl.ledger.rows import cell

_TAKE = """
INSERT INTO retl_locks (name, epoch, sync, host, pid, since) VALUES (?, 1, ?, ?, ?, ?)
ON CONFLICT (name) DO UPDATE SET epoch = retl_locks.epoch + 1, sync = excluded.sync,
  host = excluded.host, pid = excluded.pid, since = excluded.since
RETURNING epoch
"""


class Grip(ABC):
    """What the kernel or the server holds for us, name by name."""

    database: Database  # heartbeats go this way: where the lock is lost, so are they

    @abstractmethod
    def take(self, name: str) -> bool:
        """True if it is ours now; False at once if somebody has it."""

    @abstractmethod
    def held(self) -> bool:
        """True while all that was taken is still ours."""

    @abstractmethod
    def let_go(self) -> None: ...


class Flocks(Grip):
    """flock on a file per name: gone with the process, and only with it."""

    def __init__(self, database: Database, directory: Path) -> None:
        self.database = database
        self._directory = directory
        self._held: dict[Path, int] = {}

    def take(self, name: str) -> bool:
        path = self._directory / f"{sha256(name.encode()).hexdigest()[:32]}.lock"
        with writing(path):
            make_private(self._directory)
            descriptor = private(path, os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
        self._held[path] = descriptor
        return _same(path, descriptor)

    def held(self) -> bool:
        return all(_same(path, descriptor) for path, descriptor in self._held.items())

    def let_go(self) -> None:
        while self._held:
            os.close(self._held.popitem()[1])


class Advisory(Grip):
    """Session advisory locks on a connection of their own."""

    def __init__(self, database: PostgreSQL, state_id: str) -> None:
        self.database = database.twin()
        self._state_id = state_id
        self._count = 0

    def take(self, name: str) -> bool:
        sql = "SELECT pg_try_advisory_lock(hashtextextended(?, 0))"
        taken = bool(self.database.query(sql, f"{self._state_id}/{name}")[0][0])
        self._count += taken
        return taken

    def held(self) -> bool:
        # Asked of the server, because a pooler may have put another session behind this connection.
        sql = (
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid()"
        )
        with contextlib.suppress(LedgerError, Later):
            return bool(self.database.query(sql)[0][0] >= self._count)
        return False

    def let_go(self) -> None:
        self.database.close()


class Lock:
    """The right to run one sync; `epoch` goes with everything it records."""

    def __init__(self, grip: Grip, names: Sequence[str], *, sync: str, host: str, pid: int) -> None:
        """Takes every name, or none and raises Later LOCK_HELD, which says who has it."""
        self.database = grip.database
        self._grip = grip
        self._epochs: dict[str, int] = {}
        try:
            for name in sorted({sync, *names}):
                if not grip.take(name):
                    raise _held(self.database, name)
            with self.database.transaction():
                since = cell(self.database.now())
                for name in sorted({sync, *names}):
                    self._epochs[name] = self.database.query(_TAKE, name, sync, host, pid, since)[0][0]
        except BaseException:
            grip.let_go()
            raise
        self.epoch = self._epochs[sync]

    def check(self) -> None:
        """LedgerError LOCK_LOST if it is ours no more."""
        if not self._grip.held():
            raise lost()

    def release(self) -> None:
        """Let go; the rows forget the holder so that nobody names him to the next one in vain."""
        with contextlib.suppress(LedgerError, Later), self.database.transaction():
            self.database.change_many(
                "UPDATE retl_locks SET host = NULL, pid = NULL, since = NULL WHERE name = ? AND epoch = ?",
                list(self._epochs.items()),
            )
        self._epochs.clear()
        self._grip.let_go()

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def lost() -> LedgerError:
    return LedgerError(
        "LOCK_LOST",
        "this run's lock is gone and another run may have begun: it stopped and recorded nothing more",
        hint="run the same command again: it carries on from what was confirmed",
    )


def _held(database: Database, name: str) -> Later:
    """Names the holder; one that has only just locked gets a second to write down who it is."""
    patience = time.monotonic() + 1
    while True:
        found = database.query("SELECT sync, host, pid, since FROM retl_locks WHERE name = ?", name)
        if (found and found[0][1]) or time.monotonic() > patience:
            break
        time.sleep(0.05)
    sync, host, pid, since = found[0] if found else (None, None, None, None)
    holder = f"sync {sync}, pid {pid} on {host}, since {since}" if host else "a run that is just starting"
    return Later("LOCK_HELD", f"{name} is locked by {holder}", hint="run it again when that run has ended")


def _same(path: Path, descriptor: int) -> bool:
    """Whether the path still leads to the file we hold: a lock on an unlinked file keeps nobody out."""
    try:
        return os.path.samestat(path.stat(follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False
