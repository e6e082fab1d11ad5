"""What a Delta table holds of one sync: of some keys, or all of it to compare it with a mart. For the latter,
which `retl reconcile` and `retl state rebuild` need, the columns are read once, into a DuckDB of its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from retl.destinations.batch import Batch, Layout, Shape
from retl.destinations.delta.columns import selected, sql_type
from retl.values.sql import literal, quoted

if TYPE_CHECKING:
    from deltalake import DeltaTable

_ROW = quoted("retl row")  # its number in the batch
_SETTINGS = ("memory_limit = '256MB'", "threads = 1", "TimeZone = 'UTC'")


def looked_up(shape: Shape, table: DeltaTable, batch: Batch) -> list[Mapping[str, Any] | None]:
    """Per row of a batch the fields that the table has, or None."""
    import duckdb

    there = {one.name for one in table.schema().fields}
    names = [one.name for one in shape.fields if one.name in there]
    keys = [quoted(one.name) for one in shape.key]
    columns = ", ".join(f"{quoted(one.name)} {sql_type(one.type)}" for one in shape.key)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(f"CREATE TABLE wanted ({_ROW} INTEGER, {columns})")
        marks = ", ".join("?" * (len(keys) + 1))
        rows = [[at, *map(_plain, row)] for at, row in enumerate(batch.keys())]
        connection.executemany(f"INSERT INTO wanted VALUES ({marks})", rows)
        connection.register("theirs", table.scan(columns=[*(one.name for one in shape.key), *names]))
        same = " AND ".join(f"s.{key} = h.{key}" for key in keys)
        listed = "".join(f", h.{quoted(name)}" for name in names)
        joined = f"SELECT s.{_ROW}{listed} FROM wanted s JOIN theirs h ON {same}"
        found = {
            at: dict(zip(names, held, strict=True)) for at, *held in connection.execute(joined).fetchall()
        }
    return [found.get(number) for number in range(len(batch))]


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, UUID) else value


class Holding:
    """The rows of a table at one version."""

    def __init__(self, shape: Shape, table: DeltaTable) -> None:
        import duckdb

        self.version = table.version()
        self._keys = [quoted(one.name) for one in shape.key]
        self._fields = {one.name: quoted(one.name) for one in shape.compared}
        self._shape = shape
        self._folder = Path(tempfile.mkdtemp(prefix="retl-held-"))
        self._con = duckdb.connect(str(self._folder / "held.duckdb"))
        for setting in _SETTINGS:
            self._con.execute(f"SET {setting}")
        there = {one.name for one in table.schema().fields}
        fields = [*shape.key, *shape.fields]
        listed = [one.name for one in fields if one.name in there]
        self._con.register("theirs", table.scan(columns=listed))
        self._con.execute("CREATE TABLE held AS FROM theirs")
        self._con.unregister("theirs")
        for one in fields:
            if one.name not in there:  # `create` will add it
                self._con.execute(f"ALTER TABLE held ADD COLUMN {quoted(one.name)} VARCHAR")

    def compare(self, batch: Batch) -> Iterator[tuple[str, ...] | None]:
        """Per row the fields in which it differs; None if its key is not held."""
        path = batch.file(Layout("parquet"))
        kept = {one.name for one in self._shape.fields if one.nulls == "keep"}
        fields = {} if batch.operation == "delete" else self._fields
        try:
            columns = selected([*self._shape.key, *(self._shape.fields if fields else ())])
            rows = f"SELECT row_number() OVER () AS at, {columns} FROM read_parquet({literal(str(path))})"
            self._con.execute(f"CREATE OR REPLACE TEMP TABLE sent AS {rows}")
        finally:
            path.unlink()
        unequal = (
            f"CASE WHEN s.{f} IS DISTINCT FROM h.{f}{f' AND s.{f} IS NOT NULL' if name in kept else ''}"
            f" THEN {literal(name)} END"
            for name, f in fields.items()
        )
        same = " AND ".join(f"s.{key} = h.{key}" for key in self._keys)
        found = self._con.execute(
            f"SELECT h.{self._keys[0]} IS NOT NULL, [{', '.join(unequal)}]::VARCHAR[]"
            f" FROM sent s LEFT JOIN held h ON {same}"
            " QUALIFY row_number() OVER (PARTITION BY s.at) = 1 ORDER BY s.at"
        )
        for there, names in found.fetchall():
            yield tuple(name for name in names if name is not None) if there else None

    def keys(self) -> Iterator[tuple[str, ...]]:
        texts = ", ".join(f"CAST({key} AS VARCHAR)" for key in self._keys)
        found = self._con.execute(f"SELECT {texts} FROM held")
        while rows := found.fetchmany(10_000):
            yield from rows

    def close(self) -> None:
        self._con.close()
        shutil.rmtree(self._folder, ignore_errors=True)
