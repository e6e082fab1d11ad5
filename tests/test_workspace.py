"""The run's private DuckDB takes as many threads as its tables can use, and no settings once it is hardened."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from retl.engine.workspace import ROW_GROUP, Workspace
from retl.observe.signals import Stop

TWO = duckdb.__version__ >= "2"  # before, hardening locks the number of threads, too


def threads(workspace: Workspace) -> int:
    (found,) = workspace.one("SELECT current_setting('threads')")
    return int(found)


@pytest.mark.parametrize(("rows", "alone"), [(0, True), (ROW_GROUP, True), (ROW_GROUP + 1, False)])
def test_small_tables_get_one_thread(tmp_path: Path, rows: int, alone: bool) -> None:
    with Workspace(tmp_path, Stop()) as workspace:
        workspace.harden([])
        before = threads(workspace)
        workspace.suit(rows)
        assert threads(workspace) == (1 if alone and TWO else before)


def test_a_number_of_threads_that_was_given_stays(tmp_path: Path) -> None:
    with Workspace(tmp_path, Stop(), threads=2) as workspace:
        workspace.suit(1)
        assert threads(workspace) == 2


@pytest.mark.parametrize(
    "setting",
    ["memory_limit = '10GB'", "enable_external_access = true", "allowed_directories = ['/']"],
)
def test_a_hardened_workspace_takes_no_other_setting(tmp_path: Path, setting: str) -> None:
    with Workspace(tmp_path, Stop()) as workspace:
        workspace.harden([])
        with pytest.raises(duckdb.Error, match=r"lock|Cannot"):
            workspace.run(f"SET {setting}")
