"""A file that a user names and that cannot be written is no bug, and the message names it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from retl.app.failures import described
from tests.commands import Workshop


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.into_sqlite()
    assert made.retl("sync").code == 0
    return made


@pytest.mark.parametrize(
    "words",
    [("plan", "users", "--out", "no/plan.json"), ("log", "--out", "no/log.csv"), ("plan", "--out", ".")],
)
def test_a_file_in_a_folder_that_is_missing_is_named(workshop: Workshop, words: tuple[str, ...]) -> None:
    said = workshop.retl(*words)
    assert (said.code, "[FILE_UNWRITABLE]" in said.err) == (1, True), said.err
    assert f"{words[-1]} cannot be written" in said.err
    assert "bug" not in said.err


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.EROFS, "FILE_UNWRITABLE"),
        (errno.EACCES, "FILE_UNWRITABLE"),
        (errno.ENOSPC, "DISK_FULL"),
        (errno.EDQUOT, "DISK_FULL"),
    ],
)
def test_a_folder_that_is_read_only_is_not_called_full(number: int, code: str) -> None:
    found = described(OSError(number, "why", "/some/file"))
    assert found["code"] == code
    assert ("free space" in found["hint"]) == (code == "DISK_FULL")
