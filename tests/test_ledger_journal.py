"""What a run writes down is there, whole, for whoever comes after it, and for nobody who came before."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from retl.destinations.batch import ABSENT, UNKNOWN, WRITTEN, Kind, Outcome, RowResult
from retl.errors import DefinitionError, InvariantBroken, LedgerError
from retl.ledger import (
    Acknowledgement,
    Checkpoint,
    Ledger,
    Reject,
    RejectChanges,
    RunEnd,
    open_ledger,
)
from tests.ledgers import batch, child, kill, ledger, line, start, take, url

__all__ = ["ledger", "url"]  # fixtures
OBJECT = "pg://crm/users"
NONE = RejectChanges()
MIXED = Outcome(
    WRITTEN,
    {0: RowResult(Kind.REJECTED, "23514", 'check "x" says nö'), 7: ABSENT, 9: UNKNOWN}
    | {row: RowResult(Kind.WRITTEN, ref=f"id-{row}") for row in range(10, 100)},
)


def running(ledger: Ledger, run_id: str = "run-1", sync: str = "users") -> int:
    """A run that has begun; its lock is let go at once, which changes no epoch."""
    with take(ledger, sync) as lock:
        ledger.begin(start(lock.epoch, run_id, sync))
        return int(lock.epoch)


def ended(run_id: str, epoch: int, status: str = "SUCCESS") -> RunEnd:
    return RunEnd(run_id, epoch, status, {"read": 3}, {"freeze": 0.5}, [{"code": "ROW_DROP"}], None)


def rejected(*keys: str, hash: str | None = "aa", code: str = "BLANK") -> RejectChanges:
    return RejectChanges([Reject(key, hash, "contract", code, "it is blank") for key in keys])


def test_a_run_reads_back_as_it_was_written(ledger: Ledger) -> None:
    epoch = running(ledger)
    (dead,) = ledger.dead_runs("users")
    begun = start(epoch)
    assert all(getattr(dead, name) == getattr(begun, name) for name in type(begun).__struct_fields__)
    assert (dead.status, dead.finished_at) == ("RUNNING", None)
    ledger.finish(ended("run-1", epoch), None, NONE)
    done = ledger.run("run-1")
    assert done is not None
    assert (done.status, done.counts, done.phases) == ("SUCCESS", {"read": 3}, {"freeze": 0.5})
    assert done.guards == [{"code": "ROW_DROP"}]
    assert done.finished_at is not None
    assert done.finished_at.utcoffset() == timedelta(0)
    assert ledger.dead_runs("users") == []


def test_outcomes_read_back_row_by_row(ledger: Ledger) -> None:
    epoch = running(ledger)
    ledger.open_batches("run-1", epoch, [batch(1), batch(0)])
    ledger.acknowledge(
        "run-1",
        epoch,
        [Acknowledgement("b0", MIXED, 2, 31), Acknowledgement("b1", Outcome(UNKNOWN), 1, 5, "GONE")],
    )
    first, second = ledger.batches("run-1")
    done = replace(batch(0), status="done", outcome=MIXED, attempts=2, duration_ms=31)
    assert first == replace(done, answered_at=first.answered_at)
    assert first.answered_at == second.answered_at is not None
    assert (second.status, second.error, second.outcome) == ("failed", "GONE", Outcome(UNKNOWN))


def test_a_stale_epoch_records_nothing(ledger: Ledger) -> None:
    zombie = running(ledger)
    ledger.open_batches("run-1", zombie, [batch()])
    newer = running(ledger, "run-2")
    assert newer > zombie
    before = ledger.run("run-1"), ledger.batches("run-1"), ledger.rejects()
    acts: tuple[Callable[[], object], ...] = (
        lambda: ledger.acknowledge("run-1", zombie, [Acknowledgement("b0", Outcome(WRITTEN))]),
        lambda: ledger.open_batches("run-1", zombie, [batch(1)]),
        lambda: ledger.intend("run-1", zombie, batch(1), b"body"),
        lambda: ledger.attach("run-1", zombie, "b0", "job-7"),
        lambda: ledger.split("run-1", zombie, "b0", [batch(2)]),
        lambda: ledger.record_delta("run-1", zombie, "delta-1", 3, {}),
        lambda: ledger.record_rejects("users", zombie, rejected("a")),
        lambda: ledger.finish(ended("run-1", zombie), Checkpoint("users", OBJECT, "run-1", zombie), NONE),
        lambda: ledger.heartbeat("run-1", zombie),
        lambda: ledger.abandon("run-2", zombie),
        lambda: ledger.begin(start(zombie, "run-3")),
    )
    for act in acts:
        with pytest.raises(LedgerError) as caught:
            act()
        assert caught.value.code == "LOCK_LOST"
    assert (ledger.run("run-1"), ledger.batches("run-1"), ledger.rejects()) == before
    assert ledger.request("run-1", "b1") is None
    assert ledger.checkpoints("users") == []
    assert ledger.run("run-3") is None


def test_whoever_recovers_records_under_its_own_epoch(ledger: Ledger) -> None:
    ledger.intend("run-1", running(ledger), batch(idempotency_key="k"), b"body")
    with take(ledger) as lock:
        assert [run.run_id for run in ledger.dead_runs("users")] == ["run-1"]
        ledger.abandon("run-1", lock.epoch)
        assert ledger.request("run-1", "b0") == b"body"
        ledger.acknowledge("run-1", lock.epoch, [Acknowledgement("b0", Outcome(WRITTEN))])
    assert ledger.request("run-1", "b0") is None
    assert ledger.batches("run-1")[0].idempotency_key == "k"
    assert ledger.runs()[0].status == "ABANDONED"


def test_an_unknown_batch_spoils_the_whole_group(ledger: Ledger) -> None:
    epoch = running(ledger)
    ledger.open_batches("run-1", epoch, [batch()])
    with pytest.raises(InvariantBroken) as caught:
        ledger.acknowledge("run-1", epoch, [Acknowledgement(b, Outcome(WRITTEN)) for b in ("b0", "nobody")])
    assert str(caught.value) == "run run-1 acknowledges a batch it never opened [BATCH_UNKNOWN]"
    assert ledger.batches("run-1")[0].status == "open"


def test_a_killed_run_leaves_its_batch_open_with_its_request(
    ledger: Ledger, url: str, tmp_path: Path
) -> None:
    process = child(
        url,
        tmp_path,
        """
lock = ledger.lock([], sync="users", host="there", pid=os.getpid())
ledger.begin(start(lock.epoch))
ledger.intend("run-1", lock.epoch, batch(idempotency_key="k-1"), b"\\x00exactly these bytes")
ledger.attach("run-1", lock.epoch, "b0", "job-7")
print("sent", flush=True)
time.sleep(60)
""",
    )
    assert line(process) == "sent"
    kill(process)
    assert ledger.batches("run-1") == [batch(handle="job-7", idempotency_key="k-1")]
    assert ledger.request("run-1", "b0") == b"\x00exactly these bytes"


def test_a_run_killed_while_it_finishes_has_not_finished(ledger: Ledger, url: str, tmp_path: Path) -> None:
    process = child(
        url,
        tmp_path,
        """
class Deadly(list):
    def __iter__(self):
        yield Reject("a", None, "key", "KEY_NULL")
        os.kill(os.getpid(), 9)
lock = ledger.lock([], sync="users", host="there", pid=os.getpid())
ledger.begin(start(lock.epoch))
end = RunEnd("run-1", lock.epoch, "SUCCESS")
ledger.finish(end, Checkpoint("users", "o", "run-1", lock.epoch), RejectChanges(Deadly()))
""",
    )
    process.communicate()
    assert process.returncode == -9
    assert [run.status for run in ledger.dead_runs("users")] == ["RUNNING"]
    assert ledger.checkpoints("users") == []
    assert ledger.rejects() == []
    assert (ledger.chains(), ledger.verify("users")) == ([], [])
    ledger.abandon("run-1", running(ledger, "run-2"))
    assert ([one.head_no for one in ledger.chains()], ledger.verify("users")) == ([1], [])


def test_what_a_batch_returns_is_there_until_its_outcome_is(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "returns").write_bytes(b"0,\\x00\n1,\\x01\n7,\\x07\n")
    epoch = running(ledger)
    ledger.put_returned("run-1", "b0", tmp_path / "returns")
    assert ledger.returned("b0", tmp_path) is None, "nobody opened it"
    ledger.open_batches("run-1", epoch, [batch(0), batch(1)])
    for name in ("b0", "b1"):
        ledger.put_returned("run-1", name, tmp_path / "returns")
    ledger.forget_stored("users", {"run-1": {101}})  # a position in b1, which begins at 100
    first, second = (ledger.returned(name, tmp_path) for name in ("b0", "b1"))
    assert first is not None
    assert second is not None
    assert first.read_bytes() == (tmp_path / "returns").read_bytes()
    assert second.read_bytes() == b"0,\\x00\n7,\\x07\n"
    done = [Acknowledgement("b0", Outcome(WRITTEN))]
    ledger.acknowledge("run-1", epoch, done, stored=False)  # as if the process had died here
    assert ledger.returned("b0", tmp_path) is not None
    ledger.put_returned("run-1", "b0", tmp_path / "returns")
    ledger.tidy("users", 0)
    assert [ledger.returned(name, tmp_path) is None for name in ("b0", "b1")] == [True, False]
    ledger.acknowledge("run-1", epoch, [Acknowledgement("b1", Outcome(WRITTEN))])
    assert ledger.returned("b1", tmp_path) is None


def test_halves_take_the_place_of_their_batch(ledger: Ledger, tmp_path: Path) -> None:
    epoch = running(ledger)
    ledger.intend("run-1", epoch, batch(), b"too large")
    (tmp_path / "returns").write_bytes(b"x")
    ledger.put_returned("run-1", "b0", tmp_path / "returns")
    halves = [replace(batch(), batch_id="left", last=49), replace(batch(), batch_id="right", first=50)]
    ledger.split("run-1", epoch, "b0", halves)
    assert [(b.batch_id, b.status) for b in ledger.batches("run-1")] == [
        ("b0", "split"),
        ("left", "open"),
        ("right", "open"),
    ]
    assert ledger.request("run-1", "b0") is None
    assert ledger.returned("b0", tmp_path) is None


def test_deltas_are_those_that_the_snapshot_does_not_hold(ledger: Ledger) -> None:
    epochs = {}
    for run_id in ("run-1", "run-2", "run-3", "run-4"):
        epochs[run_id] = running(ledger, run_id)
        if run_id != "run-3":
            ledger.record_delta(run_id, epochs[run_id], f"delta-{run_id}", 5, {})
    assert [delta.delta for delta in ledger.deltas("users", OBJECT)] == [
        "delta-run-1",
        "delta-run-2",
        "delta-run-4",
    ]
    point = Checkpoint(
        "users",
        OBJECT,
        "run-4",
        epochs["run-4"],
        "snapshot-4",
        epochs["run-1"],
        newest=("run-4", "b0"),
    )
    ledger.finish(ended("run-4", epochs["run-4"]), point, NONE)
    assert [delta.delta for delta in ledger.deltas("users", OBJECT)] == ["delta-run-2", "delta-run-4"]
    assert ledger.deltas("users", "elsewhere") == []
    stored = ledger.checkpoint("users", OBJECT)
    assert stored is not None
    assert replace(stored, updated_at=None) == point
    assert ledger.checkpoints("users") == ledger.checkpoints_on(OBJECT) == [stored]


def test_where_nothing_was_delivered_there_is_no_checkpoint(ledger: Ledger) -> None:
    for number, name in enumerate("cab"):
        epoch = running(ledger, f"run-{number}")
        point = Checkpoint("users", name, f"run-{number}", epoch, baseline_rows=number)
        ledger.finish(ended(f"run-{number}", epoch), point, NONE)
        other = running(ledger, f"other-{number}", "others")
        ledger.finish(ended(f"other-{number}", other), replace(point, sync="others", epoch=other), NONE)
    assert ledger.checkpoint("users", "nowhere") is None
    assert ledger.checkpoint("nobody", "a") is None
    found = ledger.checkpoint("users", "a")
    assert found is not None
    assert (found.object, found.baseline_rows) == ("a", 1)
    assert [point.object for point in ledger.checkpoints("users")] == ["a", "b", "c"]
    assert [point.sync for point in ledger.checkpoints_on("a")] == ["others", "users"]


def delivered(ledger: Ledger, folder: Path, run_id: str, sync: str, object: str) -> int:
    """A run that left a delta, a snapshot, a checkpoint, and a batch in doubt with its request and returns."""
    with take(ledger, sync) as lock:
        ledger.begin(start(lock.epoch, run_id, sync, object))
        epoch = int(lock.epoch)
    (folder / "file").write_bytes(b"x")
    for name in (f"delta-{run_id}", f"snapshot-{run_id}"):
        ledger.put_file(name, folder / "file")
    ledger.record_delta(run_id, epoch, f"delta-{run_id}", 7, {"what": "ab"})
    ledger.intend(run_id, epoch, replace(batch(), batch_id=run_id), b"body")
    ledger.put_returned(run_id, run_id, folder / "file")
    ledger.finish(ended(run_id, epoch), Checkpoint(sync, object, run_id, epoch, f"snapshot-{run_id}"), NONE)
    return epoch


def held(ledger: Ledger, folder: Path, run_id: str, sync: str, object: str) -> list[bool]:
    """What of that is still there: delta, checkpoint, delta, snapshot, request and returns."""

    def readable(name: str) -> bool:
        try:
            ledger.get_file(name, folder)
        except LedgerError:
            return False
        return True

    assert (ledger.request(run_id, run_id) is None) is (ledger.returned(run_id, folder) is None)
    return [
        bool(ledger.deltas(sync, object)),
        ledger.checkpoint(sync, object) is not None,
        readable(f"delta-{run_id}"),
        readable(f"snapshot-{run_id}"),
        ledger.request(run_id, run_id) is not None,
    ]


@pytest.mark.parametrize("way", ["forget", "anew"])
def test_a_baseline_begins_anew_on_one_object_of_one_sync_and_nowhere_else(
    ledger: Ledger, tmp_path: Path, way: str
) -> None:
    delivered(ledger, tmp_path, "one", "users", OBJECT)
    delivered(ledger, tmp_path, "two", "users", "elsewhere")
    delivered(ledger, tmp_path, "three", "others", OBJECT)
    epoch = running(ledger)
    with pytest.raises(LedgerError):
        ledger.forget("users", OBJECT, epoch - 1)
    assert held(ledger, tmp_path, "one", "users", OBJECT) == [True] * 5
    if way == "forget":
        ledger.forget("users", OBJECT, epoch)
    else:
        ledger.record_delta("run-1", epoch, "delta-run-1", 3, {"what": "cd"}, restart=OBJECT)
        assert [(delta.delta, delta.delta_rows) for delta in ledger.deltas("users", OBJECT)] == [
            ("delta-run-1", 3)
        ]
    # its delta is history
    assert held(ledger, tmp_path, "one", "users", OBJECT) == [way == "anew", False, True, False, False]
    assert held(ledger, tmp_path, "two", "users", "elsewhere") == [True] * 5
    assert held(ledger, tmp_path, "three", "others", OBJECT) == [True] * 5


def test_a_delta_has_its_rows_and_fingerprints(ledger: Ledger) -> None:
    epoch = running(ledger)
    assert ledger.deltas("users", OBJECT) == []
    ledger.record_delta("run-1", epoch, "delta-1", 7, {"what": "cd"})
    (delta,) = ledger.deltas("users", OBJECT)
    assert (delta.run_id, delta.epoch, delta.status) == ("run-1", epoch, "RUNNING")
    assert (delta.delta, delta.delta_rows, delta.fingerprint) == ("delta-1", 7, {"what": "cd"})


def test_a_heartbeat_moves_that_of_its_own_run_only(ledger: Ledger) -> None:
    running(ledger, "other", "others")
    with take(ledger) as lock:
        ledger.begin(start(lock.epoch))
        before = {run.run_id: run.heartbeat_at for run in ledger.runs()}
        ledger.heartbeat("run-1", lock.epoch)
        after = {run.run_id: run.heartbeat_at for run in ledger.runs()}
        assert after["other"] == before["other"]
        assert before["run-1"] is not None
        assert after["run-1"] is not None
        assert after["run-1"] > before["run-1"]


def test_only_a_run_that_says_running_is_abandoned(ledger: Ledger) -> None:
    epochs = [running(ledger, f"run-{n}") for n in (1, 2, 3)]
    running(ledger, "other", "others")
    ledger.finish(ended("run-3", epochs[2]), None, NONE)
    assert [run.run_id for run in ledger.dead_runs("users")] == ["run-1", "run-2"]
    for run_id in ("run-1", "run-3"):
        ledger.abandon(run_id, epochs[2])
    found = {run.run_id: (run.status, run.finished_at is not None) for run in ledger.runs()}
    assert found == {
        "run-1": ("ABANDONED", True),
        "run-2": ("KILLED", False),  # nobody has the lock
        "run-3": ("SUCCESS", True),
        "other": ("KILLED", False),
    }


def test_what_is_said_of_a_batch_is_said_of_that_batch_of_that_run(ledger: Ledger) -> None:
    epoch = running(ledger)
    other = running(ledger, "run-2")
    ledger.open_batches("run-1", other, [batch(0), batch(1)])
    ledger.open_batches("run-2", other, [batch(0)])
    ledger.attach("run-1", other, "b0", "job-7")
    answer = Acknowledgement("b0", Outcome(WRITTEN), 2, 31, None, datetime(2026, 1, 2, tzinfo=UTC), 207)
    ledger.acknowledge("run-1", other, [answer])
    ledger.split("run-1", other, "b1", [replace(batch(), batch_id="half", first=100, last=149)])
    assert ledger.batches("run-1") == [
        replace(
            batch(0),
            status="done",
            outcome=Outcome(WRITTEN),
            handle="job-7",
            attempts=2,
            duration_ms=31,
            answered_at=answer.answered_at,
            http_status=207,
        ),
        replace(batch(1), status="split"),
        replace(batch(), batch_id="half", first=100, last=149),
    ]
    assert ledger.batches("run-2") == [batch(0)]
    assert epoch < other


def test_a_batch_opened_again_keeps_one_row_and_says_the_newest(ledger: Ledger) -> None:
    epoch = running(ledger)
    ledger.open_batches("run-1", epoch, [batch(0)])
    ledger.intend("run-1", epoch, batch(0, idempotency_key="k"), b"body")
    assert ledger.batches("run-1") == [batch(0, idempotency_key="k")]
    ledger.open_batches("run-1", epoch, [replace(batch(0), number=7)])
    assert ledger.batches("run-1") == [replace(batch(0), number=7)]
    ledger.intend("run-1", epoch, batch(1), None)
    assert ledger.request("run-1", "b1") is None


def test_a_run_ends_with_all_that_is_known_of_it(ledger: Ledger) -> None:
    epoch = running(ledger)
    running(ledger, "other", "others")
    error = {"code": "FAILED_RATE", "message": "too many"}
    end = RunEnd("run-1", epoch, "FAILED", {"read": 3}, {"freeze": 0.5}, [{"code": "ROW_DROP"}], error)
    ledger.finish(end, None, rejected("a"))
    run, other = ledger.run("run-1"), ledger.run("other")
    assert run is not None
    assert other is not None
    assert (run.status, run.counts, run.phases, run.guards, run.error) == (
        "FAILED", {"read": 3}, {"freeze": 0.5}, [{"code": "ROW_DROP"}], error
    )  # fmt: skip
    assert run.finished_at is not None
    assert (other.status, other.counts, other.finished_at) == ("KILLED", {}, None)
    assert [(r.sync, r.key) for r in ledger.rejects()] == [("users", "a")]


def test_a_checkpoint_replaces_the_one_before(ledger: Ledger) -> None:
    for rows in (3, 4):
        epoch = running(ledger, f"run-{rows}")
        point = Checkpoint("users", OBJECT, f"run-{rows}", epoch, baseline_rows=rows)
        ledger.finish(ended(f"run-{rows}", epoch), point, NONE)
    assert [point.baseline_rows for point in ledger.checkpoints("users")] == [4]


def test_a_checkpoint_is_as_old_as_it_says_or_else_as_the_end_of_its_run(ledger: Ledger) -> None:
    epoch = running(ledger)
    given = datetime(2026, 11, 21, 6, 0, 1, tzinfo=UTC)
    ledger.finish(ended("run-1", epoch), Checkpoint("users", "a", "run-1", epoch, updated_at=given), NONE)
    epoch = running(ledger, "run-2")
    ledger.finish(ended("run-2", epoch), Checkpoint("users", "b", "run-2", epoch), NONE)
    run = ledger.run("run-2")
    assert run is not None
    assert [point.updated_at for point in ledger.checkpoints("users")] == [given, run.finished_at]


def test_a_reject_met_again_is_one_reject_with_one_more_attempt(ledger: Ledger) -> None:
    first = running(ledger, "run-1")
    ledger.record_rejects("users", first, rejected("a", "a", "nul\x00 and ü"))
    ledger.finish(ended("run-1", first), None, rejected("a"))
    opened = {r.key: r for r in ledger.rejects("users")}
    assert {key: r.attempts for key, r in opened.items()} == {"a": 1, "nul\x00 and ü": 1}
    second = running(ledger, "run-2")
    ledger.record_rejects("users", second, rejected("a", hash="bb", code="LONG"))
    again = next(r for r in ledger.rejects("users") if r.key == "a")
    assert (again.attempts, again.hash, again.code, again.run_id) == (2, "bb", "LONG", "run-2")
    assert again.first_seen == opened["a"].first_seen
    assert again.last_seen > opened["a"].last_seen


def test_a_closed_reject_begins_anew_when_it_comes_back(ledger: Ledger) -> None:
    epoch = running(ledger, "run-1")
    ledger.record_rejects("users", epoch, rejected("a", "b"))
    epoch = running(ledger, "run-2")
    ledger.record_rejects(
        "users",
        epoch,
        RejectChanges(closed=[("a", "", "applied"), ("b", "", "withdrawn"), ("c", "", "applied")]),
    )
    assert ledger.rejects() == []
    assert [r.key for r in ledger.rejects(state="applied")] == ["a"]
    ledger.record_rejects("users", epoch, rejected("a"))
    assert [(r.key, r.attempts) for r in ledger.rejects()] == [("a", 1)]


def test_a_dismissed_reject_stays_dismissed_until_its_row_changes(ledger: Ledger) -> None:
    ledger.record_rejects("users", running(ledger, "run-1"), rejected("a", "b", "c"))
    assert ledger.dismiss("users", ["a", "nobody"]) == 1
    assert ledger.dismiss("users", None) == 2
    ledger.record_rejects("users", running(ledger, "run-2"), rejected("a"))
    ledger.record_rejects("users", running(ledger, "run-3"), rejected("b", hash="changed"))
    assert [r.key for r in ledger.rejects("users")] == ["b"]
    assert ledger.open_rejects() == {"users": 1}


def test_history_is_newest_first(ledger: Ledger) -> None:
    for number in (1, 2, 3):
        epoch = running(ledger, f"run-{number}")
        ledger.finish(
            ended(f"run-{number}", epoch, "SUCCESS_WITH_REJECTS" if number == 2 else "FAILED"), None, NONE
        )
    assert [run.run_id for run in ledger.runs("users", limit=2)] == ["run-3", "run-2"]
    last, good = ledger.run(), ledger.last_success("users")
    assert last is not None
    assert good is not None
    assert (last.run_id, good.run_id) == ("run-3", "run-2")
    assert ledger.runs("other") == []


def test_the_last_run_that_wrote_is_found_by_its_numbers_and_not_by_what_keys_look_like(
    ledger: Ledger,
) -> None:
    nothing = {"read": 9, "inserted": 0, "updated": 0, "refreshed": 0, "deleted": 0, "skipped": 9}
    written = [{**nothing, "deleted": 10}, {**nothing, "examples": [{"key": 'x","inserted":1'}]}, nothing]
    found = []
    for number, numbers in enumerate(written, 1):
        epoch = running(ledger, f"run-{number}")
        ledger.record_delta(f"run-{number}", epoch, f"delta-{number}", 9, {})
        last = ledger.last_written("users")  # nothing is known of a run that goes on
        assert last is not None
        found.append(last.run_id)
        ledger.finish(replace(ended(f"run-{number}", epoch), counts=numbers), None, NONE)
    assert found == ["run-1", "run-2", "run-3"]
    last = ledger.last_written("users")
    assert last is not None
    assert (last.run_id, last.written) == ("run-1", {"deleted": 10})
    assert ledger.last_written("other") is None


def test_a_renamed_sync_takes_all_its_state_along(ledger: Ledger) -> None:
    epoch = running(ledger)
    ledger.record_delta("run-1", epoch, "delta-1", 1, {})
    ledger.finish(ended("run-1", epoch), Checkpoint("users", OBJECT, "run-1", epoch), rejected("a"))
    ledger.rename("users", "people")
    assert [point.sync for point in ledger.checkpoints_on(OBJECT)] == ["people"]
    assert [r.sync for r in ledger.rejects()] == ["people"]
    assert len(ledger.deltas("people", OBJECT)) == 1
    assert running(ledger, "run-2", "people") > epoch
    with pytest.raises(LedgerError):
        ledger.heartbeat("run-1", epoch)
    running(ledger, "run-3", "users")
    with pytest.raises(DefinitionError):
        ledger.rename("users", "people")


def test_a_reset_forgets_what_was_delivered_and_its_files(ledger: Ledger, tmp_path: Path) -> None:
    epoch = running(ledger)
    (tmp_path / "x").write_bytes(b"x")
    for name in ("delta-1", "snapshot-1", "unrelated"):
        ledger.put_file(name, tmp_path / "x")
    ledger.record_delta("run-1", epoch, "delta-1", 1, {})
    ledger.intend("run-1", epoch, batch(), b"body")
    ledger.finish(
        ended("run-1", epoch), Checkpoint("users", OBJECT, "run-1", epoch, "snapshot-1", 0), rejected("a")
    )
    ledger.reset("users", "elsewhere")
    assert ledger.checkpoint("users", OBJECT) is not None
    ledger.reset("users", OBJECT)
    assert (ledger.checkpoints("users"), ledger.deltas("users", OBJECT)) == ([], [])
    assert ledger.request("run-1", "b0") is None
    ledger.get_file("unrelated", tmp_path)
    ledger.get_file("delta-1", tmp_path)  # it is history
    with pytest.raises(LedgerError):
        ledger.get_file("snapshot-1", tmp_path)
    assert len(ledger.rejects()) == len(ledger.runs()) == 1
    ledger.reset("users", None)
    assert ledger.rejects() == []


def test_pruning_keeps_every_run_the_baseline_stands_on(ledger: Ledger, tmp_path: Path) -> None:
    epochs = {}
    (tmp_path / "returns").write_bytes(b"x")
    for run_id in ("refused", "older", "compacted", "newer", "last"):
        epochs[run_id] = running(ledger, run_id)
        if run_id != "refused":
            ledger.record_delta(run_id, epochs[run_id], f"delta-{run_id}", 1, {})
        ledger.intend(run_id, epochs[run_id], replace(batch(), batch_id=run_id), b"body")
        ledger.put_returned(run_id, run_id, tmp_path / "returns")
        if run_id not in ("refused", "newer"):
            ledger.acknowledge(run_id, epochs[run_id], [Acknowledgement(run_id, Outcome(WRITTEN))])
        point = Checkpoint("users", OBJECT, run_id, epochs[run_id], "snapshot", epochs.get("compacted", 0))
        point = replace(point, newest=("compacted", "b0"))  # the target still has its mark
        ledger.finish(ended(run_id, epochs[run_id]), None if run_id == "refused" else point, NONE)
    assert ledger.prune("users", timedelta(days=365 * 100)).runs == 0
    assert ledger.prune("users", timedelta(days=-365 * 100), dry_run=True).runs == 2
    assert ledger.prune("users", timedelta(days=-365 * 100)).runs == 2
    assert {run.run_id for run in ledger.runs()} == {"compacted", "newer", "last"}
    assert ledger.batches("refused") == []
    assert ledger.request("refused", "refused") is None
    assert ledger.request("newer", "newer") == b"body"
    assert [ledger.returned(name, tmp_path) is None for name in ("refused", "newer")] == [True, False]


def test_run_files_come_back_byte_for_byte(ledger: Ledger, tmp_path: Path) -> None:
    inbox = tmp_path / "fetched"
    inbox.mkdir()
    for size in (0, 1, 8 * 1024 * 1024, 8 * 1024 * 1024 + 1):
        original = tmp_path / "original"
        original.write_bytes(bytes(range(251)) * (size // 251) + bytes(size % 251))
        ledger.put_file("delta-1.parquet", original)
        assert ledger.get_file("delta-1.parquet", inbox).read_bytes() == original.read_bytes()
    with pytest.raises(LedgerError):
        ledger.get_file("delta-2.parquet", inbox)
    for name in ("../x", "a/b", ".hidden", ""):
        with pytest.raises(ValueError, match="a run file's name"):
            ledger.put_file(name, tmp_path / "original")


def test_several_threads_may_use_one_ledger(ledger: Ledger) -> None:
    epoch = running(ledger)
    numbers = range(24)
    ledger.open_batches("run-1", epoch, [batch(n) for n in numbers])

    def acknowledge(lane: int) -> None:
        for n in numbers[lane::3]:
            ledger.acknowledge("run-1", epoch, [Acknowledgement(f"b{n}", Outcome(WRITTEN))])

    lanes = [threading.Thread(target=acknowledge, args=(lane,)) for lane in range(3)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    assert {b.status for b in ledger.batches("run-1")} == {"done"}


def test_a_run_survives_closing_and_opening(url: str, tmp_path: Path) -> None:
    first = open_ledger(url, tmp_path, environment=None)
    assert first.fresh
    epoch = running(first)
    first.close()
    second = open_ledger(url, tmp_path, environment=None)
    assert not second.fresh
    assert second.state_id == first.state_id
    assert second.dead_runs("users")[0].epoch == epoch
    assert running(second, "run-2") == epoch + 1
    second.close()
