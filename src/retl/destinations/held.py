"""What a table holds of one sync: of some keys, or all of it to compare it with a mart. For the latter, which
`retl reconcile` and `retl state rebuild` need, it is read once, into a DuckDB of its own.

Shared by targets that give whole columns and cannot compare by themselves. How they are read is theirs.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar
from uuid import UUID

from retl.destinations.batch import Batch, Shape
from retl.values.sql import literal, quoted
from retl.values.storage import storage_type
from retl.values.types import Type

if TYPE_CHECKING:
    import duckdb

    Reading = Callable[[duckdb.DuckDBPyConnection], str]  # makes the columns known; SQL of them

_ROW = quoted("retl row")  # its number in the batch
_SETTINGS = ("memory_limit = '256MB'", "threads = 1", "TimeZone = 'UTC'")
_TEXTS = ("string", "uuid", "json")


class Closable(Protocol):
    def close(self) -> None: ...


H = TypeVar("H", bound=Closable | None)


class Latest(Generic[H]):
    """What a table holds: read when it is first asked for, and again once the table has another version."""

    def __init__(self) -> None:
        self._read: tuple[object, H] | None = None

    def of(self, version: object, read: Callable[[], H]) -> H:
        """What it holds at this version; `read` reads it."""
        if self._read is None or self._read[0] != version:
            self.close()
            self._read = version, read()
        return self._read[1]

    def close(self) -> None:
        """Forget it."""
        read, self._read = self._read, None
        if read is not None and read[1] is not None:
            read[1].close()


def sql_type(type_: Type) -> str:
    """The type of DuckDB in which values are compared."""
    if type_.name == "list":
        return f"{sql_type(type_.item)}[]"
    return "VARCHAR" if type_.name in _TEXTS else storage_type(type_)


def looked_up(
    shape: Shape, batch: Batch, names: Collection[str], reading: Reading
) -> list[Mapping[str, Any] | None]:
    """Per row of a batch these fields, or None. `reading` has at least the rows with its keys."""
    import duckdb

    keys = [quoted(one.name) for one in shape.key]
    columns = ", ".join(f"{quoted(one.name)} {sql_type(one.type)}" for one in shape.key)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(f"CREATE TABLE wanted ({_ROW} INTEGER, {columns})")
        marks = ", ".join("?" * (len(keys) + 1))
        rows = [[at, *map(_plain, row)] for at, row in enumerate(batch.keys())]
        connection.executemany(f"INSERT INTO wanted VALUES ({marks})", rows)
        theirs = reading(connection)
        same = " AND ".join(f"s.{key} = h.{key}" for key in keys)
        listed = "".join(f", h.{quoted(name)}" for name in names)
        joined = f"SELECT s.{_ROW}{listed} FROM wanted s JOIN ({theirs}) h ON {same}"
        found = {
            at: dict(zip(names, held, strict=True)) for at, *held in connection.execute(joined).fetchall()
        }
    return [found.get(number) for number in range(len(batch))]


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, UUID) else value


class Held:
    """The rows of a table at one moment."""

    def __init__(self, shape: Shape, there: Collection[str], reading: Reading) -> None:
        """`there`: the columns that the table has; `create` will add the others."""
        import duckdb

        self._keys = [quoted(one.name) for one in shape.key]
        self._fields = {one.name: quoted(one.name) for one in shape.compared}
        self._shape = shape
        self._folder = Path(tempfile.mkdtemp(prefix="retl-held-"))
        self._con = duckdb.connect(str(self._folder / "held.duckdb"))
        for setting in _SETTINGS:
            self._con.execute(f"SET {setting}")
        self._con.execute(f"CREATE TABLE held AS {reading(self._con)}")
        for one in (*shape.key, *shape.fields):
            if one.name not in there:
                self._con.execute(f"ALTER TABLE held ADD COLUMN {quoted(one.name)} VARCHAR")

    def compare(self, rows: str, *, keys_only: bool) -> Iterator[tuple[str, ...] | None]:
        """Per row (SQL of key and fields, in their order) the fields in which it differs; None if its key is
        not held."""
        kept = {one.name for one in self._shape.fields if one.nulls == "keep"}
        fields = {} if keys_only else self._fields
        self._con.execute(
            f"CREATE OR REPLACE TEMP TABLE sent AS SELECT row_number() OVER () AS at, * FROM ({rows})"
        )
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
