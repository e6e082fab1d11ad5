"""`retl dbt exposures`: the syncs, as dbt shows them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.commands import Workshop
from tests.test_dbt_results import Dbt

HOSTILE = "'Say \"{{ hi }}\" # to: {% all %}'"


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    made = Workshop(tmp_path / "shop")
    made.warehouse(
        "CREATE TABLE customers AS SELECT 1 AS id; CREATE SCHEMA gold; CREATE TABLE gold.orders AS SELECT 1 AS id;"
        "CREATE VIEW people AS SELECT * FROM customers; CREATE TABLE codes AS SELECT 1 AS id"
    )
    Dbt(made.folder / "target").did("build")
    made.write("retl.yml", "connections: {crm: {type: postgres, host: secret.internal, dbname: crm}}\n")
    destination = "{connection: crm, table: crm.customers}"
    made.sync(
        "crm-customers",
        source="{dbt: customers}",
        key="[id]",
        destination=destination,
        description=HOSTILE,
        tags="[crm]",
    )
    made.sync("cache", source='{sql: "SELECT * FROM gold.orders JOIN people USING (id)"}', key="[id]")
    made.sync("own", source="{table: users}")
    return made


def test_each_sync_of_a_model_is_an_exposure_and_names_what_it_reads(shop: Workshop) -> None:
    document = yaml.safe_load(shop.retl("dbt", "exposures").out)
    cache, customers = document["exposures"]
    assert customers == {
        "name": "crm_customers",
        "label": "crm.customers in crm",
        "type": "application",
        "description": 'Say "{ { hi }}" # to: { % all %}',
        "tags": ["crm"],
        "owner": {"name": "retl"},
        "depends_on": ["ref('customers')"],
        "meta": {"delivered_by": "retl", "sync": "crm-customers"},
    }
    assert cache["depends_on"] == ["ref('orders')", "ref('people')"]
    assert "secret" not in shop.retl("dbt", "exposures").out


def test_the_file_is_written_once_and_checked(shop: Workshop) -> None:
    path = shop.folder / "models" / "retl.yml"
    words = ("dbt", "exposures", "--out", str(path))
    assert shop.retl(*words, "--check").code == 1
    assert not path.exists()
    assert shop.json(*words)["changed"] is True
    first = path.read_bytes()
    assert (shop.json(*words)["changed"], shop.retl(*words, "--check").code) == (False, 0)
    (shop.folder / "syncs" / "cache.yml").unlink()
    said = shop.retl(*words, "--check")
    assert (said.code, "not up to date" in said.out, path.read_bytes() == first) == (1, True, True)
    assert "[USAGE]" in shop.retl("dbt", "exposures", "--check").err


def test_an_exposure_that_asked_for_the_sync_is_not_made_twice(shop: Workshop) -> None:
    path = shop.folder / "target" / "manifest.json"
    manifest = json.loads(path.read_text())
    exposure = {"name": "cache", "resource_type": "exposure", "unique_id": "exposure.shop.cache"}
    manifest["exposures"] = {"exposure.shop.cache": exposure}
    path.write_text(json.dumps(manifest))
    assert [one["name"] for one in shop.json("dbt", "exposures")["exposures"]] == ["crm_customers"]
    exposure["meta"] = {"delivered_by": "retl"}  # type: ignore[assignment]
    path.write_text(json.dumps(manifest))
    assert len(shop.json("dbt", "exposures")["exposures"]) == 2


def test_two_syncs_that_dbt_cannot_tell_apart_are_an_error(shop: Workshop) -> None:
    shop.sync("crm_customers", source="{dbt: customers}", key="[id]")
    said = shop.retl("dbt", "exposures")
    assert (said.code, "[EXPOSURE_NAME]" in said.err) == (2, True)
