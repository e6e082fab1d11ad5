"""Servers, marts and a project in one directory, and the command lines of both sides.

The servers keep their default settings: fsync is on. Between two measured processes PostgreSQL makes a
checkpoint, so that each side pays for its own pages only.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent

import psycopg

from benchmarks import mart
from benchmarks.timing import Measured, apart, timed
from retl_demo import servers
from retl_demo.process import Server

# Whoever loads a million rows says so: each batch is a transaction, and 5,000 rows are soon written.
BATCH = "batch: {rows: 20000}\n"
CONTRACT = """\
contract:
  user_id: {type: string, min_length: 1, max_length: 64}
  segment: {type: string, one_of: [power, casual, new, dormant, churned]}
  total_searches: {type: integer, ge: 0}
  total_conversions: {type: integer, ge: 0}
  lifetime_value: {type: decimal, max_digits: 12, decimal_places: 2, ge: 0}
  last_seen_at: {type: timestamp}
"""
TO_POSTGRES = "destination: {type: postgres, table: users}\ndeletes: delete\n"
TO_REDIS = 'destination: {type: redis, key: "reco:{user_id}", value: json, ttl: 24h}\n'
LOAD = f"""\
BEGIN;
CREATE TEMP TABLE stage (LIKE users) ON COMMIT DROP;
\\copy stage FROM '{{csv}}' CSV
INSERT INTO users SELECT * FROM stage ON CONFLICT (user_id) DO UPDATE SET
  {", ".join(f"{c} = excluded.{c}" for c in mart.COLUMNS.split(", ")[1:])};
COMMIT;
"""


@dataclass
class Workbench:
    """`rows` users in `folder`; start it with `with`."""

    folder: Path
    rows: int
    _servers: list[Server] = field(default_factory=list)

    def __enter__(self) -> Workbench:
        self.folder.chmod(0o755)  # PostgreSQL may run as another user
        for name in ("project", "postgres", "valkey"):
            (self.folder / name).mkdir()
        self.project = self.folder / "project"
        (self.project / "syncs").mkdir()
        self.mart, self.csv = self.folder / "mart.duckdb", self.folder / "mart.csv"
        apart(mart.build, self.mart, self.rows)
        apart(mart.export_csv, self.mart, self.csv)
        self.postgres = servers.postgres(self.folder / "postgres")
        self._servers.append(self.postgres)
        self.psql = self.postgres._binaries / "psql"
        self.valkey = servers.valkey(self.folder / "valkey")
        self._servers.append(self.valkey)
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.stop()

    @property
    def changed(self) -> Path:
        """The mart with 1 % of the rows changed and 0.1 % gone."""
        path = self.folder / "changed.duckdb"
        if not path.exists():
            apart(mart.build_changed, path, self.mart, self.rows // 100, self.rows // 1000)
        return path

    @property
    def environment(self) -> dict[str, str]:
        there = {
            "DUCKDB_PATH": str(self.mart),
            "POSTGRES_HOST": self.postgres.host,
            "POSTGRES_PORT": str(self.postgres.port),
            "POSTGRES_DB": self.postgres.dbname,
            "POSTGRES_USER": self.postgres.user,
            "POSTGRES_PASSWORD": self.postgres.password,
            "REDIS_HOST": self.valkey.host,
            "REDIS_PORT": str(self.valkey.port),
            "REDIS_PASSWORD": self.valkey.password,
            "RETL_LOG_LEVEL": "error",
        }
        return {**{k: os.environ[k] for k in ("PATH", "HOME", "PYTHONPATH") if k in os.environ}, **there}

    @property
    def ledger_url(self) -> str:
        """The state in the same PostgreSQL server."""
        return self.postgres.url

    # --- both sides

    def retl(self, *words: str, environment: Mapping[str, str] | None = None) -> Measured:
        """One `retl` command line as a process."""
        command = [sys.executable, "-m", "retl", *words]
        return timed(command, folder=self.project, environment={**self.environment, **(environment or {})})

    def sync(self, name: str, environment: Mapping[str, str] | None = None) -> Measured:
        return self.retl("sync", "--sync", name, "--output", "json", environment=environment)

    def load_by_hand(self) -> Measured:
        """The floor: psql, \\copy of a prepared CSV into a temporary table, one upsert."""
        command = [str(self.psql), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", self.postgres.host]
        command += ["-p", str(self.postgres.port), "-U", self.postgres.user, self.postgres.dbname]
        environment = {**self.environment, "PGPASSWORD": self.postgres.password}
        return timed(command, folder=self.folder, environment=environment, given=LOAD.format(csv=self.csv))

    def pipe_by_hand(self, resp: Path) -> Measured:
        """The floor: prepared RESP through a socket, replies counted by hiredis (the wheel has no cli)."""
        words = [self.valkey.host, str(self.valkey.port), str(resp)]
        environment = {**self.environment, "BENCH_PASSWORD": self.valkey.password}
        return self.python("benchmarks.pipe", *words, environment=environment)

    def python(self, module: str, *words: str, environment: Mapping[str, str] | None = None) -> Measured:
        """One of this package's own modules as a process."""
        root = str(Path(__file__).parents[1])
        path = {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
        command = [sys.executable, "-m", module, *words]
        return timed(command, folder=self.folder, environment={**(environment or self.environment), **path})

    # --- between two measurements

    def write_sync(self, name: str, text: str, *, alone: bool = True) -> None:
        """Make this a sync of the project, or its only one."""
        for other in (self.project / "syncs").iterdir() if alone else ():
            other.unlink()
        body = f"source: {{table: {mart.TABLE}}}\nkey: [user_id]\n{dedent(text)}"
        (self.project / "syncs" / f"{name}.yml").write_text(body)

    def forget(self) -> None:
        """An empty table with a primary key, empty caches, and no state."""
        shutil.rmtree(self.project / ".retl", ignore_errors=True)
        self.execute(
            "DROP TABLE IF EXISTS users, retl_applied",
            f"CREATE TABLE users ({mart.DDL})",
        )
        for (table,) in self.query("SELECT tablename FROM pg_tables WHERE tablename LIKE 'retl_%'"):
            self.execute(f"DROP TABLE {table} CASCADE")
        self.rest()

    def rest(self) -> None:
        """Leave nothing for the next one to write."""
        self.execute("CHECKPOINT")
        os.sync()
        time.sleep(0.2)

    def execute(self, *statements: str) -> None:
        with psycopg.connect(self.postgres.url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    def query(self, statement: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self.postgres.url, autocommit=True) as connection:
            return connection.execute(statement).fetchall()

    def commits(self) -> int:
        """Transactions of the database so far, as PostgreSQL counts them once their sessions have ended."""
        time.sleep(1)  # a session reports at its end, and at most once a second
        ((count,),) = self.query(
            "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
        )
        assert isinstance(count, int)
        return count

    def flush_redis(self) -> None:
        import redis

        with redis.Redis(
            host=self.valkey.host, port=self.valkey.port, password=self.valkey.password
        ) as client:
            client.flushall()
