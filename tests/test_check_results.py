"""Results of Great Expectations and Soda as a gate: shapes as these tools write them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from retl.project.definitions import Results
from retl.run.results import failed
from tests.commands import Workshop
from tests.servers import RedisServer

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
META = {"run_id": {"run_name": None, "run_time": "2026-11-28T06:00:00+00:00"}}


def expectation(*, success: bool, word: str = "type") -> dict[str, Any]:
    kwargs = {"column": "email", "value_set": ["ada@example.com"]}
    return {
        "success": success,
        "expectation_config": {word: "expect_column_values_to_be_in_set", "kwargs": kwargs},
        "result": {"partial_unexpected_list": ["bob@example.com"]},
    }


def suite(*, success: bool, **more: Any) -> dict[str, Any]:
    return {
        "success": success,
        "results": [expectation(success=True), expectation(success=success)],
        "meta": META,
        **more,
    }


def scan(*outcomes: str, errors: bool = False) -> dict[str, Any]:
    checks = [
        {"name": f"row_count > {n}", "outcome": one, "table": "users"} for n, one in enumerate(outcomes)
    ]
    return {
        "scanEndTimestamp": "2026-11-28T06:00:00+00:00",
        "hasErrors": errors,
        "hasFailures": "fail" in outcomes,
        "checks": checks,
    }


DESCRIBED = {
    "success": False,
    "validation_results": [
        {
            "success": False,
            "expectations": [
                {
                    "expectation_type": "expect_column_to_exist",
                    "success": False,
                    "kwargs": {"column": "email"},
                }
            ],
        }
    ],
}


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (suite(success=True), []),
        (suite(success=False), ["expect_column_values_to_be_in_set failed for email"]),
        (
            {"run_results": {"a": {"validation_result": suite(success=False)}, "b": suite(success=True)}},
            ["expect_column_values_to_be_in_set failed for email"],
        ),
        (DESCRIBED, ["expect_column_to_exist failed for email"]),
        ({**suite(success=True), "success": False}, ["the suite failed"]),
        (
            {"success": True, "results": [expectation(success=False, word="expectation_type")]},
            ["expect_column_values_to_be_in_set failed for email"],
        ),
        (scan("pass", "warn"), []),
        (scan("pass", "fail"), ["check row_count > 1 (users) ended with fail"]),
        (scan("pass", errors=True), ["the scan had errors"]),
    ],
)
def test_each_failure_is_named_without_a_value(tmp_path: Path, found: Any, says: list[str]) -> None:
    (tmp_path / "results.json").write_text(json.dumps(found))
    said = failed(Results(results="results.json"), tmp_path, NOW)
    assert said == [f"results.json: {one}" for one in says]
    assert "example.com" not in str(said)


@pytest.mark.parametrize(
    "found", [suite(success=True), scan("pass"), {"run_results": {"a": suite(success=True)}}]
)
def test_results_say_when_they_were_made(tmp_path: Path, found: Any) -> None:
    (tmp_path / "results.json").write_text(json.dumps(found))
    assert failed(Results(results="results.json", max_age=7 * 3600.0), tmp_path, NOW) == []
    assert failed(Results(results="results.json", max_age=5 * 3600.0), tmp_path, NOW) != []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "there are no results at results.json"),
        ("{", "results.json is no JSON"),
        ("{}", "has no results of Great Expectations or Soda"),
        ("[]", "has no results of Great Expectations or Soda"),
        ('{"success": true}', "has no results of Great Expectations or Soda"),
        (json.dumps({"success": True, "results": []}), "from an unknown time, older than max_age"),
        (json.dumps(scan("pass")), "from 2026-11-28 06:00Z, older than max_age"),
    ],
)
def test_results_that_say_nothing_are_no_good_results(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    (said,) = failed(Results(results="results.json", max_age=3600.0), tmp_path, NOW)
    assert says in said


def test_a_failed_check_refuses_the_run(tmp_path: Path, redis_server: RedisServer) -> None:
    shop = Workshop(tmp_path / "shop")
    shop.use(redis=redis_server)
    shop.sync("s", checks="[{results: quality/soda.json}, 'SELECT * FROM source WHERE spend < 0']")
    shop.write("quality/soda.json", json.dumps(scan("fail")))
    said = shop.retl("sync")
    assert said.code == 3
    assert "check row_count > 0 (users) ended with fail [CHECK_FAILED]" in said.err
    shop.write("quality/soda.json", json.dumps(scan("pass")))
    assert shop.retl("sync").code == 0
