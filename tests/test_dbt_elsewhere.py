"""dbt models that dbt builds elsewhere than in a DuckDB file: where they are, and which source reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from retl.errors import DefinitionError
from retl.sources import dbt
from retl.sources.dbt_model import type_for
from tests.commands import Workshop

AT = "2026-11-28T06:00:00Z"
DESTINATION = '{type: redis, key: "p:{id}", value: json, ttl: none}'


def manifest(target: Path, adapter: str | None, **node: Any) -> None:
    """A project with the model `people`, as dbt writes it."""
    own = {
        "name": "people",
        "resource_type": "model",
        "unique_id": "model.shop.people",
        "package_name": "shop",
        "database": "dw",
        "relation_name": '"dw"."gold"."people"',
    }
    document = {
        "metadata": {"generated_at": AT, "adapter_type": adapter},
        "nodes": {"model.shop.people": own | node},
    }
    target.mkdir(parents=True, exist_ok=True)
    (target / "manifest.json").write_text(json.dumps(document))


def relation(target: Path, adapters: set[str], database: str | None = None) -> str:
    return dbt.relation_in(target, "people", adapters, database, hint="look there")


@pytest.mark.parametrize(
    "name", ['"dw"."gold"."people"', "`dw`.`gold`.`people`", "DW.gold.people", '"dw"."gold"."oth;er"']
)
def test_the_relation_is_written_as_the_adapter_writes_it(tmp_path: Path, name: str) -> None:
    manifest(tmp_path, "snowflake", relation_name=name)
    assert relation(tmp_path, {"snowflake"}) == name


def test_a_model_of_another_adapter_or_database_is_refused(tmp_path: Path) -> None:
    manifest(tmp_path, "bigquery")
    with pytest.raises(DefinitionError, match="dbt builds 'people' in bigquery, and the source is") as caught:
        relation(tmp_path, {"redshift", "postgres"})
    assert caught.value.code == "DBT_DATABASE"
    manifest(tmp_path, "redshift")
    assert relation(tmp_path, {"redshift", "postgres"}, "DW")
    with pytest.raises(DefinitionError, match="in the database 'dw', and the source is 'app'") as caught:
        relation(tmp_path, {"redshift", "postgres"}, "app")
    assert (caught.value.code, caught.value.hint) == ("DBT_DATABASE", "look there")


@pytest.mark.parametrize(
    ("adapter", "kind"),
    [("postgres", "postgres"), ("redshift", "redshift"), ("spark", "databricks"), ("bigquery", "bigquery")],
)
def test_an_adapter_has_a_type_of_source(adapter: str, kind: str) -> None:
    assert type_for(adapter) == kind


def test_a_source_without_sql_reads_no_model(tmp_path: Path) -> None:
    shop = Workshop(tmp_path / "shop")
    shop.write("retl.yml", "sources:\n  gold: {type: delta, root: lake}\n")
    shop.sync("s", source="{from: gold, dbt: people}", key="[id]", destination=DESTINATION)
    said = shop.retl("validate")
    assert said.code == 2
    assert "a source of type delta reads no dbt model" in said.err
    assert "syncs/s.yml:1" in said.err


def test_a_model_built_elsewhere_is_not_looked_for_in_the_duckdb_file(tmp_path: Path) -> None:
    shop = Workshop(tmp_path / "shop")
    manifest(shop.folder / "target", "postgres")
    shop.sync("s", source="{dbt: people}", key="[id]", destination=DESTINATION)
    said = shop.retl("validate")
    assert (said.code, "dbt builds 'people' in postgres" in said.err) == (2, True)


def test_init_refuses_an_adapter_that_no_source_reads(tmp_path: Path) -> None:
    shop = Workshop(tmp_path / "shop")
    manifest(shop.folder / "target", "oracle", meta={"retl": {"table": "crm.people", "key": "id"}})
    said = shop.retl("init", "new", "--from-dbt", "target/manifest.json")
    assert (said.code, "there is no source type 'oracle'" in said.err) == (2, True)
    assert not (shop.folder / "new" / "retl.yml").exists()
