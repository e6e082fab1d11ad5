"""A mart that is a dbt model: what dbt said of it decides whether it is read."""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from retl.errors import Later
from retl.sources.dbt import PATIENCE, Manifest, decoded
from tests import duckdb_files
from tests.commands import Workshop
from tests.inprocess import answer
from tests.servers import RedisServer

pytestmark = pytest.mark.timeout(900)  # the first test waits for dbt to be installed


@pytest.fixture
def workshop(tmp_path: Path, analytics: Path, redis_server: RedisServer) -> Workshop:
    """A project of retl inside the dbt project, after `dbt build`."""
    made = Workshop(tmp_path / "project")
    shutil.copytree(analytics, made.folder, dirs_exist_ok=True)
    made.use(redis_server)
    after(made, "built")
    return made


def after(workshop: Workshop, command: str) -> None:
    """As dbt left its target folder after that command."""
    shutil.rmtree(workshop.folder / "target", ignore_errors=True)
    shutil.copytree(workshop.folder / f"target_{command}", workshop.folder / "target")
    workshop.write("retl.yml", "warehouse: {path: warehouse.duckdb}\n")


def mart(workshop: Workshop, model: str, key: str = "id", **options: str) -> None:
    source = ", ".join([f"dbt: {model}", *(f"{name}: {value}" for name, value in options.items())])
    workshop.sync("mart", source=f"{{{source}}}", key=f"[{key}]", destination=DESTINATION % key)


DESTINATION = '{type: redis, key: "mart:{%s}", value: json, ttl: none}'


def ran(workshop: Workshop, *words: str) -> tuple[int, dict[str, Any]]:
    said = workshop.retl("sync", "--output", "json", *words)
    return said.code, said.document["syncs"][0]


def codes(summary: dict[str, Any]) -> list[str]:
    return [guard["code"] for guard in summary["guards"]]


def edit(file: Path, change: Any) -> None:
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def test_a_model_that_dbt_built_and_tested_is_delivered_and_its_warnings_are_told(
    workshop: Workshop, redis_server: RedisServer
) -> None:
    mart(workshop, "customers", "customer_id", max_age="26h")
    code, summary = ran(workshop)
    assert (code, summary["status"], summary["inserted"]) == (0, "SUCCESS", 3)
    assert any("not_null_customers_email" in note for note in summary["notes"])
    assert json.loads(redis_server.client().get("mart:1"))["email"] == "ada@example.com"


def test_the_relation_is_the_one_dbt_made_whatever_it_is_called(workshop: Workshop) -> None:
    workshop.sync(
        "lines",
        source="{dbt: orders}",
        key="[order_id, line]",
        destination='{type: redis, key: "line:{order_id}:{line}", value: json, ttl: none}',
    )
    code, summary = ran(workshop)
    assert (code, summary["inserted"]) == (0, 2)


@pytest.mark.parametrize(
    ("model", "code", "says"),
    [
        ("broken", "DBT_FAILED", "ended with: error"),
        ("after_broken", "DBT_FAILED", "ended with: skipped"),
        ("dirty", "DBT_TESTS", "unique_dirty_id"),
    ],
)
def test_a_mart_that_dbt_found_bad_is_refused_before_the_first_write_and_that_is_recorded(
    workshop: Workshop, redis_server: RedisServer, model: str, code: str, says: str
) -> None:
    mart(workshop, model)
    exit_code, dry = ran(workshop, "--dry-run")
    assert (exit_code, dry["status"], codes(dry)[0]) == (3, "REFUSED", code)
    explained = workshop.json("explain", "mart")
    assert explained["guards"][0]["code"] == code
    exit_code, summary = ran(workshop)
    assert (exit_code, summary["status"], codes(summary)[0]) == (3, "REFUSED", code)
    assert says in summary["guards"][0]["message"]
    assert redis_server.client().keys("mart:*") == []
    assert workshop.json("runs")["runs"][0]["status"] == "REFUSED"
    accepted = ("--accept", code, "--accept", "REJECT_RATE")  # dirty has its key twice
    exit_code, summary = ran(workshop, *accepted)
    assert (exit_code, codes(summary)) == (0, [])
    assert len(redis_server.client().keys("mart:*")) == (0 if model == "dirty" else 1)


def test_a_mart_is_too_old_by_the_second(workshop: Workshop) -> None:
    mart(workshop, "customers", "customer_id", max_age="26h")

    def age(hours: float) -> None:
        ended = (datetime.now(UTC) - timedelta(hours=hours)).isoformat().replace("+00:00", "Z")

        def change(results: dict[str, Any]) -> None:
            for result in results["results"]:
                for step in result["timing"]:
                    step["completed_at"] = ended

        edit(workshop.folder / "target" / "run_results.json", change)

    age(25.9)
    assert ran(workshop, "--dry-run")[0] == 0
    age(26.01)
    code, summary = ran(workshop, "--dry-run")
    assert (code, codes(summary)) == (3, ["DBT_STALE"])
    assert ran(workshop, "--dry-run", "--accept", "DBT_STALE")[0] == 0


def test_a_failed_run_is_no_young_mart(workshop: Workshop) -> None:
    mart(workshop, "broken", max_age="26h")
    assert codes(ran(workshop)[1]) == ["DBT_FAILED", "DBT_STALE"]


def test_what_dbt_compiled_it_did_not_build(workshop: Workshop) -> None:
    after(workshop, "compiled")
    mart(workshop, "customers", "customer_id", max_age="26h")
    code, summary = ran(workshop)
    assert (code, codes(summary)) == (3, ["DBT_UNKNOWN", "DBT_STALE"])
    assert ran(workshop, "--accept", "DBT_UNKNOWN", "--accept", "DBT_STALE")[0] == 0


def test_run_and_test_in_two_commands_are_enough_but_for_the_age(workshop: Workshop) -> None:
    after(workshop, "apart")
    mart(workshop, "customers", "customer_id", max_age="26h")
    code, summary = ran(workshop, "--dry-run")
    assert (code, codes(summary)) == (0, [])
    assert any("not_null_customers_email" in note for note in summary["notes"])
    (workshop.folder / "target" / "run_results.run.json").unlink()
    assert codes(ran(workshop, "--dry-run")[1]) == ["DBT_STALE"]  # tests do not say how old it is


def test_a_run_without_tests_passes_and_says_so(workshop: Workshop) -> None:
    after(workshop, "apart")
    (workshop.folder / "target" / "run_results.json").unlink()
    mart(workshop, "customers", "customer_id")
    code, summary = ran(workshop, "--dry-run")
    assert code == 0
    assert any(note.startswith("dbt: not tested since") for note in summary["notes"])


def test_a_mart_built_empty_is_not_the_mart(workshop: Workshop) -> None:
    after(workshop, "empty")
    mart(workshop, "customers", "customer_id")
    code, summary = ran(workshop, "--dry-run")
    assert (code, codes(summary)) == (3, ["DBT_FAILED"])
    assert "--empty" in summary["guards"][0]["message"]


def test_results_of_another_schema_are_not_those_of_this_mart(workshop: Workshop) -> None:
    def change(manifest: dict[str, Any]) -> None:
        node = manifest["nodes"]["model.analytics.customers"]
        node["relation_name"] = '"warehouse"."production"."customers"'
        manifest["metadata"]["invocation_id"] = "of another command"

    edit(workshop.folder / "target" / "manifest.json", change)
    with duckdb_files.opened(workshop.folder / "warehouse.duckdb") as warehouse:
        warehouse.execute("CREATE SCHEMA production")
        warehouse.execute("CREATE TABLE production.customers AS FROM customers")
    mart(workshop, "customers", "customer_id")
    assert codes(ran(workshop, "--dry-run")[1]) == ["DBT_UNKNOWN"]


@pytest.mark.parametrize(
    ("file", "content", "code"),
    [
        ("manifest.json", None, "DBT_MISSING"),
        ("manifest.json", "{}", "DBT_UNREADABLE"),
        ("run_results.json", '{"results": [', "DBT_UNREADABLE"),
    ],
)
def test_without_what_dbt_writes_nothing_runs_and_the_error_names_the_file(
    workshop: Workshop, file: str, content: str | None, code: str
) -> None:
    mart(workshop, "customers", "customer_id")
    path = workshop.folder / "target" / file
    path.unlink()
    if content is not None:
        path.write_text(content)
        os.utime(path, (0, 0))  # nobody is writing it
    said = workshop.retl("sync", "--output", "json")
    error = said.document["syncs"][0]["error"]
    assert (said.code, error["code"]) == (1, code)
    assert str(path) in error["message"]
    assert "warehouse.dbt" in error["hint"]
    assert workshop.retl("validate").code == 0  # the definition is right


@pytest.mark.parametrize("file", ["manifest.json", "run_results.json"])
def test_a_file_that_dbt_is_writing_is_waited_for(workshop: Workshop, file: str) -> None:
    mart(workshop, "customers", "customer_id")
    path = workshop.folder / "target" / file
    text = path.read_text()
    path.write_text(text[: len(text) // 2])

    def finish(line: str) -> None:
        if "dbt_is_writing" in line:
            path.write_text(text)

    said = answer(["sync", "--output", "json"], workshop.environ(), workshop.folder, finish)
    assert (said.code, said.document["syncs"][0]["status"]) == (0, "SUCCESS")


def test_a_file_that_dbt_writes_for_long_is_no_failure(tmp_path: Path) -> None:
    path, waited = tmp_path / "manifest.json", []
    path.write_text("")
    with pytest.raises(Later) as problem:
        decoded(path, Manifest, waited.append)
    assert (problem.value.code, problem.value.exit_code) == ("DBT_WRITING", 75)
    assert sum(waited) == pytest.approx(PATIENCE)


def test_the_target_folder_is_where_retl_yml_says(workshop: Workshop, tmp_path: Path) -> None:
    shutil.move(workshop.folder / "target", tmp_path / "elsewhere")
    workshop.write("retl.yml", "warehouse: {path: warehouse.duckdb, dbt: ../elsewhere}\n")
    mart(workshop, "customers", "customer_id", max_age="26h")
    assert ran(workshop, "--dry-run")[0] == 0


@pytest.mark.parametrize(
    ("source", "code", "says"),
    [
        ("{dbt: costumers}", "DBT_MODEL", "did you mean 'customers'?"),
        ("{dbt: draft}", "DBT_MODEL", "ephemeral"),
        ("{dbt: customers, table: customers}", "DEFINITION_INVALID", "exactly one of"),
        ("{table: customers, max_age: 1h}", "DEFINITION_INVALID", "`max_age` needs `dbt`"),
    ],
)
def test_validate_knows_dbts_models(workshop: Workshop, source: str, code: str, says: str) -> None:
    described = {"description": "of a model", "source": source}
    workshop.sync("mart", **described, key="[customer_id]", destination=DESTINATION % "customer_id")
    said = workshop.retl("validate")
    assert said.code == 2
    assert f"[{code}]" in said.err
    assert says in said.err
    if code == "DBT_MODEL":
        text = (workshop.folder / "syncs" / "mart.yml").read_text().splitlines()
        line = text.index(f"source: {source}") + 1
        assert f"syncs/mart.yml:{line}:15:" in said.err


def test_a_model_of_another_database_is_not_read_by_its_name_alone(workshop: Workshop) -> None:
    (workshop.folder / "warehouse.duckdb").rename(workshop.folder / "copied.duckdb")
    workshop.write("retl.yml", "warehouse: {path: copied.duckdb}\n")
    mart(workshop, "customers", "customer_id")
    said = workshop.retl("validate")
    assert (said.code, "[DBT_DATABASE]" in said.err) == (2, True)
