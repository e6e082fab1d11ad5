"""Rejects as work: why, with which value, what is allowed, as a file, and once more."""

from __future__ import annotations

import csv
import io
import sqlite3
from pathlib import Path

import pytest

from tests.commands import ROWS, Workshop

CONTRACT = (
    "{user_id: {type: integer}, email: {type: string, sensitive: true, max_length: 20},"
    " spend: {type: decimal, max_digits: 12, decimal_places: 2, le: 27}}"
)


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    """Three rows that spend too much, and one whose address is too long."""
    made = Workshop(tmp_path / "project")
    made.write("retl.yml", f"connections: {{app: {{type: sqlite, path: {tmp_path / 'app.db'}}}}}\n")
    table = "{connection: app, table: users, create: true}"
    made.sync("users", destination=table, contract=CONTRACT, guards="{max_reject_rate: 1}")
    made.warehouse("UPDATE users SET email = 'somebody.else@example.com' WHERE user_id = 2")
    made.json("sync")
    return made


def held(workshop: Workshop) -> dict[int, float]:
    with sqlite3.connect(workshop.folder.parent / "app.db") as connection:
        return dict(connection.execute("SELECT user_id, spend FROM users"))


def test_reasons_say_what_is_allowed_and_rows_their_value_if_it_is_asked_for(workshop: Workshop) -> None:
    found = workshop.json("rejects")
    assert [(one["code"], one["rows"], one["allowed"]) for one in found["reasons"]] == [
        ("OUT_OF_RANGE", 3, "decimal, not NULL, 27 or less, 12 digits, 2 decimal places"),
        ("TOO_LONG", 1, "string, not NULL, 20 characters or less"),
    ]
    assert {one["value"] for one in found["rejects"]} == {None}
    assert "--values" in workshop.retl("rejects").out
    read = workshop.json("rejects", "--values")["rejects"]
    assert workshop.json("rejects", "users", "--values")["rejects"] == read
    values = {one["key"]: (one["column"], one["value"]) for one in read}
    assert values == {
        "2": ("email", "***"), "28": ("spend", "28.00"), "29": ("spend", "29.00"), "30": ("spend", "30.00"),
    }  # fmt: skip
    assert "28.00" in workshop.retl("rejects", "--values").out
    revealed = workshop.json("rejects", "--values", "--reveal", "--key", "2")["rejects"]
    assert revealed[0]["value"] == "somebody.else@example.com"


def test_rejects_are_chosen_by_code_and_time_and_written_as_csv(workshop: Workshop) -> None:
    assert [one["key"] for one in workshop.json("rejects", "--code", "TOO_LONG")["rejects"]] == ["2"]
    assert "REJECT_UNKNOWN" in workshop.retl("rejects", "--code", "NULL").err
    assert len(workshop.json("rejects", "--since", "1h")["rejects"]) == 4
    assert workshop.json("rejects", "--since", "0s")["rejects"] == []
    text = workshop.retl("rejects", "--values", "--output", "csv", "--limit", "3").out
    lines = list(csv.DictReader(io.StringIO(text)))
    assert [(one["key"], one["code"], one["value"]) for one in lines] == [
        ("2", "TOO_LONG", "***"), ("28", "OUT_OF_RANGE", "28.00"), ("29", "OUT_OF_RANGE", "29.00"),
    ]  # fmt: skip
    assert lines[0]["first_seen"].endswith("Z")


def test_rejects_of_a_run_that_was_refused_are_pointed_to(workshop: Workshop) -> None:
    assert workshop.json("rejects")["notes"] == []
    destination = "{connection: app, table: others, create: true}"
    workshop.sync("others", destination=destination, contract=CONTRACT)
    assert "REJECT_RATE" in workshop.retl("sync", "others").err
    said = "the last run of others was refused before it recorded its 4 rejects: `retl show others`"
    assert workshop.json("rejects")["notes"] == workshop.json("rejects", "others")["notes"] == [said]
    assert workshop.json("rejects", "users")["notes"] == []
    assert workshop.retl("rejects", "others").out.splitlines() == ["no open rejects", "", said]
    assert workshop.retl("show", "others").out.count("OUT_OF_RANGE") == 4, "three rows, and the guard"
    workshop.json("sync", "others", "--accept", "REJECT_RATE")
    found = workshop.json("rejects", "others")
    assert (len(found["rejects"]), found["notes"]) == (4, [])


def test_a_retry_sends_the_open_rejects_and_nothing_else(workshop: Workshop) -> None:
    workshop.warehouse(
        "UPDATE users SET spend = 5 WHERE user_id IN (1, 28, 29); DELETE FROM users WHERE user_id = 30"
    )
    tried = workshop.json("retry", "users")["syncs"][0]
    assert (tried["read"], tried["inserted"], tried["rejected"], tried["deleted"]) == (3, 2, 1, 0)
    assert tried["notes"][-1] == "2 of 4 open rejects are closed"
    assert held(workshop)[28] == 5
    assert held(workshop)[1] == 1  # it changed, but it was no reject
    assert sorted(one["key"] for one in workshop.json("rejects")["rejects"]) == ["2", "30"]
    workshop.json("sync")  # a row that left the mart is withdrawn by a run of the whole mart
    assert [one["key"] for one in workshop.json("rejects")["rejects"]] == ["2"]


def test_a_retry_takes_keys_and_codes(workshop: Workshop) -> None:
    workshop.warehouse("UPDATE users SET spend = 5, email = 'short' WHERE user_id IN (2, 28, 29)")
    assert workshop.json("retry", "users", "--key", "28")["syncs"][0]["inserted"] == 1
    assert workshop.json("retry", "users", "--code", "TOO_LONG")["syncs"][0]["inserted"] == 1
    assert held(workshop).keys() == set(range(1, ROWS + 1)) - {29, 30}
    assert workshop.retl("retry", "users", "--key", "1").code == 2
    assert workshop.retl("retry", "nobody").code == 2


def test_a_retry_of_rows_that_have_no_key_says_what_helps(workshop: Workshop) -> None:
    workshop.warehouse("INSERT INTO users VALUES (NULL, 'x', 1)")
    workshop.json("sync")
    workshop.warehouse("UPDATE users SET spend = 5, email = 'short' WHERE user_id IS NOT NULL")
    tried = workshop.json("retry", "users")["syncs"][0]
    assert tried["notes"][-2:] == [
        "4 of 5 open rejects are closed",
        "1 row without a usable key: only a run of the whole mart tries again",
    ]
    assert "no open reject has a usable key" in workshop.retl("retry", "users").out
    workshop.warehouse("DELETE FROM users WHERE user_id IS NULL")
    workshop.json("sync")
    assert "no open rejects" in workshop.retl("retry", "users").out
