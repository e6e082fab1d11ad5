"""Kill a run anywhere: one more plain sync reaches what a run that nobody killed reaches, nothing twice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import servers
from tests.crash_sweep import sweep_calls, sweep_events, traceable
from tests.crashes import FIRST, KINDS, CampaignScene, Scene, Tally, recover, scene

KILLED = -9
OFTEN = 1  # kills at an event that comes often; `make test-crash` kills at each


@pytest.fixture
def of_kind(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    postgres: servers.Database,
    redis_server: servers.RedisServer,
) -> Iterator[Scene]:
    with scene(request.param, tmp_path / "project", postgres, redis_server) as made:
        yield made


every_kind = pytest.mark.parametrize(
    "of_kind", [kind for kind in KINDS if "state" not in kind], indirect=True
)


@every_kind
def test_a_run_killed_at_any_event_is_made_good_by_the_next(of_kind: Scene) -> None:
    tally = Tally()
    sweep_events(of_kind, tally, most=OFTEN)
    assert tally.problems == []
    assert tally.kills > 10
    assert "RUNNING" not in of_kind.project.statuses()


CALLS = {"upsert": "recvfrom", "append": "sendto", "redis": "pwrite64", "http": "fdatasync"}


@pytest.mark.skipif(traceable() is not None and "CI" not in os.environ, reason=str(traceable()))
@pytest.mark.parametrize("of_kind", CALLS, indirect=True)
def test_a_run_killed_at_a_system_call_is_made_good_by_the_next(
    of_kind: Scene, request: pytest.FixtureRequest
) -> None:
    tally = Tally()
    call = CALLS[request.node.callspec.params["of_kind"]]
    through = sweep_calls(of_kind, call, tally, iter((1, 3, 9, 27, 81, 243, 729)))
    assert through, "no run got through"
    assert tally.problems == []
    assert tally.kills >= 3


@pytest.mark.parametrize("of_kind", ["append", "append, state in postgres", "deletes", "http"], indirect=True)
def test_a_recovery_that_is_killed_too_is_made_good(of_kind: Scene) -> None:
    first = "batch_answered:2"
    assert of_kind.project.sync(RETL_CRASH_AT=first).code == KILLED
    points = of_kind.project.sync().points()
    tally = Tally()
    for event in ("run_abandoned", "batch_settled", "batch_answered"):
        if event in points:
            of_kind.begin()
            assert of_kind.project.sync(RETL_CRASH_AT=first).code == KILLED
            assert of_kind.project.sync(RETL_CRASH_AT=event).code == KILLED
            recover(of_kind, f"{first}, then {event}", tally)
    assert tally.problems == []
    assert set(of_kind.project.statuses()[-4:-2]) == {"ABANDONED"}


@pytest.mark.parametrize("of_kind", ["upsert", "redis", "http"], indirect=True)
def test_a_value_that_goes_back_around_a_lost_acknowledgement_goes_back_in_the_target(of_kind: Scene) -> None:
    project = of_kind.project
    assert project.sync().code == 0
    first = of_kind.content()
    project.mart("UPDATE mart SET searches = searches + 1000 WHERE user_id < 'user 010'")
    assert project.sync(RETL_CRASH_AT="batch_answered:2").code == KILLED
    assert of_kind.content() != first, "nothing was applied before the kill"
    project.mart(FIRST)
    done = project.sync()
    assert done.code == 0, done.stderr
    assert of_kind.content() == project.rows() == first


@pytest.mark.parametrize("of_kind", ["deletes"], indirect=True)
def test_a_key_delivered_without_acknowledgement_is_deleted_when_the_mart_drops_it(of_kind: Scene) -> None:
    project = of_kind.project
    project.mart("INSERT INTO mart VALUES ('user 200', 'new', 1, NULL)")
    assert project.sync(RETL_CRASH_AT="batch_answered:2").code == KILLED
    assert [row for row in of_kind.content() if row[0] == "user 200"] or of_kind.content() != project.rows()
    project.mart("DELETE FROM mart WHERE user_id = 'user 200'")
    done = project.sync()
    assert done.code == 0, done.stdout
    assert of_kind.content() == project.rows()


@pytest.mark.parametrize("of_kind", ["http"], indirect=True)
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


@pytest.mark.parametrize("of_kind", ["append"], indirect=True)
def test_an_adoption_that_is_killed_sends_nothing_afterwards(of_kind: Scene) -> None:
    of_kind.sync = of_kind.sync.replace("first_run: send", "first_run: adopt")
    of_kind.begin()
    faultless = of_kind.project.sync()
    assert (faultless.code, faultless.summary["skipped"]) == (0, 40)
    for event in ("run_started", "answers_recorded", "part_written", "committing", "run_finished"):
        assert event in faultless.points()
        of_kind.begin()
        assert of_kind.project.sync(RETL_CRASH_AT=event).code == KILLED
        for _ in range(2):
            again = of_kind.project.sync()
            assert again.code == 0, f"{event}: {again.stdout}"
        assert of_kind.content() == []
        assert again.summary["unchanged"] == 40
