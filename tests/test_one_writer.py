"""One writer per sync: of two only one delivers, a dead one's lock is free, a zombie writes nothing."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests import servers
from tests.clock import waited
from tests.commands import ROWS, Workshop
from tests.crashes import Append, PostgresScene, Running, until
from tests.ledgers import child, kill, line

RACES = 3  # of each kind of ledger; `make test-crash` has 50
SLOW = ", limits: {requests: 1, per: 3s}}"  # a batch, then three seconds until the next


@pytest.fixture(params=["file", "postgres"])
def append(request: pytest.FixtureRequest, tmp_path: Path, postgres: servers.Database) -> Append:
    made = Append(tmp_path / "project", postgres, postgres.url if request.param == "postgres" else None)
    made.begin()
    return made


def pace(made: PostgresScene, slow: bool) -> None:
    """Let the connection send one batch every three seconds, or as many as it can."""
    path = made.folder / "retl.yml"
    lines = path.read_text().replace(SLOW, "}").splitlines()
    path.write_text("\n".join(line[:-1] + SLOW if slow and " db:" in line else line for line in lines) + "\n")


def between_batches(made: PostgresScene) -> Running:
    """A run that has delivered a batch, and whose two lanes wait before they send the next."""
    pace(made, slow=True)
    run = made.project.start()
    run.saying('"batch_acknowledged"')
    run.saying('"room_awaited"', 2)
    return run


def race(made: Append) -> None:
    """Start two runs at once: one delivers, the other one leaves within two seconds and says why."""
    runs = [made.project.start(), made.project.start()]
    ended = [run.end() for run in runs]
    codes = sorted(one.code for one in ended)
    assert codes in ([0, 75], [0, 0]), [one.stderr for one in ended]
    for run, one in zip(runs, ended, strict=True):
        if one.code == 75:
            message = one.summary["error"]["message"]
            other = next(other for other in runs if other is not run)
            assert one.summary["status"] == "BLOCKED"
            assert one.summary["error"]["code"] == "LOCK_HELD"
            assert f"pid {other.pid}" in message
            assert socket.gethostname() in message
            assert "since 20" in message
    if codes == [0, 0]:  # one had ended before the other one asked
        assert sorted(one.summary["inserted"] for one in ended) == [0, 40]
    assert made.content() == made.project.rows()


def test_of_two_runs_started_at_once_one_delivers(append: Append) -> None:
    for _ in range(RACES):
        append.begin()
        race(append)


def test_a_second_run_leaves_within_two_seconds_naming_the_first(append: Append) -> None:
    first = between_batches(append)
    started = time.monotonic()
    second = append.project.sync()
    taken = time.monotonic() - started
    os.kill(first.pid, signal.SIGKILL)
    assert first.end().code == -9
    assert second.code == 75
    assert taken < waited(2)
    assert f"pid {first.pid} on {socket.gethostname()}, since 20" in second.summary["error"]["message"]


def test_the_lock_of_a_killed_run_is_free_at_once(append: Append) -> None:
    first = between_batches(append)
    os.kill(first.pid, signal.SIGKILL)
    assert first.end().code == -9
    pace(append, slow=False)
    second = append.project.sync()
    assert second.code == 0, second.stdout
    assert append.content() == append.project.rows()
    assert append.project.statuses() == ["ABANDONED", "SUCCESS"]


def test_a_run_that_lost_its_lock_while_stopped_writes_nothing_more(append: Append) -> None:
    zombie = between_batches(append)
    stop_outside_of_transactions(append, zombie)
    lose_lock(append)
    pace(append, slow=False)
    heir = append.project.sync()
    assert heir.code == 0, heir.stdout
    assert append.content() == append.project.rows()
    append.project.mart("UPDATE mart SET searches = -1")  # what the zombie would still write is old
    written = rows_ever_written(append)
    os.kill(zombie.pid, signal.SIGCONT)
    ended = zombie.end()
    assert ended.code == 1
    assert rows_ever_written(append) == written
    assert ended.summary["error"]["code"] in ("VOIDED", "LOCK_LOST")
    assert append.project.statuses() == ["ABANDONED", "SUCCESS"]


def stop_outside_of_transactions(made: Append, run: Running) -> None:
    """A run that is stopped inside of one would keep everybody out of the ledger."""
    os.kill(run.pid, signal.SIGSTOP)
    while inside_of_a_transaction(made):
        os.kill(run.pid, signal.SIGCONT)
        time.sleep(0.05)
        os.kill(run.pid, signal.SIGSTOP)


def inside_of_a_transaction(made: Append) -> bool:
    if made.state is None:
        path = made.folder / ".retl" / "ledger.db"
        with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as ledger:
            try:
                ledger.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
        return False
    others = "datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    with made.database.connect() as admin:
        busy = admin.execute(f"SELECT 1 FROM pg_stat_activity WHERE {others} AND state <> 'idle'")
        return busy.fetchone() is not None


def lose_lock(made: Append) -> None:
    """As if the server had cut the session off, or somebody had removed the lock's file."""
    if made.state is None:
        for path in (made.folder / ".retl" / "locks").iterdir():
            path.unlink()
        return
    with made.database.connect() as admin:
        # of the ledger's kind: those that stand for runs at the target are of two numbers
        holders = "SELECT DISTINCT pid FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted"
        admin.execute(f"SELECT pg_terminate_backend(pid) FROM ({holders}) AS h")
        until(lambda: admin.execute(holders).fetchall() == [])


def rows_ever_written(made: Append) -> list[tuple[object, ...]]:
    """Every row with the transaction that wrote it."""
    with made.database.connect() as connection:
        return connection.execute(
            "SELECT xmin::text, user_id, searches FROM crm.users ORDER BY 1, 2"
        ).fetchall()


STOPPED = """
with ledger._database.transaction():
    ledger._database.change("UPDATE retl_locks SET since = since")
    print("inside", flush=True)
    os.kill(os.getpid(), 19)
"""


@pytest.mark.parametrize("words", [["sync"], ["sync", "--dry-run"], ["runs"]])
def test_a_ledger_that_a_stopped_process_keeps_busy_is_75_and_no_failure(
    tmp_path: Path, redis_server: servers.RedisServer, words: list[str]
) -> None:
    workshop = Workshop(tmp_path / "project")
    workshop.use(redis=redis_server)
    workshop.sync("users")
    workshop.json("sync")
    other = child("file:.retl", workshop.folder, STOPPED)
    try:
        assert line(other) == "inside"
        said = workshop.retl(*words, "--output", "json")
        if words == ["sync"]:  # who only reads is not kept waiting
            (blocked,) = said.document["syncs"]
            assert (said.code, blocked["status"]) == (75, "BLOCKED")
            assert blocked["error"]["code"] == "STATE_BUSY"
        else:
            assert said.code == 0
    finally:
        kill(other)
    assert workshop.json("sync")["syncs"][0]["unchanged"] == ROWS


def test_a_ledger_in_the_middle_of_a_commit_is_75_for_readers_too(
    tmp_path: Path, redis_server: servers.RedisServer
) -> None:
    workshop = Workshop(tmp_path / "project")
    workshop.use(redis=redis_server)
    workshop.sync("users")
    workshop.json("sync")
    with closing(
        sqlite3.connect(workshop.folder / ".retl" / "ledger.db", isolation_level=None)
    ) as committing:
        committing.execute("BEGIN EXCLUSIVE")
        for words in (["sync"], ["sync", "--dry-run"], ["runs"]):
            said = workshop.retl(*words)
            assert said.code == 75, said.err
            assert "STATE_BUSY" in said.err + said.out
    assert workshop.retl("sync").code == 0


def test_a_ledger_that_cannot_be_written_is_a_failure(
    tmp_path: Path, redis_server: servers.RedisServer
) -> None:
    workshop = Workshop(tmp_path / "project")
    workshop.use(redis=redis_server)
    workshop.sync("users")
    workshop.json("sync")
    with closing(sqlite3.connect(workshop.folder / ".retl" / "ledger.db")) as damaged, damaged:
        damaged.execute("DROP TABLE retl_locks")
    said = workshop.retl("sync")
    assert said.code == 1
    assert "STATE_UNREADABLE" in said.err + said.out
