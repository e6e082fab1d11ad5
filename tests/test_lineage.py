"""Lineage, as a server or a file gets it from `retl sync`: from which mart to which table, in whose words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from openlineage.client.event_v2 import RunEvent

from retl.app.lineage import Lineage, dataset, origin, run_uuid
from retl.observe import log
from retl.project.definitions import Warehouse
from retl.project.marts import Source
from tests.collector import Collector, collecting, silence
from tests.commands import ROWS, Workshop
from tests.servers import Database, RedisServer

CONTRACT = "{user_id: {type: integer}, email: {type: string}, spend: {type: decimal, max_digits: 12, decimal_places: 2, le: 29}}"
METADATA = {"generated_at": "2026-11-21T06:00:00Z"}
PARENT = "0190f8a7-6c1e-7a52-9a3d-2f1f0c7b5e11"


@pytest.fixture
def workshop(tmp_path: Path, redis_server: RedisServer) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.use(redis_server)
    return made


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as server:
        yield server


def events(collector: Collector) -> list[dict[str, Any]]:
    assert {path for path, _, _ in collector.requests} <= {"/api/v1/lineage"}
    return [json.loads(body) for _, _, body in collector.requests]


def test_a_run_starts_and_completes_from_its_mart_to_its_table(
    workshop: Workshop, collector: Collector, postgres: Database
) -> None:
    workshop.use(postgres=postgres)
    workshop.sync("users", contract=CONTRACT, destination="{type: postgres, table: crm.users, create: true}")
    (told,) = workshop.json(
        "sync",
        OPENLINEAGE_URL=collector.url,
        OPENLINEAGE_NAMESPACE="shop",
        OPENLINEAGE_PARENT_ID=f"airflow/daily.retl/{PARENT}",
        RETL_CORRELATION_ID="airflow-7",
    )["syncs"]
    start, complete = events(collector)
    for event, kind in ((start, "START"), (complete, "COMPLETE")):
        assert event["eventType"] == kind
        assert (event["job"]["namespace"], event["job"]["name"]) == ("shop", "users")
        assert event["run"]["runId"] == str(run_uuid(told["run_id"]))
        parent = event["run"]["facets"]["parent"]
        assert (parent["job"]["namespace"], parent["job"]["name"]) == ("airflow", "daily.retl")
        assert parent["run"]["runId"] == PARENT
        tags = {one["key"]: one["value"] for one in event["run"]["facets"]["tags"]["tags"]}
        assert tags["correlation_id"] == "airflow-7"
        ((read,), (written,)) = event["inputs"], event["outputs"]
        warehouse = (workshop.folder / "data" / "warehouse.duckdb").resolve()
        assert (read["namespace"], read["name"]) == (f"duckdb://{warehouse}", "warehouse.main.users")
        assert written["namespace"].startswith("postgres://")
        assert written["namespace"].endswith(f":{postgres.port}")
        assert written["name"] == f"{postgres.dbname}.crm.users"
    columns = complete["inputs"][0]["facets"]["schema"]["fields"]
    assert {one["name"]: one["type"] for one in columns} == {
        "user_id": "BIGINT",
        "email": "VARCHAR",
        "spend": "DECIMAL(12,2)",
    }
    assert complete["inputs"][0]["inputFacets"]["inputStatistics"]["rowCount"] == ROWS
    assert complete["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] == ROWS - 1
    sent = b"".join(body for _, _, body in collector.requests)
    assert b"@example.com" not in sent
    assert postgres.password.encode() not in sent


def test_a_refused_run_fails_with_its_code_and_sql_is_named_by_its_digest(
    workshop: Workshop, collector: Collector
) -> None:
    sql = "SELECT * FROM users WHERE email <> 'canary@example.com'"
    workshop.sync("users", contract=CONTRACT.replace("le: 29", "le: 1"), source=f'{{sql: "{sql}"}}')
    assert workshop.retl("sync", OPENLINEAGE_URL=collector.url).code == 3
    _, failed = events(collector)
    assert failed["eventType"] == "FAIL"
    assert failed["run"]["facets"]["errorMessage"]["message"] == "REJECT_RATE"
    assert failed["inputs"][0]["name"] == f"sql:{sha256(sql.encode()).hexdigest()[:16]}"
    assert failed["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] == 0
    assert b"canary" not in b"".join(body for _, _, body in collector.requests)


def test_a_killed_run_is_aborted_by_the_next_one(workshop: Workshop, collector: Collector) -> None:
    workshop.sync("users")
    workshop.process("sync", OPENLINEAGE_URL=collector.url, RETL_CRASH_AT="delta_written")
    ledger = workshop.json("runs")["runs"]
    collector.requests.clear()
    workshop.json("sync", OPENLINEAGE_URL=collector.url)
    told = [(one["eventType"], one["run"]["runId"]) for one in events(collector)]
    now = str(run_uuid(workshop.json("show")["run_id"]))
    assert told == [("START", now), ("ABORT", str(run_uuid(ledger[0]["run_id"]))), ("COMPLETE", now)]


def test_a_file_does_as_well_and_config_env_can_say_so(workshop: Workshop, tmp_path: Path) -> None:
    workshop.sync("users")
    file = tmp_path / "events.jsonl"
    transport = f"transport: {{type: file, log_file_path: {file}, append: true}}\n"
    workshop.write("openlineage-here.yml", transport)
    workshop.write("config.env", f"OPENLINEAGE_CONFIG={workshop.folder}/openlineage-here.yml\n")
    workshop.json("sync")
    workshop.json("sync", "--dry-run")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [one["eventType"] for one in lines] == ["START", "COMPLETE"]
    assert {one["outputs"][0]["name"] for one in lines} == {
        f"{workshop.environment['REDIS_DB']}/users:{{user_id}}"
    }


def test_nothing_is_sent_where_it_is_disabled(workshop: Workshop, collector: Collector) -> None:
    workshop.sync("users")
    workshop.json("sync", OPENLINEAGE_URL=collector.url, OPENLINEAGE_DISABLED="true")
    assert collector.requests == []


def test_a_server_that_is_silent_delays_no_run_and_fails_none(workshop: Workshop) -> None:
    workshop.sync("users")
    with silence() as url:
        said = workshop.retl("sync", "--output", "json", OPENLINEAGE_URL=url)
    (told,) = said.document["syncs"]
    assert (said.code, told["status"]) == (0, "SUCCESS")
    warned = [one for one in map(json.loads, said.err.splitlines()) if one["level"] == "warning"]
    assert [one["code"] for one in warned] == ["LINEAGE_UNSENT"]


@pytest.mark.parametrize("setting", ["no/such/uuid", "nonsense"])
def test_a_wrong_setting_is_a_warning(workshop: Workshop, collector: Collector, setting: str) -> None:
    workshop.sync("users")
    said = workshop.retl("sync", OPENLINEAGE_URL=collector.url, OPENLINEAGE_PARENT_ID=setting)
    assert said.code == 0
    assert "OBSERVER_UNAVAILABLE" in said.err
    assert collector.requests == []


@pytest.mark.parametrize(
    ("object", "namespace", "name"),
    [
        ('postgres://localhost:5432/crm/"crm"."users"', "postgres://localhost:5432", "crm.crm.users"),
        ("redis://cache:6379/0/reco:{user_id}", "redis://cache:6379", "0/reco:{user_id}"),
        ("https://api.example.com/v1/users", "https://api.example.com", "v1/users"),
        ("https://hooks.example.com#0123456789abcdef", "https://hooks.example.com", "#0123456789abcdef"),
        ("mail", "retl", "mail"),
    ],
)
def test_a_destination_is_named_by_its_identity(object: str, namespace: str, name: str) -> None:
    assert dataset(object) == (namespace, name)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ({"table": "users"}, "shop.main.users"),
        ({"table": "crm.users"}, "shop.crm.users"),
        ({"dbt": "mart_users"}, "shop.marts.mart_users"),
        ({"dbt": "nobody_knows"}, "shop.main.nobody_knows"),
        ({"file": "marts/users.sql"}, "marts/users.sql"),
    ],
)
def test_a_mart_is_named_as_dbt_names_it(tmp_path: Path, source: dict[str, str], name: str) -> None:
    node = {
        "unique_id": "model.shop.mart_users",
        "resource_type": "model",
        "name": "mart_users",
        "package_name": "shop",
        "relation_name": '"shop"."marts"."mart_users"',
        "database": "shop",
        "columns": {},
    }
    (tmp_path / "manifest.json").write_text(
        json.dumps({"metadata": METADATA, "nodes": {node["unique_id"]: node}})
    )
    warehouse = Warehouse(path=str(tmp_path / "shop.duckdb"), dbt=".")
    assert origin(Source(**source), warehouse, tmp_path) == (f"duckdb://{tmp_path}/shop.duckdb", name)


def test_a_listener_that_fails_is_let_go_and_the_others_hear_on(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("json")
    told: list[RunEvent] = []
    lineage = Lineage(told.append, {}, lambda sync: ("duckdb:///w.duckdb", sync))
    broken = Lineage(told.append, {}, lambda sync: {}[sync])  # knows no sync: a KeyError
    log.listen(broken)
    log.listen(lineage)
    with log.bound(run_id="r1", sync="users"):
        log.event("run_started", object="mail", correlation_id=None, seconds=0.1)
        log.event("run_started", object="mail", correlation_id=None, seconds=0.1)
    log.configure("json")
    assert len(told) == 2
    said = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [one["code"] for one in said if one["event"] == "observer_failed"] == ["OBSERVER_FAILED"]
