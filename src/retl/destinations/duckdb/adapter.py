"""DuckDB: rows of a mart in a table of a DuckDB file, by key.

Each batch is one transaction with a mark of it in the table `retl_applied` of the same schema. So a batch is
applied as a whole or not at all, also if the process is killed, append is exactly once, and a file that was
restored from a copy is noticed. Only columns of the sync are written; a row that already has its values is
not touched. Rows that a constraint refuses are rejects, the rest of their batch is delivered; DuckDB has no
savepoints, so each of them costs the batch some repetitions.

A table needs no primary key: DuckDB finds rows without an index, and inserts faster without one. `create:
true` makes VARCHAR, UUID, BIGINT, DECIMAL(p,s), DOUBLE, BOOLEAN, DATE, TIMESTAMP, TIMESTAMPTZ, JSON and
lists, and a primary key. A column may be of another type that keeps every value or refuses it, such as
INTEGER or an ENUM. Tables with a COLLATE clause are refused, because different texts are equal there.

A batch reaches DuckDB as a Parquet file. To deliver a large first load takes a third less in batches of the
size of a row group, `batch: {rows: 122880}`.

Only one process at a time can have a DuckDB file open for writing, and nobody can read it meanwhile. A run
holds it while it delivers, and waits up to `lock_wait` for others. The file may be the mart too: it is read
first, and released. MotherDuck and attached databases are not supported.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

import duckdb
from msgspec.structs import replace
from pydantic import field_validator

from retl.destinations.batch import Batch, Cell, Field, Kind, RowResult, Visit
from retl.destinations.sql.dialect import ROW, Column, Dialect, Relation, Row, Session, Table
from retl.destinations.sql.file import DatabaseFile, ended, full, held, may_make, read_only, unopened
from retl.destinations.sql.table import SqlTable, may_write
from retl.errors import Ambiguous, Systemic, TargetError
from retl.model import Definition
from retl.observe.signals import Insistent
from retl.values.csv_text import WRITTEN, csv_sql
from retl.values.sql import literal, quoted
from retl.values.storage import storage_type
from retl.values.types import KEY_TYPES, Type

_LOOK_AGAIN = 0.05  # seconds between two attempts while another process has the file
_MEMORY = "384MB"
_CHUNK = 1 << 20  # bytes
_WHOLE = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT"}
_WHOLE |= {"UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT"}
_SETTINGS = (
    "SET TimeZone = 'UTC'",
    f"SET memory_limit = '{_MEMORY}'",
    "SET enable_progress_bar = false",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
)
_REFUSED = (
    (r"duplicate key|unique constraint", "23505", "another row has the same value"),
    (r"foreign key", "23503", "the row it refers to, or that refers to it, forbids it"),
    (r"not null", "23502", "a column must have a value"),
    (r"check", "23514", "a check refuses it"),
)


class File(DatabaseFile):
    """A DuckDB file, relative to the project."""

    type: Literal["duckdb"] = "duckdb"


class DuckDBOptions(Definition):
    """The table: `schema.table`, or a table of schema `main`. `create` makes file, schema, table and key and
    later adds missing columns."""

    connection: File
    table: str
    create: bool = False

    @field_validator("table")
    @classmethod
    def _named(cls, text: str) -> str:
        DuckDBDialect().relation(text)
        return text


class DuckDBDialect(Dialect):
    name = "DuckDB"
    schema = "main"
    needs_key = False
    age = "SELECT epoch(now()) - epoch(max({column})) FROM {relation}"

    def quoted(self, name: str) -> str:
        return quoted(name)

    def literal(self, value: Any) -> str:
        if value is None or isinstance(value, bool | int | float):
            return "NULL" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
        return " || chr(0) || ".join(map(literal, str(value).split("\0")))

    def ddl(self, type: Type, *, key: bool) -> str:
        return storage_type(type)

    def made(self, of: Field, *, key: bool) -> Column:
        return Column(of.name, storage_type(of.type), storage_type(of.type))

    def holds(self, column: Column, of: Field, *, key: bool) -> bool:
        if key and of.type.name not in KEY_TYPES:
            return False
        return _holds(of.type, column.type)

    def cell(self, of: Field, column: Column) -> Cell:
        return "value" if of.type.name in ("string", "integer", "float", "boolean") else "text"

    def same(self, one: str, other: str, of: Field, column: Column) -> str:
        if of.type.name == "float":  # 0 and -0 are equal, but not the same
            one, other = f"CAST({one} AS VARCHAR)", f"CAST({other} AS VARCHAR)"
        return f"({one} IS NOT DISTINCT FROM {other})"

    def text(self, value: str, of: Field, column: Column) -> str:
        return f"CAST({csv_sql(of.type, value)} AS VARCHAR)"

    def make_stage(self, relation: Relation, columns: Sequence[Column]) -> list[str]:
        listed = "".join(f", {quoted(one.name)} {one.type}" for one in columns)
        return [f"CREATE OR REPLACE TEMP TABLE {self.stage.partition('.')[2]} ({ROW} BIGINT{listed})"]

    def update(self, relation: Relation, sets: Mapping[str, str], condition: str) -> str:
        listed = ", ".join(f"{name} = {value}" for name, value in sets.items())
        return f"UPDATE {relation.sql} AS t SET {listed} FROM {self.stage} AS s WHERE {condition}"

    def delete(self, relation: Relation, keys: Sequence[str], rows: str) -> str:
        same = " AND ".join(f"t.{key} = s.{key}" for key in keys)
        return f"DELETE FROM {relation.sql} AS t USING {self.stage} AS s WHERE {same} AND {rows}"

    def storage(self, relation: Relation) -> str:
        return "''"  # a table has no identity here; nobody else can write during a run


class DuckDBSession(Session):
    """The file, open in this process. DuckDB has no savepoints: to undo a part, the transaction begins again
    and repeats what was done before."""

    errors = (duckdb.Error,)

    def __init__(self, file: File, *, write: bool) -> None:
        self._path, self._timeout = Path(file.path), file.timeout
        self._stopped = threading.Event()
        self._done: list[str] = []  # statements of the transaction
        self._timer: Insistent | None = None
        self._con = self._opened(file, write=write)
        for statement in _SETTINGS:
            self._con.execute(statement)

    def _opened(self, file: File, *, write: bool) -> duckdb.DuckDBPyConnection:
        end = time.monotonic() + file.lock_wait
        while True:
            try:
                return duckdb.connect(file.path, read_only=not write)
            except duckdb.Error as error:
                other = isinstance(error, duckdb.ConnectionException)  # this process has it in the other mode
                if not (other or _is_held(error)) or self._stopped.is_set() or time.monotonic() > end:
                    raise self.failure(error, committing=False) from None
                write = write is not other
            self._stopped.wait(_LOOK_AGAIN)

    def rows(self, sql: str) -> list[Row]:
        return self._con.execute(sql).fetchall()

    def change(self, sql: str) -> int:
        found = self._con.execute(sql).fetchall()
        self._done.append(sql)
        return int(found[0][0]) if found and isinstance(found[0][0], int) else -1

    def csv(self, texts: Sequence[tuple[str, str]], rows: str) -> Iterator[bytes]:
        """Through a pipe: DuckDB writes in a thread, and only then is the session free again."""
        reads, writes = os.pipe()
        listed = ", ".join(f"{text} AS t{n}" for n, (_, text) in enumerate(texts))
        copy = f"COPY (SELECT {listed} FROM {rows}) TO '/dev/fd/{writes}' ({WRITTEN}, use_tmp_file false)"
        with ThreadPoolExecutor(1) as pool, open(reads, "rb", buffering=0) as pipe:
            copied = pool.submit(self._copy, copy, writes)
            while chunk := pipe.read(_CHUNK):
                yield chunk
            copied.result()

    def _copy(self, statement: str, writes: int) -> None:
        try:
            self._con.execute(statement)
        finally:
            os.close(writes)

    def begin(self, *, write: bool) -> None:
        self._con.execute("BEGIN TRANSACTION")
        self._done.clear()
        self._timer = Insistent(self._timeout, self._con.interrupt)
        self._timer.start()

    def commit(self) -> None:
        self._end()
        self._con.execute("COMMIT")

    def rollback(self) -> None:
        self._end()
        self._con.execute("ROLLBACK")

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        before = len(self._done)
        try:
            yield
        except BaseException:
            with suppress(duckdb.Error):
                self._con.execute("ROLLBACK")
                self._con.execute("BEGIN TRANSACTION")
                for statement in self._done[:before]:
                    self._con.execute(statement)
            del self._done[before:]
            raise

    def table(self, relation: Relation) -> Table | None:
        schema, name = literal(relation.schema.lower()), literal(relation.name.lower())
        here = f"database_name = current_database() AND lower(schema_name) = {schema}"
        made = self.rows(f"SELECT sql FROM duckdb_tables() WHERE {here} AND lower(table_name) = {name}")
        if not made:
            views = self.rows(f"SELECT 1 FROM duckdb_views() WHERE {here} AND lower(view_name) = {name}")
            return Table({}, kind="a view") if views else None
        folds = re.search(r"\bCOLLATE\b", made[0][0], re.IGNORECASE)
        found = self.rows(
            "SELECT column_name, data_type, is_nullable = 'NO' AND column_default IS NULL,"
            " is_generated = 'ALWAYS' FROM information_schema.columns"
            f" WHERE table_catalog = current_database() AND lower(table_schema) = {schema}"
            f" AND lower(table_name) = {name}"
        )
        columns = {
            name.lower(): Column(name, kind, kind, needed, generated)
            for name, kind, needed, generated in found
        }
        return Table(columns, kind="a table with a COLLATE clause" if folds else None)

    def placed(self, relation: Relation) -> Relation:
        """With the name of the file's catalog, which may be that of a schema too."""
        ((catalog,),) = self.rows("SELECT current_database()")
        return replace(relation, sql=f"{quoted(catalog)}.{relation.sql}")

    def refusal(self, error: Exception) -> RowResult | None:
        if isinstance(error, duckdb.ConstraintException):
            for pattern, code, reason in _REFUSED:
                if re.search(pattern, str(error), re.IGNORECASE):  # its text has values
                    return RowResult(Kind.REJECTED, code, reason)
        values = (duckdb.ConversionException, duckdb.OutOfRangeException, duckdb.InvalidInputException)
        if isinstance(error, values):
            return RowResult(Kind.REJECTED, "22000", "a value does not fit its column")
        return None

    def failure(self, error: Exception, *, committing: bool) -> TargetError:
        file, words = self._path.name, str(error)
        if _is_held(error):
            pid = re.search(r"PID (\d+)", words)
            who = f"process {pid[1]}" if pid else "another run of this process"
            return held(f"{who} has {file} open")
        if isinstance(error, duckdb.InterruptException):
            return ended(file)
        if re.search(r"No space left|File too large|disk is full", words):
            return full(file)
        if re.search(r"read-only|Permission denied|Read-only file system", words):
            return read_only(file)
        if isinstance(error, duckdb.IOException | duckdb.SerializationException):
            damaged = "not a valid DuckDB" in words
            why = "is no DuckDB file, or it is damaged" if damaged else "cannot be opened or written"
            return unopened(self._path, why)
        if committing:
            return Ambiguous("COMMIT_UNANSWERED", f"DuckDB does not say whether {file} was changed")
        return Systemic(type(error).__name__, f"DuckDB refuses to write to {file}", hint="run `retl check`")

    def interrupt(self) -> None:
        self._stopped.set()
        self._con.interrupt()

    def close(self) -> None:
        with suppress(duckdb.Error):
            self._con.close()


class DuckDB(SqlTable[DuckDBOptions]):
    """A table of a DuckDB file."""

    Connection = File
    Options = DuckDBOptions
    dialect = DuckDBDialect()
    form = "parquet"
    _file: IO[bytes] | None = None  # of the rows that were sent last

    @staticmethod
    def _named(options: DuckDBOptions) -> str:
        return options.table

    @classmethod
    def _server(cls, options: DuckDBOptions) -> str:
        return f"duckdb:{Path(options.connection.path).resolve()}"

    def _exists(self) -> bool:
        return os.path.exists(self.options.connection.path)  # also False in a folder that is closed to us

    def _connect(self, *, write: bool, create: bool = False) -> DuckDBSession:
        if not create and not self._exists():  # DuckDB would make it
            path = Path(self.options.connection.path)
            if not os.path.isdir(path.parent):
                raise unopened(path, "cannot be opened")
            hint = "correct `path`, or `create: true`; its folder may be closed to this account"
            raise Systemic("58030", f"there is no DuckDB file {path.name}", hint=hint)
        return DuckDBSession(self.options.connection, write=write)

    def _may_write(self, session: Session, visit: Visit) -> None:
        path = Path(self.options.connection.path)
        if not (may_write(path) and may_write(path.parent)):
            raise read_only(path.name)

    def _may_make(self) -> None:
        may_make(Path(self.options.connection.path))

    def _load(self, session: Session, batch: Batch, *, staged: bool) -> None:
        """Through a file, which DuckDB reads faster than rows of Python. It has no name any more, and stays
        for as long as the transaction may be repeated."""
        path = batch.parquet()
        self._close_file()
        self._file = file = path.open("rb")
        path.unlink()
        self._bytes += os.fstat(file.fileno()).st_size
        fields = self.shape.key if batch.operation == "delete" else (*self.shape.key, *self.shape.fields)
        columns, values = [quoted(one.name) for one in fields], [f"v{n}" for n in range(len(fields))]
        if staged:
            columns, values = [ROW, *columns], ["file_row_number + 1", *values]
        into = self.dialect.stage if staged else self._sql.relation.sql
        read = f"read_parquet('/dev/fd/{file.fileno()}', file_row_number = true)"
        session.change(f"INSERT INTO {into} ({', '.join(columns)}) SELECT {', '.join(values)} FROM {read}")

    def close(self) -> None:
        super().close()
        self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None


def _holds(type: Type, column: str) -> bool:
    """Whether a column of this type keeps every value, or refuses it with an error."""
    if type.name == "list":
        return column.endswith("[]") and _holds(type.item, column[:-2])
    if column == storage_type(type):
        return True
    places, sized = type.decimal_places or 0, re.fullmatch(r"DECIMAL\(\d+,(\d+)\)", column)
    match type.name:
        case "string":
            return column.startswith("ENUM(")
        case "integer":
            return column in _WHOLE or column == "VARCHAR" or sized is not None
        case "decimal":
            return (sized is not None and int(sized[1]) >= places) or (places == 0 and column in _WHOLE)
        case "uuid" | "json":
            return column == "VARCHAR"
        case _:
            return False


def _is_held(error: Exception) -> bool:
    return isinstance(error, duckdb.ResourceInUseException) or "Could not set lock" in str(error)
