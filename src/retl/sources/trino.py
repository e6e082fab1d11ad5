"""Trino: a table, a view, or one SELECT over any catalog that Trino reads.

The rows are those of one query, as texts that Trino makes of the values, so numbers, times and texts arrive
exactly. Only the columns that the sync uses are read. In `sql` and `file`, `$name` is a variable, which
becomes a quoted value. `base_url` is the coordinator's address. The login is `password` (LDAP, a password
file) or `token` (a JWT); `user` is always sent. The version of a snapshot is the number of its query.

A query has one snapshot only where its connector has: one of each table in Iceberg and Delta, none in Hive,
and none across databases. So deletes need `source: {complete: true}`. An Iceberg or Delta table is better
read from its storage, with its changes: sources `iceberg` and `delta`.

Decimals keep all their digits. A time that is finer than microseconds, and a date outside the years 1 to
9999, make their row a reject; times with a zone are read in UTC. Arrays, maps, rows and JSON arrive as JSON;
varbinary (hex), time, intervals and ipaddress as text. A type that Trino cannot cast to varchar is an error.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal

from msgspec.structs import replace
from pydantic import Field, SecretStr, model_validator

from retl.engine.sql_text import Query
from retl.engine.workspace import Workspace
from retl.errors import DefinitionError, Mismatch, RetlError, SourceError
from retl.model import Definition, Duration, needs_tls
from retl.net.client import Address
from retl.observe.redact import redact
from retl.sources import sql
from retl.sources.api import Among, Description, Since, Snapshot, needs
from retl.sources.texts import MISFIT, Column, Texts, distinct, line
from retl.values.sql import literal, quoted

_AT_ONCE = 5000  # rows between two writes to the file
_LONGEST = 300  # characters of the server's own words
_ANSWER = 60.0  # seconds that one request may take: the coordinator answers sooner, ready or not
_SAME = {
    "boolean": "BOOLEAN", "tinyint": "TINYINT", "smallint": "SMALLINT", "integer": "INTEGER",
    "bigint": "BIGINT", "double": "DOUBLE", "uuid": "UUID",
}  # fmt: skip
_MICROSECONDS = "length(rtrim(split_part(split_part({x}, '.', 2), ' ', 1), '0')) <= 6"
_YEARS = "{x} SIMILAR TO '[0-9]{4}-.*'"
_GONE = ("TABLE_NOT_FOUND", "COLUMN_NOT_FOUND", "SCHEMA_NOT_FOUND", "CATALOG_NOT_FOUND", "FUNCTION_NOT_FOUND")
_TOO_LONG = ("EXCEEDED_TIME_LIMIT",)


class Coordinator(Definition):
    """A cluster, by its coordinator. Except on the loopback interface, `base_url` is https unless
    `allow_plaintext` is set. `timeout` limits the whole read; `timezone` applies to naive timestamps."""

    type: Literal["trino"] = "trino"
    base_url: str
    user: str
    password: SecretStr | None = None
    token: SecretStr | None = None
    catalog: str | None = None
    db_schema: str | None = Field(default=None, alias="schema")
    tls_ca_file: str | None = None
    allow_plaintext: bool = False
    timeout: Duration = Field(default=3600.0, gt=0)
    timezone: str = "UTC"

    @model_validator(mode="after")
    def _fits(self) -> Coordinator:
        address = Address.parse(self.base_url)
        if address.prefix:
            raise ValueError("base_url has no path: it is only scheme, host and port")
        if address.scheme == "http" and needs_tls(address.host, allow_plaintext=self.allow_plaintext):
            raise ValueError("base_url must be https, or set `allow_plaintext: true`")
        if self.password is not None and self.token is not None:
            raise ValueError("a login is `password` or `token`, not both")
        return self

    def connect(self) -> Any:
        """A connection of the client; no request is sent."""
        from trino.auth import BasicAuthentication, JWTAuthentication
        from trino.dbapi import Connection

        address = Address.parse(self.base_url)
        login: BasicAuthentication | JWTAuthentication | None = None
        if self.password is not None:
            login = BasicAuthentication(self.user, self.password.get_secret_value())
        elif self.token is not None:
            login = JWTAuthentication(self.token.get_secret_value())
        return Connection(
            host=address.host,
            port=address.port,
            http_scheme=address.scheme,
            user=self.user,
            auth=login,
            allow_insecure_auth=address.scheme == "http",
            source="retl",
            catalog=self.catalog,
            schema=self.db_schema,
            session_properties={"query_max_run_time": f"{max(1, round(self.timeout))}s"},
            request_timeout=min(_ANSWER, self.timeout),
            timezone="UTC",
            verify=self.tls_ca_file or True,
            legacy_primitive_types=True,  # texts stay texts
            encoding=None,  # type: ignore[arg-type]  # rows in the answers, not in files beside them
        )


class Trino(sql.Selecting):
    """A table or a SELECT of Trino."""

    Connection = Coordinator
    one_state = False
    narrows = True
    evidence = "unproved: a fake that speaks Trino's protocol stood in for it; no cluster to try it on"

    @property
    def identity(self) -> dict[str, str]:
        one: Coordinator = self.connection
        place = {"catalog": one.catalog, "schema": one.db_schema}
        named = {part: text for part, text in place.items() if text is not None}
        return {"type": "trino", "base_url": one.base_url, **named, **self.options.identity}

    def open(self, workspace: Workspace, *, wait: bool = True) -> Snapshot:
        relation = sql.relation(self.options, self.invocation, sql.TRINO, written, quoted)
        with needs("trino"):
            connection = self.connection.connect()
        try:
            return Result(self, workspace, connection, relation)
        except BaseException:
            connection.close()
            raise


class Result(Snapshot):
    """The columns as Trino describes them; `rows` is one query."""

    def __init__(self, source: Trino, workspace: Workspace, connection: Any, relation: str) -> None:
        self._server: Coordinator = source.connection
        self._origin, self._relation = source.options.origin, relation
        self._workspace, self._connection = workspace, connection
        self._texts: Texts | None = None
        self._ends = time.monotonic() + self._server.timeout
        self._cursor: Any = connection.cursor(stats_callback=self._go_on)
        with self._asking(words=True):
            self._cursor.execute(f"SELECT * FROM {relation} LIMIT 0")
            self._cursor.fetchall()
            self._kinds = [(str(one[0]), str(one[1])) for one in self._cursor.description]
        distinct([name for name, _ in self._kinds], self._origin)
        self._columns = {name: column(name, kind) for name, kind in self._kinds}
        types = {name: one.type for name, one in self._columns.items()}
        misfit = MISFIT if any(one.fits is not None for one in self._columns.values()) else None
        self.description = Description(types, self._version(), misfit=misfit)

    def rows(self, columns: Sequence[str], since: Since | None = None) -> Query:
        return self._rows(columns, _since(since, dict(self._kinds)))

    def rows_among(self, columns: Sequence[str], among: Among) -> Query:
        return self._rows(columns, among.where(quoted(among.column)))

    def _rows(self, columns: Sequence[str], where: str) -> Query:
        kinds = dict(self._kinds)
        listed = ", ".join(read(name, kinds[name]) for name in columns)
        self._texts = Texts(self._workspace, [self._columns[name] for name in columns])
        with self._asking(words=False):
            self._cursor.execute(f"SELECT {listed} FROM {self._relation}{where}")
            while rows := self._cursor.fetchmany(_AT_ONCE):
                self._texts.write(map(_line, rows))
        self.description = replace(self.description, version=self._version())
        return self._texts.query(self._origin, misfit=self.description.misfit is not None)

    def close(self) -> None:
        self._connection.close()
        if self._texts is not None:
            self._texts.close()

    def _version(self) -> str:
        return f"{Address.parse(self._server.base_url).authority}:{self._cursor.query_id}"

    def _go_on(self, _stats: Mapping[str, Any]) -> None:
        """Called by the client after each answer, also while a query waits in its queue."""
        self._workspace.stop.check()
        if time.monotonic() > self._ends:
            raise self._late()

    @contextmanager
    def _asking(self, *, words: bool) -> Iterator[None]:
        """Turns errors into ours; `words`: the server's may be shown, for they can quote no row yet. A query
        that is not read to its end is ended."""
        from trino import exceptions

        try:
            yield
        except BaseException as problem:
            with suppress(Exception):
                self._cursor.cancel()
            if isinstance(problem, exceptions.TrinoQueryError):
                raise self._failure(problem, words=words) from None
            if isinstance(problem, exceptions.Error | exceptions.HttpError | ValueError):
                raise self._unreached(problem) from None
            raise

    def _failure(self, problem: Any, *, words: bool) -> RetlError:
        name, origin = str(problem.error_name), self._origin
        shown = redact(" ".join(problem.message.split()))[:_LONGEST] if words else name
        if name in _GONE and words:
            hint = "fix the SQL or the table; nothing was written"
            return Mismatch("SOURCE_DRIFT", f"{origin} does not fit the database: {shown}", hint=hint)
        if name == "SYNTAX_ERROR":
            return DefinitionError("SQL_SYNTAX", shown, where=origin)
        if name in _TOO_LONG:
            return self._late()
        grant = f"GRANT SELECT on it to {self._server.user}" if name == "PERMISSION_DENIED" else None
        return SourceError("MART_UNREADABLE", f"Trino cannot read {origin} ({name}): {shown}", hint=grant)

    def _late(self) -> SourceError:
        message = f"{self._origin} was not read within {self._server.timeout:.0f} s"
        return SourceError("MART_UNREADABLE", message, hint="raise `timeout` of the source in retl.yml")

    def _unreached(self, problem: Exception) -> SourceError:
        """A login that is refused, or an answer that did not come or is not Trino's."""
        status = re.match(r"error (\d{3})", str(problem))
        where = f"Trino at {Address.parse(self._server.base_url).authority}"
        if status and status[1] in ("401", "403"):
            message = f"{where} does not accept the login of {self._server.user}"
            return SourceError("MART_UNREADABLE", message, hint="check user, and password or token")
        why = f"answers with status {status[1]}" if status else f"does not answer ({type(problem).__name__})"
        return SourceError("CONNECTION_LOST", f"{where} {why}; nothing was delivered", hint="run again")


def column(name: str, kind: str) -> Column:
    """A column of a type as Trino writes it, such as decimal(10,2) or timestamp(6) with time zone."""
    base = kind.partition("(")[0].split(" ")[0]
    if base in _SAME:
        return Column(name, _SAME[base])
    if base == "real":
        return Column(name, "FLOAT")
    if base == "decimal":
        return Column(name, kind.upper().replace(" ", ""))
    if base == "date":
        return Column(name, "DATE", _YEARS)
    if base == "timestamp" and kind.endswith("with time zone"):
        fits = f"{_YEARS} AND {_MICROSECONDS}"
        return Column(name, "TIMESTAMP WITH TIME ZONE", fits, "replace({x}, ' UTC', '+00')")
    if base == "timestamp":
        return Column(name, "TIMESTAMP", f"{_YEARS} AND {_MICROSECONDS}")
    if base in ("json", "array", "map", "row"):
        return Column(name, "JSON", "TRUE")
    return Column(name, "VARCHAR")


def read(name: str, kind: str) -> str:
    """What Trino selects for a column: always a varchar. A real has more digits than its text, so it is
    widened."""
    base, one = kind.partition("(")[0].split(" ")[0], quoted(name)
    if base in ("varchar", "char"):
        return one
    if base == "varbinary":
        return f"to_hex({one})"
    if base == "json":
        return f"json_format({one})"
    if base in ("array", "map", "row"):
        return f"json_format(CAST({one} AS json))"
    if base == "real":
        return f"CAST(CAST({one} AS double) AS varchar)"
    if kind.endswith("with time zone") and base == "timestamp":
        return f"CAST({one} AT TIME ZONE 'UTC' AS varchar)"
    return f"CAST({one} AS varchar)"


def _line(row: Sequence[str | None]) -> bytes:
    return line([None if value is None else value.encode() for value in row])


def _since(since: Since | None, kinds: Mapping[str, str]) -> str:
    if since is None:
        return ""
    one, least = quoted(since.column), re.sub(r"\+00$", " UTC", since.least)
    return f" WHERE {one} >= CAST({literal(least)} AS {kinds[since.column]}) OR {one} IS NULL"


def written(value: Any) -> str:
    """A variable as SQL."""
    return sql.constant(value, literal)
