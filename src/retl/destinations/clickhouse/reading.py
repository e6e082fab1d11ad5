"""What a ClickHouse table holds of one sync: rows of some keys, or all of it, as readers see them (FINAL)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retl.destinations import held
from retl.destinations.batch import Batch, Field, Shape
from retl.destinations.clickhouse import columns
from retl.destinations.clickhouse.connection import Requests
from retl.destinations.clickhouse.table import Table
from retl.destinations.held import Held, sql_type
from retl.net.clickhouse import quoted
from retl.values.sql import literal
from retl.values.sql import quoted as duckdb_quoted
from retl.values.types import Type

if TYPE_CHECKING:
    import duckdb

_AT_ONCE = 500  # keys of a query
_CAST = ("uuid", "timestamp", "timestamptz", "list")  # what Parquet has in other types than ours


def selected(fields: Sequence[Field], path: Path, *, numbered: bool) -> str:
    """SQL of columns of a Parquet file, in the types in which they are compared; `numbered`: there they are
    v0, v1 …"""
    listed = []
    for n, one in enumerate(fields):
        at, name = f"v{n}" if numbered else duckdb_quoted(one.name), duckdb_quoted(one.name)
        listed.append(f"{_compared(one.type, at)} AS {name}")
    return f"SELECT {', '.join(listed)} FROM read_parquet({literal(str(path))})"


def _compared(type_: Type, at: str) -> str:
    """A value in the type in which it is compared. ClickHouse has only times with a zone, here UTC."""
    if type_.name not in _CAST:
        return at
    kind = sql_type(type_)
    if "timestamp" in (type_.name, type_.items):
        at = f"CAST({at} AS {kind.replace('TIMESTAMP', 'TIMESTAMPTZ')})"
    return f"CAST({at} AS {kind})"


def looked_up(requests: Requests, table: Table, shape: Shape, batch: Batch) -> list[Mapping[str, Any] | None]:
    """Per row of a batch the fields that the table has, or None."""
    fields, keys = _there(table, shape), batch.keys()
    names = [one.name for one in fields[len(shape.key) :]]
    with _folder() as folder:
        paths = []
        for first in range(0, len(keys), _AT_ONCE):
            paths.append(folder / f"{first}.parquet")
            which = _among(table, shape, keys[first : first + _AT_ONCE])
            requests.fetch(f"{_select(table, fields)} WHERE {which}", paths[-1])

        def read(_: duckdb.DuckDBPyConnection) -> str:
            return " UNION ALL ".join(selected(fields, path, numbered=False) for path in paths)

        return held.looked_up(shape, batch, names, read)


def holding(requests: Requests, table: Table, shape: Shape) -> Held:
    """All rows, read once."""
    fields = _there(table, shape)
    with _folder() as folder:
        path = folder / "all.parquet"
        requests.fetch(_select(table, fields), path)
        names = {one.name for one in fields}
        return Held(shape, names, lambda _: selected(fields, path, numbered=False))


def _there(table: Table, shape: Shape) -> list[Field]:
    """Key and fields, without those that `create` has still to add."""
    return [one for one in (*shape.key, *shape.fields) if one.name in table.columns]


def _select(table: Table, fields: Sequence[Field]) -> str:
    return f"SELECT {', '.join(quoted(one.name) for one in fields)} FROM {table.name.sql} FINAL"


def _among(table: Table, shape: Shape, keys: Sequence[tuple[Any, ...]]) -> str:
    """Whether a row has one of these keys. What the column's type cannot hold is NULL there."""
    types = [columns.peeled(table.columns[one.name].type) for one in shape.key]
    rows = [
        ", ".join(
            f"accurateCastOrNull({_text(value)}, {_text(kind)})"
            for value, kind in zip(row, types, strict=True)
        )
        for row in keys
    ]
    listed = ", ".join(quoted(one.name) for one in shape.key)
    return f"({listed}) IN ({', '.join(f'({row})' for row in rows)})"


def _text(value: Any) -> str:
    """A value as a literal of ClickHouse."""
    match value:
        case bool():
            text = str(value).lower()
        case datetime():
            zoned = value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
            text = zoned.isoformat(" ", "microseconds")
        case Decimal():
            text = format(value, "f")
        case _:
            text = str(value)
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder that is private to this user, for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="retl-clickhouse-") as folder:
        os.chmod(folder, 0o700)
        yield Path(folder)
