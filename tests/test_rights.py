"""Rights and room that are taken away between runs: the message names the folder, nothing is left out in silence.

The runs have no right to pass over permissions, as a superuser otherwise has.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from retl.errors import LedgerError
from retl.ledger.files import Directory
from tests.commands import Workshop

BOUND = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--"]


class Bound(Workshop):
    """One whose processes have no more rights than permissions give them."""

    def command(self, *words: str) -> list[str]:
        return [*(BOUND if os.geteuid() == 0 else []), *super().command(*words)]


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    made = Bound(tmp_path / "project")
    made.into_sqlite()
    assert made.retl("sync").code == 0
    return made


@contextlib.contextmanager
def shut(path: Path) -> Iterator[None]:
    """Nobody has a right to it."""
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        yield
    finally:
        path.chmod(mode)


@pytest.mark.parametrize(
    "name", [".retl", ".retl/runs", ".retl/locks", ".retl/ledger.db", ".retl/runs/*.parquet"]
)
def test_state_without_a_right_to_it_is_named_and_no_damage(workshop: Workshop, name: str) -> None:
    (path,) = workshop.folder.glob(name)
    with shut(path):
        said = workshop.process("sync")
    assert (said.code, '"code": "STATE_UNWRITABLE"' in said.raw) == (1, True), said.raw
    assert str(path) in said.raw
    assert "adopt" not in said.raw  # the advice for a ledger that is lost
    assert workshop.process("sync").code == 0


@pytest.mark.parametrize("name", ["syncs", "syncs/team", "syncs/team/others.yml"])
def test_a_folder_of_syncs_without_a_right_to_it_stops_every_run(workshop: Workshop, name: str) -> None:
    folder = workshop.folder
    (folder / "syncs/team").mkdir()
    text = (folder / "syncs/users.yml").read_text(encoding="utf-8")
    workshop.write("syncs/team/others.yml", text.replace("table: users,", "table: others,"))
    with shut(folder / name):
        said = workshop.process("sync")
    assert (said.code, '"code": "FILE_UNREADABLE"' in said.raw) == (2, True), said.raw
    assert name in said.raw
    assert '"sync": "others"' in workshop.process("sync", "--output", "json").out


def test_variables_without_a_right_to_them_are_not_called_wrong_text(workshop: Workshop) -> None:
    workshop.write("config.env", "NAME=value\n")
    with shut(workshop.folder / "config.env"):
        said = workshop.process("sync")
    assert said.code == 2
    assert "cannot be read: Permission denied" in said.raw
    assert '"where": "config.env"' in said.raw


def test_a_sync_that_is_a_link_to_nothing_stops_every_run(workshop: Workshop) -> None:
    (workshop.folder / "syncs/others.yml").symlink_to(workshop.folder / "gone.yml")
    said = workshop.retl("sync")
    assert (said.code, "[FILE_UNREADABLE]" in said.err) == (2, True), said.err
    assert "syncs/others.yml" in said.err


def test_a_linked_folder_of_syncs_is_read_also_in_a_circle(workshop: Workshop, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    text = (workshop.folder / "syncs/users.yml").read_text(encoding="utf-8")
    (shared / "others.yml").write_text(text.replace("table: users,", "table: others,"), encoding="utf-8")
    (shared / "circle").symlink_to(shared)
    (workshop.folder / "syncs/team").symlink_to(shared)
    said = workshop.retl("sync", "--output", "json")
    assert said.code == 0, said.err
    assert [one["sync"] for one in said.document["syncs"]] == ["others", "users"]


def test_a_run_file_that_did_not_fit_takes_no_room(tmp_path: Path) -> None:
    """Otherwise the ledger could not say that the run failed, and the next run could not begin."""

    def cut() -> Iterator[bytes]:
        yield b"some"
        raise OSError(28, "No space left on device")

    files = Directory(tmp_path / "runs")
    with pytest.raises(LedgerError, match="No space left"):
        files.put("a.delta.parquet", cut())
    assert list((tmp_path / "runs").iterdir()) == []
