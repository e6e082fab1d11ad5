"""Two ledgers, one table: of two only one delivers, a dead one keeps nobody out, and a run that lost its
place stops within a batch."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import Counter
from pathlib import Path

import pytest

from tests import servers
from tests.clock import waited
from tests.crashes import POSTGRES_YML, Append, Ended, PostgresScene, Running, until
from tests.test_one_writer import between_batches, pace, rows_ever_written

RACES = 4  # `make test-crash` has 20
SECOND_LEDGER = "UPDATE mart SET searches = -1"
OWNED = ("--accept", "STATE_LOST")
HOLDS = (
    "SELECT l.pid FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid WHERE l.objsubid = 2"
    " AND l.locktype = 'advisory' AND a.datname = current_database()"
    " AND a.application_name LIKE 'retl:users pid%'"
)


@pytest.fixture
def first(tmp_path: Path, postgres: servers.Database) -> PostgresScene:
    made = PostgresScene(tmp_path / "first", postgres)
    made.begin()
    return made


def another(made: PostgresScene, folder: str = "second", sync: str | None = None) -> PostgresScene:
    """The same table, another machine's ledger; its mart has other values."""
    other = type(made)(made.folder.parent / folder, made.database)
    other.sync = sync or made.sync
    other.start_over()
    other.project.mart(SECOND_LEDGER)
    return other


def race(one: PostgresScene, two: PostgresScene) -> None:
    """Start both at once: one delivers, the other one is told by whom it is kept out."""
    runs = [scene.project.start(*OWNED) for scene in (one, two)]
    ended = [run.end() for run in runs]
    codes = sorted(done.code for done in ended)
    assert codes in ([0, 75], [0, 0]), [done.stderr for done in ended]
    assert one.content() in (one.project.rows(), two.project.rows())
    for run, done in zip(runs, ended, strict=True):
        if done.code == 75:
            kept_out(done, next(other for other in runs if other is not run))
            loser = (one, two)[runs.index(run)]
            assert one.content() != loser.project.rows()
    if codes == [0, 0]:  # one had ended before the other one asked
        assert [done.summary["inserted"] + done.summary["updated"] for done in ended] == [40, 40]


def kept_out(done: Ended, by: Running) -> None:
    assert (done.code, done.summary["status"]) == (75, "BLOCKED")
    assert done.summary["error"]["code"] == "TARGET_HELD"
    assert f"pid {by.pid} on {socket.gethostname()}" in done.summary["error"]["message"]
    assert done.summary["inserted"] == done.summary["updated"] == done.summary["batches"] == 0


def test_of_two_ledgers_started_at_once_one_delivers(first: PostgresScene) -> None:
    for number in range(RACES):
        first.begin()
        race(first, another(first, f"second.{number}"))


def test_a_second_ledger_is_turned_away_within_two_seconds_and_told_by_whom(first: PostgresScene) -> None:
    holder = between_batches(first)
    second = another(first)
    started = time.monotonic()
    done = second.project.sync(*OWNED)
    taken = time.monotonic() - started
    os.kill(holder.pid, signal.SIGKILL)
    assert holder.end().code == -9
    kept_out(done, holder)
    assert f"of role {first.database.user}" in done.summary["error"]["message"]
    assert taken < waited(2)
    assert second.project.statuses() == ["BLOCKED"]


def test_what_writes_nothing_is_hindered_by_nobody_and_hinders_nobody(first: PostgresScene) -> None:
    holder = between_batches(first)
    second = another(first)
    dry = second.project.sync("--dry-run", *OWNED)
    assert (dry.code, dry.summary["inserted"]) == (0, 40)
    for arguments in (["check", "--sync", "users"], ["explain", "users", "--rows", "1", "--read"]):
        looked = second.project.run(*arguments).end()
        assert looked.code == (3 if arguments[0] == "check" else 0), looked.stderr
        assert "TARGET_HELD" not in looked.stdout + looked.stderr
    pace(first, slow=False)
    os.kill(holder.pid, signal.SIGKILL)
    assert holder.end().code == -9


def test_a_killed_ledgers_place_is_free_at_once(first: PostgresScene) -> None:
    holder = between_batches(first)
    os.kill(holder.pid, signal.SIGKILL)
    assert holder.end().code == -9
    second = another(first)
    done = second.project.sync(*OWNED)
    assert done.code == 0, done.stdout
    assert second.content() == second.project.rows()


@pytest.mark.parametrize("kind", [PostgresScene, Append])
def test_a_run_that_lost_its_place_stops_within_a_batch_and_the_next_carries_on(
    tmp_path: Path, postgres: servers.Database, kind: type[PostgresScene]
) -> None:
    made = kind(tmp_path / "first", postgres)
    made.begin()
    run = between_batches(made)
    before = rows_ever_written(made)
    assert before
    with postgres.connect() as admin:
        admin.execute(f"SELECT pg_terminate_backend(pid) FROM ({HOLDS}) AS h")
        until(lambda: admin.execute(HOLDS).fetchall() == [])
    ended = run.end()
    assert (ended.code, ended.summary["status"]) == (1, "FAILED")
    assert ended.summary["error"]["code"] == "TARGET_LOCK_LOST"
    assert rows_ever_written(made) == before
    pace(made, slow=False)
    assert made.project.sync().code == 0
    assert made.content() == made.project.rows()
    assert made.doubled() == []


def test_a_batch_under_way_keeps_others_out_though_its_run_lost_its_place(first: PostgresScene) -> None:
    assert first.project.sync().code == 0
    first.project.mart("UPDATE mart SET searches = searches + 1")
    second = another(first)
    with first.database.connect() as admin, first.database.connect() as human:
        human.autocommit = False
        human.execute("SELECT FROM crm.users WHERE user_id IN ('user 000', 'user 006') FOR UPDATE")
        run = first.project.start()
        waits = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = 'retl:users' AND wait_event_type = 'Lock'"
        )
        until(lambda: admin.execute(waits).fetchone() == (2,))
        admin.execute(f"SELECT pg_terminate_backend(pid) FROM ({HOLDS}) AS h")
        until(lambda: admin.execute(HOLDS).fetchall() == [])
        turned_away = second.project.sync(*OWNED)
        human.rollback()
    ended = run.end()
    assert (turned_away.code, turned_away.summary["error"]["code"]) == (75, "TARGET_HELD")
    assert ended.summary["error"]["code"] == "TARGET_LOCK_LOST"
    assert ended.summary["updated"] == 10
    assert second.project.sync(*OWNED).code == 0
    assert second.content() == second.project.rows()


def test_ledgers_that_write_to_different_tables_do_not_meet(first: PostgresScene) -> None:
    holder = between_batches(first)
    for folder, table in (("schema", "erp.users"), ("table", "crm.people")):
        other = another(first, folder, POSTGRES_YML.replace("crm.users", table))
        done = other.project.sync()
        assert done.code == 0, done.stdout
    os.kill(holder.pid, signal.SIGKILL)
    assert holder.end().code == -9


def test_a_partitioned_table_is_one_table(first: PostgresScene) -> None:
    with first.database.connect() as admin:
        admin.execute(
            "CREATE SCHEMA crm; CREATE TABLE crm.users (user_id text PRIMARY KEY, segment text,"
            " searches bigint, lifetime_value numeric(12,2)) PARTITION BY HASH (user_id);"
            "CREATE TABLE crm.users_0 PARTITION OF crm.users FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
            "CREATE TABLE crm.users_1 PARTITION OF crm.users FOR VALUES WITH (MODULUS 2, REMAINDER 1)"
        )
    race(first, another(first))


def test_all_places_are_given_back(first: PostgresScene) -> None:
    codes = Counter(first.project.sync(*arguments).code for arguments in ([], ["--full"], ["--dry-run"]))
    assert codes == {0: 3}
    with first.database.connect() as admin:
        until(lambda: admin.execute(HOLDS).fetchall() == [])
