"""Every source that runs here, while runs are killed and while the source changes, vanishes or is lost: PostgreSQL
ends with what the source says, or with what it had."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tenacity import wait_none

from retl.pace import limiter
from tests.crash_sweep import KILLED, FailureRate, recover, sweep_events
from tests.servers import Database
from tests.sourced import BUCKETS, KINDS, FromSource, Servers, acts, broken, mart_in

EVERYTHING = bool(os.environ.get("RETL_TEST_ALL"))
KILLS = 60  # more than there are events: all of them
# One kill for each source, each at another place; `duckdb` is killed in test_crash.py.
SHORT = {
    "sqlite": "mart_frozen",
    "parquet": "delta_written",
    "parquet in a bucket": "batch_answered:2",
    "delta, feed": "batch_acknowledged",
    "iceberg, feed": "committing",
    "postgres": "batch_answered",
    "rest": "answers_recorded",
    "clickhouse": "batch_sending:2",
    "mysql": "guards_judged",
}
FEW = [("delta, feed", "vanishes"), ("postgres", "is lost")]
ACTS = [(kind, what) for kind in KINDS for what in acts(kind) if EVERYTHING or (kind, what) in FEW]


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limiter, "_PAUSES", wait_none())


@pytest.fixture
def of_kind(request: pytest.FixtureRequest, tmp_path: Path, postgres: Database) -> Iterator[FromSource]:
    kind = request.param
    servers = Servers(postgres)
    if kind in BUCKETS:
        servers.objectstore = request.getfixturevalue("objectstore")
    if kind == "mysql":
        servers.mysql = request.getfixturevalue("mysql")
    with mart_in(kind, servers) as made:
        yield FromSource(tmp_path / "project", postgres, made)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "of_kind", KINDS if EVERYTHING else [kind for kind in KINDS if kind in SHORT], indirect=True
)
def test_a_run_killed_at_any_event_is_made_good_by_the_next(
    of_kind: FromSource, request: pytest.FixtureRequest
) -> None:
    failure_rate = FailureRate()
    of_kind.begin()
    if EVERYTHING:
        sweep_events(of_kind, failure_rate, KILLS)
    else:
        event = SHORT[request.node.callspec.params["of_kind"]]
        assert of_kind.project.sync(RETL_CRASH_AT=event).code == KILLED, f"{event} was not reached"
        recover(of_kind, event, failure_rate, again=False)
    assert failure_rate.problems == []
    assert failure_rate.kills >= 1
    print(failure_rate.tried)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("of_kind", "what"), ACTS, indirect=["of_kind"])
def test_a_source_that_changes_vanishes_or_is_lost_delivers_one_state_or_nothing(
    of_kind: FromSource, what: str
) -> None:
    print(f"{what}: {broken(of_kind, what)}")
