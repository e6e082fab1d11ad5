"""Kill a run at its requests to MongoDB: one more plain sync, and every row is there, as the mart has it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.mongo import Mongo
from tests.scenes import Documents, DocumentsAlone, DocumentsAppended

EVERYTHING = bool(os.environ.get("RETL_TEST_ALL"))
POINTS = [
    (kind, operation, number, answered)
    for kind, operations in (
        (Documents, ("update", "delete", "insert", "commitTransaction")),
        (DocumentsAppended, ("insert", "commitTransaction")),
        (DocumentsAlone, ("update", "delete")),
    )
    for operation in operations
    for number in (1, 2, 3)
    for answered in (False, True)
]
SOME = [
    (Documents, "update", 3, True),
    (Documents, "commitTransaction", 1, True),
    (DocumentsAppended, "commitTransaction", 1, False),
    (DocumentsAppended, "commitTransaction", 1, True),
    (DocumentsAlone, "update", 2, True),
]


def killed_at(scene: Documents, operation: str, number: int, *, answered: bool) -> int | None:
    """The exit code of a run that is killed at its so manieth request of a kind, after it was served or
    before."""
    left, running = number, scene.project.start()

    def heard(one: str, served: bool) -> None:
        nonlocal left
        if (one, served) == (operation, answered):
            left -= 1
            if left == 0:
                os.kill(running.pid, signal.SIGKILL)

    scene.server.heard = heard
    code = running.end().code
    scene.server.heard = lambda _operation, _answered: None
    return code


@pytest.mark.parametrize(("kind", "operation", "number", "answered"), POINTS if EVERYTHING else SOME)
def test_a_run_killed_at_any_request_is_made_good_by_the_next(
    mongodb: Mongo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Documents],
    operation: str,
    number: int,
    answered: bool,
) -> None:
    monkeypatch.setattr(mongodb.store, "lifetime", 60.0)  # what the scene sets is undone
    scene = kind(tmp_path / "project", mongodb)
    scene.begin()
    code = killed_at(scene, operation, number, answered=answered)
    assert code in (-signal.SIGKILL, 0)
    assert code == -signal.SIGKILL or number > 1
    again = scene.project.sync()
    assert (again.code, again.summary["status"]) == (0, "SUCCESS"), again.stderr
    assert scene.content() == scene.wanted()
    assert scene.doubled() == []
    idle = scene.project.sync()
    assert (idle.code, idle.summary["inserted"], idle.summary["updated"]) == (0, 0, 0)
