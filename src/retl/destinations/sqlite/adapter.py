"""SQLite: rows of a mart in a table of a SQLite file, by key.

Each batch is one transaction with a mark of it in the table `retl_applied` of the same file. So a batch is
applied as a whole or not at all, also if the process is killed, append is exactly once, and a file that was
restored from a copy is noticed. Only columns of the sync are written; a row that already has its values is
not touched. Constraints, foreign keys and triggers of the table hold: rows that they refuse are rejects, the
rest of their batch is delivered. Rows that swap unique values are refused.

SQLite keeps values by the *affinity* of a column, so a column must have one that changes nothing: TEXT for
texts, INTEGER for integers, REAL for floats. `create: true` makes TEXT for string, uuid, timestamptz, json
and lists, INTEGER for integer, REAL for float, BOOLEAN (0 and 1), DATE and DATETIME (texts such as
`2026-11-28 06:00:00`), and DECIMAL(p,s), which keeps up to 15 digits exactly, or TEXT for more. A timestamptz
is a text in UTC, `2026-11-28 06:00:00.000000+00:00`; a list is a JSON text. SQLite makes 0.0 of -0.0, so its
row is a reject with `NOT_EXACT`. Keys that a column with COLLATE NOCASE or RTRIM takes for one are rejects
with `KEY_COLLIDES`.

The account of the process needs the right to write the file and its folder. One process at a time can write
to a SQLite file: others wait while a batch is written, and a run waits for them up to `lock_wait`. The file
may be the mart too: it is read before the first write. Two ledgers that deliver to one table at the same
moment are noticed only by the next run of each, as are rows that others delete during a run. The journal mode
of the file stays as it is; every commit waits for the disk.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import quote

from pydantic import field_validator

from retl.destinations.batch import Batch, Bends, Cell, Field, Folds, Kind, RowResult, Visit
from retl.destinations.sql.dialect import ROW, Column, Dialect, Relation, Row, Session, Table
from retl.destinations.sql.file import DatabaseFile, ended, full, held, may_make, read_only, unopened
from retl.destinations.sql.table import SqlTable, may_write
from retl.destinations.value import RAW
from retl.errors import Ambiguous, Systemic, TargetError
from retl.model import Definition
from retl.observe.signals import Insistent
from retl.values.sql import literal, quoted
from retl.values.types import KEY_TYPES, Type

EXACT_DIGITS = 15  # of a decimal in a double
_AT_ONCE = 100  # rows of a statement: more are no faster
_LOOK_AGAIN = 1.0  # seconds that SQLite waits for a lock by itself: so long a stop request may wait
_WRITABLE = 2  # in the 19th byte of a file: a higher version is only read
_AFFINITIES = (("INT", "INTEGER"), ("CHAR|CLOB|TEXT", "TEXT"), ("BLOB", "BLOB"), ("REAL|FLOA|DOUB", "REAL"))
_DDL = {"integer": "INTEGER", "float": "REAL", "boolean": "BOOLEAN", "date": "DATE", "timestamp": "DATETIME"}
_TEXTS = {"TEXT", "BLOB"}  # affinities that keep a text as it is; BLOB is that of a column without a type
_FOLDS: dict[str, Folds] = {"NOCASE": ("case",), "RTRIM": ("trailing",)}
_REFUSED = {
    sqlite3.SQLITE_CONSTRAINT_UNIQUE: ("23505", "another row has the same value"),
    sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY: ("23505", "another row has the same value"),
    sqlite3.SQLITE_CONSTRAINT_ROWID: ("23505", "another row has the same value"),
    sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY: ("23503", "the row it refers to, or that refers to it, forbids it"),
    sqlite3.SQLITE_CONSTRAINT_NOTNULL: ("23502", "it must have a value"),
    sqlite3.SQLITE_CONSTRAINT_CHECK: ("23514", "the check refuses it"),
    sqlite3.SQLITE_CONSTRAINT_TRIGGER: ("P0001", "a trigger of the table refuses the row"),
    3091: ("22000", "the value does not fit its column"),  # SQLITE_CONSTRAINT_DATATYPE, of a STRICT table
    sqlite3.SQLITE_MISMATCH: ("22000", "the value does not fit its column"),
    sqlite3.SQLITE_TOOBIG: ("54000", "a value is larger than SQLite can take"),
}


class File(DatabaseFile):
    """A SQLite file, relative to the project."""

    type: Literal["sqlite"] = "sqlite"


class SQLiteOptions(Definition):
    """The table. `create` makes file, table and key and later adds missing columns."""

    connection: File
    table: str
    create: bool = False

    @field_validator("table")
    @classmethod
    def _one_table(cls, text: str) -> str:
        SQLiteDialect().relation(text)
        return text


class SQLiteDialect(Dialect):
    name = "SQLite"
    schema = ""
    insert = "INSERT OR ABORT INTO"  # whatever a constraint of the table says ON CONFLICT
    marks: ClassVar[Mapping[str, str]] = {"text": "TEXT", "key": "TEXT", "number": "INTEGER"}
    age = "SELECT (julianday('now') - julianday(max({column}))) * 86400 FROM {relation}"

    def quoted(self, name: str) -> str:
        return quoted(name)

    def literal(self, value: Any) -> str:
        if value is None or isinstance(value, int | float):
            return "NULL" if value is None else repr(value + 0)
        return " || char(0) || ".join(map(literal, str(value).split("\0")))

    def ddl(self, type: Type, *, key: bool) -> str:
        if type.name == "decimal" and (type.max_digits or 0) <= EXACT_DIGITS:
            return f"DECIMAL({type.max_digits},{type.decimal_places})"
        return _DDL.get(type.name, "TEXT")

    def made(self, of: Field, *, key: bool) -> Column:
        declared = self.ddl(of.type, key=key)
        return Column(of.name, declared, affinity(declared), collation=" COLLATE BINARY")

    def holds(self, column: Column, of: Field, *, key: bool) -> bool:
        if key and of.type.name not in KEY_TYPES:
            return False
        declared, storage = column.type.upper().partition("(")[0].strip(), column.storage
        places, digits = of.type.decimal_places, of.type.max_digits or 0
        match of.type.name:
            case "integer":
                return storage != "REAL"
            case "boolean":
                return storage in ("INTEGER", "NUMERIC", "BLOB")
            case "float":
                return storage == "REAL"
            case "decimal":
                whole = storage == "INTEGER" and places == 0 and digits <= 18
                return (
                    storage == "TEXT" or whole or (storage in ("NUMERIC", "REAL") and digits <= EXACT_DIGITS)
                )
            case "date":
                return storage in _TEXTS or declared == "DATE"
            case "timestamp":
                return storage in _TEXTS or declared.startswith(("DATETIME", "TIMESTAMP"))
            case _:
                return storage in _TEXTS

    def cell(self, of: Field, column: Column) -> Cell:
        if of.type.name in ("string", "integer", "float", "boolean"):
            return "value"
        exact = of.type.name == "decimal" and column.storage in ("NUMERIC", "REAL")
        return "double" if exact else "text"

    def bends(self, of: Field, column: Column) -> Bends | None:
        return Bends(zero=True) if of.type.name == "float" else None

    def same(self, one: str, other: str, of: Field, column: Column) -> str:
        return f"({one} IS {other} COLLATE BINARY)"

    def make_stage(self, relation: Relation, columns: Sequence[Column]) -> list[str]:
        listed = "".join(f", {quoted(one.name)} {one.storage}" for one in columns)
        name = self.stage.partition(".")[2]
        return [
            f"DROP TABLE IF EXISTS {self.stage}",
            f"CREATE TEMP TABLE {name} ({ROW} INTEGER PRIMARY KEY{listed})",
        ]

    def update(self, relation: Relation, sets: Mapping[str, str], condition: str) -> str:
        listed = ", ".join(f"{name} = {value}" for name, value in sets.items())
        return f"UPDATE OR ABORT {relation.sql} AS t SET {listed} FROM {self.stage} AS s WHERE {condition}"

    def delete(self, relation: Relation, keys: Sequence[str], rows: str) -> str:
        listed, staged = ", ".join(keys), ", ".join(f"s.{key}" for key in keys)
        mine = f"({listed})" if len(keys) > 1 else listed
        chosen = f"SELECT {staged} FROM {self.stage} AS s WHERE {rows}"
        return f"DELETE FROM {relation.sql} WHERE {mine} IN ({chosen})"

    def storage(self, relation: Relation) -> str:
        found = f"SELECT CAST(rowid AS TEXT) FROM main.sqlite_schema WHERE {_named(relation)}"
        return f"coalesce(({found}), '')"


class SQLiteSession(Session):
    """A connection to the file. SQLite waits for locks by itself, but only so long that we can stop it."""

    errors = (sqlite3.Error, sqlite3.Warning, UnicodeError, OverflowError)

    def __init__(self, file: File, mode: Literal["rw", "rwc"]) -> None:
        self._path, self._lock_wait, self._timeout = Path(file.path), file.lock_wait, file.timeout
        self._stopped = threading.Event()
        uri = f"file:{quote(file.path)}?mode={mode}"
        try:
            self._file = sqlite3.connect(
                uri,
                uri=True,
                timeout=min(_LOOK_AGAIN, file.lock_wait),
                isolation_level=None,
                check_same_thread=False,
            )
            self._file.text_factory = _text
            self._file.execute("PRAGMA synchronous = FULL")
            self._file.execute("PRAGMA foreign_keys = ON")
        except sqlite3.Error as error:
            raise self.failure(error, committing=False) from None

    def rows(self, sql: str) -> list[Row]:
        return self._file.execute(sql).fetchall()

    def change(self, sql: str) -> int:
        return self._file.execute(sql).rowcount

    def fill(self, head: str, rows: Sequence[Row]) -> None:
        """Statements of many rows: SQLite takes half as long as with one for each."""
        width, variables = len(rows[0]), self._file.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)
        row, most = f"({', '.join('?' * width)})", max(1, min(_AT_ONCE, variables // width))
        for first in range(0, len(rows), most):
            some = rows[first : first + most]
            self._file.execute(head + ", ".join([row] * len(some)), tuple(chain.from_iterable(some)))

    def begin(self, *, write: bool) -> None:
        self._waiting("BEGIN IMMEDIATE" if write else "BEGIN")
        self._timer = Insistent(self._timeout, self._file.interrupt)
        self._timer.start()

    def commit(self) -> None:
        self._timer.cancel()
        self._waiting("COMMIT")  # a reader may still have the file

    def rollback(self) -> None:
        self._timer.cancel()
        if self._file.in_transaction:
            self._file.execute("ROLLBACK")

    def _waiting(self, statement: str) -> None:
        """Run it, and wait for the lock that it needs."""
        end = time.monotonic() + self._lock_wait
        while True:
            try:
                self._file.execute(statement)
                return
            except sqlite3.OperationalError as error:
                if not _is_busy(error) or self._stopped.is_set() or time.monotonic() > end:
                    raise

    def table(self, relation: Relation) -> Table | None:
        name = literal(relation.name)
        found = self.rows(f"SELECT type, wr FROM pragma_table_list({name}) WHERE schema = 'main'")
        if not found:
            return None
        ((kind, without_rowid),) = found
        described = self.rows(
            f'SELECT name, type, "notnull", dflt_value IS NULL, pk, hidden FROM pragma_table_xinfo({name})'
        )
        collations, keys = self._indexes(name)
        primary = [row for row in described if row[4]]
        alias = None
        if len(primary) == 1 and primary[0][1].upper() == "INTEGER" and not without_rowid:
            alias = primary[0][0].lower()
            keys.append(frozenset({alias}))
        strict = bool(self.rows(f"SELECT 1 FROM pragma_table_list({name}) WHERE schema = 'main' AND strict"))
        columns = {
            column.lower(): Column(
                column,
                type,
                "BLOB" if strict and type.upper() == "ANY" else affinity(type),
                needed=bool(needed and bare) and column.lower() != alias,
                generated=hidden > 1,
                folds=_FOLDS.get(collations.get(column.lower(), ""), ()),
                collation=f" COLLATE {collations.get(column.lower(), 'BINARY')}",
            )
            for column, type, needed, bare, _, hidden in described
        }
        triggers = self.rows(
            f"SELECT 1 FROM main.sqlite_schema WHERE type = 'trigger' AND tbl_name = {name} COLLATE NOCASE"
        )
        kinds = {"table": None, "view": "a view"}
        return Table(
            columns, tuple(keys), kinds.get(kind, f"a {kind} table"), bool(triggers), self._dependents(name)
        )

    def _indexes(self, name: str) -> tuple[dict[str, str], list[frozenset[str]]]:
        """The collation of each column of a unique index, and the columns of each."""
        collations, keys = dict[str, str](), list[frozenset[str]]()
        for (index,) in self.rows(
            f'SELECT name FROM pragma_index_list({name}) WHERE "unique" AND NOT partial'
        ):
            parts = self.rows(f"SELECT name, coll FROM pragma_index_xinfo({literal(index)}) WHERE key")
            if all(column is not None for column, _ in parts):  # not an expression
                keys.append(frozenset(column.lower() for column, _ in parts))
                collations |= {column.lower(): collation.upper() for column, collation in parts}
        return collations, keys

    def _dependents(self, name: str) -> tuple[str, ...]:
        found = self.rows(
            "SELECT m.name, f.on_delete FROM main.sqlite_schema AS m, pragma_foreign_key_list(m.name) AS f"
            f" WHERE m.type = 'table' AND f.\"table\" = {name} COLLATE NOCASE"
            " AND f.on_delete IN ('CASCADE', 'SET NULL', 'SET DEFAULT') ORDER BY 1"
        )
        return tuple(f"{table} (ON DELETE {action})" for table, action in found)

    def refusal(self, error: Exception) -> RowResult | None:
        if isinstance(error, UnicodeError | OverflowError):
            return RowResult(Kind.REJECTED, "22000", "SQLite cannot store a value of the row")
        code, reason = _REFUSED.get(getattr(error, "sqlite_errorcode", 0), ("", ""))
        if not code:
            return None
        named = code in ("23505", "23502", "23514")  # then its text names constraint or columns, and no value
        place = str(error).partition(": ")[2] if named else ""
        return RowResult(Kind.REJECTED, code, f"{place}: {reason}" if place else reason)

    def failure(self, error: Exception, *, committing: bool) -> TargetError:
        code, file = getattr(error, "sqlite_errorcode", 0) & 0xFF, self._path.name
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return held(f"another process is using {file}")
        if code == sqlite3.SQLITE_INTERRUPT:
            return ended(file)
        if code == sqlite3.SQLITE_FULL:
            return full(file)
        if code == sqlite3.SQLITE_READONLY:
            return read_only(file)
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return Systemic(
                "58030", f"{file} is no SQLite file, or it is damaged", hint="restore it from a copy"
            )
        if code == sqlite3.SQLITE_CANTOPEN:
            return unopened(self._path, "cannot be opened")
        if committing:
            return Ambiguous("COMMIT_UNANSWERED", f"SQLite does not say whether {file} was changed")
        words = getattr(error, "sqlite_errorname", type(error).__name__)
        return Systemic(words, f"SQLite refuses to write to {file} ({words})", hint="run `retl check`")

    def interrupt(self) -> None:
        self._stopped.set()
        self._file.interrupt()

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self._file.close()


class SQLite(SqlTable[SQLiteOptions]):
    """A table of a SQLite file."""

    Connection = File
    Options = SQLiteOptions
    dialect = SQLiteDialect()
    form = "cells"

    @staticmethod
    def _named(options: SQLiteOptions) -> str:
        return options.table

    @classmethod
    def _server(cls, options: SQLiteOptions) -> str:
        return f"sqlite:{Path(options.connection.path).resolve()}"

    def _connect(self, *, write: bool, create: bool = False) -> SQLiteSession:
        file = self.options.connection
        return SQLiteSession(file, "rwc" if create else "rw")

    def _exists(self) -> bool:
        return os.path.exists(self.options.connection.path)

    def _may_make(self) -> None:
        may_make(Path(self.options.connection.path))

    def _load(self, session: Session, batch: Batch, *, staged: bool) -> None:
        assert isinstance(session, SQLiteSession)
        rows = self._rows(batch)
        session.fill(self._sql.fill(batch, staged=staged), rows)
        fields = zip((*self.shape.key, *self.shape.fields), self._cells(batch), strict=False)
        is_text = [one.type.name == "string" or cell == "text" for one, cell in fields]
        for column, texts in zip(zip(*rows, strict=True), is_text, strict=True):
            self._bytes += sum(map(len, filter(None, column))) if texts else 8 * len(column)

    def _may_write(self, session: Session, visit: Visit) -> None:
        """By the rights of the process, and by the version of SQLite's format that may be written."""
        path = Path(self.options.connection.path)
        with path.open("rb") as file:
            head = file.read(19)
        rights = may_write(path) and may_write(path.parent)
        if not rights or (len(head) == 19 and head[18] > _WRITABLE):
            raise read_only(path.name)


def affinity(declared: str) -> str:
    """How a column of this type changes values, by SQLite's own rule."""
    for words, found in _AFFINITIES:
        if re.search(words, declared.upper()):
            return found
    return "NUMERIC" if declared else "BLOB"


def _named(relation: Relation) -> str:
    return f"type = 'table' AND name = {literal(relation.name)} COLLATE NOCASE"


def _is_busy(error: sqlite3.Error) -> bool:
    return (error.sqlite_errorcode & 0xFF) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _text(held: bytes) -> str:
    """A text of the file, where others may have put one that is not UTF-8."""
    return held.decode(errors=RAW)
