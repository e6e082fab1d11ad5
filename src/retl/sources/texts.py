"""Rows as the texts that a server wrote: CSV files in the run's folder, which DuckDB reads with the columns'
types. It keeps a whole file in memory if values have line breaks, so no file is large.

Every value passes as the server's own text, so no client library can round it. A text that a column's type
has no room for becomes NULL there and is reported with the row (MISFIT); it is never bent to fit.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path

from msgspec import Struct

from retl.engine import scratch
from retl.engine.sql_text import Query
from retl.engine.workspace import Workspace
from retl.errors import DefinitionError, SourceError
from retl.values.sql import literal, quoted

MISFIT = "retl misfit"  # of a row: the first column with a text that its type has no room for
_END = "retl end"  # a last column that is always 1: a row of one NULL would be an empty line
_LONG = 1_000_000  # bytes of a line from which DuckDB needs a larger buffer than its own
_LONGEST = 100_000_000  # bytes of a line: its buffers must fit into the workspace's memory
_PART = 64_000_000  # bytes of a file, but for its last row
_CSV = (
    "header = false, nullstr = '', quote = '\"', escape = '\"', delim = ',', new_line = '\\n',"
    " allow_quoted_nulls = false, auto_detect = false, strict_mode = true"
)


class Column(Struct, frozen=True):
    """`fits`: a SQL predicate over `{x}`, the text: such texts are values of the type if they can be cast.
    None: all texts of the server are. `text`: SQL for what is cast."""

    name: str
    type: str
    fits: str | None = None
    text: str = "{x}"

    @property
    def value(self) -> str:
        name = quoted(self.name)
        if self.fits is None:
            return name
        made = f"CASE WHEN {self.fits} THEN TRY_CAST({self.text} AS {self.type}) END"
        return made.replace("{x}", name)


class Texts:
    """The rows of some columns, in files that only this user can read."""

    def __init__(self, workspace: Workspace, columns: Sequence[Column]) -> None:
        self._workspace = workspace
        self._columns = columns
        self._longest = self.count = 0
        self._broken = False  # a row has a line break in a value
        self._paths = list[Path]()
        with _on_disk(workspace.directory):
            self._file, self._size = self._part(), 0

    def write(self, lines: Iterable[bytes]) -> None:
        """Append rows: CSV lines that end with `,1` and a line feed. A stop request ends it. Failure
        DISK_FULL; SourceError if a row is too long to be read."""
        stop, longest, broken, count = self._workspace.stop, self._longest, self._broken, self.count
        size = self._size
        with _on_disk(self._workspace.directory):
            for line in lines:
                if size > _PART:
                    self._file.close()
                    self._file, size = self._part(), 0
                self._file.write(line)
                count += 1
                size += len(line)
                if len(line) > longest:
                    longest = len(line)
                if not broken:
                    broken = line.count(b"\n") > 1
                if not count & 0xFFF:
                    stop.check()
            self._file.flush()
        self._longest, self._broken, self.count, self._size = longest, broken, count, size
        if longest > _LONGEST:
            raise SourceError(
                "MART_UNREADABLE",
                f"a row of the source has more than {_LONGEST // 1_000_000} MB",
                hint="leave the largest column out of the contract",
            )

    def query(self, origin: str, *, misfit: bool) -> Query:
        """The rows so far; with `misfit` also the column MISFIT."""
        types = {one.name: "VARCHAR" if one.fits is not None else one.type for one in self._columns}
        shape = ", ".join(f"{literal(n)}: {literal(t)}" for n, t in {**types, _END: "UTINYINT"}.items())
        options = f", parallel = {not self._broken}"
        if self._longest > _LONG:
            options += f", max_line_size = {self._longest + 1024}, buffer_size = {2 * self._longest + 4096}"
        listed = [f"{one.value} AS {quoted(one.name)}" for one in self._columns]
        listed += [f"{self._misfit()} AS {quoted(MISFIT)}"] if misfit else []
        files = ", ".join(literal(str(path)) for path in self._paths)
        reader = f"read_csv([{files}], columns = {{{shape}}}, {_CSV}{options})"
        return Query(f"SELECT {', '.join(listed)} FROM {reader}", {}, origin, count=self.count)

    def _part(self) -> BufferedWriter:
        """A new file."""
        file, name = tempfile.mkstemp(".csv", "source-", self._workspace.directory)
        self._paths.append(Path(name))
        return os.fdopen(file, "wb")

    def _misfit(self) -> str:
        cases = " ".join(
            f"WHEN {quoted(one.name)} IS NOT NULL AND {one.value} IS NULL THEN {literal(one.name)}"
            for one in self._columns
            if one.fits is not None
        )
        return f"CASE {cases} END" if cases else "CAST(NULL AS VARCHAR)"

    def close(self) -> None:
        self._file.close()
        for path in self._paths:
            path.unlink(missing_ok=True)


@contextmanager
def _on_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise scratch.unwritable(folder, problem) from problem


def distinct(names: Sequence[str], origin: str) -> None:
    """DefinitionError COLUMN_NAME for two columns of one name; DuckDB ignores case."""
    known = set[str]()
    for name in names:
        if name.lower() in known:
            raise DefinitionError(
                "COLUMN_NAME",
                f"{origin} has two columns {name!r}: upper and lower case make no difference here",
                hint="use `sql`, and give one of them another name",
            )
        known.add(name.lower())


def line(values: Sequence[bytes | None]) -> bytes:
    """A row for `Texts.write`."""
    return (
        b",".join([b'"' + v.replace(b'"', b'""') + b'"' if v is not None else b"" for v in values]) + b",1\n"
    )
