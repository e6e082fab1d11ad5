"""A run's answers on their way to the ledger: what is gathered, what is durable at once, what stays open."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from retl.delivery.answered import Answered
from retl.destinations.batch import MODES, UNKNOWN, WRITTEN, Batch, Kind, Outcome, RowResult
from retl.errors import LedgerError
from retl.ledger import open_ledger
from retl.observe import log
from retl.run import journal as journals
from retl.run.journal import RunJournal
from tests.ledgers import take
from tests.target import RUN, Scene, begin

BAD = Outcome(WRITTEN, {0: RowResult(Kind.REJECTED, "23514", "a check says no")})


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(journals, "GROUP_SECONDS", 3600.0)  # however slow the machine
    ledger = open_ledger("file:.retl", tmp_path, environment=None)
    made = begin(ledger, tmp_path / ".retl")
    yield made
    made.lock.release()
    ledger.close()


def journal(scene: Scene, *, every: bool = False) -> RunJournal:
    return RunJournal(scene.ledger, scene.lock, RUN, every=every)


def statuses(scene: Scene) -> list[str]:
    return [b.status for b in scene.recorded]


def test_batches_are_open_in_the_order_they_came(scene: Scene) -> None:
    run = journal(scene)
    batches = list(scene.batches(6, 2))
    run.open(batches[:2])
    run.open(batches[2:])
    assert [(b.batch_id, b.number, b.operation, b.first, b.last) for b in scene.recorded] == [
        (one.id, number, "upsert", one.first, one.last) for number, one in enumerate(batches, start=1)
    ]
    for row in scene.recorded:
        assert (row.status, row.outcome, row.handle, row.idempotency_key) == ("open", None, None, None)
        assert (row.attempts, row.duration_ms, row.error) == (0, None, None)


def test_an_answer_is_recorded_with_its_attempts_and_milliseconds(scene: Scene) -> None:
    run = journal(scene)
    first, second = scene.batches(4, 2)
    run.open([first, second])
    run.acknowledge(Answered(first, BAD, attempts=3, seconds=1.2346))
    run.flush()
    done, opened = scene.recorded
    assert (done.status, done.outcome, done.attempts, done.duration_ms, done.error) == (
        "done",
        BAD,
        3,
        1235,
        None,
    )
    assert (opened.status, opened.outcome) == ("open", None)


def test_answers_are_gathered_and_never_more_than_a_group_is_at_risk(scene: Scene) -> None:
    run = journal(scene)
    batches = list(scene.batches(129, 1))
    run.open(batches)
    for one in batches[:127]:
        run.acknowledge(Answered(one, Outcome(WRITTEN)))
    assert set(statuses(scene)) == {"open"}
    run.acknowledge(Answered(batches[127], Outcome(WRITTEN)))
    assert statuses(scene) == ["done"] * 128 + ["open"]
    run.acknowledge(Answered(batches[128], Outcome(WRITTEN)))
    assert statuses(scene)[128] == "open"
    run.flush()
    assert set(statuses(scene)) == {"done"}


def test_an_answer_waits_a_second_at_most_for_the_next(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    run = journal(scene)
    first, second, third = scene.batches(3, 1)
    run.open([first, second, third])
    run.acknowledge(Answered(first, Outcome(WRITTEN)))
    assert statuses(scene) == ["open", "open", "open"]
    run._since -= 3600.0  # an hour ago
    run.acknowledge(Answered(second, Outcome(WRITTEN)))
    assert statuses(scene) == ["done", "done", "open"]
    run.acknowledge(Answered(third, Outcome(WRITTEN)))
    assert statuses(scene) == ["done", "done", "open"]  # the second starts again with every flush


def test_a_flush_says_that_the_run_lives_and_an_empty_one_says_nothing(scene: Scene) -> None:
    said: list[tuple[str, dict[str, Any]]] = []

    def hear(name: str, fields: Any) -> None:
        said.append((name, dict(fields)))

    run = journal(scene)
    (one,) = scene.batches(2, 2)
    run.open([one])
    before = scene.run.heartbeat_at
    log.listen(hear)
    try:
        run.flush()
        assert scene.run.heartbeat_at == before
        run.acknowledge(Answered(one, Outcome(WRITTEN)))
        run.flush()
        run.flush()
    finally:
        log._listeners.remove(hear)
    after = scene.run.heartbeat_at
    assert before is not None
    assert after is not None
    assert after > before
    assert said == [("answers_recorded", {"batches": 1})]


def test_a_batch_that_was_split_is_no_answer(scene: Scene) -> None:
    run = journal(scene)
    (whole,) = scene.batches(2, 2)
    run.open([whole])
    halves = whole.halves()
    run.split(whole, halves)
    run.acknowledge(Answered(whole, None, status="split"))
    run.flush()
    assert [(b.batch_id, b.number, b.status) for b in scene.recorded] == [
        (whole.id, 1, "split"),
        (halves[0].id, 2, "open"),
        (halves[1].id, 3, "open"),
    ]


def test_where_twice_is_not_once_a_batch_is_known_only_with_its_intent(scene: Scene) -> None:
    run = journal(scene, every=True)
    first, second = scene.batches(4, 2)
    run.open([first, second])
    assert scene.recorded == []
    prepared = Batch(
        first.rows, *MODES["upsert"], RUN, first.epoch, 0, 1, request=b"exactly", idempotency_key="k-1"
    )
    run.intend(prepared)
    (row,) = scene.recorded
    assert (row.batch_id, row.status, row.idempotency_key) == (first.id, "open", "k-1")
    assert scene.stored(first.id) == b"exactly"
    run.attach(prepared, "job-1")
    assert scene.recorded[0].handle == "job-1"
    run.acknowledge(Answered(prepared, Outcome(WRITTEN)))
    assert statuses(scene) == ["done"]  # at once, without a flush
    assert scene.stored(first.id) is None


def test_where_twice_is_not_once_doubt_stays_open_with_its_bytes(scene: Scene) -> None:
    run = journal(scene, every=True)
    (one,) = scene.batches(2, 2)
    prepared = Batch(
        one.rows, *MODES["upsert"], RUN, one.epoch, 0, 1, request=b"exactly", idempotency_key="k-1"
    )
    run.intend(prepared)
    run.acknowledge(Answered(prepared, Outcome(UNKNOWN)))
    run.flush()
    assert statuses(scene) == ["open"]
    assert scene.stored(one.id) == b"exactly"
    some = Outcome(UNKNOWN, {0: WRITTEN})
    run.acknowledge(Answered(prepared, some))
    assert [(b.status, b.outcome) for b in scene.recorded] == [("done", some)]


def test_where_twice_is_not_once_a_batch_never_sent_has_nothing_to_record(scene: Scene) -> None:
    run = journal(scene, every=True)
    first, second = scene.batches(4, 2)
    run.acknowledge(Answered(first, Outcome(RowResult(Kind.RETRY)), attempts=0))
    run.intend(second)
    run.acknowledge(Answered(second, Outcome(RowResult(Kind.RETRY)), attempts=1))
    assert [(b.batch_id, b.status) for b in scene.recorded] == [(second.id, "done")]


def test_where_twice_is_once_doubt_and_what_was_never_sent_are_answers(scene: Scene) -> None:
    run = journal(scene)
    first, second = scene.batches(4, 2)
    run.open([first, second])
    run.acknowledge(Answered(first, Outcome(UNKNOWN)))
    run.acknowledge(Answered(second, Outcome(RowResult(Kind.RETRY)), attempts=0))
    run.flush()
    assert statuses(scene) == ["done", "done"]


def test_a_sign_of_life_is_given_at_most_once_per_group_of_answers(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = journal(scene)
    batches = list(scene.batches(6, 2))
    run.open(batches)
    beats = [scene.run.heartbeat_at]
    for number, one in enumerate(batches):
        if number == 2:
            monkeypatch.setattr(journals, "GROUP_SECONDS", 1e-9)
        run.acknowledge(Answered(one, Outcome(WRITTEN)))
        run.flush()
        beats.append(scene.run.heartbeat_at)
    assert None not in beats
    assert [after != before for before, after in pairwise(beats)] == [True, False, True]


def test_a_run_that_lost_its_lock_opens_and_intends_nothing(scene: Scene) -> None:
    (one,) = scene.batches(2, 2)
    for every in (False, True):
        run = journal(scene, every=every)
        for path in (scene.home / "locks").iterdir():
            path.unlink()  # whoever comes next locks another file
        for act in (lambda run=run: run.open([one]), lambda run=run: run.intend(one)):
            with pytest.raises(LedgerError, match="lost its lock"):
                act()
    before = scene.run.heartbeat_at
    with pytest.raises(LedgerError, match="lost its lock"):
        scene.ledger.heartbeat(RUN, scene.lock.epoch)
    assert scene.run.heartbeat_at == before
    assert scene.recorded == []


def test_every_entry_carries_the_epoch_of_the_lock(scene: Scene) -> None:
    runs = [journal(scene), journal(scene, every=True)]
    first, second = scene.batches(4, 2)
    runs[0].open([first, second])
    known = scene.recorded
    scene.lock.release()
    with take(scene.ledger):
        runs[0]._collected.clear()
        acts = [
            lambda: runs[1].intend(first),
            lambda: runs[0].attach(first, "job-1"),
            lambda: runs[0].split(first, first.halves()),
            lambda: runs[1].acknowledge(Answered(first, Outcome(WRITTEN))),
            lambda: runs[0].open([first]),
        ]
        for act in acts:
            with pytest.raises(LedgerError, match="lost its lock"):
                act()
    assert scene.recorded == known


def test_lanes_may_acknowledge_at_once(scene: Scene) -> None:
    run = journal(scene)
    batches = list(scene.batches(300, 1))
    run.open(batches)

    def lane(number: int) -> None:
        for one in batches[number::3]:
            run.acknowledge(Answered(one, Outcome(WRITTEN)))

    lanes = [threading.Thread(target=lane, args=(number,)) for number in range(3)]
    for one in lanes:
        one.start()
    for one in lanes:
        one.join()
    run.flush()
    assert statuses(scene) == ["done"] * 300
