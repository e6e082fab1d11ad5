"""When what a target refuses stops a run, and when it is the rows' own fault."""

from __future__ import annotations

import pytest

from retl.delivery.failure_rate import FailureRate
from retl.destinations.batch import MODES, WRITTEN, Batch, Kind, Outcome, RowResult
from retl.errors import Failure, Systemic
from tests.target import Numbers


def refused(code: str) -> RowResult:
    return RowResult(Kind.REJECTED, code)


def rows(number: int) -> Batch:
    return Batch(Numbers(), *MODES["upsert"], "run-1", 1, 0, number - 1)


def test_a_hundred_rows_refused_alike_and_none_taken_is_not_about_the_rows() -> None:
    failure_rate = FailureRate(max_failed_rate=1.0)
    failure_rate.add(rows(0), Outcome(WRITTEN, {}))
    for _ in range(99):
        failure_rate.add(rows(1), Outcome(refused("23502")))
    with pytest.raises(Systemic, match="23502"):
        failure_rate.add(rows(1), Outcome(refused("23502")))


def test_two_batches_refused_whole_are_enough() -> None:
    failure_rate = FailureRate(max_failed_rate=1.0)
    failure_rate.add(rows(5), Outcome(refused("400")))
    with pytest.raises(Systemic, match="400"):
        failure_rate.add(rows(5), Outcome(refused("400")))


def test_one_row_taken_makes_it_the_rows_own_fault() -> None:
    failure_rate = FailureRate(max_failed_rate=1.0)
    failure_rate.add(rows(500), Outcome(refused("23502"), {0: WRITTEN}))
    failure_rate.add(rows(500), Outcome(refused("23502")))


def test_the_failed_rate_is_believed_from_a_hundred_rows_on() -> None:
    failure_rate = FailureRate(max_failed_rate=0.1)
    bad = {row: refused(str(row)) for row in range(9)}
    failure_rate.add(rows(50), Outcome(WRITTEN, bad))
    failure_rate.add(rows(50), Outcome(WRITTEN, {0: refused("x")}))
    assert failure_rate.refused.total() == 10
    with pytest.raises(Failure, match="max_failed_rate"):
        failure_rate.add(rows(2), Outcome(WRITTEN, {0: refused("x"), 1: refused("y")}))
