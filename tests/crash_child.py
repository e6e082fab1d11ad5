"""A run of retl in a forked process: everything is imported before the fork, nothing is connected."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from importlib import import_module
from pathlib import Path

for _name in (
    "duckdb", "psycopg", "pytz", "msgspec", "redis",
    "retl.cli", "retl.cli.app", "retl.cli.running", "retl.app.schedule", "retl.app.session", "retl.cli.history",
    "retl.run.pipeline", "retl.app.resolve", "retl.ledger",
    "retl.destinations.postgres.adapter", "retl.destinations.redis.adapter", "retl.destinations.http.adapter",
    "retl.destinations.salesforce_bulk.adapter", "retl.destinations.dataverse.adapter",
):  # fmt: skip
    import_module(_name)


def run(arguments: list[str], environ: dict[str, str], out: str, err: str) -> None:
    """One command line, as `python -m retl` would run it, with stdout and stderr in these files."""
    for path, number in ((out, 1), (err, 2)):
        descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
        os.dup2(descriptor, number)
        os.close(descriptor)
    if go := environ.pop("WAIT_FOR", None):
        _wait_for_a_tracer(Path(go))
    os.environ.clear()
    os.environ.update(environ)
    from retl.cli import main

    sys.exit(main(arguments))


def _wait_for_a_tracer(go: Path) -> None:
    """Let anybody trace this process, where only its ancestors may, and wait until a file says go."""
    ctypes.CDLL(None).prctl(0x59616D61, -1, 0, 0, 0)  # PR_SET_PTRACER, PR_SET_PTRACER_ANY
    while not go.exists():
        time.sleep(0.01)
