"""What the history says of each sync, on either kind of ledger: its state, its reasons, what was told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from retl.app.freshness import UNKNOWN_AGE, State, states
from retl.app.report import gather
from retl.destinations.batch import UNKNOWN, WRITTEN, Outcome
from retl.ledger import Acknowledgement, Ledger, Reject, RejectChanges, RunEnd
from retl.project.definitions import Sync
from tests.ledgers import batch, ledger, start, take, url

__all__ = ["ledger", "url"]  # fixtures
NONE = RejectChanges()


def sync(**parts: Any) -> Sync:
    given = {"name": "users", "source": {"table": "t"}, "key": ["id"], "destination": {"type": "redis"}}
    return Sync.model_validate(given | parts)


def state(ledger: Ledger, folder: Path, **parts: Any) -> State:
    (found,) = states([sync(**parts)], ledger, folder / "gone.duckdb")
    return found


def ended(ledger: Ledger, status: str, rejects: RejectChanges = NONE, **end: Any) -> None:
    with take(ledger) as lock:
        ledger.begin(start(lock.epoch))
        ledger.finish(RunEnd("run-1", lock.epoch, status, **end), None, rejects)


@pytest.mark.parametrize(
    ("status", "wanted"),
    [
        ("FAILED", "`retl show run-1`: TARGET_BUSY"),
        ("REFUSED", "`retl show run-1`: TARGET_BUSY"),
        ("INTERRUPTED", "run it: it carries on where it stopped"),
        ("ABANDONED", "run it: it carries on where it stopped"),
        ("SUCCESS", ""),
    ],
)
def test_the_next_step_follows_from_how_the_last_run_ended(
    ledger: Ledger, tmp_path: Path, status: str, wanted: str
) -> None:
    ended(ledger, status, error={"code": "TARGET_BUSY", "message": "", "hint": None})
    assert state(ledger, tmp_path).next == wanted
    assert state(ledger, tmp_path, enabled=False).next == ""
    assert state(ledger, tmp_path, enabled=False).status == "PAUSED"


def test_a_success_of_a_time_to_come_is_not_fresh(ledger: Ledger, tmp_path: Path) -> None:
    """The clock was a day ahead, and was set back."""
    ended(ledger, "SUCCESS")
    known = sync(freshness="1h")
    (found,) = states([known], ledger, None, ledger.now() - timedelta(days=1))
    assert (found.age_seconds, found.stale) == (None, True)
    assert found.last_success is not None
    assert found.next == f"run it: {UNKNOWN_AGE}"
    (found,) = states([known], ledger, None, ledger.now() - timedelta(seconds=30))
    assert (found.age_seconds, found.stale) == (0.0, False), "hosts of one ledger differ a little"


def test_the_last_run_is_the_one_that_began_last_whatever_the_clock_showed(
    ledger: Ledger, tmp_path: Path
) -> None:
    for number, status in enumerate(("SUCCESS", "FAILED"), 1):
        with take(ledger) as lock:
            began = datetime(2026, 11, 21, 6, 0, tzinfo=UTC) + timedelta(days=-number)
            ledger.begin(replace(start(lock.epoch, f"run-{number}"), started_at=began))
            ledger.finish(RunEnd(f"run-{number}", lock.epoch, status), None, NONE)
    last = ledger.last_run("users")
    assert last is not None
    assert last.run_id == "run-2"
    assert [one.run_id for one in ledger.runs("users")] == ["run-2", "run-1"]
    assert state(ledger, tmp_path).status == "FAILED"


def test_doubt_comes_before_everything_else(ledger: Ledger, tmp_path: Path) -> None:
    with take(ledger) as lock:
        ledger.begin(start(lock.epoch))
        ledger.record_delta("run-1", lock.epoch, "run-1.part", 200, {})
        ledger.open_batches("run-1", lock.epoch, [batch(0), batch(1)])
        answers = [Acknowledgement("b0", Outcome(WRITTEN, {3: UNKNOWN, 7: UNKNOWN}))]
        ledger.acknowledge("run-1", lock.epoch, answers)
        assert state(ledger, tmp_path, first_run="send", write="append").in_doubt == 0, (
            "they may be on the way"
        )
    killed = state(ledger, tmp_path, first_run="send", write="append")
    assert (killed.status, killed.in_doubt, killed.next[:6]) == ("KILLED", 102, "run it"), (
        "a run may find out"
    )
    ledger.count_failures("redis", 500, "HTTP_UNREACHED")
    assert state(ledger, tmp_path).next.startswith("wait ")
    with take(ledger) as lock:
        ledger.abandon("run-1", lock.epoch)
    found = state(ledger, tmp_path, first_run="send", write="append")
    assert (found.in_doubt, found.breaker) == (102, "redis")
    assert found.next == "`retl resolve --sync users`: 102 rows in doubt"
    assert (state(ledger, tmp_path).in_doubt, state(ledger, tmp_path).breaker) == (0, "redis")


def test_open_rejects_are_told_by_reason_with_a_few_keys(ledger: Ledger) -> None:
    many = [Reject(f"k{n}", None, "contract", "TOO_LONG", "email is too long") for n in range(9)]
    opened = [*many, Reject("x", None, "target", "23505", None)]
    ended(ledger, "SUCCESS_WITH_REJECTS", RejectChanges(opened))
    assert ledger.reject_reasons("users", 10, 3) == [
        ("contract", "TOO_LONG", "email is too long", 9, ["k0", "k1", "k2"]),
        ("target", "23505", None, 1, ["x"]),
    ]
    assert len(ledger.reject_reasons("users", 1, 3)) == 1
    run = ledger.run("run-1")
    assert run is not None
    assert [list(one.keys) for one in gather(ledger, run, masked=True).open] == [["***"], ["***"]]
    assert gather(ledger, run, masked=False).open[1].keys == ["x"]


def test_what_was_told_is_remembered_per_recipient_and_sync(ledger: Ledger) -> None:
    assert ledger.reported("a", "users") is None
    ledger.remember("a", "users", frozenset({"stale", "failure"}))
    assert ledger.reported("a", "users") == {"stale", "failure"}
    assert ledger.reported("b", "users") is None
    assert ledger.reported("a", "user") is None
    ledger.remember("a", "users", frozenset())
    assert ledger.reported("a", "users") == frozenset()


def test_a_renamed_sync_is_known_under_its_new_name(ledger: Ledger) -> None:
    ledger.remember("a", "people", frozenset())
    ledger.remember("b", "people", frozenset({"refusal"}))
    ledger.remember("a", "users", frozenset({"failure"}))
    ledger.rename("users", "people")
    assert [ledger.reported(alert, "people") for alert in ("a", "b")] == [{"failure"}, None]
    assert ledger.reported("a", "users") is None


def test_a_run_whose_process_is_gone_is_told_from_one_that_is_alive(ledger: Ledger, tmp_path: Path) -> None:
    """The ledger says RUNNING until the next run, but the lock is free, or a later run's."""
    killed = "run it: it was killed (pid 7 on there); it carries on where it stopped"
    with take(ledger) as lock:
        ledger.begin(replace(start(lock.epoch), host="there", pid=7))
        alive = state(ledger, tmp_path)
        assert ledger.runs()[0].status == "RUNNING"
    assert (alive.status, alive.next) == ("RUNNING", "")
    found = state(ledger, tmp_path)
    assert (found.status, found.next) == ("KILLED", killed)
    with take(ledger) as lock:
        found = state(ledger, tmp_path)
        assert (found.status, found.next) == ("KILLED", killed)
        assert {one.status for one in (*ledger.runs(), *ledger.runs_like("run-1"))} == {"KILLED"}
    assert [run.status for run in ledger.dead_runs("users")] == ["RUNNING"], "as the ledger has it"
