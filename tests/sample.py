"""The sample project in a folder of its own, against the session's servers, as a user runs it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import redis

from retl_demo import oracle, stage
from retl_demo.campaigns import Campaigns
from retl_demo.oracle import LANDINGS, Landing, Targets
from tests import duckdb_files, inprocess, servers

COUNTS = (
    "read",
    "unchanged",
    "inserted",
    "updated",
    "refreshed",
    "deleted",
    "rejected",
    "skipped",
    "in_doubt",
    "not_attempted",
)


@dataclass(frozen=True)
class Answer:
    """What one command said."""

    code: int
    out: str
    err: str

    @property
    def syncs(self) -> dict[str, dict[str, Any]]:
        """The summaries of `--output json` by sync."""
        return {one["sync"]: one for one in json.loads(self.out)["syncs"]}

    @property
    def counts(self) -> dict[str, dict[str, Any]]:
        """Every number a dry run predicts, by sync."""
        return {
            name: {count: one[count] for count in (*COUNTS, "deletes")} for name, one in self.syncs.items()
        }


@dataclass(frozen=True)
class Sample:
    folder: Path
    targets: Targets
    environment: dict[str, str] = field(repr=False)

    @property
    def warehouse(self) -> Path:
        return self.folder / "data" / "warehouse.duckdb"

    def retl(self, *words: str, folder: Path | None = None, **variables: str) -> Answer:
        """`retl …` for the project, inside this process; an empty variable counts as unset."""
        project = ["--project", str(folder or self.folder)]
        done = inprocess.answer([*project, *words], {**self.environment, **variables}, Path.cwd())
        return Answer(done.code, done.out, done.err)

    def process(self, *words: str, **variables: str) -> Answer:
        """The same as a process of its own, which can be killed."""
        done = subprocess.run(
            [sys.executable, "-m", "retl", "--project", str(self.folder), *words],
            env={**self.environment, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def sync(self, *words: str, folder: Path | None = None, **variables: str) -> Answer:
        return self.retl("sync", *words, "--output", "json", folder=folder, **variables)

    def mart(self, *statements: str) -> None:
        """Change the warehouse, as a transformation would."""
        with duckdb_files.opened(self.warehouse) as connection:
            for statement in statements:
                connection.execute(statement)

    def expected(self, former: dict[str, oracle.Rows] | None = None) -> dict[str, oracle.Rows]:
        before = former or {}
        return {
            one.sync: oracle.expected(self.warehouse, one, before.get(one.sync) if former else None)
            for one in LANDINGS
        }

    def faults(self, wanted: dict[str, oracle.Rows]) -> dict[str, oracle.Difference]:
        """The syncs whose target does not hold exactly what is wanted."""
        found = {
            one.sync: oracle.compare(wanted[one.sync], oracle.held(self.targets, one), one)
            for one in LANDINGS
        }
        return {name: one for name, one in found.items() if one}

    def everything(self) -> dict[str, str]:
        """A fingerprint of every file and folder of the project, every row version of every table of the
        database, every key of Redis, and what the campaign tool holds."""
        return self._files() | self.tables() | self._keys() | {"campaigns": self._recipients()}

    def _files(self) -> dict[str, str]:
        found = {}
        for path in sorted([self.folder, *self.folder.rglob("*")]):
            stat = path.stat()
            content = (
                sorted(each.name for each in path.iterdir())
                if path.is_dir()
                else hashlib.sha256(path.read_bytes()).hexdigest()
            )
            found[f"file {path}"] = f"{stat.st_mode} {stat.st_mtime_ns} {content}"
        return found

    def tables(self) -> dict[str, str]:
        """Every relation outside the catalog: where it lies, and of a table every version of every row."""
        found = {}
        with psycopg.connect(**self.targets.postgres) as connection:
            relations = connection.execute(
                "SELECT c.oid::regclass::text, relkind::text, relfilenode FROM pg_class c"
                " JOIN pg_namespace n ON n.oid = relnamespace"
                " WHERE nspname NOT IN ('pg_catalog', 'information_schema') AND nspname !~ '^pg_t'"
            ).fetchall()
            versions = (
                "SELECT md5(string_agg(t::text || ctid::text || xmin::text, '' ORDER BY ctid)) FROM {} t"
            )
            for name, kind, node in relations:
                rows = connection.execute(versions.format(name)).fetchone() if kind == "r" else None
                found[f"relation {name}"] = f"{kind} {node} {rows}"
        return found

    def _keys(self) -> dict[str, str]:
        with redis.Redis(**self.targets.redis) as client:
            keys = sorted(client.scan_iter("*", count=1000))
            pipeline = client.pipeline(transaction=False)
            for key in keys:
                pipeline.dump(key).expiretime(key)
            told = pipeline.execute()
        pairs = zip(keys, told[::2], told[1::2], strict=True)
        return {f"key {key!r}": f"{dump!r} {expires}" for key, dump, expires in pairs}

    def _recipients(self) -> str:
        tool = self.targets.campaigns
        return repr((tool.requests, sorted(tool.recipients().items(), key=str)))


@contextmanager
def opened(
    folder: Path, postgres: servers.Database, redis_server: servers.RedisServer, scratch: Path
) -> Iterator[Sample]:
    """The sample project with its warehouse in `folder`, which does not exist yet."""
    with stage.project(folder, keep=True) as made, Campaigns(stage.TOKEN) as campaigns:
        database = {name: getattr(postgres, name) for name in ("host", "port", "user", "password", "dbname")}
        cache = {name: getattr(redis_server, name) for name in ("host", "port", "password", "db")}
        targets = Targets(database, cache, campaigns)
        yield Sample(made, targets, stage.environment(targets, scratch))


def landing(sync: str) -> Landing:
    return next(one for one in LANDINGS if one.sync == sync)
