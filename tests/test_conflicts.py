"""Somebody else edits what a sync writes. One row per cell of the table in docs/guides/conflicts.md, under each
strategy: what the target holds afterwards, and how the row is counted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Workshop
from tests.servers import Database, Databases

Held = tuple[str | None, int | None, str | None] | None  # phone, score, note; None: there is no such row
TABLE = (
    "CREATE TABLE people (id text PRIMARY KEY, phone text, score bigint, note text, edited timestamptz"
    " DEFAULT '2026-01-02 00:00:00+00')"
)
STRATEGIES = {
    "warehouse_wins": "warehouse_wins",
    "target_wins": "target_wins",
    "newest_wins": "{newest_wins: {mart: changed, target: edited}}",
    "manual": "manual",
}
OLD, NEW = "2026-01-01 00:00:00+00", "2026-01-03 00:00:00+00"


@dataclass(frozen=True)
class Cell:
    """One row of the mart: as it is delivered (None: not yet), what somebody does to it at the target, and what
    the mart says then (None: it left). `ends`: per strategy what the target holds."""

    before: tuple[str, int] | None
    edit: str | None
    after: tuple[str, int] | None
    ends: tuple[Held, Held, Held, Held]
    changed: str | None = OLD  # the mart's time; the target's is later than OLD and earlier than NEW


def same(held: Held) -> tuple[Held, Held, Held, Held]:
    return (held, held, held, held)


P, S = "SET phone = 'h'", "SET score = 9"
CELLS = {
    "as left": Cell(("p", 1), None, ("q", 2), same(("q", 2, None))),
    "note of theirs": Cell(("p", 1), "SET note = 'n'", ("q", 1), same(("q", 1, "n"))),
    "edited, unchanged in the mart": Cell(("p", 1), P, ("p", 1), same(("h", 1, None))),
    "edited, other field changed": Cell(
        ("p", 1), P, ("p", 2), (("p", 2, None), ("h", 2, None), ("h", 2, None), ("h", 2, None))
    ),
    "both changed": Cell(
        ("p", 1), P, ("q", 1), (("q", 1, None), ("h", 1, None), ("h", 1, None), ("h", 1, None))
    ),
    "both changed, mart later": Cell(
        ("p", 1), P, ("q", 1), (("q", 1, None), ("h", 1, None), ("q", 1, None), ("h", 1, None)), NEW
    ),
    "both changed, mart without time": Cell(
        ("p", 1), P, ("q", 1), (("q", 1, None), ("h", 1, None), ("h", 1, None), ("h", 1, None)), None
    ),
    "both changed, one field of two": Cell(
        ("p", 1), P, ("q", 2), (("q", 2, None), ("h", 2, None), ("h", 2, None), ("h", 1, None))
    ),
    "both agree": Cell(("p", 1), "SET phone = 'q'", ("q", 1), same(("q", 1, None))),
    "emptied": Cell(
        ("p", 1),
        "SET phone = NULL",
        ("q", 1),
        (("q", 1, None), (None, 1, None), (None, 1, None), (None, 1, None)),
    ),
    "gone": Cell(("p", 1), "DELETE", ("q", 1), (("q", 1, None), None, None, None)),
    "new": Cell(None, None, ("q", 1), same(("q", 1, None))),
    "appeared": Cell(
        None,
        "INSERT ('h', 9)",
        ("q", 1),
        (("q", 1, None), ("h", 9, None), ("h", 9, None), ("h", 9, None)),
    ),
    "appeared, mart later": Cell(
        None,
        "INSERT ('h', 1)",
        ("q", 1),
        (("q", 1, None), ("h", 1, None), ("q", 1, None), ("h", 1, None)),
        NEW,
    ),
    "appeared, both agree": Cell(None, "INSERT ('q', 1)", ("q", 1), same(("q", 1, None))),
    "left the mart": Cell(("p", 1), None, None, same(None)),
    "left, our field edited": Cell(("p", 1), S, None, (None, *same(("p", 9, None))[1:])),
    "left, their column edited": Cell(("p", 1), "SET note = 'n'", None, (None, *same(("p", 1, "n"))[1:])),
    "left, gone already": Cell(("p", 1), "DELETE", None, same(None)),
}  # fmt: skip
COUNTS = {  # unchanged, inserted, updated, skipped, rejected; merged, kept, queued; deleted, kept, rejected deletes
    "warehouse_wins": ((101, 4, 10, 0, 0), (0, 0, 0), (4, 0, 0)),
    "target_wins": ((101, 2, 5, 7, 0), (2, 7, 0), (2, 2, 0)),
    "newest_wins": ((101, 3, 6, 5, 0), (2, 5, 0), (2, 2, 0)),
    "manual": ((101, 2, 4, 0, 8), (1, 0, 8), (2, 0, 2)),
}


def mart(rows: dict[str, tuple[tuple[str, int] | None, str | None]]) -> str:
    """SQL that makes the mart of these rows, with their times."""
    listed = ", ".join(
        f"('{key}', '{row[0]}', {row[1]}, {f'{chr(39)}{at}{chr(39)}' if at else 'NULL'}::TIMESTAMPTZ)"
        for key, (row, at) in rows.items()
        if row is not None
    )
    rows = f"SELECT * FROM (VALUES {listed}) t(id, phone, score, changed)"
    others = (
        "SELECT 'other ' || i, 'o', i, NULL FROM range(100) t(i)"  # the target is not lost if rows are gone
    )
    return f"CREATE OR REPLACE TABLE people AS {rows} UNION ALL {others}"


def edit(database: Database, key: str, what: str) -> None:
    with database.connect() as connection:
        match what.split(" ", 1):
            case ["DELETE"]:
                connection.execute("DELETE FROM people WHERE id = %s", [key])
            case ["INSERT", values]:
                values = values.strip("()")
                connection.execute(f"INSERT INTO people (id, phone, score) VALUES (%s, {values})", [key])
            case _:
                connection.execute(f"UPDATE people {what} WHERE id = %s", [key])


def held(database: Database) -> dict[str, Held]:
    with database.connect() as connection:
        found = connection.execute("SELECT id, phone, score, note FROM people").fetchall()
    return {row[0]: row[1:] for row in found}


def project(folder: Path, database: Database, conflicts: str, **parts: str) -> Workshop:
    workshop = Workshop(folder)
    workshop.use(postgres=database)
    given = {
        "source": "{table: people}",
        "key": "[id]",
        "fields": "{phone: phone, score: score}",
        "destination": "{type: postgres, table: people}",
        "deletes": "delete",
        "conflicts": conflicts,
    } | parts
    workshop.sync("people", **given)
    return workshop


def run(workshop: Workshop, *words: str) -> dict[str, Any]:
    said = workshop.retl("sync", "--sync", "people", *words, "--output", "json")
    assert said.code in (0, 1), said.err
    (found,) = said.document["syncs"]
    return dict(found)


def numbers(found: dict[str, Any]) -> tuple[tuple[int, ...], ...]:
    kinds = ("unchanged", "inserted", "updated", "skipped", "rejected")
    deletes = found["deletes"]
    return (
        tuple(found[kind] for kind in kinds),
        tuple(found["conflicts"].values()),
        (found["deleted"], deletes["kept"], deletes["rejected"]),
    )


@dataclass(frozen=True)
class Played:
    """All cells under one strategy, on one server."""

    strategy: str
    summary: dict[str, Any]
    held: dict[str, Held]


@pytest.fixture(scope="module", params=list(STRATEGIES))
def played(
    request: pytest.FixtureRequest, postgres_databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    with postgres_databases.lend() as database:
        with database.connect() as connection:
            connection.execute(TABLE)
        workshop = project(tmp_path_factory.mktemp("cells") / "project", database, STRATEGIES[request.param])
        workshop.warehouse(mart({name: (cell.before, OLD) for name, cell in CELLS.items()}))
        assert run(workshop)["status"] == "SUCCESS"
        for name, cell in CELLS.items():
            if cell.edit is not None:
                edit(database, name, cell.edit)
        workshop.warehouse(mart({name: (cell.after, cell.changed) for name, cell in CELLS.items()}))
        summary = run(workshop)
        yield Played(request.param, summary, held(database))


@pytest.mark.parametrize("name", list(CELLS))
def test_each_cell_of_the_table(played: Played, name: str) -> None:
    wanted = CELLS[name].ends[list(STRATEGIES).index(played.strategy)]
    assert played.held.get(name) == wanted


def test_the_numbers_say_what_was_kept(played: Played) -> None:
    assert played.summary["error"] is None
    assert numbers(played.summary) == COUNTS[played.strategy]
