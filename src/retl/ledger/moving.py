"""Copy a whole ledger to another store, and fence the old one: `retl state copy`.

At most one of the two is in charge. The copy is made first, marked as coming, and checked; then the old store
is fenced, and only then the mark is removed. A kill before the fence leaves the old store in charge; after it
the same command finishes the copy. Nothing is converted and nothing is left out.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from msgspec import Struct

from retl.errors import DefinitionError, LedgerError, damaged_state
from retl.ledger import (
    Ledger,
    create_tables,
    open_ledger,
    refuse_symlinks,
    schema_of,
    tables_file,
)
from retl.ledger.address import parameters_of
from retl.ledger.charge import COMING, COPYING, MOVED
from retl.ledger.database import Database, PostgreSQL, SQLite
from retl.ledger.files import (
    Directory,
    Files,
    Table,
    accessing,
    chunks_of,
    make_private,
    private,
    sync_directory,
)
from retl.observe import log

_ROWS = 5_000  # at a time
_FILES = "retl_files"
_TABLE = re.compile(r"CREATE TABLE (\w+) \((.*?)\n\);", re.DOTALL)


class Store(Struct, frozen=True):
    """Where a ledger is or will be: `file:FOLDER`, absolute, or `postgresql://…` and a schema."""

    url: str
    environment: str | None  # only on a server, where it is the schema

    @property
    def address(self) -> str:
        """The url without user, password and options, for people and for the fence."""
        if self.url.startswith("file:"):
            return self.url
        found = parameters_of(self.url)
        port = f":{found['port']}" if found.get("port") else ""
        schema = f", schema {schema_of(self.environment)}" if self.environment else ""
        return f"postgresql://{found['host']}{port}/{found.get('dbname', '')}{schema}"

    def open(self) -> Ledger:
        """The ledger that is there, in charge or not."""
        return open_ledger(self.url, Path("/"), environment=self.environment, fenced=True)


class Copied(Struct, frozen=True):
    """What was copied. `finished`: only the last step of an earlier copy was left."""

    address: str
    rows: int
    files: int
    finished: bool = False


def copy(old: Store, new: Store, syncs: Sequence[str]) -> Copied:
    """Copy everything of `old` to `new`, and fence `old`. LedgerError STATE_MOVED if it is fenced already,
    DefinitionError STATE_EXISTS if `new` has another ledger; Later LOCK_HELD while a run is active."""
    if old.address == new.address:
        raise DefinitionError("STATE_EXISTS", f"the state is at {new.address} already")
    with closing(old.open()) as ledger:
        if ledger.fresh:
            raise DefinitionError("STATE_UNKNOWN", f"there is no state at {old.address}")
        if (moved := _kept(ledger._database, MOVED)) is not None:
            return _finish(ledger, moved, new)
        names = _names(ledger, syncs)
        with _alone(ledger, names), ledger._database.transaction():
            _exclude(ledger._database)
            rows, files = _fill(ledger, new)
            log.event("state_copied", rows=rows, files=files)
            _compare(ledger, new)
            ledger.keep(MOVED, new.address)
        log.event("state_fenced")
        with closing(new.open()) as there:
            _forget(there._database, COMING)
        return Copied(new.address, rows, files)


def unfence(store: Store) -> str | None:
    """Put a fenced store in charge again; returns where it had been moved to, None if it was not."""
    with closing(store.open()) as ledger:
        moved = _kept(ledger._database, MOVED)
        _forget(ledger._database, MOVED)
        return moved


def _finish(ledger: Ledger, moved: str, new: Store) -> Copied:
    """The last step of a copy that was killed after the fence."""
    if moved == new.address:
        with closing(new.open()) as there:
            if _kept(there._database, COMING) == ledger.state_id:
                _forget(there._database, COMING)
                return Copied(new.address, 0, 0, finished=True)
    raise LedgerError(
        "STATE_MOVED",
        f"{ledger._database.place} was moved to {moved}",
        hint="copy from there; `retl state unfence` puts this one in charge again",
    )


def _names(ledger: Ledger, syncs: Sequence[str]) -> list[str]:
    known = {name for (name,) in ledger._database.query("SELECT name FROM retl_locks")}
    return sorted(known | {*syncs})


@contextlib.contextmanager
def _alone(ledger: Ledger, names: Sequence[str]) -> Iterator[None]:
    """While open, no run of these syncs is active or begins."""
    if not names:
        yield
        return
    with ledger.lock(names, sync=names[0], host=socket.gethostname(), pid=os.getpid()):
        yield


def _exclude(database: Database) -> None:
    """Until the transaction ends nobody else writes; a SQLite transaction excludes them anyway."""
    if isinstance(database, PostgreSQL):
        database.change(f"LOCK TABLE {', '.join(_tables())} IN EXCLUSIVE MODE")


def _tables() -> dict[str, tuple[list[str], list[str]]]:
    """Each table with its columns and its primary key."""
    found = {}
    text = re.sub(r"--[^\n]*", "", tables_file().read_text())
    for name, body in _TABLE.findall(text):
        lines = [line.strip().rstrip(",") for line in body.splitlines() if line.strip()]
        columns = [line.split()[0] for line in lines if not line.startswith("PRIMARY KEY")]
        keys = [line for line in lines if line.startswith("PRIMARY KEY")]
        own = [line.split()[0] for line in lines if line.endswith("PRIMARY KEY")]
        found[name] = columns, re.findall(r"\w+", keys[0])[2:] if keys else own
    return found


def _fill(ledger: Ledger, new: Store) -> tuple[int, int]:
    """Make the copy, marked as coming; returns the numbers of rows and run files."""
    if not new.url.startswith("file:"):
        database: Database = PostgreSQL(new.url, schema_of(new.environment))
        with closing(database), database.transaction():
            database.serialise_creation()
            if database.exists():
                _refuse(database, ledger)
            create_tables(database)
            return _copy_rows(ledger, database), _copy_files(ledger, Table(database))
    home = Path(new.url.removeprefix("file:"))
    refuse_symlinks(Path("/"), home)
    with accessing(home):
        make_private(home)
        with _claimed(home):
            draft = _draft(ledger, home)
            with closing(SQLite(draft)) as database:
                create_tables(database)
                with database.transaction():
                    rows = _copy_rows(ledger, database)
            runs = Directory(home / "runs")
            files = _copy_files(ledger, runs)
            runs.drop({*runs.names()} - {*ledger._files.names()})
            draft.with_name(".ledger.new-journal").unlink(missing_ok=True)
            draft.rename(home / "ledger.db")
            sync_directory(home)
            (home / COPYING).unlink(missing_ok=True)
            return rows, files


def _draft(ledger: Ledger, home: Path) -> Path:
    """An empty file for the new tables. DefinitionError STATE_EXISTS if somebody else's ledger is here."""
    path = home / "ledger.db"
    if path.exists():
        with closing(SQLite(path)) as there:
            if not there.exists():
                raise damaged_state(str(path), "it is no ledger")
            _refuse(there, ledger)
    elif Directory(home / "runs").names() and not (home / COPYING).exists():
        raise damaged_state(str(path), "it is missing, but its run files are still there")
    else:
        os.close(private(home / COPYING, os.O_RDWR | os.O_CREAT))
        sync_directory(home)
    draft = home / ".ledger.new"
    draft.unlink(missing_ok=True)
    os.close(private(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL))
    return draft


@contextlib.contextmanager
def _claimed(home: Path) -> Iterator[None]:
    """While open, no other process makes a ledger in this folder."""
    descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _refuse(there: Database, ledger: Ledger) -> None:
    """DefinitionError STATE_EXISTS, unless what is there is the same state that was moved away, or an
    unfinished copy: these are replaced."""
    same = _kept(there, "state_id") == ledger.state_id
    if not same or (_kept(there, MOVED) is None and _kept(there, COMING) is None):
        raise DefinitionError(
            "STATE_EXISTS",
            f"{there.place} has a ledger already",
            hint="copy to a place without one; nothing is merged",
        )


def _copy_rows(ledger: Ledger, database: Database) -> int:
    """Every row of every table, in place of what is there."""
    total = 0
    for table, (columns, key) in _tables().items():
        if table == _FILES:
            continue
        database.change(f"DELETE FROM {table}")
        listed, marks = ", ".join(columns), ", ".join("?" * len(columns))
        insert = f"INSERT INTO {table} ({listed}) VALUES ({marks})"
        for rows in _rows(ledger._database, f"SELECT {listed} FROM {table} ORDER BY {', '.join(key)}"):
            total += database.change_many(insert, rows)
    database.change("UPDATE retl_locks SET host = NULL, pid = NULL, since = NULL")
    database.change("DELETE FROM retl_meta WHERE name IN (?, ?)", MOVED, COMING)
    database.change("INSERT INTO retl_meta (name, value) VALUES (?, ?)", COMING, ledger.state_id)
    return total


def _rows(database: Database, sql: str) -> Iterator[list[tuple[Any, ...]]]:
    offset = 0
    while rows := database.query(f"{sql} LIMIT ? OFFSET ?", _ROWS, offset):
        yield rows
        offset += len(rows)


def _copy_files(ledger: Ledger, files: Files) -> int:
    names = ledger._files.names()
    with tempfile.TemporaryDirectory(prefix="retl-") as folder:
        for name in names:
            path = ledger._files.get(name, Path(folder))
            files.put(name, chunks_of(path))
            log.event("run_file_copied", file=name, level="debug")
            if path.is_relative_to(folder):
                path.unlink()
    if isinstance(files, Table):
        files.drop({*files.names()} - {*names})
    return len(names)


def _compare(ledger: Ledger, new: Store) -> None:
    """LedgerError STATE_COPYING if a file or the chain of a sync is not the same in the copy."""
    with closing(new.open()) as there:
        for name in ledger._files.names():
            if ledger._files.digest(name) != there._files.digest(name):
                raise LedgerError("STATE_COPYING", f"the copy of the run file {name} differs")
        for sync in ledger.synced():
            if ledger.verify(sync) != there.verify(sync):
                raise LedgerError("STATE_COPYING", f"the chain of {sync} does not verify in the copy")


def _kept(database: Database, name: str) -> str | None:
    found = database.query("SELECT value FROM retl_meta WHERE name = ?", name)
    return str(found[0][0]) if found else None


def _forget(database: Database, name: str) -> None:
    with database.transaction():
        database.change("DELETE FROM retl_meta WHERE name = ?", name)
