"""One SQL on two databases: a connection to SQLite or PostgreSQL that looks the same from above.

Everything above writes `?` for parameters and uses only what both understand; all that differs is in
the two classes here. It refuses to reconnect (what a lost connection leaves behind is settled by the
next run) and to print what a driver says besides its own sentence, which might hold values or secrets.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from retl.errors import Later, LedgerError
from retl.ledger.address import parameters_of
from retl.ledger.rows import Cell, columns, unpacked
from retl.net import sqlstate
from retl.net.deadline import hang_up_after
from retl.net.postgres import open_session

R = TypeVar("R")

_PATIENCE = 5.0  # seconds for another process to end its transaction
_CHUNK = 10_000  # rows changed at once, so that each step is over in time

# PostgreSQL holds no NUL in text; U+FFFE is no character, so nobody's data has it.
_NUL, _STAND_IN = "\x00", "\ufffe"


class Database:
    """A connection in autocommit, used by one thread at a time; errors come out as LedgerError, and as Later
    STATE_BUSY where somebody else only has to finish."""

    begin = "BEGIN"
    exists_sql: str
    errors: type[Exception]
    place: str  # for people; holds no secret
    snapshot = False  # a moment of somebody's tables, which a reader cannot bring up to date

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
        """Called in a transaction: until it ends nobody else creates the tables."""

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
        """All or nothing, and durable on leaving; inside another one it is part of that."""
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

    def in_time(self) -> contextlib.AbstractContextManager[None]:
        """A statement that is not over in time ends here."""
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
    """A file, or nothing but memory. TRUNCATE leaves no file behind that a reader would have to touch."""

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
        self.query("PRAGMA secure_delete = ON")  # what is forgotten is gone from the file too

    def now(self) -> datetime:
        return datetime.now(UTC)

    def failure(self, error: Any) -> LedgerError | Later:
        return _refused_by_sqlite(self.place, error)


def copy_database(path: Path, target: Path) -> None:
    """A consistent copy of a SQLite file that leaves it and its folder exactly as they are."""
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
        # A killed writer left a journal to roll back, and none lives: the copy does that for itself.
        for suffix in ("", "-journal"):
            shutil.copyfile(f"{path}{suffix}", f"{target}{suffix}")


def _refused_by_sqlite(place: str, error: Any) -> LedgerError | Later:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return busy(place, "another process is in the middle of a transaction")
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY):
        hint = "make room or mend the permissions; run again"
        return LedgerError("STATE_UNWRITABLE", f"{place}: {error}", hint=hint)
    return unreadable(place, str(error))


class PostgreSQL(Database):
    """A session on a server; in `schema` if one is named, else where the address leads."""

    # Not to_regclass: it may answer from a cache that is older than the lock taken before asking.
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
            told = sqlstate.unconnected(error, self.place, parameters.get("user") or "this account")
            raise self._unreachable(told.message) from None
        if schema:
            self.change(f'SET search_path = "{schema}"')
        if snapshot:
            self.change("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")

    def twin(self) -> PostgreSQL:
        """Another session on the same ledger."""
        return PostgreSQL(*self._origin)

    def in_time(self) -> contextlib.AbstractContextManager[None]:
        return hang_up_after(_STATEMENT, self._connection.fileno())

    def translated(self, sql: str) -> str:
        return sql.replace("?", "%s")

    def serialise_creation(self) -> None:
        self.query("SELECT pg_advisory_xact_lock(hashtextextended('retl ledger', 0))")
        if self._origin[1]:
            self.change(f'CREATE SCHEMA IF NOT EXISTS "{self._origin[1]}"')

    def now(self) -> datetime:
        moment: datetime = self.query("SELECT clock_timestamp()")[0][0]
        return moment.astimezone(UTC)

    def failure(self, error: Any) -> LedgerError | Later:
        state = error.sqlstate or ""
        if self._connection.closed or state[:2] in ("08", "57"):
            return self._unreachable(f"{self.place}: the connection is gone")
        said = f"SQLSTATE {state or 'unknown'}{sqlstate.words(error)}"
        if state in ("25006", "42501") or state[:2] == "53":
            return LedgerError("STATE_UNWRITABLE", f"{self.place}: {said}", hint="mend that; run again")
        if state[:2] in ("40", "55"):
            return busy(self.place, said)
        return unreadable(self.place, said)

    def _unreachable(self, told: str) -> LedgerError:
        return LedgerError("STATE_UNREACHABLE", told, hint="check the state url and the server; run again")


def busy(place: str, said: str) -> Later:
    """Nothing is wrong with state that another process is just writing."""
    hint = "run again when that process, perhaps a stopped retl, has gone on or ended"
    return Later("STATE_BUSY", f"{place} is busy: {said}", hint=hint)


def unreadable(place: str, said: str) -> LedgerError:
    """State that cannot be believed is never reset by itself: the error says how to recover."""
    return LedgerError(
        "STATE_UNREADABLE",
        f"{place}: {said}",
        hint="restore it from a backup; without one, move it away and take the mart as delivered "
        "with `retl state adopt`, or let the next run send every row",
    )


# A server that lost its client lets go of the lock, and no statement hangs for ever.
_STATEMENT = 90.0  # seconds, also where the server is silent
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
