"""One SQL on two databases: a connection to SQLite or PostgreSQL with the same interface.

Callers write `?` for parameters and use only SQL that both understand; the two classes here contain all
differences. It never reconnects: the next run resolves what a lost connection left open. It prints only the
main sentence of a driver's error, because the rest may contain values or secrets.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct

from retl.errors import Later, LedgerError, damaged_state
from retl.ledger.address import parameters_of
from retl.ledger.rows import Cell, columns, unpacked
from retl.net import sqlstate
from retl.net.deadline import hang_up_after
from retl.net.pooler import SESSION_MODE, SHARED, Shared
from retl.net.postgres import open_session

R = TypeVar("R", bound=Struct)

_PATIENCE = 5.0  # seconds for another process to end its transaction
_CHUNK = 10_000  # rows per step, so that each step ends in time

# PostgreSQL cannot store NUL in text. U+FFFE is not a character, so no data contains it.
_NUL, _STAND_IN = "\x00", "\ufffe"


class Database:
    """A connection in autocommit, used by one thread at a time. Errors are LedgerError, or Later STATE_BUSY
    while another process is writing."""

    begin = "BEGIN"
    exists_sql: str
    errors: type[Exception]
    place: str  # for people; contains no secret
    snapshot = False  # True: a read-only snapshot of the tables

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._turn = threading.RLock()
        self._open = False
        self.read_only = False

    def now(self) -> datetime:
        raise NotImplementedError

    def failure(self, error: Any) -> LedgerError | Later:
        raise NotImplementedError

    def translated(self, sql: str) -> str:
        return sql

    def serialise_creation(self) -> None:
        """Called in a transaction: until it ends no other process creates the tables."""

    def exists(self) -> bool:
        """True if there is a ledger here."""
        return bool(self.query(self.exists_sql)[0][0])

    def query(self, sql: str, *cells: Cell) -> list[tuple[Any, ...]]:
        """All rows of the answer."""
        with self._turn:
            rows = self._run("execute", sql, _safe(cells)).fetchall()
        return [tuple(_original(value) for value in row) for row in rows]

    def rows(self, kind: type[R], table: str, where: str = "", *cells: Cell) -> list[R]:
        """The rows of a table as `kind`, its fields being the columns."""
        sql = f"SELECT {', '.join(columns(kind))} FROM {table} {where}"
        return [unpacked(kind, row) for row in self.query(sql, *cells)]

    def change(self, sql: str, *cells: Cell) -> int:
        """How many rows the statement changed."""
        with self._turn:
            return int(self._run("execute", sql, _safe(cells)).rowcount)

    def change_many(self, sql: str, rows: Iterable[tuple[Cell, ...]]) -> int:
        """How many rows were changed, one execution per element."""
        safe = [_safe(row) for row in rows]
        with self._turn:
            chunks = [safe[start : start + _CHUNK] for start in range(0, len(safe), _CHUNK)]
            return sum(int(self._run("executemany", sql, chunk).rowcount) for chunk in chunks)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, and durable at its end. Inside another transaction it is part of that one."""
        self.assert_writable()
        with self._turn:
            if self._open:
                yield
                return
            self.change(self.begin)
            self._open = True
            try:
                yield
                self.change("COMMIT")
            except BaseException:
                with contextlib.suppress(LedgerError, Later):
                    self.change("ROLLBACK")
                raise
            finally:
                self._open = False

    def assert_writable(self) -> None:
        if self.read_only:
            raise LedgerError("STATE_READ_ONLY", "this command may only read the ledger")

    def close(self) -> None:
        with contextlib.suppress(self.errors):
            self._connection.close()

    def in_time(self) -> contextlib.AbstractContextManager[object]:
        """Ends a statement that takes too long."""
        return contextlib.nullcontext()

    def _run(self, method: str, sql: str, argument: Any) -> Any:
        try:
            with self.in_time():
                cursor = self._connection.cursor()
                getattr(cursor, method)(self.translated(sql), argument)
                return cursor
        except self.errors as error:
            raise self.failure(error) from None


class SQLite(Database):
    """A file, or a database in memory. TRUNCATE leaves no file that a reader would have to change."""

    begin = "BEGIN IMMEDIATE"
    exists_sql = "SELECT count(*) FROM sqlite_master WHERE name = 'retl_meta'"
    errors = sqlite3.Error

    def __init__(self, path: Path | None) -> None:
        self.place = str(path or "memory")
        try:
            super().__init__(
                sqlite3.connect(
                    path or ":memory:", isolation_level=None, check_same_thread=False, timeout=_PATIENCE
                )
            )
        except sqlite3.Error as error:
            raise self.failure(error) from None
        self.query("PRAGMA journal_mode = TRUNCATE")
        self.change("PRAGMA synchronous = FULL")
        self.query("PRAGMA secure_delete = ON")  # deleted data is also erased from the file

    def now(self) -> datetime:
        return datetime.now(UTC)

    def failure(self, error: Any) -> LedgerError | Later:
        return _refused_by_sqlite(self.place, error)


def copy_database(path: Path, target: Path) -> None:
    """Make a consistent copy of a SQLite file without changing it or its folder."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    try:
        with (
            contextlib.closing(
                sqlite3.connect(uri, uri=True, timeout=_PATIENCE, isolation_level=None)
            ) as source,
            contextlib.closing(sqlite3.connect(target)) as copy,
        ):
            source.execute("BEGIN")
            source.execute("SELECT count(*) FROM sqlite_master")
            source.backup(copy)
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorname", "") != "SQLITE_READONLY_ROLLBACK":
            raise _refused_by_sqlite(str(path), error) from None
        # A killed writer left a journal, and no writer is alive: SQLite rolls the copy back when it opens it.
        for suffix in ("", "-journal"):
            shutil.copyfile(f"{path}{suffix}", f"{target}{suffix}")


_NO_ROOM_OR_RIGHT = (
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
)


def _refused_by_sqlite(place: str, error: Any) -> LedgerError | Later:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return busy(place, "another process is in the middle of a transaction")
    if code in _NO_ROOM_OR_RIGHT:
        hint = "make room or fix the permissions; run again"
        return LedgerError("STATE_UNWRITABLE", f"{place}: {error}", hint=hint)
    return damaged_state(place, str(error))


class PostgreSQL(Database):
    """A session on a server; in `schema`, or by default where the address leads."""

    # Not to_regclass: it may answer from a cache that is older than our lock.
    exists_sql = "SELECT count(*) FROM pg_class WHERE relname = 'retl_meta' AND pg_table_is_visible(oid)"

    def __init__(self, url: str, schema: str | None, *, snapshot: bool = False) -> None:
        import psycopg

        self.errors = psycopg.Error
        self._origin = url, schema
        self.snapshot = snapshot
        parameters = parameters_of(url)
        self.place = f"the ledger on {parameters['host']}"
        try:
            super().__init__(open_session(parameters, _STATEMENT, _SETTINGS))
        except psycopg.Error as error:
            problem = sqlstate.unconnected(error, self.place, parameters.get("user") or "this account")
            raise self._unreachable(problem.message) from None
        except Shared:
            raise LedgerError("POOLER_MODE", f"{self.place} {SHARED}", hint=SESSION_MODE) from None
        if schema:
            self.change(f'SET search_path = "{schema}"')
        if snapshot:
            self.change("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")

    def twin(self) -> PostgreSQL:
        """Another session on the same ledger."""
        return PostgreSQL(*self._origin)

    def in_time(self) -> contextlib.AbstractContextManager[object]:
        return hang_up_after(_STATEMENT, self._connection.fileno())

    @property
    def own_address(self) -> str:
        """The address of this machine towards the server."""
        with socket.socket(fileno=os.dup(self._connection.fileno())) as end:
            return (
                str(end.getsockname()[0]) if end.family in (socket.AF_INET, socket.AF_INET6) else "127.0.0.1"
            )

    def translated(self, sql: str) -> str:
        return sql.replace("?", "%s")

    def serialise_creation(self) -> None:
        self.query("SELECT pg_advisory_xact_lock(pg_catalog.hashtextextended('retl ledger', 0))")
        if self._origin[1]:
            self.change(f'CREATE SCHEMA IF NOT EXISTS "{self._origin[1]}"')

    def now(self) -> datetime:
        moment: datetime = self.query("SELECT clock_timestamp()")[0][0]
        return moment.astimezone(UTC)

    def failure(self, error: Any) -> LedgerError | Later:
        state = error.sqlstate or ""
        if sqlstate.is_lost(error, self._connection) or state[:2] in ("08", "57"):
            return self._unreachable(f"{self.place}: the connection was lost")
        reason = f"SQLSTATE {state or 'unknown'}{sqlstate.words(error)}"
        if state in ("25006", "42501") or state[:2] == "53":
            return LedgerError("STATE_UNWRITABLE", f"{self.place}: {reason}", hint="fix it; run again")
        if state[:2] in ("40", "55"):
            return busy(self.place, reason)
        return damaged_state(self.place, reason)

    def _unreachable(self, message: str) -> LedgerError:
        return LedgerError("STATE_UNREACHABLE", message, hint="check the state url and the server; run again")


def busy(place: str, reason: str) -> Later:
    """Another process is writing the state; nothing is wrong with it."""
    hint = "run again when that process (perhaps a stopped retl) has continued or ended"
    return Later("STATE_BUSY", f"{place} is busy: {reason}", hint=hint)


# With these a server that lost its client releases the lock, and no statement hangs for ever.
_STATEMENT = 90.0  # seconds, even if the server does not answer
_SETTINGS = {
    "statement_timeout": "60s",
    "lock_timeout": "10s",
    "tcp_keepalives_idle": 15,
    "tcp_keepalives_interval": 5,
    "tcp_keepalives_count": 3,
}


def _safe(cells: tuple[Cell, ...]) -> tuple[Cell, ...]:
    return tuple(c.replace(_NUL, _STAND_IN) if isinstance(c, str) and _NUL in c else c for c in cells)


def _original(value: Any) -> Any:
    return value.replace(_STAND_IN, _NUL) if isinstance(value, str) and _STAND_IN in value else value
