"""Syncs without a contract send whatever their mart has: a column that left or changed its type, and a field of
another sync, refuse the run before anything is written."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Workshop
from tests.test_plans_and_state import run


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.write("retl.yml", "connections: {crm: {type: sqlite, path: crm.db}}\n")
    made.sync("users", destination="{connection: crm, table: users, create: true}")
    made.warehouse("ALTER TABLE users ADD COLUMN name VARCHAR; UPDATE users SET name = 'n' || user_id")
    return made


def names(workshop: Workshop) -> list[Any]:
    with sqlite3.connect(workshop.folder / "crm.db") as connection:
        return [name for (name,) in connection.execute("SELECT name FROM users ORDER BY user_id LIMIT 2")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("ALTER TABLE users DROP COLUMN name", "has no column name any more"),
        ("ALTER TABLE users ALTER name TYPE INTEGER USING 1", "name was string and is integer"),
    ],
)
def test_a_column_that_left_or_changed_its_type_refuses_the_run_also_without_a_contract(
    workshop: Workshop, change: str, message: str
) -> None:
    run(workshop)
    workshop.warehouse(change)
    for words in ((), ("--dry-run",), ("--full",)):
        refused = run(workshop, *words)
        assert (refused["status"], refused["guards"][0]["code"]) == ("REFUSED", "SOURCE_DRIFT"), words
        assert message in refused["error"]["message"]
    assert names(workshop) == ["n1", "n2"]
    assert run(workshop, "--accept", "SOURCE_DRIFT")["status"] == "SUCCESS"
    assert run(workshop)["status"] == "SUCCESS"  # what was accepted is what the next run compares with


def test_a_definition_that_changed_itself_is_no_drift(workshop: Workshop) -> None:
    run(workshop)
    workshop.warehouse(
        "ALTER TABLE users RENAME name TO title; ALTER TABLE users ALTER spend TYPE DECIMAL(10, 2)"
    )
    workshop.sync(
        "users",
        destination="{connection: crm, table: users, create: true}",
        fields="{'*': '*', name: title, email: {column: email, transform: [sha256_hex]}}",
    )
    assert [one["code"] for one in run(workshop)["guards"]] == []
    workshop.sync("users", destination="{connection: crm, table: users}", fields="{name: title}")
    assert run(workshop)["status"] == "SUCCESS"


@pytest.mark.parametrize("fields", [None, "{name: name}"])
def test_a_field_of_another_sync_is_found_also_without_a_contract(
    workshop: Workshop, fields: str | None
) -> None:
    run(workshop)
    workshop.warehouse("CREATE TABLE scores AS SELECT user_id, 'other' AS name FROM users")
    parts = {} if fields is None else {"fields": fields}
    destination = "{connection: crm, table: users}"
    workshop.sync("scores", source="{table: scores}", destination=destination, write="update_only", **parts)
    said = workshop.retl("validate")
    assert (said.code, "FIELD_SHARED" in said.err) == (2, True), said.err
    for words in ("sync scores", "sync scores --dry-run", "plan scores"):
        said = workshop.retl(*words.split())
        assert (said.code, "FIELD_SHARED" in said.err) == (2, True), (words, said.err)
    assert names(workshop) == ["n1", "n2"]
    workshop.sync(
        "scores",
        source="{table: scores}",
        destination=destination,
        write="update_only",
        fields="{score: name}",
    )
    with sqlite3.connect(workshop.folder / "crm.db") as connection:
        connection.execute("ALTER TABLE users ADD COLUMN score TEXT")
    assert workshop.retl("validate").code == 0
    assert workshop.retl("sync").code == 0
    assert names(workshop) == ["n1", "n2"]
