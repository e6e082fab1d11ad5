"""Guards are pure: facts in, refusals out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from retl.project.definitions import Guards
from retl.run.guards import Facts, judge, verdicts
from retl.sources.dbt_results import Build, note

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


def test_a_first_run_that_may_be_a_second_one_is_refused_beyond_a_few_rows() -> None:
    assert codes(replace(CALM, unproved=None)) == codes(replace(CALM, unproved=100)) == []
    assert codes(replace(CALM, unproved=101)) == ["FIRST_RUN"]
    assert codes(replace(CALM, unproved=1), Guards(max_first_run=0)) == ["FIRST_RUN"]
    assert codes(replace(CALM, unproved=101), accepted=("FIRST_RUN",)) == []


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
    assert codes(replace(empty, deletes_on=True, baseline_rows=0)) == []
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


def said(facts: Facts, guards: Guards | None = None) -> list[tuple[str, str, str | None]]:
    return [(one.code, one.message, one.hint) for one in judge(facts, guards or Guards())]


def test_every_refusal_says_what_why_and_what_to_do() -> None:
    allowed = "if that is right: --allow-deletes 101"
    assert said(replace(CALM, new_rejects=51)) == [
        (
            "REJECT_RATE",
            "51 of 1000 rows break the contract or have no usable key, more than max_reject_rate (0.05)",
            "see the reasons with `retl show`, fix the mart or the contract, or --accept REJECT_RATE",
        )
    ]
    assert said(replace(CALM, inserts=7, matched=0)) == [
        (
            "IDENTITY_CHANGED",
            "all 7 keys are new and all 1000 delivered keys are gone",
            "if the key really changed, --accept IDENTITY_CHANGED; otherwise fix `key` or the mart",
        )
    ]
    failed = ("a check returned rows: SELECT 1", "a check returned rows: SELECT 2")
    assert said(replace(CALM, failed_checks=failed)) == [
        ("CHECK_FAILED", f"a check returned rows: SELECT {n}", "fix the mart, or --accept CHECK_FAILED")
        for n in (1, 2)
    ]
    assert said(replace(CALM, sampled=200, lost=5)) == [
        (
            "TARGET_LOST",
            "the target lacks 5 of 200 sampled keys that were delivered",
            "it was emptied, restored or replaced: `--full` delivers every row again",
        )
    ]
    assert said(replace(CALM, read=0, total=0, last_read=None, deletes_on=True)) == [
        ("EMPTY_SOURCE", "the mart has 0 rows; expected some, since `deletes` is on", "was the mart built?")
    ]
    assert said(replace(CALM, total=9), Guards(min_rows=10)) == [
        ("EMPTY_SOURCE", "the mart has 9 rows; expected at least 10", "was the mart built?")
    ]
    assert said(replace(CALM, read=499)) == [
        (
            "ROW_DROP",
            "the mart fell from 1000 to 499 rows, more than max_row_drop (0.5)",
            "was the mart built whole? If so, --accept ROW_DROP",
        )
    ]
    assert said(replace(CALM, deletes=101)) == [
        ("DELETE_RATE", "101 deletes are planned, more than max_delete_rate (0.1) of 1000", allowed)
    ]
    assert said(replace(CALM, deletes=101), Guards(max_delete_rows=100)) == [
        ("DELETE_RATE", "101 deletes are planned, more than max_delete_rows (100)", allowed)
    ]
    assert said(replace(CALM, deletes=101, allow_deletes=5)) == [
        ("DELETE_RATE", "--allow-deletes says 5, but 101 deletes are planned", allowed)
    ]


def test_the_minimum_and_the_most_deletes_pass_exactly() -> None:
    assert codes(replace(CALM, total=10), Guards(min_rows=10)) == []
    assert codes(replace(CALM, deletes=4), Guards(max_delete_rows=4)) == []
    assert codes(replace(CALM, deletes=11, baseline_rows=110)) == []
    assert codes(replace(CALM, deletes=11, baseline_rows=100)) == ["DELETE_RATE"]


def test_a_mart_of_one_row_is_not_empty() -> None:
    one = replace(CALM, read=1, total=1, last_read=1)
    assert codes(replace(one, deletes_on=True)) == []
    assert codes(replace(one, last_read=3)) == ["ROW_DROP"]


def test_a_reader_of_the_verdicts_sees_why_a_guard_passes() -> None:
    def shown(facts: Facts) -> dict[str, tuple[str, str, str]]:
        found = verdicts(facts, Guards(), judge(facts, Guards()))
        return {one.code: (one.found, one.limit, one.verdict) for one in found}

    few = replace(CALM, deletes_on=True, deletes=7, baseline_rows=39)
    assert shown(few)["DELETE_RATE"] == ("7 of 39", "0.1; 10 rows always pass", "passes")
    assert shown(replace(few, deletes=3))["DELETE_RATE"] == ("3 of 39", "0.1", "passes")
    assert "ROW_DROP" not in shown(replace(CALM, read=0, total=0, matched=0))


def test_a_mart_without_rows_did_not_fall() -> None:
    assert codes(replace(CALM, read=0, total=0, matched=0)) == []
    assert codes(replace(CALM, last_read=0)) == []


def test_a_changed_identity_is_judged_on_full_reads_with_new_keys_only() -> None:
    swapped = replace(CALM, inserts=1000, matched=0)
    assert codes(replace(swapped, full_read=False)) == []
    assert codes(replace(swapped, inserts=0)) == []
    assert codes(replace(swapped, inserts=1, baseline_rows=11)) == ["IDENTITY_CHANGED"]
    assert codes(replace(swapped, inserts=10, baseline_rows=10)) == []  # so few may be others tomorrow


def test_a_reject_rate_names_its_codes_where_it_knows_them() -> None:
    (refusal,) = judge(replace(CALM, new_rejects=51, reject_codes=("TOO_LONG", "KEY_NULL")), Guards(), ())
    assert refusal.message.endswith("more than max_reject_rate (0.05): TOO_LONG, KEY_NULL")


def test_a_reject_rate_tells_new_rejects_from_those_that_were_known() -> None:
    facts = replace(CALM, new_rejects=51, old_rejects=9, reject_codes=("TOO_LONG",))
    (refusal,) = judge(facts, Guards(), ())
    assert refusal.message == (
        "51 of 1000 rows newly break the contract or have no usable key, more than max_reject_rate (0.05):"
        " TOO_LONG; 9 more were rejects before and do not count"
    )
    assert verdicts(facts, Guards(), [refusal])[0].found == "51 new of 1,000"
    assert judge(replace(facts, new_rejects=50), Guards()) == []


NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
BUILT = Build("orders", "success", ended_at=NOON - timedelta(hours=1))


def test_a_mart_that_dbt_built_and_tested_in_time_passes() -> None:
    assert codes(replace(CALM, builds=(BUILT,))) == []
    assert codes(replace(CALM, builds=(BUILT,), now=NOON, max_age=3600)) == []
    assert codes(replace(CALM, builds=(BUILT,), max_age=1)) == []
    assert codes(replace(CALM, builds=(BUILT,), now=NOON)) == []


def test_a_mart_that_dbt_does_not_vouch_for_is_refused_in_words() -> None:
    def says(build: Build, max_age: float | None = None) -> list[tuple[str, str, str | None]]:
        return said(replace(CALM, builds=(build,), now=NOON, max_age=max_age))

    assert says(replace(BUILT, status=None)) == [
        (
            "DBT_UNKNOWN",
            "no result that dbt left says how the last run of the model orders ended",
            "dbt keeps only its last command's results: use `dbt build`, test the model after `dbt run`, or"
            " keep the results of `dbt run` beside them as run_results.run.json; or --accept DBT_UNKNOWN",
        )
    ]
    assert says(replace(BUILT, status="skipped")) == [
        (
            "DBT_FAILED",
            "dbt's last run of the model orders ended with: skipped",
            "what it reads, or a test of that, failed before it: dbt's output names it; fix the model and run"
            " dbt again, or --accept DBT_FAILED",
        )
    ]
    ((code, _, hint),) = says(replace(BUILT, status="error"))
    assert (code, hint) == ("DBT_FAILED", "fix the model and run dbt again, or --accept DBT_FAILED")
    assert says(replace(BUILT, failed_tests=("unique_id", "not_null_id"))) == [
        (
            "DBT_TESTS",
            "dbt's tests of orders failed: unique_id, not_null_id",
            "fix the mart, then `dbt build` or `dbt test` (`dbt run` repeats no test); or --accept DBT_TESTS",
        )
    ]
    stale = "the model orders is older than max_age; its last successful dbt run: {}"
    again = "run `dbt build` (`dbt test` overwrites the results of `dbt run`), or --accept DBT_STALE"
    assert says(BUILT, 3599) == [("DBT_STALE", stale.format("2026-11-21 11:00Z"), again)]
    assert says(replace(BUILT, ended_at=None), 1e9) == [("DBT_STALE", stale.format("none"), again)]


def test_a_note_names_a_few_of_the_tests_that_did_not_run() -> None:
    (said,) = note([replace(BUILT, untested=("a", "b", "c", "d", "e"))])
    assert said == "dbt: not tested since the last run of orders: a, b, c and 2 more"
    (said,) = note([replace(BUILT, untested=("a", "b", "c"))])
    assert said == "dbt: not tested since the last run of orders: a, b, c"
