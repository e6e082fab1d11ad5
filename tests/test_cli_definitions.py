"""init, list, validate, check, schema, destinations."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest

from retl.app.scaffold.templates import TEMPLATES
from retl.testing import FakeHubSpot, FakeSlack
from tests.cli_words import assert_known
from tests.commands import Workshop
from tests.servers import Database, RedisServer


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path / "project")


def test_what_init_makes_is_valid_and_its_secrets_are_private(workshop: Workshop, tmp_path: Path) -> None:
    said = workshop.retl("init", str(tmp_path / "new"), "--output", "json")
    assert said.code == 0
    assert len(said.document["files"]) == 4
    valid = workshop.json("validate", "--project", str(tmp_path / "new"))
    assert [sync["sync"] for sync in valid["syncs"]] == ["example"]
    assert "POSTGRES_HOST" in valid["missing_variables"]
    assert stat.S_IMODE((tmp_path / "new" / "config.env").stat().st_mode) == 0o600


def test_init_says_what_it_wrote_without_gaps(workshop: Workshop, tmp_path: Path) -> None:
    lines = workshop.retl("init", str(tmp_path / "new")).out.splitlines()
    assert [line.partition(" ")[0] for line in lines[:6]] == [*["wrote"] * 4, "", "next:"]
    assert lines.count("") == 1


@pytest.mark.parametrize("words", [[], ["--template", "slack"]])
def test_init_says_what_a_gitignore_of_the_users_lacks(
    workshop: Workshop, tmp_path: Path, words: list[str]
) -> None:
    for n, (text, lacks) in enumerate(
        [
            ("target/\n", ".retl/, config.env, config.*.env"),
            ("# config.env\n/config.env\n/.retl\n", "config.*.env"),
            ("*.env\n.retl/\n", None),
        ]
    ):
        folder = tmp_path / str(n)
        folder.mkdir()
        (folder / ".gitignore").write_text(text)
        said = workshop.json("init", str(folder), *words)
        note = f"your .gitignore does not exclude secrets, and was not changed: add {lacks}"
        assert said["notes"] == ([note] if lacks else [])
        assert (folder / ".gitignore").read_text() == text


def test_init_overwrites_nothing(workshop: Workshop) -> None:
    workshop.write("retl.yml", "vars: {mine: 1}\n")
    before = workshop.snapshot()
    said = workshop.retl("init")
    assert said.code == 2
    assert "retl.yml already exists" in said.err
    assert workshop.snapshot() == before


def test_what_init_makes_runs(workshop: Workshop, tmp_path: Path, postgres: Database) -> None:
    workshop.use(postgres=postgres)
    folder = str(tmp_path / "new")
    assert workshop.retl("init", folder).code == 0
    warehouse = str(workshop.folder / "data" / "warehouse.duckdb")
    done = workshop.json("sync", "--project", folder, DUCKDB_PATH=warehouse)["syncs"][0]
    assert (done["status"], done["inserted"]) == ("SUCCESS", 1)
    with postgres.connect() as connection:
        assert connection.execute("SELECT user_id, segment FROM example_users").fetchall() == [(1, "casual")]


def test_list_shows_every_sync(workshop: Workshop) -> None:
    workshop.sync("second", tags="[a, b]", after="[first]", description="Two")
    workshop.sync("first", enabled="false")
    first, second = workshop.json("list")["syncs"]
    assert (first["sync"], first["enabled"], first["source"]) == ("first", False, "users")
    assert (second["tags"], second["after"], second["description"]) == (["a", "b"], ["first"], "Two")
    lines = workshop.retl("list").out.splitlines()
    assert lines[0].split()[:2] == ["sync", "enabled"]
    assert [line.split()[0] for line in lines[1:3]] == ["first", "second"]


def test_validate_tells_all_that_is_wrong_at_once(workshop: Workshop) -> None:
    workshop.sync("column", contract="{user_id: {type: integer}, gone: {type: string}}")
    workshop.sync("table", source="{table: nothing}")
    workshop.sync("twice", source='{sql: "SELECT 1 AS user_id; DROP TABLE users"}')
    workshop.sync("variable", source='{sql: "SELECT * FROM users WHERE user_id > $least"}')
    workshop.sync("right")
    said = workshop.retl("validate", "--output", "json")
    assert said.code == 2
    assert sorted(error["code"] for error in said.document["errors"]) == [
        *("SOURCE_DRIFT", "SOURCE_DRIFT", "SQL_NOT_ONE_SELECT", "VAR_MISSING"),
    ]
    assert said.err.count("error: ") == 4


@pytest.mark.parametrize(
    ("parts", "code", "says"),
    [
        ({"checks": '["SELECT * FROM source WHERE spent > 1"]'}, "SOURCE_DRIFT", "spent"),
        ({"checks": '["SELECT * FROM users"]'}, "SOURCE_DRIFT", "users"),
        ({"changes": "{watermark: changed_at}"}, "WATERMARK_COLUMN", "not in the mart"),
        ({"changes": "{watermark: email}"}, "WATERMARK_COLUMN", "VARCHAR"),
        ({"key": "[userid]"}, "KEY_COLUMN", "did you mean 'user_id'?"),
    ],
)
def test_validate_binds_whatever_a_run_would(
    workshop: Workshop, parts: dict[str, str], code: str, says: str
) -> None:
    workshop.sync("one", **parts)
    said = workshop.retl("validate", "--output", "json")
    assert said.code == 2
    assert [error["code"] for error in said.document["errors"]] == [code]
    assert says in said.err


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"key": "user_id"}, "write [user_id]"),
        ({"source": "users"}, "write {table: users}"),
        ({"destination": "crm"}, "write {connection: crm}"),
        ({"tags": "daily"}, "write [daily]"),
        ({"enabled": "no"}, "for 'no' write false"),
        ({"enabled": '"true"'}, "without quotes"),
    ],
)
def test_a_word_in_the_place_of_a_list_or_a_mapping_is_shown_as_it_should_be(
    workshop: Workshop, parts: dict[str, str], says: str
) -> None:
    workshop.sync("one", **parts)
    said = workshop.retl("validate")
    assert said.code == 2
    assert says in said.err


def test_validate_needs_no_variable_and_no_warehouse_and_says_so(workshop: Workshop) -> None:
    workshop.sync("users")
    workshop.write(
        "retl.yml",
        'connections: {crm: {type: postgres, host: "${CRM_HOST}", dbname: crm, user: u, password: "${CRM_PASSWORD}"}}\n',
    )
    workshop.sync("crm", destination="{connection: crm, table: users}")
    (workshop.folder / "data" / "warehouse.duckdb").unlink()
    before = workshop.snapshot()
    found = workshop.json("validate")
    assert found["missing_variables"] == ["CRM_HOST", "CRM_PASSWORD"]
    assert all("no DuckDB file" in sync["note"] for sync in found["syncs"])
    assert workshop.retl("validate").out.split()[:3] == ["sync", "result", "note"]
    assert workshop.snapshot() == before
    said = workshop.retl("sync")
    assert said.code == 2
    assert "CRM_HOST" in said.err
    assert "CRM_PASSWORD" in said.err


def test_check_says_of_each_destination_whether_it_can_be_written(
    workshop: Workshop, redis_server: RedisServer, postgres: Database
) -> None:
    workshop.use(redis_server, postgres)
    workshop.sync("cache")
    workshop.sync("table", destination="{type: postgres, table: users, create: true}")
    before = workshop.snapshot()
    assert workshop.retl("check").code == 0
    workshop.sync("missing", destination="{type: postgres, table: nowhere}")
    said = workshop.retl("check", "--output", "json")
    found = {line["sync"]: line for line in said.document["destinations"]}
    assert [found["cache"]["ok"], found["table"]["ok"], found["missing"]["ok"]] == [True, True, False]
    assert said.code == said.document["exit_code"] == found["missing"]["exit_code"]
    assert said.code in (1, 3)
    workshop.environment["POSTGRES_PORT"] = "1"
    assert workshop.retl("check", "--sync", "table").code == 1
    (workshop.folder / "syncs" / "missing.yml").unlink()
    assert workshop.snapshot() == before
    assert redis_server.client().dbsize() == 0


def test_the_schema_and_the_pages_come_from_the_code(workshop: Workshop) -> None:
    assert "destination" in workshop.json("schema")["properties"]
    listed = {one["name"]: one["summary"] for one in workshop.json("destinations")["destinations"]}
    assert {"postgres", "redis", "http"} <= listed.keys()
    assert all(listed.values())
    page = workshop.retl("destinations", "redis").out
    assert "Redis and Valkey" in page
    assert "ttl" in page


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_what_a_template_makes_is_valid_and_says_how_to_go_on(
    workshop: Workshop, tmp_path: Path, template: str
) -> None:
    folder = tmp_path / "a new one"
    said = workshop.json("init", str(folder), "--template", template)
    assert said["next"][0] == f"cd '{folder}'"
    valid = workshop.json("validate", "--project", str(folder))
    assert len(valid["syncs"]) == 1
    assert stat.S_IMODE((folder / "config.env").stat().st_mode) == 0o600
    for step in said["next"]:
        if step.startswith("retl "):
            assert_known(step.partition("   ")[0].removeprefix("retl ").partition(" >>")[0].split())


def test_a_template_and_dbts_manifest_are_two_ways_to_begin(workshop: Workshop, tmp_path: Path) -> None:
    said = workshop.retl("init", str(tmp_path / "new"), "--template", "slack", "--from-dbt", "manifest.json")
    assert (said.code, "choose one" in said.err) == (2, True)
    assert not (tmp_path / "new").exists()


def test_the_template_for_hubspot_delivers_contacts(workshop: Workshop, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    assert workshop.retl("init", str(folder), "--template", "dbt-to-hubspot").code == 0
    workshop.warehouse(
        "CREATE TABLE customers AS SELECT 'ada@example.com' AS email, 'Ada' AS first_name, 'L' AS last_name"
    )
    sync = folder / "syncs" / "contacts.yml"
    sync.write_text(sync.read_text().replace("{dbt: customers, max_age: 26h}", "{table: customers}"))
    with FakeHubSpot() as hubspot:
        where = {"HUBSPOT_URL": hubspot.url, "HUBSPOT_TOKEN": hubspot.token}
        warehouse = str(workshop.folder / "data" / "warehouse.duckdb")
        done = workshop.json("sync", "--project", str(folder), DUCKDB_PATH=warehouse, **where)["syncs"][0]
        assert (done["status"], done["inserted"]) == ("SUCCESS", 1)
        assert hubspot.objects == {
            "ada@example.com": {"firstname": "Ada", "lastname": "L", "lifecyclestage": "customer"}
        }


def test_the_template_for_slack_posts_each_message_once(workshop: Workshop, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    assert workshop.retl("init", str(folder), "--template", "slack").code == 0
    with FakeSlack() as slack:
        where = {
            "DUCKDB_PATH": str(workshop.folder / "data" / "warehouse.duckdb"),
            "SLACK_URL": slack.webhook,
        }
        for inserted in (1, 0):
            run = ("sync", "--project", str(folder), "--var", "run_date=2026-11-20")
            assert workshop.json(*run, **where)["syncs"][0]["inserted"] == inserted
        assert slack.posted == {"Signups of 2026-11-20: 42": 1}


def test_a_column_that_does_not_fit_is_found_in_the_contract(workshop: Workshop) -> None:
    """In the lines of the sync, or where it names the contract's file."""
    contract = "{user_id: {type: integer},\n email: {type: string},\n spend: {type: date}}"
    workshop.sync("typed", contract=contract)
    workshop.sync("gone", contract=contract.replace("spend: {type: date}", "spent: {type: float}"))
    workshop.write(
        "contracts/users.yml", "user_id: {type: integer}\nemail: {type: string}\nspent: {type: float}\n"
    )
    workshop.sync("filed", contract="contracts/users.yml")
    said = workshop.retl("validate").err
    places = dict(re.findall(r"syncs/(\w+)\.yml:(\d+:\d+): the .*\[SOURCE_DRIFT\]", said))
    for name, text in (
        ("typed", "{type: date}"),
        ("gone", "{type: float}"),
        ("filed", "contracts/users.yml"),
    ):
        line, column = map(int, places[name].split(":"))
        written = (workshop.folder / f"syncs/{name}.yml").read_text().splitlines()[line - 1]
        assert written[column - 1 :].startswith(text), name
