"""A real Spark: its tasks are the shards of a run, in executors that are processes of their own.

`make test-spark` runs this; it needs pyspark and Java. Spark's own ways of trying again are met on purpose:
tasks and executors are killed, and one task runs twice at the same time.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

import retl.spark
from retl.run import spark
from retl.run.lines import Ticket, attend
from tests.commands import Workshop
from tests.crashes import Append, Running, until
from tests.servers import Database
from tests.test_shards import FIRST, KINDS, THEN, Crowd, healed, history
from tests.test_shards_elsewhere import ENGINE, Elsewhere

MASTER = "local-cluster[2,1,1024]"
SLOWLY = """
  slow: {type: postgres, host: 127.0.0.1, port: "${PG_PORT}", dbname: "${PG_DB}", user: "${PG_USER}", password: "${PG_PASSWORD}", limits: {requests: 2, per: 1s}}
engine: {type: spark, shards: 3, master: "local-cluster[2,1,1024]", folder: ../shared}
"""
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def session() -> Iterator[SparkSession]:
    """A session that runs, as in a notebook."""
    builder: Any = SparkSession.builder
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", os.sys.executable)  # type: ignore[attr-defined]
        for name, value in spark._QUIET.items():
            builder = builder.config(name, value)
        builder = builder.config("spark.sql.session.timeZone", "UTC")
        made = builder.master(MASTER).config("spark.executor.memory", "512m").getOrCreate()
        yield made
        made.stop()


def test_tasks_do_what_one_process_does(session: SparkSession, tmp_path: Path, postgres: Database) -> None:
    sync, table, steps = KINDS["deletes"]
    steps = steps if os.environ.get("RETL_TEST_ALL") else [(FIRST, ("--limit", "30")), (THEN, ())]
    one = history(Crowd(tmp_path / "one", postgres, sync, table), [1], steps)
    many = history(Elsewhere(tmp_path / "many", postgres, sync, table), [3, 2], steps)
    assert many == one
    assert not list((tmp_path / "shared").iterdir())
    assert not session.sparkContext._jsc.sc().isStopped(), "a session that retl did not start goes on"


def test_a_task_that_runs_twice_at_the_same_time_sends_nothing_twice(
    session: SparkSession, tmp_path: Path, postgres: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[list[bool]] = []

    def twice(context: Any, ticket: Ticket) -> None:
        served.append(context.parallelize([0, 1], 2).mapPartitions(lambda _: [attend(ticket)]).collect())

    monkeypatch.setattr(spark, "_do", twice)
    sync, table, _ = KINDS["append"]
    crowd = Elsewhere(tmp_path / "project", postgres, sync, table)
    crowd.workshop.warehouse(FIRST)
    summary = crowd.run(2)
    assert (summary["exit_code"], len(summary["held"])) == (0, 41)
    assert len({row[0] for row in summary["held"]}) == 41
    until(lambda: len(served) == 6)
    assert [sorted(one) for one in served] == [[False, True]] * 6


@pytest.mark.parametrize("shards", [1, 3])
def test_a_frame_is_the_mart(shards: int, session: SparkSession, tmp_path: Path, postgres: Database) -> None:
    """Types come through exactly, and the shards read the frame's files where they run."""
    workshop = Workshop(tmp_path / "project")
    workshop.use(postgres=postgres)
    workshop.environment["RETL_STATE_URL"] = postgres.url
    workshop.write("retl.yml", ENGINE)
    workshop.write(
        "syncs/frame.yml",
        "source: {table: users}\nkey: [id]\ndeletes: delete\nguards: {max_delete_rate: 1, max_row_drop: 1}\n"
        f"destination: {{type: postgres, table: public.frame, create: true}}\nshards: {shards}\n",
    )
    rows = session.range(100).selectExpr(
        "id", "cast(id / 3 as decimal(12, 4)) AS part", "cast('2026-01-01 12:30:00.123456' as timestamp) AS at",
        "cast('2026-01-01 12:30:00.123456' as timestamp_ntz) AS local", "date_add(date'2026-01-01', cast(id as int)) AS day",
        "concat('ü', id) AS name", "id % 2 = 0 AS even", "if(id % 3 = 0, null, id * 0.5D) AS half",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in workshop.environ().items():
            patch.setenv(name, value)
        counts = [
            retl.spark.sync(frame, "frame", project=workshop.folder).counts
            for frame in (rows, rows.where("id <> 7").withColumn("name", rows.name))
        ]
    assert (counts[0].read, counts[0].inserted) == (100, 100)
    assert (counts[1].read, counts[1].unchanged, counts[1].deleted) == (99, 99, 1)
    with postgres.connect() as connection:
        (held,) = connection.execute(
            "SELECT part::text, at AT TIME ZONE 'UTC', local, day::text, name, even, half FROM frame WHERE id = 5"
        ).fetchall()
    at = datetime(2026, 1, 1, 12, 30, 0, 123456)
    assert held == ("1.6667", at, at, "2026-01-06", "ü5", False, 2.5)
    assert not list((tmp_path / "shared" / "retl-marts").iterdir())


def test_a_task_that_cannot_reach_the_run_is_named(
    session: SparkSession, tmp_path: Path, postgres: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(context: Any, ticket: Ticket) -> None:
        there = Ticket("127.0.0.1", 1, ticket.certificate, ticket.token)
        context.parallelize([0], 1).mapPartitions(lambda _: [attend(there)]).collect()

    monkeypatch.setattr(spark, "_do", unreachable)
    sync, table, _ = KINDS["append"]
    crowd = Elsewhere(tmp_path / "project", postgres, sync, table)
    crowd.workshop.warehouse(FIRST)
    summary = crowd.run(2)
    assert (summary["exit_code"], summary["error"]["code"]) == (1, "SHARD_LOST")
    assert "ConnectionRefusedError" in summary["error"]["message"]
    assert not summary["held"]


@pytest.mark.parametrize("java", [None, "#!/bin/sh\nexit 1\n"])
def test_without_a_java_that_starts_it_says_so(java: str | None, tmp_path: Path, postgres: Database) -> None:
    sync, table, _ = KINDS["append"]
    crowd = Elsewhere(tmp_path / "project", postgres, sync, table)
    crowd.workshop.warehouse(FIRST)
    crowd.workshop.write("syncs/people.yml", sync)
    if java is not None:
        crowd.workshop.write("java/bin/java", java)
        (crowd.workshop.folder / "java/bin/java").chmod(0o755)
    said = crowd.workshop.process("sync", JAVA_HOME=str(crowd.workshop.folder / "java"))
    assert ("JAVA_MISSING" if java is None else "SPARK_NOT_STARTED") in said.err
    assert said.code == (2 if java is None else 1)


class SlowAppend(Append):
    """Two requests a second, so that there is time to kill; it appends to a table without a key."""

    sync = Append.sync.replace("connection: db", "connection: slow")
    connections = SLOWLY


def begun(tmp_path: Path, postgres: Database) -> tuple[SlowAppend, Running]:
    scene = SlowAppend(tmp_path / "project", postgres, postgres.url)
    scene.begin()
    run = scene.project.start()
    until(lambda: "batch_acknowledged" in run.err.read_text() or not run.alive, 300)
    assert run.alive, run.err.read_text()
    return scene, run


def below(pid: int) -> list[tuple[int, str]]:
    """All processes that this one has started, and theirs, with their command lines."""
    found: list[tuple[int, str]] = []
    for child in Path(f"/proc/{pid}/task").glob("*/children"):
        for one in child.read_text().split():
            words = Path(f"/proc/{one}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found += [(int(one), words), *below(int(one))]
    return found


def victim(run: Running, kind: str) -> int:
    """A shard's process, or an executor that has one."""
    for pid, words in below(run.pid):
        sends = any("retl.run.shard" in more for _, more in below(pid))
        if kind == "executor" and "CoarseGrainedExecutorBackend" in words and sends:
            return pid
        if kind == "shard" and "retl.run.shard" in words:
            return pid
    raise AssertionError(below(run.pid))


@pytest.mark.parametrize("kind", ["shard", "executor"])
def test_a_killed_task_or_executor_costs_nothing(kind: str, tmp_path: Path, postgres: Database) -> None:
    scene, run = begun(tmp_path, postgres)
    os.kill(victim(run, kind), signal.SIGKILL)
    ended = run.end(300)
    assert (ended.code, ended.summary["inserted"]) == (0, 40), ended.stderr
    assert ended.points()["shard_began_again"]
    assert scene.content() == scene.wanted()
    assert scene.doubled() == []


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_or_stopped_driver_is_made_good_without_spark(
    sign: int, tmp_path: Path, postgres: Database
) -> None:
    scene, run = begun(tmp_path, postgres)
    os.kill(run.pid, sign)
    ended = run.end(300)
    assert ended.code == (-sign if sign == signal.SIGKILL else 128 + sign), ended.stderr
    scene.connections = ""
    path = scene.project.folder / "retl.yml"
    path.write_text(path.read_text().replace("type: spark, ", "").replace("shards: 3", "shards: 1"))
    healed(scene)
    assert scene.project.statuses()[-1] == "SUCCESS"
