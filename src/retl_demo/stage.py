"""The stage of the demo: the sample project in a folder, three real servers, and `retl` as a user runs it.

It always stops everything it starts. The commands see only the servers of the stage: variables of the caller
for PostgreSQL, Redis or another project are removed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retl.errors import DefinitionError, Failure, Stopped
from retl.project import settings
from retl_demo import servers, warehouse
from retl_demo.campaigns import Campaigns
from retl_demo.oracle import Targets

TOKEN = "demo-campaigns"  # noqa: S105 - for a server on this machine that ends with the demo
RUN_WITHIN = 120.0  # seconds; a whole run takes a few
FOREIGN = ("POSTGRES_", "REDIS_", "RETL_", "DUCKDB_", "CAMPAIGN_", "PG")  # prefixes of server variables
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Ran:
    """One `retl` command that ended; `code` is negative if a signal ended it."""

    code: int
    document: dict[str, Any]

    @property
    def syncs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.document.get("syncs", [])
        return found


@dataclass(frozen=True)
class Stage:
    """A project folder, and the environment with its targets."""

    folder: Path
    targets: Targets
    environment: dict[str, str] = field(repr=False)

    @property
    def warehouse(self) -> Path:
        return self.folder / "data" / "warehouse.duckdb"

    def sync(self, *words: str, crash_at: str | None = None) -> Ran:
        """Run `python -m retl sync …` in a new process. `crash_at`: `event:n` where the process kills itself
        with SIGKILL."""
        return self.retl("sync", *words, **({"RETL_CRASH_AT": crash_at} if crash_at else {}))

    def retl(self, *words: str, **more: str) -> Ran:
        """Run `python -m retl …` in a new process; `more` is environment."""
        done = subprocess.run(  # noqa: S603 - our own interpreter, no shell
            [sys.executable, "-m", "retl", "--project", str(self.folder), *words, "--output", "json"],
            env={**self.environment, **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=RUN_WITHIN,
        )
        if done.stdout:
            return Ran(done.returncode, json.loads(done.stdout))
        if done.returncode >= 0:
            output = " | ".join(done.stderr.strip().splitlines()[-3:])
            raise Failure("DEMO_FAILED", f"retl {words[0]} ended with exit code {done.returncode}: {output}")
        return Ran(done.returncode, {})

    def beside(self, folder: Path) -> Stage:
        """Another project with the same targets."""
        return Stage(folder, self.targets, self.environment)

    @contextmanager
    def elsewhere(self) -> Iterator[Stage]:
        """The same project and the same servers, but an empty database, an empty Redis database and an
        empty campaign tool."""
        import psycopg

        with psycopg.connect(**self.targets.postgres, autocommit=True) as connection:
            connection.execute("CREATE DATABASE elsewhere")
        with Campaigns(TOKEN) as campaigns:
            targets = Targets(
                postgres={**self.targets.postgres, "dbname": "elsewhere"},
                redis={**self.targets.redis, "db": 1},
                campaigns=campaigns,
            )
            scratch = Path(self.environment["TMPDIR"])
            yield Stage(self.folder, targets, environment(targets, scratch))


@contextmanager
def project(directory: Path | None, keep: bool) -> Iterator[Path]:
    """The sample project with its warehouse in `directory`, or in a new temporary one; removed at the
    end unless `keep`. DefinitionError DEMO_DIRECTORY if the directory is not empty."""
    if directory is not None and directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise DefinitionError(
            "DEMO_DIRECTORY",
            f"{directory} is not empty",
            hint="give an empty or new directory, or none",
        )
    folder = directory or Path(tempfile.mkdtemp(prefix="retl-demo-"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        source = warehouse.project()
        shutil.copy(source / "retl.yml", folder)
        shutil.copytree(source / "syncs", folder / "syncs")
        shutil.copytree(source / "sql" / "marts", folder / "sql" / "marts")
        (folder / "config.example.env").write_text(settings.example(), encoding="utf-8")
        warehouse.build(folder / "data" / "warehouse.duckdb")
        yield folder.resolve()
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def open_stage(folder: Path) -> Iterator[Stage]:
    """Empty servers on the loopback interface while the body runs."""
    with ExitStack() as stack:
        place = Path(tempfile.mkdtemp(prefix="retl-demo-servers-"))
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        postgres = stack.enter_context(servers.postgres(place / "postgres", settings=servers.EXPENDABLE))
        valkey = stack.enter_context(servers.valkey(place / "valkey"))
        campaigns = stack.enter_context(Campaigns(TOKEN))
        targets = Targets(
            postgres={
                "host": postgres.host,
                "port": postgres.port,
                "user": postgres.user,
                "password": postgres.password,
                "dbname": postgres.dbname,
                "sslmode": "disable",  # overrides PGSSLMODE: the server is on the loopback interface
            },
            redis={"host": valkey.host, "port": valkey.port, "password": valkey.password},
            campaigns=campaigns,
        )
        scratch = place / "tmp"  # a killed run cannot remove its scratch files; we can
        scratch.mkdir(mode=0o700)
        yield Stage(folder, targets, environment(targets, scratch))


def environment(targets: Targets, scratch: Path) -> dict[str, str]:
    """The caller's environment, but only with these servers, and with temporary files in `scratch`."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(FOREIGN)}
    named = {"postgres": ("host", "port", "user", "password"), "redis": ("host", "port", "password", "db")}
    for prefix, names in named.items():
        parameters = getattr(targets, prefix)
        kept |= {f"{prefix}_{name}".upper(): str(parameters[name]) for name in names if parameters.get(name)}
    kept["POSTGRES_DB"] = targets.postgres["dbname"]
    kept |= {"CAMPAIGN_URL": targets.campaigns.url, "CAMPAIGN_TOKEN": targets.campaigns.token}
    return kept | {"TMPDIR": str(scratch)}


@contextmanager
def interruptible() -> Iterator[None]:
    """The first stop signal raises Stopped, so that everything started is stopped. Later signals are
    ignored."""

    def unwind(number: int, _frame: object) -> None:
        for one in _ENDING:
            signal.signal(one, signal.SIG_IGN)
        stopped = Stopped(number)
        stopped.hint = "everything the demo started was stopped too"
        raise stopped

    former = [(one, signal.signal(one, unwind)) for one in _ENDING]
    try:
        yield
    finally:
        for one, handler in former:
            signal.signal(one, handler)
