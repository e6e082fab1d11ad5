"""SIGTERM and SIGINT: the batch in hand is finished or nothing of it is there, and the next run carries on."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from pathlib import Path

import duckdb
import pytest

from retl.engine.workspace import Workspace
from retl.observe.signals import Stop
from tests import servers
from tests.api import TOKEN as API_TOKEN
from tests.api import Api, answer
from tests.clock import waited
from tests.crashes import FIRST, Ended, PostgresScene, Project, Running
from tests.test_ambiguity import KEYED

SOON = 2.0  # seconds from the signal to the end
ENDLESS = "SELECT m.* FROM mart m, range(1000000) a, range(1000000) b WHERE hash(a.range, b.range) = 1"
SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


@pytest.fixture
def upsert(tmp_path: Path, postgres: servers.Database) -> PostgresScene:
    made = PostgresScene(tmp_path / "project", postgres)
    made.begin()
    return made


def stopped(run: Running, number: signal.Signals) -> Ended:
    """Signal the run and let it end: soon, INTERRUPTED, 128 + the signal's number."""
    started = time.monotonic()
    os.kill(run.pid, number)
    ended = run.end()
    assert time.monotonic() - started < waited(SOON), ended.stderr
    assert ended.code == 128 + number, ended.stderr
    assert ended.summary["status"] == "INTERRUPTED"
    assert ended.summary["exit_code"] == 128 + number
    return ended


def carries_on(made: PostgresScene) -> None:
    done = made.project.sync()
    assert done.code == 0, done.stdout
    assert made.content() == made.project.rows()
    assert made.project.statuses()[-2:] == ["INTERRUPTED", "SUCCESS"]


@SIGNALS
def test_a_query_of_the_mart_is_interrupted(upsert: PostgresScene, number: signal.Signals) -> None:
    sync = upsert.folder / "syncs" / "users.yml"
    text = sync.read_text()
    sync.write_text(text.replace("{table: mart}", f"{{sql: '{ENDLESS}'}}"))
    run = upsert.project.start()
    run.saying('"run_started"')
    time.sleep(0.3)
    stopped(run, number)
    assert upsert.content() == []
    sync.write_text(text)
    carries_on(upsert)


@SIGNALS
def test_waiting_for_a_writer_of_the_mart_is_interrupted(
    upsert: PostgresScene, number: signal.Signals
) -> None:
    with duckdb.connect(str(upsert.folder / "mart.duckdb")):
        run = upsert.project.start()
        run.saying('"mart_locked"')
        stopped(run, number)
    carries_on(upsert)


@SIGNALS
def test_a_batch_in_hand_is_finished(upsert: PostgresScene, number: signal.Signals) -> None:
    upsert.project.mart(FIRST.replace("range(40)", "range(400)"))
    run = upsert.project.start()
    run.saying('"batch_acknowledged"')
    ended = stopped(run, number)
    summary = ended.summary
    assert len(upsert.content()) == summary["inserted"] >= 5
    assert summary["inserted"] + summary["not_attempted"] == 400
    carries_on(upsert)


def test_a_batch_that_waits_for_somebodys_lock_is_given_up_soon(upsert: PostgresScene) -> None:
    assert upsert.project.sync().code == 0
    before = upsert.content()
    upsert.project.mart("UPDATE mart SET searches = searches + 1")
    with upsert.database.connect() as other, other.transaction():
        other.execute("LOCK TABLE crm.users IN EXCLUSIVE MODE")
        run = upsert.project.start()
        run.saying('"batch_sending"')
        time.sleep(0.2)
        ended = stopped(run, signal.SIGTERM)
        assert (ended.summary["updated"], ended.summary["in_doubt"]) == (0, 0)
    assert upsert.content() == before
    assert upsert.project.sync().code == 0
    assert upsert.content() == upsert.project.rows() != before


def test_a_copy_that_waits_for_a_lock_is_finished_and_a_second_signal_ends_at_once(
    upsert: PostgresScene,
) -> None:
    assert upsert.project.sync().code == 0
    before = upsert.content()
    upsert.project.mart("UPDATE mart SET searches = searches + 1")
    with upsert.database.connect() as other, other.transaction():
        other.execute("LOCK TABLE crm.users IN EXCLUSIVE MODE")
        run = upsert.project.start()
        run.saying('"batch_sending"')
        time.sleep(0.2)
        os.kill(run.pid, signal.SIGTERM)
        time.sleep(0.3)
        assert run.alive, "the batch in hand is not given up at the first signal"
        started = time.monotonic()
        os.kill(run.pid, signal.SIGTERM)
        assert run.end().code == 143
        assert time.monotonic() - started < waited(SOON)
    assert upsert.project.sync().code == 0
    assert upsert.content() == upsert.project.rows() != before


@SIGNALS
def test_waiting_because_the_target_said_later_is_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    with Api() as api:
        environ = {"CAMPAIGN_URL": api.url, "CAMPAIGN_TOKEN": API_TOKEN}
        project = Project(tmp_path / "project", KEYED, environ)
        sync = project.folder / "syncs" / "users.yml"
        sync.write_text(sync.read_text().replace("budget: 20s", "budget: 5m"))
        api.faults.append(answer(429, Retry_After="60"))
        run = project.start()
        run.saying('"batch_sending"')
        time.sleep(0.3)
        ended = stopped(run, number)
        assert ended.summary["not_attempted"] == 40
        done = project.sync()
        assert done.code == 0, done.stdout
        assert sorted(event["id"] for event in api.events) == [row[0] for row in project.rows()]


def test_an_interrupt_that_comes_before_the_query_begins_is_not_lost(tmp_path: Path) -> None:
    stop, lite = Stop(), sqlite3.connect(":memory:", check_same_thread=False)
    with Workspace(tmp_path, stop) as workspace:
        with stop.interrupting_queries(workspace.con.interrupt), stop.interrupting_queries(lite.interrupt):
            stop.request(signal.SIGTERM)
            with pytest.raises(duckdb.InterruptException):
                workspace.con.execute("SELECT count(*) FROM range(10000000) a, range(10000000) b")
            with pytest.raises(sqlite3.OperationalError, match="interrupted"):
                lite.execute(
                    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
                )
        assert workspace.con.execute("SELECT count(*) FROM range(100000000)").fetchone() == (100000000,)
    lite.close()
