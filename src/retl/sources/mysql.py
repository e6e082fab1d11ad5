"""MySQL and MariaDB: a table, a view, or one SELECT in the database's own SQL.

One transaction (WITH CONSISTENT SNAPSHOT, READ ONLY) is the snapshot, so a run sees one state of InnoDB
tables; other engines have no snapshots. The rows are the server's own texts, so numbers, times and texts
arrive exactly. Only the columns that the sync uses are read. In `sql` and `file`, `$name` is a variable,
which becomes a quoted value; `"x"` is a text there, as in MySQL's own default mode. The account needs only
SELECT. The version of a snapshot is its time on the server's clock.

`tinyint(1)` is a number, `bit(1)` a boolean, other `bit(n)` numbers, `timestamp` a time with a zone. Types
that no contract has arrive as text: time, enum, set, and `decimal` with more than 38 digits; binary values as
`\\x` and their digits. A value that its type has no room for (0000-00-00) makes its row a reject.

Except on the loopback interface, TLS is fully verified, by `tls_ca_file` or the system's authorities, unless
`allow_plaintext` is set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from retl.engine.sql_text import Query
from retl.engine.workspace import Workspace
from retl.errors import DefinitionError, Mismatch, RetlError, SourceError, TargetError
from retl.model import Duration
from retl.net.deadline import hang_up_after
from retl.net.mysql import MySQLConnection, parts
from retl.sources import sql
from retl.sources.api import Among, Description, Since, Snapshot, needs
from retl.sources.texts import MISFIT, Column, Texts, distinct, line
from retl.values.sql import literal

if TYPE_CHECKING:
    import MySQLdb

_AT_ONCE = 5000  # rows that the client hands over at a time
_SESSION = (
    "SET SESSION sql_mode = '', time_zone = '+00:00', lock_wait_timeout = 30, net_write_timeout = 600",
    "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
    "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY",
)
# By the numbers of MySQL's protocol: (signed, unsigned).
_INTEGERS = {
    1: ("TINYINT", "UTINYINT"), 2: ("SMALLINT", "USMALLINT"), 9: ("INTEGER", "UINTEGER"),
    3: ("INTEGER", "UINTEGER"), 8: ("BIGINT", "UBIGINT"), 13: ("SMALLINT", "USMALLINT"),
}  # fmt: skip
_FLOAT, _DOUBLE, _BIT, _JSON = 4, 5, 16, 245
_DECIMALS, _TIMES = (0, 246), {7: "TIMESTAMP WITH TIME ZONE", 10: "DATE", 12: "TIMESTAMP", 14: "DATE"}
_STRINGS = {15, 249, 250, 251, 252, 253, 254, 255}
_UNSIGNED, _BINARY = 32, 128
_LOST = (2006, 2013, 2055, 1927, 1053, 1077, 1317)
_MISSING = {
    1146: "there is no such table",
    1054: "there is no such column",
    1305: "there is no such function",
}
_MISSING |= {
    1051: "there is no such table",
    1109: "there is no such table",
    1052: "a column's name is ambiguous",
}
_DENIED = (1142, 1143, 1227, 1370, 1345)


class Server(MySQLConnection):
    """A database. Except on the loopback interface, TLS is fully verified unless `allow_plaintext` is set.
    `timeout` limits the whole read; `timezone` applies to timestamps without one."""

    type: Literal["mysql", "mariadb"] = "mysql"
    timeout: Duration = Field(default=3600.0, gt=0)
    timezone: str = "UTC"


class MySQL(sql.Selecting):
    """A table or a SELECT of a MySQL or MariaDB database."""

    Connection = Server
    narrows = True
    evidence = "MariaDB 10.11; MySQL itself: unproved"

    @property
    def identity(self) -> dict[str, str]:
        return {"type": "mysql", "server": self.connection.address, **self.options.identity}

    def open(self, workspace: Workspace, *, wait: bool = True) -> Snapshot:
        relation = sql.relation(self.options, self.invocation, sql.MYSQL, written, _quoted)
        server: Server = self.connection
        try:
            with needs("mysql"):
                session = server.connect()
        except TargetError as problem:
            raise SourceError(problem.code, problem.message, hint=problem.hint) from None
        try:
            return Transaction(self, workspace, session, relation)
        except BaseException:
            session.close()
            raise


class Transaction(Snapshot):
    """A transaction that sees one state of the InnoDB tables."""

    def __init__(
        self, source: MySQL, workspace: Workspace, session: MySQLdb.Connection, relation: str
    ) -> None:
        self._server: Server = source.connection
        self._origin = source.options.origin
        self._workspace, self._session, self._relation = workspace, session, relation
        self._texts: Texts | None = None
        with self._reading():
            for statement in _SESSION:
                session.query(statement)
            ((version,),) = self._all("SELECT UTC_TIMESTAMP(6)")
            self._described()
        distinct(list(self._columns), self._origin)
        types = {name: one.type for name, one in self._columns.items()}
        misfit = MISFIT if any(one.fits is not None for one in self._columns.values()) else None
        self.description = Description(types, f"{self._server.address}:{version.decode()}", misfit=misfit)

    def rows(self, columns: Sequence[str], since: Since | None = None) -> Query:
        return self._rows(columns, _since(since))

    def rows_among(self, columns: Sequence[str], among: Among) -> Query:
        return self._rows(columns, among.where(_quoted(among.column)))

    def _rows(self, columns: Sequence[str], where: str) -> Query:
        listed = ", ".join(self._written[name] for name in columns)
        self._texts = Texts(self._workspace, [self._columns[name] for name in columns])
        with self._reading():
            self._session.query(f"SELECT {listed} FROM {self._relation}{where}")
            result = self._session.use_result()
            while rows := result.fetch_row(_AT_ONCE):
                self._texts.write(map(line, rows))
        self._session.close()
        return self._texts.query(self._origin, misfit=self.description.misfit is not None)

    def close(self) -> None:
        if self._session.open:
            self._session.close()
        if self._texts is not None:
            self._texts.close()

    def _all(self, statement: str) -> Sequence[tuple[Any, ...]]:
        self._session.query(statement)
        found: Sequence[tuple[Any, ...]] = self._session.store_result().fetch_row(0)
        return found

    def _described(self) -> None:
        """The columns, and for each the SQL of its text."""
        self._session.query(f"SELECT * FROM {self._relation} WHERE FALSE LIMIT 0")
        result = self._session.store_result()
        self._columns, self._written = dict[str, Column](), dict[str, str]()
        for field, flags in zip(result.describe(), result.field_flags(), strict=True):
            raw, kind, _, length, _, places, _ = field
            name = raw.decode() if isinstance(raw, bytes) else raw
            if name in self._columns:
                distinct([name, name], self._origin)
            self._columns[name] = _column(name, kind, flags, length, places)
            self._written[name] = _text(_quoted(name), kind, flags)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turns errors of the database into ours. A deadline or a stop request closes the connection."""
        import MySQLdb

        stop, fileno = self._workspace.stop, self._session.fileno()
        try:
            with hang_up_after(self._server.timeout, fileno) as hang_up, stop.interrupting(hang_up):
                yield
        except (MySQLdb.Error, MySQLdb.Warning) as problem:
            stop.check()
            raise self._failure(problem) from None

    def _failure(self, problem: Exception) -> RetlError:
        """Never the server's message: it may quote values."""
        code, said = parts(problem)
        origin, server = self._origin, f"MySQL at {self._server.address}"
        if code == 1792:
            return DefinitionError("SQL_NOT_ONE_SELECT", "this must be exactly one SELECT", where=origin)
        if code in _MISSING:
            named = re.search(r"'([^']*)'", said)
            words = f"{_MISSING[code]}{f': {named[1]}' if named else ''}"
            hint = "fix the SQL or the table; nothing was written"
            return Mismatch("SOURCE_DRIFT", f"{origin} does not fit the database: {words}", hint=hint)
        if code == 1064:
            at = re.search(r"at line \d+$", said)
            return DefinitionError(
                "SQL_SYNTAX", f"MySQL cannot parse it{f' {at[0]}' if at else ''}", where=origin
            )
        if code in _LOST:
            words = f"{server} closed the connection or stopped answering; nothing was delivered"
            return SourceError("CONNECTION_LOST", words, hint="run again")
        grant = f"GRANT SELECT on it to {self._server.user}" if code in _DENIED else None
        return SourceError("MART_UNREADABLE", f"{server} cannot read {origin} (error {code})", hint=grant)


def _column(name: str, kind: int, flags: int, length: int, places: int) -> Column:
    unsigned = bool(flags & _UNSIGNED)
    if kind in _INTEGERS:
        return Column(name, _INTEGERS[kind][unsigned])
    if kind == _BIT:
        return Column(name, "BOOLEAN" if length == 1 else "UBIGINT")
    if kind in (_FLOAT, _DOUBLE):
        return Column(name, "FLOAT" if kind == _FLOAT else "DOUBLE")
    if kind in _TIMES:
        return Column(name, _TIMES[kind], "TRUE")
    if kind == _JSON:
        return Column(name, "JSON", "TRUE")
    digits = length - (places > 0) - (not unsigned)
    if kind in _DECIMALS and 0 < digits <= 38:
        return Column(name, f"DECIMAL({digits},{places})", "TRUE")
    return Column(name, "VARCHAR")


def _text(column: str, kind: int, flags: int) -> str:
    """SQL of a value's text. A float has more digits than the server writes, so it is written as a double. A
    column without a character set is binary."""
    if kind in (_FLOAT, _BIT):
        return f"{column} + 0" + ("e0" if kind == _FLOAT else "")
    if kind in _STRINGS and flags & _BINARY:
        return f"IF(CHARSET({column}) = 'binary', CONCAT('\\\\x', LOWER(HEX({column}))), {column})"
    return column


def _since(since: Since | None) -> str:
    if since is None:
        return ""
    column, least = _quoted(since.column), re.sub(r"\+00$", "", since.least)
    return f" WHERE {column} >= {written(least)} OR {column} IS NULL"


def _quoted(identifier: str) -> str:
    return "`" + identifier.replace("`", "``") + "`"


def written(value: Any) -> str:
    """A variable as SQL, in which a backslash escapes."""
    return sql.constant(value, lambda text: literal(text.replace("\\", "\\\\")), booleans=("(0)", "(1)"))
