"""A target that doubles its latency is asked half as often, and as often as before once it is calm."""

from __future__ import annotations

import pytest

from retl.pace.latency import LOOK, Latency


def after(*requests: tuple[int, float], size: int = 1000) -> float:
    """The pace after so many requests of so many seconds each, one kind after the other."""
    latency = Latency()
    for count, seconds in requests:
        for _ in range(count):
            latency.add(seconds, size)
    return latency.fraction


@pytest.mark.parametrize(
    ("slower", "pace"), [(1.9, 1), (2.1, 1 / 2), (4.2, 1 / 4), (8.5, 1 / 8), (99, 1 / 8)]
)
def test_each_doubling_halves_the_pace(slower: float, pace: float) -> None:
    assert after((LOOK * 2, 0.1), (LOOK, 0.1 * slower)) == pace


def test_it_recovers_with_the_target() -> None:
    assert after((LOOK * 2, 0.1), (LOOK, 0.3), (LOOK, 0.1)) == 1


def test_a_few_slow_answers_are_no_slow_target() -> None:
    assert after((LOOK * 2, 0.1), (LOOK // 2, 5.0)) == 1


def test_a_target_that_stays_slow_does_not_become_the_measure() -> None:
    assert after((LOOK * 2, 0.1), (1000, 0.3)) == 1 / 2


def test_nobody_is_slow_below_the_floor() -> None:
    assert after((LOOK * 2, 0.001), (LOOK * 2, 0.04)) == 1


def test_large_requests_are_not_held_against_small_ones() -> None:
    latency = Latency()
    for size, seconds in ((500, 0.06), (500_000, 3.0), (500_000, 3.0)):
        for _ in range(LOOK):
            latency.add(seconds, size)
    assert latency.fraction == 1
    for _ in range(LOOK):
        latency.add(7.0, 500_000)
    assert latency.fraction == 1 / 2
