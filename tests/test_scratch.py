"""Scratch folders: private, gone with the run, and swept when the run was killed."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from retl.engine.scratch import private_directory
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


@pytest.fixture
def workshop(tmp_path: Path, redis_server: RedisServer) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.use(redis_server)
    return made
