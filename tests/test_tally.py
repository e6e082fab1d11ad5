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


def test_two_batches_of_two_rows_are_whole_ones_and_single_rows_are_not() -> None:
    failure_rate = FailureRate(max_failed_rate=1.0)
    for _ in range(3):
        failure_rate.add(rows(1), Outcome(refused("400")))
    failure_rate.add(rows(2), Outcome(refused("400")))
    with pytest.raises(Systemic) as stopped:
        failure_rate.add(rows(2), Outcome(refused("400")))
    assert (stopped.value.code, "all of the first 7 rows" in stopped.value.message) == ("ALL_REFUSED", True)
    assert "the mapping" in str(stopped.value.hint)


def test_rows_without_a_code_are_refused_alike() -> None:
    failure_rate = FailureRate(max_failed_rate=1.0)
    failure_rate.add(rows(5), Outcome(RowResult(Kind.REJECTED), {2: RowResult(Kind.REJECTED)}))
    assert failure_rate.refused == {"REJECTED": 5}
    with pytest.raises(Systemic, match="REJECTED"):
        failure_rate.add(rows(5), Outcome(RowResult(Kind.REJECTED)))


def test_rows_that_wait_for_another_are_counted_at_the_end_of_the_run() -> None:
    failure_rate = FailureRate(max_failed_rate=0.5, waiting=lambda batch, _: {"23503": len(batch)})
    answer = Outcome(WRITTEN, {row: refused("23503") for row in range(60)})
    failure_rate.add(rows(100), answer)
    assert (failure_rate.refused.total(), failure_rate.accepted) == (0, 40)
    at_the_end = FailureRate(max_failed_rate=0.5)
    at_the_end.add_all([(rows(100), answer)], {"23503": 20})  # 40 of 80 stay
    assert (at_the_end.refused, at_the_end.accepted) == ({"23503": 40}, 40)
    with pytest.raises(Failure) as stopped:
        FailureRate(max_failed_rate=0.5).add_all([(rows(100), answer)], {})
    assert (stopped.value.code, "deletes nothing" in str(stopped.value.hint)) == ("FAILED_RATE", True)


def test_whole_batches_that_wait_are_no_whole_batches() -> None:
    answers = [(rows(5), Outcome(refused("23503")))] * 2
    FailureRate(max_failed_rate=1.0).add_all(answers, {"23503": 10})
    with pytest.raises(Systemic, match="23503"):
        FailureRate(max_failed_rate=1.0).add_all(answers, {"another": 10})


def test_rows_that_others_edited_stop_a_run_above_their_rate_from_a_hundred_rows_on() -> None:
    failure_rate = FailureRate(max_failed_rate=1.0, max_conflict_rate=0.1)
    theirs = {row: RowResult(Kind.KEPT if row % 2 else Kind.CONFLICT) for row in range(5)}
    failure_rate.add(rows(10), Outcome(WRITTEN, theirs))  # half of them, but few
    failure_rate.add(rows(90), Outcome(WRITTEN, theirs))
    assert (failure_rate.edited, failure_rate.accepted) == (10, 100)
    with pytest.raises(Failure) as stopped:
        failure_rate.add(rows(1), Outcome(RowResult(Kind.KEPT)))
    assert stopped.value.code == "CONFLICT_RATE"
    assert "11 of 101 rows" in stopped.value.message
    assert "max_conflict_rate" in str(stopped.value.hint)


def test_both_rates_count_at_the_hundredth_row() -> None:
    for refusing, most in (
        (refused("x"), {"max_failed_rate": 0.1}),
        (RowResult(Kind.KEPT), {"max_conflict_rate": 0.1}),
    ):
        failure_rate = FailureRate(**{"max_failed_rate": 1.0, **most})
        with pytest.raises(Failure):
            failure_rate.add(rows(100), Outcome(WRITTEN, dict.fromkeys(range(11), refusing)))
