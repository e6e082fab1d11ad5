"""One writer per sync and object; nobody is dead by the clock, and zombies are found out."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path

import psycopg
import pytest

from retl.errors import Later, LedgerError
from retl.ledger import Ledger
from tests.clock import waited
from tests.ledgers import child, kill, ledger, line, start, take, url

__all__ = ["ledger", "url"]  # fixtures
HOLD = """
lock = ledger.lock(["users", "pg://crm/users"], sync="users", host="there", pid=os.getpid())
ledger.begin(start(lock.epoch))
print(lock.epoch, flush=True)
sys.stdin.read()
"""
RACE = """
sys.stdin.readline()
began = time.monotonic()
try:
    lock = ledger.lock(["users", "pg://crm/users"], sync="users", host="there", pid=os.getpid())
    print("won", flush=True)
    sys.stdin.read()
except RetlError as error:
    print(error.exit_code, time.monotonic() - began, error, flush=True)
"""


def test_of_two_at_once_one_wins_and_the_other_learns_who(ledger: Ledger, url: str, tmp_path: Path) -> None:
    racers = [child(url, tmp_path, RACE) for _ in range(2)]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    said = {racer.pid: line(racer) for racer in racers}
    for racer in racers:
        kill(racer)
    (winner,) = [pid for pid, text in said.items() if text == "won"]
    (loser,) = [text for text in said.values() if text != "won"]
    code, taken, _ = loser.split(" ", 2)
    assert code == "75"
    assert float(taken) < waited(2)
    assert "LOCK_HELD" in loser
    assert f"pid {winner} on there, since 20" in loser


def test_a_killed_holder_holds_nothing(ledger: Ledger, url: str, tmp_path: Path) -> None:
    holder = child(url, tmp_path, HOLD)
    epoch = int(line(holder))
    with pytest.raises(Later, match=f"pid {holder.pid} on there"):
        take(ledger)
    kill(holder)
    deadline = time.monotonic() + 5  # a server needs a moment to see that its client is gone
    while True:
        try:
            lock = take(ledger)
            break
        except Later:
            assert time.monotonic() < deadline
    with lock:
        assert lock.epoch == epoch + 1
        lock.check()


def test_a_lock_is_free_at_once_when_it_is_released(ledger: Ledger) -> None:
    for _ in range(20):  # a server notes the end of a session a little later
        take(ledger).release()


def test_who_only_looks_keeps_no_run_away(ledger: Ledger) -> None:
    take(ledger).release()
    looking = [os.open(path, os.O_RDONLY) for path in ledger.lock_files.glob("*.lock")]
    for one in looking:
        fcntl.flock(one, fcntl.LOCK_SH)  # as `retl status` does for a moment, if a run has not ended
    threading.Timer(0.04, lambda: [os.close(one) for one in looking]).start()
    take(ledger).release()


def test_syncs_on_one_object_take_turns(ledger: Ledger) -> None:
    with take(ledger, "users"), pytest.raises(Later, match="pg://crm/users is locked by sync users"):
        take(ledger, "admins")
    with take(ledger, "admins") as lock:
        assert lock.epoch == 1


def test_a_refused_lock_leaves_nothing_locked(ledger: Ledger) -> None:
    with take(ledger, "users"), pytest.raises(Later):
        ledger.lock(["aaa", "pg://crm/users"], sync="admins", host="here", pid=1)
    with ledger.lock(["aaa"], sync="admins", host="here", pid=1):
        pass


def test_a_heartbeat_is_written_while_the_lock_is_held(ledger: Ledger) -> None:
    with take(ledger) as lock:
        ledger.begin(start(lock.epoch))
        before = ledger.dead_runs("users")[0].heartbeat_at
        ledger.heartbeat("run-1", lock.epoch)
        after = ledger.dead_runs("users")[0].heartbeat_at
    assert before is not None
    assert after is not None
    assert after > before


def lose(ledger: Ledger, url: str, tmp_path: Path) -> None:
    """Take the lock from under its holder."""
    if url.startswith("postgresql"):
        with psycopg.connect(url, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
    else:
        for path in (tmp_path / ".retl" / "locks").iterdir():
            path.unlink()
            path.touch()


def test_a_lost_lock_is_noticed_and_the_next_run_gets_it(ledger: Ledger, url: str, tmp_path: Path) -> None:
    with take(ledger) as lock:
        ledger.begin(start(lock.epoch))
        lock.check()
        lose(ledger, url, tmp_path)
        for act in (lock.check, lambda: ledger.heartbeat("run-1", lock.epoch)):
            with pytest.raises(LedgerError) as caught:
                act()
            assert caught.value.code == "LOCK_LOST"
        with take(ledger) as newer:
            assert newer.epoch == lock.epoch + 1
            with pytest.raises(LedgerError):
                ledger.record_delta("run-1", lock.epoch, "part-1", 1, {})
