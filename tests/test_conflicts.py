"""Somebody else edits what a sync writes. One row per cell of the table in docs/guides/conflicts.md, under each
strategy: what the target holds afterwards, and how the row is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from retl.cli.running import sampled
from retl.destinations.batch import Kind
from tests.commands import Workshop
from tests.proxy import Proxy
from tests.servers import Database, Databases
from tests.test_ambiguity import COMMITTING
from tests.truth_table import PROPERTY, shown

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
        predicted = run(workshop, "--dry-run")
        summary = run(workshop)
        if request.param != "warehouse_wins":  # which looks at nothing
            assert numbers(predicted) == numbers(summary)
        yield Played(request.param, summary, held(database))


@pytest.mark.parametrize("name", list(CELLS))
def test_each_cell_of_the_table(
    played: Played, name: str, record_property: Callable[[str, object], None]
) -> None:
    wanted = CELLS[name].ends[list(STRATEGIES).index(played.strategy)]
    record_property(PROPERTY, ("PostgreSQL", played.strategy, name, shown(played.held.get(name))))
    assert played.held.get(name) == wanted


def test_the_numbers_say_what_was_kept(played: Played) -> None:
    assert played.summary["error"] is None
    assert numbers(played.summary) == COUNTS[played.strategy]


@pytest.fixture
def people(tmp_path: Path, postgres: Database) -> Database:
    with postgres.connect() as connection:
        connection.execute(TABLE)
    return postgres


def rows(**marts: tuple[str, int] | None) -> str:
    return mart({key: (row, OLD) for key, row in marts.items()})


def begun(folder: Path, database: Database, conflicts: str, **parts: str) -> Workshop:
    """A project that has delivered a, b and c."""
    workshop = project(folder / "project", database, conflicts, **parts)
    workshop.warehouse(rows(a=("p", 1), b=("p", 1), c=("p", 1)))
    assert run(workshop)["inserted"] == 103
    return workshop


def test_what_is_kept_stays_kept_until_both_agree_or_the_edit_is_taken_back(
    tmp_path: Path, people: Database
) -> None:
    workshop = begun(tmp_path, people, "target_wins")
    edit(people, "a", P)
    for phone in ("q", "r"):
        workshop.warehouse(rows(a=(phone, 1), b=("p", 1), c=("p", 1)))
        assert run(workshop)["conflicts"] == {"merged": 0, "kept": 1, "queued": 0}
        assert run(workshop)["unchanged"] == 103  # it is dealt with, and not due again
    last = workshop.retl("log", "people", "--key", "a").out.splitlines()[-1]
    assert last.split("update")[1].split() == [
        "a",
        "kept",
        "not",
        "written:",
        "what",
        "somebody",
        "edited",
        "stays",
    ]
    assert {row["write_status"] for row in workshop.json("log", "people")["rows"]} == {"success"}
    edit(people, "a", "SET phone = 's'")
    workshop.warehouse(rows(a=("s", 1), b=("p", 1), c=("p", 1)))
    assert run(workshop)["updated"] == 1  # they agree: it is ours again
    workshop.warehouse(rows(a=("t", 1), b=("p", 1), c=("p", 1)))
    assert run(workshop)["updated"] == 1
    edit(people, "a", P)
    edit(people, "a", "SET phone = 't'")  # as if nobody had been there
    workshop.warehouse(rows(a=("u", 1), b=("p", 1), c=("p", 1)))
    assert run(workshop)["updated"] == 1
    assert held(people)["a"] == ("u", 1, None)


def test_each_field_may_have_a_strategy_of_its_own(tmp_path: Path, people: Database) -> None:
    fields = "{phone: {column: phone, conflicts: target_wins}, score: score}"
    workshop = begun(tmp_path, people, "warehouse_wins", fields=fields, deletes="keep")
    edit(people, "a", "SET phone = 'h', score = 9")
    edit(people, "b", "DELETE")
    workshop.warehouse(rows(a=("q", 2), b=("q", 2), c=("q", 2)))
    found = run(workshop)
    assert (found["updated"], found["conflicts"]) == (3, {"merged": 1, "kept": 0, "queued": 0})
    assert [held(people)[key] for key in "abc"] == [("h", 2, None), ("q", 2, None), ("q", 2, None)]


def test_an_edit_is_not_lost_where_nobody_knows_what_was_there(tmp_path: Path, people: Database) -> None:
    """`conflicts` is switched on over a baseline that was made without."""
    begun(tmp_path, people, "warehouse_wins")
    edit(people, "a", P)
    workshop = project_again(tmp_path, people, "target_wins")
    found = run(workshop)
    assert (found["unchanged"], found["updated"], found["skipped"]) == (0, 102, 1)
    workshop.warehouse(rows(a=("q", 1), b=("q", 1), c=("p", 1)))
    found = run(workshop)
    assert (found["updated"], found["skipped"], found["unchanged"]) == (1, 1, 101)
    assert [held(people)[key] for key in "abc"] == [("h", 1, None), ("q", 1, None), ("p", 1, None)]


def test_a_row_that_is_due_when_conflicts_is_switched_on_keeps_what_the_target_has(
    tmp_path: Path, people: Database
) -> None:
    begun(tmp_path, people, "warehouse_wins")
    workshop = project_again(tmp_path, people, "target_wins")
    workshop.warehouse(rows(b=("q", 1)))
    assert run(workshop)["skipped"] == 1
    assert held(people)["b"] == ("p", 1, None)


def project_again(folder: Path, database: Database, conflicts: str, **parts: str) -> Workshop:
    """The same project with another definition of its sync."""
    workshop = project(folder / f"other {len(list(folder.iterdir()))}", database, conflicts, **parts)
    other = Workshop.__new__(Workshop)
    other.folder, other.environment = folder / "project", workshop.environment
    definition = (workshop.folder / "syncs" / "people.yml").read_text()
    other.write("syncs/people.yml", definition)
    return other


def test_a_target_that_was_emptied_is_filled_again_on_demand(tmp_path: Path, people: Database) -> None:
    workshop = begun(tmp_path, people, "target_wins")
    with people.connect() as connection:
        connection.execute("TRUNCATE people")
    said = workshop.retl("sync", "--sync", "people", "--output", "json")
    assert (said.code, said.document["syncs"][0]["error"]["code"]) == (3, "TARGET_LOST")
    assert run(workshop, "--full")["updated"] == 103
    assert len(held(people)) == 103


def test_what_a_restored_backup_holds_is_kept_until_one_run_where_the_mart_wins(
    tmp_path: Path, people: Database
) -> None:
    workshop = begun(tmp_path, people, "target_wins")
    tables = ("people", "retl_applied")
    with people.connect() as connection:
        for one in tables:
            connection.execute(f"CREATE TABLE {one}_kept AS TABLE {one}")
    workshop.warehouse(rows(a=("q", 1), b=("q", 1), c=("p", 1)))
    assert run(workshop)["updated"] == 2
    with people.connect() as connection:
        for one in tables:
            connection.execute(f"DELETE FROM {one}; INSERT INTO {one} TABLE {one}_kept")
    said = workshop.retl("sync", "--sync", "people", "--output", "json")
    assert (said.code, said.document["syncs"][0]["error"]["code"]) == (3, "TARGET_LOST")
    assert run(workshop, "--accept", "TARGET_LOST")["conflicts"]["kept"] == 2
    assert run(workshop, "--full")["conflicts"]["kept"] == 2
    assert held(people)["a"] == ("p", 1, None)
    assert run(project_again(tmp_path, people, "warehouse_wins"), "--full")["conflicts"]["kept"] == 0
    assert held(people)["a"] == ("q", 1, None)
    assert run(project_again(tmp_path, people, "target_wins"))["skipped"] == 0
    assert held(people)["a"] == ("q", 1, None)


def test_rows_that_others_removed_do_not_make_the_target_lost(tmp_path: Path, people: Database) -> None:
    workshop = begun(tmp_path, people, "target_wins")
    edit(people, "a", "DELETE")
    edit(people, "b", "DELETE")
    workshop.warehouse(rows(a=("q", 1), b=("q", 1), c=("p", 1)))
    assert run(workshop)["conflicts"]["kept"] == 2
    edit(people, "c", "DELETE")
    workshop.warehouse(rows(a=("r", 1), b=("r", 1), c=("p", 1)))
    assert (
        run(workshop)["conflicts"]["kept"] == 2
    )  # 3 of 103 keys are not there, of which two are known to be gone


def test_too_many_edits_stop_the_run(tmp_path: Path, people: Database) -> None:
    workshop = begun(tmp_path, people, "target_wins", batch="{rows: 120}")
    with people.connect() as connection:
        connection.execute("UPDATE people SET phone = phone || '!' WHERE score > 79")
    workshop.warehouse(rows(a=("q", 1), b=("q", 1)) + "; UPDATE people SET phone = 'n' WHERE score > 1")
    found = run(workshop)
    assert (found["status"], found["error"]["code"], found["deleted"]) == ("FAILED", "CONFLICT_RATE", 0)
    assert held(people)["other 99"] == ("o!", 99, None)


def listed(workshop: Workshop) -> list[tuple[str, str, str]]:
    found = workshop.json("conflicts", "list")["conflicts"]
    return [(one["key"], one["code"], one["digest"]) for one in found]


def take(workshop: Workshop, side: str, *words: str) -> int:
    return workshop.retl("conflicts", "take", side, "--sync", "people", *words).code


def test_a_person_decides_what_waits_and_a_later_edit_refuses(tmp_path: Path, people: Database) -> None:
    workshop = begun(tmp_path, people, "manual")
    edit(people, "a", P)
    edit(people, "b", "DELETE")
    edit(people, "c", "SET note = 'n'")
    workshop.warehouse(rows(a=("q", 2), b=("q", 2)))
    found = run(workshop)
    assert found["conflicts"] == {"merged": 0, "kept": 0, "queued": 2}
    assert [one[:2] for one in listed(workshop)] == [
        ("a", "CONFLICT"),
        ("b", "GONE"),
        ("c", "DELETE_CONFLICT"),
    ]
    ((_, _, digest), *_) = listed(workshop)
    assert take(workshop, "mart", "--key", "a", "--expect", "0" * 16) == 2
    edit(people, "a", "SET phone = 'i'")
    assert take(workshop, "mart", "--key", "a", "--expect", digest) == 1  # edited since it was shown
    assert held(people)["a"] == ("i", 1, None)
    assert take(workshop, "mart") == 0
    assert listed(workshop) == []
    assert {key: one for key, one in held(people).items() if key in "abc"} == {
        "a": ("q", 2, None), "b": ("q", 2, None)
    }  # fmt: skip


def test_a_decision_takes_the_variables_of_the_mart(tmp_path: Path, people: Database) -> None:
    workshop = begun(tmp_path, people, "manual")
    edit(people, "a", P)
    workshop.warehouse(rows(a=("q", 2)))
    assert run(workshop)["conflicts"]["queued"] == 1
    file = workshop.folder / "syncs" / "people.yml"
    sql = '{sql: "SELECT * FROM people WHERE score < $most"}'
    file.write_text(file.read_text().replace("{table: people}", sql))
    assert take(workshop, "mart", "--key", "a") == 2
    assert take(workshop, "mart", "--key", "a", "--var", "most=1000") == 0
    assert held(people)["a"] == ("q", 2, None)


def test_the_targets_side_may_be_taken_too(tmp_path: Path, people: Database) -> None:
    workshop = begun(tmp_path, people, "manual")
    edit(people, "a", P)
    edit(people, "b", "DELETE")
    edit(people, "c", "SET note = 'n'")
    workshop.warehouse(rows(a=("q", 2), b=("q", 2)))
    run(workshop)
    theirs = held(people)
    assert take(workshop, "target") == 0
    assert listed(workshop) == []
    assert held(people) == theirs
    assert run(workshop)["unchanged"] == 102
    workshop.warehouse(rows(a=("r", 2), b=("q", 2)))
    assert run(workshop)["conflicts"]["queued"] == 1  # the edit is theirs until both agree


@pytest.mark.parametrize("heals", ["agreement", "taken back", "mart taken back", "dismissed"])
def test_the_queue_closes_when_the_conflict_is_over(tmp_path: Path, people: Database, heals: str) -> None:
    workshop = begun(tmp_path, people, "manual")
    edit(people, "a", P)
    workshop.warehouse(rows(a=("q", 1), b=("p", 1), c=("p", 1)))
    runs = 5 if heals == "agreement" else 1
    for _ in range(runs):
        assert run(workshop)["conflicts"]["queued"] == 1
    (one,) = workshop.json("conflicts")["conflicts"]
    assert one["attempts"] == runs
    match heals:
        case "agreement":
            edit(people, "a", "SET phone = 'q'")
        case "taken back":
            edit(people, "a", "SET phone = 'p'")
        case "mart taken back":
            workshop.warehouse(rows(a=("p", 1), b=("p", 1), c=("p", 1)))
        case "dismissed":
            assert "NEEDS_YES" in workshop.retl("conflicts", "dismiss", "--sync", "people").err
            assert workshop.retl("conflicts", "dismiss", "--key", "a").code == 0
    run(workshop)
    assert listed(workshop) == []
    assert held(people)["a"] == ("h" if "mart" in heals or heals == "dismissed" else "q", 1, None)


def test_a_plan_and_an_explanation_say_what_becomes_of_edits(tmp_path: Path, people: Database) -> None:
    contract = (
        "{id: {type: string}, phone: {type: string, sensitive: true, nullable: true}, score: {type: integer}}"
    )
    workshop = begun(tmp_path, people, "target_wins", contract=contract)
    edit(people, "a", P)
    edit(people, "b", "DELETE")
    edit(people, "c", "SET note = 'n'")
    workshop.warehouse(rows(a=("q", 2), b=("q", 2)))
    before = held(people)
    predicted = run(workshop, "--dry-run")
    assert held(people) == before
    (planned,) = workshop.json("plan", "--sync", "people")["syncs"]
    (row,) = workshop.json("explain", "people", "--key", "a", "--read")["rows"]
    assert row["sides"]["row"] == "merged"
    assert row["next"].startswith("send a part of it: the fields that somebody edited")
    with people.connect() as connection:
        digest = "encode(int8send(hashtextextended('p' COLLATE \"C\", 0)), 'hex')"
        ((digest,),) = connection.execute(f"SELECT {digest}").fetchall()
    assert digest not in row["request"].lower(), "who guesses the value knows its digest"
    (shown,) = workshop.json("explain", "people", "--key", "a", "--reveal")["rows"]
    assert digest in shown["request"].lower()
    for key in "bc":
        (other,) = workshop.json("explain", "people", "--key", key, "--read")["rows"]
        assert other["next"] == "leave it: somebody edited it in the target, and that edit stays"
    assert {name: (one["target"], one["mart"], one["verdict"]) for name, one in row["sides"]["fields"].items()} == {
        "phone": ("***", "***", "keep"), "score": (1, 2, "write")
    }  # fmt: skip
    assert row["sides"]["fields"]["score"]["left"]["run_id"]
    verdicts = {one["key"]: (one["verdict"], one["verdicts"]) for one in planned["samples"]}
    assert verdicts == {
        "a": ("merged", {"phone": "keep", "score": "write"}), "b": ("kept", {}), "c": ("kept", {})
    }  # fmt: skip
    assert "keep" in workshop.retl("plan", "--sync", "people").out
    page = workshop.retl("explain", "people", "--key", "a").out
    assert len(page.splitlines()) < 20, "a page for a person"
    assert "characters: `--verbose` prints them" in page
    assert "UPDATE ONLY" in workshop.retl("explain", "people", "--key", "a", "-v").out
    assert row["next"] == "send a part of it: the fields that somebody edited in the target stay"
    comment = workshop.retl("plan", "people", "--output", "markdown").out
    assert "| `phone` | 0 | 0 |" not in comment, "it stays as it is in the target"
    assert "| `score` | 0 | 1 |" in comment
    found = run(workshop)
    assert numbers(found) == numbers(predicted) == ((100, 0, 1, 1, 0), (1, 1, 0), (0, 1, 0))
    asked = ("explain", "people", "--key", "a", "--key", "b", "--key", "other 7")
    later = {row["key"]: row for row in workshop.json(*asked)["rows"]}
    assert {key: row["baseline"]["edited"] for key, row in later.items()} == {
        "a": "merged", "b": "kept", "other 7": None
    }  # fmt: skip
    assert later["b"]["baseline"]["run_id"] == later["a"]["baseline"]["run_id"] == found["run_id"]
    kept = "nothing: its mart row is the same as when the edit in the target was kept"
    assert [later[key]["next"] for key in "ab"] == ["nothing: it is the same as confirmed", kept]
    page = workshop.retl("explain", "people", "--key", "b").out
    assert "baseline     not written, because somebody edited it in the target, 2" in page
    assert workshop.retl("log", "people", "--run", found["run_id"]).out.count("  kept  ") == 2
    assert workshop.json("show")["conflicts"] == {"merged": 1, "kept": 1, "queued": 0}


def test_rows_that_would_be_queued_are_no_updates_for_those_who_read_a_plan(
    tmp_path: Path, people: Database
) -> None:
    workshop = begun(tmp_path, people, "manual")
    edit(people, "a", P)
    workshop.warehouse(rows(a=("q", 2), b=("r", 1), c=("p", 1)))
    (planned,) = workshop.json("plan", "people")["syncs"]
    assert (planned["updated"], planned["rejected"]) == (1, 1)
    assert [(one["key"], one["stage"], one["code"]) for one in planned["rejects"]] == [
        ("a", "conflict", "CONFLICT")
    ]
    assert {one["name"]: one["updated"] for one in planned["review"]["columns"]} == {"phone": 1, "score": 0}
    comment = workshop.retl("plan", "people", "--output", "markdown").out
    assert "| update | `a` | `phone` | `h` | `q` | conflict |" in comment
    assert "|  |  | `score` | `1` | `2` | queued |" in comment
    assert "| update | `b` | `phone` | `p` | `r` | write |" in comment
    assert "| `a` | conflict | CONFLICT |" in comment.split("#### Rejects")[1]
    request = comment.split("The request of one row")[1]
    assert ('"b","r",1' in request, '"a",' in request) == (True, False)
    (row,) = workshop.json("explain", "people", "--key", "a", "--read")["rows"]
    assert row["next"].startswith("queue it: somebody edited it in the target")
    (row,) = workshop.json("explain", "people", "--key", "b", "--read")["rows"]
    assert row["next"].startswith("send it: nobody edited")
    (row,) = workshop.json("explain", "people", "--key", "a")["rows"]
    assert row["next"].endswith("unless somebody edited it in the target (`--read` looks)")
    run(workshop)
    (state,) = workshop.json("status")["syncs"]
    assert state["next"] == "`retl conflicts --sync people`"


def test_a_sync_that_makes_no_rows_plans_updates_and_says_which_rows_are_missing(
    tmp_path: Path, people: Database
) -> None:
    with people.connect() as connection:
        connection.execute("INSERT INTO people VALUES ('a', 'h', 1, NULL), ('b', 'p', 1, NULL)")
    workshop = project(tmp_path / "project", people, "warehouse_wins", write="update_only", deletes="keep")
    workshop.warehouse(rows(a=("q", 1), b=("r", 1), c=("p", 1)))
    (planned,) = workshop.json("plan", "people", "--where", "id < 'd'")["syncs"]
    assert (planned["inserted"], planned["updated"], planned["skipped"]) == (0, 2, 1)
    shown = {one["key"]: (one["op"], one.get("verdict"), one["fields"]) for one in planned["samples"]}
    assert shown == {
        "a": ("update", None, {"phone": ["h", "q"]}),
        "b": ("update", None, {"phone": ["p", "r"]}),
        "c": ("update", "skipped", {}),
    }
    columns = {one["name"]: (one["inserted"], one["updated"]) for one in planned["review"]["columns"]}
    assert columns == {"phone": (0, 2), "score": (0, 0)}
    comment = workshop.retl("plan", "people", "--where", "id < 'd'", "--output", "markdown").out
    assert "| update | `c` |  |  |  | skip |" in comment
    assert "of the first 0 updates" not in comment


@pytest.mark.parametrize("verdict", [one.value for one in Kind])
def test_a_plan_has_one_word_for_rows_and_fields(verdict: str) -> None:
    (row,) = sampled([{"op": "update", "key": "1", "fields": {}, "verdict": verdict}])
    (field,) = sampled([{"op": "update", "key": "1", "fields": {"a": [1, 2]}, "verdict": verdict}])
    words = {"write", "keep", "conflict", "skip", "reject", "retry", "unknown"}
    assert (row[-1] in words, field[-1]) == (True, row[-1])


@pytest.mark.parametrize(
    ("alter", "write"),
    [
        ("SELECT 1", "update_only"),
        ("SELECT 1", "insert_only"),
        ("ALTER TABLE people ALTER phone TYPE varchar(3), ALTER score TYPE numeric(9, 1)", "upsert"),
        ("CREATE EXTENSION citext; ALTER TABLE people ALTER id TYPE citext", "upsert"),
        ("ALTER TABLE people ADD CHECK (phone <> 'bad'), ADD UNIQUE (score)", "upsert"),
    ],
    ids=["update_only", "insert_only", "judged", "folded", "constrained"],
)
def test_edits_are_kept_in_tables_of_every_kind(
    tmp_path: Path, people: Database, alter: str, write: str
) -> None:
    parts = {"write": write, "deletes": "keep"}
    marts = {"a": ("p", 201), "b": ("p", 202), "c": ("p", 203), "d": ("p", 204)}
    workshop = project(tmp_path / "project", people, "target_wins", **parts)
    workshop.warehouse(rows(**marts))
    with people.connect() as connection:
        connection.execute(alter)
        if write == "update_only":
            connection.execute(
                "INSERT INTO people SELECT k, 'p', 200 + n"
                " FROM unnest('{a,b,c,d}'::text[]) WITH ORDINALITY AS u(k, n)"
            )
    run(workshop)
    edit(people, "a", P)
    edit(people, "b", "SET note = 'n'")
    if write != "update_only":  # of which only four rows are there, so the target would be lost
        edit(people, "c", "DELETE")
    workshop.warehouse(rows(a=("q", 202), b=("q", 201), c=("q", 203), d=("bad", 204)))
    found = run(workshop)
    constrained = "CHECK" in alter
    assert found["rejected"] == int(constrained)
    kept = {"a": ("p", 201, None), "b": ("p", 202, "n"), "d": ("p", 204, None)}
    written = {"a": ("h", 202, None), "b": ("q", 201, "n"), "d": ("p" if constrained else "bad", 204, None)}
    there = {key: one for key, one in held(people).items() if key in "abcd"}
    if write == "update_only":
        assert there.pop("c") == ("q", 203, None)
    assert there == (kept | {"a": ("h", 201, None)} if write == "insert_only" else written)
    if constrained:  # rows that swapped a unique value were sent twice, so it is not known what they left
        run(workshop)
    assert run(workshop)["updated"] == 0


def test_an_edit_made_while_nobody_knows_whether_a_batch_was_committed_stays(
    tmp_path: Path, people: Database
) -> None:
    with Proxy(people.host, people.port) as proxy:
        through = replace(people, host=proxy.host, port=proxy.port)
        workshop = begun(tmp_path, through, "target_wins", retry="{attempts: 2}")
        workshop.warehouse(rows(a=("q", 2), b=("q", 1), c=("p", 1), new=("q", 1)))
        proxy.drop_reply(*COMMITTING, refuse=True)
        assert run(workshop)["in_doubt"] == 3
        proxy.heal()
        assert held(people)["a"] == ("q", 2, None), "it was committed, the answer did not arrive"
        edit(people, "a", P)
        found = run(workshop)
        assert (found["updated"], found["conflicts"]) == (2, {"merged": 0, "kept": 1, "queued": 0})
        workshop.warehouse(rows(a=("r", 3), b=("r", 1), c=("p", 1)))
        found = run(workshop)
        assert (found["updated"], found["conflicts"]["merged"]) == (2, 1)
    assert {key: one for key, one in held(people).items() if key in "abc"} == {
        "a": ("h", 3, None), "b": ("r", 1, None), "c": ("p", 1, None)
    }  # fmt: skip


def spoilt(number: int) -> str:
    """What becomes of one of the others in the test below, apart from its strategy."""
    if number % 11 == 5:
        return "contract"
    if number % 5 == 2:
        return "edited"
    return "poison" if number % 7 == 3 else "good"


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_the_numbers_add_up_beside_rejects_halved_batches_and_deletes(
    tmp_path: Path, people: Database, strategy: str
) -> None:
    wins = strategy == "warehouse_wins"
    contract = "{id: {type: string}, phone: {type: string}, score: {type: integer, ge: 0}}"
    if strategy == "newest_wins":
        contract = contract[:-1] + ", changed: {type: timestamptz, nullable: true}}"
    guards = "max_reject_rate: 1, max_failed_rate: 1" + ("" if wins else ", max_conflict_rate: 1")
    parts = {"contract": contract, "guards": f"{{{guards}}}", "batch": "{rows: 9}"}
    workshop = begun(tmp_path, people, STRATEGIES[strategy], **parts)
    numbered = "split_part(id, ' ', 2)::int"
    with people.connect() as admin:
        admin.execute("ALTER TABLE people ADD CHECK (phone <> 'bad')")
        admin.execute(f"UPDATE people SET phone = 'h' WHERE id LIKE 'other %' AND {numbered} % 5 = 2")
    edit(people, "b", "SET note = 'n'")
    edit(people, "c", "DELETE")
    workshop.warehouse(
        f"UPDATE people SET phone = CASE WHEN {numbered} % 7 = 3 THEN 'bad' ELSE 'n' END,"
        f" score = CASE WHEN {numbered} % 11 = 5 THEN -1 ELSE score END WHERE id LIKE 'other %';"
        " DELETE FROM people WHERE id NOT LIKE 'other %'"
    )
    ends = Counter(map(spoilt, range(100)))
    bad = sum(n % 7 == 3 and spoilt(n) == "edited" for n in range(100))  # poison only if it is written
    edited = {"updated": ends["edited"] - bad if wins else 0}
    edited["kept"] = ends["edited"] if strategy in ("target_wins", "newest_wins") else 0
    edited["queued"] = ends["edited"] if strategy == "manual" else 0
    found = run(workshop)
    assert found["error"] is None
    rejected = ends["contract"] + ends["poison"] + edited["queued"] + (bad if wins else 0)
    assert numbers(found) == (
        (0, 0, ends["good"] + edited["updated"], edited["kept"], rejected),
        (0, edited["kept"], edited["queued"]),
        (3, 0, 0) if wins else (2, 1, 0) if strategy != "manual" else (2, 0, 1),
    )
    kinds = (
        "unchanged",
        "inserted",
        "updated",
        "refreshed",
        "rejected",
        "skipped",
        "in_doubt",
        "not_attempted",
    )
    assert found["read"] == sum(found[kind] for kind in kinds) == 100
    assert found["deletes"]["planned"] == 3
    codes = Counter(one["code"] for one in workshop.json("rejects")["rejects"])
    assert codes["23514"] == ends["poison"] + (bad if wins else 0)
    assert codes["CONFLICT"] == edited["queued"]
    assert sum(codes.values()) == rejected + found["deletes"]["rejected"]


def test_a_delete_is_not_made_where_columns_or_another_table_were_added(
    tmp_path: Path, people: Database
) -> None:
    """Of a column that is new nobody knows whether somebody wrote into it."""
    workshop = begun(tmp_path, people, "target_wins")
    with people.connect() as admin:
        admin.execute("CREATE TABLE orders (person text REFERENCES people)")
        admin.execute("INSERT INTO orders VALUES ('a')")
    workshop.warehouse(rows(b=("p", 1), c=("p", 1)))
    for _ in range(2):
        found = run(workshop)
        assert (found["deleted"], found["deletes"]["kept"], found["deletes"]["rejected"]) == (0, 0, 1)
    assert {one["code"] for one in workshop.json("rejects")["rejects"]} == {"23503"}
    with people.connect() as admin:
        admin.execute("DROP TABLE orders")
    assert run(workshop)["deleted"] == 1, "it is ours all the same"
    with people.connect() as admin:
        admin.execute("ALTER TABLE people ADD COLUMN later text DEFAULT 'x'")
    workshop.warehouse(rows(b=("q", 1)))  # which tells the digests of b anew
    found = run(workshop)
    assert (found["updated"], found["deleted"], found["deletes"]["kept"]) == (1, 0, 1)
    workshop.warehouse("DELETE FROM people WHERE id NOT LIKE 'other %'")
    found = run(workshop)
    assert (found["deleted"], found["deletes"]["kept"]) == (1, 0)
    assert {key for key in held(people) if key in "abc"} == {"c"}


@pytest.mark.parametrize("strategy", ["target_wins", "newest_wins", "manual"])
def test_rows_that_were_adopted_are_looked_at_once(tmp_path: Path, people: Database, strategy: str) -> None:
    workshop = project(tmp_path / "project", people, STRATEGIES[strategy], first_run="adopt")
    workshop.warehouse(rows(a=("p", 1), b=("p", 1), c=("p", 1)))
    with people.connect() as admin:
        admin.execute("INSERT INTO people SELECT 'other ' || i, 'o', i FROM generate_series(0, 99) AS i")
        admin.execute("INSERT INTO people VALUES ('a', 'p', 1), ('b', 'h', 1), ('c', 'h', 2)")
    theirs = held(people)
    assert run(workshop)["status"] == "SUCCESS"
    workshop.warehouse(rows(a=("q", 1), b=("q", 1), c=("h", 2)))
    found = run(workshop)
    kept = (
        {"merged": 0, "kept": 2, "queued": 0}
        if strategy != "manual"
        else {"merged": 0, "kept": 0, "queued": 2}
    )
    assert (found["updated"], found["conflicts"]) == (101, kept)
    assert held(people) == theirs
    workshop.warehouse(rows(a=("q", 1), b=("q", 1), c=("i", 2)))
    assert run(workshop)["updated"] == 1, "c was alike on both sides, and is ours since"
    assert held(people) == theirs | {"c": ("i", 2, None)}
