"""Kill a run anywhere: one more plain sync reaches what a run that nobody killed reaches, nothing twice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import servers
from tests.crash_sweep import KILLED, LOST_ANSWER, FailureRate, recover, sweep_calls, sweep_events, traceable
from tests.crashes import FIRST, CampaignScene, Scene
from tests.databases import MYSQL
from tests.scenes import KINDS, scene

EVERYTHING = bool(os.environ.get("RETL_TEST_ALL"))
FEW = (
    3 if EVERYTHING else 2
)  # kills per kind of delivery here; `make test-crash` has as many as its time allows


@pytest.fixture
def of_kind(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    postgres: servers.Database,
    redis_server: servers.RedisServer,
) -> Iterator[Scene]:
    mysql = request.getfixturevalue("mysql") if request.param in MYSQL else None
    with scene(request.param, tmp_path / "project", postgres, redis_server, mysql) as made:
        yield made


def of_kinds(*kinds: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("of_kind", kinds, indirect=True)


# Kinds that are killed at more steps elsewhere; and the first of LONG takes as long as all others.
ELSEWHERE = (
    "kafka",
    "kafka, append",
    "dynamodb, whole",
    "delta",
    "mongodb",
    "mongodb, append",
    "mongodb, alone",
)
LONG = ("duckdb deletes", *([] if EVERYTHING else [*MYSQL, *ELSEWHERE]))


@of_kinds(*(kind for kind in KINDS if kind not in LONG))
def test_a_run_killed_at_any_event_is_made_good_by_the_next(
    of_kind: Scene, request: pytest.FixtureRequest
) -> None:
    failure_rate = FailureRate()
    kind = KINDS.index(request.node.callspec.params["of_kind"])
    sweep_events(of_kind, failure_rate, FEW, turn=kind)  # each kind its own events: together they are all
    assert failure_rate.problems == []
    assert FEW - 1 <= failure_rate.kills <= FEW
    assert "RUNNING" not in of_kind.project.statuses()


CALLS = {
    "upsert": "recvfrom",
    "append": "sendto",
    "redis": "pwrite64",
    "http": "fdatasync",
    "delta, append": "linkat",  # a commit becomes visible
}


@pytest.mark.skipif(traceable() is not None and "CI" not in os.environ, reason=str(traceable()))
@of_kinds(*CALLS)
def test_a_run_killed_at_a_system_call_is_made_good_by_the_next(
    of_kind: Scene, request: pytest.FixtureRequest
) -> None:
    failure_rate = FailureRate()
    sweep_calls(of_kind, [CALLS[request.node.callspec.params["of_kind"]]], failure_rate, FEW)
    assert failure_rate.problems == []
    assert failure_rate.kills == FEW


@of_kinds("append, state in postgres", "http append", *(["append", "soft deletes"] if EVERYTHING else []))
def test_a_recovery_that_is_killed_too_is_made_good(of_kind: Scene) -> None:
    assert of_kind.project.sync(RETL_CRASH_AT=LOST_ANSWER).code == KILLED
    points = of_kind.project.sync().points()
    failure_rate = FailureRate()
    for event in ("run_abandoned", "batch_settled", "batch_answered"):
        if event in points:
            of_kind.begin()
            assert of_kind.project.sync(RETL_CRASH_AT=LOST_ANSWER).code == KILLED
            assert of_kind.project.sync(RETL_CRASH_AT=event).code == KILLED
            recover(of_kind, f"{LOST_ANSWER}, then {event}", failure_rate)
    assert failure_rate.problems == []
    assert set(of_kind.project.statuses()[-4:-2]) == {"ABANDONED"}


@of_kinds("upsert", "upsert, state in postgres", "redis", "redis, hash", "http")
def test_a_value_that_goes_back_around_a_lost_acknowledgement_goes_back_in_the_target(of_kind: Scene) -> None:
    project = of_kind.project
    assert project.sync().code == 0
    first = of_kind.content()
    project.mart("UPDATE mart SET searches = searches + 1000 WHERE user_id < 'user 010'")
    assert project.sync(RETL_CRASH_AT=LOST_ANSWER).code == KILLED
    assert of_kind.content() != first, "nothing was applied before the kill"
    project.mart(FIRST)
    done = project.sync()
    assert done.code == 0, done.stderr
    assert of_kind.content() == project.rows() == first


@of_kinds("deletes")
def test_a_key_delivered_without_acknowledgement_is_deleted_when_the_mart_drops_it(of_kind: Scene) -> None:
    project = of_kind.project
    project.mart("INSERT INTO mart VALUES ('user 200', 'new', 1, NULL)")
    assert project.sync(RETL_CRASH_AT=LOST_ANSWER).code == KILLED
    assert [row for row in of_kind.content() if row[0] == "user 200"] or of_kind.content() != project.rows()
    project.mart("DELETE FROM mart WHERE user_id = 'user 200'")
    done = project.sync()
    assert done.code == 0, done.stdout
    assert of_kind.content() == project.rows()


@of_kinds("http")
def test_what_was_sent_without_an_answer_is_sent_again_with_the_same_key_and_bytes(of_kind: Scene) -> None:
    assert isinstance(of_kind, CampaignScene)
    assert of_kind.project.sync(RETL_CRASH_AT="batch_answered:3").code == KILLED
    assert of_kind.tool
    last = of_kind.tool.sent[-1]
    of_kind.project.mart("UPDATE mart SET searches = 0 WHERE user_id > 'user 030'")
    assert of_kind.project.sync().code == 0
    assert of_kind.tool.sent.count(last) == 2
    assert of_kind.tool.replayed == 1
    assert of_kind.doubled() == []
    assert of_kind.content() == of_kind.project.rows()


@of_kinds("append")
def test_an_adoption_that_is_killed_sends_nothing_afterwards(of_kind: Scene) -> None:
    of_kind.sync = of_kind.sync.replace("first_run: send", "first_run: adopt")
    of_kind.begin()
    faultless = of_kind.project.sync()
    assert (faultless.code, faultless.summary["skipped"]) == (0, 40)
    for event in ("run_started", "answers_recorded", "delta_written", "committing", "run_finished"):
        assert event in faultless.points()
        of_kind.begin()
        assert of_kind.project.sync(RETL_CRASH_AT=event).code == KILLED
        for _ in range(2):
            again = of_kind.project.sync()
            assert again.code == 0, f"{event}: {again.stdout}"
        assert of_kind.content() == []
        assert again.summary["unchanged"] == 40


@of_kinds("append, state in postgres", "upsert", "http")
def test_what_killed_runs_left_behind_is_gone_after_the_next_one(of_kind: Scene) -> None:
    project = of_kind.project
    with (of_kind.folder / "retl.yml").open("a") as file:  # the history would keep the deltas
        file.write("defaults: {log: {keep: 1ms}}\n")
    for event in ("delta_written", "batch_answered", "baseline_compacted", "run_finished"):
        project.mart("INSERT INTO mart SELECT max(user_id) || '+', 'new', 1, NULL FROM mart")
        assert project.sync(RETL_CRASH_AT=event).code == KILLED
    assert len(of_kind.run_files()) > 1
    assert project.sync().code == 0
    assert of_kind.run_files() == of_kind.needed()
    assert of_kind.content() == project.rows()


@of_kinds("upsert", "append", "http append")
def test_an_apply_that_is_killed_spends_its_plan_and_sync_carries_on(of_kind: Scene) -> None:
    for event, spent in (("run_started", False), ("delta_written", True), (LOST_ANSWER, True)):
        of_kind.begin()
        project, file = of_kind.project, str(of_kind.folder / "users.plan")
        assert project.run("plan", "--sync", "users", "--out", file).end().code == 0
        assert project.run("apply", file, RETL_CRASH_AT=event).end().code == KILLED
        again = project.run("apply", file).end()
        if spent:
            assert (again.code, again.summary["error"]["code"]) == (3, "PLAN_MOVED"), again.stdout
        else:
            assert again.code == 0, again.stdout
        failure_rate = FailureRate()
        recover(of_kind, f"apply, {event}", failure_rate)
        assert failure_rate.problems == []
