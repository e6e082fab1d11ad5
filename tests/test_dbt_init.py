"""`retl init --from-dbt`: from a built dbt project to syncs that are valid and run."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from retl.project import yamlfile
from tests import duckdb_files
from tests.commands import Workshop
from tests.servers import Database, RedisServer

pytestmark = pytest.mark.timeout(900)  # the first test waits for dbt to be installed


@pytest.fixture
def project(tmp_path: Path, analytics: Path) -> Workshop:
    """The dbt project after `dbt build`; nothing of retl is in it."""
    made = Workshop(tmp_path / "scratch")
    made.folder = tmp_path / "analytics"
    shutil.copytree(analytics, made.folder)
    shutil.copytree(made.folder / "target_built", made.folder / "target")
    return made


def init(project: Workshop, *words: str, **environment: str) -> Any:
    return project.json("init", *words, "--from-dbt", "target/manifest.json", **environment)


def written(project: Workshop, sync: str) -> Any:
    return yamlfile.load(project.folder / "syncs" / f"{sync}.yml").value


def change(project: Workshop, node: str, **parts: Any) -> None:
    """The manifest as dbt would have written it had the model's properties said so."""
    path = project.folder / "target" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["nodes"][f"model.analytics.{node}"] |= parts
    path.write_text(json.dumps(manifest))


def test_every_mart_that_asks_for_it_has_a_valid_sync_and_the_others_a_reason(project: Workshop) -> None:
    said = init(project)
    assert sorted(path.name for path in (project.folder / "syncs").iterdir()) == [
        *("customers.yml", "order_lines.yml"),
    ]
    assert [line.partition(":")[0] for line in said["left_out"]] == ["draft", "unkeyed"]
    valid = project.json("validate")
    assert [(one["sync"], one["note"]) for one in valid["syncs"]] == [
        *(("customers", None), ("order_lines", None)),
    ]
    assert set(valid["missing_variables"]) >= {"CRM_DB_HOST", "CRM_DB_PASSWORD"}
    config = project.folder / "config.env"
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    asked = [line.removeprefix("#") for line in config.read_text().splitlines() if "=" in line]
    assert set(valid["missing_variables"]) <= {line.partition("=")[0] for line in asked}
    assert "CRM_DB_PORT=5432" in asked
    assert 'port: "${CRM_DB_PORT:-5432}"' in (project.folder / "retl.yml").read_text()


def test_key_and_contract_are_what_dbt_enforces_and_the_warehouse_holds(project: Workshop) -> None:
    init(project)
    customers = written(project, "customers")
    assert customers["source"] == {"dbt": "customers"}
    assert customers["key"] == ["customer_id"]  # email is unique too, but its not_null only warns
    assert customers["contract"] == {
        "customer_id": {"type": "integer", "description": "The shop's own number"},
        "email": {"type": "string", "nullable": True, "sensitive": True},
        "segment": {"type": "string", "one_of": ["vip", "loyal", "lost", "no"]},
        "spent": {"type": "decimal", "max_digits": 12, "decimal_places": 2},
        "seen_at": {"type": "timestamptz", "nullable": True},
        "labels": {"type": "list", "items": "string", "nullable": True},
    }
    assert customers["destination"] == {"connection": "crm_db", "table": "crm.customers", "create": True}
    assert (customers["deletes"], customers["tags"]) == ("delete", ["crm", "daily"])
    lines = written(project, "order_lines")
    assert (lines["source"], lines["key"]) == ({"dbt": "orders"}, ["order_id", "line"])
    assert lines["contract"]["customer_id"] == {"type": "integer", "sensitive": True}
    assert "relationships_orders" in (project.folder / "syncs" / "order_lines.yml").read_text()


def test_what_it_writes_runs(project: Workshop, postgres: Database, redis_server: RedisServer) -> None:
    project.use(redis_server)
    init(project)
    project.write(
        "retl.yml",
        "warehouse: {path: warehouse.duckdb}\n"
        f"connections: {{crm_db: {{type: postgres, host: {postgres.host}, port: {postgres.port},"
        f' dbname: {postgres.dbname}, user: {postgres.user}, password: "{postgres.password}"}}}}\n',
    )
    done = project.json("sync")
    assert [(one["sync"], one["inserted"]) for one in done["syncs"]] == [("customers", 3), ("order_lines", 2)]
    with postgres.connect() as connection:
        found = connection.execute("SELECT customer_id, labels FROM crm.customers ORDER BY 1").fetchall()
    assert found == [(1, ["a", "b"]), (2, []), (3, None)]
    assert redis_server.client().exists("order:10:1", "order:10:2") == 2


def test_again_it_overwrites_nothing_and_says_what_it_left(project: Workshop) -> None:
    init(project)
    project.write("syncs/customers.yml", "# mine\n" + (project.folder / "syncs/customers.yml").read_text())
    (project.folder / "syncs" / "order_lines.yml").unlink()
    before = project.snapshot()
    said = init(project)
    assert [Path(path).name for path in said["files"]] == ["order_lines.yml"]
    assert {Path(path).name for path in said["kept"]} == {
        *("retl.yml", "config.env", ".gitignore", "customers.yml"),
    }
    after = project.snapshot()
    assert {name: after[name] for name in before} == before
    assert project.retl("validate").code == 0


def test_a_users_own_project_is_completed_and_told_what_it_lacks(project: Workshop) -> None:
    project.write("retl.yml", "warehouse: {path: warehouse.duckdb}\n")
    project.write(".gitignore", "target/\n")
    said = init(project)
    assert any("crm_db" in note for note in said["notes"])
    assert any(".gitignore" in note for note in said["notes"])
    assert (project.folder / "retl.yml").read_text() == "warehouse: {path: warehouse.duckdb}\n"
    assert (project.folder / ".gitignore").read_text() == "target/\n"


def test_a_project_beside_the_dbt_project_knows_where_both_are(project: Workshop) -> None:
    beside = project.folder.parent / "delivery"
    init(project, str(beside))
    assert project.retl("validate", "--project", str(beside)).code == 0


def test_what_dbt_says_is_text_and_never_a_variable_or_yaml(project: Workshop) -> None:
    hostile = 'a: "b" # ${HOME}\n\tc\x85\u2028 \U0001f600 {'
    columns = {"segment": {"name": "segment", "description": hostile, "tags": [], "meta": {}}}
    change(project, "customers", description=hostile, columns=columns)
    init(project)
    listed = project.json("list")["syncs"][0]
    assert listed["description"] == " ".join(hostile.split())
    assert project.retl("validate").code == 0


def test_a_wrong_word_in_the_meta_costs_only_its_own_mart(project: Workshop) -> None:
    meta = {"retl": {"connection": "crm_db", "table": "crm.customers", "write": "upsrt"}}
    change(project, "customers", meta=meta, config={"meta": meta})
    said = init(project)
    assert any(line.startswith("customers: ") and "write" in line for line in said["left_out"])
    assert [path.name for path in (project.folder / "syncs").iterdir()] == ["order_lines.yml"]
    assert project.retl("validate").code == 0


def test_a_sync_that_is_there_is_not_called_missing_if_it_could_not_be_made_again(project: Workshop) -> None:
    init(project)
    (project.folder / "syncs" / "crm").mkdir()
    file = (project.folder / "syncs" / "customers.yml").rename(
        project.folder / "syncs" / "crm" / "customers.yml"
    )
    before = file.read_bytes()
    meta = {"retl": {"connection": "crm_db", "table": "crm.customers", "fields": {"id": "nosuch"}}}
    change(project, "customers", meta=meta, config={"meta": meta})
    said = init(project)
    assert [line.partition(":")[0] for line in said["left_out"]] == ["draft", "unkeyed"]
    assert str(file) in said["kept"]
    assert any("'customers' again: the contract has no column 'nosuch'" in note for note in said["notes"])
    assert file.read_bytes() == before


def test_one_mart_may_go_to_several_places(project: Workshop) -> None:
    meta = {
        "retl": [
            {"table": "crm.customers"},
            {
                "sync": "customer_cache",
                "type": "redis",
                "destination": {"key": "c:{customer_id}", "ttl": "1d"},
            },
        ]
    }
    change(project, "customers", meta=meta, config={"meta": meta})
    init(project)
    assert written(project, "customers")["destination"] == {
        "type": "postgres",
        "table": "crm.customers",
        "create": True,
    }
    assert written(project, "customer_cache")["destination"]["type"] == "redis"
    assert project.retl("validate").code == 0


def test_without_meta_or_warehouse_it_says_what_to_do_and_writes_nothing(project: Workshop) -> None:
    before = project.snapshot()
    (project.folder / "warehouse.duckdb").rename(project.folder / "elsewhere.duckdb")
    said = project.retl("init", "--from-dbt", "target")
    assert (said.code, "[DBT_DATABASE]" in said.err, "DUCKDB_PATH" in said.err) == (2, True, True)
    (project.folder / "elsewhere.duckdb").rename(project.folder / "warehouse.duckdb")
    path = project.folder / "target" / "manifest.json"
    manifest = json.loads(path.read_text())
    plain = {**manifest, "nodes": {}, "exposures": {}}
    path.write_text(json.dumps(plain))
    said = project.retl("init", "--from-dbt", "target")
    assert (said.code, "[DBT_NOTHING]" in said.err) == (2, True)
    path.write_text(json.dumps(manifest))
    path.write_bytes(before["target/manifest.json"] or b"")
    assert project.snapshot() == before


@pytest.mark.parametrize(
    ("given", "holds", "code", "said"),
    [
        ("nope.json", None, "DBT_MISSING", "there is no nope.json"),
        ("empty/manifest.json", None, "DBT_MISSING", "there is no empty/manifest.json"),
        ("other.json", "{}", "USAGE", "other.json has another name"),
        ("manifest.json", '{"name": "shop"}', "DBT_UNREADABLE", "manifest.json cannot be read"),
    ],
)
def test_a_path_that_is_no_manifest_is_named_with_what_to_give_instead(
    tmp_path: Path, given: str, holds: str | None, code: str, said: str
) -> None:
    workshop = Workshop(tmp_path / "shop")
    if holds is not None:
        (workshop.folder / given).write_text(holds)
    answer = workshop.retl("init", "new", "--from-dbt", given)
    assert answer.code != 0
    assert said in answer.err
    assert f"[{code}]" in answer.err
    assert "target/manifest.json" in answer.err
    assert "retl.yml" not in answer.err
    assert not (workshop.folder / "new").exists()


def test_a_column_that_no_target_can_hold_is_left_out_and_named(project: Workshop) -> None:
    with duckdb_files.opened(project.folder / "warehouse.duckdb") as warehouse:
        warehouse.execute("ALTER TABLE customers ADD COLUMN photo BLOB")
    init(project)
    assert "photo" not in written(project, "customers")["contract"]
    assert "# photo is BLOB" in (project.folder / "syncs" / "customers.yml").read_text()
    assert project.retl("validate").code == 0


def test_a_sync_that_was_renamed_does_not_come_back(project: Workshop) -> None:
    init(project)
    syncs = project.folder / "syncs"
    (syncs / "customers.yml").rename(syncs / "crm_customers.yml")
    said = init(project)
    assert sorted(path.name for path in syncs.iterdir()) == ["crm_customers.yml", "order_lines.yml"]
    assert any("crm_customers" in note for note in said["notes"])
    text = (syncs / "crm_customers.yml").read_text()
    (syncs / "crm_customers.yml").write_text(text.replace("connection: crm_db", "type: postgres"))
    (syncs / "lines").mkdir()
    (syncs / "order_lines.yml").rename(syncs / "lines" / "order_lines.yml")
    said = init(project)
    assert [path.name for path in syncs.glob("*.yml")] == ["crm_customers.yml"]
    assert said["files"] == []
    assert str(syncs / "lines" / "order_lines.yml") in said["kept"]


def test_a_new_connection_is_of_the_type_that_it_is_called(project: Workshop) -> None:
    meta = {"retl": {"connection": "hubspot", "object": "contacts", "match": "email", "key": "email"}}
    change(project, "customers", meta=meta, config={"meta": meta})
    init(project)
    connections = yamlfile.load(project.folder / "retl.yml").value["connections"]
    assert connections["hubspot"] == {
        "type": "hubspot",
        "base_url": "${HUBSPOT_URL:-https://api.hubapi.com}",
        "token": "${HUBSPOT_TOKEN}",
    }
    assert project.retl("validate").code == 0
