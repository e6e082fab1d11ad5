"""Who waits, how long, and what ends it: measured in order and in waits asked for, not by a clock's reading."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Event, Thread, Timer
from typing import Any

import pytest

from retl.errors import Ambiguous, Later, Systemic, Unavailable
from retl.model import Limits, Retry
from retl.net.waits import Quota
from retl.observe import log
from retl.pace import limiter
from retl.pace.limiter import Pace, retrying


class Clock(Event):
    """A stop event whose waits take no time: they move the clock that `pace` reads."""

    def __init__(self, *, stops_after: int | None = None) -> None:
        super().__init__()
        self.now = 100.0
        self.waits: list[float] = []
        self.stops_after = stops_after

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waits.append(timeout)
        self.now += timeout
        if len(self.waits) == self.stops_after:
            self.set()
        return self.is_set()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(limiter, "monotonic", lambda: clock.now)
    return clock


def sent_at(limits: dict[str, Any], clock: Clock, count: int, share: float = 1.0) -> list[float]:
    paced, times = Pace(Limits(**limits), share), []
    for _ in range(count):
        assert paced.wait(clock)
        times.append(clock.now - 100.0)
    return times


def test_without_limits_nobody_waits(clock: Clock) -> None:
    assert sent_at({}, clock, 1000) == [0.0] * 1000
    assert clock.waits == []


def test_no_window_holds_more_requests_than_the_limit(clock: Clock) -> None:
    times = sent_at({"requests": 3, "per": "10s"}, clock, 8)
    assert times == pytest.approx([0, 0, 0, 10, 10, 10, 20, 20])


def test_a_share_leaves_the_rest_to_others(clock: Clock) -> None:
    assert sent_at({"requests": 10, "per": 10, "share": 0.2}, clock, 5) == pytest.approx([0, 0, 10, 10, 20])
    clock.now = 100.0
    assert sent_at({"requests": 1, "per": 1}, clock, 3, share=0.5) == pytest.approx([0, 2, 4])
    clock.now = 100.0
    assert sent_at({"requests": 1, "per": 1, "share": 1}, clock, 3, share=0.5) == pytest.approx([0, 1, 2])


def test_a_hold_is_for_every_lane(clock: Clock) -> None:
    paced = Pace(Limits())
    paced.pause(30)
    paced.pause(5)
    assert paced.wait(clock)
    assert clock.now == pytest.approx(130)
    assert paced.wait(clock)
    assert clock.now == pytest.approx(130)


def test_a_lease_and_a_hold_end_while_the_machine_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked = [100.0], Clock()
    monkeypatch.setattr(limiter.time, "clock_gettime", lambda clock: now[0])
    book = limiter.Memory()
    paced = Pace(Limits(requests=20, per=10), book=book, connection="crm")
    assert paced.wait(asked)
    paced.pause(30)
    now[0] += 3600  # asleep
    assert Pace(Limits(requests=20, per=10), book=book, connection="crm").wait(asked)
    assert paced.wait(asked)
    assert asked.waits == []
    assert sum(requests for requests, _ in book.account("crm")[0].leases.values()) == 4  # both leases are new


def test_a_stop_ends_every_wait(clock: Clock) -> None:
    paced = Pace(Limits(requests=1, per=3600))
    assert paced.wait(clock)
    clock.stops_after = 1
    assert not paced.wait(clock)
    assert not paced.wait(clock)
    assert len(clock.waits) == 1
    with paced.permit(clock) as go:
        assert not go


def test_no_more_lanes_at_once_than_allowed() -> None:
    paced, stop, inside, free = Pace(Limits(concurrency=1)), Event(), Event(), Event()

    def lane() -> None:
        with paced.permit(stop) as go:
            assert go
            inside.set()
            free.wait(10)

    first = Thread(target=lane)
    first.start()
    assert inside.wait(10)
    inside.clear()
    second = Thread(target=lane)
    second.start()
    assert not inside.wait(0.3)
    free.set()
    assert inside.wait(10)
    for thread in (first, second):
        thread.join(10)

    free.clear()
    inside.clear()
    third = Thread(target=lane)
    third.start()
    assert inside.wait(10)
    stop.set()
    with paced.permit(stop) as go:
        assert not go
    free.set()
    third.join(10)


def attempts(error: Exception, retry: Retry, clock: Clock, paced: Pace | None = None) -> int:
    """How often it was tried before the error came out."""
    tried = 0

    def fail() -> None:
        nonlocal tried
        tried += 1
        raise error

    with pytest.raises(type(error)) as caught:
        (paced.retrying(retry, clock) if paced else retrying(retry, clock))(fail)
    assert caught.value is error
    return tried


def raises(error: Exception, clock: Clock) -> Any:
    def fail() -> None:
        clock.now += 0.1
        raise error

    return fail


def test_only_the_unavailable_is_tried_again(clock: Clock) -> None:
    for error in (Systemic("X", "x"), Ambiguous("X", "x"), ValueError("x")):
        assert attempts(error, Retry(), clock) == 1
    assert attempts(Unavailable("X", "x"), Retry(attempts=5), clock) == 5
    assert len(clock.waits) == 4


def test_pauses_double_at_most_and_have_a_ceiling(clock: Clock) -> None:
    attempts(Unavailable("X", "x"), Retry(attempts=12, budget=100_000), clock)
    assert len(clock.waits) == 11
    assert all(0 <= wait <= min(30, 0.5 * 2**n) for n, wait in enumerate(clock.waits))


def test_it_comes_back_no_sooner_than_it_was_told(clock: Clock) -> None:
    paced, said = Pace(Limits()), list[tuple[str, object]]()

    def hear(event: str, fields: Mapping[str, Any]) -> None:
        said.append((event, fields["seconds"]))

    log.listen(hear)
    try:
        attempts(Unavailable("X", "x", retry_after=20), Retry(attempts=3), clock, paced)
    finally:
        log.unlisten(hear)
    assert all(20 <= wait <= 21 for wait in clock.waits)
    assert said == [("retry_awaited", pytest.approx(wait, abs=0.01)) for wait in clock.waits]
    clock.waits.clear()
    assert paced.wait(clock)
    assert sum(clock.waits) == pytest.approx(20)


def test_what_would_exceed_the_budget_is_not_waited_for(clock: Clock) -> None:
    assert attempts(Unavailable("X", "x", retry_after=3600), Retry(budget=300), clock) == 1
    assert clock.waits == []


@pytest.mark.parametrize(
    ("asked", "retry"),
    [
        (400, Retry()),
        (400, Retry(budget=3600)),  # longer than any run waits
        (400, Retry(attempts=1)),
        (100, Retry(budget=60)),
    ],
)
def test_a_pause_that_no_run_waits_for_is_no_failure(asked: float, retry: Retry, clock: Clock) -> None:
    book = limiter.Memory()
    paced = Pace(Limits(), book=book, connection="crm")
    with pytest.raises(Later, match=r"crm .* until 20.*: too many") as caught:
        paced.retrying(retry, clock)(raises(Unavailable("HTTP_429", "too many", retry_after=asked), clock))
    assert (caught.value.code, caught.value.exit_code) == ("HELD_OFF", 75)
    if asked > 300:
        with pytest.raises(Later):
            Pace(Limits(), book=book, connection="crm").require_room()


def test_short_pauses_that_use_up_the_attempts_are_a_failure(clock: Clock) -> None:
    busy = Unavailable("HTTP_503", "busy", retry_after=2)
    assert attempts(busy, Retry(attempts=3), clock, Pace(Limits())) == 3


def test_a_signal_during_a_pause_is_the_end(clock: Clock) -> None:
    clock.stops_after = 2
    assert attempts(Unavailable("X", "x"), Retry(attempts=10), clock) == 2


def test_a_success_ends_it(clock: Clock) -> None:
    left = [Unavailable("X", "x"), Unavailable("X", "x")]

    def work() -> str:
        if left:
            raise left.pop()
        return "done"

    assert retrying(Retry(), clock)(work) == "done"


@pytest.mark.parametrize(
    ("left", "share", "goes_on"), [(0.6, 0.5, True), (0.5, 0.5, False), (0.1, 1.0, True), (0.0, 1.0, False)]
)
def test_a_quota_is_left_alone_once_our_share_of_it_is_used(left: float, share: float, goes_on: bool) -> None:
    limiter, stop = Pace(Limits(share=share)), Event()
    limiter.on_quota(Quota(left, 60.0))
    later = Timer(0.05, stop.set)
    later.start()
    assert limiter.wait(stop) is goes_on
    later.cancel()


def test_a_quota_that_begins_anew_nobody_knows_when_holds_nobody_up() -> None:
    limiter = Pace(Limits())
    limiter.on_quota(Quota(0.0))
    assert limiter.wait(Event())


def test_two_who_keep_one_book_keep_one_limit(clock: Clock) -> None:
    book = limiter.Memory()
    first, second = (Pace(Limits(requests=2, per=10), book=book, connection="crm") for _ in range(2))
    assert first.wait(clock)
    assert second.wait(clock)
    assert clock.now == 100.0
    assert first.wait(clock)
    assert clock.now == pytest.approx(110)
    assert first.wait(clock)
    assert clock.now == pytest.approx(110 + limiter.USE, abs=1)  # the second one has not given back its lease


def test_what_was_given_back_is_free_a_window_after_its_answer(clock: Clock) -> None:
    book = limiter.Memory()
    first, second = (Pace(Limits(requests=1, per=10), book=book, connection="crm") for _ in range(2))
    assert first.wait(clock)
    first.close()
    assert second.wait(clock)
    assert clock.now == pytest.approx(110)


def test_room_is_free_a_window_after_the_answer_not_after_the_request(clock: Clock) -> None:
    paced = Pace(Limits(requests=1, per=10))
    with paced.permit(clock):
        clock.now += 4
    assert paced.wait(clock)
    assert clock.now == pytest.approx(114)


def test_a_hold_is_for_everybody_who_keeps_the_book(clock: Clock) -> None:
    book = limiter.Memory()
    first, second = (Pace(Limits(requests=9, per=1), book=book, connection="crm") for _ in range(2))
    first.pause(30)
    assert second.wait(clock)
    assert clock.now == pytest.approx(130)


def send(paced: Pace, clock: Clock, count: int, seconds: float) -> float:
    """How long it took to send so many requests, each of which was answered after so long."""
    began = clock.now
    for _ in range(count):
        with paced.permit(clock, 1000):
            clock.now += seconds
    return clock.now - began


def test_a_lane_rests_as_long_as_a_slow_target_works(clock: Clock) -> None:
    paced = Pace(Limits())
    assert send(paced, clock, 16, 0.1) == pytest.approx(1.6)
    assert send(paced, clock, 16, 0.3) == pytest.approx(4.8 + 11 * 0.3)  # after the fifth to the last but one
    send(paced, clock, 8, 0.1)
    assert send(paced, clock, 16, 0.1) == pytest.approx(1.6)


def test_a_slow_target_gets_half_of_the_window(clock: Clock) -> None:
    paced = Pace(Limits(requests=20, per=100))
    send(paced, clock, 20, 0.1)
    clock.now += 100
    send(paced, clock, 8, 0.3)
    clock.now += 100
    assert send(paced, clock, 10, 0.3) < 100
    assert send(paced, clock, 1, 0.3) > 90


def test_a_spent_budget_is_an_error_that_says_when(clock: Clock) -> None:
    paced = Pace(Limits(per_day=3), connection="crm")
    assert [paced.wait(clock) for _ in range(3)] == [True] * 3
    with pytest.raises(Later, match=r"crm .* requests are possible again at 20\d\d-") as caught:
        paced.wait(clock)
    assert (caught.value.code, caught.value.exit_code) == ("BUDGET_SPENT", 75)
    with pytest.raises(Later):
        paced.require_room()
    clock.now += 26 * 3600
    paced.require_room()
    assert paced.wait(clock)


def test_a_daily_quota_that_is_used_up_is_a_spent_budget(clock: Clock) -> None:
    paced = Pace(Limits(share=0.5))
    paced.on_quota(Quota(0.51, daily=True))
    assert paced.wait(clock)
    paced.on_quota(Quota(0.5, daily=True))
    with pytest.raises(Later):
        paced.wait(clock)


def test_a_hold_that_is_too_long_to_wait_for_ends_the_run(clock: Clock) -> None:
    book = limiter.Memory()
    first, second = (Pace(Limits(requests=9, per=1), book=book, connection="crm") for _ in range(2))
    first.pause(1800)
    for paced in (first, second):
        with pytest.raises(Later, match="crm") as caught:
            paced.wait(clock)
        assert caught.value.code == "HELD_OFF"
    with pytest.raises(Later):
        Pace(Limits(), book=book, connection="crm").require_room()
    clock.now += 1700
    assert second.wait(clock)
    assert clock.now == pytest.approx(1900)
