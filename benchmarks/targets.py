"""A first load into each target beside the target's own bulk tool: whole processes, one after the other.

usage: python -m benchmarks.targets [--rows 1000000] [--rounds 3] [--only mysql,clickhouse,sqlite,duckdb,…]

Both sides end with the rows in the target, committed. The tool has a prepared file, and the one who starts it
knows that the table is empty; ours reads the mart, finds what is new, and keeps its promises.
The figures go to benchmarks/targets.json, from which docs/benchmarks.md has them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sqlite3
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import duckdb
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from tests import clickhouse_server, mysql_server

from benchmarks import mart
from benchmarks.timing import Measured, apart, timed
from retl_demo.servers import Tansu

FIGURES = Path(__file__).with_suffix(".json")
MOST = 1_000_000  # rows that make figures worth keeping
TICK = os.sysconf("SC_CLK_TCK")


def main() -> int:
    words = argparse.ArgumentParser(prog="python -m benchmarks.targets")
    words.add_argument("--rows", type=int, default=MOST)
    words.add_argument("--rounds", type=int, default=3)
    words.add_argument("--only", default=",".join(TARGETS))
    words.add_argument("--by-hand", nargs=2, metavar=("TARGET", "FOLDER"), help="the tool, in this process")
    asked = words.parse_args()
    if asked.by_hand:
        name, folder = asked.by_hand
        BY_HAND[name](Path(folder))
        return 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
        folder = Path(made)
        folder.chmod(0o755)  # a server may run as another user
        apart(mart.build, folder / "mart.duckdb", asked.rows)
        apart(mart.export_csv, folder / "mart.duckdb", folder / "mart.csv")
        figures = {name: measured(name, folder, asked.rows, asked.rounds) for name in asked.only.split(",")}
    if asked.rows == MOST:
        keep(figures)
    return 0


def measured(name: str, folder: Path, rows: int, rounds: int) -> dict[str, float | str]:
    """Load in pairs of processes, and say what they took: medians."""
    (folder / name).mkdir()
    with ExitStack() as ends:
        target = TARGETS[name](folder / name, folder)
        ends.enter_context(target.running())
        pairs = [(target.measured(rows, ours=True), target.measured(rows, ours=False)) for _ in range(rounds)]
    found: dict[str, float | str] = {"tool": target.tool}
    ratios = sorted(one.seconds / other.seconds for one, other in pairs)
    found |= {"ratio": round(median(ratios), 2), "least": round(ratios[0], 2), "most": round(ratios[-1], 2)}
    for side, each in zip(("ours", "tool"), zip(*pairs, strict=True), strict=True):
        found[f"{side}_seconds"] = round(median(one.seconds for one in each), 2)
        found[f"{side}_processor"] = round(median(one.processor for one in each), 2)
    found["ours_megabytes"] = round(median(one.megabytes for one, _ in pairs))
    found |= {
        "rounds": rounds,
        "load": round(os.getloadavg()[1]),
        "measured_on": f"{datetime.now(UTC):%Y-%m-%d}",
    }
    print(name, found, flush=True)
    return found


def keep(figures: dict[str, dict[str, float | str]]) -> None:
    """Put the figures in the file; those of targets that were not measured stay."""
    known = json.loads(FIGURES.read_text()) if FIGURES.exists() else {"targets": {}}
    known["targets"] |= figures
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    known |= {"rows": MOST, "machine": machine}
    FIGURES.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


@dataclass
class Target(ABC):
    """One target: how each side loads it, and how many rows it then has."""

    folder: Path  # of its own
    marts: Path  # has mart.duckdb and mart.csv
    server: int | None = None  # the process of the target's server
    tool: ClassVar[str]
    batch: ClassVar[int] = 20_000  # rows
    _rounds: int = 0
    _given: dict[str, Any] = field(default_factory=dict)  # by the server

    @contextmanager
    def running(self) -> Iterator[None]:
        yield

    @abstractmethod
    def empty(self) -> None:
        """Make the table without rows."""

    @property
    @abstractmethod
    def destination(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The connection, and the options of the sync."""

    @abstractmethod
    def command(self) -> list[str]:
        """The tool and its words; `given` goes to its input."""

    given: ClassVar[str] = ""

    @abstractmethod
    def count(self) -> int: ...

    def measured(self, rows: int, *, ours: bool) -> Measured:
        """Seconds of a processor are those of the process and of the server."""
        self._rounds += 1
        self.empty()
        os.sync()
        time.sleep(0.3)
        before = self._served()
        found = self._ours() if ours else self._tool()
        served = self._served() - before
        if (count := self.count()) != rows:
            raise RuntimeError(f"{type(self).__name__}: {count} of {rows} rows arrived")
        return Measured(found.seconds, found.processor + served, found.megabytes, found.output)

    def _served(self) -> float:
        if self.server is None:
            return 0.0
        user, system = Path(f"/proc/{self.server}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / TICK

    def _ours(self) -> Measured:
        project = self.folder / "project"
        shutil.rmtree(project, ignore_errors=True)
        (project / "syncs").mkdir(parents=True)
        connection, options = self.destination
        (project / "retl.yml").write_text(json.dumps({"connections": {"there": connection}}))
        to = json.dumps({"connection": "there", **options})
        text = f"source: {{table: {mart.TABLE}}}\nkey: [user_id]\ndestination: {to}\n"
        (project / "syncs" / "users.yml").write_text(f"{text}batch: {{rows: {self.batch}}}\n")
        environment = {"DUCKDB_PATH": str(self.marts / "mart.duckdb"), "RETL_LOG_LEVEL": "error"}
        command = [sys.executable, "-m", "retl", "sync", "--sync", "users", "--output", "json"]
        return timed(command, folder=project, environment=_environment(environment))

    def _tool(self) -> Measured:
        given = self.given.format(csv=self.marts / "mart.csv")
        return timed(self.command(), folder=self.folder, environment=_environment({}), given=given)

    def _by_hand(self, name: str) -> list[str]:
        return [sys.executable, "-m", "benchmarks.targets", "--by-hand", name, str(self.folder)]


def _environment(more: dict[str, str]) -> dict[str, str]:
    ours = FIGURES.parents[1]  # and not what is installed
    return {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ours / 'src'}{os.pathsep}{ours}", **more}


class MySQL(Target):
    """MariaDB with its own settings: every commit waits for the disk."""

    tool = "mariadb, LOAD DATA LOCAL INFILE"
    kinds = mart.DDL.replace("text", "varchar(40)").replace("timestamp", "datetime(6)")
    given = "LOAD DATA LOCAL INFILE '{csv}' INTO TABLE users CHARACTER SET utf8mb4 FIELDS TERMINATED BY ',';"

    @contextmanager
    def running(self) -> Iterator[None]:
        with Durable(self.folder / "server").start() as server:
            self.server = server.pid
            account = server.host, server.port, server.user, server.password
            with mysql_server.fresh(mysql_server.MySQLDatabase(*account, "mysql")) as self._at:
                yield

    def empty(self) -> None:
        self._at.execute("DROP TABLE IF EXISTS users, retl_applied", f"CREATE TABLE users ({self.kinds})")

    @property
    def destination(self) -> tuple[dict[str, Any], dict[str, Any]]:
        at = {part: getattr(self._at, part) for part in ("host", "port", "dbname", "user", "password")}
        return {"type": "mysql", **at}, {"table": "users"}

    def command(self) -> list[str]:
        at = self._at
        words = ["mariadb", "--no-defaults", "--local-infile=1", f"--host={at.host}", f"--port={at.port}"]
        return [*words, f"--user={at.user}", f"--password={at.password}", at.dbname]

    def count(self) -> int:
        return int(self._at.execute("SELECT count(*) FROM users")[0][0])


class Durable(mysql_server.MariaDB):
    """The tests' server without what makes it quick and careless."""

    def _command(self) -> list[str]:
        careless = ("--innodb-flush-log-at-trx-commit", "--innodb-buffer-pool-size")
        return [word for word in super()._command() if not word.startswith(careless)]


class ClickHouse(Target):
    """The engine of the tests, in a process of its own. The file is read by the server itself."""

    tool = "curl, INSERT … SELECT FROM a CSV file"
    batch = 500_000  # every insert makes a part
    kinds = (
        "user_id String, segment Nullable(String), total_searches Nullable(Int32),"
        " total_conversions Nullable(Int32), lifetime_value Nullable(Decimal(12, 2)),"
        " last_seen_at Nullable(DateTime64(6, 'UTC'))"
    )
    given = "INSERT INTO users SELECT *, 1 FROM file('{csv}', 'CSV', '" + kinds.replace("'", r"\'") + "')"

    @contextmanager
    def running(self) -> Iterator[None]:
        with clickhouse_server.server(self.folder / "server") as self._at:
            self.server = self._at.pid
            yield

    def empty(self) -> None:
        self._at.do("DROP TABLE IF EXISTS users")
        self._at.do("DROP TABLE IF EXISTS retl_applied")
        engine = "ReplacingMergeTree(retl_version) ORDER BY user_id"
        self._at.do(f"CREATE TABLE users ({self.kinds}, retl_version UInt64) ENGINE = {engine}")

    @property
    def destination(self) -> tuple[dict[str, Any], dict[str, Any]]:
        user, password = clickhouse_server.WRITER
        account = {"user": user, "password": password}
        return {"type": "clickhouse", "base_url": self._at.url, **account}, {"table": "users"}

    def command(self) -> list[str]:
        user, password = clickhouse_server.WRITER
        account = ["-H", f"X-ClickHouse-User: {user}", "-H", f"X-ClickHouse-Key: {password}"]
        return ["curl", "--silent", "--show-error", "--fail", *account, "--data-binary", "@-", self._at.url]

    def count(self) -> int:
        return int(self._at.rows("SELECT count() AS n FROM users FINAL")[0]["n"])


class SQLite(Target):
    tool = "sqlite3 .import"
    given = ".mode csv\n.import {csv} users\n"

    @property
    def _path(self) -> Path:
        return self.folder / "target.db"

    def empty(self) -> None:
        self._path.unlink(missing_ok=True)
        with closing(sqlite3.connect(self._path)) as file:
            file.execute(f"CREATE TABLE users ({mart.DDL})")

    @property
    def destination(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"type": "sqlite", "path": str(self._path)}, {"table": "users"}

    def command(self) -> list[str]:
        return ["sqlite3", "-bail", str(self._path)]

    def count(self) -> int:
        with closing(sqlite3.connect(self._path)) as file:
            return int(file.execute("SELECT count(*) FROM users").fetchone()[0])


class DuckDB(Target):
    tool = "duckdb, COPY FROM a CSV"
    batch = 122_880  # a row group

    @property
    def _path(self) -> Path:
        return self.folder / "target.duckdb"

    def empty(self) -> None:
        self._path.unlink(missing_ok=True)
        with duckdb.connect(str(self._path)) as file:
            file.execute(f"CREATE TABLE users ({mart.DDL})")

    @property
    def destination(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"type": "duckdb", "path": str(self._path)}, {"table": "users"}

    def command(self) -> list[str]:
        return self._by_hand("duckdb")

    def count(self) -> int:
        with duckdb.connect(str(self._path), read_only=True) as file:
            return int(file.execute("SELECT count(*) FROM users").fetchall()[0][0])


class Kafka(Target):
    """The broker of the tests, which keeps everything in memory. Both sides send the same keys, values and
    headers."""

    tool = "confluent-kafka, produce"

    @contextmanager
    def running(self) -> Iterator[None]:
        members = ", ".join(f"'{name}', {name}" for name in mart.COLUMNS.split(", "))
        records = f"SELECT user_id, json_object({members}) FROM {mart.TABLE}"
        with duckdb.connect(str(self.marts / "mart.duckdb"), read_only=True) as warehouse:
            warehouse.execute(
                f"COPY ({records}) TO '{self.folder}/records.tsv'"
                " (FORMAT csv, HEADER false, DELIMITER '\t', QUOTE '', ESCAPE '')"
            )
        with Tansu(self.folder / "broker").start() as server:
            self.server, self._at = server.pid, f"{server.host}:{server.port}"
            self._admin = AdminClient({"bootstrap.servers": self._at})
            yield

    @property
    def _topic(self) -> str:
        return f"users{self._rounds}"

    def empty(self) -> None:
        for made in self._admin.create_topics([NewTopic(self._topic, 1, 1)]).values():
            made.result()
        (self.folder / "to.json").write_text(json.dumps([self._at, self._topic]))

    @property
    def destination(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"type": "kafka", "servers": self._at}, {"topic": self._topic}

    def command(self) -> list[str]:
        return self._by_hand("kafka")

    def count(self) -> int:
        """As a reader finds them."""
        consumer = Consumer({"bootstrap.servers": self._at, "group.id": "bench"})
        consumer.assign([TopicPartition(self._topic, 0, 0)])
        found = 0
        while read := consumer.consume(10_000, 2):
            found += sum(one.error() is None for one in read)
        consumer.close()
        return found


class Files(Target):
    tool = "duckdb, COPY TO a Parquet file"
    batch = 122_880  # a row group

    def empty(self) -> None:
        shutil.rmtree(self.folder / "files", ignore_errors=True)

    @property
    def destination(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"type": "files", "root": str(self.folder / "files")}, {"path": "users"}

    def command(self) -> list[str]:
        return self._by_hand("files")

    def count(self) -> int:
        found = f"SELECT count(*) FROM read_parquet('{self.folder}/files/**/*.parquet')"
        return int(duckdb.execute(found).fetchall()[0][0])


TARGETS: dict[str, type[Target]] = {
    "mysql": MySQL,
    "clickhouse": ClickHouse,
    "sqlite": SQLite,
    "duckdb": DuckDB,
    "kafka": Kafka,
    "files": Files,
}


def _copied(folder: Path) -> None:
    with duckdb.connect(str(folder / "target.duckdb")) as file:
        file.execute(f"COPY users FROM '{folder.parent}/mart.csv' (FORMAT csv, HEADER false)")


def _written(folder: Path) -> None:
    (folder / "files").mkdir()
    with duckdb.connect(str(folder.parent / "mart.duckdb"), read_only=True) as warehouse:
        to = f"'{folder}/files/users.parquet' (FORMAT parquet, COMPRESSION zstd)"
        warehouse.execute(f"COPY {mart.TABLE} TO {to}")


def _produced(folder: Path) -> None:
    """Records that stand in a file, a line each, with the headers of ours."""
    servers, topic = json.loads((folder / "to.json").read_text())
    settings: dict[str, Any] = {"compression.type": "zstd", "partitioner": "murmur2_random"}
    lost = list[Any]()
    settings |= {"delivery.report.only.error": True, "on_delivery": lambda *said: lost.append(said[0])}
    producer = Producer({"bootstrap.servers": servers, **settings})
    headers = [("retl-run", b"0" * 36), ("retl-op", b"upsert")]
    headers += [("retl-version", b"1"), ("retl-batch", b"0" * 45)]
    with (folder / "records.tsv").open("rb") as lines:
        for line in lines:
            key, _, value = line.rstrip(b"\n").partition(b"\t")
            while True:
                try:
                    producer.produce(topic, value, key, headers=headers)
                    break
                except BufferError:
                    producer.poll(0.1)
    if producer.flush(60) or lost:
        raise RuntimeError(f"the broker did not take every record: {lost[:1]}")


BY_HAND = {"duckdb": _copied, "files": _written, "kafka": _produced}

if __name__ == "__main__":
    sys.exit(main())
