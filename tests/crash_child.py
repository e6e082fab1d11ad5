"""A run of retl in a forked process: everything is imported before the fork, nothing is connected."""

from __future__ import annotations

import os
import sys
from importlib import import_module

for _name in (
    "duckdb", "psycopg", "pytz", "msgspec", "httpcore2", "redis",
    "retl.cli", "retl.cli.app", "retl.cli.running", "retl.cli.schedule", "retl.cli.history",
    "retl.pipeline", "retl.project", "retl.ledger",
    "retl.destinations.postgres", "retl.destinations.redis", "retl.destinations.http",
):  # fmt: skip
    import_module(_name)


def run(arguments: list[str], environ: dict[str, str], out: str, err: str) -> None:
    """One command line, as `python -m retl` would run it, with stdout and stderr in these files."""
    for path, number in ((out, 1), (err, 2)):
        descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environ)
    from retl.cli import main

    sys.exit(main(arguments))
