"""Notes that hold from run to run: said when they are new or their facts changed, kept in `retl status`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retl.testing.hubspot import FakeHubSpot
from tests.api import TOKEN, Api
from tests.commands import Workshop
from tests.servers import RedisServer
from tests.test_doubt import APPEND, CONNECTION

TWICE = "delivery is at_least_once: after a crash a row may arrive twice"
CONTRACT = "{user_id: {type: integer}, email: {type: string}, spend: {type: decimal, max_digits: 12, decimal_places: 2, ge: 0}}"  # fmt: skip
UPSERT = (
    "upsert: {method: POST, path: /v1/users, row: {id: $user_id, attributes: $fields}}, outcome: {rows: none}"
)
KEYED = f"{UPSERT}, idempotency: {{header: Idempotency-Key}}"
PUT = UPSERT.replace("POST", "PUT").replace("/v1/users", '"/v1/users/{user_id}"')


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as running:
        yield running


@pytest.fixture
def shop(tmp_path: Path, redis_server: RedisServer) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.use(redis=redis_server)
    made.sync("users", contract=CONTRACT)
    return made


def notes(shop: Workshop, *words: str, name: str = "users") -> list[str]:
    found = shop.json(*(words or ("sync", name)))["syncs"]
    return list(next(one for one in found if one["sync"] == name).get("notes", []))


def standing(shop: Workshop, name: str = "users") -> list[str]:
    return notes(shop, "status", name=name)


def dismissed(shop: Workshop, *ids: int) -> None:
    for one in ids:
        shop.warehouse(f"UPDATE users SET spend = -{one} WHERE user_id = {one}")
    shop.json("sync", "users")
    shop.json("rejects", "dismiss", "--sync", "users", "--all", "--yes")


def test_a_note_is_said_once_and_again_when_its_facts_changed(shop: Workshop) -> None:
    shop.json("sync", "users")
    dismissed(shop, 3)
    one = "1 rejected row is dismissed, until it changes"
    assert notes(shop) == [one]
    assert notes(shop) == []
    assert standing(shop) == [one]
    assert notes(shop, "sync", "users", "--key", "1") == []
    assert one in notes(shop, "plan", "users"), "a plan is read alone: it says all"
    assert notes(shop) == []
    dismissed(shop, 4)
    two = "2 rejected rows are dismissed, until they change"
    assert notes(shop) == [two]
    assert (notes(shop), standing(shop)) == ([], [two])
    shop.warehouse("UPDATE users SET spend = 1 WHERE user_id IN (3, 4)")
    assert (notes(shop), standing(shop)) == ([], [])
    said = shop.retl("status")
    assert "note:" not in said.out


def test_a_run_that_fails_keeps_what_was_said(shop: Workshop) -> None:
    shop.json("sync", "users")
    dismissed(shop, 3)
    (one,) = notes(shop)
    shop.sync("users", contract=CONTRACT, checks='["SELECT * FROM source"]')
    assert shop.retl("sync", "users").code == 3
    assert standing(shop) == [one]
    shop.sync("users", contract=CONTRACT)
    assert notes(shop) == []
    assert f"users: note: {one}" in shop.retl("status").out


def test_reset_state_has_nothing_to_remember(shop: Workshop) -> None:
    shop.json("sync", "users")
    dismissed(shop, 3)
    notes(shop)
    shop.json("state", "reset", "users", "--yes")
    assert standing(shop) == []


def test_that_rows_may_arrive_twice_is_said_by_the_first_run(tmp_path: Path, api: Api) -> None:
    shop = Workshop(tmp_path / "project", {"TOOL_URL": api.url, "TOOL_TOKEN": TOKEN})
    shop.write("retl.yml", CONNECTION)
    shop.sync("events", **{**APPEND, "delivery": "at_least_once"})
    first: list[Any] = notes(shop, name="events")
    assert TWICE in first
    assert TWICE not in notes(shop, name="events")
    assert standing(shop, "events") == [TWICE]


@pytest.mark.parametrize(
    ("connection", "destination", "is_said"),
    [
        ('{type: webhook, url: "${TOOL_URL}/x"}', "{connection: tool}", True),
        ('{type: http, base_url: "${TOOL_URL}"}', f"{{connection: tool, {UPSERT}}}", True),
        ('{type: http, base_url: "${TOOL_URL}"}', f"{{connection: tool, {KEYED}}}", False),
        ('{type: http, base_url: "${TOOL_URL}"}', f"{{connection: tool, {PUT}}}", False),
        (
            '{type: hubspot, base_url: "${HUB_URL}", token: "${HUB_TOKEN}"}',
            "{connection: tool, object: contacts, match: user_id}",
            False,
        ),
    ],
    ids=["webhook", "POST", "key", "PUT", "vendor"],
)
def test_a_plan_says_that_a_receiver_may_get_a_request_twice(
    tmp_path: Path, api: Api, connection: str, destination: str, *, is_said: bool
) -> None:
    """Where only `write: upsert` says that twice is once: no key, no object with an address of its own, and no
    vendor who documents it."""
    with FakeHubSpot() as hubspot:
        found = {"TOOL_URL": api.url, "HUB_URL": hubspot.url, "HUB_TOKEN": hubspot.token}
        shop = Workshop(tmp_path / "project", found)
        shop.write("retl.yml", f"connections: {{tool: {connection}}}\n")
        shop.sync("users", destination=destination)
        said = notes(shop, "sync", "users", "--dry-run")
    assert any("`write: upsert` says" in one and "is sent again" in one for one in said) == is_said


def test_a_mart_without_rows_is_noted_and_the_next_one_is_compared_with_the_one_before(
    shop: Workshop,
) -> None:
    rows = shop.json("sync", "users")["syncs"][0]["inserted"]
    shop.warehouse("CREATE TABLE kept AS FROM users; DELETE FROM users")
    said = f"the mart has no rows: nothing is sent, and {rows} delivered rows stay"
    assert said in notes(shop)
    assert notes(shop) == []
    assert said in standing(shop)
    shop.warehouse("INSERT INTO users FROM kept WHERE user_id <= 3")
    refused = shop.retl("sync", "users")
    assert refused.code == 3
    assert f"the mart fell from {rows} to 3 rows" in refused.err
    shop.warehouse("INSERT INTO users FROM kept WHERE user_id > 3")
    assert shop.json("sync", "users")["syncs"][0]["unchanged"] == rows
