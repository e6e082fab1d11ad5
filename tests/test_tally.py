"""When what a target refuses stops a run, and when it is the rows' own fault."""

from __future__ import annotations

import pytest

from retl.delivery.failure_rate import FailureRate
from retl.destinations.batch import WRITTEN, Kind, Outcome, RowResult
from retl.errors import Failure, Systemic


def refused(code: str) -> RowResult:
    return RowResult(Kind.REJECTED, code)


def test_a_hundred_rows_refused_alike_and_none_taken_is_not_about_the_rows() -> None:
    failure_rate = FailureRate(max_failed_rate=1.0)
    failure_rate.add(Outcome(WRITTEN, {}), 0)
    for _ in range(99):
        failure_rate.add(Outcome(refused("23502")), 1)
    with pytest.raises(Systemic, match="23502"):
        failure_rate.add(Outcome(refused("23502")), 1)


def test_two_batches_refused_whole_are_enough() -> None:
    failure_rate = FailureRate(max_failed_rate=1.0)
    failure_rate.add(Outcome(refused("400")), 5)
    with pytest.raises(Systemic, match="400"):
        failure_rate.add(Outcome(refused("400")), 5)


def test_one_row_taken_makes_it_the_rows_own_fault() -> None:
    failure_rate = FailureRate(max_failed_rate=1.0)
    failure_rate.add(Outcome(refused("23502"), {0: WRITTEN}), 500)
    failure_rate.add(Outcome(refused("23502")), 500)


def test_the_failed_rate_is_believed_from_a_hundred_rows_on() -> None:
    failure_rate = FailureRate(max_failed_rate=0.1)
    bad = {row: refused(str(row)) for row in range(9)}
    failure_rate.add(Outcome(WRITTEN, bad), 50)
    failure_rate.add(Outcome(WRITTEN, {0: refused("x")}), 50)
    assert failure_rate.refused.total() == 10
    with pytest.raises(Failure, match="max_failed_rate"):
        failure_rate.add(Outcome(WRITTEN, {0: refused("x"), 1: refused("y")}), 2)
