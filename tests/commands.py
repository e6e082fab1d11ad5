"""A project in a temporary folder, and `retl` run in it: inside the tests, or as a process where that matters."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import retl
from tests import duckdb_files
from tests.inprocess import Said, answer
from tests.servers import Database, RedisServer

ROWS = 30
# Nothing of the machine's own environment may decide what a test sees.
FOREIGN = ("RETL_", "POSTGRES_", "REDIS_", "DUCKDB_", "PG", "OTEL_", "TRACE", "OPENLINEAGE_")


@cache
def _users() -> bytes:
    """A DuckDB file with the mart `users`."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "warehouse.duckdb"
        with duckdb_files.opened(file) as connection:
            connection.execute(
                "CREATE TABLE users AS SELECT i AS user_id, 'u' || i || '@example.com' AS email,"
                f" CAST(i AS DECIMAL(12, 2)) AS spend FROM range(1, {ROWS + 1}) t(i)"
            )
        return file.read_bytes()


@dataclass
class Workshop:
    """A project folder with a warehouse of one mart: `users`, ROWS rows."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.folder / "syncs").mkdir(parents=True)
        (self.folder / "data").mkdir()
        (self.folder / "data" / "warehouse.duckdb").write_bytes(_users())

    def warehouse(self, sql: str) -> None:
        with duckdb_files.opened(self.folder / "data" / "warehouse.duckdb") as connection:
            connection.execute(sql)

    def write(self, path: str, text: str) -> None:
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_text(text, encoding="utf-8")

    def sync(self, name: str, **parts: str) -> None:
        """A sync of `users` to Redis; `parts` are lines of YAML that replace or join its own."""
        lines = {
            "source": "{table: users}",
            "key": "[user_id]",
            "destination": f'{{type: redis, key: "{name}:{{user_id}}", value: json, ttl: none}}',
        } | parts
        self.write(f"syncs/{name}.yml", "".join(f"{key}: {text}\n" for key, text in lines.items()))

    def use(self, redis: RedisServer | None = None, postgres: Database | None = None) -> None:
        if redis is not None:
            self.environment |= {
                "REDIS_HOST": redis.host,
                "REDIS_PORT": str(redis.port),
                "REDIS_DB": str(redis.db),
                "REDIS_PASSWORD": redis.password or "",
            }
        if postgres is not None:
            self.environment |= {
                "POSTGRES_HOST": postgres.host,
                "POSTGRES_PORT": str(postgres.port),
                "POSTGRES_DB": postgres.dbname,
                "POSTGRES_USER": postgres.user,
                "POSTGRES_PASSWORD": postgres.password,
            }

    def environ(self, **more: str) -> Mapping[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        source = str(Path(retl.__file__).parents[1])  # this very retl, wherever the process starts
        return {**kept, "PYTHONPATH": source, **self.environment, **more}

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "retl", *words]

    def retl(self, *words: str, **more: str) -> Said:
        """Answer one command in the project's folder, inside this process; `more` is environment."""
        return answer(words, self.environ(**more), self.folder)

    def into_sqlite(self) -> None:
        """The sync `users`, to a table of a file in the project."""
        self.write("retl.yml", "connections: {out: {type: sqlite, path: out.db}}\n")
        self.sync("users", destination="{connection: out, table: users, create: true}")

    def process(self, *words: str, **more: str) -> Said:
        """The same as a process of its own, for what only a process has: see tests/inprocess.py. One that only
        dies half way is forked: a new interpreter would take three times as long."""
        if "RETL_CRASH_AT" in more:
            return self._forked(*words, **more)
        done = subprocess.run(
            self.command(*words),
            cwd=self.folder,
            env=self.environ(**more),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def _forked(self, *words: str, **more: str) -> Said:
        from tests import forked  # which imports every target

        with TemporaryDirectory() as folder:
            out, err = Path(folder) / "out", Path(folder) / "err"
            process = forked.started(words, self.environ(**more), out, err, self.folder)
            process.join(120)
            if process.exitcode is None:
                process.kill()
                process.join()
            assert process.exitcode is not None
            return Said(process.exitcode, out.read_text(), err.read_text())

    def json(self, *words: str, **more: str) -> Any:
        """The document of a command that must succeed."""
        said = self.retl(*words, "--output", "json", **more)
        assert said.code == 0, said.err
        return said.document

    def snapshot(self) -> dict[str, bytes | None]:
        """Every file and folder of the project, with its bytes."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes() if path.is_file() else None
            for path in sorted(self.folder.rglob("*"))
        }
