"""One writer per sync and per object: a lock of the kernel or of PostgreSQL.

There is no lease and no timeout: the kernel or PostgreSQL releases the lock when its holder ends. A holder
may not notice that its connection was lost, so there is also an epoch: it grows with every lock taken, and
a run with an older epoch can record nothing. It never waits for a run that has the lock.
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
from retl.ledger.files import accessing, make_private, private
from retl.ledger.rows import cell

_LOOK = 0.1  # seconds, thousands of times as long as a look at a lock takes
_TAKE = """
INSERT INTO retl_locks (name, epoch, sync, host, pid, since) VALUES (?, 1, ?, ?, ?, ?)
ON CONFLICT (name) DO UPDATE SET epoch = retl_locks.epoch + 1, sync = excluded.sync,
  host = excluded.host, pid = excluded.pid, since = excluded.since
RETURNING epoch
"""


class Grip(ABC):
    """The locks that the kernel or the server holds for us, one per name. `descriptors`: a process that
    inherits these keeps the locks too."""

    database: Database  # for heartbeats: they fail if the lock is lost
    descriptors: Sequence[int] = ()

    @abstractmethod
    def take(self, name: str) -> bool:
        """True if it is ours now; False at once if another process has it."""

    @abstractmethod
    def held(self) -> bool:
        """True while we still hold all locks taken."""

    @abstractmethod
    def release(self) -> None: ...


class Flocks(Grip):
    """flock on a file per name; it ends only with the process."""

    def __init__(self, database: Database, directory: Path) -> None:
        self.database = database
        self._directory = directory
        self._held: dict[Path, int] = {}

    def take(self, name: str) -> bool:
        path = _file(self._directory, name)
        with accessing(path):
            make_private(self._directory)
            descriptor = private(path, os.O_RDWR | os.O_CREAT)
            if not _locked(descriptor):
                os.close(descriptor)
                return False
        self._held[path] = descriptor
        self.descriptors = tuple(self._held.values())
        return _same(path, descriptor)

    def held(self) -> bool:
        return all(_same(path, descriptor) for path, descriptor in self._held.items())

    def release(self) -> None:
        while self._held:
            os.close(self._held.popitem()[1])


class Advisory(Grip):
    """Session advisory locks on a connection of their own."""

    def __init__(self, database: PostgreSQL, state_id: str) -> None:
        self.database = database.twin()
        self._state_id = state_id
        self._count = 0

    def take(self, name: str) -> bool:
        sql = "SELECT pg_try_advisory_lock(pg_catalog.hashtextextended(?, 0))"
        taken = bool(self.database.query(sql, f"{self._state_id}/{name}")[0][0])
        self._count += taken
        return taken

    def held(self) -> bool:
        # Ask the server: a pooler may have switched this connection to another session.
        sql = (
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid()"
        )
        with contextlib.suppress(LedgerError, Later):
            return bool(self.database.query(sql)[0][0] >= self._count)
        return False

    def release(self) -> None:
        # A server notes the end of a session a little later, and the next run may begin at once.
        with contextlib.suppress(LedgerError, Later):
            self.database.query("SELECT pg_advisory_unlock_all()")
        self.database.close()


def is_held(database: Database, directory: Path, state_id: str, name: str) -> bool:
    """Whether a process has the lock of this name; it is not taken. True if that cannot be found out."""
    if isinstance(database, PostgreSQL):
        sql = (
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            " AND (classid::bigint << 32 | objid::bigint) = pg_catalog.hashtextextended(?, 0)"
        )
        return bool(database.query(sql, f"{state_id}/{name}")[0][0])
    try:
        descriptor = os.open(_file(directory, name), os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


class Lock:
    """The right to run one sync; everything it records has this `epoch`."""

    def __init__(self, grip: Grip, names: Sequence[str], *, sync: str, host: str, pid: int) -> None:
        """Lock all names, or none: then Later LOCK_HELD, which names the holder."""
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
            grip.release()
            raise
        self.epoch = self._epochs[sync]

    @property
    def descriptors(self) -> Sequence[int]:
        """Files that keep the lock for every process that inherits them; none if a server keeps it."""
        return self._grip.descriptors

    def check(self) -> None:
        """LedgerError LOCK_LOST if we no longer hold it."""
        if not self._grip.held():
            raise lost()

    def advance(self, database: Database, epoch: int) -> None:
        """Take a newer epoch for all names, in the caller's transaction."""
        sql = "UPDATE retl_locks SET epoch = ? WHERE name = ? AND epoch = ?"
        newer = {name: max(held, epoch) for name, held in self._epochs.items()}
        database.change_many(sql, [(newer[name], name, held) for name, held in self._epochs.items()])
        self._epochs, self.epoch = newer, epoch

    def release(self) -> None:
        """Release the locks; their rows no longer name a holder."""
        with contextlib.suppress(LedgerError, Later), self.database.transaction():
            self.database.change_many(
                "UPDATE retl_locks SET host = NULL, pid = NULL, since = NULL WHERE name = ? AND epoch = ?",
                list(self._epochs.items()),
            )
        self._epochs.clear()
        self._grip.release()

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Attempt:
    """The part of a lock that one attempt at a shard has: the run holds the lock, and this process may record
    under its epoch, until a later attempt at the same shard begins. `number` counts from 1."""

    def __init__(self, database: Database, epoch: int, name: str, *, sync: str, host: str, pid: int) -> None:
        """Begin an attempt, in the caller's transaction: earlier ones record nothing more."""
        self.database, self.epoch, self.name = database, epoch, name
        since = cell(database.now())
        self.number: int = database.query(_TAKE, name, sync, host, pid, since)[0][0]

    def check(self) -> None:
        """The run looks at its lock itself; every entry here has its epoch, and fails under an older one."""

    def touch(self, database: Database) -> None:
        """LedgerError LOCK_LOST if a later attempt has begun; until the transaction ends, none begins."""
        sql = "UPDATE retl_locks SET epoch = epoch WHERE name = ? AND epoch = ?"
        if database.change(sql, self.name, self.number) != 1:
            raise LedgerError(
                "LOCK_LOST",
                "another attempt at this shard has begun, or its run has ended: this one stopped and recorded"
                " nothing more",
            )


def lost() -> LedgerError:
    return LedgerError(
        "LOCK_LOST",
        "this run lost its lock and another run may have begun: it stopped and recorded nothing more",
        hint="run the same command again: it carries on from what was confirmed",
    )


def _held(database: Database, name: str) -> Later:
    """LOCK_HELD with the holder's name; a new holder has one second to record its name."""
    patience = time.monotonic() + 1
    while True:
        found = database.query("SELECT sync, host, pid, since FROM retl_locks WHERE name = ?", name)
        if (found and found[0][1]) or time.monotonic() > patience:
            break
        time.sleep(0.05)
    sync, host, pid, since = found[0] if found else (None, None, None, None)
    own = "" if sync == name else f"sync {sync}, "  # the name says it, and that of a watch is no sync's
    holder = f"{own}pid {pid} on {host}, since {since}" if host else "a run that is just starting"
    return Later("LOCK_HELD", f"{name} is locked by {holder}", hint="run it again when that run has ended")


def _locked(descriptor: int) -> bool:
    """Lock the file, True, unless another process has it. `is_held` looks by sharing the lock for an instant,
    so one refusal says little."""
    patience = time.monotonic() + _LOOK
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > patience:
                return False
            time.sleep(_LOOK / 100)
        else:
            return True


def _file(directory: Path, name: str) -> Path:
    return directory / f"{sha256(name.encode()).hexdigest()[:32]}.lock"


def _same(path: Path, descriptor: int) -> bool:
    """Whether the path is still the file we locked: a lock on an unlinked file has no effect."""
    try:
        return os.path.samestat(path.stat(follow_symlinks=False), os.fstat(descriptor))
    except OSError:  # the folder is gone, or no longer ours to read
        return False
