"""What reading a source costs beside the bare scan of its library: seconds of a processor, and peak memory.

usage: python -m benchmarks.sources [--rows 10000000] [--rounds 3] [--only files,delta]

Both sides are whole processes. Ours opens the source and freezes all six columns, as a run does. The bare
scan reads the same columns batch by batch: where the library gives Arrow or Parquet, DuckDB puts them into a
table in memory; rows of a driver, and of JSON, are dropped. The figures go to benchmarks/sources.json, from
which docs/reference/sources.md has them.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import duckdb
import psycopg
from tests import mysql_server

from benchmarks import mart
from benchmarks.timing import Measured, apart, timed
from retl import sources
from retl.engine.freeze import freeze
from retl.engine.workspace import Workspace
from retl.observe.signals import Stop
from retl.sources.api import Invocation
from retl_demo import servers

FIGURES = Path(__file__).with_suffix(".json")
FILES, MOST = 10, 10_000_000  # files of a table in a lake; rows that make figures worth keeping
TABLE = "lake.users"
LIBRARY = {
    "duckdb": "duckdb",
    "files": "duckdb",
    "delta": "deltalake",
    "iceberg": "pyiceberg",
    "postgres": "psycopg",
    "mariadb": "mysqlclient-static",
    "sqlite": "sqlite3",
    "clickhouse": "httpx2",
    "rest": "httpx2",
}
AT_ONCE = 1000  # rows that a driver gives at a time
PAGE = 10_000  # rows of one answer of an API
TYPES = {  # of the columns, in a contract and in ClickHouse
    "user_id": ("string", "String"),
    "segment": ("string", "String"),
    "total_searches": ("integer", "Int32"),
    "total_conversions": ("integer", "Int32"),
    "lifetime_value": ("decimal", "Decimal(12, 2)"),
    "last_seen_at": ("timestamp", "DateTime64(6, 'UTC')"),
}


def main() -> int:
    words = argparse.ArgumentParser(prog="python -m benchmarks.sources")
    words.add_argument("--rows", type=int, default=MOST)
    words.add_argument("--rounds", type=int, default=3)
    words.add_argument("--only", default=",".join(LIBRARY))
    words.add_argument("--read", nargs=3, metavar=("SIDE", "SOURCE", "FOLDER"), help="one process of a round")
    asked = words.parse_args()
    if asked.read:
        side, name, folder = asked.read
        print({"ours": ours, "bare": bare}[side](name, Path(folder)))
        return 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
        folder = Path(made)
        folder.chmod(0o755)  # PostgreSQL may run as another user
        apart(mart.build, folder / "mart.duckdb", asked.rows)
        figures = {name: measured(name, folder, asked.rows, asked.rounds) for name in asked.only.split(",")}
    if asked.rows == MOST:
        keep(figures)
    return 0


def measured(name: str, folder: Path, rows: int, rounds: int) -> dict[str, float | str]:
    """Build the table, read it in pairs of processes, and say what they took: medians."""
    with MAKERS[name](folder):
        pairs = [
            (process("ours", name, folder, rows), process("bare", name, folder, rows)) for _ in range(rounds)
        ]
    release = sqlite3.sqlite_version if name == "sqlite" else version(LIBRARY[name])
    found: dict[str, float | str] = {"library": f"{LIBRARY[name]} {release}"}
    for side, each in zip(("ours", "bare"), zip(*pairs, strict=True), strict=True):
        found[f"{side}_processor"] = round(median(one.processor for one in each), 1)
        found[f"{side}_megabytes"] = round(median(one.megabytes for one in each))
    print(name, found, flush=True)
    return found


def process(side: str, name: str, folder: Path, rows: int) -> Measured:
    command = [sys.executable, "-m", "benchmarks.sources", "--read", side, name, str(folder)]
    place = {"PYTHONPATH": str(FIGURES.parents[1]), "PATH": os.environ["PATH"]}
    found = timed(command, folder=folder, environment=place)
    if int(found.output) != rows:
        raise RuntimeError(f"{name}, {side}: {found.output.strip()} of {rows} rows were read")
    return found


def keep(figures: dict[str, dict[str, float | str]]) -> None:
    """Put the figures in the file; those of sources that were not measured stay."""
    known = json.loads(FIGURES.read_text()) if FIGURES.exists() else {"sources": {}}
    known["sources"] |= figures
    known["rows"] = MOST
    known["machine"] = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    known["measured_on"] = f"{datetime.now(UTC):%Y-%m-%d}"
    FIGURES.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def ours(name: str, folder: Path) -> int:
    """The rows that the source of this type gives to a run."""
    kind, (connection, options) = sources.load(name), places(name, folder)
    source = kind(kind.Connection(**connection), kind.Options(**options), Invocation(folder, {}))
    with (
        tempfile.TemporaryDirectory(dir=folder) as made,
        Workspace(Path(made), Stop()) as workspace,
        source.open(workspace) as snapshot,
    ):
        workspace.harden(source.readable)
        columns = snapshot.description.columns
        return freeze(workspace, snapshot.rows(list(columns)), columns)


def places(name: str, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The connection and the options of the source."""
    if name in ("postgres", "mariadb"):
        return json.loads((folder / f"{name}.json").read_text()), {"table": "users"}
    if name in ("clickhouse", "rest"):
        address = {"base_url": f"http://127.0.0.1:{(folder / 'port').read_text()}"}
        columns = {column: {"type": kind} for column, (kind, _) in TYPES.items()}
        columns["lifetime_value"] |= {"max_digits": 12, "decimal_places": 2}
        pages = {"path": "/rows", "items": "rows", "columns": columns, "page": {"number": "page"}}
        return address, pages if name == "rest" else {"table": "users"}
    if name in ("duckdb", "sqlite"):
        return {"path": str(folder / f"mart.{name}")}, {"table": mart.TABLE}
    if name == "iceberg":
        catalog = {"type": "sql", "path": str(folder / "catalog.db"), "name": "bench"}
        return {"catalog": catalog}, {"table": TABLE}
    where = {"files": {"path": "parquet/*.parquet"}, "delta": {"path": "delta"}}
    return {"root": str(folder)}, where[name]


def bare(name: str, folder: Path) -> int:
    """The rows that the library reads, batch by batch."""
    readers = {"postgres": _copied, "mariadb": _fetched, "sqlite": _stepped, "rest": _paged}
    return readers[name](folder) if name in readers else _kept(RELATIONS[name](folder))


def _kept(rows: Any) -> int:
    """Put an Arrow stream, or what DuckDB can read as SQL, into a table in memory."""
    with duckdb.connect() as connection:
        connection.execute("SET enable_progress_bar = false")
        relation = f"({rows})" if isinstance(rows, str) else "rows"
        connection.execute(f"CREATE TABLE kept AS SELECT * FROM {relation}")
        ((count,),) = connection.execute("SELECT count(*) FROM kept").fetchall()
        return int(count)


def _delta_scan(folder: Path) -> Any:
    from deltalake import DeltaTable

    return DeltaTable(str(folder / "delta")).scan()


def _answered(folder: Path) -> str:
    """The file of ClickHouse's answer."""
    import httpx2

    path = folder / "bare.parquet"
    with httpx2.stream("POST", _address(folder), content=b"SELECT") as answer, path.open("wb") as file:
        for chunk in answer.iter_bytes(1 << 20):
            file.write(chunk)
    return f"FROM read_parquet('{path}')"


def _paged(folder: Path) -> int:
    import httpx2

    found, number = 0, 1
    with httpx2.Client(base_url=_address(folder)) as client:
        while rows := client.get("/rows", params={"page": number}).json()["rows"]:
            found, number = found + len(rows), number + 1
    return found


def _address(folder: Path) -> str:
    return f"http://127.0.0.1:{(folder / 'port').read_text()}"


RELATIONS: dict[str, Callable[[Path], Any]] = {
    "duckdb": lambda folder: f"FROM read_duckdb('{folder}/mart.duckdb')",
    "files": lambda folder: f"FROM read_parquet('{folder}/parquet/*.parquet')",
    "delta": _delta_scan,
    "iceberg": lambda folder: _catalog(folder).load_table(TABLE).scan().to_arrow_batch_reader(),
    "clickhouse": _answered,
}


def _copied(folder: Path) -> int:
    given = json.loads((folder / "postgres.json").read_text())
    with psycopg.connect(**given) as connection, connection.cursor() as cursor:
        with cursor.copy("COPY users TO STDOUT (FORMAT csv)") as copy:
            for _ in copy:
                pass
        return cursor.rowcount


def _fetched(folder: Path) -> int:
    """The texts of the server, which the driver turns into no values."""
    import MySQLdb
    from MySQLdb.cursors import SSCursor

    given = json.loads((folder / "mariadb.json").read_text())
    plain = {"db": given.pop("dbname"), "charset": "utf8mb4", "ssl_mode": "DISABLED", "conv": {}}
    with closing(MySQLdb.connect(**given, **plain, cursorclass=SSCursor)) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT * FROM users")
        return sum(map(len, iter(lambda: cursor.fetchmany(AT_ONCE), ())))


def _stepped(folder: Path) -> int:
    with closing(sqlite3.connect(f"file:{folder}/mart.sqlite?mode=ro", uri=True)) as connection:
        cursor = connection.execute(f"SELECT * FROM {mart.TABLE}")
        return sum(map(len, iter(lambda: cursor.fetchmany(AT_ONCE), [])))


def _catalog(folder: Path) -> Any:
    from pyiceberg.catalog.sql import SqlCatalog

    return SqlCatalog("bench", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/iceberg")


@contextmanager
def _warehouse(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(str(folder / "mart.duckdb"), read_only=True) as warehouse:
        warehouse.execute("SET enable_progress_bar = false")
        yield warehouse


def _parts(folder: Path) -> Iterator[str]:
    """A query for each file of a table."""
    with _warehouse(folder) as warehouse:
        ((rows,),) = warehouse.execute(f"SELECT count(*) FROM {mart.TABLE}").fetchall()
    size = -(-rows // FILES)
    for at in range(FILES):
        yield f"SELECT * FROM {mart.TABLE} LIMIT {size} OFFSET {at * size}"


def _parquet(folder: Path) -> None:
    (folder / "parquet").mkdir()
    with _warehouse(folder) as warehouse:
        for at, query in enumerate(_parts(folder)):
            warehouse.execute(f"COPY ({query}) TO '{folder}/parquet/{at}.parquet' (FORMAT parquet)")


def _delta(folder: Path) -> None:
    from deltalake import write_deltalake

    with _warehouse(folder) as warehouse:
        for query in _parts(folder):
            write_deltalake(str(folder / "delta"), warehouse.sql(query).to_arrow_reader(), mode="append")


def _iceberg(folder: Path) -> None:
    catalog = _catalog(folder)
    catalog.create_namespace("lake")
    with _warehouse(folder) as warehouse:
        for at, query in enumerate(_parts(folder)):
            rows = warehouse.sql(query).to_arrow_table()
            table = catalog.load_table(TABLE) if at else catalog.create_table(TABLE, rows.schema)
            table.append(rows)


def _sqlite(folder: Path) -> None:
    mart.export_csv(folder / "mart.duckdb", folder / "mart.csv")
    with closing(sqlite3.connect(folder / "mart.sqlite")) as file, (folder / "mart.csv").open() as texts:
        file.execute(f"CREATE TABLE {mart.TABLE} ({mart.DDL.replace(' PRIMARY KEY', '')})")
        file.executemany(f"INSERT INTO {mart.TABLE} VALUES (?, ?, ?, ?, ?, ?)", csv.reader(texts))
        file.commit()
    (folder / "mart.csv").unlink()


@contextmanager
def _built(folder: Path, make: Callable[[Path], None]) -> Iterator[None]:
    apart(make, folder)
    yield


def _pages(folder: Path) -> None:
    """The rows as pages of JSON, and one that has none."""
    (folder / "pages").mkdir()
    members = ", ".join(f"'{name}', {name}" for name in TYPES)
    listed = f"string_agg(json_object({members}), ',')"
    with _warehouse(folder) as warehouse:
        ((rows,),) = warehouse.execute(f"SELECT count(*) FROM {mart.TABLE}").fetchall()
        last = -(-rows // PAGE)
        for at in range(last):
            some = f"SELECT * FROM {mart.TABLE} LIMIT {PAGE} OFFSET {at * PAGE}"
            ((text,),) = warehouse.execute(f"SELECT {listed} FROM ({some})").fetchall()
            (folder / "pages" / f"{at + 1}.json").write_text(f'{{"rows":[{text}]}}')
    (folder / "pages" / f"{last + 1}.json").write_text('{"rows":[]}')


def _result(folder: Path) -> None:
    """The rows as ClickHouse writes Parquet: times have a zone."""
    described = [{"name": name, "type": kind} for name, (_, kind) in TYPES.items()]
    (folder / "described.json").write_text(json.dumps({"data": described}))
    with _warehouse(folder) as warehouse:
        warehouse.execute("SET timezone = 'UTC'")
        warehouse.execute(
            f"COPY (SELECT * REPLACE (last_seen_at::TIMESTAMPTZ AS last_seen_at) FROM {mart.TABLE})"
            f" TO '{folder}/result.parquet' (FORMAT parquet)"
        )


@contextmanager
def _answers(folder: Path, make: Callable[[Path], None]) -> Iterator[None]:
    """A server of its own process that has the files ready."""
    apart(make, folder)
    command = [sys.executable, "-m", "benchmarks.answers", str(folder)]
    server = subprocess.Popen(command, cwd=FIGURES.parents[1], stdout=subprocess.PIPE, text=True)  # noqa: S603
    try:
        assert server.stdout is not None
        (folder / "port").write_text(server.stdout.readline().strip())
        yield
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder / "pages", ignore_errors=True)


@contextmanager
def _postgres(folder: Path) -> Iterator[None]:
    (folder / "postgres").mkdir()
    server = servers.postgres(folder / "postgres")
    try:
        given = {part: getattr(server, part) for part in ("host", "port", "dbname", "user", "password")}
        (folder / "postgres.json").write_text(json.dumps(given))
        apart(mart.export_csv, folder / "mart.duckdb", folder / "mart.csv")
        with psycopg.connect(**given) as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE TABLE users ({mart.DDL.replace(' PRIMARY KEY', '')})")
            with (
                cursor.copy("COPY users FROM STDIN (FORMAT csv)") as copy,
                (folder / "mart.csv").open("rb") as file,
            ):
                while data := file.read(1 << 20):
                    copy.write(data)
        (folder / "mart.csv").unlink()
        yield
    finally:
        server.stop()


@contextmanager
def _mariadb(folder: Path) -> Iterator[None]:
    """In the server that the tests start."""
    import MySQLdb

    (folder / "mariadb").mkdir()
    kinds = (
        mart.DDL.replace(" PRIMARY KEY", "")
        .replace("text", "varchar(40)")
        .replace("timestamp", "datetime(6)")
    )
    apart(mart.export_csv, folder / "mart.duckdb", folder / "mart.csv")
    with mysql_server.mysql_server(folder / "mariadb") as server, mysql_server.fresh(server) as made:
        given = {"host": made.host, "port": made.port, "user": made.user, "password": made.password}
        (folder / "mariadb.json").write_text(json.dumps(given | {"dbname": made.dbname}))
        options = {"db": made.dbname, "local_infile": 1, "autocommit": True, "ssl_mode": "DISABLED"}
        with closing(MySQLdb.connect(**given, **options)) as connection:
            cursor = connection.cursor()
            cursor.execute(f"CREATE TABLE users ({kinds})")
            cursor.execute(
                f"LOAD DATA LOCAL INFILE '{folder}/mart.csv' INTO TABLE users FIELDS TERMINATED BY ','"
            )
        (folder / "mart.csv").unlink()
        yield


MAKERS = {
    "duckdb": lambda _: nullcontext(),
    "sqlite": lambda folder: _built(folder, _sqlite),
    "mariadb": _mariadb,
    "files": lambda folder: _built(folder, _parquet),
    "delta": lambda folder: _built(folder, _delta),
    "iceberg": lambda folder: _built(folder, _iceberg),
    "postgres": _postgres,
    "clickhouse": lambda folder: _answers(folder, _result),
    "rest": lambda folder: _answers(folder, _pages),
}


if __name__ == "__main__":
    sys.exit(main())
