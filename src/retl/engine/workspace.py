"""The run's private DuckDB: tables in memory that overflow into the run's own directory, gone with it.

A file of DuckDB's would be compressed and written out in full, which took longer than the queries; what
overflows is written only where memory is short. Every query of a run happens here, under a memory limit
and, once `harden` was called, without any access to files outside the allowed directories. It keeps
nothing between runs.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retl.errors import Failure
from retl.observe.signals import Stop
from retl.values.sql import literal, quoted

if TYPE_CHECKING:
    import duckdb

NAME = "retl_workspace"
# How run files are written, all into the file that is there already: by itself DuckDB puts another in its
# place, with rights of its own. Dictionaries of keys and hashes are a quarter of the time and help nobody.
RUN_FILE = "FORMAT parquet, PARQUET_VERSION V2, DICTIONARY_SIZE_LIMIT 1000, USE_TMP_FILE false"
MEMORY_LIMIT = "384MB"  # measured: 10 M rows pass through 300 MB; more buys speed on wide marts only


class Workspace:
    """One DuckDB instance in `directory` (which exists and is private). Use `run` from one thread,
    `cursor` anywhere."""

    def __init__(self, directory: Path, stop: Stop) -> None:
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
            "SET enable_progress_bar = false",  # where DuckDB takes us for interactive it draws on stdout
            "SET python_enable_replacements = false",
            "SET autoinstall_known_extensions = false",
            "SET autoload_known_extensions = false",
        ):
            self.con.execute(statement)

    def harden(self, readable: Sequence[Path]) -> None:
        """From here on only the run's directory and `readable` can be touched, for good."""
        allowed = ", ".join(literal(str(path)) for path in (self.directory, *readable))
        self.con.execute(f"SET allowed_directories = [{allowed}]")
        self.con.execute("SET enable_external_access = false")
        self.con.execute("SET lock_configuration = true")

    def unstoppable(self) -> None:
        """From here on a stop request interrupts nothing: what is left is bookkeeping."""
        self.stop = Stop()

    def run(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """All rows of one statement. A stop request interrupts it and becomes Stopped."""
        with self.stop.interrupting(self.con.interrupt):
            try:
                return self.con.execute(sql, dict(parameters or {})).fetchall()
            except self._duckdb.InterruptException:
                self.stop.check()
                raise
            except self._duckdb.OutOfMemoryException as problem:
                raise Failure(
                    "OUT_OF_MEMORY",
                    "DuckDB needs more memory or temporary disk space than it may have",
                    hint=f"free some disk space near {self.directory}",
                ) from problem

    def one(self, sql: str, parameters: Mapping[str, Any] | None = None) -> tuple[Any, ...]:
        """The only row of a statement that has exactly one."""
        (row,) = self.run(sql, parameters)
        return row

    def chunks(self, sql: str, size: int) -> Iterator[list[tuple[Any, ...]]]:
        """The rows of a query, so many at a time. A stop request ends it between two chunks."""
        cursor = self.cursor()
        cursor.execute(sql)
        while chunk := cursor.fetchmany(size):
            self.stop.check()
            yield chunk

    def beside(self) -> Workspace:
        """The same tables on a connection of its own, for one other thread."""
        other = copy(self)
        other.con = self.con.cursor()
        other.con.execute(f"USE {NAME}")
        return other

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
        """Create `table` from Python rows. Values travel as text and are cast to `columns`' types, so
        nothing passes through a float; a row at a time through DuckDB would be 1,000 times slower.
        `lenient`: what cannot be cast becomes NULL."""
        import msgspec

        path = self.directory / f"{table}.jsonl"
        names = list(columns)
        target = f"{NAME}.main.{quoted(table)}"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            for row in rows:
                record = {n: None if v is None else str(v) for n, v in zip(names, row, strict=True)}
                file.write(msgspec.json.encode(record) + b"\n")
        if path.stat().st_size:
            text = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in names)
            casts = ", ".join(f"{_cast(quoted(n), t, lenient)} AS {quoted(n)}" for n, t in columns.items())
            self.run(
                f"CREATE OR REPLACE TABLE {target} AS SELECT {casts} FROM "
                f"read_json({literal(str(path))}, format = 'newline_delimited', columns = {{{text}}})"
            )
        else:
            typed = ", ".join(f"{quoted(name)} {kind}" for name, kind in columns.items())
            self.run(f"CREATE OR REPLACE TABLE {target} ({typed})")
        path.unlink()

    def close(self) -> None:
        """Let go of the tables and the memory. Other connections of theirs end with them."""
        self.con.close()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _cast(text: str, to: str, lenient: bool) -> str:
    cast = "TRY_CAST" if lenient else "CAST"
    if to == "BLOB":
        return f"unhex({text})"
    if to.endswith("]"):
        return f"{cast}({cast}({text} AS JSON) AS {to})"
    return f"{cast}({text} AS {to})"
