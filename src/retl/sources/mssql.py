"""SQL Server: also Azure SQL, Azure Synapse and Fabric warehouses; a table, a view, or one SELECT in T-SQL.

The SELECT must be able to stand in parentheses: no `WITH` before it and no `ORDER BY` without `TOP`; put
those into a view. In `sql` and `file`, `$name` is a variable, which becomes a quoted value.

A run reads one state of the database: under SNAPSHOT isolation where the database allows it, else in one
statement with READ_COMMITTED_SNAPSHOT (the default of Azure SQL). A database that has neither is refused;
`snapshot: none` reads it all the same, and then deletes need `source: {complete: true}`.

`login` is `sql` (user and password), `service_principal` (the application's id as `user`, its secret as
`password`), `managed_identity` or `default` (what the Azure SDK finds). TLS is verified, except on this
machine with `allow_plaintext`.

Numbers, texts, dates, booleans, UUIDs and times up to microseconds are exact; money is decimal(19, 4).
`datetimeoffset` is read in UTC. What has no such type arrives as the server's text: times of day, 100 ns,
binary (0x…), xml, sql_variant, hierarchyid, geometry and geography.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from retl.engine.workspace import Workspace
from retl.errors import SourceError
from retl.model import Duration
from retl.net.mssql import SqlServer, connecting
from retl.project.marts import Selected
from retl.sources import sql
from retl.sources.api import Invocation, Snapshot, needs
from retl.sources.columnar import Column, connect
from retl.values.sql import literal

_SAME = {
    "bigint": "BIGINT", "int": "INTEGER", "smallint": "SMALLINT", "tinyint": "UTINYINT", "bit": "BOOLEAN",
    "float": "DOUBLE", "real": "FLOAT", "date": "DATE",
}  # fmt: skip
_TEXT = {"char", "varchar", "nchar", "nvarchar", "text", "ntext", "xml", "sysname", "json"}
_TIMES = {"datetime": 3, "smalldatetime": 0}  # digits after the second
_FINEST = 6  # of a timestamp here
_LOGIN_SECONDS = 15


class Server(SqlServer):
    """A database of a server. `timeout` limits each wait for rows; `timezone` applies to timestamps without
    one."""

    type: Literal["mssql"] = "mssql"
    snapshot: Literal["required", "none"] = "required"
    timeout: Duration = Field(default=3600.0, gt=0)
    timezone: str = "UTC"


class MsSql(sql.Selecting):
    """A table or a SELECT of a SQL Server database."""

    Connection = Server
    evidence = "unproved: written from Microsoft's documentation; no server to try it on"

    def __init__(self, connection: Server, options: Selected, invocation: Invocation) -> None:
        super().__init__(connection, options, invocation)
        self.one_state = connection.snapshot == "required"

    @property
    def identity(self) -> dict[str, str]:
        server = f"{self.connection.host}:{self.connection.port}/{self.connection.dbname}"
        return {"type": "mssql", "server": server, **self.options.identity}

    def open(self, workspace: Workspace, *, wait: bool = True) -> Snapshot:
        relation = sql.relation(self.options, self.invocation, sql.MSSQL, written, bracketed)
        return connect(lambda: _Session(self.connection, relation), workspace, self.options.origin)


class _Session:
    """A connection under the isolation that makes its query one state."""

    def __init__(self, server: Server, relation: str) -> None:
        with needs("mssql"):
            import mssql_python
            import pyarrow  # type: ignore[import-untyped]  # noqa: F401
        attributes = {mssql_python.SQL_ATTR_LOGIN_TIMEOUT: _LOGIN_SECONDS}
        with connecting:  # so that a target knows its own socket
            self._connection: Any = mssql_python.connect(
                server.text(ApplicationIntent="ReadOnly"),
                autocommit=False,
                attrs_before=attributes,
                timeout=int(server.timeout),
            )
        self._relation = relation
        self._isolate(required=server.snapshot == "required")
        self.version = f"{server.dbname}:{self._one('SELECT CONVERT(varchar(33), SYSUTCDATETIME(), 126)')}"

    def columns(self) -> Sequence[Column]:
        cursor = self._connection.cursor()
        text = f"SELECT * FROM {self._relation}"
        cursor.execute("EXEC sp_describe_first_result_set @tsql = ?", text)
        names = [one[0].lower() for one in cursor.description]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        cursor.close()
        return [
            column(str(one["name"]), str(one["system_type_name"])) for one in rows if not one["is_hidden"]
        ]

    def stream(self, select: str) -> object:
        cursor = self._connection.cursor()
        cursor.execute(f"SELECT {select} FROM {self._relation}")
        return cursor.arrow_reader()

    def close(self) -> None:
        self._connection.rollback()
        self._connection.close()

    def _isolate(self, *, required: bool) -> None:
        snapshot, committed = self._row(
            "SELECT snapshot_isolation_state, is_read_committed_snapshot_on FROM sys.databases"
            " WHERE database_id = DB_ID()"
        )
        if snapshot == 1:
            self._connection.rollback()
            cursor = self._connection.cursor()
            cursor.execute("SET TRANSACTION ISOLATION LEVEL SNAPSHOT")
            cursor.close()
        elif required and not committed:
            raise SourceError(
                "SOURCE_UNSUPPORTED",
                "this database has neither SNAPSHOT isolation nor READ_COMMITTED_SNAPSHOT, so a run could"
                " read half of two states",
                hint="ALTER DATABASE … SET ALLOW_SNAPSHOT_ISOLATION ON, or `snapshot: none` for the source",
            )

    def _one(self, query: str) -> Any:
        return self._row(query)[0]

    def _row(self, query: str) -> Any:
        cursor = self._connection.cursor()
        cursor.execute(query)
        (row,) = cursor.fetchall()
        cursor.close()
        return row


def column(name: str, kind: str) -> Column:
    """A column of a type as the server writes it, such as decimal(38,10)."""
    found = re.match(r"(\w+)(?:\((\d+)(?:,(\d+))?\))?", kind.lower())
    base, first, second = found.groups() if found else (kind, None, None)
    read, shown = bracketed(name), _SAME.get(base)
    if base in ("decimal", "numeric"):
        shown = f"DECIMAL({first},{second or 0})"
    elif base in ("money", "smallmoney"):
        shown, read = "DECIMAL(19,4)", f"CAST({read} AS decimal(19, 4))"
    elif base == "uniqueidentifier":
        shown, read = "UUID", f"CAST({read} AS char(36))"
    elif base in _TIMES or (base in ("datetime2", "datetimeoffset") and int(first or 7) <= _FINEST):
        digits = _TIMES.get(base, int(first or 0))
        if base == "datetimeoffset":
            shown, read = "TIMESTAMP WITH TIME ZONE", f"SWITCHOFFSET({read}, '+00:00')"
            read = f"CONVERT(varchar(40), CAST({read} AS datetime2({digits})), 126) + 'Z'"
        else:
            shown, read = "TIMESTAMP", f"CONVERT(varchar(40), CAST({read} AS datetime2({digits})), 126)"
    elif shown is None:
        shown, read = "VARCHAR", _text(base, read)
    return Column(name, shown, f"{read} AS {bracketed(name)}")


def _text(base: str, read: str) -> str:
    if base in _TEXT:
        return f"CAST({read} AS nvarchar(max))"
    if base in ("binary", "varbinary", "image", "timestamp", "rowversion"):
        return f"CONVERT(varchar(max), CAST({read} AS varbinary(max)), 1)"
    if base in ("datetime2", "datetimeoffset", "time"):
        return (
            f"CONVERT(varchar(40), {read}, 127)"
            if base == "datetimeoffset"
            else f"CONVERT(varchar(40), {read}, 126)"
        )
    if base in ("hierarchyid", "geometry", "geography"):
        return f"{read}.ToString()"
    return f"CONVERT(nvarchar(max), {read})"


def bracketed(name: str) -> str:
    return f"[{name.replace(']', ']]')}]"


def written(value: Any) -> str:
    """A variable as T-SQL."""
    day = "CAST({} AS date)"
    return sql.constant(value, lambda text: f"N{literal(text)}", booleans=("0", "1"), day=day)
