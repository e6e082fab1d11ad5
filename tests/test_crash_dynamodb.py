"""Kill a run at its requests to DynamoDB: one more plain sync, and every row is there, as the mart has it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.dynamodb import Aws
from tests.scenes import Items, WholeItems

EVERYTHING = bool(os.environ.get("RETL_TEST_ALL"))
POINTS = [
    (kind, operation, number, answered)
    for kind, operations in (
        (Items, ("TransactWriteItems", "BatchWriteItem")),
        (WholeItems, ("BatchWriteItem",)),
    )
    for operation in operations
    for number in (1, 2, 3)  # the first of each asks for the right to write
    for answered in (False, True)
]
SOME = [(Items, "TransactWriteItems", 2, True), (Items, "BatchWriteItem", 2, True)]


def killed_at(scene: Items, operation: str, number: int, *, answered: bool) -> int | None:
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
    dynamodb: Aws, tmp_path: Path, kind: type[Items], operation: str, number: int, answered: bool
) -> None:
    scene = kind(tmp_path / "project", dynamodb)
    scene.begin()
    code = killed_at(scene, operation, number, answered=answered)
    assert code == -signal.SIGKILL or (code == 0 and number == 3)
    again = scene.project.sync()
    assert (again.code, again.summary["status"]) == (0, "SUCCESS"), again.stderr
    assert scene.content() == scene.wanted()
    idle = scene.project.sync()
    assert (idle.code, idle.summary["inserted"], idle.summary["updated"]) == (0, 0, 0)
