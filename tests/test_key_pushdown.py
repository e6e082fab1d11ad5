"""`--key` reaches the source: only those rows are read where no other row can matter, and all of them elsewhere; of
`retl sync` as of `retl explain`."""

from __future__ import annotations

import os
import re
import sqlite3
from pathlib import Path
from typing import Any

import duckdb
import pytest
from deltalake import write_deltalake

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


def explained(shop: Workshop, *keys: str) -> tuple[list[int], dict[str, Any]]:
    """How many rows each reading of the source found, and what `retl explain` says."""
    words = [word for key in keys for word in ("--key", key)]
    said = shop.retl("explain", "people", *words, "--output", "json", RETL_LOG_FORMAT="json")
    assert said.code == 0, said.err
    return [int(one) for one in re.findall(r'"rows": (\d+), "event": "mart_frozen"', said.raw)], said.document


@pytest.mark.parametrize("source", ["app", "lite"])
def test_explain_reads_the_rows_of_its_keys_and_says_the_same(shop: Workshop, source: str) -> None:
    narrow, wide = f"{{from: {source}, table: people}}", "{min_rows: 1}"  # a guard that needs every row
    sync(shop, narrow)
    before = explained(shop, "7", "9")
    shop.retl("sync", "--key", "7")
    after = explained(shop, "7", "9")
    assert (before[0], after[0]) == ([2], [2])
    assert [row["next"][:7] for row in after[1]["rows"]] == ["nothing", "insert "]
    assert "only the rows of these keys were read" in after[1]["notes"][-1]
    sync(shop, narrow, guards=wide)
    read, whole = explained(shop, "7", "9")
    assert (read, whole["guards"], after[1]["guards"]) == ([ROWS], [], [])
    for one in (*whole["rows"], *after[1]["rows"]):
        del one["request"]  # it has the id of its run
    assert whole["rows"] == after[1]["rows"]


def test_explain_reads_every_row_to_say_what_becomes_of_a_key_that_left(
    shop: Workshop, postgres: Database
) -> None:
    sync(shop, deletes="delete")
    assert shop.retl("sync").code == 0
    with postgres.connect() as connection:
        connection.execute("DELETE FROM people WHERE id = 7")
    read, said = explained(shop, "7", "9")
    assert (read, [row["next"][:9] for row in said["rows"]]) == ([1, ROWS - 1], ["delete it", "nothing: "])
    with postgres.connect() as connection:
        connection.execute("UPDATE people SET id = NULL WHERE id = 8")  # it may be the key that is missed
    read, said = explained(shop, "7")
    assert (read, said["rows"][0]["next"][:9]) == ([0, ROWS - 1], "nothing: ")


def test_a_rejected_row_alone_is_no_share_of_the_mart(shop: Workshop) -> None:
    sync(shop, f'{{from: app, sql: "{TWICE}"}}')
    read, said = explained(shop, "7")
    assert (read, said["guards"], len(said["rows"])) == ([2], [], 2)
    assert all("[KEY_DUPLICATE]" in row["next"] for row in said["rows"])


def test_explain_knows_the_rows_that_a_run_leaves_out(shop: Workshop, postgres: Database) -> None:
    with postgres.connect() as connection:
        connection.execute("UPDATE people SET seen = '2026-11-29 06:00Z' WHERE id > 10")
    sync(shop, changes="{watermark: seen}")
    assert shop.retl("sync").code == 0
    read, said = explained(shop, "7", "20")
    assert read == [ROWS]
    same, passed = said["rows"]
    assert passed["next"].startswith("nothing: its row is older than the mark")
    assert same["next"] == "nothing: it is the same as confirmed"


def test_explain_knows_the_rows_that_a_feed_leaves_out(shop: Workshop) -> None:
    people = duckdb.sql(f"SELECT i AS id, 'p' || i AS name FROM range({ROWS}) AS t(i)").to_arrow_table()
    feed = {"delta.enableChangeDataFeed": "true"}
    write_deltalake(str(shop.folder / "lake" / "people"), people, configuration=feed)
    shop.write("retl.yml", "sources:\n  app: {type: delta, root: lake}\n")
    sync(shop, changes="cdf")
    assert shop.retl("sync").code == 0
    read, said = explained(shop, "7")
    assert (read, said["rows"][0]["next"]) == ([ROWS], "nothing: it is the same as confirmed")


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
