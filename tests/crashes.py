"""Runs of retl that die: a small project per kind of target, and processes that are quick to start.

A run is a process forked from one that has imported everything, so that it takes a third of a second and
dies as any process does. What the target must hold is worked out by SQL in the mart, outside of retl.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retl.ledger import open_ledger
from retl_demo.campaigns import Campaigns
from tests import duckdb_files, forked, inprocess, servers

ROOT = Path(__file__).parents[1]
TOKEN = "token-of-the-tests"
PATIENCE = 60  # seconds a run may take before a test says that it hangs

# The mart, and what becomes of it: every tenth row changes, three leave, two come.
FIRST = """
CREATE OR REPLACE TABLE mart AS SELECT 'user ' || lpad(i::VARCHAR, 3, '0') AS user_id,
  ['power', 'casual', 'new ''n'' "old"', 'dor\\mant', 'ünïcode'][1 + i % 5] AS segment, i * 7 AS searches,
  CASE WHEN i % 6 = 0 THEN NULL ELSE (i * 13 / 100)::DECIMAL(12,2) END AS lifetime_value
FROM range(40) t(i)"""
SECOND = """
UPDATE mart SET searches = searches + 1 WHERE right(user_id, 1) = '7';
DELETE FROM mart WHERE user_id IN ('user 003', 'user 021', 'user 039');
INSERT INTO mart VALUES ('user 100', 'new', 1, 1.00), ('user 101', 'new', 2, NULL)"""
COLUMNS = ("user_id", "segment", "searches", "lifetime_value")

RETL_YML = """
warehouse: {path: mart.duckdb, lock_wait: 30s}
connections:
  db: {type: postgres, host: 127.0.0.1, port: "${PG_PORT}", dbname: "${PG_DB}", user: "${PG_USER}", password: "${PG_PASSWORD}"}
  cache: {type: redis, host: 127.0.0.1, port: "${CACHE_PORT}", db: "${CACHE_DB}", password: "${CACHE_PASSWORD}"}
  campaigns: {type: http, base_url: "${CAMPAIGN_URL}", auth: {type: bearer, token: "${CAMPAIGN_TOKEN}"}}
"""
SYNC_YML = """
source: {table: mart}
key: [user_id]
contract:
  user_id: {type: string}
  segment: {type: string}
  searches: {type: integer}
  lifetime_value: {type: decimal, max_digits: 12, decimal_places: 2, nullable: true}
batch: {rows: 5}
retry: {attempts: 3, budget: 20s}
"""
POSTGRES_YML = "destination: {connection: db, table: crm.users, create: true}\n"


@dataclass(frozen=True)
class Ended:
    """A run that is over: `code` as in subprocess (-9 = killed), what it printed, and the events it told."""

    code: int
    stdout: str
    stderr: str

    @property
    def summary(self) -> dict[str, Any]:
        """Of its only sync."""
        (found,) = json.loads(self.stdout)["syncs"]
        return dict(found)

    @property
    def events(self) -> list[dict[str, Any]]:
        lines = (line for line in self.stderr.splitlines() if line.startswith("{") and line.endswith("}"))
        return [json.loads(line) for line in lines]

    def points(self) -> Counter[str]:
        """Crash points it passed, and how often."""
        return Counter(event["event"] for event in self.events)


class Running:
    """A run under way."""

    def __init__(self, process: Any, out: Path, err: Path) -> None:
        self._process, self.out, self.err = process, out, err
        self.pid: int = process.pid

    @property
    def alive(self) -> bool:
        return bool(self._process.is_alive())

    def saying(self, text: str, times: int = 1) -> None:
        """Wait until it has logged this text so often."""
        until(lambda: self.err.read_text(errors="replace").count(text) >= times or not self.alive)
        assert self.err.read_text(errors="replace").count(text) >= times, self.err.read_text()

    def end(self, seconds: float = PATIENCE) -> Ended:
        """Wait for it; a run that hangs is killed and fails the test."""
        self._process.join(seconds)
        hangs = self.alive
        if hangs:
            os.kill(self.pid, signal.SIGKILL)
            self._process.join()
        ended = Ended(self._process.exitcode, self.out.read_text(), self.err.read_text())
        assert not hangs, f"it hung:\n{ended.stderr}"
        return ended


class Project:
    """A folder with one sync, `users`, and the variables its connections need."""

    def __init__(
        self,
        folder: Path,
        sync: str,
        environ: Mapping[str, str],
        *,
        rows: str = FIRST,
        connections: str = "",
    ) -> None:
        self.folder = folder
        self.environ = {"PATH": os.environ["PATH"], "HOME": str(folder), **environ}
        (folder / "syncs").mkdir(parents=True, exist_ok=True)
        (folder / "retl.yml").write_text(RETL_YML + connections)
        self.define(sync)
        self._numbers = itertools.count()
        self.mart(rows)

    def define(self, sync: str) -> None:
        (self.folder / "syncs" / "users.yml").write_text(SYNC_YML + sync)

    def mart(self, sql: str) -> None:
        with duckdb_files.opened(self.folder / "mart.duckdb") as connection:
            connection.execute(sql)

    def rows(self) -> list[tuple[str | None, ...]]:
        """What a target must hold: the mart as text, in the order of the key."""
        listed = ", ".join(f"{name}::VARCHAR" for name in COLUMNS)
        with duckdb_files.opened(self.folder / "mart.duckdb", read_only=True) as connection:
            return connection.execute(f"SELECT {listed} FROM mart ORDER BY user_id").fetchall()

    def run(self, *words: str, **environ: str) -> Running:
        """`retl` with these words, in a process of its own."""
        number = next(self._numbers)
        out, err = self.folder / f"out.{number}", self.folder / f"err.{number}"
        process = forked.started(
            ["--project", str(self.folder), *words, "--output", "json"],
            self._environ(environ),
            out,
            err,
        )
        return Running(process, out, err)

    def start(self, *arguments: str, **environ: str) -> Running:
        """`retl sync --sync users` with these arguments."""
        return self.run("sync", "--sync", "users", *arguments, **environ)

    def sync(self, *arguments: str, **environ: str) -> Ended:
        """The same to its end; only one that shall be killed needs a process of its own."""
        if "RETL_CRASH_AT" in environ:
            return self.start(*arguments, **environ).end()
        return self._answered("sync", "--sync", "users", *arguments, **environ)

    def _answered(self, *words: str, **environ: str) -> Ended:
        return self.answered(*words, "--output", "json", hears=None, **environ)

    def answered(self, *words: str, hears: Callable[[str], object] | None = None, **environ: str) -> Ended:
        """`retl` with these words, in this process; `hears` gets what it writes on stderr."""
        asked = ["--project", str(self.folder), *words]
        said = inprocess.answer(asked, self._environ(environ), self.folder, hears)
        return Ended(said.code, said.out, said.err)

    def _environ(self, more: Mapping[str, str]) -> dict[str, str]:
        return {**self.environ, "RETL_LOG_FORMAT": "json", "RETL_LOG_LEVEL": "debug", **more}

    def statuses(self) -> list[str]:
        """Of every run, oldest first, as `retl runs` tells them."""
        ended = self._answered("runs")
        assert ended.code == 0, ended.stderr
        found = json.loads(ended.stdout)
        return [run["status"] for run in reversed(found["runs"] if isinstance(found, dict) else found)]


def until(true: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait for something to become true."""
    import time

    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


class Scene(ABC):
    """A target with a project that delivers to it. A context: the target's server is up inside it."""

    sync: str
    connections = ""  # of its own, as lines of retl.yml
    before: Sequence[str] = ()  # marts delivered before the run in question
    made: type[Project] = Project

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.project: Project

    @abstractmethod
    def environ(self) -> dict[str, str]: ...

    @abstractmethod
    def empty(self) -> None:
        """Nothing is there, as before the first run ever."""

    @abstractmethod
    def content(self) -> list[tuple[str | None, ...]]:
        """What the target holds, read outside of retl."""

    def wanted(self) -> list[tuple[str | None, ...]]:
        """What the target must hold, by the mart and by what others keep there."""
        return self.project.rows()

    def doubled(self) -> list[str]:
        """What was applied more than once."""
        return []

    def run_files(self) -> list[str]:
        """What the ledger keeps beside its tables."""
        return sorted(path.name for path in (self.folder / ".retl" / "runs").iterdir())

    def needed(self) -> list[str]:
        """What the next run will read of it."""
        url = self.environ().get("RETL_STATE_URL", "file:.retl")
        with contextlib.closing(open_ledger(url, self.folder, environment=None, create=False)) as ledger:
            (checkpoint,) = ledger.checkpoints("users")
            deltas = [delta.delta for delta in ledger.deltas("users", checkpoint.object)]
        return sorted(deltas + ([checkpoint.snapshot] if checkpoint.snapshot else []))

    def start_over(self) -> None:
        """A ledger and a mart as before the first run ever; the target stays as it is."""
        shutil.rmtree(self.folder / ".retl", ignore_errors=True)
        self.project = self.made(self.folder, self.sync, self.environ(), connections=self.connections)

    def begin(self) -> None:
        """Everything as it was before the run in question: target, ledger, mart."""
        self.empty()
        self.start_over()
        for mart in self.before:
            done = self.project.sync()
            assert done.code == 0, done.stderr
            self.project.mart(mart)


class PostgresScene(Scene):
    sync = POSTGRES_YML
    columns = COLUMNS

    def __init__(self, folder: Path, database: servers.Database, state: str | None = None) -> None:
        super().__init__(folder)
        self.database, self.state = database, state

    def environ(self) -> dict[str, str]:
        to = self.database
        state = {"RETL_STATE_URL": self.state} if self.state else {}
        named = {"PG_PORT": str(to.port), "PG_DB": to.dbname, "PG_USER": to.user, "PG_PASSWORD": to.password}
        return named | state

    def empty(self) -> None:
        with self.database.connect() as connection:
            connection.execute(
                "DROP SCHEMA IF EXISTS crm CASCADE; DROP SCHEMA public CASCADE; CREATE SCHEMA public"
            )

    def run_files(self) -> list[str]:
        if self.state is None:
            return super().run_files()
        with self.database.connect() as connection:
            found = connection.execute("SELECT DISTINCT name FROM retl_files ORDER BY 1").fetchall()
        return [str(name) for (name,) in found]

    def content(self) -> list[tuple[str | None, ...]]:
        listed = ", ".join(f"{name}::text" for name in self.columns)
        with self.database.connect() as connection:
            if connection.execute("SELECT to_regclass('crm.users') IS NULL").fetchall() == [(True,)]:
                return []
            found = connection.execute(f"SELECT {listed} FROM crm.users").fetchall()
        return sorted((tuple(str(v) if v is not None else None for v in row) for row in found), key=str)

    def doubled(self) -> list[str]:
        return [str(key) for key, n in Counter(row[0] for row in self.content()).items() if n > 1]


class Append(PostgresScene):
    sync = POSTGRES_YML.replace(", create: true", "") + "write: append\nfirst_run: send\n"

    def empty(self) -> None:
        super().empty()
        with self.database.connect() as connection:
            connection.execute(
                "CREATE SCHEMA crm; CREATE TABLE crm.users (user_id text NOT NULL, segment text,"
                " searches bigint, lifetime_value numeric(12,2))"  # no key: nothing but retl keeps a row from coming twice
            )


class Deletes(PostgresScene):
    sync = POSTGRES_YML + "deletes: delete\n"
    before = (SECOND,)


class RedisScene(Scene):
    sync = 'destination: {connection: cache, key: "user:{user_id}", value: json, ttl: 24h}\n'

    def __init__(self, folder: Path, server: servers.RedisServer) -> None:
        super().__init__(folder)
        self.server = server

    def environ(self) -> dict[str, str]:
        to = self.server
        return {"CACHE_PORT": str(to.port), "CACHE_DB": str(to.db), "CACHE_PASSWORD": to.password or ""}

    def empty(self) -> None:
        with self.server.client() as client:
            client.flushdb()

    def content(self) -> list[tuple[str | None, ...]]:
        from urllib.parse import unquote

        rows = []
        with self.server.client() as client:
            for key in sorted(client.keys("user:*")):
                assert 0 < client.ttl(key) <= 86400
                held = json.loads(client.get(key), parse_float=str)
                values = [unquote(key.decode().removeprefix("user:"))]
                rows.append((*values, *(None if held[n] is None else str(held[n]) for n in COLUMNS[1:])))
        return rows


class Recording(Campaigns):
    """The campaign tool, and what it was sent: (key, body)."""

    def __init__(self, token: str) -> None:
        self.sent: list[tuple[str | None, bytes]] = []
        super().__init__(token)

    def receive(self, body: bytes, key: str | None) -> Any:
        self.sent.append((key, body))
        return super().receive(body, key)


class CampaignScene(Scene):
    """HTTP upsert with an idempotency key."""

    sync = """
destination:
  connection: campaigns
  upsert: {method: POST, path: /v1/recipients/batch, wrap: recipients, max_rows: 100, row: {id: $user_id, attributes: $fields}}
  outcome: {ok: [200, 201], partial: [207], rows: positional, at: results, row_ok: {at: status, in: [created, updated]}, code: error.code, reason: error.message}
  idempotency: {header: Idempotency-Key, window: 24h}
first_run: send
"""
    tool: Recording | None = None

    def environ(self) -> dict[str, str]:
        assert self.tool
        return {"CAMPAIGN_URL": self.tool.url, "CAMPAIGN_TOKEN": TOKEN}

    def empty(self) -> None:
        if self.tool:
            self.tool.stop()
        self.tool = Recording(TOKEN)

    def content(self) -> list[tuple[str | None, ...]]:
        assert self.tool
        rows = []
        for key, held in sorted(self.tool.recipients().items()):
            values = (held.attributes[name] for name in COLUMNS[1:])
            texts = (f"{v:.2f}" if isinstance(v, float) else v for v in values)
            rows.append((str(key), *(None if v is None else str(v) for v in texts)))
        return rows

    def doubled(self) -> list[str]:
        """Recipients applied twice, and keys sent with two bodies."""
        assert self.tool
        bodies: dict[str | None, set[bytes]] = {}
        for key, body in self.tool.sent:
            bodies.setdefault(key, set()).add(body)
        return [str(r.id) for r in self.tool.recipients().values() if r.applied > 1] + [
            f"key {key}" for key, sent in bodies.items() if len(sent) > 1 or key is None
        ]
