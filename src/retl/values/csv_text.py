"""The CSV text of a value, as PostgreSQL's COPY reads it, and how DuckDB reads and writes such files: without
a header, and NULL is empty and not quoted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from retl.values.json_text import _joined
from retl.values.sql import literal
from retl.values.types import Type

_LAYOUT = {"header": "false", "delim": "','", "quote": "'\"'", "escape": "'\"'", "nullstr": "''"}
WRITTEN = ", ".join(["FORMAT csv, FORCE_QUOTE *", *(f"{name} {value}" for name, value in _LAYOUT.items())])
_READ = {**_LAYOUT, "auto_detect": "false", "allow_quoted_nulls": "false"}


def csv_sql(type: Type, expr: str) -> str:
    """SQL for a value's text in a CSV for PostgreSQL's COPY: array literals for lists, text for json."""
    if type.name == "list":
        escaped = r"replace(replace(CAST(e AS VARCHAR), '\', '\\'), '" + '"' + r"""', '\"')"""
        return _joined(expr, f"coalesce('\"' || {escaped} || '\"', 'NULL')", "{}")
    return f"CAST({expr} AS VARCHAR)" if type.name == "json" else expr


def is_text(type: Type) -> bool:
    """Whether its CSV text must be quoted, so that it differs from NULL and from end-of-data marks."""
    return type.name in ("string", "json", "list")


def reading(
    paths: Sequence[Path], columns: Mapping[str, str], longest: int, *, filename: bool = False
) -> str:
    """SQL of the rows of such files: columns by name, with their DuckDB types. `longest`: bytes of a line.
    `filename`: one column more, the path that a row comes from."""
    files = ", ".join(literal(str(one)) for one in paths)
    named = ", ".join(f"{literal(name)}: {literal(type)}" for name, type in columns.items())
    options = _READ | {"max_line_size": str(longest), "filename": str(filename).lower()}
    listed = ", ".join(f"{name} = {value}" for name, value in options.items())
    return f"read_csv([{files}], columns = {{{named}}}, {listed})"


class Parts:
    """A CSV in parts of whole rows, each of about `size` bytes. DuckDB 2.0 keeps a file in memory that it
    reads with one thread, and cuts a large one in the middle of a value if it may use several. Read each part
    to its end before the next one."""

    def __init__(self, chunks: Iterable[bytes], size: int) -> None:
        self._chunks, self._size = iter(chunks), size
        self._rest: bytes | None = None

    def __iter__(self) -> Iterator[Iterator[bytes]]:
        self._rest = next(self._chunks, None)
        while self._rest is not None:
            yield self._part()

    def _part(self) -> Iterator[bytes]:
        size = quotes = 0
        while (chunk := self._rest) is not None:
            end = _row_end(chunk, quotes) if size + len(chunk) >= self._size else 0
            self._rest = (chunk[end:] if end else b"") or next(self._chunks, None)
            yield chunk[:end] if end else chunk
            if end:
                return
            size, quotes = size + len(chunk), quotes + chunk.count(b'"')


def _row_end(chunk: bytes, quotes: int) -> int:
    """Where the last row that ends in this chunk has its end, 0 if none does; `quotes` came before it. A line
    break after an odd number of quotes is one in a value."""
    quotes, end = quotes + chunk.count(b'"'), len(chunk)
    while (at := chunk.rfind(b"\n", 0, end)) >= 0:
        quotes, end = quotes - chunk.count(b'"', at, end), at
        if quotes % 2 == 0:
            return at + 1
    return 0
