"""Rows of a change set as SQL writes them behind VALUES, and which of their values a column would bend.

Both are made by SQL: Python would take ten times as long for the texts, under its one lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future

from msgspec import Struct, field

from retl.destinations.batch import Bends, Shape, Tuples
from retl.engine.workspace import Workspace
from retl.errors import InvariantBroken
from retl.values.cells import literal_sql
from retl.values.sql import literal

Piece = tuple[bytes, int]  # tuples, and how many
_BYTES = 4 << 20  # of a slice, about
_KEPT = 2  # slices that are made before they are asked for


class Literals(Struct):
    """The rows of a table of the workspace. Thread-safe."""

    workspace: Workspace
    table: str
    shape: Shape
    rows: int  # in all
    slice: Callable[[str], int]  # how many rows of such a text are read at a time: they have about _BYTES
    ahead: Executor
    _made: dict[tuple[str, int, int, int], Future[list[Piece]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def pieces(self, first: int, last: int, tuples: Tuples, most: int) -> Iterator[bytes]:
        """See `Batch.literals`. The next slice, which may be of the next batch, is made while this one is
        sent. InvariantBroken ROWS_LACKING if a position has no row."""
        size = self.slice(tuple_sql(self.shape, tuples, 0))
        at_once = max(1, size * most // (2 * _BYTES))

        def begun(first: int, begin: int, end: int) -> Future[list[Piece]]:
            return self._begun(tuple_sql(self.shape, tuples, first), begin, end, at_once, most)

        for begin in range(first, last + 1, size):
            end = min(begin + size - 1, last)
            made = begun(first, begin, end)
            if end < last:
                begun(first, end + 1, min(end + size, last))
            elif last + 1 < self.rows:
                begun(last + 1, last + 1, min(last + size, last + last - first + 1))
            found = made.result()
            if sum(count for _, count in found) != end - begin + 1:
                raise InvariantBroken("ROWS_LACKING", f"positions {begin} to {end} do not all have a row")
            with self._lock:
                self._made = {key: one for key, one in self._made.items() if one is not made}
            yield from (piece for piece, _ in found)

    def _begun(self, line: str, begin: int, end: int, at_once: int, most: int) -> Future[list[Piece]]:
        """The pieces of one slice."""
        with self._lock:
            if (line, begin, end, most) not in self._made:
                while len(self._made) >= _KEPT:
                    self._made.pop(next(iter(self._made)))
                made = self.ahead.submit(self._fetch, line, begin, end, at_once, most)
                self._made[line, begin, end, most] = made
            return self._made[line, begin, end, most]

    def _fetch(self, line: str, begin: int, end: int, at_once: int, most: int) -> list[Piece]:
        """So many rows to a piece; if one is too large then, by the sizes of rows, which takes longer."""
        lines = f"SELECT pos, {line} AS line FROM {self.table} WHERE pos BETWEEN {begin} AND {end}"
        found = self._joined(f"SELECT line, pos, (pos - {begin}) // {at_once} AS piece FROM ({lines})")
        if any(len(piece) > most for piece, _ in found):
            small = f"strlen(line) < {most // 2}"
            summed = f"sum(CASE WHEN {small} THEN strlen(line) + 1 END) OVER (ORDER BY pos)"
            piece = f"CASE WHEN {small} THEN -1 - {summed} // {most // 2} ELSE pos END"
            found = self._joined(f"SELECT line, pos, {piece} AS piece FROM ({lines})")
        return found

    def _joined(self, lines: str) -> list[Piece]:
        joined = "encode(string_agg(line, ',' ORDER BY pos)), count(*)"
        sql = f"SELECT {joined} FROM ({lines}) GROUP BY piece ORDER BY min(pos)"
        return self.workspace.rows(self.workspace.cursor(), sql)


def tuple_sql(shape: Shape, tuples: Tuples, first: int) -> str:
    """SQL of a row of the batch that begins at position `first`."""
    columns = [(f"k{i}", one.type) for i, one in enumerate(shape.key)]
    columns += [(f"f{i}", one.type) for i, one in enumerate(shape.fields)]
    made = [f"pos - {first - 1}"] if tuples.numbered else []
    made += [literal_sql(kind, cell, at) for (at, kind), cell in zip(columns, tuples.cells, strict=False)]
    listed = ", ',', ".join(made)
    return f"concat('(', {listed}, ')')"


_LEAST_NORMAL = 2.2250738585072014e-308
_UNITS = "(length({0}) + length(regexp_replace({0}, '[^\\x{{10000}}-\\x{{10FFFF}}]', '', 'g')))"


def bends_sql(shape: Shape, bends: Mapping[int, Bends]) -> str:
    """The predicate of a row that has a value which bends."""
    names = [f"k{i}" for i in range(len(shape.key))] + [f"f{i}" for i in range(len(shape.fields))]
    return " OR ".join(f"({_bent(one, names[n])})" for n, one in bends.items())


def _bent(bends: Bends, at: str) -> str:
    found, short = list[str](), f"rtrim({at}, ' ')"
    if bends.null:
        found.append(f"{at} IS NULL")
    if bends.zero:
        found.append(f"({at} = 0 AND signbit({at}))")
    if bends.known is not None:
        listed = ", ".join(map(literal, sorted(bends.known)))
        found.append(f"{at} NOT IN ({listed})" if listed else f"{at} IS NOT NULL")
    if bends.subnormal:
        found.append(f"({at} <> 0 AND abs({at}) < {_LEAST_NORMAL!r})")
    if bends.ascii:
        found.append(f"strlen({at}) <> length({at})")
    for most, size in ((bends.characters, "length({})"), (bends.bytes, "strlen({})"), (bends.units, _UNITS)):
        if most is not None:
            found.append(f"({size.format(at)} > {most} AND {size.format(short)} <= {most})")
    return " OR ".join(found)
