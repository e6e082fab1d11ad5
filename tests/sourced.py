"""A project whose mart lives in any source that runs here: a copy of the DuckDB mart, which says what a target must
hold. A source can change, vanish or be lost while it is read.

Two of them are no servers of the vendor: the API of `rest` is ours, and `clickhouse` answers in the forms that the
engine was recorded with, its Parquet written by DuckDB.
"""

from __future__ import annotations

import itertools
import json
import re
import secrets
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

import duckdb
import obstore

from retl.testing import faults
from retl.testing.server import TOKEN, FakeApi
from tests import clickhouse, duckdb_files, mysql_server
from tests.crashes import COLUMNS, PATIENCE, SYNC_YML, Deletes, Ended, Project
from tests.dropped import Drop, written
from tests.mysql_server import MySQLDatabase
from tests.proxy import Proxy
from tests.servers import Database, ObjectStore
from tests.shop import Shop

CHANGE = "UPDATE mart SET searches = searches + 1000 WHERE user_id < 'user 020'; DELETE FROM mart WHERE user_id = 'user 005'"
PARTS = 3
_MOMENT = 2.0  # seconds in which what somebody does is done, unless it waits for the run
Rows = list[tuple[Any, ...]]
SQL_COLUMNS = (
    "user_id varchar(40) PRIMARY KEY, segment varchar(40), searches bigint, lifetime_value decimal(12,2)"
)


@dataclass
class Servers:
    """The servers that are at hand; a kind of source that needs another one is not played."""

    postgres: Database
    objectstore: ObjectStore | None = None
    mysql: MySQLDatabase | None = None


class Sourced(Project):
    """A project whose mart is copied to another source after each of its changes."""

    source: ClassVar[str]  # of the sync, as YAML
    more: ClassVar[str] = ""  # lines of the sync
    sources: ClassVar[Callable[[Path], str]]  # the folder → an entry under `sources:`, as YAML
    line: Proxy | None = None  # between the run and the source's server

    def __init__(self, folder: Path, sync: str, environ: Mapping[str, str], **more: Any) -> None:
        entry = type(self).sources(folder)
        if entry:
            more["connections"] = f"{more.get('connections', '')}sources:\n  lake: {entry}\n"
        super().__init__(folder, sync, environ, **more)

    def define(self, sync: str) -> None:
        text = SYNC_YML.replace("source: {table: mart}", f"source: {self.source}") + sync + self.more
        (self.folder / "syncs" / "users.yml").write_text(text)

    def mart(self, sql: str) -> None:
        super().mart(sql)
        with duckdb_files.opened(self.folder / "mart.duckdb", read_only=True) as connection:
            self.put(connection)

    def put(self, mart: duckdb.DuckDBPyConnection) -> None:
        """Make the source what the table `mart` is."""

    def change(self) -> None:
        """Somebody changes the mart while it is read."""
        self.mart(CHANGE)

    def vanish(self) -> None:
        """Somebody removes the mart while it is read."""

    def lose(self) -> None:
        """The server goes, or the disk."""
        if self.line is not None:
            self.line.refuse()

    def find(self) -> None:
        """The server is back."""
        if self.line is not None:
            self.line.heal()


def _rows(mart: duckdb.DuckDBPyConnection) -> Rows:
    return mart.execute(f"SELECT {', '.join(COLUMNS)} FROM mart ORDER BY 1").fetchall()


def _arrow(mart: duckdb.DuckDBPyConnection) -> Any:
    return mart.sql(f"SELECT {', '.join(COLUMNS)} FROM mart ORDER BY 1").to_arrow_table()


class InDuckDB(Sourced):
    """The mart as it is."""

    source = "{table: mart}"
    sources = staticmethod(lambda _: "")

    @property
    def path(self) -> Path:
        return self.folder / "mart.duckdb"

    def mart(self, sql: str) -> None:
        if (kept := self.path.with_name("kept")).exists():
            kept.rename(self.path)
        super().mart(sql)

    def keep(self) -> None:
        shutil.copyfile(self.path, self.path.with_name("kept"))

    def change(self) -> None:
        """Over the file, as a copy from elsewhere does it."""
        self.keep()
        copy = self.path.with_name("other.duckdb")
        shutil.copyfile(self.path, copy)
        with duckdb_files.opened(copy) as connection:
            connection.execute(f"{CHANGE}; CREATE TABLE more AS SELECT * FROM range(100000); CHECKPOINT")
        self.path.write_bytes(copy.read_bytes())
        copy.unlink()

    def vanish(self) -> None:
        self.path.rename(self.path.with_name("kept"))

    def lose(self) -> None:
        self.keep()
        with self.path.open("r+b") as file:
            file.truncate(4096)


class InSQLite(Sourced):
    source = "{from: lake, table: mart}"
    sources = staticmethod(lambda _: "{type: sqlite, path: mart.sqlite, lock_wait: 5s}")

    @property
    def path(self) -> Path:
        return self.folder / "mart.sqlite"

    def put(self, mart: duckdb.DuckDBPyConnection) -> None:
        rows = [(*row[:3], None if row[3] is None else float(row[3])) for row in _rows(mart)]
        with sqlite3.connect(self.path, timeout=10) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"CREATE TABLE IF NOT EXISTS mart ({SQL_COLUMNS})")
            connection.execute("DELETE FROM mart")
            connection.executemany("INSERT INTO mart VALUES (?, ?, ?, ?)", rows)
        connection.close()

    def vanish(self) -> None:
        for path in self.folder.glob("mart.sqlite*"):
            path.unlink()

    def lose(self) -> None:
        self.path.write_bytes(b"no database" * 1000)

    def find(self) -> None:
        self.vanish()


def in_postgres(database: Database, line: Proxy) -> type[Sourced]:
    class InPostgres(Sourced):
        source = "{from: lake, table: marts.users}"
        sources = staticmethod(
            lambda _: (
                f"{{type: postgres, host: 127.0.0.1, port: {line.port}, dbname: {database.dbname},"
                f" user: {database.user}, password: '${{PG_PASSWORD}}'}}"
            )
        )

        def put(self, mart: duckdb.DuckDBPyConnection) -> None:
            with database.connect() as connection, connection.transaction():
                connection.execute("CREATE SCHEMA IF NOT EXISTS marts")
                connection.execute(f"CREATE TABLE IF NOT EXISTS marts.users ({SQL_COLUMNS})")
                connection.execute("DELETE FROM marts.users")
                connection.cursor().executemany(
                    "INSERT INTO marts.users VALUES (%s, %s, %s, %s)", _rows(mart)
                )

        def vanish(self) -> None:
            with database.connect() as connection:
                connection.execute("DROP TABLE marts.users")

    InPostgres.line = line
    return InPostgres


def in_mysql(database: MySQLDatabase, line: Proxy) -> type[Sourced]:
    class InMySQL(Sourced):
        source = "{from: lake, table: mart}"
        sources = staticmethod(
            lambda _: (
                f"{{type: mariadb, host: 127.0.0.1, port: {line.port}, dbname: {database.dbname},"
                f" user: {database.user}, password: '{database.password}'}}"
            )
        )

        def put(self, mart: duckdb.DuckDBPyConnection) -> None:
            values = ", ".join(f"({', '.join(map(_literal, row))})" for row in _rows(mart))
            database.execute(
                f"CREATE TABLE IF NOT EXISTS mart ({SQL_COLUMNS})",
                "SET autocommit = 0",
                "DELETE FROM mart",
                f"INSERT INTO mart VALUES {values}",
                "COMMIT",
            )

        def vanish(self) -> None:
            database.execute("DROP TABLE mart")

    InMySQL.line = line
    return InMySQL


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    escaped = str(value).replace("\\", "\\\\").replace("'", "''")
    return f"'{escaped}'" if isinstance(value, str) else str(value)


def in_files(format: str, server: ObjectStore | None, line: Proxy | None = None) -> type[Sourced]:
    """Files of a folder, or of a bucket behind a line."""

    class InFiles(Sourced):
        source = f"{{from: lake, path: 'state=*/*.{format}', format: {format}}}"

        def __init__(self, folder: Path, sync: str, environ: Mapping[str, str], **more: Any) -> None:
            self.drop = Drop(folder / "drop", server)
            self.drop.clear()
            self.states = itertools.count()
            self.present: list[str] = []
            super().__init__(folder, sync, environ, **more)

        @staticmethod
        def sources(folder: Path) -> str:
            definition = Drop(folder / "drop", server).definition.partition("drop: ")[2].strip()
            if server is not None and line is not None:
                return definition.replace(server.url, f"http://127.0.0.1:{line.port}")
            return definition

        def put(self, mart: duckdb.DuckDBPyConnection) -> None:
            state = next(self.states)
            former, self.present = self.present, [f"state={state}/{at}.{format}" for at in range(PARTS)]
            for at, name in enumerate(self.present):
                chosen = f"SELECT * FROM mart WHERE hash(user_id) % {PARTS} = {at}"
                self.drop.put(name, written(mart, chosen, format, self.folder))
            for name in former:
                self.drop.remove(name)

        def vanish(self) -> None:
            for name in self.present:
                with suppress(FileNotFoundError):
                    self.drop.remove(name)
            self.present = []

        def lose(self) -> None:
            super().lose()
            if line is None:
                path = self.drop.folder / self.present[-1]
                content = path.read_bytes()  # a file of texts ends within a row
                end = len(content) // 2 if format == "parquet" else content.rindex(b",")
                path.write_bytes(content[:end])

    InFiles.line = line
    return InFiles


def in_delta(feed: bool, server: ObjectStore | None = None, line: Proxy | None = None) -> type[Sourced]:
    """A Delta table, in a folder or a bucket; with `feed` the run follows its changes. Behind a line there is no
    feed: the library keeps all threads of the process waiting while it reads a commit, the line's too."""
    from deltalake import DeltaTable, write_deltalake

    prefix = secrets.token_hex(6)
    where, keys = "", dict[str, str]()
    if server is not None:
        where = f"s3://{server.bucket}/delta-{prefix}"
        keys = {"access_key_id": server.user, "secret_access_key": server.password, "region": server.region}

    class InDelta(Sourced):
        source = "{from: lake, table: mart}"
        more = "changes: cdf\n" if feed else ""

        @staticmethod
        def sources(folder: Path) -> str:
            shutil.rmtree(folder / "lake", ignore_errors=True)
            if server is None:
                return "{type: delta, root: lake}"
            store = server.store(f"delta-{prefix}")
            obstore.delete(store, [one["path"] for page in obstore.list(store) for one in page])
            through = f"http://127.0.0.1:{line.port}" if line else server.url
            return json.dumps({"type": "delta", "root": where, "storage": {"endpoint": through, **keys}})

        @property
        def uri(self) -> str:
            return f"{where}/mart" if server is not None else str(self.folder / "lake/mart")

        @property
        def options(self) -> dict[str, str]:
            if server is None:
                return {}
            return {"endpoint_url": server.url, "allow_http": "true", "conditional_put": "etag", **keys}

        def put(self, mart: duckdb.DuckDBPyConnection) -> None:
            rows = _arrow(mart)
            if not DeltaTable.is_deltatable(self.uri, self.options):
                told = {"delta.enableChangeDataFeed": "true"}
                write_deltalake(self.uri, rows, configuration=told, storage_options=self.options)
                return
            differs = " OR ".join(f"(t.{name} IS DISTINCT FROM s.{name})" for name in COLUMNS[1:])
            table = DeltaTable(self.uri, storage_options=self.options)
            merge = table.merge(rows, "t.user_id = s.user_id", source_alias="s", target_alias="t")
            merge = merge.when_matched_update_all(differs).when_not_matched_insert_all()
            merge.when_not_matched_by_source_delete().execute()

        def vanish(self) -> None:
            if server is None:
                shutil.rmtree(self.folder / "lake", ignore_errors=True)
            else:
                store = server.store(f"delta-{prefix}")
                obstore.delete(store, [one["path"] for page in obstore.list(store) for one in page])

        def lose(self) -> None:
            super().lose()
            if server is None:
                for path in (self.folder / "lake").rglob("*.parquet"):
                    path.write_bytes(path.read_bytes()[:40])

        def find(self) -> None:
            super().find()
            if server is None:
                self.vanish()

    InDelta.line = line
    return InDelta


def in_iceberg(feed: bool, server: ObjectStore | None = None, line: Proxy | None = None) -> type[Sourced]:
    """An Iceberg table, of a catalog in a file or of a REST catalog whose storage is behind a line."""
    import pyarrow as pa
    from pyiceberg.catalog import Catalog
    from pyiceberg.catalog.rest import RestCatalog
    from pyiceberg.catalog.sql import SqlCatalog

    namespace = f"n{secrets.token_hex(6)}"

    class InIceberg(Sourced):
        source = f"{{from: lake, table: {namespace}.mart}}"
        more = "changes: cdf\n" if feed else ""

        @staticmethod
        def sources(folder: Path) -> str:
            shutil.rmtree(folder / "lake", ignore_errors=True)
            if server is None:
                return "{type: iceberg, catalog: {type: sql, path: lake/catalog.db, name: lake}}"
            catalog = {"type": "rest", "uri": server.catalog_url, "warehouse": f"s3://{server.warehouse}"}
            catalog["credential"] = f"{server.user}:{server.password}"
            storage = {"endpoint": f"http://127.0.0.1:{line.port}" if line else server.url}
            storage |= {"region": server.region, "access_key_id": server.user}
            storage["secret_access_key"] = server.password
            return json.dumps({"type": "iceberg", "catalog": catalog, "storage": storage})

        @property
        def catalog(self) -> Catalog:
            if server is not None:
                return RestCatalog("tests", **server.catalog)
            (self.folder / "lake").mkdir(exist_ok=True)
            where = self.folder / "lake"
            return SqlCatalog("lake", uri=f"sqlite:///{where}/catalog.db", warehouse=f"file://{where}/files")

        def put(self, mart: duckdb.DuckDBPyConnection) -> None:
            rows, catalog = _arrow(mart), self.catalog
            texts = {True: pa.large_string()}
            kinds = [(one.name, texts.get(pa.types.is_string(one.type), one.type)) for one in rows.schema]
            rows = rows.cast(pa.schema(kinds))
            catalog.create_namespace_if_not_exists(namespace)
            if not catalog.table_exists(f"{namespace}.mart"):
                catalog.create_table(f"{namespace}.mart", rows.schema).append(rows)
                return
            table = catalog.load_table(f"{namespace}.mart")
            table.overwrite(rows.cast(table.schema().as_arrow()))

        def vanish(self) -> None:
            self.catalog.drop_table(f"{namespace}.mart")
            for path in (self.folder / "lake").rglob("*.parquet"):
                path.unlink()

        def lose(self) -> None:
            super().lose()
            if server is None:
                for path in (self.folder / "lake").rglob("*.parquet"):
                    path.write_bytes(path.read_bytes()[:40])

        def find(self) -> None:
            super().find()
            if server is None:
                shutil.rmtree(self.folder / "lake")

    InIceberg.line = line
    return InIceberg


class Moving(Shop):
    """`then` happens before the third page is served."""

    then: Callable[[], None] | None = None
    served = 0

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        self.served += 1
        if self.then is not None and self.served % 3 == 0:
            self.then()
            self.then = None
        return super().serve(method, path, headers, body)


def in_rest(shop: Moving) -> type[Sourced]:
    """An API that says how many rows it has."""

    class InRest(Sourced):
        source = (
            "{from: lake, path: /v1/offset, items: data, params: {limit: 9}, complete: true,"
            " page: {offset: offset, total: total}}"
        )
        sources = staticmethod(
            lambda _: (
                f"{{type: rest, base_url: '{shop.url}', auth: {{type: bearer, token: {TOKEN}}},"
                " retry: {attempts: 2}, limits: {requests: 1000, per: 1s}}"
            )
        )

        def put(self, mart: duckdb.DuckDBPyConnection) -> None:
            rows = [(*row[:3], None if row[3] is None else str(row[3])) for row in _rows(mart)]
            shop.rows = [dict(zip(COLUMNS, row, strict=True)) for row in rows]

        def change(self) -> None:
            """Between two pages."""
            shop.then, shop.served = self._change, 0

        def _change(self) -> None:
            super().change()

        def vanish(self) -> None:
            shop.misbehave(*[faults.passed, faults.answer(404, b"{}")] * 2)

        def lose(self) -> None:
            shop.misbehave(*[faults.passed, faults.cut(), faults.cut()] * 2)

        def find(self) -> None:
            shop.faults.clear()

    return InRest


class House(FakeApi):
    """A ClickHouse whose table `mart` is rows of DuckDB: it answers in the forms that the engine was recorded
    with. `mart` is the rows as an Arrow table; None: there is no such table."""

    mart: Any = None
    _TYPES = ("String", "Nullable(String)", "Nullable(Int64)", "Nullable(Decimal(12, 2))")

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        sql = body.decode()
        if (headers.get("x-clickhouse-user"), headers.get("x-clickhouse-key")) != (
            clickhouse.USER,
            clickhouse.PASSWORD,
        ):
            return clickhouse.refusal(516, "Authentication failed. (AUTHENTICATION_FAILED)")
        assert dict(parse_qsl(urlsplit(path).query)).get("readonly") == "1"
        if self.mart is None or "`mart`" not in sql:
            return clickhouse.refusal(60, "Unknown table expression identifier 'mart'. (UNKNOWN_TABLE)")
        if sql == "DESCRIBE (SELECT * FROM `mart`) FORMAT JSON":
            told = [{"name": n, "type": t} for n, t in zip(COLUMNS, self._TYPES, strict=True)]
            return 200, json.dumps({"data": told}).encode()
        asked = re.fullmatch(r"SELECT (.*) FROM `mart` FORMAT Parquet", sql)
        assert asked, sql
        with duckdb.connect() as connection:
            connection.register("mart", self.mart)
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "answer.parquet"
                connection.execute(f"COPY (SELECT {asked[1].replace('`', '')} FROM mart) TO '{file}'")
                return 200, file.read_bytes()


def in_clickhouse(house: House) -> type[Sourced]:
    class InClickHouse(Sourced):
        source = "{from: lake, table: mart, complete: true}"
        sources = staticmethod(
            lambda _: (
                f"{{type: clickhouse, base_url: '{house.url}', user: {clickhouse.USER},"
                f" password: {clickhouse.PASSWORD}, retry: {{attempts: 2}}}}"
            )
        )

        def put(self, mart: duckdb.DuckDBPyConnection) -> None:
            house.mart = _arrow(mart)

        def vanish(self) -> None:
            house.mart = None

        def lose(self) -> None:
            house.misbehave(*[faults.cut()] * 4)

        def find(self) -> None:
            house.faults.clear()

    return InClickHouse


LOCAL = ("duckdb", "sqlite", "parquet", "csv", "ndjson", "delta", "delta, feed", "iceberg", "iceberg, feed")
REMOTE = ("postgres", "rest", "clickhouse")
CUTS = {
    "is cut at once": 1,
    "is cut early": 1200,
    "is cut later": 4000,
}  # → bytes that still reach the server
BUCKETS = ("parquet in a bucket", "delta in a bucket", "iceberg over REST")
LINES = ("postgres", "mysql", *BUCKETS)  # a proxy stands between them and the run
KINDS = (*LOCAL, *REMOTE, *BUCKETS, *(["mysql"] if mysql_server.AVAILABLE else []))


@contextmanager
def mart_in(kind: str, servers: Servers) -> Iterator[type[Sourced]]:
    """The kind of a project whose mart is in this source; what it needs runs meanwhile."""
    with ExitStack() as hold:
        if kind in LOCAL:
            yield _local(kind)
        elif kind == "rest":
            yield in_rest(hold.enter_context(Moving()))
        elif kind == "clickhouse":
            yield in_clickhouse(hold.enter_context(House()))
        elif kind == "postgres":
            to = servers.postgres
            yield in_postgres(to, hold.enter_context(Proxy(to.host, to.port)))
        elif kind == "mysql":
            assert servers.mysql
            line = hold.enter_context(Proxy(servers.mysql.host, servers.mysql.port))
            yield in_mysql(servers.mysql, line)
        else:
            store = servers.objectstore
            assert store
            line = hold.enter_context(Proxy(store.host, store.port))
            yield {
                "parquet in a bucket": lambda: in_files("parquet", store, line),
                "delta in a bucket": lambda: in_delta(False, store, line),
                "iceberg over REST": lambda: in_iceberg(True, store, line),
            }[kind]()


def _local(kind: str) -> type[Sourced]:
    if kind in ("duckdb", "sqlite"):
        return InDuckDB if kind == "duckdb" else InSQLite
    name, _, feed = kind.partition(", ")
    if name == "delta":
        return in_delta(bool(feed))
    return in_iceberg(bool(feed)) if name == "iceberg" else in_files(name, None)


class FromSource(Deletes):
    """Rows of a source kept equal in PostgreSQL, with deletes."""

    sync = Deletes.sync + "guards: {max_delete_rate: 1, max_row_drop: 1}\n"
    project: Sourced

    def __init__(self, folder: Path, database: Database, made: type[Sourced]) -> None:
        super().__init__(folder, database)
        self.made = made

    def environ(self) -> dict[str, str]:
        return {**super().environ(), "AWS_EC2_METADATA_DISABLED": "true"}


# what others do to a source


def trouble(scene: FromSource, act: Callable[[], object], after: str = "freeze") -> Ended:
    """A run; somebody acts between two steps of it, by default when the source is open and no row is read. What
    waits for a lock of the run goes on after it."""
    left = [act]
    with ThreadPoolExecutor(1) as others:
        acting: list[Future[object]] = []

        def hears(text: str) -> None:
            if left and '"phase_ended"' in text and f'"phase": "{after}"' in text:
                acting.append(others.submit(left.pop()))
                with suppress(TimeoutError):
                    acting[0].result(_MOMENT)

        words = ("sync", "--sync", "users", "--output", "json")
        ended = scene.project.answered(*words, hears=hears)
        assert acting, f"the run never came to the end of {after}: {ended.stdout}{ended.stderr[-2000:]}"
        acting[0].result(PATIENCE)
    return ended


def refusal(ended: Ended) -> str:
    """The code of a run that failed as it should: with one sentence and no traceback."""
    assert ended.code, ended.stdout
    error = ended.summary["error"]
    assert "Traceback" not in ended.stderr + ended.stdout, ended.stderr
    assert error["code"] not in ("UNEXPECTED", "INTERNAL", "BUG"), error
    assert "\n" not in error["message"], error
    assert 10 < len(error["message"]) < 400, error
    return str(error["code"])


def acts(kind: str) -> tuple[str, ...]:
    """What can happen to a source of this kind while it is read."""
    return ("changes", "vanishes", "is lost", *(CUTS if kind in LINES else ()))


def broken(scene: FromSource, what: str) -> str:
    """Something happens to the source while a run reads it: that run delivers one state, or says in a sentence why
    not and writes nothing. The next run does so too; with the source back, a plain run is exact. Returns what was
    said."""
    scene.begin()
    project, former, wanted = scene.project, scene.content(), scene.wanted()
    if what in CUTS:
        line = project.line
        assert line is not None
        ended = trouble(scene, lambda: line.cut(CUTS[what]), "start")
    else:
        doing = {"changes": project.change, "vanishes": project.vanish, "is lost": project.lose}
        ended = trouble(scene, doing[what])
    held = scene.content()
    if ended.code:
        said = refusal(ended)
        assert held == former, f"{what}: a run that failed has written"
    else:
        said = "one state"
        after = scene.wanted() if what == "changes" else wanted
        assert held in (wanted, after), f"{what}: neither the state before nor the one after"
    if what in ("vanishes", "is lost"):
        said += f", then {refusal(project.sync())}"
        assert scene.content() == held, f"{what}: a run without a source has written"
    project.find()
    project.mart("SELECT 1")
    done = project.sync()
    assert done.code == 0, done.stdout
    assert scene.content() == scene.wanted(), f"{what}: a plain run afterwards is not exact"
    return said
