"""What must hold at the target after a delivery: asked there, recorded, and no reason to doubt the delivery."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from retl.app.alerts import Observation
from retl.project.alerts import Alert
from tests.commands import ROWS, Workshop
from tests.servers import Database

ALL = (
    "[SELECT * FROM users WHERE spend < 0, {name: enough, count: {min: 10, max: 40}}, {name: whole, count: mart},"
    " {name: young, fresh: {column: seen_at, max_age: 1h}}]"
)


@pytest.fixture(params=["sqlite", "duckdb", "postgres"])
def workshop(request: pytest.FixtureRequest, tmp_path: Path) -> Workshop:
    """A table of users with the time at which each was seen, the last one just now."""
    made = Workshop(tmp_path / "project")
    if request.param == "postgres":
        database: Database = request.getfixturevalue("postgres")
        made.use(postgres=database)
        target = "{type: postgres, table: users, create: true}"
    else:
        path = tmp_path / "app.db"
        made.write("retl.yml", f"connections: {{app: {{type: {request.param}, path: {path}}}}}\n")
        target = "{connection: app, table: users, create: true}"
    made.warehouse(
        "ALTER TABLE users ADD COLUMN seen_at TIMESTAMP; UPDATE users SET seen_at = now()::TIMESTAMP"
    )
    made.sync("users", destination=target, **{"assert": ALL})
    return made


def run(workshop: Workshop, *words: str) -> dict[str, Any]:
    (found,) = workshop.retl("sync", *words, "--output", "json").document["syncs"]
    return dict(found)


def test_a_failed_assertion_fails_the_run_and_not_the_delivery(workshop: Workshop) -> None:
    """The next run sends nothing again, asks again, and is a success when the target is right."""
    workshop.warehouse(
        "UPDATE users SET spend = -1 WHERE user_id < 3; UPDATE users SET seen_at = seen_at - INTERVAL 2 DAY"
    )
    failed = run(workshop)
    assert (failed["status"], failed["exit_code"], failed["inserted"]) == ("FAILED", 1, ROWS)
    assert failed["error"]["code"] == "ASSERT_FAILED"
    assert "assertion 1: 2 rows, none are allowed; young: seen_at is 2 d old" in failed["error"]["message"]
    workshop.warehouse("UPDATE users SET spend = 1, seen_at = now()::TIMESTAMP WHERE user_id < 3")
    done = run(workshop)
    assert (done["status"], done["updated"], done["unchanged"]) == ("SUCCESS", 2, ROWS - 2)
    assert [(one["name"], one["passed"]) for one in done["assert"]] == [
        ("assertion 1", True), ("enough", True), ("whole", True), ("young", True),
    ]  # fmt: skip
    assert workshop.json("show")["assert"] == done["assert"]


@pytest.mark.parametrize("workshop", ["sqlite"], indirect=True)
def test_a_question_that_the_target_does_not_understand_is_a_failed_assertion(workshop: Workshop) -> None:
    """The delivery stays confirmed, and a part of the mart is not compared with the whole."""
    text = (workshop.folder / "syncs" / "users.yml").read_text()
    workshop.write(
        "syncs/users.yml", text.replace("SELECT * FROM users WHERE spend < 0", "DELETE FROM users")
    )
    failed = run(workshop)
    assert (failed["status"], failed["inserted"]) == ("FAILED", ROWS)
    assert "assertion 1: the target did not answer" in failed["error"]["message"]
    assert "FAILED" in workshop.retl("show").out
    assert workshop.json("state")["checkpoints"][0]["baseline_rows"] == ROWS
    part = run(workshop, "--key", "1")
    assert (part["updated"], "whole" in [one["name"] for one in part["assert"]]) == (1, False)


def test_a_target_that_cannot_be_asked_and_a_wrong_assertion_are_definition_errors(tmp_path: Path) -> None:
    made = Workshop(tmp_path / "project")
    made.sync("users", **{"assert": "[{count: mart}]"})
    said = made.retl("plan", "--sync", "users")
    assert (said.code, "ASSERT_UNSUPPORTED" in said.err) == (2, True)
    for command in ("validate", "check"):  # before there is a server
        assert "ASSERT_UNSUPPORTED" in made.retl(command).err, command
    for wrong in ("[{name: x}]", "[{count: {}}]", "[SELECT 1; SELECT 2]", "[{count: {min: 2, max: 1}}]"):
        made.sync("users", **{"assert": f"{wrong}"})
        assert made.retl("validate").code == 2


def test_an_alert_can_be_about_assertions_alone() -> None:
    alert = Alert.model_validate({"to": {"webhook": "https://example.com/x"}, "on": ["assert"]})
    error = {"code": "ASSERT_FAILED"}
    sync: Any = None
    assert Observation(sync, "FAILED", error=error).troubles(alert) == {"assert", "failure"}
    assert "assert" in Observation(sync, "FAILED", error=error).judged()
    assert "assert" not in Observation(sync, "FAILED", error={"code": "X"}).judged()
    assert "assert" in Observation(sync, "SUCCESS").judged()
