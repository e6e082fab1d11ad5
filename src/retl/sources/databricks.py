"""Databricks SQL: a table, a view, or one SELECT through a SQL warehouse.

A Delta table is better read from its storage, without a cluster and with its change feed: source `delta`. Use
this one for views, and where the storage cannot be reached.

One query is one state of each Delta table in it. In `sql` and `file`, `$name` is a variable, which becomes a
quoted value. `token` is a personal access token, or an access token of an application.

Numbers, texts, booleans, dates and times are exact. Arrays, maps and structs arrive as JSON; BINARY (hex) and
VARIANT as text; intervals as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import Field, SecretStr

from retl.engine.workspace import Workspace
from retl.model import Definition, Duration
from retl.sources import sql
from retl.sources.api import Snapshot, needs
from retl.sources.columnar import Column, connect

_ROWS = 50_000  # in one batch
_SAME = {
    "tinyint": "TINYINT", "smallint": "SMALLINT", "int": "INTEGER", "bigint": "BIGINT", "float": "FLOAT",
    "double": "DOUBLE", "boolean": "BOOLEAN", "string": "VARCHAR", "date": "DATE",
    "timestamp": "TIMESTAMP WITH TIME ZONE", "timestamp_ntz": "TIMESTAMP",
}  # fmt: skip


class Warehouse(Definition):
    """A SQL warehouse. `timeout` limits each request; `timezone` applies to TIMESTAMP_NTZ."""

    type: Literal["databricks"] = "databricks"
    host: str
    http_path: str
    token: SecretStr
    catalog: str | None = None
    db_schema: str | None = Field(default=None, alias="schema")
    timeout: Duration = Field(default=3600.0, gt=0)
    timezone: str = "UTC"


class Databricks(sql.Selecting):
    """A table or a SELECT of a Databricks SQL warehouse."""

    Connection = Warehouse
    evidence = "unproved: written from the vendor's documentation and client; no workspace to try it on"

    @property
    def identity(self) -> dict[str, str]:
        return {"type": "databricks", "host": self.connection.host, **self.options.identity}

    def open(self, workspace: Workspace, *, wait: bool = True) -> Snapshot:
        relation = sql.relation(self.options, self.invocation, sql.DATABRICKS, written, backticked)
        return connect(lambda: _Session(self.connection, relation), workspace, self.options.origin)


class _Session:
    def __init__(self, warehouse: Warehouse, relation: str) -> None:
        with needs("databricks"):
            import pyarrow  # type: ignore[import-untyped]  # noqa: F401
            from databricks import sql as client
        self._connection: Any = client.connect(
            server_hostname=warehouse.host,
            http_path=warehouse.http_path,
            session_configuration={"timezone": "UTC"},
            _socket_timeout=warehouse.timeout,
            _use_arrow_native_complex_types=False,
            access_token=warehouse.token.get_secret_value(),
            catalog=warehouse.catalog,
            schema=warehouse.db_schema,
        )
        self._relation = relation
        self._cursor: Any = self._connection.cursor()
        self._cursor.execute("SELECT CAST(current_timestamp() AS STRING)")
        self.version = f"{warehouse.host}:{self._cursor.fetchall()[0][0]}"

    def columns(self) -> Sequence[Column]:
        self._cursor.execute(f"DESCRIBE QUERY SELECT * FROM {self._relation}")
        return [column(str(name), str(kind)) for name, kind, *_ in self._cursor.fetchall()]

    def stream(self, select: str) -> object:
        import pyarrow

        self._cursor.execute(f"SELECT {select} FROM {self._relation}")
        first = self._cursor.fetchmany_arrow(_ROWS)

        def batches() -> Iterator[Any]:
            table = first
            while table.num_rows:
                yield from table.cast(first.schema).to_batches()
                table = self._cursor.fetchmany_arrow(_ROWS)

        return pyarrow.RecordBatchReader.from_batches(first.schema, batches())

    def close(self) -> None:
        self._cursor.close()
        self._connection.close()


def column(name: str, kind: str) -> Column:
    """A column of a type as DESCRIBE QUERY writes it, such as decimal(10,2)."""
    read, base = backticked(name), re.split(r"[(<]", kind.lower())[0].strip()
    if base == "decimal":
        return Column(name, kind.upper(), f"{read} AS {read}")
    if base in ("array", "map", "struct"):
        return Column(name, "JSON", f"to_json({read}) AS {read}")
    if base == "variant":
        return Column(name, "JSON", f"to_json({read}) AS {read}")
    if base == "binary":
        return Column(name, "VARCHAR", f"hex({read}) AS {read}")
    if base in ("char", "varchar"):
        base = "string"
    if base not in _SAME:
        return Column(name, "VARCHAR", f"CAST({read} AS STRING) AS {read}")
    return Column(name, _SAME[base], f"{read} AS {read}")


def backticked(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def written(value: Any) -> str:
    """A variable as Databricks SQL, in which a backslash escapes."""
    return sql.constant(value, lambda text: "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'")
