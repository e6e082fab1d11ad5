"""The same job by what a user would pick instead: drt, dlt, and psycopg's executemany by hand.

usage: python -m benchmarks.peers [--rows 1000000] [--rounds 1] [--no-docs]

Each peer gets an environment of its own, installed for this and gone afterwards. The job is a full load
of the mart into an empty PostgreSQL table with a primary key, as an upsert. Every peer is set as its
documentation advises for a load: batches of 10,000 rows where one can say so, and no limit of the rate.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks import mart, report
from benchmarks.cases import summary
from benchmarks.timing import Measured, timed
from benchmarks.workbench import BATCH, CONTRACT, TO_POSTGRES, Workbench

BATCH_ROWS = 10_000
NAMES = mart.COLUMNS.split(", ")

DRT_SYNC = f"""\
name: users
model: "SELECT {mart.COLUMNS} FROM {mart.TABLE}"
destination:
  type: postgres
  host_env: POSTGRES_HOST
  port: {{port}}
  dbname_env: POSTGRES_DB
  user_env: POSTGRES_USER
  password_env: POSTGRES_PASSWORD
  table: public.users
  upsert_key: [user_id]
sync:
  mode: upsert
  batch_size: {BATCH_ROWS}
  rate_limit: {{{{requests_per_second: 0}}}}
"""
DLT_LOAD = f"""\
import os
import dlt, duckdb

@dlt.resource(name="users", write_disposition="merge", primary_key="user_id")
def users():
    with duckdb.connect(os.environ["DUCKDB_PATH"], read_only=True) as warehouse:
        reader = warehouse.sql("SELECT {mart.COLUMNS} FROM {mart.TABLE}").to_arrow_reader({BATCH_ROWS})
        yield from reader

url = "postgresql://{{POSTGRES_USER}}:{{POSTGRES_PASSWORD}}@{{POSTGRES_HOST}}:{{POSTGRES_PORT}}/{{POSTGRES_DB}}"
destination = dlt.destinations.postgres(url.format_map(os.environ))
pipeline = dlt.pipeline("peer", destination=destination, dataset_name="public", pipelines_dir="pipelines")
pipeline.run(users()).raise_on_failed_jobs()
"""
EXECUTEMANY = f"""\
import os
import duckdb, psycopg

upsert = (
    "INSERT INTO users ({mart.COLUMNS}) VALUES ({", ".join(["%s"] * len(NAMES))}) ON CONFLICT (user_id)"
    " DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in NAMES[1:])}"
)
where = {{name: os.environ["POSTGRES_" + name.upper()] for name in ("host", "port", "user", "password")}}
with psycopg.connect(dbname=os.environ["POSTGRES_DB"], **where) as target:
    with duckdb.connect(os.environ["DUCKDB_PATH"], read_only=True) as warehouse:
        warehouse.execute("SELECT {mart.COLUMNS} FROM {mart.TABLE}")
        while rows := warehouse.fetchmany({BATCH_ROWS}):
            target.cursor().executemany(upsert, rows)
"""


@dataclass
class Peer:
    """A way to do the job: what it needs installed, how to get it ready in a folder, and its command."""

    name: str
    requires: tuple[str, ...]
    ready: Callable[[Path, Workbench], list[str]]  # returns the words after the environment's own bin/
    table: str = "users"
    seconds: list[float] = field(default_factory=list)
    version: str = ""

    def install(self, folder: Path) -> None:
        venv.create(folder / "venv", with_pip=True)
        pip = folder / "venv" / "bin" / "pip"
        for words in (["install", "--quiet", *self.requires], ["show", self.name]):
            shown = subprocess.run([pip, *words], check=True, capture_output=True, text=True)  # noqa: S603
        self.version = shown.stdout.partition("Version: ")[2].partition("\n")[0]

    def load(self, folder: Path, bench: Workbench) -> Measured:
        """One load by this peer, and proof that all of it arrived."""
        first, *words = self.ready(folder, bench)
        environment: Mapping[str, str] = {**bench.environment, "HOME": str(folder)}
        done = timed([folder / "venv" / "bin" / first, *words], folder=folder, environment=environment)
        ((count,),) = bench.query(f"SELECT count(*) FROM {self.table}")
        assert count == bench.rows, f"{self.name}: {count} of {bench.rows} rows\n{done.output[-2000:]}"
        return done


def _drt(folder: Path, bench: Workbench) -> list[str]:
    (folder / ".drt").mkdir(exist_ok=True)
    (folder / "syncs").mkdir(exist_ok=True)
    (folder / ".drt" / "profiles.yml").write_text(f"local: {{type: duckdb, database: {bench.mart}}}\n")
    (folder / "drt_project.yml").write_text("name: peer\nversion: '0.1'\nprofile: local\n")
    (folder / "syncs" / "users.yml").write_text(DRT_SYNC.format(port=bench.postgres.port))
    return ["drt", "run"]


def _script(text: str) -> Callable[[Path, Workbench], list[str]]:
    def ready(folder: Path, bench: Workbench) -> list[str]:
        (folder / "load.py").write_text(text)
        return ["python", "load.py"]

    return ready


def peers() -> list[Peer]:
    return [
        Peer("drt-core", ("drt-core[duckdb,postgres]", "duckdb", "pytz"), _drt),
        Peer("dlt", ("dlt[postgres]", "duckdb", "pyarrow"), _script(DLT_LOAD)),
        Peer("psycopg", ("psycopg[binary]", "duckdb", "pytz"), _script(EXECUTEMANY)),
    ]


def main() -> int:
    words = argparse.ArgumentParser(prog="python -m benchmarks.peers")
    words.add_argument("--rows", type=int, default=1_000_000)
    words.add_argument("--rounds", type=int, default=1)
    words.add_argument("--no-docs", action="store_true")
    asked = words.parse_args()
    ours: list[float] = []
    others = peers()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "bench").mkdir()
        for peer in others:
            (folder / peer.name).mkdir()
            peer.install(folder / peer.name)
        with Workbench(folder / "bench", asked.rows) as bench:
            bench.write_sync("users", TO_POSTGRES + CONTRACT + BATCH)
            for _ in range(asked.rounds):
                bench.forget()
                done = bench.sync("users")
                assert summary(done)["inserted"] == bench.rows, done.output
                ours.append(done.seconds)
                for peer in others:
                    bench.forget()
                    if peer.name == "dlt":  # it makes its tables itself and wants none of ours in the way
                        bench.execute("DROP TABLE users", "DROP TABLE IF EXISTS _dlt_loads, _dlt_version")
                        bench.execute("DROP TABLE IF EXISTS _dlt_pipeline_state")
                    peer.seconds.append(peer.load(folder / peer.name, bench).seconds)
    text = section(ours, others, asked.rows, asked.rounds)
    print(text)
    if not asked.no_docs:
        print("written:", report.put("peers", text))
    return 0


def section(ours: list[float], others: list[Peer], rows: int, rounds: int) -> str:
    """The table of the page: each round's ratio to retl in the same round, as median, least and most."""
    lines = [
        f"## Beside other tools: {rows:,} rows, {rounds} rounds",
        "",
        report.machine(),
        "",
        "A full load into an empty PostgreSQL table with a primary key, as an upsert: whole processes, each",
        "tool in an environment of its own, set as its documentation advises for a load.",
        "",
        "| tool | version | seconds | retl is faster by (median, min, max) |",
        "|---|---|---|---|",
        f"| retl | | {median(ours):.2f} | |",
    ]
    for peer in others:
        ratios = sorted(theirs / mine for theirs, mine in zip(peer.seconds, ours, strict=True))
        told = f"{median(ratios):.1f} × ({ratios[0]:.1f}, {ratios[-1]:.1f})"
        name = "psycopg executemany" if peer.name == "psycopg" else peer.name
        lines.append(f"| {name} | {peer.version} | {median(peer.seconds):.2f} | {told} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
