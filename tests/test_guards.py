"""Guards are pure: facts in, refusals out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from retl.definitions import Guards
from retl.guards import Facts, judge

CALM = Facts(read=1000, total=1000, new_rejects=0, baseline_rows=1000, matched=1000, last_read=1000)


def codes(facts: Facts, guards: Guards | None = None, accepted: tuple[str, ...] = ()) -> list[str]:
    return [refusal.code for refusal in judge(facts, guards or Guards(), accepted)]


def test_a_calm_run_passes() -> None:
    assert codes(CALM) == []


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3, 0.7])
def test_exactly_the_reject_limit_passes_and_one_more_row_does_not(rate: float) -> None:
    limit = round(rate * 1000)
    assert codes(replace(CALM, new_rejects=limit), Guards(max_reject_rate=rate)) == []
    assert codes(replace(CALM, new_rejects=limit + 1), Guards(max_reject_rate=rate)) == ["REJECT_RATE"]


def test_ten_deletes_always_pass_and_a_tenth_of_the_baseline_does() -> None:
    assert codes(replace(CALM, deletes=10, deletes_on=True, baseline_rows=20)) == []
    assert codes(replace(CALM, deletes=100, deletes_on=True)) == []
    assert codes(replace(CALM, deletes=101, deletes_on=True)) == ["DELETE_RATE"]


def test_max_delete_rows_is_a_limit_of_its_own() -> None:
    assert codes(replace(CALM, deletes=5), Guards(max_delete_rows=4)) == ["DELETE_RATE"]


def test_allow_deletes_must_be_the_planned_number() -> None:
    many = replace(CALM, deletes=500, deletes_on=True)
    assert codes(replace(many, allow_deletes=500)) == []
    assert codes(replace(many, allow_deletes=499)) == ["DELETE_RATE"]
    assert codes(replace(many, allow_deletes=501)) == ["DELETE_RATE"]


def test_an_empty_mart_is_refused_only_where_absence_deletes_or_a_minimum_is_set() -> None:
    empty = replace(CALM, read=0, total=0, matched=0)
    assert codes(empty) == []
    assert codes(replace(empty, deletes_on=True, deletes=1000)) == ["EMPTY_SOURCE", "DELETE_RATE"]
    assert codes(replace(CALM, read=9, total=9, last_read=None), Guards(min_rows=10)) == ["EMPTY_SOURCE"]


def test_a_mart_that_fell_by_more_than_half_is_refused_on_full_reads_only() -> None:
    fell = replace(CALM, read=499, matched=499)
    assert codes(replace(fell, read=500)) == []
    assert codes(fell) == ["ROW_DROP"]
    assert codes(replace(fell, full_read=False)) == []


def test_all_keys_new_and_all_old_gone_is_a_changed_identity() -> None:
    swapped = replace(CALM, inserts=1000, matched=0)
    assert codes(swapped) == ["IDENTITY_CHANGED"]
    assert codes(replace(swapped, matched=1)) == []
    assert codes(replace(swapped, baseline_rows=0)) == []


def test_more_than_two_percent_of_the_sample_lost_is_a_lost_target() -> None:
    assert codes(replace(CALM, sampled=200, lost=4)) == []
    assert codes(replace(CALM, sampled=200, lost=5)) == ["TARGET_LOST"]


def test_accepting_a_code_passes_that_guard_and_no_other() -> None:
    both = replace(CALM, new_rejects=900, sampled=200, lost=200)
    assert codes(both, accepted=("TARGET_LOST",)) == ["REJECT_RATE"]
