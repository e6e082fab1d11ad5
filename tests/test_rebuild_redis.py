"""A baseline made anew from what Redis holds, and values that no comparison may call different."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests import values_page
from tests.commands import ROWS, Workshop
from tests.redis_fixtures import workshop
from tests.servers import Database, RedisServer
from tests.test_plans_and_state import run
from tests.test_rebuild import lose_state, rebuilt

__all__ = ["workshop"]  # fixtures


def destination(value: str, ttl: str = "none", key: str = "user:{user_id}") -> str:
    return f'{{type: redis, key: "{key}", value: {value}, ttl: {ttl}}}'


def change(client: Any, value: str, key: str) -> None:
    if value == "hash":
        client.hset(key, "email", "edited")
    else:
        client.set(key, '{"email": "edited", "spend": 1.00}' if value == "json" else "edited")


@pytest.mark.parametrize("ttl", ["none", "1h"])
def test_a_ledger_that_never_delivered_here_is_refused_until_somebody_decides(
    workshop: Workshop, redis_server: RedisServer, ttl: str
) -> None:
    workshop.sync("users", destination=destination("json", ttl))
    run(workshop)
    lose_state(workshop)
    with redis_server.client() as client:
        client.delete("user:3")  # a person who was erased, which the new ledger does not know
        for words in ((), ("--full",), ("--key", "3")):
            refused = run(workshop, *words)
            assert refused["guards"][0]["code"] == "STATE_LOST", words
            assert "must be erased again" in refused["error"]["hint"]
        assert not client.exists("user:3")
        done = workshop.retl(
            "erase", "--sync", "users", "--key", "3", "--reason", "r", "--accept", "STATE_LOST"
        )
        assert done.code == 0, done.err
        assert run(workshop)["guards"][0]["code"] == "STATE_LOST", "an erasure decides for itself alone"
        after = run(workshop, "--accept", "STATE_LOST")
        assert (after["status"], after["skipped"]) == ("SUCCESS", 1)
        assert not client.exists("user:3")


@pytest.mark.parametrize("value", ["json", "hash", "{field: email}"])
def test_only_different_rows_are_sent_and_only_taken_keys_deleted(
    workshop: Workshop, redis_server: RedisServer, value: str
) -> None:
    workshop.sync("users", destination=destination(value), deletes="delete")
    assert run(workshop)["inserted"] == ROWS
    lose_state(workshop)
    with redis_server.client() as client:
        change(client, value, "user:2")
        client.delete("user:3")
        change(client, value, "user:1001")
        client.set("users:1", "another template's")
        client.set("user:01", "no integer's own form" if value != "hash" else "a string")
    found = rebuilt(workshop)
    assert (found["same"], found["different"], found["absent"]) == (ROWS - 2, 1, 1)
    after = run(workshop)
    assert (after["updated"], after["inserted"], after["deletes"]["planned"]) == (1, 1, 0)
    assert rebuilt(workshop, "--take-ownership")["taken"] == 1
    assert run(workshop)["deleted"] == 1
    with redis_server.client() as client:
        assert {key.decode() for key in client.keys("user*")} == {
            *(f"user:{n}" for n in range(1, ROWS + 1)),
            "users:1",
            "user:01",
        }


def test_keys_of_several_parts_and_any_text_are_found_again(
    workshop: Workshop, redis_server: RedisServer
) -> None:
    workshop.warehouse(
        "CREATE TABLE parts AS SELECT * FROM (VALUES ('a:b', DATE '2026-01-01', true, 1.50::DECIMAL(5,2)),"
        " ('*?[x]', DATE '1969-12-31', false, 0.05::DECIMAL(5,2)), ('é %25', DATE '0001-01-01', true, -2::DECIMAL(5,2)))"
        " t(name, day, flag, amount)"
    )
    workshop.sync(
        "users",
        source="{sql: 'SELECT *, 1 AS n FROM parts'}",
        key="[name, day, flag, amount]",
        destination=destination("json", key="p[*]:{flag}/{day}:{name}:{amount}:x{{}}"),
        deletes="delete",
    )
    assert run(workshop)["inserted"] == 3
    with redis_server.client() as client:
        client.set("p1:True/2026-01-01:a:1.50:x{}", "of no template")
    lose_state(workshop)
    assert rebuilt(workshop, "--take-ownership")["same"] == 3
    workshop.warehouse("DELETE FROM parts WHERE name <> 'a:b'")
    lose_state(workshop)
    assert rebuilt(workshop, "--take-ownership")["taken"] == 2
    assert run(workshop)["deleted"] == 2
    assert rebuilt(workshop, "--take-ownership")["taken"] == 0


@pytest.mark.parametrize("value", ["json", "hash"])
def test_a_value_that_expires_before_it_would_be_renewed_is_due(
    workshop: Workshop, redis_server: RedisServer, value: str
) -> None:
    workshop.sync("users", destination=destination(value, ttl="1h"))
    run(workshop)
    lose_state(workshop)
    with redis_server.client() as client:
        client.expire("user:1", 1000)
        client.expire("user:2", 3000)
        client.persist("user:3")
    found = rebuilt(workshop)
    assert (found["same"], found["different"]) == (ROWS - 1, 1)
    assert run(workshop)["updated"] == 1
    with redis_server.client() as client:
        assert client.ttl("user:1") > 3000


def test_a_value_that_must_stay_and_will_expire_is_due(workshop: Workshop, redis_server: RedisServer) -> None:
    workshop.sync("users", destination=destination("json"))
    run(workshop)
    with redis_server.client() as client:
        client.expire("user:1", 10_000)
    assert rebuilt(workshop)["different"] == 1
    run(workshop)
    with redis_server.client() as client:
        assert client.ttl("user:1") == -1


def test_run_values_and_other_entries_are_no_difference(
    workshop: Workshop, redis_server: RedisServer
) -> None:
    fields = "{email: email, at: $run_started_at}"
    workshop.sync("users", destination=destination("json"), fields=fields)
    workshop.sync("hashes", destination=destination("hash", key="h:{user_id}"), fields=fields)
    assert workshop.retl("sync").code == 0
    with redis_server.client() as client:
        client.hset("h:1", "theirs", "x")
    assert rebuilt(workshop)["same"] == ROWS
    assert workshop.json("state", "rebuild", "hashes", "--yes")["same"] == ROWS
    with redis_server.client() as client:
        client.set("user:1", client.get("user:1")[:-1] + b',"more":1}')
        client.set("user:2", "no JSON")
    assert rebuilt(workshop)["different"] == 2


def test_after_a_full_run_no_value_is_called_different(
    tmp_path: Path, postgres: Database, redis_server: RedisServer
) -> None:
    workshop = Workshop(tmp_path / "project")
    workshop.use(redis=redis_server, postgres=postgres)
    workshop.write("retl.yml", f"connections:\n{values_page.FILES}")
    values_page._fill(workshop, values_page.Outcomes())
    values_page._fill_keys(workshop)
    files = () if os.environ.get("RETL_TEST_ALL") else ("sqlite", "duckdb")  # slow
    for name in ("http", "kafka", "mongodb", *files):
        for path in (workshop.folder / "syncs").glob(f"*_{name}.yml"):
            path.unlink()
    ran = workshop.retl("sync", "--output", "json").document["syncs"]
    lose_state(workshop)
    for one in ran:
        assert one["inserted"] > 20
        found = workshop.json("state", "rebuild", one["sync"], "--yes")
        assert (found["same"], found["different"]) == (one["inserted"], 0), one["sync"]
    again = workshop.retl("sync", "--output", "json").document["syncs"]
    assert [one["unchanged"] for one in again] == [one["inserted"] for one in ran]
    assert {one["inserted"] + one["updated"] for one in again} == {0}
