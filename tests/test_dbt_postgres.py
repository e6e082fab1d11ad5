"""dbt models in PostgreSQL: read by the source of that database, and judged by dbt's results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Workshop
from tests.servers import Database, RedisServer
from tests.test_dbt_elsewhere import AT, DESTINATION, manifest


@pytest.fixture
def shop(tmp_path: Path, postgres: Database, redis_server: RedisServer) -> Workshop:
    made = Workshop(tmp_path / "shop")
    made.use(redis_server)
    with postgres.connect() as connection:
        connection.execute("CREATE SCHEMA gold; CREATE TABLE gold.people AS SELECT 1 AS id, 'a' AS name")
    keys = f'user: {postgres.user}, password: "{postgres.password}", dbname: {postgres.dbname}'
    address = f"type: postgres, host: {postgres.host}, port: {postgres.port}, {keys}"
    made.write("retl.yml", f"warehouse: {{dbt: dbt/target}}\nsources:\n  dw: {{{address}}}\n")
    name = f'"{postgres.dbname}"."gold"."people"'
    meta = {"retl": {"table": "crm.people", "key": "id", "max_age": "26h"}}
    manifest(made.folder / "dbt/target", "postgres", database=postgres.dbname, relation_name=name, meta=meta)
    made.sync("s", source="{from: dw, dbt: people}", key="[id]", destination=DESTINATION)
    return made


def results(shop: Workshop, status: str) -> None:
    result = {"unique_id": "model.shop.people", "status": status}
    timing = [{"name": "execute", "completed_at": AT}]
    document = {
        "metadata": {"generated_at": AT},
        "args": {"which": "build"},
        "results": [result | {"timing": timing}],
    }
    (shop.folder / "dbt/target/run_results.json").write_text(json.dumps(document))


def ran(shop: Workshop) -> tuple[int, dict[str, Any]]:
    said = shop.retl("sync", "--output", "json")
    return said.code, said.document["syncs"][0]


def test_a_model_is_read_from_its_database_if_dbt_calls_it_good(shop: Workshop) -> None:
    code, run = ran(shop)
    assert (code, run["guards"][0]["code"]) == (3, "DBT_UNKNOWN")
    results(shop, "error")
    code, run = ran(shop)
    assert (code, run["guards"][0]["code"]) == (3, "DBT_FAILED")
    results(shop, "success")
    code, run = ran(shop)
    assert (code, run["inserted"]) == (0, 1)
    shop.sync("s", source="{from: dw, dbt: people, max_age: 1h}", key="[id]", destination=DESTINATION)
    code, run = ran(shop)
    assert (code, run["guards"][0]["code"]) == (3, "DBT_STALE")


def test_a_model_that_the_manifest_lacks_is_one_sentence(shop: Workshop) -> None:
    shop.sync("s", source="{from: dw, dbt: poeple}", key="[id]", destination=DESTINATION)
    _, run = ran(shop)
    assert (run["status"], run["error"]["code"]) == ("FAILED", "DBT_MODEL")
    assert "did you mean 'people'?" in run["error"]["hint"]


def test_init_names_the_source_of_the_database(shop: Workshop) -> None:
    said = shop.json("init", "new", "--from-dbt", "dbt/target/manifest.json")
    assert said["left_out"] == []
    sync = (shop.folder / "new/syncs/people.yml").read_text()
    assert 'source: {from: dw, dbt: people, max_age: "26h"}' in sync
    written = (shop.folder / "new/retl.yml").read_text()
    assert "dw: {type: postgres" in written
    assert 'dbt: "../dbt/target"' in written
    assert "type: duckdb" not in written
    project = Workshop.__new__(Workshop)
    project.folder, project.environment = shop.folder / "new", shop.environment
    valid = project.retl("validate")
    assert valid.code == 0, valid.err
