"""Rights and room that are taken away between runs: the message names the folder, nothing is left out in silence.

The runs have no right to pass over permissions, as a superuser otherwise has.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from retl.errors import LedgerError
from retl.ledger.files import Directory
from tests.commands import Workshop

ROOT = Path(__file__).parents[1]
BOUND = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--"]


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.write("retl.yml", "connections: {out: {type: sqlite, path: out.db}}\n")
    made.sync("users", destination="{connection: out, table: users, create: true}")
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


def retl(workshop: Workshop, *words: str) -> subprocess.CompletedProcess[str]:
    bound = BOUND if os.geteuid() == 0 else []
    environ = {**os.environ, **workshop.environ(), "PYTHONPATH": str(ROOT / "src")}
    command = [*bound, sys.executable, "-m", "retl", "--project", str(workshop.folder), *words]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "name", [".retl", ".retl/runs", ".retl/locks", ".retl/ledger.db", ".retl/runs/*.parquet"]
)
def test_state_without_a_right_to_it_is_named_and_no_damage(workshop: Workshop, name: str) -> None:
    (path,) = workshop.folder.glob(name)
    with shut(path):
        said = retl(workshop, "sync")
    assert (said.returncode, '"code": "STATE_UNWRITABLE"' in said.stderr) == (1, True), said.stderr
    assert str(path) in said.stderr
    assert "adopt" not in said.stderr  # the advice for a ledger that is lost
    assert retl(workshop, "sync").returncode == 0


@pytest.mark.parametrize("name", ["syncs", "syncs/team", "syncs/team/others.yml"])
def test_a_folder_of_syncs_without_a_right_to_it_stops_every_run(workshop: Workshop, name: str) -> None:
    folder = workshop.folder
    (folder / "syncs/team").mkdir()
    text = (folder / "syncs/users.yml").read_text(encoding="utf-8")
    workshop.write("syncs/team/others.yml", text.replace("table: users,", "table: others,"))
    with shut(folder / name):
        said = retl(workshop, "sync")
    assert (said.returncode, '"code": "FILE_UNREADABLE"' in said.stderr) == (2, True), said.stderr
    assert name in said.stderr
    assert '"sync": "others"' in retl(workshop, "sync", "--output", "json").stdout


def test_variables_without_a_right_to_them_are_not_called_wrong_text(workshop: Workshop) -> None:
    workshop.write("config.env", "NAME=value\n")
    with shut(workshop.folder / "config.env"):
        said = retl(workshop, "sync")
    assert said.returncode == 2
    assert "cannot be read: Permission denied" in said.stderr
    assert '"where": "config.env"' in said.stderr


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
