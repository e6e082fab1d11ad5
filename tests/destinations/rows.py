"""The rows of a change set held as Python tuples: what `retl.batch.Rows` promises, without DuckDB."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from hashlib import sha1
from math import copysign, isfinite
from pathlib import Path
from sys import float_info
from typing import Any, ClassVar
from urllib.parse import quote
from uuid import UUID

from msgspec.structs import replace

from retl.destinations.batch import (
    MODES,
    OPERATION,
    Batch,
    Bends,
    Cell,
    Digest,
    Field,
    FieldsText,
    FieldText,
    Form,
    KeyText,
    Layout,
    Line,
    Mode,
    Piece,
    Seen,
    Shape,
    Size,
    Tuples,
)
from retl.engine.files import PASSING
from retl.values.sql import literal, quoted
from retl.values.storage import storage_type
from retl.values.types import Type
from tests import duckdb_files

Row = tuple[Any, ...]  # the values of Shape.key, then of Shape.fields
# DuckDB writes no half of a surrogate pair: these stand for them, and are as long
_STAND_INS = {0xD800 + n: 0xE000 + n for n in range(0x800)}


class Rows:
    """Hands rows out in every form and remembers in `asked` which forms were asked for.

    In tuples a value of type json is its JSON text, a list a Python list, a timestamp a datetime.
    In CSV the row number counts from 0 at `first`, as in `Outcome.exceptions`. `new` batches say that none
    of their keys was ever delivered, which may be untrue: nothing but speed may follow from it.
    """

    new: ClassVar[bool] = False

    def __init__(
        self,
        shape: Shape,
        rows: Sequence[Row],
        refs: Sequence[str | None] = (),
        left: Sequence[bytes | None] = (),
    ) -> None:
        self.shape = shape
        self.known = list(refs) or [None] * len(rows)
        self.left = list(left) or [None] * len(rows)  # digests of what the target held
        self.rows = list(rows)
        self.asked: set[Form] = set()

    def batch(
        self, operation: Mode = "upsert", first: int = 0, last: int | None = None, run_id: str = "run-1"
    ) -> Batch:
        """The rows from `first` to `last` (the last one if not given) as one batch."""
        last = len(self.rows) - 1 if last is None else last
        new = self.new and operation != "delete"
        return Batch(self, *MODES[operation], run_id, 1, first, last, "2026-11-21T06:00:00Z", new=new)

    def keys(self, first: int, last: int) -> Sequence[Row]:
        return [row[: len(self.shape.key)] for row in self.rows[first : last + 1]]

    def refs(self, first: int, last: int) -> Sequence[str | None]:
        return self.known[first : last + 1]

    def tuples(self, first: int, last: int) -> Sequence[Row]:
        self.asked.add("tuples")
        return self.rows[first : last + 1]

    def cells(self, first: int, last: int, cells: tuple[Cell, ...]) -> Sequence[Row]:
        self.asked.add("cells")
        return self._cells(first, last, cells)

    def _cells(self, first: int, last: int, cells: tuple[Cell, ...]) -> Sequence[Row]:
        fields = (*self.shape.key, *self.shape.fields)
        return [
            tuple(
                _formed(value, field.type, cell)
                for value, field, cell in zip(row, fields, cells, strict=False)
            )
            for row in self.rows[first : last + 1]
        ]

    def literals(self, first: int, last: int, tuples: Tuples, most: int) -> Iterator[bytes]:
        """A piece for each row."""
        self.asked.add("literals")
        for number, row in enumerate(self._cells(first, last, tuples.cells), 1):
            values = map(_literal, [number, *row] if tuples.numbered else row)
            yield f"({','.join(values)})".encode()

    def bent(self, first: int, last: int, bends: Mapping[int, Bends]) -> Sequence[int]:
        rows = enumerate(self.rows[first : last + 1])
        return [n for n, row in rows if any(_is_bent(row[at], one) for at, one in bends.items())]

    def documents(self, first: int, last: int) -> Sequence[Row]:
        self.asked.add("documents")
        return [
            (*row[: len(self.shape.key)], document(self.shape, row)) for row in self.rows[first : last + 1]
        ]

    def lines(self, first: int, last: int, line: Line) -> Sequence[str]:
        self.asked.add("documents")
        return [self._line(n, line) for n in range(first, last + 1)]

    def tuples_of(self, first: int, last: int, lines: tuple[Line, ...]) -> Sequence[tuple[str, ...]]:
        return list(zip(*(self.lines(first, last, line) for line in lines), strict=True))

    def _line(self, number: int, line: Line) -> str:
        row, width = self.rows[number], len(self.shape.key)

        def piece(one: Piece) -> str:
            match one:
                case KeyText(index, "json"):
                    return _json(row[index], self.shape.key[index].type)
                case KeyText(index, "text"):
                    return str(row[index])
                case KeyText(index):
                    return quote(str(row[index]), safe="")
                case FieldText(index):
                    return _json(row[width + index], self.shape.fields[index].type)
                case FieldsText():
                    return document(self.shape, row)
                case Size(of):
                    return str(len(self._line(number, of).encode(errors="surrogatepass")))
                case Seen(size):
                    seen = self.left[number]
                    known = "!" * 2 * size if seen is None or len(seen) != size else seen.hex()
                    return "-" * 2 * size if seen is None else known
                case Digest(of):
                    return sha1(self._line(number, of).encode(), usedforsecurity=False).hexdigest()[:16]
                case str():
                    return one

        return "".join(map(piece, line))

    def seen(self, first: int, last: int) -> Sequence[tuple[Any, ...]]:
        return [(one,) for one in self.left[first : last + 1]]

    def undo(self, first: int, last: int) -> Sequence[tuple[str, str | None, bytes | None]]:
        raise AssertionError("these rows are not those of a rollback")

    def csv(self, first: int, last: int, *, delete: bool, numbered: bool) -> Iterator[bytes]:
        self.asked.add("csv")
        fields = self.shape.key if delete else self.shape.key + self.shape.fields
        for number, row in enumerate(self.rows[first : last + 1]):
            cells = [_cell(value, field.type) for value, field in zip(row, fields, strict=False)]
            numbers = [str(number)] if numbered else []
            yield (",".join([*numbers, *cells]) + "\n").encode(errors="surrogatepass")

    def file(self, first: int, last: int, layout: Layout, *, delete: bool) -> Path:
        keys_only = delete and layout.format in ("ndjson", "json")
        fields = self.shape.key if keys_only else self.shape.key + self.shape.fields
        operation = f'"{OPERATION}":"{layout.operation}",' if layout.operation else ""
        self.asked.add("file")
        lines = []
        for row in self.rows[first : last + 1]:
            values = [*row[: len(self.shape.key)], *[None] * len(self.shape.fields)] if delete else row
            if layout.format == "parquet":  # read_json takes a number through a double, and a text not
                values = [str(value) if isinstance(value, Decimal) else value for value in values]
            cells = zip(fields, values, strict=False)
            members = ",".join(f"{json.dumps(f.name)}:{_json(value, f.type)}" for f, value in cells)
            lines.append("{" + operation + members + "}\n")
        text = "".join(lines)
        path = Path(tempfile.mkdtemp(), f"rows.{layout.format}")
        path.write_bytes(("[" + ",".join(lines) + "]\n" if layout.format == "json" else text).encode())
        if layout.format == "parquet":
            _as_parquet(path, fields, layout)
        return path

    def parquet(self, first: int, last: int, *, delete: bool) -> Path:
        self.asked.add("parquet")
        fields = self.shape.key if delete else self.shape.key + self.shape.fields
        named = [replace(one, name=f"v{n}") for n, one in enumerate(fields)]
        given = [row[: len(fields)] for row in self.rows[first : last + 1]]
        values = [[str(one) if isinstance(one, Decimal) else one for one in row] for row in given]
        lines = [
            "{"
            + ",".join(f'"{f.name}":{_json(one, f.type)}' for f, one in zip(named, row, strict=True))
            + "}\n"
            for row in values
        ]
        path = Path(tempfile.mkdtemp(), "rows.parquet")
        path.write_bytes("".join(lines).translate(_STAND_INS).encode())
        _as_parquet(path, named, Layout("parquet"))
        data = path.read_bytes()
        for surrogate, stand_in in _STAND_INS.items():
            data = data.replace(chr(stand_in).encode(), chr(surrogate).encode(errors="surrogatepass"))
        path.write_bytes(data)
        return path


def _as_parquet(path: Path, fields: Sequence[Field], layout: Layout) -> None:
    """JSON lines as Parquet; their values are those of the contract's types."""
    types = {OPERATION: "VARCHAR"} if layout.operation else {}
    types |= {f.name: "VARCHAR" if f.type.name == "json" else storage_type(f.type) for f in fields}
    read_as = {name: "VARCHAR" if kind.startswith("DECIMAL") else kind for name, kind in types.items()}
    read_as |= {f.name: "JSON" for f in fields if f.type.name == "json"}
    columns = ", ".join(f"{literal(name)}: {literal(kind)}" for name, kind in read_as.items())
    casts = ", ".join(f"{quoted(name)}::{kind} AS {quoted(name)}" for name, kind in types.items())
    with duckdb_files.scratch() as connection:
        connection.execute("SET timezone = 'UTC'")
        read = f"read_json({literal(str(path))}, format = 'newline_delimited', columns = {{{columns}}})"
        connection.execute(f"CREATE TEMP TABLE made AS SELECT {casts} FROM {read}")
        connection.execute(f"COPY made TO {literal(str(path))} ({PASSING})")


def _formed(value: Any, type_: Type, cell: Cell) -> Any:
    """A value as `Batch.cells` gives it."""
    match value:
        case _ if value is None or cell == "value":
            return value
        case _ if cell == "double":
            return float(value)
        case _ if cell == "stored":
            return _stored(value, type_)
        case Decimal():
            return format(value, f".{type_.decimal_places}f")
        case list():
            return _json(value, type_)
        case datetime() if cell == "utc":
            return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")
        case datetime() if type_.name == "timestamptz":
            return value.astimezone(UTC).isoformat(" ", "microseconds")
        case bool() | float():
            return _json(value, type_)
        case _:
            return str(value)


def _stored(value: Any, type_: Type) -> Any:
    match value:
        case datetime():
            return (
                value - datetime(1970, 1, 1, tzinfo=UTC if value.tzinfo else None)
            ) // timedelta.resolution
        case date():
            return (value - date(1970, 1, 1)).days
        case Decimal():
            return int(format(value, f".{type_.decimal_places}f").replace(".", ""))
        case UUID():
            return str(value)
        case list():
            return [None if one is None else _stored(one, type_.item) for one in value]
        case _:
            return value


def _literal(value: Any) -> str:
    match value:
        case None:
            return "NULL"
        case float() if not isfinite(value):
            return f"'{value}'"
        case bool() | int() | float():
            return repr(value + 0)
        case _:
            return "'" + str(value).replace("'", "''") + "'"


def _is_bent(value: Any, bends: Bends) -> bool:
    if value is None:
        return bends.null
    if bends.zero or bends.subnormal:
        tiny = bends.subnormal and 0 < abs(value) < float_info.min
        return bool(tiny or (value == 0 and copysign(1, value) < 0))
    if bends.ascii and not value.isascii():
        return True
    if bends.units is not None:
        most, room = bends.units * 2, len(value.encode("utf-16le", "surrogatepass"))
        return len(value.rstrip(" ").encode("utf-16le", "surrogatepass")) <= most < room
    if bends.known is not None:
        return value not in bends.known
    if bends.characters is not None:
        return len(value.rstrip(" ")) <= bends.characters < len(value)
    if bends.bytes is not None:
        return len(_sent(value.rstrip(" "))) <= bends.bytes < len(_sent(value))
    return False


def _sent(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def document(shape: Shape, row: Row) -> str:
    """The JSON object of a row's fields; a NULL field with `nulls: keep` is left out."""
    values = zip(shape.fields, row[len(shape.key) :], strict=True)
    parts = [
        f"{json.dumps(field.name, ensure_ascii=False)}:{_json(value, field.type)}"
        for field, value in values
        if value is not None or field.nulls == "clear"
    ]
    return "{" + ",".join(parts) + "}"


def plain(value: Any, type_: Type) -> Any:
    """A value as its JSON says it, read back exactly: what targets are compared in."""
    return json.loads(_json(value, type_), parse_float=Decimal)


def _json(value: Any, type_: Type) -> str:
    match value:
        case None | bool() | int() | float():
            return json.dumps(value)
        case Decimal():
            return format(value, "f")
        case list():
            assert type_.items is not None
            return "[" + ",".join(_json(item, Type(type_.items)) for item in value) + "]"
        case _ if type_.name == "json":
            return str(value)
        case _:
            return json.dumps(_text(value), ensure_ascii=False)


def _text(value: Any) -> str:
    match value:
        case datetime():
            utc = value.astimezone(UTC) if value.tzinfo else value
            return utc.replace(tzinfo=None).isoformat() + "Z"
        case date():
            return value.isoformat()
        case _:
            return str(value)


def _cell(value: Any, type_: Type) -> str:
    """NULL is nothing, a number is bare, everything else is quoted."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case int() | float() | Decimal():
            return _json(value, type_)
        case list():  # PostgreSQL's array literal
            parts = ["NULL" if item is None else _element(_text(item)) for item in value]
            text = "{" + ",".join(parts) + "}"
        case datetime() if type_.name == "timestamp":
            text = str(value)
        case _:
            text = _text(value)
    return '"' + text.replace('"', '""') + '"'


def _element(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
