"""Scratch folders: private, gone with the run, and swept when the run was killed."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from retl.engine.scratch import private_directory
from retl.engine.workspace import Workspace
from retl.errors import Failure
from retl.observe.signals import Stop
from retl.values.sql import literal
from tests.commands import Workshop
from tests.servers import RedisServer

LONG_AGO = (1_000_000_000, 1_000_000_000)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "tmp"
    made.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(made))
    return made


def test_a_scratch_folder_is_private_and_goes_with_its_owner(temporary: Path) -> None:
    with private_directory() as folder:
        assert folder.parent == temporary
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert list(temporary.iterdir()) == []


def test_a_living_owners_folder_is_left_alone(temporary: Path) -> None:
    with private_directory() as alive:
        (alive / "mart").write_text("rows")
        os.utime(alive, LONG_AGO)
        with private_directory():
            assert (alive / "mart").exists()


def test_what_a_killed_run_left_goes_with_the_next(workshop: Workshop, temporary: Path) -> None:
    workshop.sync("users", batch="{rows: 5}")
    killed = workshop.process("sync", TMPDIR=str(temporary), RETL_CRASH_AT="batch_acknowledged:2")
    assert killed.code == -9
    (left,) = temporary.glob("retl-run-*")
    os.utime(left, LONG_AGO)
    assert workshop.retl("sync", TMPDIR=str(temporary)).code == 0
    assert list(temporary.glob("retl-run-*")) == []


def test_a_temporary_folder_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    said = f"temporary files cannot be written in {tmp_path}/gone"
    with pytest.raises(Failure, match=said) as caught, private_directory():
        pass
    assert (caught.value.code, "TMPDIR" in str(caught.value.hint)) == ("DISK_FULL", True)


def test_few_rows_become_a_table_without_a_file_and_many_say_that_the_disk_takes_none(tmp_path: Path) -> None:
    folder = tmp_path / "it's gone"
    columns = {"a b": "BIGINT", "text": "VARCHAR"}
    with Workspace(folder, Stop()) as workspace:
        workspace.load("few", columns, [(1, 'it\'s "q" \\ \n \x00 ünï'), (None, None)])
        assert workspace.run("FROM few") == [(1, 'it\'s "q" \\ \n \x00 ünï'), (None, None)]
        workspace.load("none", columns, [])
        assert workspace.run("FROM none") == []
        rows = [(n, "x" * 100_000) for n in range(30)]
        for ask in (
            lambda: workspace.load("many", columns, rows),
            lambda: workspace.run(f"COPY few TO {literal(f'{folder}/x.csv')}"),
        ):
            with pytest.raises(Failure, match="temporary files cannot be written") as caught:
                ask()
            assert caught.value.code == "DISK_FULL"
        folder.mkdir()
        workspace.load("many", columns, rows)
        assert workspace.run("FROM many ORDER BY 1") == rows


@pytest.fixture
def workshop(tmp_path: Path, redis_server: RedisServer) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.use(redis_server)
    return made
