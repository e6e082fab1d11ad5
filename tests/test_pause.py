"""A sync that somebody paused: `retl state pause` and `retl state resume`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import ROWS, Workshop
from tests.servers import Database
from tests.test_plans_and_state import TABLE, column, run


@pytest.fixture
def workshop(tmp_path: Path, postgres: Database) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.use(postgres=postgres)
    made.sync("users", destination=TABLE, freshness="1ms")
    return made


def test_a_paused_sync_writes_nothing_and_says_why(workshop: Workshop, postgres: Database) -> None:
    run(workshop)
    planned = workshop.folder / "plan.json"
    workshop.warehouse("UPDATE users SET email = 'new' WHERE user_id = 1")
    workshop.json("plan", "--sync", "users", "--out", str(planned))
    workshop.json("state", "pause", "users", "--reason", "the scores are wrong")
    with postgres.connect() as connection:
        connection.execute("UPDATE crm.users SET email = 'theirs' WHERE user_id = 2")
    runs = len(workshop.json("runs")["runs"])
    for words in (("sync",), ("apply", str(planned)), ("reconcile", "users", "--repair")):
        said = workshop.retl(*words, "--output", "json")
        document = said.document["syncs"][0] if "syncs" in said.document else said.document["sync"]
        assert (said.code, document["status"]) == (0, "PAUSED")
        assert "the scores are wrong" in document["notes"][0]
    assert len(workshop.json("runs")["runs"]) == runs
    looked = workshop.json("sync", "--dry-run")["syncs"][0]
    assert (looked["updated"], looked["status"]) == (1, "SUCCESS")
    assert "retl state resume users" in looked["notes"][-1]
    assert column(postgres, "SELECT email FROM crm.users WHERE user_id IN (1, 2) ORDER BY user_id") == [
        "u1@example.com",
        "theirs",
    ]
    said = workshop.retl("status", "--fail-stale", "--output", "json")
    (state,) = said.document["syncs"]
    assert (said.code, state["status"], state["stale"]) == (1, "PAUSED", True)
    assert (state["paused"]["reason"], state["enabled"]) == ("the scores are wrong", True)
    assert "retl state resume users" in state["next"]
    assert workshop.json("state", "resume", "users")["was_paused"]["reason"] == "the scores are wrong"
    assert run(workshop)["updated"] == 1
    assert workshop.json("state", "resume", "users")["was_paused"] is None


def test_a_pause_moves_with_a_renamed_sync_and_needs_a_reason(workshop: Workshop, postgres: Database) -> None:
    run(workshop)
    assert workshop.retl("state", "pause", "users", "--reason", " ").code == 2
    assert workshop.retl("state", "pause", "nobody", "--reason", "x").code == 2
    workshop.json("state", "pause", "users", "--reason", "moving")
    (workshop.folder / "syncs" / "users.yml").rename(workshop.folder / "syncs" / "people.yml")
    workshop.json("state", "mv", "users", "people", "--yes")
    assert run(workshop)["status"] == "PAUSED"
    workshop.json("state", "resume", "people")
    assert run(workshop)["unchanged"] == ROWS
