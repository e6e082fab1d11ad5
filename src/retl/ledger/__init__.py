"""What retl remembers between runs: in `.retl/ledger.db`, or in a PostgreSQL of the team.

`open_ledger` returns a `Ledger`; everything is recorded and read through it. Opened to read, it leaves no
trace: it reads a private copy of the file, or one read-only snapshot of the server. It never resets state
by itself and never repairs it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import retl
from retl.errors import DefinitionError, LedgerError, damaged_state, former_format
from retl.ledger import chain
from retl.ledger.breakers import BreakerRow
from retl.ledger.chain import ChainRow, Fault
from retl.ledger.charge import COPYING, assert_in_charge, copying
from retl.ledger.database import Database, PostgreSQL, SQLite, copy_database
from retl.ledger.erasures import Erasures, pending
from retl.ledger.files import (
    Directory,
    Files,
    Table,
    accessing,
    batch_of,
    chunks_of,
    make_private,
    private,
    sync_directory,
)
from retl.ledger.history import History
from retl.ledger.journal import Journal
from retl.ledger.lock import Advisory, Attempt, Flocks, Lock
from retl.ledger.pruning import Pruned
from retl.ledger.rows import (
    Acknowledgement,
    BatchRow,
    Checkpoint,
    Delivered,
    DeltaRow,
    ErasureRow,
    FollowUpRow,
    Pause,
    Purpose,
    Reject,
    RejectChanges,
    RejectRow,
    RunEnd,
    RunKey,
    RunRow,
    RunStart,
    cell,
)

__all__ = [
    "Acknowledgement",
    "Attempt",
    "BatchRow",
    "BreakerRow",
    "ChainRow",
    "Checkpoint",
    "Delivered",
    "DeltaRow",
    "ErasureRow",
    "Fault",
    "FollowUpRow",
    "Ledger",
    "Lock",
    "Pause",
    "Pruned",
    "Purpose",
    "Reject",
    "RejectChanges",
    "RejectRow",
    "RunEnd",
    "RunKey",
    "RunRow",
    "RunStart",
    "open_ledger",
]


_ANSWERS = re.compile(r"([^.]+)\.answers-(\d+)\.parquet")  # needed as long as the run's delta
_IMAGES = re.compile(r"([^.]+)\.images-(\d+)\.parquet")  # kept as long as the sync asks for
_DELTA = r"\1.delta.parquet"
FORMAT = 6  # of tables and run files together; raise it when either changes

_RUNS = "SELECT run_id FROM retl_runs WHERE sync = ?"
_NEEDED = """
SELECT snapshot FROM retl_checkpoints WHERE sync = ? AND snapshot IS NOT NULL
UNION SELECT delta FROM retl_runs AS r WHERE sync = ? AND delta IS NOT NULL AND (started_at >= ?
  OR (forgotten_at IS NULL AND epoch > COALESCE(
    (SELECT snapshot_epoch FROM retl_checkpoints AS c WHERE c.sync = r.sync AND c.object = r.object), 0)))
"""
_KEPT = """
SELECT name, d.digest FROM retl_digests d JOIN retl_runs USING (run_id) WHERE sync = ? AND removed_at IS NULL
"""
_ANSWERED = """
SELECT batch_id FROM retl_batches JOIN retl_runs USING (run_id)
WHERE sync = ? AND retl_batches.status <> 'open'
"""


class Ledger(Journal, History, Erasures):
    """An open ledger. `state_id` identifies it for ever; `fresh`: it was created just now. `address`: url,
    folder and environment, with which another process opens it."""

    def __init__(
        self,
        database: Database,
        files: Files,
        home: Path,
        address: tuple[str, Path, str | None],
        *,
        fresh: bool,
        closing: contextlib.ExitStack,
    ) -> None:
        super().__init__(database, files, home)
        self.address = address
        self.fresh = fresh
        self._closing = closing.pop_all()

    def lock(self, names: Sequence[str], *, sync: str, host: str, pid: int) -> Lock:
        """The lock of a sync and of all these names, at once. Later LOCK_HELD if another run has one."""
        self._database.assert_writable()
        if isinstance(self._database, PostgreSQL):
            grip: Flocks | Advisory = Advisory(self._database, self.state_id)
        else:
            grip = Flocks(self._database, self.lock_files)
        lock = Lock(grip, names, sync=sync, host=host, pid=pid)
        try:
            # It may have been moved since it was opened; while it is, somebody else has this lock.
            assert_in_charge(self._database, self._database.place)
        except BaseException:
            lock.release()
            raise
        self._locks[sync] = lock
        return lock

    @property
    def own_address(self) -> str:
        """Where other machines reach this one: its address towards the ledger's server."""
        assert isinstance(self._database, PostgreSQL)
        return self._database.own_address

    def put_file(self, name: str, path: Path) -> None:
        """Store a durable copy of this file as a run file."""
        # Outside a transaction: on SQLite a large copy would keep every other sync waiting.
        self._database.assert_writable()
        digest = sha256()

        def chunks() -> Iterator[bytes]:
            for chunk in chunks_of(path):
                digest.update(chunk)
                yield chunk

        self._files.put(name, chunks())
        self._stored[name] = digest.hexdigest(), path.stat().st_size

    def get_file(self, name: str, directory: Path) -> Path:
        """A path of the run file: in place, or a copy in `directory`."""
        return self._files.get(name, directory)

    def next_answers(self, run_id: str) -> int:
        """The number of the next file of what the target returned with batches of this run."""
        names = self.answers([run_id]).get(run_id)
        match = _ANSWERS.fullmatch(names[-1]) if names else None
        return int(match[2]) + 1 if match else 1

    def answers(self, run_ids: Iterable[str]) -> dict[str, list[str]]:
        """Per run the files of what the target returned with its batches, in order; only runs that have
        one."""
        wanted = set(run_ids)
        found = self._numbered(_ANSWERS) if wanted else {}
        return {run_id: names for run_id, names in found.items() if run_id in wanted}

    def images(self, run_id: str) -> list[str]:
        """The files of a run with the rows as they were before it, in order."""
        return self._numbered(_IMAGES).get(run_id, [])

    def _numbered(self, pattern: re.Pattern[str]) -> dict[str, list[str]]:
        """Per run its files of this kind, by number. Numbers of shards have more digits than others."""
        matches = [match for name in self._files.names() if (match := pattern.fullmatch(name))]
        found: dict[str, list[str]] = {}
        for match in sorted(matches, key=lambda match: int(match[2])):
            found.setdefault(match[1], []).append(match[0])
        return found

    def tidy(self, sync: str, keep: float, images: float | None = None) -> None:
        """Remove the run files of a sync that are no longer read, also those of killed runs. The deltas of
        the last `keep` seconds stay, for `retl log`, and the images of rows of the last `images` seconds. The
        caller holds the lock of the sync."""
        self._database.assert_writable()
        names = self._files.names()
        owners = {run_id for (run_id,) in self._database.query(_RUNS, sync)}
        since = cell(self.now() - timedelta(seconds=keep))
        needed = {name for (name,) in self._database.query(_NEEDED, sync, sync, since)}
        stored = {name: of for name in names if (of := batch_of(name))}
        answered = {batch_id for (batch_id,) in self._database.query(_ANSWERED, sync)} if stored else set()
        if images is not None:
            kept = cell(self.now() - timedelta(seconds=images))
            young = {run_id for (run_id,) in self._database.query(f"{_RUNS} AND started_at > ?", sync, kept)}
            names = [n for n in names if not ((found := _IMAGES.fullmatch(n)) and found[1] in young)]
        gone = [name for name in names if stored.get(name) in answered]
        gone += [
            name
            for name in names
            if name.split(".")[0] in owners and _ANSWERS.sub(_DELTA, name) not in needed
        ]
        if gone:
            with self._database.transaction():
                self._mark_removed(gone)
        self._files.drop(gone)

    def chains(self) -> list[ChainRow]:
        """The chains of all syncs, by sync."""
        return self._database.rows(ChainRow, "retl_chains", "ORDER BY sync, updated_at, chain_id")

    def synced(self) -> list[str]:
        """The syncs that have runs."""
        return [name for (name,) in self._database.query("SELECT DISTINCT sync FROM retl_runs")]

    def verify(self, sync: str) -> list[Fault]:
        """What is wrong with the chains of a sync: in each the first run that differs."""
        changed: dict[str, str] = {}
        stored, erasing = set(self._files.names()), pending(self.erasures(sync))
        for name, digest in self._database.query(_KEPT, sync):
            if name not in stored:
                changed[name] = "is missing"
            elif self._files.digest(name) not in (digest, erasing.get(name)):
                changed[name] = "was changed"
        return list(chain.verify(self._database, sync, changed))

    def readable(self) -> list[Path]:
        """The directories where run files are read in place."""
        return [self._home / "runs"] if isinstance(self._files, Directory) else []

    def close(self) -> None:
        self._closing.close()


def open_ledger(
    url: str, folder: Path, *, environment: str | None, create: bool = True, fenced: bool = False
) -> Ledger:
    """The ledger of a project in `folder`: at `file:DIR` (DIR/NAME with an environment) or
    `postgresql://…` (in the schema retl_NAME with an environment).

    It is created if missing. With `create=False` nothing is written, and a missing ledger reads as an empty
    one. One that was moved is opened only with `fenced`. DefinitionError for an invalid url or environment;
    LedgerError STATE_SYMLINK, STATE_NEWER, STATE_FORMAT, STATE_MOVED, STATE_COPYING, STATE_UNREADABLE,
    STATE_UNREACHABLE otherwise.
    """
    schema = schema_of(environment)
    with contextlib.ExitStack() as closing:
        files: Files
        if url.startswith(("postgresql://", "postgres://")):
            home = folder
            database: Database = PostgreSQL(url, schema, snapshot=not create)
            closing.callback(database.close)
            if not create and not database.exists():
                database = SQLite(None)
            files, made = Table(database), False
        elif url.startswith("file:") and url != "file:":
            home = folder / url.removeprefix("file:") / (environment or "")
            with accessing(home):
                refuse_symlinks(folder, home)
                path, made = _made(home) if create else (_copied(home, closing), False)
            database = SQLite(path)
            closing.callback(database.close)
            files = Directory(home / "runs")
        else:
            raise DefinitionError("STATE_URL", "a state url is file:DIR or postgresql://…")
        fresh = create_tables(database) or made
        if not fenced:
            assert_in_charge(database, str(home / "ledger.db") if url.startswith("file:") else database.place)
        database.read_only = not create
        address = (url, folder, environment)
        return Ledger(database, files, home, address, fresh=fresh, closing=closing)


def schema_of(environment: str | None) -> str | None:
    """The schema of an environment on a server; None: where the address leads."""
    if environment is None:
        return None
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,47}", environment):
        raise DefinitionError("ENVIRONMENT_NAME", "an environment's name is letters, digits, '_' and '-'")
    return f"retl_{environment}"


def _made(home: Path) -> tuple[Path, bool]:
    """The ledger's file, and whether it was created now. It appears complete: an empty file would look like
    state that was reset."""
    make_private(home)
    lock = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Another process waits here for the few milliseconds that creating a ledger takes.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_there(home):
            return home / "ledger.db", False
        draft = home / ".ledger.new"
        draft.unlink(missing_ok=True)
        os.close(private(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        with contextlib.closing(SQLite(draft)) as database:
            create_tables(database)
        draft.with_name(".ledger.new-journal").unlink(missing_ok=True)
        draft.rename(home / "ledger.db")
        sync_directory(home)
        return home / "ledger.db", True
    finally:
        os.close(lock)


def _copied(home: Path, closing: contextlib.ExitStack) -> Path | None:
    """A private copy, removed when the ledger is closed; None if there is nothing to copy."""
    if not _is_there(home):
        return None
    aside = Path(tempfile.mkdtemp(prefix="retl-"))
    closing.callback(shutil.rmtree, aside, ignore_errors=True)
    copy_database(home / "ledger.db", aside / "ledger.db")
    return aside / "ledger.db"


def _is_there(home: Path) -> bool:
    """Whether there is a ledger. LedgerError if only remains of one are there: they never start a new one."""
    path = home / "ledger.db"
    if (home / COPYING).exists() and not path.exists():
        raise copying(str(path))
    if path.exists() and not path.stat().st_size:
        raise damaged_state(str(path), "it is empty")
    if not path.exists() and Directory(home / "runs").names():
        raise damaged_state(str(path), "it is missing, but its run files are still there")
    return path.exists()


def create_tables(database: Database) -> bool:
    """Create the tables if there are none; True if they were created now."""
    if database.exists():
        _assert_format(database)
        return False
    with database.transaction():
        database.serialise_creation()
        if database.exists():
            _assert_format(database)
            return False
        text = re.sub(r"--[^\n]*", "", tables_file().read_text())
        for statement in filter(str.strip, text.split(";")):
            database.change(statement)
        database.change("INSERT INTO retl_meta VALUES ('format', ?)", str(FORMAT))
        database.change("INSERT INTO retl_meta VALUES ('state_id', ?)", str(uuid.uuid4()))
    return True


def _assert_format(database: Database) -> None:
    """LedgerError STATE_FORMAT or STATE_NEWER if the tables and run files have another format."""
    found = database.query("SELECT value FROM retl_meta WHERE name = 'format'")
    if found and found[0][0] == str(FORMAT):
        return
    if found and found[0][0].isdigit() and int(found[0][0]) > FORMAT:
        raise LedgerError(
            "STATE_NEWER",
            f"{database.place} was written by a newer retl: its format is {found[0][0]}, ours is {FORMAT}",
            hint="upgrade retl: an older version could damage it",
        )
    raise former_format(database.place)


def tables_file() -> Path:
    """The table definitions: beside the package in a wheel, above it in a checkout."""
    package = Path(retl.__file__).parent
    found = [root / "sql" / "ledger" / "001_tables.sql" for root in (package, package.parents[1])]
    return found[0] if found[0].exists() else found[1]


def refuse_symlinks(folder: Path, home: Path) -> None:
    """LedgerError STATE_SYMLINK for a symlink in the path that the project names: others may control it."""
    named = [path for path in (home, *home.parents) if path.is_relative_to(folder) and path != folder] or [
        home
    ]
    for path in (*named, *(home / name for name in ("ledger.db", "ledger.db-journal", "runs", "locks"))):
        if path.is_symlink():
            raise LedgerError(
                "STATE_SYMLINK", f"{path} is a symlink", hint="put the real folder in its place"
            )
