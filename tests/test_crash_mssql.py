"""Kill a run at its statements to SQL Server: one more plain sync, and every row is there, once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.databases import MsSqlShell, TableAppend, TableScene
from tests.mssql import Sql

EVERYTHING = bool(os.environ.get("RETL_TEST_ALL"))
UPSERTED = ("INSERT INTO [dbo].[retl_applied]", "INSERT INTO #retl_stage", "INSERT INTO [dbo].[users]")
POINTS = [
    (kind, piece, number, answered)
    for kind, pieces in (
        (TableScene, (*UPSERTED, "UPDATE t", "DELETE t", "COMMIT", "CREATE TABLE", "SAVE")),
        (TableAppend, (UPSERTED[0], UPSERTED[2], "COMMIT")),
    )
    for piece in pieces
    for number in (1, 2, 3)
    for answered in (False, True)
]
SOME = [
    (TableScene, "INSERT INTO [dbo].[users]", 1, True),
    (TableScene, "UPDATE t", 1, True),
    (TableScene, "COMMIT", 4, True),
    (TableAppend, "COMMIT", 5, False),
    (TableAppend, "COMMIT", 5, True),
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sql]:
    with Sql(tmp_path) as made:
        yield made
        made.shutdown()


def killed_at(scene: TableScene, server: Sql, piece: str, number: int, *, answered: bool) -> int | None:
    """The exit code of a run that is killed at its so manieth statement with this piece, after it was served
    or before."""
    left, running = number, scene.project.start()

    def heard(sql: str, served: bool) -> None:
        nonlocal left
        if served == answered and piece in sql:
            left -= 1
            if left == 0:
                os.kill(running.pid, signal.SIGKILL)

    server.heard = heard
    code = running.end().code
    server.heard = lambda _sql, _served: None
    return code


@pytest.mark.parametrize(("kind", "piece", "number", "answered"), POINTS if EVERYTHING else SOME)
def test_a_run_killed_at_any_statement_is_made_good_by_the_next(
    server: Sql, tmp_path: Path, kind: type[TableScene], piece: str, number: int, answered: bool
) -> None:
    scene = kind(tmp_path / "project", MsSqlShell(server))
    scene.begin()
    code = killed_at(scene, server, piece, number, answered=answered)
    assert code in (-signal.SIGKILL, 0)
    assert code == -signal.SIGKILL or EVERYTHING
    again = scene.project.sync()
    assert (again.code, again.summary["status"]) == (0, "SUCCESS"), again.stderr
    assert scene.content() == scene.wanted()
    assert scene.doubled() == []
    idle = scene.project.sync()
    assert (idle.code, idle.summary["inserted"], idle.summary["updated"]) == (0, 0, 0)
