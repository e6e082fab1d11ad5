"""A baseline made anew from what the target holds: `retl state rebuild`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.commands import ROWS, Workshop
from tests.servers import Database, RedisServer
from tests.test_plans_and_state import TABLE, column, run


@pytest.fixture
def workshop(tmp_path: Path, postgres: Database) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.use(postgres=postgres)
    return made


def rebuilt(workshop: Workshop, *words: str, **more: str) -> dict[str, Any]:
    return dict(workshop.json("state", "rebuild", "users", "--yes", *words, **more))


def lose_state(workshop: Workshop) -> None:
    shutil.rmtree(workshop.folder / ".retl")


def execute(postgres: Database, sql: str) -> None:
    with postgres.connect() as connection:
        connection.execute(sql)


def test_after_a_lost_ledger_only_different_rows_are_sent(workshop: Workshop, postgres: Database) -> None:
    workshop.sync("users", destination=TABLE)
    assert run(workshop)["inserted"] == ROWS
    lose_state(workshop)
    execute(postgres, "UPDATE crm.users SET email = 'edited' WHERE user_id = 2")
    execute(postgres, "DELETE FROM crm.users WHERE user_id = 3")
    assert run(workshop)["guards"][0]["code"] == "STATE_LOST"
    found = rebuilt(workshop)
    assert (found["same"], found["different"], found["absent"]) == (ROWS - 2, 1, 1)
    assert "sends 2 rows" in found["next_run"]
    planned = run(workshop, "--dry-run")
    after = run(workshop)
    assert (after["status"], after["unchanged"], after["updated"], after["inserted"]) == (
        "SUCCESS",
        ROWS - 2,
        1,
        1,
    )
    assert [planned[name] for name in ("updated", "inserted", "deleted")] == [1, 1, 0]
    assert run(workshop)["unchanged"] == ROWS
