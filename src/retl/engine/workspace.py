"""The run's private DuckDB: tables in memory that overflow into the run's own directory.

A DuckDB file would be compressed and written in full, which takes longer than the queries; overflow is
written only if memory is short. Every query of a run happens here, under a memory limit and, after
`harden`, without access to files outside the allowed directories. It keeps nothing between runs.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retl.engine import scratch
from retl.errors import Failure
from retl.observe.signals import Stop
from retl.values.sql import literal, quoted

if TYPE_CHECKING:
    import duckdb

NAME = "retl_workspace"
# How run files are written. USE_TMP_FILE false: DuckDB must write into the existing file, because a new one
# would have other permissions. Dictionaries of keys and hashes take a quarter of the time and save nothing.
RUN_FILE = "FORMAT parquet, PARQUET_VERSION V2, DICTIONARY_SIZE_LIMIT 1000, USE_TMP_FILE false"
_IN_MEMORY = 1 << 20  # bytes of Python rows that become a table without a file
ROW_GROUP = 122_880  # rows that DuckDB gives to one thread at least
MEMORY_LIMIT = "384MB"  # measured: 300 MB are enough for 10 M rows; more is faster only for wide marts


class Workspace:
    """One DuckDB instance in `directory` (which exists and is private). Use `run` in one thread,
    `cursor` in any."""

    def __init__(self, directory: Path, stop: Stop, *, threads: int | None = None) -> None:
        import duckdb

        self.directory = directory
        self.stop = stop
        self._duckdb = duckdb
        self._local = threading.local()
        self.con = duckdb.connect()
        for statement in (
            f"ATTACH ':memory:' AS {NAME}",
            f"USE {NAME}",
            "SET TimeZone = 'UTC'",
            f"SET memory_limit = '{MEMORY_LIMIT}'",
            f"SET temp_directory = {literal(str(directory / 'overflow'))}",
            "SET preserve_insertion_order = false",
            "SET enable_progress_bar = true",  # so that `query_progress` answers
            "SET enable_progress_bar_print = false",  # in an interactive shell DuckDB would draw on stdout
            "SET python_enable_replacements = false",
            "SET autoinstall_known_extensions = false",
            "SET autoload_known_extensions = false",
        ):
            self.con.execute(statement)
        if threads is not None:
            self.con.execute(f"SET threads = {threads}")
        self._may_suit = threads is None

    def harden(self, readable: Sequence[Path]) -> None:
        """Allow access only to the run's directory and `readable`; this cannot be undone."""
        allowed = ", ".join(literal(str(path)) for path in (self.directory, *readable))
        self.con.execute(f"SET allowed_directories = [{allowed}]")
        self.con.execute("SET enable_external_access = false")
        try:
            self.con.execute("SET allowed_configs = ['threads']")
        except self._duckdb.CatalogException:  # DuckDB 1 locks every setting
            self._may_suit = False
        self.con.execute("SET lock_configuration = true")

    def suit(self, rows: int) -> None:
        """Tables have at most `rows` rows from now on. If they are few, one thread does it all: a second one
        has nothing to do, and waking it takes a fifth of the time of a small query."""
        if self._may_suit and rows <= ROW_GROUP:
            self.con.execute("SET threads = 1")

    def unstoppable(self) -> None:
        """Ignore stop requests from now on: only bookkeeping is left."""
        self.stop = Stop()

    def run(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """All rows of one statement. A stop request interrupts it and becomes Stopped."""
        with self.stop.interrupting_queries(self.con.interrupt):
            return self.rows(self.con, sql, parameters)

    def rows(
        self, connection: duckdb.DuckDBPyConnection, sql: str, parameters: Mapping[str, Any] | None = None
    ) -> list[tuple[Any, ...]]:
        """All rows of one statement on a connection of this workspace. Failure OUT_OF_MEMORY, DISK_FULL."""
        try:
            with self._on_disk():
                return connection.execute(sql, dict(parameters or {})).fetchall()
        except self._duckdb.InterruptException:
            self.stop.check()
            raise
        except self._duckdb.OutOfMemoryException as problem:
            raise Failure(
                "OUT_OF_MEMORY",
                "DuckDB needs more memory or temporary disk space than allowed",
                hint=f"free some disk space near {self.directory}; one value of 20 MB or more may also be too"
                " large: leave it out of the mart",
            ) from problem

    def one(self, sql: str, parameters: Mapping[str, Any] | None = None) -> tuple[Any, ...]:
        """The row of a statement that returns exactly one."""
        (row,) = self.run(sql, parameters)
        return row

    def chunks(self, sql: str, size: int) -> Iterator[list[tuple[Any, ...]]]:
        """The rows of a query, `size` at a time. A stop request ends it between two chunks."""
        cursor = self.cursor()
        cursor.execute(sql)
        while chunk := cursor.fetchmany(size):
            self.stop.check()
            yield chunk

    def beside(self) -> Workspace:
        """The same tables on a new connection, for one other thread."""
        other = copy(self)
        other.con = self.con.cursor()
        other.con.execute(f"USE {NAME}")
        return other

    def register(self, name: str, stream: object) -> None:
        """Make an Arrow stream (an object with `__arrow_c_stream__`) a relation of this connection, which can
        be read once. Register it again to read it again."""
        self.con.register(name, stream)

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """This thread's own connection to the workspace."""
        if not hasattr(self._local, "cursor"):
            self._local.cursor = self.con.cursor()
            self._local.cursor.execute(f"USE {NAME}")
        cursor: duckdb.DuckDBPyConnection = self._local.cursor
        return cursor

    def load(
        self, table: str, columns: Mapping[str, str], rows: Iterable[Sequence[Any]], *, lenient: bool = False
    ) -> None:
        """Create `table` from Python rows. Values are passed as text and cast to the types of `columns`, so
        no value becomes a float. Inserting single rows would be 1,000 times slower. `lenient`: a value
        that cannot be cast becomes NULL."""
        names = list(columns)
        target = f"{NAME}.main.{quoted(table)}"
        first, rest = _lines(names, rows)
        if not first:
            typed = ", ".join(f"{quoted(name)} {kind}" for name, kind in columns.items())
            self.run(f"CREATE OR REPLACE TABLE {target} ({typed})")
            return
        text = dict.fromkeys(names, "VARCHAR")
        casts = ", ".join(f"{_cast(quoted(n), t, lenient)} AS {quoted(n)}" for n, t in columns.items())
        made = f"CREATE OR REPLACE TABLE {target} AS SELECT {casts} FROM "
        if rest is None:  # few rows need no file, so a full disk does not hide what was delivered
            shape = literal(json.dumps([text]))
            unnested = f"(SELECT unnest(from_json($rows, {shape}), recursive := true))"
            self.run(made + unnested, {"rows": f"[{b','.join(first).decode()}]"})
            return
        path = self.save(f"{table}.jsonl", (line + b"\n" for line in chain(first, rest)))
        struct = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in names)
        self.run(
            f"{made}read_json({literal(str(path))}, format = 'newline_delimited', columns = {{{struct}}})"
        )
        path.unlink()

    def save(self, name: str, chunks: Iterable[bytes]) -> Path:
        """A new file in the run's directory, private to this user. Failure DISK_FULL."""
        path = self.directory / name
        with (
            self._on_disk(),
            open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file,
        ):
            file.writelines(chunks)
        return path

    @contextmanager
    def _on_disk(self) -> Iterator[None]:
        """Turns an error of our own folder into Failure DISK_FULL; errors of other files stay as they are."""
        try:
            yield
        except (OSError, self._duckdb.IOException) as problem:
            if str(self.directory) not in str(problem):
                raise
            raise scratch.unwritable(self.directory, problem) from problem

    def close(self) -> None:
        """Drop all tables and free the memory. Other connections end too."""
        self.con.close()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _lines(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> tuple[list[bytes], Iterator[bytes] | None]:
    """The rows as JSON with text values: the first ones, and the rest if there are too many for memory."""
    import msgspec

    def line(row: Sequence[Any]) -> bytes:
        record = {n: None if v is None else str(v) for n, v in zip(names, row, strict=True)}
        return msgspec.json.encode(record)

    lines, first, size = map(line, rows), list[bytes](), 0
    for one in lines:
        first.append(one)
        size += len(one)
        if size > _IN_MEMORY:
            return first, lines
    return first, None


def _cast(text: str, to: str, lenient: bool) -> str:
    cast = "TRY_CAST" if lenient else "CAST"
    if to == "BLOB":
        return f"unhex({text})"
    if to.endswith("]"):
        return f"{cast}({cast}({text} AS JSON) AS {to})"
    return f"{cast}({text} AS {to})"
