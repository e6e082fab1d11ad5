"""Iceberg's catalogs: a real REST catalog with a real S3, SQL catalogs, and everything that can be wrong with them."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from pydantic import ValidationError
from pyiceberg.catalog import Catalog
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.catalog.sql import SqlCatalog

from retl.engine.workspace import Workspace
from retl.errors import SourceError, Stopped
from retl.observe.signals import Stop
from retl.sources.api import Feed, Invocation, Snapshot
from retl.sources.iceberg import Iceberg, Lake, Table
from tests.commands import Workshop
from tests.lake import COLUMNS, Changes, delete_positions, rows, the_file
from tests.proxy import Proxy
from tests.servers import Database, ObjectStore

A, B, C = (1, "a", Decimal("1.10")), (2, "b", None), (3, None, Decimal("-9999999999.99"))
NAMES = list(COLUMNS)


def connection(store: ObjectStore, **changed: Any) -> dict[str, Any]:
    """The entry under `sources:` for the catalog and the storage of the object store."""
    catalog = {
        "type": "rest",
        "uri": store.catalog_url,
        "warehouse": f"s3://{store.warehouse}",
        "credential": f"{store.user}:{store.password}",
    }
    storage = {
        "endpoint": store.url,
        "region": store.region,
        "access_key_id": store.user,
        "secret_access_key": store.password,
    }
    return {
        "catalog": catalog | changed.get("catalog", {}),
        "storage": storage | changed.get("storage", {}),
    }


@pytest.fixture(scope="module")
def catalog(objectstore: ObjectStore) -> Catalog:
    made = RestCatalog("tests", **objectstore.catalog)
    made.create_namespace_if_not_exists("shop")
    return made


@pytest.fixture
def table(catalog: Catalog, request: pytest.FixtureRequest) -> Iterator[Any]:
    name = f"shop.{request.node.originalname.removeprefix('test_')[:40]}"
    made = catalog.create_table(name, rows().schema)
    yield made
    catalog.drop_table(name)


@contextmanager
def opened(
    given: dict[str, Any], name: str, folder: Path, stop: Stop | None = None
) -> Iterator[tuple[Workspace, Snapshot]]:
    run = folder / "run"
    run.mkdir(exist_ok=True)
    source = Iceberg(
        Lake.model_validate(given), Table.model_validate({"table": name}), Invocation(folder, {})
    )
    with Workspace(run, stop or Stop()) as workspace, source.open(workspace) as snapshot:
        workspace.harden([])
        yield workspace, snapshot


def read(given: dict[str, Any], name: str, folder: Path) -> list[tuple[Any, ...]]:
    with opened(given, name, folder) as (workspace, snapshot):
        return workspace.run(f"{snapshot.rows(list(snapshot.description.columns)).sql} ORDER BY 1")


def read_after(
    given: Any, name: str, folder: Path, event: Callable[[], None], stop: Stop | None = None
) -> None:
    """Open the table, let something happen, and read; somebody asks for a stop a moment later."""
    with opened(given, name, folder, stop) as (workspace, snapshot):
        query = snapshot.rows(NAMES)
        event()
        if stop is not None:
            threading.Timer(0.3, stop.request, [15]).start()
        workspace.run(query.sql)


def refusal(given: dict[str, Any], name: str, folder: Path) -> SourceError:
    with pytest.raises(SourceError) as caught:
        read(given, name, folder)
    return caught.value


def named(table: Any) -> str:
    return ".".join(table.name())


# -- a real REST catalog and S3


def test_a_rest_catalog_with_s3_is_read_and_fed(objectstore: ObjectStore, table: Any, tmp_path: Path) -> None:
    given, name = connection(objectstore), named(table)
    table.append(rows(A, B))
    with opened(given, name, tmp_path) as (_, snapshot):
        before = snapshot.description.version
    file = the_file(table)
    delete_positions(table, {file: [1]})
    table.append(rows(C))
    assert read(given, name, tmp_path) == [A, C]
    with opened(given, name, tmp_path) as (workspace, snapshot):
        feed = snapshot.feed(NAMES, ["id"], before)
        assert isinstance(feed, Feed)
        found = Changes(workspace, feed, 1)
    assert (found.rows, found.gone, found.total) == ({(1,): A, (3,): C}, {(2,)}, 2)


def test_a_token_is_enough_where_there_is_one(
    objectstore: ObjectStore, table: Any, catalog: Any, tmp_path: Path
) -> None:
    table.append(rows(A))
    token = catalog._auth_manager.auth_header().removeprefix("Bearer ")
    given = connection(objectstore, catalog={"credential": None, "token": token})
    assert read(given, named(table), tmp_path) == [A]


@pytest.mark.parametrize(
    ("changed", "name", "message"),
    [
        ({}, "shop.nowhere", "table shop.nowhere is not in the catalog"),
        ({}, "nowhere.nowhere", "table nowhere.nowhere is not in the catalog"),
        ({"catalog": {"credential": "tests:wrong-password-9"}}, "shop.x", "no token for this credential"),
        (
            {"catalog": {"credential": None, "token": "wrong-password-9"}},
            "shop.x",
            "the catalog refuses the credential",
        ),
        ({"catalog": {"uri": "http://127.0.0.1:1"}}, "shop.x", "the catalog cannot be reached"),
    ],
)
def test_what_is_wrong_with_a_catalog_is_one_sentence(
    objectstore: ObjectStore, catalog: Catalog, tmp_path: Path, changed: Any, name: str, message: str
) -> None:
    problem = refusal(connection(objectstore, **changed), name, tmp_path)
    assert message in problem.message
    assert problem.code == ("MART_MISSING" if "not in the catalog" in message else "MART_UNREADABLE")
    assert problem.hint
    assert "wrong-password-9" not in f"{problem} {problem.hint}"


def test_a_key_that_may_not_read_the_files_is_named(
    objectstore: ObjectStore, table: Any, tmp_path: Path
) -> None:
    table.append(rows(A))
    given = connection(objectstore, storage={"secret_access_key": "wrong-password-9"})
    problem = refusal(given, named(table), tmp_path)
    assert problem.message == f"table {named(table)} cannot be read: the storage does not permit it"


def test_a_network_that_dies_half_way_delivers_nothing(
    objectstore: ObjectStore, table: Any, tmp_path: Path
) -> None:
    table.append(rows(A))
    parts = urlsplit(objectstore.url)
    with Proxy(str(parts.hostname), parts.port or 0) as proxy:
        given = connection(objectstore, storage={"endpoint": f"http://127.0.0.1:{proxy.port}"})
        assert read(given, named(table), tmp_path) == [A]
        with pytest.raises(SourceError) as caught:
            read_after(given, named(table), tmp_path, proxy.refuse)
    assert "the storage did not give one of its files" in caught.value.message


def test_a_request_to_stop_does_not_wait_for_a_silent_storage(
    objectstore: ObjectStore, table: Any, tmp_path: Path
) -> None:
    table.append(rows(A))
    parts, stop = urlsplit(objectstore.url), Stop()
    with Proxy(str(parts.hostname), parts.port or 0) as proxy:
        given = connection(objectstore, storage={"endpoint": f"http://127.0.0.1:{proxy.port}"})
        with pytest.raises(Stopped):
            read_after(given, named(table), tmp_path, proxy.blackhole, stop)


def test_a_request_to_stop_does_not_wait_for_a_silent_catalog(
    objectstore: ObjectStore, tmp_path: Path
) -> None:
    parts, stop = urlsplit(objectstore.catalog_url), Stop()
    with Proxy(str(parts.hostname), parts.port or 0) as proxy:
        proxy.blackhole()
        given = connection(objectstore, catalog={"uri": f"http://127.0.0.1:{proxy.port}"})
        threading.Timer(0.3, stop.request, [15]).start()
        with pytest.raises(Stopped), opened(given, "shop.x", tmp_path, stop):
            pass


# -- SQL catalogs


def test_a_sql_catalog_in_postgresql_is_only_read(postgres: Database, tmp_path: Path) -> None:
    uri = postgres.url.replace("postgresql://", "postgresql+psycopg://")
    writer = SqlCatalog("lake", uri=uri, warehouse=f"file://{tmp_path}/files")
    writer.create_namespace("shop")
    writer.create_table("shop.t", rows().schema).append(rows(A))
    given = {"host": postgres.host, "port": postgres.port, "dbname": postgres.dbname, "user": postgres.user}
    database = given | {"password": postgres.password}
    of = {"catalog": {"type": "sql", "name": "lake", "postgres": database}}
    assert read(of, "shop.t", tmp_path) == [A]
    wrong = {"catalog": {"type": "sql", "name": "lake", "postgres": database | {"port": 1}}}
    problem = refusal(wrong, "shop.t", tmp_path)
    assert "the database of the catalog cannot be read" in problem.message
    writer.destroy_tables()
    assert refusal(of, "shop.t", tmp_path).code == "MART_UNREADABLE"
    with postgres.connect() as asked:
        assert asked.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchall() == [
            (0,)
        ]


def test_a_sql_catalog_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    problem = refusal({"catalog": {"type": "sql", "path": "no.db"}}, "shop.t", tmp_path)
    assert (problem.code, problem.message) == ("MART_MISSING", "there is no SQL catalog at no.db")
    (tmp_path / "no.db").touch()
    assert (
        refusal({"catalog": {"type": "sql", "path": "no.db"}}, "shop.t", tmp_path).code == "MART_UNREADABLE"
    )
    assert (tmp_path / "no.db").stat().st_size == 0


# -- definitions


REST = {"type": "rest", "uri": "https://catalog.example/iceberg"}


@pytest.mark.parametrize(
    ("catalog", "more", "why"),
    [
        (REST | {"uri": "http://catalog.example"}, {}, "catalog.example is another machine: use https"),
        (
            REST | {"oauth2_server_uri": "http://other.example", "credential": "a:b"},
            {},
            "other.example is another",
        ),
        (REST, {"storage": {"endpoint": "http://s3.example"}}, "s3.example is another machine"),
        (REST | {"uri": "https://me:secret-9@catalog.example"}, {}, "without user, password"),
        (REST | {"uri": "https://catalog.example/?token=secret-9"}, {}, "without user, password"),
        (
            REST | {"token": "secret-9", "credential": "a:secret-9"},
            {},
            "a `token` or a `credential`, not both",
        ),
        (REST | {"scope": "all"}, {}, "need a `credential`"),
        (REST | {"tokn": "secret-9"}, {}, "Extra inputs are not permitted"),
        (REST | {"properties": {"s3.region": "x"}}, {}, "s3.region has an option of its own: storage.region"),
        (REST | {"properties": {"py-io-impl": "os.system"}}, {}, "no property that is passed on"),
        (REST | {"properties": {"s3.retry-strategy-impl": "x"}}, {}, "no property that is passed on"),
        ({"type": "sql"}, {}, "a `path` (SQLite) or `postgres`"),
        ({"type": "hive", "uri": "thrift://hive.example:9083"}, {}, "hive.example is another machine"),
        ({"type": "hive", "uri": "http://127.0.0.1"}, {}, "looks like thrift://"),
        ({"type": "glue", "endpoint": "http://glue.example"}, {}, "glue.example is another machine"),
        ({"type": "nessie", "uri": "https://catalog.example"}, {}, "does not match any of the expected tags"),
    ],
)
def test_a_wrong_connection_is_refused_before_anything_is_sent(catalog: Any, more: Any, why: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Lake.model_validate({"catalog": catalog, **more})
    said = "; ".join(one["msg"] for one in caught.value.errors(include_input=False, include_url=False))
    assert why in said
    assert "secret-9" not in said


def test_plaintext_is_allowed_only_where_it_is_said() -> None:
    Lake.model_validate({"catalog": REST | {"uri": "http://catalog.example"}, "allow_plaintext": True})


@pytest.mark.parametrize("kind", ["glue", "hive"])
def test_a_client_that_is_not_installed_is_named(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, f"pyiceberg.catalog.{kind}", raising=False)
    for client in ("boto3", "thrift", "hive_metastore"):
        monkeypatch.setitem(sys.modules, client, None)
    address = {"uri": "thrift://127.0.0.1:1"} if kind == "hive" else {"region": "eu-central-1"}
    problem = refusal({"catalog": {"type": kind, **address}}, "shop.t", tmp_path)
    assert (problem.code, problem.hint) == ("CLIENT_MISSING", f"pip install 'pyiceberg[{kind}]'")


# -- end to end


SYNC = {
    "key": "[id]",
    "contract": "{id: {type: integer}, name: {type: string, nullable: true},"
    " amount: {type: decimal, max_digits: 12, decimal_places: 2, nullable: true}}",
    "destination": "{type: postgres, table: crm.customers, create: true}",
    "deletes": "delete",
    "guards": "{max_delete_rate: 1}",
}


def test_a_lake_is_delivered_into_postgresql(
    objectstore: ObjectStore, table: Any, postgres: Database, tmp_path: Path
) -> None:
    shop = Workshop(tmp_path / "shop")
    shop.use(postgres=postgres)
    written = connection(objectstore)
    written["catalog"]["credential"], written["storage"]["secret_access_key"] = "${LAKE}", "${S3}"
    shop.write("retl.yml", f"sources: {{lake: {json.dumps({'type': 'iceberg'} | written)}}}\n")
    shop.environment |= {"LAKE": f"{objectstore.user}:{objectstore.password}", "S3": objectstore.password}
    shop.sync("customers", source=f"{{from: lake, table: {named(table)}}}", **SYNC)
    with postgres.connect() as crm:
        crm.execute("CREATE SCHEMA crm")
        table.append(rows(A, B, C))
        (run,) = shop.json("sync")["syncs"]
        assert (run["status"], run["inserted"]) == ("SUCCESS", 3)
        table.delete("id = 2")
        table.upsert(rows((1, "new", None)), join_cols=["id"])
        (run,) = shop.json("sync")["syncs"]
        assert (run["updated"], run["deleted"], run["unchanged"]) == (1, 1, 1)
        delivered = crm.execute("SELECT id, name, amount FROM crm.customers ORDER BY id").fetchall()
    assert delivered == [(1, "new", None), C]
    shown = shop.json("show")
    assert shown["source_version"].split(":")[1:3] == [
        str(table.metadata.table_uuid),
        str(table.refresh().current_snapshot().snapshot_id),
    ]
    (run,) = shop.json("sync")["syncs"]
    assert run["unchanged"] == 2


def test_no_secret_of_a_lake_is_shown(objectstore: ObjectStore, tmp_path: Path) -> None:
    shop = Workshop(tmp_path / "shop")
    written = connection(
        objectstore, catalog={"credential": "tests:${LAKE}"}, storage={"secret_access_key": "${LAKE}"}
    )
    shop.write("retl.yml", f"sources: {{lake: {json.dumps({'type': 'iceberg'} | written)}}}\n")
    shop.environment |= {"LAKE": "canary-of-the-lake"}
    shop.sync(
        "customers",
        source="{from: lake, table: shop.t}",
        **SYNC | {"destination": '{type: redis, key: "{id}", value: json, ttl: none}'},
    )
    said = [shop.retl(*words) for words in (["validate"], ["plan"], ["sync"], ["check"])]
    assert any("no token for this credential" in one.err + one.out for one in said)
    assert not [one for one in said if "canary-of-the-lake" in one.out + one.err]
