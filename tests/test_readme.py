"""README keeps its word: each command in it is run, and what it says comes true is looked up."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dotenv import dotenv_values

from retl.project.definitions import Guards
from retl.run.guards import DELETES_ALWAYS_PASS
from retl_demo import stage
from tests import servers
from tests.inprocess import answer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(console|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MAKE = re.compile(r"^make ", re.MULTILINE)


def blocks() -> list[str]:
    """The shell code of every block, in order, without prompts."""
    found = []
    for kind, text in BLOCK.findall(README):
        lines = text.splitlines()
        if kind == "console":
            assert all(line.startswith("$ ") for line in lines), text
            lines = [line.removeprefix("$ ") for line in lines]
        found.append("\n".join(lines))
    return found


def run(script: str, folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A shell in which `retl` and `python3` are ours, and which has no servers yet."""
    place = tmp_path / "bin"
    place.mkdir()
    for name, words in {"retl": "-m retl", "python3": ""}.items():
        (place / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (place / name).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(stage.FOREIGN)}
    found = {**kept, "PATH": f"{place}:{os.environ['PATH']}", "XDG_STATE_HOME": str(tmp_path / "state")}
    try:
        yield found
    finally:
        answer(["demo", "stop"], found, tmp_path)


def database(folder: Path) -> servers.Database:
    """The PostgreSQL that a project's config.env names."""
    found = dotenv_values(folder / "config.env")
    named = {name: str(found[f"POSTGRES_{name}"]) for name in ("HOST", "PORT", "USER", "PASSWORD", "DB")}
    return servers.Database(named["HOST"], int(named["PORT"]), named["USER"], named["PASSWORD"], named["DB"])


def test_its_commands_lead_from_nothing_to_rows_in_a_table(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    folder = tmp_path / "clean"
    folder.mkdir()
    versions = "SELECT customer_id, email, segment, spent::text, xmin::text FROM crm.customers ORDER BY 1"
    seen = []
    for block in blocks():
        if MAKE.search(block):
            continue
        said = run(block + '\necho "in:$PWD"', folder, environment)
        folder = Path(said.rpartition("in:")[2].strip())
        if "retl sync" in block and "--sync" not in block:
            with database(folder).connect() as connection:
                seen.append(connection.execute(versions).fetchall())
    first, again, changed = seen
    assert [row[:4] for row in first] == [
        (1, "ada@example.com", "vip", "1200.50"),
        (2, "bob@example.com", "loyal", "310.00"),
        (3, "cyd@example.com", "lost", "45.90"),
    ]
    assert again == first
    assert [(old[:4], new[:4]) for old, new in zip(first, changed, strict=True) if old != new] == [
        ((2, "bob@example.com", "loyal", "310.00"), (2, "bob@example.com", "vip", "310.00"))
    ]


def test_its_make_commands_are_targets_that_run_what_it_says() -> None:
    commands = [line for block in blocks() if MAKE.search(block) for line in block.splitlines()]
    assert len(commands) == 6
    said = {
        command: subprocess.run(
            [*command.split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        for command in commands
    }
    assert "retl demo" in said["make demo"]
    assert "pytest" in said["make test"]
    assert "retl sync --sync all" in said["make run-reverse-etl"]
    assert 'retl sync --sync "user_segments" --dry-run' in said["make dry-run SYNC=user_segments"]


def test_its_numbers_are_those_of_the_code() -> None:
    limits = Guards()
    assert f"more than {limits.max_reject_rate:.0%}".replace("%", " %") in README
    assert f"more than {limits.max_delete_rate:.0%}".replace("%", " %") in README
    assert f"({DELETES_ALWAYS_PASS} rows always pass)" in README
    assert limits.max_row_drop == 0.5
    assert "1,474 rows moved" in README  # as tests/test_demo.py sees it


def test_it_lists_every_sample_sync() -> None:
    listed = re.findall(r"^\| \[(\w+)\]\(syncs/", README, re.MULTILINE)
    assert sorted(listed) == sorted(path.stem for path in (ROOT / "syncs").glob("*.yml"))
