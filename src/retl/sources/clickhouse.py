"""ClickHouse by its HTTP interface: a table, a view, or one SELECT in ClickHouse's own SQL.

The server writes the rows as Parquet, which keeps every digit. Only the columns that the sync uses are read,
in one query, read-only (`readonly = 1`). The server answers after its last row (`wait_end_of_query`), so a
query that fails half way is an error and no short mart. In `sql` a variable of the project is a parameter of
ClickHouse: `{week:Date}` is the variable `week`, never text of the query.

These types would be read as something else and are refused: Int128, Int256, UInt128, UInt256, decimals with
more than 38 digits, FixedString, IPv4, IPv6, Tuple, Map, JSON, Variant, Dynamic, intervals, Time, BFloat16,
geometry, and states of aggregate functions. Cast them in `sql`: `toString(x) AS x`. DateTime64 with
nanoseconds is judged per value. For a ReplacingMergeTree write `FINAL` in `sql`.

One query sees the parts of a table as they were at its start, but several tables or shards at several
moments, and a replica may lag: deletes need `source: {complete: true}`. The version is a digest of the rows.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import BinaryIO, ClassVar

from msgspec.structs import replace
from pydantic import Field

from retl.engine import scratch
from retl.engine.sql_text import Query, columns
from retl.engine.workspace import Workspace
from retl.errors import Ambiguous, DefinitionError, Mismatch, RetlError, SourceError, Systemic, Unavailable
from retl.model import Duration, Limits, Retry
from retl.net import clickhouse
from retl.net.auth import Anonymous
from retl.net.clickhouse import BUSY, LOCKED, UNKNOWN_NAME, Said, quoted, refused, written
from retl.net.client import Client, Timeouts
from retl.net.messages import Reply, Request
from retl.net.waits import wait_asked
from retl.sources import sql
from retl.sources.api import Description, Since, Snapshot, own_pace, unsupported
from retl.values.sql import literal, split
from retl.values.sql import quoted as duckdb_quoted

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_PARAMETER = re.compile(rf"\{{\s*({_NAME})\s*:[^{{}}]+\}}")
_MARK = "retl_since"
_SAME = {
    "Int8": "TINYINT", "Int16": "SMALLINT", "Int32": "INTEGER", "Int64": "BIGINT",
    "UInt8": "UTINYINT", "UInt16": "USMALLINT", "UInt32": "UINTEGER", "UInt64": "UBIGINT",
    "Float32": "FLOAT", "Float64": "DOUBLE", "Bool": "BOOLEAN", "String": "VARCHAR", "UUID": "UUID",
    "Date": "DATE", "Date32": "DATE",
}  # fmt: skip
_TIME = re.compile(r"DateTime(?:\('[^']*'\))?|DateTime64\(([0-9])(?:, '[^']*')?\)")
_DECIMAL = re.compile(r"Decimal\(([0-9]+), ([0-9]+)\)")
_WRAPPED = re.compile(r"(?:Nullable|LowCardinality)\((.*)\)|SimpleAggregateFunction\([^,]+, (.*)\)")
_ARRAY = re.compile(r"Array\((.*)\)")


class Server(clickhouse.ClickHouseServer):
    """A server, by its HTTP interface. `timeout` limits a query, at the server too."""

    timeout: Duration = Field(3600.0, gt=0)
    retry: Retry = Retry()


class ClickHouse(sql.Selecting):
    """A table or a SELECT of a ClickHouse server."""

    Connection = Server
    one_state = False
    narrows: ClassVar[bool] = True
    evidence = "answers that the engine (chdb 26.9) gave, replayed by a fake server; no real server"

    @property
    def identity(self) -> dict[str, str]:
        return {"type": "clickhouse", "base_url": self.connection.base_url, **self.options.identity}

    def open(self, workspace: Workspace, *, wait: bool = True) -> Snapshot:
        return Result(self, workspace)

    def relation(self) -> tuple[str, dict[str, str]]:
        """What stands after FROM, and the parameters in it. DefinitionError."""
        if self.options.table is not None:
            return ".".join(map(quoted, split(self.options.table))), {}
        text, origin = self.options.text(self.invocation.folder), self.options.origin
        known, names = self.invocation.variables, set(_PARAMETER.findall(text))
        if missing := sorted(names - known.keys()):
            raise DefinitionError(
                "VAR_MISSING",
                f"{origin} uses {missing[0]}, but there is no such variable",
                hint=f"give it under `vars:` in retl.yml or with --var {missing[0]}=…",
                where=origin,
            )
        return f"(\n{text.rstrip().removesuffix(';')}\n)", {name: written(known[name]) for name in names}


class Result(Snapshot):
    """The columns as the server describes them; `rows` is one query."""

    def __init__(self, source: ClickHouse, workspace: Workspace) -> None:
        self._source, self._workspace = source, workspace
        self._origin = f"source {source.label}"
        self._relation, self._parameters = source.relation()
        self._file = workspace.directory / "clickhouse.parquet"
        self._settings = True
        with self._client() as client:
            body = self._ask(client, f"DESCRIBE (SELECT * FROM {self._relation}) FORMAT JSON").body
        try:
            described = json.loads(body)["data"]
            types = {str(one["name"]): str(one["type"]) for one in described}
        except (ValueError, KeyError, TypeError):
            raise SourceError("HTTP_NO_JSON", f"{client.address} does not answer like ClickHouse") from None
        if len(types) < len(described):
            raise DefinitionError("COLUMN_NAME", f"{self._origin} has two columns of one name")
        self.description = Description(self._readable(types), "not read")

    def rows(self, columns: Sequence[str], since: Since | None = None) -> Query:
        listed = ", ".join(map(quoted, columns))
        text, more = f"SELECT {listed} FROM {self._relation}", dict[str, str]()
        if since is not None:
            column, mark = quoted(since.column), _mark(since)
            text += f" WHERE {column} >= {{{_MARK}:{mark[0]}}} OR {column} IS NULL"
            more = {_MARK: mark[1]}
        with self._client() as client:
            self._ask(client, f"{text} FORMAT Parquet", more, into=True)
        query = self._query(columns)
        (count,) = self._workspace.one(f"SELECT count(*) FROM ({query.sql})")
        digest = sha256()
        with self._file.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
        self.description = replace(self.description, version=f"{count} rows {digest.hexdigest()[:16]}")
        return query

    def close(self) -> None:
        self._file.unlink(missing_ok=True)

    def _readable(self, types: Mapping[str, str]) -> dict[str, str]:
        """The columns with their DuckDB types. SourceError if the sync uses one that has none."""
        contract = self._source.invocation.contract
        used = types if contract is None else self._source.invocation.types()
        found = {name: _duckdb(text) for name, text in types.items()}
        for name, kind in found.items():
            if kind is None and name in used:
                feature = f"a column {name} of type {' '.join(types[name].split())}"
                hint = f"cast it in `sql`: toString({name}) AS {name}"
                raise unsupported(self._source.label, feature, hint)
        return {name: kind for name, kind in found.items() if kind is not None}

    def _query(self, names: Sequence[str]) -> Query:
        """The rows of the file. SourceError if it is not what the server described."""
        query = Query(f"SELECT * FROM read_parquet({literal(str(self._file))})", {}, self._origin)
        found, wanted = columns(self._workspace, query), self.description.columns
        for name in names:
            if found.get(name) != wanted[name]:
                raise SourceError(
                    "SOURCE_UNSUPPORTED",
                    f"{self._origin}: the server wrote {name} as {found.get(name)}, not as {wanted[name]}",
                    hint="cast the column in `sql`, or update the server",
                )
        listed = ", ".join(map(duckdb_quoted, names))
        return replace(query, sql=f"SELECT {listed} FROM ({query.sql})")

    @contextmanager
    def _client(self) -> Iterator[Client]:
        server: Server = self._source.connection
        timeouts = Timeouts(idle=server.timeout, total=server.timeout)
        client = Client(
            server.address,
            Anonymous(),
            {**server.account, **({"X-ClickHouse-Database": server.database} if server.database else {})},
            timeouts,
            proxy=server.proxy,
            ca_file=server.tls_ca_file,
        )
        try:
            with self._workspace.stop.interrupting(client.interrupt):
                yield client
        except (Unavailable, Systemic) as problem:
            self._workspace.stop.check()
            raise SourceError(problem.code, problem.message, hint=problem.hint) from None
        finally:
            client.close()

    def _ask(
        self, client: Client, sql: str, more: Mapping[str, str] | None = None, *, into: bool = False
    ) -> Reply:
        """The answer to a query; `into` puts it into the file. It is asked again if that may help."""
        server: Server = self._source.connection
        retrying = own_pace(Limits()).retrying(server.retry, self._workspace.stop.event)

        def once() -> Reply:
            try:
                return self._once(client, sql, more or {}, into)
            except _Locked:
                self._settings = False
                return self._once(client, sql, more or {}, into)

        return retrying(once)

    def _once(self, client: Client, sql: str, more: Mapping[str, str], into: bool) -> Reply:
        server: Server = self._source.connection
        given = {"wait_end_of_query": "1"}
        if self._settings:
            given |= {"readonly": "1", "max_execution_time": str(int(server.timeout) or 1)}
            given |= {"output_format_parquet_string_as_string": "1"}
        target = clickhouse.target(client.address, given, {**self._parameters, **more})
        request = Request("POST", target, (("Content-Type", "text/plain; charset=utf-8"),), sql.encode())
        try:
            if not into:
                reply = client.send(request)
            else:
                with self._private() as file:
                    reply = client.send(request, into=file)
        except Ambiguous as problem:
            raise Unavailable(problem.code, problem.message) from None
        if (said := refused(reply)) is not None:
            raise self._refusal(reply, said, str(client.address))
        if not reply.whole or (into and not self._is_whole()):
            raise Unavailable("HTTP_CUT_OFF", f"the rows of {client.address} did not arrive whole")
        return reply

    @contextmanager
    def _private(self) -> Iterator[BinaryIO]:
        """The file of the rows, empty."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        try:
            with open(os.open(self._file, flags, 0o600), "wb") as file:
                yield file
        except OSError as problem:
            raise scratch.unwritable(self._workspace.directory, problem) from problem

    def _is_whole(self) -> bool:
        """Whether the file ends as Parquet does, and not with the text of an error."""
        with self._file.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 4, 0))
            return size > 12 and file.read() == b"PAR1"

    def _refusal(self, reply: Reply, answered: Said, server: str) -> RetlError:
        """What the server's error means."""
        code = answered.code
        if not code:
            said = f"{server} answered {reply.status}"
            if reply.status in (408, 429, 502, 503, 504):
                return Unavailable(f"HTTP_{reply.status}", said, retry_after=wait_asked(reply.headers))
            hint = "it is no answer of ClickHouse: check `base_url` of the source"
            return SourceError(f"HTTP_{reply.status}", said, hint=hint)
        said = f"ClickHouse at {server} refuses {self._origin} (code {answered.named})"
        if code == LOCKED and self._settings:
            return _Locked("LOCKED", said)
        if code in BUSY:
            return Unavailable(f"HTTP_{reply.status}", said)
        if code in UNKNOWN_NAME:
            hint = "fix the SQL or the table; nothing was written"
            return Mismatch("SOURCE_DRIFT", said, hint=hint)
        if code == 62:
            return DefinitionError("SQL_SYNTAX", said, where="source.sql")
        hints = {
            159: "raise `timeout` of the source in retl.yml",
            241: "ask for fewer columns or rows, or raise the account's max_memory_usage",
            497: "GRANT SELECT on it to the source's user",
            516: "check `user` and `password` of the source",
        }
        return SourceError("MART_UNREADABLE", said, hint=hints.get(code))


class _Locked(RetlError):
    """The account may not change settings."""


def _duckdb(text: str) -> str | None:
    """The DuckDB type of a ClickHouse type; None if DuckDB would read something else."""
    if found := _WRAPPED.fullmatch(text):
        return _duckdb(found[1] or found[2])
    if found := _ARRAY.fullmatch(text):
        inner = _duckdb(found[1])
        return inner and f"{inner}[]"
    if text.startswith(("Enum8(", "Enum16(")):
        return "VARCHAR"
    if found := _DECIMAL.fullmatch(text):
        return f"DECIMAL({found[1]},{found[2]})" if int(found[1]) <= 38 else None
    if found := _TIME.fullmatch(text):
        return "TIMESTAMPTZ_NS" if int(found[1] or 0) > 6 else "TIMESTAMP WITH TIME ZONE"
    return _SAME.get(text)


def _mark(since: Since) -> tuple[str, str]:
    """The ClickHouse type and the text of a mark."""
    if since.column_type.startswith("TIMESTAMP"):
        scale = 9 if since.column_type.endswith("_NS") else 6
        return f"DateTime64({scale}, 'UTC')", since.least.removesuffix("+00")
    if since.column_type == "DATE":
        return "Date32", since.least
    return "UInt64" if since.column_type.startswith("U") else "Int64", since.least
