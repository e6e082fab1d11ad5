"""A ledger of each kind for the tests, the rows they write, and other processes that use it too."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from retl.ledger import BatchRow, Ledger, RunStart, open_ledger

ROOT = Path(__file__).parents[1]
CHILD = """
import os, sys, time
from pathlib import Path
from retl.errors import RetlError
from retl.ledger import *
from tests.ledgers import batch, start
url, folder = sys.argv[1], Path(sys.argv[2])
ledger = open_ledger(url, folder, environment=None)
"""


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str:
    """Where a ledger can be: beside the project, or on a real server."""
    if request.param == "sqlite":
        return "file:.retl"
    address: str = request.getfixturevalue("postgres").url
    return address


@pytest.fixture
def ledger(url: str, tmp_path: Path) -> Iterator[Ledger]:
    opened = open_ledger(url, tmp_path, environment=None)
    yield opened
    opened.close()


def start(epoch: int, run_id: str = "run-1", sync: str = "users", object: str = "pg://crm/users") -> RunStart:
    return RunStart(
        run_id=run_id,
        sync=sync,
        object=object,
        purpose="sync",
        environment=None,
        correlation_id="c-1",
        epoch=epoch,
        started_at=datetime(2026, 11, 21, 6, 0, epoch % 60, 123, tzinfo=UTC),
        vars={"run_date": "today"},
        fingerprint={"what": "ab"},
        source_identity={"path": "warehouse.duckdb"},
        host="here",
        pid=os.getpid(),
        user="ada",
        version="0.1.0",
        options={"accept": ["ROW_DROP"]},
    )


def batch(number: int = 0, **given: Any) -> BatchRow:
    return BatchRow(f"b{number}", number, "upsert", number * 100, number * 100 + 99, **given)


def take(ledger: Ledger, sync: str = "users") -> Any:
    return ledger.lock([sync, "pg://crm/users"], sync=sync, host="here", pid=os.getpid())


def child(url: str, folder: Path, code: str) -> subprocess.Popen[str]:
    """Another process with `ledger` open that runs `code`."""
    return subprocess.Popen(
        [sys.executable, "-c", CHILD + code, url, str(folder)],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def line(process: subprocess.Popen[str]) -> str:
    """The next line it says."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()
