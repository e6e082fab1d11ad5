"""One limit per connection, whoever sends: seen at the target, by the times at which requests arrived."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import sleep
from typing import Any

import pytest

from retl.testing import FakeHubSpot
from tests import api as fake
from tests import duckdb_files, forked, servers
from tests.api import TOKEN, Api, passed
from tests.commands import ROWS, Workshop
from tests.crashes import Running, until

PATIENCE = 180
NAMES = ("first", "second", "third")


def busiest(times: Sequence[float], window: float) -> int:
    """The most requests that arrived in any window of so many seconds."""
    times, start, most = sorted(times), 0, 0
    for end, time in enumerate(times):
        while times[start] <= time - window:
            start += 1
        most = max(most, end - start + 1)
    return most


class Tenants(Api):
    """The API, once for each of NAMES: the first part of a path."""

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        return super().serve(method, path[path.index("/v1/") :], headers, body)


class Runs:
    """Runs of a project under way; none outlives the test."""

    def __init__(self, shop: Workshop) -> None:
        self.shop = shop
        self._all: list[Running] = []

    def start(self, name: str) -> Running:
        number = len(self._all)
        out, err = (self.shop.folder.with_name(f"{stream}.{number}") for stream in ("out", "err"))
        words = ("sync", "--sync", name, "--output", "json")
        environ = self.shop.environ(RETL_LOG_LEVEL="warning")
        run = Running(forked.started(words, environ, out, err, self.shop.folder), out, err)
        self._all.append(run)
        return run

    def summary(self, run: Running, code: int = 0) -> dict[str, Any]:
        ended = run.end(PATIENCE)
        assert ended.code == code, ended.stdout + ended.stderr
        return ended.summary

    def kill(self, run: Running) -> None:
        os.kill(run.pid, signal.SIGKILL)
        run.end()

    def end(self) -> None:
        for run in self._all:
            if run.alive:
                self.kill(run)


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path / "project")


@pytest.fixture
def runs(shop: Workshop) -> Iterator[Runs]:
    made = Runs(shop)
    yield made
    made.end()


@pytest.fixture
def api() -> Iterator[Api]:
    with Tenants() as api:
        yield api


LISTED = "rows: positional, at: results, partial: [207], row_ok: {at: status, in: [updated]}"


def define(
    shop: Workshop, api: Api, limits: str, *, state: str = "file:.retl", outcome: str = LISTED
) -> None:
    """A connection with these limits, and three syncs of it that send a row per request."""
    auth = f"{{type: bearer, token: {TOKEN}}}"
    shop.write(
        "retl.yml",
        f"connections:\n  crm: {{type: http, base_url: '{api.url}', auth: {auth}, limits: {limits}}}\n"
        f"state: {{url: '{state}'}}\n",
    )
    for name in NAMES:
        shop.sync(
            name,
            key="[id]",
            source=f"{{sql: \"SELECT '{name}-' || user_id AS id, email AS name, user_id AS visits FROM users\"}}",
            destination="{connection: crm,"
            f" upsert: {{method: POST, path: /{name}/v1/users/batch, wrap: users,"
            " row: {id: $key, attributes: $fields}},"
            f" outcome: {{{outcome}}}}}",
            batch="{rows: 1}",
        )


def senders(api: Api) -> list[str]:
    return [path.split("/")[1] for _, path, _, _ in api.seen]


@pytest.mark.parametrize("state", ["sqlite", "postgres"])
def test_three_processes_keep_one_limit(
    state: str, shop: Workshop, runs: Runs, api: Api, request: pytest.FixtureRequest
) -> None:
    url = "file:.retl"
    if state == "postgres":
        database: servers.Database = request.getfixturevalue("postgres")
        url = database.url
    define(shop, api, "{requests: 40, per: 2s, share: 0.5}", state=url)
    processes = [runs.start(name) for name in NAMES]
    assert [runs.summary(one)["inserted"] for one in processes] == [30] * 3
    assert busiest(api.times, 2.0) <= 20
    assert len(api.users) == len(api.seen) == 90
    assert set(senders(api)[:60]) == set(NAMES), "one of them had it all"


def test_what_a_killed_run_sent_counts(shop: Workshop, runs: Runs, api: Api) -> None:
    define(shop, api, "{requests: 20, per: 3s, share: 0.5}")
    for sent in (4, 14):
        run = runs.start("first")
        until(lambda wanted=sent: len(api.seen) >= wanted)  # type: ignore[misc]
        runs.kill(run)
    runs.summary(runs.start("first"))
    assert len(api.users) == 30
    assert busiest(api.times, 3.0) <= 10


def test_ten_thousand_rows_under_a_storm_and_two_kills_end_exact_at_half_of_the_rate(
    shop: Workshop, runs: Runs
) -> None:
    """HubSpot's published 100 requests per 10 seconds, of which half are ours."""
    shop.warehouse(
        "CREATE TABLE contacts AS SELECT 'c' || i || '@example.com' AS email, 'Name ' || i AS name,"
        " i % 97 AS visits FROM range(10000) t(i)"
    )
    storm = fake.answer(429, b'{"status":"error","category":"RATE_LIMITS","message":"secondly limit"}')
    with FakeHubSpot() as api:
        shop.write(
            "retl.yml",
            f"connections:\n  hubspot: {{type: hubspot, token: {TOKEN}, base_url: '{api.url}'}}\n",
        )
        shop.sync(
            "contacts",
            source="{table: contacts}",
            key="[email]",
            destination="{connection: hubspot, object: contacts, match: email}",
        )
        api.faults += ([passed] * 9 + [storm] * 3) * 6
        for sent in (25, 70):
            run = runs.start("contacts")
            until(lambda wanted=sent: len(api.seen) >= wanted)  # type: ignore[misc]
            runs.kill(run)
        last = runs.summary(runs.start("contacts"))
    assert last["status"] == "SUCCESS"
    with duckdb_files.opened(shop.folder / "data" / "warehouse.duckdb", read_only=True) as connection:
        rows = connection.execute("SELECT email, name, visits::VARCHAR FROM contacts").fetchall()
    assert api.objects == {email: {"name": name, "visits": visits} for email, name, visits in rows}
    assert not api.faults, "the storm was not seen out"
    assert busiest(api.times, 10.0) <= 50
    runs_made = shop.json("runs")["runs"]
    assert [one["status"] for one in reversed(runs_made)] == ["ABANDONED", "ABANDONED", "SUCCESS"]


def test_a_spent_day_ends_the_run_and_keeps_the_next_from_beginning(
    shop: Workshop, runs: Runs, api: Api
) -> None:
    define(shop, api, "{per_day: 80, share: 0.5}")
    processes = [runs.start(name) for name in NAMES[:2]]
    ended = [run.end(PATIENCE) for run in processes]
    assert len(api.seen) == len(api.users) == 40
    spent = [runs.summary(run, 75) for run, end in zip(processes, ended, strict=True) if end.code]
    assert spent, "70 requests are more than the budget"
    for one in spent:
        assert (one["status"], one["error"]["code"]) == ("INTERRUPTED", "BUDGET_SPENT")
        assert one["inserted"] + one["not_attempted"] == 30
        assert one["in_doubt"] == 0
    late = runs.summary(runs.start("third"), 75)
    assert (late["status"], late["error"]["code"]) == ("BLOCKED", "BUDGET_SPENT")
    assert len(api.seen) == 40

    define(shop, api, "{per_day: 800, share: 0.5}")
    for name in NAMES:
        runs.summary(runs.start(name))
    assert len(api.users) == 90
    assert len(api.seen) == 90, "something was sent twice"


def test_a_budget_that_the_target_tells_of_is_heeded(shop: Workshop, runs: Runs, api: Api) -> None:
    told = "rows: none, budget: {header: Api-Usage, used: '([0-9]+)/([0-9]+)'}"
    define(shop, api, "{share: 0.5}", outcome=told)
    api.faults += [fake.instead(200, b"", Api_Usage=f"{used}/100") for used in (48, 49, 50)]
    first = runs.summary(runs.start("first"), 75)
    assert (first["inserted"], first["not_attempted"], first["error"]["code"]) == (3, 27, "BUDGET_SPENT")
    assert runs.summary(runs.start("second"), 75)["status"] == "BLOCKED"
    assert len(api.seen) == 3
    assert shop.retl("state", "unblock", "crm", "--yes").code == 0
    assert runs.summary(runs.start("first"))["inserted"] == 27


def test_without_its_ledger_nothing_is_sent(
    shop: Workshop, runs: Runs, api: Api, postgres: servers.Database
) -> None:
    define(shop, api, "{requests: 5, per: 3s, share: 1}", state=postgres.url)
    run = runs.start("first")
    until(lambda: len(api.seen) >= 5)
    with postgres.connect() as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    ended = run.end(PATIENCE)
    said = ended.stdout + ended.stderr
    assert ended.code == 1, said
    assert "STATE_UNREACHABLE" in said or "LOCK_LOST" in said
    assert len(api.seen) == 5


class Together:
    """A fault that only takes its time, and knows how many requests did so at once."""

    def __init__(self) -> None:
        self.lock, self.now, self.most = threading.Lock(), 0, 0

    def __call__(self, exchange: Any) -> bool:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        sleep(0.05)
        with self.lock:
            self.now -= 1
        return False


@pytest.mark.parametrize(("limits", "most"), [("{share: 1}", 1), ("{concurrency: 3}", 3)])
def test_a_sync_sends_as_many_requests_at_once_as_the_limits_say(
    shop: Workshop, runs: Runs, api: Api, limits: str, most: int
) -> None:
    together = Together()
    define(shop, api, limits)
    api.misbehave(*[together] * ROWS)
    said = runs.summary(runs.start("first"))
    assert (said["inserted"], len(api.objects)) == (ROWS, ROWS)
    assert together.most == most
