"""The dbt project of tests/analytics, built by a real dbt in a venv of its own.

dbt's pins do not go together with ours (mypy and dbt want different versions of pathspec), so it is
installed once per session. Each command of dbt writes to a target folder
of its own: `target_built`, `target_compiled` … are what a project finds after that command.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb

DBT = ("dbt-core==1.11.16", "dbt-duckdb==1.11.1")
PROJECT = Path(__file__).parent / "analytics"


def built(shared: Path) -> Path:
    """The project after every command, made once in `shared`, which processes of one session share."""
    folder, done = shared / "analytics", shared / "analytics.done"
    with open(shared / "dbt.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.copytree(PROJECT, folder)
            _command_all(_install(shared / "dbt"), folder)
            done.touch()
    return folder


def _install(venv: Path) -> Path:
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, venv], check=True)
    subprocess.run([uv, "pip", "install", "--quiet", "--python", venv, *DBT], check=True)
    return venv / "bin" / "dbt"


def _command_all(dbt: Path, folder: Path) -> None:
    """One command after another, each as a user would type it; all but `empty` leave the marts alike."""

    def command(*words: str, target: str, fails: bool = False) -> None:
        done = subprocess.run(
            [dbt, "--quiet", *words, "--profiles-dir", ".", "--target-path", target],
            cwd=folder,
            env={name: value for name, value in os.environ.items() if not name.startswith("DBT_")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == int(fails), done.stdout + done.stderr

    command("build", target="target_built", fails=True)
    shutil.copytree(folder / "target_built", folder / "target_compiled")
    command("compile", "--select", "customers", target="target_compiled")
    command("run", "--select", "customers", target="target_apart")
    results = folder / "target_apart" / "run_results.json"
    results.rename(results.with_name("run_results.run.json"))
    command("test", "--select", "customers", target="target_apart")
    shutil.copy(folder / "warehouse.duckdb", folder / "full.duckdb")
    command("run", "--empty", "--select", "customers", target="target_empty")
    shutil.move(folder / "full.duckdb", folder / "warehouse.duckdb")
    # What a former, better day left of the models that fail now.
    with duckdb.connect(str(folder / "warehouse.duckdb")) as warehouse:
        for name in ("broken", "after_broken"):
            warehouse.execute(f"CREATE TABLE {name} AS SELECT 1 AS id")
