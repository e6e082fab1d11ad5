"""Runs against tables that an application made: keys that the table folds, and values that it would alter."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Workshop
from tests.servers import Database

CITEXT = "CREATE SCHEMA ext; CREATE EXTENSION citext SCHEMA ext;"
DESTINATION = "{type: postgres, table: people}"
PEOPLE = "CREATE TABLE people AS SELECT 'p' || i AS id, i::INT AS size FROM range(40) t(i)"


@pytest.fixture
def workshop(tmp_path: Path, postgres: Database) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.use(postgres=postgres)
    return made


def run(workshop: Workshop, *words: str) -> dict[str, Any]:
    (found,) = workshop.retl("sync", "--sync", "people", *words, "--output", "json").document["syncs"]
    return dict(found)


def execute(postgres: Database, sql: str) -> None:
    with postgres.connect() as connection:
        connection.execute(sql)


def held(postgres: Database, sql: str) -> list[tuple[Any, ...]]:
    with postgres.connect() as connection:
        return connection.execute(sql).fetchall()


@pytest.mark.parametrize(
    "table",
    [
        "CREATE TABLE people (id ext.citext PRIMARY KEY, size int)",
        "CREATE TABLE people (id varchar(20) NOT NULL, size int); CREATE UNIQUE INDEX ON people (lower(id))",
    ],
    ids=["citext", "lower"],
)
def test_keys_that_the_table_folds_are_one_in_all_batches_and_runs(
    workshop: Workshop, postgres: Database, table: str
) -> None:
    execute(postgres, f"{CITEXT} {table}")
    workshop.warehouse(f"{PEOPLE}; INSERT INTO people VALUES ('P1', 100)")
    workshop.sync(
        "people",
        source="{table: people}",
        key="[id]",
        destination=DESTINATION,
        deletes="delete",
        batch="{rows: 7}",
        guards="{max_reject_rate: 1, max_delete_rate: 1}",
    )
    first = run(workshop)
    assert [one["code"] for one in first["rejects"]] == ["KEY_COLLIDES"] * 2
    assert held(postgres, "SELECT count(*), bool_or(lower(id::text) = 'p1') FROM people") == [(39, False)]
    workshop.warehouse("DELETE FROM people WHERE id = 'P1'; UPDATE people SET id = 'P2' WHERE id = 'p2'")
    second = run(workshop)
    assert (second["inserted"], second["deleted"], second["rejected"]) == (1, 0, 0)
    assert held(postgres, "SELECT count(*), bool_or(id::text = 'p2') FROM people") == [(40, True)]
    assert run(workshop)["unchanged"] == 40


def test_references_that_the_table_folds_are_found_while_unique_values_move(
    workshop: Workshop, postgres: Database
) -> None:
    """`=` of the keys' type is not on the search path: by PostgreSQL's own, no row would have its boss."""
    execute(
        postgres,
        f"{CITEXT} CREATE TABLE people (id ext.citext PRIMARY KEY, boss ext.citext REFERENCES people,"
        " rank int UNIQUE, rate real)",
    )
    workshop.warehouse(
        "CREATE TABLE people AS SELECT 'p' || i AS id, CASE WHEN i < 39 THEN 'P' || (i + 1) END AS boss,"
        " i::INT AS rank, i / 2 AS rate FROM range(40) t(i);"
        " INSERT INTO people VALUES ('inexact', NULL, 40, 1.0000000001)"
    )
    workshop.sync("people", source="{table: people}", key="[id]", destination=DESTINATION)
    assert run(workshop)["inserted"] == 40
    workshop.warehouse("UPDATE people SET rank = (rank + 1) % 40, boss = 'P0' WHERE rank < 40")
    done = run(workshop)
    assert [one["code"] for one in done["rejects"]] == ["NOT_EXACT"]
    assert done["updated"] == 40
    assert held(postgres, "SELECT rank FROM people WHERE id::text = 'p39'") == [(0,)]


def test_a_rebuild_compares_what_the_table_would_keep(workshop: Workshop, postgres: Database) -> None:
    execute(postgres, "CREATE TABLE people (id char(5) PRIMARY KEY, rate real, at time)")
    workshop.warehouse(
        "CREATE TABLE people AS SELECT 'p' || i AS id, i / 2 AS rate, '09:30:00' AS at FROM range(40) t(i);"
        " INSERT INTO people VALUES ('there', 1.0000000001, '09:30:00'), ('new', 1, '9:30'),"
        " ('no time', 1, 'noon'), ('none', 1, 'noon')"
    )
    workshop.sync(
        "people",
        source="{table: people}",
        key="[id]",
        destination=DESTINATION,
        guards="{max_reject_rate: 1}",
    )
    execute(postgres, "INSERT INTO people VALUES ('there', 1, '08:00')")
    assert (run(workshop)["inserted"], run(workshop)["unchanged"]) == (40, 40)
    shutil.rmtree(workshop.folder / ".retl")
    execute(postgres, "UPDATE people SET rate = 7 WHERE id = 'p2'; DELETE FROM people WHERE id = 'p3'")
    found = workshop.json("state", "rebuild", "people", "--yes")
    assert (found["same"], found["different"], found["absent"]) == (38, 2, 4)
    after = run(workshop)
    assert (after["inserted"], after["updated"], after["rejected"], after["unchanged"]) == (1, 1, 4, 38)
