"""Which syncs a command is about: one grammar for all of them."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import retl
from retl.app.choice import Choice
from retl.app.failures import described
from retl.app.models import read_tables
from retl.app.resolve import open_project
from retl.app.session import Session
from retl.cli import problems
from retl.errors import DefinitionError, RetlError
from tests.commands import Workshop
from tests.servers import RedisServer


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.write(
        "retl.yml",
        "connections:\n  cache: {type: redis, host: localhost}\n  spare: {type: redis, host: localhost}\n"
        "warehouse: {dbt: dbt}\n",
    )
    to = '{connection: cache, key: "NAME:{user_id}", value: json, ttl: none}'
    made.sync("orders", tags="[daily, crm]", destination=to.replace("NAME", "o"))
    made.sync("orders_eu", tags="[daily]", destination=to.replace("NAME", "e"))
    made.sync("people", tags="[crm]")
    made.sync("resting", enabled="false", tags="[crm]")
    return made


def chosen(shop: Workshop, *words: str) -> list[str]:
    """What a command that does not run them chooses by these words."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    for option, part in (("--sync", "sync"), ("--tag", "tags"), ("--exclude", "exclude")):
        parser.add_argument(option, dest=part, action="append", default=[])
    parser.add_argument("--state")
    parser.add_argument("--failed", action="store_true")
    given = parser.parse_args(words)
    names, tags, exclude = (*given.names, *given.sync), tuple(given.tags), tuple(given.exclude)
    choice = Choice(names, tags, exclude, failed=given.failed, state=given.state)
    with Session(open_project(shop.folder, environ={})) as session:
        return sorted(one.name for one in session.choose(choice, paused=True))


def refused(shop: Workshop, *words: str) -> str:
    with pytest.raises(RetlError) as caught:
        chosen(shop, *words)
    return problems.sentence(described(caught.value))


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("", "orders orders_eu people resting"),
        ("orders people", "orders people"),
        ("orders*", "orders orders_eu"),
        ("*_eu people", "orders_eu people"),
        ("tag:daily", "orders orders_eu"),
        ("--tag daily", "orders orders_eu"),
        ("to:cache", "orders orders_eu"),
        ("to:redis", "orders orders_eu people resting"),
        ("tag:daily,tag:crm", "orders"),
        ("tag:crm --exclude to:cache", "people resting"),
        ("--exclude orders* --exclude resting", "people"),
        ("all --exclude tag:crm", "orders_eu"),
        ("--sync tag:c*,to:cache", "orders"),
    ],
)
def test_the_same_words_choose_syncs_everywhere(shop: Workshop, words: str, names: str) -> None:
    assert chosen(shop, *words.split()) == names.split()


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        ("order", "SYNC_UNKNOWN", "did you mean 'orders'?"),
        ("daily", "SYNC_UNKNOWN", "did you mean 'tag:daily'?"),
        ("cache", "SYNC_UNKNOWN", "did you mean 'to:cache'?"),
        ("tag:dayly", "TAG_UNKNOWN", "did you mean 'daily'?"),
        ("tga:daily", "USAGE", "did you mean 'tag'?"),
        ("tag:", "USAGE", "tag:T"),
        ("to:cashe", "NOTHING_SELECTED", "did you mean 'cache'?"),
        ("to:spare", "NOTHING_SELECTED", "retl list"),
        ("x*", "NOTHING_SELECTED", "retl list"),
        ("tag:daily,people", "NOTHING_SELECTED", "retl list"),
        ("people --exclude people", "NOTHING_SELECTED", "retl list"),
        ("people --exclude x*", "NOTHING_SELECTED", "retl list"),
        ("dbt:orders", "DBT_MISSING", "dbt"),
        ("state:modified", "USAGE", "--state main"),
        ("state:new --state main", "USAGE", "state:modified"),
        ("people --state main", "USAGE", "state:modified"),
        ("state:modified --state nowhere", "STATE_REFERENCE", "--state main"),
        ("state:modified --state=--all", "STATE_REFERENCE", "--state main"),
    ],
)
def test_a_word_that_is_unknown_or_selects_nothing_is_an_error(
    shop: Workshop, words: str, code: str, hint: str
) -> None:
    said = refused(shop, *words.split())
    assert f"[{code}]" in said
    assert hint in said


def test_a_sync_that_is_not_enabled_runs_only_by_its_name(shop: Workshop) -> None:
    names = [one.name for one in retl.open(shop.folder).select(["tag:crm"])]
    assert names == ["orders", "people"]
    (summary,) = shop.json("sync", "resting")["syncs"]
    assert summary["status"] == "PAUSED"


def manifest(shop: Workshop) -> None:
    """stg_orders → orders → daily_orders, and customers, which nothing was built from."""

    def node(name: str, *parents: str) -> dict[str, Any]:
        return {
            "name": name,
            "resource_type": "model",
            "unique_id": f"model.x.{name}",
            "package_name": "x",
            "relation_name": f'"warehouse"."main"."{name}"',
            "depends_on": {"nodes": [f"model.x.{one}" for one in parents]},
        }

    nodes = [node("stg"), node("orders", "stg"), node("daily", "orders"), node("customers")]
    shop.write(
        "dbt/manifest.json",
        json.dumps(
            {
                "metadata": {"generated_at": "2026-11-28T10:00:00Z", "adapter_type": "duckdb"},
                "nodes": {one["unique_id"]: one for one in nodes},
            }
        ),
    )


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("orders", "by_model"),
        ("orders+", "by_model by_sql by_table"),
        ("+daily", "by_file by_model by_sql by_table"),
        ("1+daily", "by_model by_sql by_table"),
        ("stg+1", "by_file by_model"),
        ("customers", "people"),
    ],
)
def test_a_dbt_model_stands_for_the_syncs_that_read_it_and_its_graph(
    shop: Workshop, spec: str, names: str
) -> None:
    manifest(shop)
    for name in ("orders", "orders_eu", "resting"):
        (shop.folder / f"syncs/{name}.yml").unlink()
    shop.sync("by_model", source="{dbt: orders}")
    shop.sync("by_table", source="{table: main.daily}")
    shop.sync("by_sql", source="{sql: 'WITH d AS (SELECT * FROM Daily) SELECT * FROM d WHERE 1 = 1'}")
    shop.sync("by_file", source="{file: stg.sql}")
    shop.sync("people", source="{table: customers}")
    shop.write("stg.sql", "SELECT * FROM stg JOIN elsewhere.customers_of USING (user_id)")
    assert chosen(shop, f"dbt:{spec}") == names.split()


def test_a_dbt_model_that_is_unknown_gets_the_nearest_one(shop: Workshop) -> None:
    manifest(shop)
    assert "did you mean 'customers'?" in refused(shop, "dbt:customer+")
    assert "[NOTHING_SELECTED]" in refused(shop, "dbt:stg")


def test_sql_that_duckdb_cannot_parse_reads_no_table_we_know() -> None:
    assert read_tables("SELECT TOP 5 * FROM [dbo].[x]") == []


def git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "init.defaultBranch=main")
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


@pytest.mark.parametrize("kind", ["commit", "folder", "file"])
def test_what_was_modified_is_found_by_commit_by_folder_and_by_list(
    shop: Workshop, tmp_path: Path, kind: str
) -> None:
    shop.sync("by_sql", source="{file: marts/q.sql}", contract="contracts/c.yml")
    shop.write("marts/q.sql", "SELECT * FROM users")
    shop.write("contracts/c.yml", "user_id: {type: integer}\n")
    if kind == "commit":
        git(shop.folder.parent, "init")  # the project is a folder of the repository
        git(shop.folder.parent, "add", "project")
        git(shop.folder.parent, "commit", "-m", "first")
    if kind == "folder":
        subprocess.run(["cp", "-r", str(shop.folder), str(tmp_path / "former")], check=True)
    listed = shop.retl("list", "--output", "json").out
    (tmp_path / "list.json").write_text(listed)
    state = {"commit": "HEAD", "folder": str(tmp_path / "former"), "file": str(tmp_path / "list.json")}[kind]

    def modified() -> list[str]:
        return chosen(shop, "state:modified", "--state", state)

    assert modified() == []
    people = (shop.folder / "syncs/people.yml").read_text()
    shop.write("syncs/people.yml", "# a comment\n" + "\n".join(reversed(people.splitlines())) + "\n")
    assert modified() == []
    shop.write("syncs/people.yml", people + "timeout: 1h\n")
    assert modified() == ["people"]
    shop.sync("late")
    assert modified() == ["late", "people"]
    shop.write("marts/q.sql", "SELECT * FROM users WHERE user_id > 1")
    assert modified() == ["by_sql", "late", "people"]
    shop.write("marts/q.sql", "SELECT * FROM users")
    shop.write("contracts/c.yml", "user_id: {type: string}\n")
    assert modified() == ["by_sql", "late", "people"]
    text = (shop.folder / "retl.yml").read_text()
    shop.write(
        "retl.yml", text.replace("cache: {type: redis, host: localhost}", "cache: {type: redis, host: h}")
    )
    assert modified() == ["by_sql", "late", "orders", "orders_eu", "people"]
    assert chosen(shop, "state:modified,tag:daily", "--state", state) == ["orders", "orders_eu"]
    assert chosen(shop, "--exclude", "state:modified", "--state", state) == ["resting"]


def test_no_modified_sync_is_one_sentence_and_success(shop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(shop.retl("list", "--output", "json").out)
    since = ("state:modified", "--state", str(tmp_path / "list.json"))
    sentence = f"nothing to do: no selected sync was modified since {tmp_path / 'list.json'}\n"
    for command in ("sync", "plan", "validate", "check", "test", "status", "list", "runs", "rejects list"):
        said = shop.retl(*command.split(), *since)
        assert (said.code, said.out) == (0, sentence), command
    assert shop.json("sync", *since) == {"syncs": [], "exit_code": 0}


def test_runs_are_chosen_by_what_became_of_the_last_one(
    shop: Workshop, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shop.folder / "retl.yml").unlink()
    shop.use(redis_server)
    for name, value in shop.environment.items():
        monkeypatch.setenv(name, value)
    shop.sync("orders_eu", guards="{min_rows: 1000}")
    shop.sync("orders")
    nothing = "nothing to do: no selected sync failed at its last run\n"
    assert shop.retl("sync", "--failed").out == nothing
    planned = shop.json("plan", "orders", "people")["syncs"]
    assert [(one["sync"], one["inserted"], len(one["samples"]) > 0) for one in planned] == [
        ("orders", 30, True),
        ("people", 30, True),
    ]
    assert "[USAGE]" in shop.retl("plan", "orders*", "--out", "file").err
    assert shop.retl("sync").code == 3
    assert chosen(shop, "--failed") == chosen(shop, "orders*", "--failed") == ["orders_eu"]
    assert chosen(shop, "people", "--failed") == []
    shop.sync("people", tags="[crm]", after="[orders_eu]")
    assert {
        one["sync"]: one["status"] for one in shop.retl("sync", "--output", "json").document["syncs"]
    } == {
        "orders": "SUCCESS",
        "orders_eu": "REFUSED",
        "people": "BLOCKED",
    }
    assert chosen(shop, "--failed") == ["orders_eu", "people"]
    shop.json("sync", "people")
    assert chosen(shop, "--failed") == ["orders_eu"]
    shop.sync("people", tags="[crm]")
    shop.sync("orders_eu")
    (again,) = shop.json("sync", "--failed")["syncs"]
    assert (again["sync"], again["status"]) == ("orders_eu", "SUCCESS")

    with retl.open(shop.folder) as session:
        assert session.sync("*_eu", dry_run=True).sync == "orders_eu"
        assert session.run("tag:crm", failed=True) == []
        assert [one.sync for one in session.run(["orders*"], dry_run=True)] == ["orders", "orders_eu"]
        with pytest.raises(DefinitionError, match="selects 2 syncs, not one"):
            session.sync("orders*")

    (shop.folder / "syncs/orders.yml").unlink()  # its history is found by its name all the same
    assert {one["sync"] for one in shop.json("runs", "orders", "tag:crm")["runs"]} == {"people", "orders"}
    assert shop.json("rejects", "--sync", "orders")["rejects"] == []
    assert shop.retl("runs", "orderz").code == 2
