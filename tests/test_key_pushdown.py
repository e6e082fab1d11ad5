"""`--key` reaches the source: only those rows are read where no other row can matter, and all of them elsewhere."""

from __future__ import annotations

import os
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Workshop
from tests.servers import Database

ROWS = 50
TWICE = "SELECT id, name, seen FROM people UNION ALL SELECT 7, 'again', seen FROM people WHERE id = 7"


@pytest.fixture
def shop(tmp_path: Path, postgres: Database) -> Workshop:
    """The same 50 people in PostgreSQL and in a SQLite file."""
    workshop = Workshop(tmp_path / "shop")
    workshop.use(postgres=postgres)
    server = f"host: {postgres.host}, port: {postgres.port}, dbname: {postgres.dbname}, user: {postgres.user}"
    workshop.write(
        "retl.yml",
        f'sources:\n  app: {{type: postgres, {server}, password: "${{POSTGRES_PASSWORD}}"}}\n'
        "  lite: {type: sqlite, path: people.db}\n",
    )
    with postgres.connect() as connection:
        connection.execute("CREATE TABLE people (id int, name text, seen timestamptz)")
        connection.execute(
            f"INSERT INTO people SELECT i, 'p' || i, '2026-11-28 06:00Z' FROM generate_series(1, {ROWS}) i"
        )
    with sqlite3.connect(workshop.folder / "people.db") as file:
        file.execute("CREATE TABLE people (id INTEGER, name TEXT, seen TEXT)")
        file.executemany("INSERT INTO people VALUES (?, ?, '')", [(i, f"p{i}") for i in range(1, ROWS + 1)])
    file.close()
    return workshop


def sync(shop: Workshop, source: str = "{from: app, table: people}", **parts: str) -> None:
    table = "{type: postgres, table: crm.people, create: true}"
    shop.sync("people", **{"source": source, "key": "[id]", "destination": table, **parts})


def ran(shop: Workshop, *words: str) -> tuple[int, dict[str, Any]]:
    """How many rows were read from the source, and the run's summary."""
    said = shop.retl("sync", *words, "--output", "json", RETL_LOG_FORMAT="json")
    (read,) = re.findall(r'"rows": (\d+), "event": "mart_frozen"', said.raw)
    (run,) = said.document["syncs"]
    return int(read), run


@pytest.mark.parametrize("source", ["app", "lite"])
def test_only_the_rows_of_the_keys_are_read_and_sent(shop: Workshop, postgres: Database, source: str) -> None:
    sync(shop, f"{{from: {source}, table: people}}")
    read, run = ran(shop, "--key", "7", "--key", "9")
    assert (read, run["read"], run["inserted"]) == (2, 2, 2)
    read, run = ran(shop)
    assert (read, run["inserted"], run["unchanged"]) == (ROWS, ROWS - 2, 2)
    read, run = ran(shop, "--key", "7")
    assert (read, run["updated"] + run["refreshed"] + run["unchanged"], run["status"]) == (1, 1, "SUCCESS")
    with postgres.connect() as connection:
        assert connection.execute("SELECT count(*) FROM crm.people").fetchall() == [(ROWS,)]


def test_all_rows_of_a_key_are_read_and_none_is_deleted(shop: Workshop) -> None:
    sync(shop, f'{{from: app, sql: "{TWICE}"}}', deletes="delete", guards="{max_reject_rate: 1}")
    read, run = ran(shop, "--key", "7")
    assert (read, [one["code"] for one in run["rejects"]]) == (2, ["KEY_DUPLICATE"] * len(run["rejects"]))
    assert run["rejected"] == 2
    assert run["deletes"]["planned"] == 0


def test_a_key_that_is_not_there_is_said_as_before(shop: Workshop) -> None:
    sync(shop)
    for key in ("700", "x", "9" * 30):
        said = shop.retl("sync", "--key", key)
        assert (said.code, "KEY_UNKNOWN" in said.err) == (2, True), key


OTHERS: list[dict[str, str]] = [
    {"changes": "{watermark: seen}"},
    {"key": "[name]"},
]
if os.environ.get("RETL_TEST_ALL"):
    OTHERS += [
        {"guards": "{min_rows: 10}"},
        {"checks": "[SELECT 1 FROM source HAVING count(*) < 50]"},
        {"deletes": "{delete: true, within: id > 10}"},
        {"key": "[id, name]"},
    ]


@pytest.mark.parametrize("parts", OTHERS)
def test_every_row_is_read_where_others_matter(shop: Workshop, parts: dict[str, str]) -> None:
    sync(shop, **parts)
    key = {"[name]": "p7", "[id, name]": '[7,"p7"]'}.get(parts.get("key", ""), "7")
    read, run = ran(shop, "--key", key)
    assert (read, run["inserted"], run["status"]) == (ROWS, 1, "SUCCESS")


def test_a_plan_of_a_key_is_applied(shop: Workshop, postgres: Database) -> None:
    sync(shop)
    assert shop.retl("plan", "--sync", "people", "--key", "7", "--out", "key.plan").code == 0
    assert (said := shop.retl("apply", "key.plan")).code == 0, said.err
    with postgres.connect() as connection:
        assert connection.execute("SELECT id FROM crm.people").fetchall() == [(7,)]
