"""Memory does not grow with the mart: the peak of a whole run, as the kernel counted it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.api import TOKEN, Api
from tests.commands import Workshop
from tests.servers import Database

MB = 1024  # the kernel counts KiB
BOUND = 640 * MB  # what DuckDB may take, and Python beside it
WIDE = ", ".join(f"repeat(md5((i * {n} + {n})::VARCHAR), 6) AS c{n}" for n in range(12))


# A process begins its count with what the one that forked it held: a small one has to be in between.
COUNTED = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peak(workshop: Workshop, *words: str) -> int:
    """The most memory that a command which succeeds held at any moment, in KiB."""
    done = subprocess.run(
        [sys.executable, "-c", COUNTED, *workshop.command(*words)],
        cwd=workshop.folder,
        env=workshop.environ(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    code, most = done.stdout.split()
    assert code == "0", done.stderr[-2000:]
    return int(most)


@pytest.mark.timeout(600)
def test_the_memory_of_a_run_has_a_bound_that_a_wide_mart_does_not_move(
    tmp_path: Path, postgres: Database
) -> None:
    workshop = Workshop(tmp_path / "project")
    workshop.use(postgres=postgres)
    workshop.warehouse(
        f"CREATE OR REPLACE TABLE users AS SELECT i AS user_id, {WIDE} FROM range(300000) t(i)"
    )
    workshop.sync("users", destination="{type: postgres, table: crm.users, create: true}")
    used = peak(workshop, "sync")
    with postgres.connect() as connection:
        ((rows, size),) = connection.execute(
            "SELECT count(*), sum(octet_length(u::text)) / 1024 FROM crm.users u"
        ).fetchall()
    assert rows == 300_000
    assert used < BOUND < size


class Weighed(Api):
    """An API that looks up, at every request, how much memory those who run in its folder hold."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.weights, self.rows = folder, list[int](), 0

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        self.weights.append(max(map(resident, running_in(self.folder)), default=0))
        self.rows += len(json.loads(body)["users"])
        self.seen.clear()
        return 200, {}


def running_in(folder: Path) -> list[Path]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink() == folder:
                found.append(process)
    return found


def resident(process: Path) -> int:
    """The memory a process holds now, in KiB."""
    with contextlib.suppress(OSError):
        return int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
    return 0


@pytest.mark.timeout(600)
def test_delivery_over_http_holds_as_much_at_its_end_as_at_its_beginning(tmp_path: Path) -> None:
    grown = {}
    for rows in (50_000, 400_000):
        folder = tmp_path / str(rows)
        with Weighed(folder) as api:
            assert delivered_over_http(folder, api, rows) < BOUND
        assert (api.rows, len(api.weights)) == (rows, rows // 1000)
        grown[rows] = max(api.weights) - api.weights[5]
    assert grown[400_000] < 24 * MB
    assert grown[400_000] < grown[50_000] + 16 * MB


def delivered_over_http(folder: Path, api: Api, rows: int) -> int:
    workshop = Workshop(folder)
    workshop.environment["API_TOKEN"] = TOKEN
    connection = f'{{type: http, base_url: "{api.url}", auth: {{type: bearer, token: "${{API_TOKEN}}"}}}}'
    workshop.write("retl.yml", f"connections:\n  api: {connection}\n")
    workshop.warehouse(
        f"CREATE OR REPLACE TABLE users AS SELECT i AS user_id, 'u' || i AS email FROM range({rows}) t(i)"
    )
    upsert = "{path: /v1/users/batch, wrap: users, max_rows: 1000, row: {id: $user_id, attributes: $fields}}"
    workshop.sync("users", destination=f"{{connection: api, upsert: {upsert}}}")
    return peak(workshop, "sync")
