"""Answers that are lost or late: settled by evidence or left in doubt, never guessed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import servers
from tests.api import TOKEN as API_TOKEN
from tests.api import Api, answer, reset
from tests.crashes import FIRST, Append, CampaignScene, PostgresScene, Project, RedisScene, Scene
from tests.proxy import Proxy

COMMITTING = (b"WITH fence", b"COMMIT\0")  # a batch writes its marker, then commits
KILLED = -9


class Proxied:
    """A scene whose project reaches its server through a proxy."""

    def __init__(self, made: Scene, proxy: Proxy, port: str) -> None:
        self.scene, self.proxy, self._port = made, proxy, port
        self.begin()

    def begin(self) -> None:
        self.scene.begin()
        self.project = self.scene.project
        self.project.environ[self._port] = str(self.proxy.port)


@pytest.fixture
def append(tmp_path: Path, postgres: servers.Database) -> Iterator[Proxied]:
    with Proxy(postgres.host, postgres.port) as proxy:
        yield Proxied(Append(tmp_path / "project", postgres), proxy, "PG_PORT")


@pytest.fixture
def upsert(tmp_path: Path, postgres: servers.Database) -> Iterator[Proxied]:
    with Proxy(postgres.host, postgres.port) as proxy:
        yield Proxied(PostgresScene(tmp_path / "project", postgres), proxy, "PG_PORT")


@pytest.fixture
def cache(tmp_path: Path, redis_server: servers.RedisServer) -> Iterator[Proxied]:
    with Proxy(redis_server.host, redis_server.port) as proxy:
        yield Proxied(RedisScene(tmp_path / "project", redis_server), proxy, "CACHE_PORT")


def test_a_commit_whose_answer_is_lost_is_settled_by_its_marker(append: Proxied) -> None:
    append.proxy.drop_reply(*COMMITTING)
    done = append.project.sync()
    assert done.code == 0, done.stderr
    assert done.summary["inserted"] == 40
    assert append.scene.content() == append.project.rows()


def test_a_commit_that_never_arrived_is_voided_and_sent_again(append: Proxied) -> None:
    append.proxy.drop_request(*COMMITTING)
    done = append.project.sync()
    assert done.code == 0, done.stderr
    assert done.summary["retries"] > 0
    assert append.scene.content() == append.project.rows()


def test_a_commit_answered_after_the_deadline_counts_once(append: Proxied) -> None:
    settings = append.project.folder / "retl.yml"
    settings.write_text(settings.read_text().replace("{type: postgres,", "{type: postgres, timeout: 1s,"))
    append.proxy.delay_reply(*COMMITTING, seconds=3)
    done = append.project.sync()
    assert done.code == 0, done.stderr
    assert append.scene.content() == append.project.rows()


def test_an_append_that_cannot_be_settled_now_is_in_doubt_until_it_can_be(append: Proxied) -> None:
    append.proxy.drop_reply(*COMMITTING, refuse=True)
    done = append.project.sync()
    assert done.code == 1
    assert done.summary["status"] == "FAILED"
    assert done.summary["in_doubt"] >= 5, done.stdout + done.stderr
    assert done.summary["in_doubt"] + done.summary["not_attempted"] + done.summary["inserted"] == 40
    append.proxy.heal()
    again = append.project.sync()
    assert again.code == 0, again.stdout
    assert append.scene.content() == append.project.rows()


def test_an_update_nobody_confirmed_is_undone_when_the_mart_goes_back(upsert: Proxied) -> None:
    assert upsert.project.sync().code == 0
    upsert.project.mart("UPDATE mart SET searches = searches + 1000 WHERE user_id < 'user 005'")
    upsert.proxy.drop_reply(*COMMITTING, refuse=True)
    done = upsert.project.sync()
    assert done.code == 1
    assert upsert.scene.content() == upsert.project.rows(), "the commit went through, its answer did not"
    upsert.proxy.heal()
    upsert.project.mart(FIRST)
    assert upsert.project.sync().code == 0
    assert upsert.scene.content() == upsert.project.rows()


def test_redis_commands_whose_replies_are_lost_are_sent_again(cache: Proxied) -> None:
    cache.proxy.drop_reply(b'{"')
    done = cache.project.sync()
    assert done.code == 0, done.stderr
    assert done.summary["retries"] == 1
    assert cache.scene.content() == cache.project.rows()


def test_redis_values_nobody_confirmed_are_undone_when_the_mart_goes_back(cache: Proxied) -> None:
    assert cache.project.sync().code == 0
    cache.project.mart("UPDATE mart SET searches = searches + 1000 WHERE user_id < 'user 005'")
    cache.proxy.drop_reply(b'{"', refuse=True)
    done = cache.project.sync()
    assert done.code == 1
    assert done.summary["in_doubt"] == 5
    cache.proxy.heal()
    cache.project.mart(FIRST)
    assert cache.project.sync().code == 0
    assert cache.scene.content() == cache.project.rows()


def test_a_request_applied_and_not_answered_is_repeated_under_its_key(tmp_path: Path) -> None:
    made = CampaignScene(tmp_path / "project")
    made.empty()
    assert made.tool
    with Proxy("127.0.0.1", int(made.tool.url.rpartition(":")[2])) as proxy:
        project = made.project = Project(
            tmp_path / "project",
            made.sync,
            {**made.environ(), "CAMPAIGN_URL": f"http://127.0.0.1:{proxy.port}"},
        )
        proxy.drop_reply(b"POST /v1")
        done = project.sync()
    made.tool.stop()
    assert done.code == 0, done.stderr
    assert made.tool.replayed == 1
    assert made.doubled() == []
    assert made.content() == project.rows()


# A target that only adds: the events of the test API

EVENTS_YML = """
destination:
  connection: campaigns
  insert: {method: POST, path: /v1/events, wrap: events, max_rows: 100, row: {id: $user_id, attributes: $fields}}
  outcome: {ok: [200], rows: all_or_nothing}
"""
KEYED = EVENTS_YML + "  idempotency: {header: Idempotency-Key, window: 24h}\nwrite: append\nfirst_run: send\n"
UNKEYED = EVENTS_YML + "write: append\nfirst_run: send\n"


class Events:
    """A project that delivers into the API's list of events."""

    def __init__(self, folder: Path, api: Api, sync: str) -> None:
        self.api = api
        self.project = Project(folder, sync, {"CAMPAIGN_URL": api.url, "CAMPAIGN_TOKEN": API_TOKEN})

    def once(self) -> bool:
        ids = sorted(event["id"] for event in self.api.events)
        return ids == [row[0] for row in self.project.rows()]


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as running:
        yield running


def served(_: Any) -> bool:
    """No fault."""
    return False


def test_an_insert_applied_and_reset_twice_arrives_once(tmp_path: Path, api: Api) -> None:
    events = Events(tmp_path / "project", api, KEYED)
    api.faults.extend([served, reset(applied=True), reset(applied=True)])
    done = events.project.sync()
    if done.code:
        assert done.summary["in_doubt"] + done.summary["not_attempted"] + done.summary["inserted"] == 40
        assert events.project.sync().code == 0
    assert events.once()
    sent = {headers["idempotency-key"]: body for _, path, headers, body in api.seen if path == "/v1/events"}
    assert all(
        body == sent[headers["idempotency-key"]]
        for _, path, headers, body in api.seen
        if path == "/v1/events"
    )


def test_an_insert_that_cannot_be_settled_now_is_settled_by_the_next_run(tmp_path: Path, api: Api) -> None:
    events = Events(tmp_path / "project", api, KEYED)
    with Proxy("127.0.0.1", api.port) as proxy:
        events.project.environ["CAMPAIGN_URL"] = f"http://127.0.0.1:{proxy.port}"
        proxy.drop_reply(b"POST /v1", refuse=True)
        done = events.project.sync()
        assert done.code == 1
        assert done.summary["in_doubt"] == 5
        proxy.heal()
        again = events.project.sync()
    assert again.code == 0, again.stdout
    assert events.once()


def test_a_dry_run_says_what_only_a_run_can_ask_after(tmp_path: Path, api: Api) -> None:
    events = Events(tmp_path / "project", api, KEYED)
    assert events.project.sync(RETL_CRASH_AT="batch_answered:2").code == KILLED
    sent = len(api.seen)
    dry = events.project.sync("--dry-run").summary
    assert len([1 for _, path, *_ in api.seen[sent:] if path == "/v1/events"]) == 0
    (note,) = [note for note in dry["notes"] if "unanswered" in note]
    assert f"left {dry['in_doubt']} rows" in note
    done = events.project.sync()
    assert (done.code, done.summary["in_doubt"]) == (0, 0)


def test_outside_the_window_of_its_key_an_insert_stays_in_doubt(tmp_path: Path, api: Api) -> None:
    events = Events(tmp_path / "project", api, KEYED.replace("24h", "0s"))
    killed = events.project.sync(RETL_CRASH_AT="batch_answered:1")
    assert killed.code == KILLED
    sent = len(api.seen)
    api.answers.clear()  # the vendor has forgotten the key
    done = events.project.sync()
    assert done.code == 1
    assert done.summary["in_doubt"] == 5
    assert done.summary["inserted"] == 35
    assert events.once()
    assert len(api.seen) == sent + 7


def test_a_long_pause_with_rows_in_doubt_is_a_failure_and_only_then(tmp_path: Path, api: Api) -> None:
    events = Events(tmp_path / "project", api, KEYED)
    api.faults.extend([served, reset(applied=True), answer(429, b"{}", Retry_After="400")])
    done = events.project.sync()
    assert (done.code, done.summary["in_doubt"], done.summary["inserted"]) == (1, 5, 5)
    assert done.summary["error"]["code"] == "IN_DOUBT"
    assert "asked for a pause until" in done.summary["error"]["message"]
    waiting = events.project.sync()
    assert (waiting.code, waiting.summary["error"]["code"]) == (75, "HELD_OFF")
    assert len([1 for _, path, *_ in api.seen if path == "/v1/events"]) == 3


def test_at_most_once_leaves_in_doubt_what_was_reset_and_never_sends_it_again(
    tmp_path: Path, api: Api
) -> None:
    events = Events(tmp_path / "project", api, UNKEYED + "delivery: at_most_once\n")
    api.faults.extend([served, reset(applied=True)])
    done = events.project.sync()
    assert (done.code, done.summary["in_doubt"]) == (1, 5)
    assert events.once()
    again = events.project.sync()
    assert (again.code, again.summary["in_doubt"], again.summary["unchanged"]) == (1, 5, 35)
    assert events.once()


def test_at_least_once_sends_again_what_was_reset(tmp_path: Path, api: Api) -> None:
    events = Events(tmp_path / "project", api, UNKEYED + "delivery: at_least_once\n")
    api.faults.extend([served, reset(applied=False)])
    done = events.project.sync()
    assert done.code == 0, done.stdout
    assert events.once()


def test_at_least_once_sends_again_in_the_next_run_what_no_answer_came_for(tmp_path: Path, api: Api) -> None:
    """The server fails until the run gives up: nobody has to decide what the sync has decided."""
    events = Events(tmp_path / "project", api, UNKEYED + "delivery: at_least_once\n")
    api.faults.extend([served, *[answer(500)] * 30])
    failed = events.project.sync()
    assert failed.code == 1
    api.faults.clear()
    done = events.project.sync()
    assert (done.code, done.summary["in_doubt"]) == (0, 0), done.stdout
    assert events.once()


def test_a_kill_between_sending_and_answer_is_in_doubt_where_nothing_tells(tmp_path: Path, api: Api) -> None:
    events = Events(tmp_path / "project", api, UNKEYED + "delivery: at_most_once\n")
    assert events.project.sync(RETL_CRASH_AT="batch_sending:2").code == KILLED
    done = events.project.sync()
    assert (done.code, done.summary["in_doubt"], done.summary["inserted"]) == (1, 5, 30)
    assert not events.once(), "the batch was never sent, and nobody can know"
