"""DuckDB files as those write and read them who make marts, by the one instance that a process has for them.

To make an instance takes five times as long as to open a file, change it and let go of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import RLock

import duckdb

_ONE_AT_A_TIME = RLock()


@cache
def _instance() -> duckdb.DuckDBPyConnection:
    return duckdb.connect()


@contextmanager
def scratch() -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with temporary tables and settings of its own and no file."""
    with _instance().cursor() as connection:
        yield connection


@contextmanager
def opened(file: Path, *, read_only: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to this file, which is made if it is not there and which nobody holds afterwards."""
    name = '"' + file.stem.replace('"', '""') + '"'
    path = str(file).replace("'", "''")
    with _ONE_AT_A_TIME, scratch() as connection:
        connection.execute(f"ATTACH '{path}' AS {name}{' (READ_ONLY)' if read_only else ''}")
        try:
            connection.execute(f"USE {name}")
            yield connection
        finally:
            connection.execute("USE memory")
            connection.execute(f"DETACH {name}")
