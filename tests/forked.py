"""`retl` in a process of its own that is forked from one which has imported everything and connected to
nothing: it takes a third of the CPU that a new interpreter takes, and dies as any process does."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from retl.cli import GARBAGE_EVERY, families

for _name in (
    "duckdb", "psycopg", "pytz", "msgspec", "redis", "confluent_kafka.admin", "boto3",
    "retl.cli.running", "retl.app.schedule", "retl.app.session", "retl.cli.history",
    "retl.run.pipeline", "retl.app.resolve", "retl.ledger",
    "retl.destinations.postgres.adapter", "retl.destinations.redis.adapter", "retl.destinations.http.adapter",
    "retl.destinations.salesforce_bulk.adapter", "retl.destinations.dataverse.adapter",
    "retl.destinations.sqlite.adapter", "retl.destinations.duckdb.adapter", "retl.destinations.mysql.adapter",
    "retl.destinations.dynamodb.adapter", "retl.destinations.delta.adapter", "deltalake",
    "retl.destinations.clickhouse.adapter", "retl.destinations.mongodb.lane",
):  # fmt: skip
    import_module(_name)
families.commands()

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([__name__])


def started(
    arguments: Sequence[str], environ: Mapping[str, str], out: Path, err: Path, folder: Path | None = None
) -> ForkServerProcess:
    """One command line, as `python -m retl` in `folder` would run it, with this whole environment, stdout and
    stderr in these files, and nothing on stdin."""
    out.touch()
    err.touch()
    told = (list(arguments), dict(environ), str(out), str(err), str(folder or Path.cwd()))
    process = _FORKS.Process(target=_run, args=told, daemon=True)
    process.start()
    return process


def _run(arguments: list[str], environ: dict[str, str], out: str, err: str, folder: str) -> None:
    gc.set_threshold(GARBAGE_EVERY)  # as `retl` does
    for path, number, flags in (
        (os.devnull, 0, os.O_RDONLY),
        (out, 1, os.O_WRONLY | os.O_TRUNC | os.O_APPEND),
        (err, 2, os.O_WRONLY | os.O_TRUNC | os.O_APPEND),
    ):
        descriptor = os.open(path, flags)
        os.dup2(descriptor, number)
        os.close(descriptor)
    if go := environ.pop("WAIT_FOR", None):
        _wait_for_a_tracer(Path(go))
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(folder)
    tempfile.tempdir = None  # that of this environment
    from retl.cli import main

    sys.exit(main(arguments))


def _wait_for_a_tracer(go: Path) -> None:
    """Let anybody trace this process, where only its ancestors may, and wait until a file says go."""
    ctypes.CDLL(None).prctl(0x59616D61, -1, 0, 0, 0)  # PR_SET_PTRACER, PR_SET_PTRACER_ANY
    while not go.exists():
        time.sleep(0.01)
