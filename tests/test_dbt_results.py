"""What dbt's results say of the marts that a run reads, over several commands of dbt and several runs."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from retl.engine.sql_text import Query
from retl.engine.workspace import Workspace
from retl.observe.signals import Stop
from retl.project.definitions import Guards
from retl.run import guards
from retl.run.guards import Facts
from retl.sources import dbt_results, relations
from retl.sources.dbt import read_manifest
from tests.commands import Workshop

BEGIN = datetime.now(UTC) - timedelta(hours=1)
MARTS = {"customers": "main", "orders": "gold", "people": "main", "codes": "main"}


class Dbt:
    """The target folder of a dbt project with two tables, a view and a seed, as dbt's commands leave it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.minutes = folder, 0
        folder.mkdir()
        kinds = {"codes": "seed"}
        nodes = [
            self._node(kinds.get(name, "model"), name, relation_name=f'"warehouse"."{schema}"."{name}"')
            for name, schema in MARTS.items()
        ]
        nodes += [
            self._node("test", f"unique_{name}", attached_node=f"model.shop.{name}")
            for name in ("customers", "people")
        ]
        self.manifest = {
            "metadata": {"generated_at": self._now(), "adapter_type": "duckdb"},
            "nodes": {node["unique_id"]: node for node in nodes},
        }
        (folder / "manifest.json").write_text(json.dumps(self.manifest))

    def did(self, command: str, **results: str) -> None:
        """One more command; the results of the last one are gone."""
        self.minutes += 1
        document = {
            "metadata": {"generated_at": self._now()},
            "args": {"which": command},
            "results": [
                {
                    "unique_id": self._id(name),
                    "status": status,
                    "timing": [{"name": "execute", "completed_at": self._now()}],
                }
                for name, status in results.items()
            ],
        }
        (self.folder / "run_results.json").write_text(json.dumps(document))

    def _node(self, kind: str, name: str, **more: Any) -> dict[str, Any]:
        unique_id = f"{kind}.shop.{name}"
        return {"name": name, "resource_type": kind, "unique_id": unique_id, "package_name": "shop", **more}

    def _id(self, name: str) -> str:
        return next(one for one in self.manifest["nodes"] if one.endswith(f".{name}"))

    def _now(self) -> str:
        return (BEGIN + timedelta(minutes=self.minutes)).isoformat()


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    made = Workshop(tmp_path / "shop")
    made.warehouse(
        "CREATE TABLE customers AS SELECT 1 AS id, 'a' AS name; CREATE SCHEMA gold;"
        "CREATE TABLE gold.orders AS SELECT 1 AS id, 2 AS total; CREATE TABLE codes AS SELECT 1 AS id;"
        "CREATE VIEW people AS SELECT * FROM customers; CREATE VIEW mine AS SELECT * FROM gold.orders;"
        "CREATE MACRO order_of(n) AS TABLE SELECT * FROM gold.orders WHERE id = n"
    )
    made.write("retl.yml", "connections: {out: {type: sqlite, path: out.db}}\n")
    mart(made, "{dbt: customers}")
    return made


@pytest.fixture
def dbt(shop: Workshop) -> Dbt:
    return Dbt(shop.folder / "target")


def mart(shop: Workshop, source: str) -> None:
    destination = "{connection: out, table: mart, create: true}"
    shop.sync("mart", source=source, key="[id]", destination=destination)


def codes(shop: Workshop, *words: str) -> list[str]:
    """The guards that refused a run; none if it succeeded."""
    said = shop.retl("sync", "--output", "json", *words)
    (summary,) = said.document["syncs"]
    assert (said.code == 3) == bool(summary["guards"]), said.err
    assert said.code in (0, 3), said.err
    return [guard["code"] for guard in summary["guards"]]


def notes(shop: Workshop) -> list[str]:
    (summary,) = shop.json("sync", "--dry-run")["syncs"]
    return [note for note in summary["notes"] if note.startswith("dbt")]


def test_dbt_run_then_dbt_test_is_enough_and_one_note_says_what_is_not_known(
    shop: Workshop, dbt: Dbt
) -> None:
    dbt.did("run", customers="success")
    dbt.did("test", unique_customers="pass")
    assert codes(shop) == []
    assert notes(shop) == ["dbt: customers passed its tests, and no result says how its last run ended"]


def test_what_a_run_has_seen_is_in_the_ledger_and_what_a_dry_run_saw_is_not(shop: Workshop, dbt: Dbt) -> None:
    dbt.did("run", customers="success")
    assert codes(shop, "--dry-run") == []
    dbt.did("run", orders="success")
    assert codes(shop) == ["DBT_UNKNOWN"]
    dbt.did("run", customers="success")
    assert codes(shop) == []
    dbt.did("run", orders="success")
    assert codes(shop) == []


class Runs:
    """Runs one after the other, as far as they judge and keep dbt's results of a model."""

    def __init__(self, dbt: Dbt) -> None:
        self.dbt, self.kept = dbt, dict[str, str]()

    def codes(self, model: str = "customers", max_age: float | None = None) -> list[str]:
        (found,) = dbt_results.reported(self.dbt.folder, [model])
        found = found.after(self.kept.get(model))
        self.kept[model] = found.memory.text()
        facts = Facts(1, 1, 0, 0, builds=(found.build(),), max_age=max_age, now=datetime.now(UTC))
        return [one.code for one in guards.judge(facts, Guards())]


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(Dbt(tmp_path / "target"))


def test_a_model_without_tests_has_nobody_to_vouch_for_it(runs: Runs) -> None:
    runs.dbt.did("test", unique_customers="pass")
    assert (runs.codes("customers"), runs.codes("orders")) == ([], ["DBT_UNKNOWN"])
    assert runs.codes("customers", max_age=1e9) == ["DBT_STALE"]


@pytest.mark.parametrize("status", ["fail", "error"])
def test_a_failed_test_is_known_without_the_run(runs: Runs, status: str) -> None:
    runs.dbt.did("test", unique_customers=status)
    assert runs.codes() == ["DBT_UNKNOWN", "DBT_TESTS"]


def test_what_was_seen_once_is_known_after_dbt_has_overwritten_it(runs: Runs) -> None:
    runs.dbt.did("build", customers="success", unique_customers="pass")
    assert runs.codes() == []
    runs.dbt.did("run", orders="success")
    assert runs.codes(max_age=26 * 3600) == []
    runs.dbt.did("test", unique_customers="pass")
    assert (runs.codes(max_age=26 * 3600), runs.codes(max_age=60)) == ([], ["DBT_STALE"])


def test_a_failure_is_remembered_until_the_tests_pass_again(runs: Runs) -> None:
    runs.dbt.did("run", customers="error")
    assert runs.codes() == ["DBT_FAILED"]
    runs.dbt.did("run", orders="success")
    assert runs.codes() == ["DBT_FAILED"]
    runs.dbt.did("test", unique_customers="pass")
    assert runs.codes() == []


def test_a_failed_test_is_remembered_until_it_passes(runs: Runs) -> None:
    runs.dbt.did("build", customers="success", unique_customers="fail")
    assert runs.codes() == ["DBT_TESTS"]
    runs.dbt.did("run", customers="success")
    assert runs.codes() == ["DBT_TESTS"]
    runs.dbt.did("test", unique_customers="pass")
    assert runs.codes() == []


def test_tests_of_another_command_than_the_manifests_vouch_for_nothing(runs: Runs) -> None:
    runs.dbt.did("test", unique_customers="pass")
    path = runs.dbt.folder / "manifest.json"
    path.write_text(path.read_text().replace('"adapter_type"', '"invocation_id": "another", "adapter_type"'))
    assert runs.codes() == ["DBT_UNKNOWN"]


READS_ORDERS = [
    "SELECT * FROM gold.orders",
    "SELECT o.* FROM warehouse.gold.Orders o WHERE o.id = $n",
    "SELECT 1 AS id, (SELECT max(total) FROM gold.orders) AS total",
    "WITH orders AS (SELECT * FROM gold.orders) SELECT * FROM orders",
    "SELECT * FROM mine",
    "SELECT * FROM order_of(1)",
    "SELECT * FROM query_table('gold.orders')",
    "SELECT * FROM mine, read_csv('/dev/null', columns = {'a': 'INT'})",
]
OTHERS = {
    "WITH orders AS (SELECT * FROM customers) SELECT * FROM orders JOIN codes USING (id)": [
        "customers",
        "codes",
    ],
    "SELECT * FROM people": ["people"],  # the view of dbt, not the table behind it
    "SELECT id FROM people UNION ALL SELECT id FROM customers": ["customers", "people"],
    "SELECT 'gold.orders' AS id": [],
    "SELECT * FROM users": [],
}


def test_duckdb_says_which_models_a_select_reads(shop: Workshop, dbt: Dbt, tmp_path: Path) -> None:
    manifest = read_manifest(dbt.folder / "manifest.json")
    with Workspace(tmp_path, Stop()) as workspace:
        workspace.run(f"ATTACH '{shop.folder / 'data/warehouse.duckdb'}' AS warehouse (READ_ONLY)")
        workspace.run("USE warehouse")
        for sql, wanted in {**{sql: ["orders"] for sql in READS_ORDERS}, **OTHERS}.items():
            found = relations.models(workspace, Query(sql, {}, "source.sql"), manifest, "warehouse")
            assert sorted(one.name for one in found) == sorted(wanted), sql


@pytest.mark.parametrize(
    "source",
    [
        "{table: gold.orders}",
        '{sql: "SELECT * FROM gold.orders JOIN codes USING (id) WHERE id = $n"}',  # a seed is loaded once
        '{inputs: {o: {table: gold.orders}, c: {dbt: customers}}, sql: "SELECT o.* FROM o JOIN c USING (id)"}',
    ],
)
def test_a_mart_that_dbt_calls_bad_is_not_read_whatever_the_source_calls_it(
    shop: Workshop, dbt: Dbt, source: str
) -> None:
    mart(shop, source)
    dbt.did("run", orders="error", customers="success")
    given = ("--var", "n=1") if "$n" in source else ()
    assert codes(shop, *given, "--dry-run") == ["DBT_FAILED"]


def test_without_dbt_a_select_needs_no_results(shop: Workshop) -> None:
    mart(shop, '{sql: "SELECT * FROM gold.orders"}')
    assert codes(shop) == []
