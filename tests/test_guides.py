"""What the guides say comes true: commands exist, cut-over and recovery do what is promised."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli_words import assert_known, in_page, in_prose
from tests.commands import ROWS, Workshop
from tests.servers import Database

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TABLE = "{type: postgres, table: crm.users}"


@pytest.fixture
def workshop(tmp_path: Path, postgres: Database) -> Workshop:
    """A table that another tool filled, and a sync that takes over."""
    made = Workshop(tmp_path / "project")
    made.use(postgres=postgres)
    with postgres.connect() as connection:
        connection.execute("CREATE SCHEMA crm")
        connection.execute(
            "CREATE TABLE crm.users (user_id bigint PRIMARY KEY, email text, spend numeric(12,2))"
        )
        connection.execute(
            "INSERT INTO crm.users SELECT i, 'u' || i || '@example.com', i FROM generate_series(1, 40) AS i"
        )
    made.sync("users", destination=TABLE, first_run="adopt")
    return made


def versions(postgres: Database) -> dict[int, str]:
    """Every row of the table with the transaction that wrote it."""
    with postgres.connect() as connection:
        return dict(connection.execute("SELECT user_id, xmin::text FROM crm.users").fetchall())


def ran(workshop: Workshop, *words: str) -> Any:
    return workshop.json("sync", *words)["syncs"][0]


def test_every_command_in_a_page_exists() -> None:
    unknown = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("`retl COMMAND --help`", "")
        commands = [(words, True) for words in in_page(text)] + [(words, False) for words in in_prose(text)]
        for words, whole in commands:
            try:
                assert_known(words, whole=whole)
            except AssertionError as problem:
                unknown.append(f"{page.relative_to(ROOT)}: {problem}")
    assert unknown == []


def test_a_cut_over_sends_nothing_and_then_only_what_changed(workshop: Workshop, postgres: Database) -> None:
    before = versions(postgres)
    assert ran(workshop)["skipped"] == ROWS
    assert versions(postgres) == before
    workshop.warehouse("UPDATE users SET spend = 99 WHERE user_id = 7")
    assert ran(workshop)["updated"] == 1
    assert [key for key, version in versions(postgres).items() if version != before[key]] == [7]


def test_after_a_cut_over_only_rows_that_were_sent_can_be_deleted(
    workshop: Workshop, postgres: Database
) -> None:
    ran(workshop)
    workshop.sync("users", destination=TABLE, first_run="adopt", deletes="delete")
    workshop.warehouse("DELETE FROM users WHERE user_id = 3")
    ran(workshop)
    assert len(versions(postgres)) == 40
    ran(workshop, "--full")
    workshop.warehouse("DELETE FROM users WHERE user_id = 5")
    ran(workshop)
    assert sorted(versions(postgres)) == [key for key in range(1, 41) if key != 5]


def test_a_lost_state_begins_anew_and_deletes_nothing(workshop: Workshop, postgres: Database) -> None:
    ran(workshop)
    workshop.warehouse("UPDATE users SET spend = 99 WHERE user_id = 7")
    ran(workshop)
    shutil.rmtree(workshop.folder / ".retl")
    workshop.warehouse("DELETE FROM users WHERE user_id = 3")
    workshop.sync("users", destination=TABLE, deletes="delete")
    assert workshop.retl("sync").code == 3
    again = ran(workshop, "--accept", "STATE_LOST")
    assert (again["inserted"], again["deleted"]) == (ROWS - 1, 0)
    assert len(versions(postgres)) == 40


def test_a_lost_state_can_be_adopted(workshop: Workshop, postgres: Database) -> None:
    ran(workshop)
    workshop.warehouse("UPDATE users SET spend = 99 WHERE user_id = 7")
    ran(workshop)
    before = versions(postgres)
    shutil.rmtree(workshop.folder / ".retl")
    assert workshop.retl("sync").code == 3
    assert ran(workshop, "--accept", "STATE_LOST")["skipped"] == ROWS
    assert versions(postgres) == before


def test_an_older_state_from_a_backup_is_refused_until_it_has_read_the_target(workshop: Workshop) -> None:
    workshop.sync("users", destination=TABLE)
    ran(workshop)
    shutil.copytree(workshop.folder / ".retl", workshop.folder / "backup")
    workshop.warehouse("UPDATE users SET spend = 99 WHERE user_id = 7")
    ran(workshop)
    shutil.rmtree(workshop.folder / ".retl")
    (workshop.folder / "backup").rename(workshop.folder / ".retl")
    said = workshop.retl("sync")
    assert (said.code, "STATE_BEHIND" in said.err) == (3, True)
    assert workshop.retl("state", "rebuild", "users", "--yes").code == 0
    (found,) = workshop.json("sync")["syncs"]
    assert (found["status"], found["updated"]) == ("SUCCESS", 0)


def test_what_a_run_was_allowed_is_recorded_with_user_and_host(workshop: Workshop) -> None:
    workshop.json("sync", "--accept", "ROW_DROP", RETL_CORRELATION_ID="ticket-17")
    shown = workshop.json("show")
    run = shown.get("run", shown)
    assert run["options"]["accept"] == ["ROW_DROP"]
    assert run["correlation_id"] == "ticket-17"
    assert run["host"]
    assert run["user"]
    assert run["version"]


def test_every_promise_of_the_compliance_page_has_its_column() -> None:
    ledger = (ROOT / "docs" / "reference" / "ledger.md").read_text(encoding="utf-8")
    runs = ledger.partition("## retl_runs")[2].partition("\n## ")[0]
    named = set(re.findall(r"^\| `(\w+)` ", runs, re.MULTILINE))
    assert {
        "os_user",
        "host",
        "pid",
        "version",
        "correlation_id",
        "options",
        "vars",
        "guards",
        "counts",
    } <= named
