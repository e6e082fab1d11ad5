"""SQLite: a table, a view, or one SELECT of a SQLite file.

The file is opened read-only and read in one transaction, so a run sees one state of it. While another process
writes to it, a run waits up to `lock_wait`. A missing file is an error, never an empty mart. In `sql` and
`file`, `$name` is a variable, which becomes a quoted value.

SQLite keeps values of any type in a column. A column has the type that its table declares: INTEGER, REAL,
TEXT, BOOLEAN (0 and 1), DATE and DATETIME (texts such as `2026-11-28 06:00:00`), DECIMAL(p, s), JSON. A value
that is not of this type makes its row a reject; it is never converted. A column without a declared type, such
as `count(*)`, is read twice: first for what it holds, and if that is a mixture it is text. A BLOB is text,
`\\x` and its digits.
"""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from pydantic import Field

from retl.engine.sql_text import Query
from retl.engine.workspace import Workspace
from retl.errors import DefinitionError, Later, Mismatch, RetlError, SourceError
from retl.model import Definition, Duration
from retl.observe.signals import Insistent, Stop
from retl.sources import sql
from retl.sources.api import Among, Description, Since, Snapshot
from retl.sources.texts import MISFIT, Column, Texts, distinct, line
from retl.values.sql import literal, quoted

_VIEW = 'temp."retl source"'
_READS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
# Every value begins with a letter for its class: the text of 1 is i1, that of '1' is t1.
_TAGGED = (
    "CASE typeof({c}) WHEN 'integer' THEN 'i' || {c} WHEN 'real' THEN 'r' || printf('%!.17g', {c})"
    " WHEN 'text' THEN 't' || {c} WHEN 'blob' THEN 'b' || lower(hex({c})) END"
)
_VALUE, _CLASS, _NO_TEXT = "substr({x}, 2)", "left({x}, 1)", b"x"
_REAL = f"TRY_CAST({_VALUE} AS DOUBLE)"
_TIME = r"'\d{4}-\d\d-\d\d([ T]\d\d:\d\d:\d\d(\.\d{1,6})?)?'"
_WHOLE = f"abs(TRY_CAST({_VALUE} AS HUGEINT)) <= {2**53}"  # a double has room for it
_FITS = {
    "BIGINT": f"{_CLASS} = 'i'",
    "DOUBLE": f"{_CLASS} = 'r' OR {_CLASS} = 'i' AND {_WHOLE}",
    "BOOLEAN": "{x} IN ('i0', 'i1')",
    "DATE": f"{_CLASS} = 't' AND length({{x}}) = 11 AND regexp_full_match({_VALUE}, {_TIME})",
    "TIMESTAMP": f"{_CLASS} = 't' AND regexp_full_match({_VALUE}, {_TIME})",
    "JSON": f"{_CLASS} IN ('t', 'i')",
    "VARCHAR": f"{_CLASS} = 't'",
    "BLOB": f"{_CLASS} = 'b'",
    "ANY": f"{_CLASS} IN ('t', 'i', 'r')",
}
_CLASSES = {"integer": "BIGINT", "real": "DOUBLE", "text": "VARCHAR", "blob": "BLOB"}


class File(Definition):
    """A SQLite file, relative to the project. `timezone` applies to timestamps; `timeout` limits the whole
    read."""

    type: Literal["sqlite"] = "sqlite"
    path: str
    timezone: str = "UTC"
    lock_wait: Duration = 600.0
    timeout: Duration = Field(default=3600.0, gt=0)


class SQLite(sql.Selecting):
    """A table or a SELECT of a SQLite file."""

    Connection = File
    narrows = True
    tells = True
    remote = False
    evidence = "SQLite itself, 3.40"

    @property
    def identity(self) -> dict[str, str]:
        return {"type": "sqlite", "path": self.connection.path, **self.options.identity}

    def version(self, stop: Stop) -> str:
        path = self.invocation.folder / self.connection.path
        return f"{path.name}:{_version(path)}"

    def open(self, workspace: Workspace, *, wait: bool = True) -> Snapshot:
        relation = sql.relation(self.options, self.invocation, sql.SQLITE, written, quoted)
        path = self.invocation.folder / self.connection.path
        if not path.is_file():
            raise SourceError(
                "MART_MISSING",
                f"there is no SQLite file at {self.connection.path}",
                hint="write it first, or correct `path`",
            )
        return Transaction(self, workspace, path, relation, self.connection.lock_wait if wait else 0.0)


class Transaction(Snapshot):
    """A transaction that sees one state of the file."""

    def __init__(
        self, source: SQLite, workspace: Workspace, path: Path, relation: str, lock_wait: float
    ) -> None:
        self._source, self._workspace = source, workspace
        self._texts: Texts | None = None
        version = _version(path)
        uri = f"file:{quote(str(path.resolve()))}?mode=ro"
        with self._reading():
            self._file = sqlite3.connect(
                uri, uri=True, timeout=lock_wait, isolation_level=None, check_same_thread=False
            )
        try:
            self._file.text_factory = bytes  # a text may not be UTF-8
            with self._reading(self._file):
                self._columns = self._described(relation)
        except BaseException:
            self._file.close()
            raise
        types = {name: one.type for name, one in self._columns.items()}
        self.description = Description(types, f"{path.name}:{version}", misfit=MISFIT)

    def rows(self, columns: Sequence[str], since: Since | None = None) -> Query:
        above = ""
        if since is not None and self._columns[since.column].type == "BIGINT":  # a text sorts otherwise
            above = f" WHERE {quoted(since.column)} >= {int(since.least)} OR {quoted(since.column)} IS NULL"
        return self._rows(columns, above)

    def rows_among(self, columns: Sequence[str], among: Among) -> Query:
        return self._rows(columns, among.where(quoted(among.column)))

    def _rows(self, columns: Sequence[str], where: str) -> Query:
        listed = ", ".join(_TAGGED.format(c=quoted(name)) for name in columns)
        self._texts = Texts(self._workspace, [self._columns[name] for name in columns])
        with self._reading(self._file):
            cursor = self._file.execute(f"SELECT {listed} FROM {_VIEW}{where}")
            self._texts.write(map(_line, cursor))
        self._file.close()  # others can write again
        return self._texts.query(self._source.options.origin, misfit=True)

    def close(self) -> None:
        self._file.close()
        if self._texts is not None:
            self._texts.close()

    def _described(self, relation: str) -> dict[str, Column]:
        """Begin the transaction and make a view of what is read; from then on only SELECT is possible."""
        self._file.execute("PRAGMA temp_store = MEMORY")
        self._file.execute("BEGIN")
        self._file.execute(f"CREATE {_VIEW.replace('.', ' VIEW ', 1)} AS SELECT * FROM {relation}")
        found = self._file.execute("SELECT name, type FROM pragma_table_info('retl source', 'temp')")
        declared = {name.decode(): kind.decode() for name, kind in found}
        self._file.set_authorizer(_only_reads)
        self._file.execute(
            f"SELECT 1 FROM {_VIEW} LIMIT 1"
        ).fetchall()  # the state is fixed by the first look
        distinct(list(declared), self._source.options.origin)
        held = self._held([name for name, kind in declared.items() if _affinity(kind) == "BLOB"])
        return {name: _column(name, kind, held.get(name)) for name, kind in declared.items()}

    def _held(self, names: Sequence[str]) -> dict[str, set[str]]:
        """The classes of the values of these columns."""
        if not names:
            return {}
        listed = ", ".join(f"group_concat(DISTINCT typeof({quoted(name)}))" for name in names)
        (row,) = self._file.execute(f"SELECT {listed} FROM {_VIEW}").fetchall()
        return {
            n: set((v or b"").decode().split(",")) - {"", "null"} for n, v in zip(names, row, strict=True)
        }

    @contextmanager
    def _reading(self, file: sqlite3.Connection | None = None) -> Iterator[None]:
        """Turns errors of SQLite into ours. A deadline or a stop request interrupts it."""
        stop, late = self._workspace.stop, threading.Event()

        def interrupt() -> None:
            if file is not None:
                file.interrupt()

        def expire() -> None:
            late.set()
            interrupt()

        timer = Insistent(self._source.connection.timeout, expire)
        timer.start()
        try:
            with stop.interrupting_queries(interrupt):
                yield
        except (sqlite3.Error, sqlite3.Warning) as problem:
            stop.check()
            raise self._failure(problem, late=late.is_set()) from None
        finally:
            timer.cancel()

    def _failure(self, problem: Exception, *, late: bool) -> RetlError:
        """SQLite's messages about SQL and files; they name no value."""
        origin, words, shown = self._source.options.origin, str(problem), self._source.connection.path
        code = getattr(problem, "sqlite_errorcode", 0) & 0xFF
        if late:
            message = f"{origin} was not read within {self._source.connection.timeout:.0f} s"
            return SourceError("MART_UNREADABLE", message, hint="raise `timeout` of the source in retl.yml")
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return Later(
                "MART_LOCKED",
                f"another process is writing to {shown}",
                hint="wait for it, or raise `lock_wait` of the source",
            )
        if code == sqlite3.SQLITE_AUTH or isinstance(problem, sqlite3.Warning):
            return DefinitionError("SQL_NOT_ONE_SELECT", "this must be exactly one SELECT", where=origin)
        if re.match(r"no such (table|column|function)", words):
            hint = "fix the SQL or the table; nothing was written"
            return Mismatch("SOURCE_DRIFT", f"{origin} does not fit the database: {words}", hint=hint)
        if "syntax error" in words or "incomplete input" in words:
            return DefinitionError("SQL_SYNTAX", words, where=origin)
        return SourceError("MART_UNREADABLE", f"SQLite cannot read {origin} of {shown}: {words}")


def _line(row: Sequence[bytes | None]) -> bytes:
    """A row as CSV. A text that is not UTF-8 becomes one that fits no type."""
    made = line(row)
    try:
        made.decode()
    except UnicodeDecodeError:
        return line([one if one is None or _is_text(one) else _NO_TEXT for one in row])
    return made


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _only_reads(action: int, *_: object) -> int:
    return sqlite3.SQLITE_OK if action in _READS else sqlite3.SQLITE_DENY


def _version(path: Path) -> str:
    """The size and time of the file and of its log of newer pages."""
    files = (path, path.with_name(f"{path.name}-wal"))
    return ":".join(f"{one.stat().st_size}:{one.stat().st_mtime_ns}" for one in files if one.is_file())


def _affinity(declared: str) -> str:
    """SQLite's own rule."""
    for words, found in (
        ("INT", "INTEGER"),
        ("CHAR|CLOB|TEXT", "TEXT"),
        ("BLOB", "BLOB"),
        ("REAL|FLOA|DOUB", "REAL"),
    ):
        if re.search(words, declared.upper()):
            return found
    return "NUMERIC" if declared else "BLOB"


def _column(name: str, declared: str, held: set[str] | None) -> Column:
    """The column, by its declared type, or by what it holds."""
    if held is not None:
        kind = (
            _CLASSES[next(iter(held))]
            if len(held) == 1
            else "DOUBLE"
            if held == {"integer", "real"}
            else "ANY"
        )
    else:
        word, digits = declared.upper().partition("(")[0].strip(), re.findall(r"\d+", declared)
        named = {
            "BOOL": "BOOLEAN",
            "BOOLEAN": "BOOLEAN",
            "DATE": "DATE",
            "DATETIME": "TIMESTAMP",
            "JSON": "JSON",
        }
        kind = {"INTEGER": "BIGINT", "TEXT": "VARCHAR"}.get(_affinity(declared), "DOUBLE")
        kind = named.get(word, "TIMESTAMP" if word.startswith("TIMESTAMP") else kind)
        if word in ("DECIMAL", "NUMERIC") and len(digits) == 2 and int(digits[1]) <= int(digits[0]) <= 38:
            kind = f"DECIMAL({digits[0]},{digits[1]})"
    if kind.startswith("DECIMAL"):
        shortest = f"CASE {_CLASS} WHEN 'r' THEN CAST({_REAL} AS VARCHAR) ELSE {_VALUE} END"
        same = f"CAST(TRY_CAST(CAST({_REAL} AS VARCHAR) AS {kind}) AS DOUBLE) = {_REAL}"
        return Column(name, kind, f"{_CLASS} = 'i' OR {_CLASS} = 'r' AND {same}", shortest)
    fits = _FITS[kind]
    if kind == "BLOB":
        return Column(name, "VARCHAR", fits, rf"'\x' || {_VALUE}")
    return Column(name, "VARCHAR" if kind == "ANY" else kind, fits, _VALUE)


def written(value: object) -> str:
    """A variable as SQL. There are no dates: a day is a text."""
    return sql.constant(value, literal, booleans=("(0)", "(1)"), day="{}")
