"""What becomes of every batch, whatever a target answers: classification, retry, halving, doubt.

The ledger is real, the target remembers objects; what is asserted is what the target holds, what it was
sent, and what the ledger knows.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tenacity import wait_random_exponential

from retl.delivery import lane as delivering
from retl.delivery.answered import refused_rows, rows_with
from retl.delivery.failure_rate import FailureRate
from retl.destinations.batch import (
    ABSENT,
    PRESENT,
    UNKNOWN,
    WRITTEN,
    Batch,
    Capabilities,
    Kind,
    Outcome,
    Pending,
    RowResult,
)
from retl.errors import Ambiguous, Later, LedgerError, Poisoned, Spent, Stopped, Systemic, Unavailable
from retl.ledger import open_ledger
from retl.model import Limits, Retry
from retl.net.gate import Gate
from retl.net.waits import Quota
from retl.observe import log
from retl.pace import limiter
from tests import inprocess
from tests.ledgers import take
from tests.target import Numbers, Scene, Target, World, begin, fails, says, tells, took, took_but

BUSY = RowResult(Kind.RETRY, "LOCKED", "somebody edits it")
BAD = RowResult(Kind.REJECTED, "23514", "a check says no")
DOUBT = Outcome(UNKNOWN)
NOT_SENT = Outcome(RowResult(Kind.RETRY))


def later(code: str = "503") -> Unavailable:
    return Unavailable(code, f"the target says {code}")


def lost() -> Ambiguous:
    return Ambiguous("RESET", "the connection was reset", hint="look at the network")


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    # the pauses are there, and short
    monkeypatch.setattr(limiter, "_PAUSES", wait_random_exponential(multiplier=0.001, max=30))
    ledger = open_ledger("file:.retl", tmp_path, environment=None)
    made = begin(ledger, tmp_path / ".retl")
    yield made
    made.lock.__exit__(None, None, None)
    ledger.close()


@pytest.fixture
def events() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """What was said, in order."""
    said: list[tuple[str, dict[str, Any]]] = []

    def hear(name: str, fields: Mapping[str, Any]) -> None:
        said.append((name, dict(fields)))

    log.listen(hear)
    yield said
    log._listeners.remove(hear)


def ends(scene: Scene) -> list[tuple[int, int, str, Outcome | None, int]]:
    """Per batch in the ledger: rows, status, outcome, attempts."""
    return [(b.first, b.last, b.status, b.outcome, b.attempts) for b in scene.recorded]


# --- the plain way


def test_every_batch_arrives_once_in_order_and_is_acknowledged(scene: Scene) -> None:
    delivery = scene.delivery()
    delivery.drain(scene.batches(10, 4))
    assert scene.world.spans == [(0, 3), (4, 7), (8, 9)]
    assert scene.world.objects == {row: f"value {row}" for row in range(10)}
    assert ends(scene) == [
        (first, last, "done", Outcome(WRITTEN), 1) for first, last in [(0, 3), (4, 7), (8, 9)]
    ]
    assert [(one.first, one.last, one.attempts, one.status) for one in delivery.answered] == [
        (0, 3, 1, "done"), (4, 7, 1, "done"), (8, 9, 1, "done")
    ]  # fmt: skip
    assert all(0 < one.seconds < 60 for one in delivery.answered)
    assert delivery.retries == 0


def test_one_lane_is_one_connection_for_the_whole_run(scene: Scene) -> None:
    delivery = scene.delivery()
    delivery.drain(scene.batches(4, 2))
    delivery.drain(scene.batches(4, 2))
    assert (scene.world.opened, scene.world.closed) == (1, 0)
    delivery.close()
    assert scene.world.closed == 1


def test_the_ledger_knows_a_batch_before_the_target_gets_it(scene: Scene) -> None:
    known: list[list[str]] = []

    def step(target: Target, batch: Batch) -> Outcome:
        known.append([b.status for b in scene.recorded if b.batch_id == batch.id])
        return Outcome(WRITTEN)

    scene.world.answers.extend([step] * 3)
    scene.delivery().drain(scene.batches(6, 2))
    assert known == [["open"]] * 3


@pytest.mark.parametrize(
    ("rows", "size", "opened"),
    [
        (0, 5, []),
        (1000, 5, [128, 72]),
        (40_000, 1000, [16, 16, 8]),
        (12_000, 200, [50, 10]),
        (12_000, 199, [51, 10]),
    ],
)
def test_few_batches_are_open_at_once_and_more_where_they_are_small(
    scene: Scene, events: list[tuple[str, dict[str, Any]]], rows: int, size: int, opened: list[int]
) -> None:
    scene.delivery().drain(scene.batches(rows, size))
    said = [fields for name, fields in events if name == "batches_opened"]
    assert said == [{"batches": number} for number in opened]
    assert len(scene.world.objects) == rows


def test_every_step_of_a_batch_is_said(scene: Scene, events: list[tuple[str, dict[str, Any]]]) -> None:
    scene.world.answers.append(fails(later()))
    (batch,) = scene.batches(3, 3)
    scene.delivery(key_window=60.0).drain([batch])
    assert [one for one in events if one[0].startswith("batch_")] == [
        ("batch_intended", {"batch": batch.id}),
        ("batch_sending", {"batch": batch.id, "rows": 3, "attempt": 1}),
        ("batch_sending", {"batch": batch.id, "rows": 3, "attempt": 2}),
        ("batch_answered", {"batch": batch.id}),
        ("batch_acknowledged", {"batch": batch.id, "rows": 3, "attempts": 2}),
    ]


def test_what_is_said_of_every_batch_is_for_those_who_look_for_a_fault(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    scene.world.answers.extend([says(Pending("job-1", 0)), fails(later())])
    scene.world.evidence.append(says(Outcome(WRITTEN)))
    with inprocess.own_state():
        log.configure("json", "debug")
        scene.delivery(key_window=60.0).drain(scene.batches(4, 2))
        scene.delivery().drain([])
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert {line["event"] for line in lines} >= {"batch_sending", "batch_answered", "batch_acknowledged"}
    assert {line["level"] for line in lines} == {"debug"}


def test_a_split_batch_counts_no_rows_of_its_own(
    scene: Scene, events: list[tuple[str, dict[str, Any]]]
) -> None:
    scene.world.poison = {0}
    scene.delivery().drain(scene.batches(2, 2))
    assert [fields["rows"] for name, fields in events if name == "batch_acknowledged"] == [0, 1, 1]


# --- several lanes


@pytest.mark.parametrize("lanes", [3, 33])  # a pool has 32 threads at most where nobody says how many
def test_lanes_share_the_work_and_close_each_their_connection(scene: Scene, lanes: int) -> None:
    together = threading.Barrier(lanes, timeout=10)

    def meet(target: Target, batch: Batch) -> Outcome:
        together.wait()
        return took()(target, batch)  # type: ignore[return-value]

    scene.world.answers.extend([meet] * lanes)
    delivery = scene.delivery(lanes=lanes)
    delivery.drain(scene.batches(lanes * 10, 2))
    assert scene.world.opened == lanes
    assert scene.world.objects.keys() == set(range(lanes * 10))
    assert {status for _, _, status, _, _ in ends(scene)} == {"done"}
    delivery.close()
    assert scene.world.closed == lanes


def test_lanes_are_named_and_carry_the_context_of_the_run(scene: Scene) -> None:
    names: list[str] = []
    bound: list[Any] = []

    def look(target: Target, batch: Batch) -> Outcome:
        names.append(threading.current_thread().name)
        bound.append(log.structlog.contextvars.get_contextvars().get("run_id"))
        return Outcome(WRITTEN)

    scene.world.answers.extend([look] * 4)
    with log.bound(run_id="run-1"):
        scene.delivery(lanes=2).drain(scene.batches(4, 1))
    assert all(name.startswith("retl-lane") for name in names)
    assert bound == ["run-1"] * 4


def test_what_stops_one_lane_stops_all_and_is_told_before_a_mere_stop(scene: Scene) -> None:
    both = threading.Barrier(2, timeout=10)

    def broken(target: Target, batch: Batch) -> Outcome:
        both.wait()
        raise Systemic("42501", "permission denied")

    def stopped(target: Target, batch: Batch) -> Outcome:
        both.wait()
        raise Stopped(signal.SIGTERM)

    for first, second in ((broken, stopped), (stopped, broken)):
        scene.world.answers.extend([first, second])
        delivery = scene.delivery(lanes=2)
        with pytest.raises(Systemic, match="permission denied"):
            delivery.drain(scene.batches(40, 1))
        assert [b[2:4] for b in ends(scene)] == [("done", NOT_SENT)] * 40
    assert len(scene.world.sent) == 4
    assert scene.world.objects == {}


def test_the_other_lanes_finish_the_batch_in_hand_and_take_no_other(scene: Scene) -> None:
    both = threading.Barrier(2, timeout=10)

    def broken(target: Target, batch: Batch) -> Outcome:
        both.wait()
        raise Systemic("42501", "permission denied")

    def slow(target: Target, batch: Batch) -> Outcome:
        both.wait()
        patience = time.monotonic() + 10
        while not delivery._left and time.monotonic() < patience:
            time.sleep(0.001)
        return took()(target, batch)  # type: ignore[return-value]

    scene.world.answers.extend([slow, broken])
    delivery = scene.delivery(lanes=2)
    with pytest.raises(Systemic):
        delivery.drain(scene.batches(200, 1))
    assert len(scene.world.sent) == 2
    assert len(scene.world.objects) == 1
    assert len(scene.recorded) == 128  # what lies beyond was never opened


def test_a_window_is_opened_when_the_one_before_is_used_up(scene: Scene) -> None:
    opened: list[int] = []

    def look(target: Target, batch: Batch) -> Outcome:
        opened.append(len(scene.recorded))
        return Outcome(WRITTEN)

    scene.world.answers.extend([look] * 134)
    scene.delivery().drain(scene.batches(134, 1))
    assert opened == [128] * 128 + [134] * 6


# --- not now


def test_a_target_that_is_busy_is_tried_again_and_takes_it(scene: Scene) -> None:
    scene.world.answers.extend([fails(later()), fails(later()), took(), fails(later())])
    delivery = scene.delivery()
    delivery.drain(scene.batches(4, 2))
    assert scene.world.spans == [(0, 1)] * 3 + [(2, 3)] * 2
    assert scene.world.asked == []
    assert ends(scene) == [(0, 1, "done", Outcome(WRITTEN), 3), (2, 3, "done", Outcome(WRITTEN), 2)]
    assert delivery.retries == 3


def test_a_target_that_stays_busy_ends_the_run_and_nothing_is_in_doubt(scene: Scene) -> None:
    scene.world.answers.extend([took(), *[fails(later())] * 3])
    delivery = scene.delivery()
    with pytest.raises(Unavailable, match="the target says 503"):
        delivery.drain(scene.batches(6, 2))
    assert scene.world.spans == [(0, 1)] + [(2, 3)] * 3
    assert ends(scene) == [
        (0, 1, "done", Outcome(WRITTEN), 1),
        (2, 3, "done", NOT_SENT, 3),
        (4, 5, "done", NOT_SENT, 0),
    ]
    assert delivery.retries == 2
    assert rows_with(delivery.answered, Kind.RETRY) == 4


def test_a_batch_answered_with_again_is_tried_again(scene: Scene) -> None:
    scene.world.answers.append(says(Outcome(BUSY)))
    scene.delivery().drain(scene.batches(2, 2))
    assert ends(scene) == [(0, 1, "done", Outcome(WRITTEN), 2)]


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [
        (BUSY, "LOCKED", "somebody edits it"),
        (RowResult(Kind.RETRY), "TARGET_BUSY", "the target is busy"),
    ],
)
def test_a_batch_answered_with_again_for_ever_says_why(
    scene: Scene, answer: RowResult, code: str, message: str
) -> None:
    scene.world.answers.extend([says(Outcome(answer))] * 3)
    with pytest.raises(Unavailable) as caught:
        scene.delivery().drain(scene.batches(2, 2))
    assert (caught.value.code, caught.value.message) == (code, message)
    assert ends(scene) == [(0, 1, "done", NOT_SENT, 3)]


def test_what_stops_for_good_is_tried_once(scene: Scene) -> None:
    scene.world.answers.append(fails(Systemic("28P01", "wrong password")))
    delivery = scene.delivery()
    with pytest.raises(Systemic, match="wrong password"):
        delivery.drain(scene.batches(6, 2))
    assert scene.world.spans == [(0, 1)]
    assert [(b[2:]) for b in ends(scene)] == [("done", NOT_SENT, n) for n in (1, 0, 0)]
    assert delivery.retries == 0
    assert rows_with(delivery.answered, Kind.REJECTED) == 0


def test_a_bug_of_an_adapter_stops_the_run_and_leaves_its_batch_in_doubt(scene: Scene) -> None:
    scene.world.answers.append(fails(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError):
        scene.delivery().drain(scene.batches(4, 2))
    assert ends(scene) == [(0, 1, "open", None, 0), (2, 3, "done", NOT_SENT, 0)]


def test_a_spent_day_ends_the_run_and_the_rest_waits(scene: Scene) -> None:
    scene.world.answers.append(fails(Spent("no calls left", restart=7200)))
    delivery = scene.delivery()
    with pytest.raises(Later) as caught:
        delivery.drain(scene.batches(4, 2))
    assert caught.value.code == "BUDGET_SPENT"
    assert isinstance(caught.value.__cause__, Spent)
    assert len(scene.world.sent) == 1
    assert [b[2:] for b in ends(scene)] == [("done", NOT_SENT, 1), ("done", NOT_SENT, 0)]
    there_is_room = re.search(r"at (\S+ \S+) UTC", caught.value.message)
    assert there_is_room is not None
    pause = datetime.fromisoformat(f"{there_is_room[1]}+00:00") - datetime.now(UTC)
    assert timedelta(minutes=110) < pause < timedelta(minutes=121)
    with pytest.raises(Later):
        delivery.drain(scene.batches(2, 2))
    assert len(scene.world.sent) == 1


def test_a_quota_that_is_used_up_is_heeded_before_the_next_batch(scene: Scene) -> None:
    scene.world.answers.append(tells(Quota(0.0, 3600, daily=True)))
    with pytest.raises(Later, match="has used up"):
        scene.delivery().drain(scene.batches(4, 2))
    assert scene.world.spans == [(0, 1)]
    assert ends(scene) == [(0, 1, "done", Outcome(WRITTEN), 1), (2, 3, "done", NOT_SENT, 1)]


class Client(Target):
    def __init__(self, world: World, capabilities: Capabilities, gate: Gate) -> None:
        super().__init__(world, capabilities, gate)
        gate.permits()


@pytest.mark.parametrize(("target", "free"), [(Target, False), (Client, True)])
def test_a_batch_takes_a_permit_where_no_client_takes_one_per_request(
    scene: Scene, target: type[Target], free: bool
) -> None:
    found: list[bool] = []

    def look(lane: Target, batch: Batch) -> Outcome:
        permits = delivery.pace._turns
        assert permits is not None
        found.append(permits.acquire(blocking=False))
        if found[-1]:
            permits.release()
        return Outcome(WRITTEN)

    scene.world.answers.append(look)
    delivery = scene.delivery(limits=Limits(concurrency=1), target=target)
    delivery.drain(scene.batches(2, 2))
    assert found == [free]


# --- no answer


def test_a_lost_answer_is_settled_not_sent_again(scene: Scene) -> None:
    scene.world.answers.append(took_but(lost()))
    scene.world.evidence.append(says(Outcome(WRITTEN)))
    delivery = scene.delivery(idempotent=False)
    delivery.drain(scene.batches(2, 2))
    assert (scene.world.spans, scene.world.asked) == ([(0, 1)], [None])
    assert scene.world.asked_of == [(0, 1)]
    assert ends(scene) == [(0, 1, "done", Outcome(WRITTEN), 1)]


def test_a_question_that_fails_is_asked_again_and_nothing_is_sent_twice(scene: Scene) -> None:
    scene.world.answers.append(took_but(lost()))
    scene.world.evidence.extend([fails(later()), says(Outcome(WRITTEN))])
    scene.delivery(idempotent=False).drain(scene.batches(2, 2))
    assert (scene.world.spans, scene.world.asked) == ([(0, 1)], [None, None])
    assert ends(scene) == [(0, 1, "done", Outcome(WRITTEN), 2)]


def test_what_was_surely_not_applied_is_sent_again(scene: Scene) -> None:
    scene.world.answers.append(fails(lost()))
    scene.world.evidence.extend([fails(later()), says(Outcome(RowResult(Kind.RETRY)))])
    scene.delivery(idempotent=False).drain(scene.batches(2, 2))
    assert (scene.world.spans, scene.world.asked) == ([(0, 1)] * 2, [None, None])
    assert ends(scene) == [(0, 1, "done", Outcome(WRITTEN), 3)]


def test_where_twice_is_once_a_batch_without_evidence_is_sent_again(scene: Scene) -> None:
    scene.world.answers.append(took_but(lost()))
    scene.delivery().drain(scene.batches(2, 2))
    assert (scene.world.spans, scene.world.asked) == ([(0, 1)] * 2, [None])
    assert ends(scene) == [(0, 1, "done", Outcome(WRITTEN), 2)]


def test_where_twice_is_not_once_a_batch_without_evidence_stays_in_doubt(scene: Scene) -> None:
    scene.world.answers.append(took_but(lost()))
    delivery = scene.delivery(idempotent=False)
    delivery.drain(scene.batches(4, 2))
    assert scene.world.spans == [(0, 1), (2, 3)]
    assert ends(scene) == [(0, 1, "open", None, 0), (2, 3, "done", Outcome(WRITTEN), 1)]
    assert rows_with(delivery.answered, Kind.UNKNOWN) == 2
    assert delivery.answered[0].outcome == DOUBT


def test_at_least_once_sends_it_again(scene: Scene) -> None:
    scene.world.answers.append(took_but(lost()))
    scene.delivery(idempotent=False, resend_unknown=True).drain(scene.batches(2, 2))
    assert scene.world.spans == [(0, 1)] * 2


def test_evidence_about_some_rows_is_an_answer(scene: Scene) -> None:
    some = Outcome(UNKNOWN, {0: WRITTEN})
    scene.world.answers.append(fails(lost()))
    scene.world.evidence.append(says(some))
    scene.delivery().drain(scene.batches(2, 2))
    assert len(scene.world.sent) == 1
    assert ends(scene) == [(0, 1, "done", some, 1)]


@pytest.mark.parametrize(
    "answers",
    [
        [lost(), lost(), lost()],
        [lost(), later(), later()],
        [lost(), Systemic("28P01", "wrong password")],
        [lost(), Stopped(signal.SIGINT)],
        [lost(), Spent("no calls left")],
    ],
)
def test_whatever_comes_after_a_lost_answer_the_batch_stays_in_doubt(
    scene: Scene, answers: list[Exception]
) -> None:
    scene.world.answers.extend(map(fails, answers))
    delivery = scene.delivery()
    with pytest.raises((Unavailable, Systemic, Stopped, Later)) as caught:
        delivery.drain(scene.batches(4, 2))
    assert ends(scene) == [(0, 1, "done", DOUBT, len(answers)), (2, 3, "done", NOT_SENT, 0)]
    assert rows_with(delivery.answered, Kind.UNKNOWN) == 2
    if isinstance(answers[-1], Ambiguous):
        assert isinstance(caught.value, Unavailable)
        assert (caught.value.code, caught.value.message) == ("RESET", "the connection was reset")
        assert caught.value.hint == "look at the network"


def test_evidence_that_nothing_arrived_ends_the_doubt(scene: Scene) -> None:
    scene.world.answers.extend([fails(lost()), fails(later()), fails(later())])
    scene.world.evidence.append(says(NOT_SENT))
    with pytest.raises(Unavailable):
        scene.delivery().drain(scene.batches(2, 2))
    assert ends(scene) == [(0, 1, "done", NOT_SENT, 3)]


def test_an_answer_without_knowledge_leaves_doubt_behind(scene: Scene) -> None:
    scene.world.answers.append(says(DOUBT))
    delivery = scene.delivery()
    delivery.drain(scene.batches(2, 2))
    assert ends(scene) == [(0, 1, "done", DOUBT, 1)]


def test_a_lost_answer_to_the_question_is_asked_again(scene: Scene) -> None:
    scene.world.answers.append(fails(lost()))
    scene.world.evidence.append(fails(Ambiguous("CUT", "cut off", hint="wait")))
    scene.retry = Retry(attempts=1)
    with pytest.raises(Unavailable) as caught:
        scene.delivery().drain(scene.batches(2, 2))
    assert (caught.value.code, caught.value.message, caught.value.hint) == ("CUT", "cut off", "wait")
    assert isinstance(caught.value.__cause__, Ambiguous)
    assert ends(scene) == [(0, 1, "done", DOUBT, 1)]


# --- work that takes its time


def test_a_job_is_asked_after_by_its_handle_until_it_is_done(scene: Scene) -> None:
    known: list[str | None] = []

    def look(target: Target, batch: Batch) -> Pending:
        known.append(scene.recorded[0].handle)
        return Pending("job-1", 0)

    scene.world.answers.append(says(Pending("job-1", 0)))
    scene.world.evidence.extend([look, says(Pending("job-2", 0)), look, says(Outcome(WRITTEN))])
    scene.delivery().drain(scene.batches(2, 2))
    assert known == ["job-1", "job-2"]
    assert scene.world.asked == ["job-1", "job-1", "job-2", "job-1"]
    assert scene.world.asked_of == [(0, 1)] * 4
    assert len(scene.world.sent) == 1
    assert ends(scene) == [(0, 1, "done", Outcome(WRITTEN), 1)]


def test_a_handle_is_written_down_once(scene: Scene, events: list[tuple[str, dict[str, Any]]]) -> None:
    scene.world.answers.append(says(Pending("job-1", 0)))
    scene.world.evidence.extend([says(Pending("job-1", 0)), says(Outcome(WRITTEN))])
    (batch,) = scene.batches(2, 2)
    scene.delivery().drain([batch])
    assert [one for one in events if one[0] == "handle_attached"] == [
        ("handle_attached", {"batch": batch.id})
    ]


def test_a_job_that_was_taken_is_never_submitted_again(scene: Scene) -> None:
    scene.world.answers.append(says(Pending("job-1", 0)))
    scene.world.evidence.extend([fails(later()), fails(lost()), says(Outcome(WRITTEN))])
    delivery = scene.delivery()
    delivery.drain(scene.batches(2, 2))
    assert len(scene.world.sent) == 1
    assert scene.world.asked == ["job-1"] * 3
    assert ends(scene) == [(0, 1, "done", Outcome(WRITTEN), 3)]


def test_a_job_nobody_can_ask_after_stays_open_with_its_handle(scene: Scene) -> None:
    scene.world.answers.append(says(Pending("job-1", 0)))
    scene.world.evidence.extend([fails(later())] * 3)
    with pytest.raises(Unavailable):
        scene.delivery().drain(scene.batches(4, 2))
    first, second = scene.recorded
    assert (first.status, first.outcome, first.handle) == ("open", None, "job-1")
    assert (second.status, second.outcome, second.attempts) == ("done", NOT_SENT, 0)


def test_a_job_that_came_to_nothing_is_submitted_anew(scene: Scene) -> None:
    scene.world.answers.append(says(Pending("job-1", 0)))
    scene.world.evidence.append(says(NOT_SENT))
    scene.delivery().drain(scene.batches(2, 2))
    assert len(scene.world.sent) == 2
    assert ends(scene) == [(0, 1, "done", Outcome(WRITTEN), 2)]


def test_a_stop_ends_the_wait_for_a_job_which_stays_open(scene: Scene) -> None:
    def stop(target: Target, batch: Batch) -> Pending:
        scene.stop.request(signal.SIGTERM)
        return Pending("job-1", 3600)

    scene.world.answers.append(stop)
    with pytest.raises(Stopped):
        scene.delivery().drain(scene.batches(2, 2))
    assert [(b.status, b.handle) for b in scene.recorded] == [("open", "job-1")]


# --- bad rows


@pytest.mark.parametrize("poison", [{0}, {6}, {3, 4}, set(range(7))])
def test_a_bad_row_costs_only_itself(scene: Scene, poison: set[int]) -> None:
    scene.world.poison = poison
    delivery = scene.delivery()
    delivery.drain(scene.batches(7, 7))
    assert scene.world.objects.keys() == set(range(7)) - poison
    assert rows_with(delivery.answered, Kind.REJECTED) == len(poison)
    assert rows_with(delivery.answered, Kind.WRITTEN) == 7 - len(poison)
    refused = {
        one.first + row: one.outcome.result(row)
        for one in delivery.answered
        if one.outcome is not None
        for row in range(len(one.batch))
        if one.outcome.result(row).kind is Kind.REJECTED
    }
    assert refused == dict.fromkeys(poison, RowResult(Kind.REJECTED, "BAD_ROW", "a row is bad"))


def test_halves_are_known_before_they_are_sent_and_take_the_place_of_their_batch(scene: Scene) -> None:
    scene.world.poison = {1}
    delivery = scene.delivery()
    delivery.drain(scene.batches(2, 2))
    assert ends(scene) == [
        (0, 1, "split", None, 0),
        (0, 0, "done", Outcome(WRITTEN), 1),
        (1, 1, "done", Outcome(RowResult(Kind.REJECTED, "BAD_ROW", "a row is bad")), 1),
    ]
    assert [(one.first, one.last, one.status, one.attempts) for one in delivery.answered] == [
        (0, 1, "split", 1),
        (0, 0, "done", 1),
        (1, 1, "done", 1),
    ]


def test_what_stops_a_half_leaves_the_other_half_open(scene: Scene) -> None:
    scene.world.answers.extend([fails(Poisoned("BAD_ROW", "a row is bad")), fails(Systemic("28P01", "no"))])
    with pytest.raises(Systemic):
        scene.delivery().drain(scene.batches(2, 2))
    assert [b[2] for b in ends(scene)] == ["split", "done", "open"]


def test_the_tries_before_a_batch_was_split_count(scene: Scene) -> None:
    scene.world.poison = {0}
    scene.world.answers.append(fails(later()))
    delivery = scene.delivery()
    delivery.drain(scene.batches(2, 2))
    assert delivery.retries == 1


def test_rows_that_are_busy_are_sent_once_more_as_gapless_slices(scene: Scene) -> None:
    scene.world.answers.append(took({1: BUSY, 2: BUSY, 4: BUSY, 5: BAD, 7: BUSY}))
    batch = scene.batch(10, 17)
    delivery = scene.delivery()
    delivery.drain([batch])
    assert scene.world.spans == [(10, 17), (11, 12), (14, 14), (17, 17)]
    assert scene.world.objects.keys() == set(range(10, 18)) - {15}
    assert ends(scene) == [
        (10, 17, "done", Outcome(WRITTEN, {1: WRITTEN, 2: WRITTEN, 4: WRITTEN, 5: BAD, 7: WRITTEN}), 1)
    ]
    again = [replace(batch.slice(*span), round=1).id for span in scene.world.spans[1:]]
    assert [one.id for one in scene.world.sent] == [batch.id, *again]


def test_a_single_row_sent_once_more_has_an_id_of_its_own(scene: Scene) -> None:
    scene.world.answers.append(took({0: BUSY}, default=WRITTEN))
    scene.delivery().drain(scene.batches(1, 1))
    first, second = scene.world.sent
    assert (first.first, first.last) == (second.first, second.last)
    assert first.id != second.id


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        ([later()] * 3, {1: BUSY, 2: BUSY}),
        ([Poisoned("BAD_ROW", "bad")], {1: BUSY, 2: BUSY}),
        ([Spent("no calls left")], {1: BUSY, 2: BUSY}),
        ([lost()] * 3, {1: UNKNOWN, 2: UNKNOWN}),
        ([lost(), Poisoned("BAD_ROW", "bad")], {1: UNKNOWN, 2: UNKNOWN}),
    ],
)
def test_busy_rows_that_stay_so_wait_for_the_next_run(
    scene: Scene, answers: list[Exception], found: dict[int, RowResult]
) -> None:
    scene.world.answers.extend([took({0: BAD, 1: BUSY, 2: BUSY, 5: BUSY}), *map(fails, answers)])
    delivery = scene.delivery()
    spent = isinstance(answers[-1], Spent)  # a spent day lets nothing more out: the run comes back later
    with pytest.raises(Later) if spent else nullcontext():
        delivery.drain([scene.batch(0, 5)])
    last = BUSY if spent else WRITTEN
    assert ends(scene) == [(0, 5, "done", Outcome(WRITTEN, {0: BAD} | found | {5: last}), 1)]


def test_busy_rows_held_off_for_long_end_the_run_once_their_batch_is_recorded(scene: Scene) -> None:
    hour = Unavailable("429", "slow down", retry_after=3600)
    scene.world.answers.extend([took({1: BUSY, 2: BUSY}), fails(hour)])
    delivery = scene.delivery()
    with pytest.raises(Later, match="slow down") as caught:
        delivery.drain(scene.batches(8, 4))
    assert caught.value.code == "HELD_OFF"
    assert scene.world.spans == [(0, 3), (1, 2)]
    assert ends(scene) == [
        (0, 3, "done", Outcome(WRITTEN, {1: BUSY, 2: BUSY}), 1),
        (4, 7, "done", NOT_SENT, 0),
    ]


def test_a_slice_may_be_answered_row_by_row(scene: Scene) -> None:
    scene.world.answers.extend([took({1: BUSY, 2: BUSY}), took({1: BAD})])
    scene.delivery().drain([scene.batch(0, 3)])
    assert ends(scene)[0][3] == Outcome(WRITTEN, {1: WRITTEN, 2: BAD})


def test_where_twice_is_not_once_busy_rows_wait_for_the_next_run(scene: Scene) -> None:
    scene.world.answers.append(took({1: BUSY}))
    scene.delivery(idempotent=False).drain(scene.batches(2, 2))
    assert len(scene.world.sent) == 1
    assert ends(scene) == [(0, 1, "done", Outcome(WRITTEN, {1: BUSY}), 1)]


TWIN = RowResult(Kind.REJECTED, "23505", "that e-mail is taken")


class Chosen(Numbers):
    """Some rows, numbered from 0 as one batch."""

    def tuples(self, first: int, last: int) -> list[tuple[Any, ...]]:
        return [(row, f"value {row}") for row in self.positions[first : last + 1]]

    def __init__(self, positions: list[int]) -> None:
        object.__setattr__(self, "positions", positions)

    positions: list[int]


def repeated(scene: Scene, positions: list[int], number: int = 2) -> Batch:
    batch = scene.batch(0, len(positions) - 1)
    return replace(batch, rows=Chosen(positions), round=number)


def test_refused_rows_are_sent_again_as_one_batch_and_their_answers_replaced(scene: Scene) -> None:
    scene.world.answers.extend([took({0: TWIN, 1: BAD}), took(), took(default=TWIN), took({1: TWIN})])
    delivery = scene.delivery()
    delivery.drain(scene.batches(9, 3))
    assert refused_rows(delivery.answered, {"23505"}, deletes=False) == [0, 6, 7, 8]
    assert refused_rows(delivery.answered, {"23505"}, deletes=True) == []
    assert delivery.repeat(repeated(scene, [0, 6, 8]), [0, 6, 8]) == 2
    assert scene.world.spans == [(0, 2), (3, 5), (6, 8), (0, 2)]
    assert scene.world.objects.keys() == {0, 2, 3, 4, 5, 8}
    assert ends(scene) == [
        (0, 2, "done", Outcome(WRITTEN, {1: BAD}), 1),
        (3, 5, "done", Outcome(WRITTEN), 1),
        (6, 8, "done", Outcome(TWIN, {2: WRITTEN}), 1),
    ]
    assert rows_with(delivery.answered, Kind.REJECTED) == 3
    assert scene.world.opened == 1


def test_a_repetition_is_another_delivery_than_those_before_it(scene: Scene) -> None:
    scene.world.answers.extend([took({0: BUSY}), took(default=TWIN), took(default=TWIN)])
    delivery = scene.delivery()
    delivery.drain(scene.batches(2, 2))
    for number in (2, 4):
        delivery.repeat(repeated(scene, [0], number), [0])
    assert scene.world.spans == [(0, 1), (0, 0), (0, 0), (0, 0)]
    rounds = [scene.batch(0, 1), *(replace(scene.batch(0, 0), round=number) for number in (1, 2, 4))]
    assert [one.id for one in scene.world.sent] == [one.id for one in rounds]
    assert scene.world.objects.keys() == {0, 1}


def test_while_refused_rows_are_sent_again_the_ledger_holds_them_in_doubt(scene: Scene) -> None:
    known: list[list[Outcome | None]] = []

    def look(target: Target, batch: Batch) -> Outcome:
        known.append([one.outcome for one in scene.recorded])
        return Outcome(WRITTEN)

    scene.world.answers.extend([took({0: TWIN, 1: BAD}), took(default=TWIN), look])
    delivery = scene.delivery()
    delivery.drain(scene.batches(6, 3))
    delivery.repeat(repeated(scene, [0, 3, 4, 5]), [0, 3, 4, 5])
    assert known == [[Outcome(UNKNOWN, {1: BAD, 2: WRITTEN}), DOUBT]]
    assert rows_with(delivery.answered, Kind.WRITTEN) == 5


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (Poisoned("BAD_ROW", "bad"), {0: TWIN}),
        (Systemic("28P01", "wrong password"), {0: TWIN}),
        (lost(), {0: UNKNOWN}),
    ],
)
def test_a_repetition_that_fails_leaves_the_first_answer_unless_it_is_not_known(
    scene: Scene, error: Exception, found: dict[int, RowResult]
) -> None:
    scene.world.answers.extend([took({0: TWIN}), *[fails(error)] * 3])
    delivery = scene.delivery()
    delivery.drain(scene.batches(3, 3))
    with contextlib.suppress(Systemic, Unavailable):
        assert delivery.repeat(repeated(scene, [0]), [0]) == 0
    assert ends(scene) == [(0, 2, "done", Outcome(WRITTEN, found), 1)]


def test_a_repetition_that_is_held_off_for_long_ends_the_run_once_it_is_recorded(scene: Scene) -> None:
    hour = Unavailable("429", "slow down", retry_after=3600)
    scene.world.answers.extend([took(default=TWIN), took({1: BUSY}), fails(hour)])
    delivery = scene.delivery()
    delivery.drain(scene.batches(2, 2))
    with pytest.raises(Later, match="slow down"):
        delivery.repeat(repeated(scene, [0, 1]), [0, 1])
    assert ends(scene) == [(0, 1, "done", Outcome(WRITTEN, {1: BUSY}), 1)]


def test_a_refused_row_of_a_batch_that_was_split_is_found(scene: Scene) -> None:
    scene.world.answers.extend([fails(Poisoned("BAD_ROW", "bad")), took({0: TWIN}), took(default=TWIN)])
    delivery = scene.delivery()
    delivery.drain(scene.batches(2, 2))
    assert refused_rows(delivery.answered, {"23505", "23503"}, deletes=False) == [0, 1]
    assert delivery.repeat(repeated(scene, [0, 1]), [0, 1]) == 2
    assert scene.world.objects.keys() == {0, 1}
    assert [b[2:4] for b in ends(scene)][1:] == [("done", Outcome(WRITTEN))] * 2


# --- intents, where twice is not once


@pytest.mark.parametrize(("idempotent", "key_window"), [(True, 60.0), (False, 60.0)])
def test_bytes_and_key_are_minted_once_and_stored_until_the_answer(
    scene: Scene, idempotent: bool, key_window: float
) -> None:
    stored: list[tuple[bytes | None, str | None, str]] = []

    def look(target: Target, batch: Batch) -> Outcome:
        (row,) = scene.recorded
        stored.append((scene.stored(batch.id), row.idempotency_key, row.status))
        raise later() if len(stored) < 2 else lost()

    scene.world.answers.extend([look] * 2)
    scene.world.evidence.append(says(Outcome(WRITTEN)))
    (batch,) = scene.batches(2, 2)
    scene.delivery(idempotent=idempotent, key_window=key_window).drain([batch])
    assert stored == [(b"exactly 0 to 1", batch.id, "open")] * 2
    assert {(one.request, one.key) for one in scene.world.sent} == {(b"exactly 0 to 1", batch.id)}
    assert scene.stored(batch.id) is None
    assert [b[2:4] for b in ends(scene)] == [("done", Outcome(WRITTEN))]


def test_without_a_key_a_batch_is_intended_without_bytes(scene: Scene) -> None:
    known: list[str] = []

    def look(target: Target, batch: Batch) -> Outcome:
        known.extend(b.batch_id for b in scene.recorded)
        return Outcome(WRITTEN)

    scene.world.answers.append(look)
    first, second = scene.batches(4, 2)
    scene.delivery(idempotent=False).drain(iter([first, second]))
    assert known == [first.id]  # the second is not known before its turn
    assert [(one.request, one.key) for one in scene.world.sent] == [(None, None)] * 2


def test_where_twice_is_once_nothing_is_minted(scene: Scene) -> None:
    scene.delivery().drain(scene.batches(2, 2))
    assert [(one.request, one.key) for one in scene.world.sent] == [(None, None)]


def test_rows_that_cannot_be_a_request_are_refused_without_being_sent(scene: Scene) -> None:
    scene.world.poison = {1}
    delivery = scene.delivery(idempotent=False, key_window=60.0)
    delivery.drain(scene.batches(3, 3))
    assert scene.world.spans == [(0, 0), (2, 2)]
    assert ends(scene) == [
        (0, 2, "split", None, 0),
        (0, 1, "split", None, 0),
        (0, 0, "done", Outcome(WRITTEN), 1),
        (1, 1, "done", Outcome(RowResult(Kind.REJECTED, "BAD_ROW", "a row is bad")), 1),
        (2, 2, "done", Outcome(WRITTEN), 1),
    ]
    assert delivery.retries == 0


# --- stopping


def test_a_stop_before_the_first_batch_sends_nothing(scene: Scene) -> None:
    scene.stop.request(signal.SIGINT)
    with pytest.raises(Stopped):
        scene.delivery().drain(scene.batches(4, 2))
    assert scene.world.sent == []
    assert [b[2:] for b in ends(scene)] == [("done", NOT_SENT, 0)] * 2


def test_a_stop_lets_the_batch_in_hand_finish(scene: Scene) -> None:
    def stop(target: Target, batch: Batch) -> Outcome:
        scene.stop.request(signal.SIGTERM)
        return took()(target, batch)  # type: ignore[return-value]

    scene.world.answers.append(stop)
    with pytest.raises(Stopped):
        scene.delivery().drain(scene.batches(4, 2))
    assert scene.world.objects.keys() == {0, 1}
    assert [b[2:] for b in ends(scene)] == [("done", Outcome(WRITTEN), 1), ("done", NOT_SENT, 0)]


def test_a_stop_during_a_pause_is_a_stop_and_no_failure(scene: Scene) -> None:
    def busy(target: Target, batch: Batch) -> Outcome:
        scene.stop.request(signal.SIGTERM)
        raise Unavailable("503", "busy", retry_after=3600)

    scene.world.answers.append(busy)
    with pytest.raises(Stopped):
        scene.delivery().drain(scene.batches(2, 2))
    assert ends(scene) == [(0, 1, "done", NOT_SENT, 1)]


def test_a_request_that_takes_its_time_is_interrupted_after_a_grace(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivering, "GRACE", 0.01)
    ended = threading.Event()

    class Slow(Target):
        def interrupt(self) -> None:
            ended.set()

        def write(self, batch: Batch) -> Outcome:
            scene.stop.request(signal.SIGTERM)
            assert ended.wait(10)
            raise later()

    with pytest.raises(Stopped):
        scene.delivery(target=Slow).drain(scene.batches(2, 2))
    assert ends(scene) == [(0, 1, "done", NOT_SENT, 1)]


@pytest.mark.parametrize("idempotent", [True, False])
def test_a_zombie_sends_nothing_more(scene: Scene, idempotent: bool) -> None:
    scene.lock.release()
    with take(scene.ledger), pytest.raises(LedgerError, match="lost its lock"):
        scene.delivery(idempotent=idempotent).drain(scene.batches(4, 2))
    assert scene.world.sent == []


# --- whose fault it is


def test_a_target_that_refuses_everything_alike_stops_the_run(scene: Scene) -> None:
    scene.world.answers.extend([took(default=BAD)] * 3)
    delivery = scene.delivery()
    with pytest.raises(Systemic, match="refused all of the first 4 rows"):
        delivery.drain(scene.batches(8, 2), FailureRate(1.0))
    assert scene.world.spans == [(0, 1), (2, 3)]
    assert [b[2:4] for b in ends(scene)] == [("done", Outcome(BAD))] * 2 + [("done", NOT_SENT)] * 2


def test_rows_taken_are_counted_and_those_never_sent_are_not(scene: Scene) -> None:
    scene.world.answers.extend([took({0: BAD}), fails(Systemic("28P01", "no"))])
    failure_rate = FailureRate(1.0)
    with pytest.raises(Systemic):
        scene.delivery().drain(scene.batches(9, 3), failure_rate)
    assert (failure_rate.accepted, failure_rate.refused.total()) == (2, 1)


def test_every_end_is_counted_by_rows(scene: Scene) -> None:
    scene.world.answers.extend([took({0: BAD, 1: PRESENT}), took({0: UNKNOWN}, default=ABSENT)])
    delivery = scene.delivery()
    delivery.drain(scene.batches(8, 4))
    counts = {kind: rows_with(delivery.answered, kind) for kind in Kind}
    assert counts == {
        Kind.WRITTEN: 2,
        Kind.SKIPPED: 4,
        Kind.REJECTED: 1,
        Kind.UNKNOWN: 1,
        Kind.RETRY: 0,
        Kind.MERGED: 0,
        Kind.KEPT: 0,
        Kind.CONFLICT: 0,
    }


# --- what a dead run left open


def test_an_open_batch_of_a_dead_run_is_asked_after_until_there_is_an_answer(scene: Scene) -> None:
    scene.world.evidence.extend([says(Pending("job-2", 0)), fails(later()), says(Outcome(WRITTEN, {0: BAD}))])
    delivery = scene.delivery(idempotent=False)
    target = delivery.lane()
    assert delivery.resolve(target, scene.batch(0, 1), "job-1") == Outcome(WRITTEN, {0: BAD})
    assert scene.world.asked == ["job-1", "job-2", "job-1"]
    assert scene.world.asked_of == [(0, 1)] * 3
    assert scene.world.sent == []


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (lost(), DOUBT),
        (Poisoned("BAD_ROW", "a row is bad"), Outcome(RowResult(Kind.REJECTED, "BAD_ROW", "a row is bad"))),
    ],
)
def test_the_error_tells_what_became_of_an_open_batch(scene: Scene, error: Exception, found: Outcome) -> None:
    scene.world.evidence.append(fails(error))
    delivery = scene.delivery()
    assert delivery.resolve(delivery.lane(), scene.batch(0, 1), None) == found


def test_a_target_that_cannot_be_asked_ends_the_run_before_anything_is_believed(scene: Scene) -> None:
    scene.world.evidence.extend([fails(later())] * 3)
    delivery = scene.delivery()
    with pytest.raises(Unavailable):
        delivery.resolve(delivery.lane(), scene.batch(0, 1), "job-1")
    assert scene.world.asked == ["job-1"] * 3


def test_a_stop_ends_the_wait_for_a_dead_runs_job(scene: Scene) -> None:
    def stop(target: Target, batch: Batch) -> Pending:
        scene.stop.request(signal.SIGTERM)
        return Pending("job-1", 3600)

    scene.world.evidence.append(stop)
    delivery = scene.delivery()
    with pytest.raises(Stopped):
        delivery.resolve(delivery.lane(), scene.batch(0, 1), "job-1")
