"""PostgreSQL: a table, a view, or one SELECT in the database's own SQL.

One transaction (REPEATABLE READ, READ ONLY) is the snapshot, so a run sees one state of the database; a
standby can be read too. The rows are the server's own texts (COPY), so numbers, times and texts arrive
exactly. Only the columns that the sync uses are read. In `sql` and `file`, `$name` is a variable, which
becomes a quoted value. The account needs only SELECT.

Types that no contract has arrive as the server's text: enum, interval, time, bytea (`\\x…`), ranges, inet,
money, bit, xml, composite types, arrays of other types than text, uuid, boolean, numbers and times. `numeric`
without a precision is read as decimal(38, 18). A value that its type has no room for (NaN in a numeric, more
digits than those, a year before Christ, an array in an array) makes its row a reject; `column::text` in `sql`
reads it as text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from retl.engine.sql_text import Query
from retl.engine.workspace import Workspace
from retl.errors import DefinitionError, Mismatch, RetlError, SourceError, TargetError
from retl.model import Duration
from retl.net import sqlstate
from retl.net.deadline import hang_up_after
from retl.net.postgres import PostgresConnection, Session
from retl.sources import sql
from retl.sources.api import Among, Description, Since, Snapshot
from retl.sources.texts import MISFIT, Column, Texts, distinct
from retl.values.sql import literal, quoted

if TYPE_CHECKING:
    import psycopg

_NUMERIC = 1700
_TEXT = "VARCHAR"
# By oid, as the catalog of every PostgreSQL has them: what DuckDB reads from the server's text as it is …
_PLAIN = {
    16: "BOOLEAN", 20: "BIGINT", 21: "SMALLINT", 23: "INTEGER", 26: "UINTEGER",
    700: "FLOAT", 701: "DOUBLE", 2950: "UUID",
}  # fmt: skip
# … and what has values that DuckDB lacks.
_TIMES = {1082: "DATE", 1114: "TIMESTAMP", 1184: "TIMESTAMP WITH TIME ZONE"}
_JSON = {114, 3802}
_ARRAYS = {
    1000: "BOOLEAN", 1005: "SMALLINT", 1007: "INTEGER", 1016: "BIGINT", 1021: "FLOAT", 1022: "DOUBLE",
    1009: _TEXT, 1014: _TEXT, 1015: _TEXT, 2951: "UUID",
    1182: "DATE", 1115: "TIMESTAMP", 1185: "TIMESTAMP WITH TIME ZONE",
}  # fmt: skip
_SERVERS_TURN = 10.0  # seconds in which the server itself may end a statement at its deadline
_MOST_DIGITS = 38
_PLACES = 18  # of a numeric without a precision
_HINT = "fix the SQL or the table; nothing was written"
_WRITES = ("25006", "0A000")  # not in a read-only transaction, not inside another statement
_MISSING = ("3F000", "42P01", "42703", "42883", "42704", "42P02")
_PARSE = ("42601", "42P10", "42803", "42804", "42702", "42725", "42P18", "42846")


class Database(PostgresConnection):
    """A database. Except on the loopback interface, TLS is fully verified unless `allow_plaintext` is set.
    `timeout` limits the whole read; `timezone` applies to timestamps without one."""

    type: Literal["postgres"] = "postgres"
    timeout: Duration = Field(default=3600.0, gt=0)
    timezone: str = "UTC"


class Postgres(sql.Selecting):
    """A table or a SELECT of a PostgreSQL database."""

    Connection = Database
    narrows = True
    evidence = "PostgreSQL 15 and 18"

    @property
    def identity(self) -> dict[str, str]:
        return {"type": "postgres", "server": self.connection.address, **self.options.identity}

    @property
    def announces(self) -> tuple[PostgresConnection, ...]:
        return (self.connection,)

    def open(self, workspace: Workspace, *, wait: bool = True) -> Snapshot:
        relation = sql.relation(self.options, self.invocation, sql.POSTGRES, written, quoted)
        try:
            session = self.connection.connect("retl source", read_only=True, idle=self.connection.timeout)
        except TargetError as problem:
            raise SourceError(problem.code, problem.message, hint=problem.hint) from problem
        try:
            return Transaction(self, workspace, session, relation)
        except BaseException:
            session.close()
            raise


class Transaction(Snapshot):
    """A transaction that sees one state of the database. `server`: its name in messages."""

    server: ClassVar[str] = "PostgreSQL"

    def __init__(self, source: Postgres, workspace: Workspace, session: Session, relation: str) -> None:
        import psycopg

        self._connection: Database = source.connection
        self._origin = source.options.origin
        self._workspace, self._session, self._relation = workspace, session, relation
        self._texts: Texts | None = None
        session.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with self._reading():
            version = self._version()
            self._columns = self._described()
            session.execute(f"SELECT 1 FROM {relation} LIMIT 0", prepare=True)  # have we the right to?
        types = {name: one.type for name, one in self._columns.items()}
        misfit = MISFIT if any(one.fits is not None for one in self._columns.values()) else None
        self.description = Description(types, version, misfit=misfit)

    def rows(self, columns: Sequence[str], since: Since | None = None) -> Query:
        return self._rows(columns, _since(since))

    def rows_among(self, columns: Sequence[str], among: Among) -> Query:
        return self._rows(columns, among.where(quoted(among.column)))

    def _rows(self, columns: Sequence[str], where: str) -> Query:
        chosen = [self._columns[name] for name in columns]
        listed = ", ".join(self._written(name) for name in columns)
        read = f"SELECT {listed}, 1 FROM {self._relation}{where}"
        self._texts = Texts(self._workspace, chosen)
        with self._reading(), self._session.cursor() as cursor:
            with cursor.copy(f"COPY ({read}) TO STDOUT (FORMAT csv)") as copy:
                self._texts.write(bytes(data) for data in copy)
            count = cursor.rowcount
        self._session.close()  # its locks end: others may alter the table
        if count != self._texts.count:
            raise SourceError(
                "ROWS_LOST", f"{self._origin}: {count} rows were sent, {self._texts.count} arrived"
            )
        return self._texts.query(self._origin, misfit=self.description.misfit is not None)

    def close(self) -> None:
        self._session.close()
        if self._texts is not None:
            self._texts.close()

    def _version(self) -> str:
        """The server, the database, and the state that the transaction sees."""
        return ":".join((self._server(), *self._session.execute(_SNAPSHOT).fetchall()[0]))

    def _server(self) -> str:
        """What tells one server, and one restored copy of it, from another. A server that does not say it
        has only its address."""
        import psycopg

        try:
            (found,) = self._session.execute(_SERVER).fetchall()
            return ".".join(map(str, found))
        except psycopg.errors.ProgrammingError:
            return self._connection.address
        finally:
            if not self._session.closed:
                self._session.rollback()

    def _described(self) -> dict[str, Column]:
        """The columns. Nothing runs; the server takes a text only if it is one statement."""
        wire = self._session.pgconn
        wire.send_prepare(b"", f"SELECT * FROM {self._relation}".encode())
        self._answer()
        wire.send_describe_prepared(b"")
        found = self._answer()
        if found.nparams:
            raise DefinitionError("SQL_SYNTAX", "write a variable as $name, not as $1", where=self._origin)
        columns = [
            self._column((found.fname(at) or b"").decode(), found.ftype(at), found.fmod(at))
            for at in range(found.nfields)
        ]
        distinct([one.name for one in columns], self._origin)
        self._arrays = {one.name for one in columns if one.type.endswith("[]")}
        return {one.name: one for one in columns}

    def _column(self, name: str, oid: int, modifier: int) -> Column:
        """A column of the type that a server of this product has under this number."""
        return _column(name, oid, modifier)

    def _answer(self) -> psycopg.pq.abc.PGresult:
        """The server's answer. libpq's own calls would keep all threads waiting for it."""
        from psycopg import errors, generators, pq

        found: pq.abc.PGresult
        (found,) = self._session.wait(generators.execute(self._session.pgconn))
        if found.status != pq.ExecStatus.COMMAND_OK:
            raise errors.error_from_result(found)
        return found

    def _written(self, name: str) -> str:
        """SQL of a column's text. An array is written as JSON, one in an array as a JSON text, which fits no
        list; so is one that does not begin at 1."""
        column = quoted(name)
        if name not in self._arrays:
            return column
        odd = f"pg_catalog.array_ndims({column}) > 1 OR pg_catalog.array_lower({column}, 1) <> 1"
        text = f"pg_catalog.to_json({column}::pg_catalog.text)"
        return f"CASE WHEN {odd} THEN {text} ELSE pg_catalog.to_json({column}) END"

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turns errors of the database into ours. A deadline or a stop request closes the connection."""
        import psycopg

        stop, seconds = self._workspace.stop, self._connection.timeout + _SERVERS_TURN
        try:
            with hang_up_after(seconds, self._session.fileno()) as hang_up, stop.interrupting(hang_up):
                yield
        except psycopg.Error as problem:
            stop.check()
            raise self._failure(problem, lost=sqlstate.is_lost(problem, self._session)) from None

    def _failure(self, problem: psycopg.Error, *, lost: bool) -> RetlError:
        code, words, origin = problem.sqlstate or "", sqlstate.words(problem), self._origin
        if code in _WRITES:
            return DefinitionError("SQL_NOT_ONE_SELECT", f"this must be one SELECT{words}", where=origin)
        if code in _MISSING:
            return Mismatch("SOURCE_DRIFT", f"{origin} does not fit the database{words}", hint=_HINT)
        if code in _PARSE and words:
            return DefinitionError("SQL_SYNTAX", words.removeprefix(": "), where=origin)
        if code == "57014":
            message = f"{origin} was not read within {self._connection.timeout:.0f} s"
            return SourceError("MART_UNREADABLE", message, hint="raise `timeout` of the source in retl.yml")
        if lost or code.startswith(("08", "57P")):
            message = (
                f"{self.server} at {self._connection.address} closed the connection or stopped answering"
            )
            return SourceError("CONNECTION_LOST", f"{message}; nothing was delivered", hint="run again")
        hint = f"GRANT SELECT on it to {self._connection.user}" if code == "42501" else None
        return SourceError(
            "MART_UNREADABLE", f"{self.server} cannot read {origin} (SQLSTATE {code}){words}", hint=hint
        )


_SERVER = (
    "SELECT c.system_identifier, k.timeline_id"
    " FROM pg_catalog.pg_control_system() c, pg_catalog.pg_control_checkpoint() k"
)
_SNAPSHOT = "SELECT pg_catalog.current_database()::text, pg_catalog.pg_current_snapshot()::text"


def _column(name: str, oid: int, modifier: int) -> Column:
    if oid in _PLAIN:
        return Column(name, _PLAIN[oid])
    if oid in _TIMES:
        return Column(name, _TIMES[oid], "{x} NOT LIKE '% BC'")
    if oid in _JSON:
        return Column(name, "JSON", "TRUE")
    if oid in _ARRAYS:
        fits = "{x} LIKE '[%'" + (" AND {x} NOT LIKE '% BC\"%'" if oid in (1182, 1115, 1185) else "")
        return Column(name, f"{_ARRAYS[oid]}[]", fits)
    if oid == _NUMERIC and modifier < 0:
        fits = f"length(rtrim(split_part({{x}}, '.', 2), '0')) <= {_PLACES}"
        return Column(name, f"DECIMAL({_MOST_DIGITS},{_PLACES})", fits)
    if oid == _NUMERIC:
        digits, places = (modifier - 4) >> 16 & 0xFFFF, ((modifier - 4 & 0x7FF) ^ 0x400) - 0x400
        whole = max(digits - places, 0)
        places = max(places, 0)
        if 0 < whole + places <= _MOST_DIGITS:
            return Column(name, f"DECIMAL({whole + places},{places})", "TRUE")
    return Column(name, _TEXT)


def _since(since: Since | None) -> str:
    if since is None:
        return ""
    column = quoted(since.column)
    return f" WHERE {column} >= {literal(since.least)} OR {column} IS NULL"


def written(value: Any) -> str:
    """A variable as SQL: a text is quoted and takes the type that its place wants, as a parameter would."""
    return sql.constant(value, _text)


def _text(value: str) -> str:
    return f" E{literal(value.replace(chr(92), chr(92) * 2))}" if "\\" in value else literal(value)
