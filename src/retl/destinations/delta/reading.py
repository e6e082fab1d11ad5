"""What a Delta table holds of one sync, at one version."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from retl.destinations import held
from retl.destinations.batch import Batch, Layout, Shape
from retl.destinations.delta.columns import selected
from retl.values.sql import literal

if TYPE_CHECKING:
    import duckdb
    from deltalake import DeltaTable


def looked_up(shape: Shape, table: DeltaTable, batch: Batch) -> list[Mapping[str, Any] | None]:
    """Per row of a batch the fields that the table has, or None."""
    there = {one.name for one in table.schema().fields}
    names = [one.name for one in shape.fields if one.name in there]
    columns = [*(one.name for one in shape.key), *names]
    return held.looked_up(shape, batch, names, lambda into: _read(into, table, columns))


def _read(into: duckdb.DuckDBPyConnection, table: DeltaTable, columns: list[str]) -> str:
    into.register("theirs", table.scan(columns=columns))
    return "FROM theirs"


class Holding(held.Held):
    """The rows of a table at one version."""

    def __init__(self, shape: Shape, table: DeltaTable) -> None:
        there = {one.name for one in table.schema().fields}
        listed = [one.name for one in (*shape.key, *shape.fields) if one.name in there]
        super().__init__(shape, there, lambda into: _read(into, table, listed))

    def differing(self, batch: Batch) -> Iterator[tuple[str, ...] | None]:
        """Per row the fields in which it differs; None if its key is not held."""
        path = batch.file(Layout("parquet"))
        gone = batch.operation == "delete"
        columns = selected([*self._shape.key, *(() if gone else self._shape.fields)])
        try:
            yield from self.compare(
                f"SELECT {columns} FROM read_parquet({literal(str(path))})", keys_only=gone
            )
        finally:
            path.unlink()
