"""A run that was killed: what is known of it before the next run, and what the next run finds out about it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.api import TOKEN, Api, answer
from tests.commands import ROWS, Workshop
from tests.servers import Database
from tests.test_doubt import APPEND, CONNECTION

KILLED = -9
TABLE = "{type: postgres, table: crm.users, create: true}"
FOUND = "rows that earlier runs sent without an answer: "
KINDS = ("written", "deleted", "skipped", "rejected", "without_answer", "not_attempted")


@pytest.fixture
def workshop(tmp_path: Path, postgres: Database) -> Workshop:
    """A project that appends rows to PostgreSQL, five at a time and one batch after the other."""
    made = Workshop(tmp_path / "project")
    made.use(postgres=postgres)
    made.write("retl.yml", "connections: {postgres: {type: postgres, limits: {concurrency: 1}}}\n")
    made.sync("users", destination=TABLE, write="append", first_run="send", batch="{rows: 5}")
    return made


def settled(workshop: Workshop) -> tuple[dict[str, Any], list[str], dict[str, int]]:
    """The next run, what it says it found out, and what the history has of it."""
    (done,) = workshop.json("sync")["syncs"]
    said = [one for one in done.get("notes", ()) if one.startswith(FOUND)]
    return done, said, workshop.json("show", done["run_id"])["settled"]


def test_a_killed_run_is_told_from_one_that_is_at_work(workshop: Workshop) -> None:
    assert workshop.process("sync", RETL_CRASH_AT="batch_answered:2").code == KILLED
    (run,) = workshop.json("runs")["runs"]
    (state,) = workshop.json("status")["syncs"]
    assert (run["status"], state["status"], state["in_doubt"]) == ("KILLED", "KILLED", 5)
    assert state["next"].startswith("run it: it was killed (pid ")
    assert state["next"].endswith("; it carries on where it stopped")
    assert "KILLED" in workshop.retl("runs").out
    workshop.json("sync")
    assert [one["status"] for one in workshop.json("runs")["runs"]] == ["SUCCESS", "ABANDONED"]


def test_what_is_known_of_a_killed_run_is_shown(workshop: Workshop) -> None:
    assert workshop.process("sync", RETL_CRASH_AT="batch_answered:2").code == KILLED
    before = workshop.json("show")
    assert before["so_far"] == {
        "due": ROWS,
        "written": 5,
        "skipped": 0,
        "rejected": 0,
        "without_answer": 5,
        "not_attempted": ROWS - 10,
        "deleted": 0,
        "batches": 1,
    }
    assert "until it was killed" in workshop.retl("show").out
    workshop.json("sync")
    after = workshop.json("show", before["run_id"])
    assert (after["status"], after["so_far"]["written"], after["so_far"]["without_answer"]) == (
        "ABANDONED",
        10,
        0,
    )
    assert workshop.json("show")["so_far"] == {}


def page_of(workshop: Workshop, run_id: str) -> str:
    """The text of the report of a run, without its marks."""
    workshop.json("report", run_id, "--out", "page.html")
    return re.sub(r"(\s|<[^>]*>)+", " ", (workshop.folder / "page.html").read_text())


def test_the_page_of_a_run_that_has_not_ended_has_what_is_known_of_it(workshop: Workshop) -> None:
    assert workshop.process("sync", RETL_CRASH_AT="batch_answered:2").code == KILLED
    killed = workshop.json("show")["run_id"]
    page = page_of(workshop, killed)
    assert f" due {ROWS} written so far 5 deleted so far 0 rejected so far 0 " in page
    assert " Rows so far " in page
    assert f" without answer 5 not attempted {ROWS - 10} " in page
    assert " read 0 " not in page
    done, _, found = settled(workshop)
    assert "Sent before without an answer" in page_of(workshop, done["run_id"])
    assert all(
        f" {name.replace('_', ' ')} {number} " in page_of(workshop, done["run_id"])
        for name, number in found.items()
    )


def test_the_page_of_a_run_that_sent_nothing_yet_claims_no_numbers(workshop: Workshop) -> None:
    assert workshop.process("sync", RETL_CRASH_AT="run_started").code == KILLED
    page = page_of(workshop, workshop.json("show")["run_id"])
    assert " read unknown delivered unknown " in page
    assert " Rows " not in page


def test_a_run_killed_before_it_sent_anything_has_no_numbers(workshop: Workshop) -> None:
    assert workshop.process("sync", RETL_CRASH_AT="run_started").code == KILLED
    assert (workshop.json("show")["status"], workshop.json("show")["so_far"]) == ("KILLED", {})


def test_deletes_of_a_killed_run_are_shown_apart(workshop: Workshop) -> None:
    workshop.sync("users", destination=TABLE, deletes="delete", batch="{rows: 5}")
    workshop.json("sync")
    workshop.warehouse("DELETE FROM users WHERE user_id <= 3; UPDATE users SET spend = 0 WHERE user_id = 4")
    assert workshop.process("sync", RETL_CRASH_AT="committing").code == KILLED
    known = workshop.json("show")["so_far"]
    assert (known["due"], known["written"], known["deleted"], sum(known[one] for one in KINDS)) == (
        4,
        1,
        3,
        4,
    )


@pytest.mark.parametrize(
    ("event", "name", "words"),
    [
        ("batch_answered:2", "arrived", "arrived: 5"),
        ("batch_sending:2", "missing", "did not arrive and are due again: 5"),
    ],
)
def test_a_run_that_finds_out_what_became_of_rows_says_so_once(
    workshop: Workshop, event: str, name: str, words: str
) -> None:
    assert workshop.process("sync", RETL_CRASH_AT=event).code == KILLED
    (dry,) = workshop.json("sync", "--dry-run")["syncs"]
    assert f"{FOUND}{words}" in dry["notes"]
    done, said, kept = settled(workshop)
    assert (said, kept[name], sum(kept.values())) == ([f"{FOUND}{words}"], 5, 5)
    assert (done["inserted"], done["updated"]) == (dry["inserted"], 0)
    assert "sent before without an answer" in workshop.retl("show").out
    assert settled(workshop)[1:] == ([], {})


def test_what_nobody_knows_and_is_sent_again_is_said_and_is_no_update(tmp_path: Path) -> None:
    with Api() as api:
        workshop = Workshop(tmp_path / "project", {"TOOL_URL": api.url, "TOOL_TOKEN": TOKEN})
        workshop.write("retl.yml", CONNECTION)
        events = {**APPEND, "delivery": "at_least_once", "retry": "{attempts: 1}"}
        workshop.sync("events", **events, batch="{rows: 5}")
        api.faults.extend([lambda _: False, *[answer(500)] * 30])
        failed = workshop.retl("sync", "--output", "json")
        assert (failed.code, failed.document["syncs"][0]["in_doubt"]) == (1, 5)
        api.faults.clear()
        (dry,) = workshop.json("sync", "--dry-run")["syncs"]
        done, said, kept = settled(workshop)
        assert (dry["inserted"], done["inserted"], done["updated"]) == (ROWS - 5, ROWS - 5, 0)
        assert said == [f"{FOUND}still unknown and sent again: 5"]
        assert kept == {"arrived": 0, "missing": 0, "refused": 0, "again": 5, "unknown": 0}
        assert settled(workshop)[1:] == ([], {})
