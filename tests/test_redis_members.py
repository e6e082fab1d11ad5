"""Audiences and rankings: sets and sorted sets, delivered and looked after by whole runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Workshop
from tests.servers import RedisServer
from tests.test_erase import erased
from tests.test_plans_and_state import run
from tests.test_rebuild import lose_state, rebuilt
from tests.test_reconcile import reconciled, verdicts

ALL = "RETL_TEST_ALL" in os.environ
MART = """CREATE OR REPLACE TABLE audiences AS
SELECT ['vip', 'new é'][1 + i % 2] AS audience, 'user ' || i AS user_id, i / 2 AS score FROM range(20) t(i)"""


class Shop(Workshop):
    """A sync `users` of (audience, user_id) to one set per audience."""

    server: RedisServer
    value: str

    def define(self, ttl: str = "none") -> None:
        fields = "{audience: audience, user_id: user_id" + (
            ", score: score}" if self.value == "zset" else "}"
        )
        self.sync(
            "users",
            source="{table: audiences}",
            key="[audience, user_id]",
            fields=fields,
            destination=f'{{type: redis, key: "seg:{{audience}}", value: {self.value}, ttl: {ttl}}}',
            deletes="delete",
        )

    def held(self) -> set[tuple[Any, ...]]:
        """(Redis key, member), or with the score."""
        with self.server.client() as client:
            keys = list(client.keys("seg:*"))
            if self.value == "set":
                return {(key, member) for key in keys for member in client.smembers(key)}
            return {(key, *pair) for key in keys for pair in client.zrange(key, 0, -1, withscores=True)}

    def wanted(self, rows: int = 20) -> set[tuple[Any, ...]]:
        found = set()
        for i in range(rows):
            key = (b"seg:vip", b"seg:new%20%C3%A9")[i % 2]
            found.add((key, b"user %d" % i, *((i / 2,) if self.value == "zset" else ())))
        return found


@pytest.fixture(params=["set", "zset"] if ALL else ["zset"])
def shop(tmp_path: Path, redis_server: RedisServer, request: pytest.FixtureRequest) -> Shop:
    made = Shop(tmp_path / "project")
    made.server, made.value = redis_server, request.param
    made.use(redis=redis_server)
    made.warehouse(MART)
    made.define()
    return made


def test_only_the_difference_is_added_and_removed(shop: Shop) -> None:
    with shop.server.client() as client:
        client.zadd("seg:vip", {"theirs": 1}) if shop.value == "zset" else client.sadd("seg:vip", "theirs")
    assert run(shop)["inserted"] == 20
    shop.warehouse("DELETE FROM audiences WHERE user_id IN ('user 3', 'user 4')")
    shop.warehouse("INSERT INTO audiences VALUES ('vip', 'user 100', 7)")
    after = run(shop)
    assert (after["inserted"], after["deleted"], after["unchanged"]) == (1, 2, 18)
    gone = {b"user 3", b"user 4"}
    expected = {one for one in shop.wanted() if one[1] not in gone}
    more = {(b"seg:vip", b"user 100"), (b"seg:vip", b"theirs")}
    assert {one[:2] for one in shop.held()} == {one[:2] for one in expected} | more
    if shop.value == "zset":
        shop.warehouse("UPDATE audiences SET score = score + 0.25 WHERE user_id = 'user 5'")
        assert run(shop)["updated"] == 1
        assert (b"seg:new%20%C3%A9", b"user 5", 2.75) in shop.held()


def test_what_others_removed_is_noticed_and_repaired(shop: Shop) -> None:
    run(shop)
    with shop.server.client() as client:
        client.srem("seg:vip", "user 2") if shop.value == "set" else client.zrem("seg:vip", "user 2")
        if shop.value == "zset":
            client.zadd("seg:vip", {"user 4": 99})
    expected = {"same": 19, "missing": 1} if shop.value == "set" else {"same": 18, "missing": 1, "edited": 1}
    assert verdicts(reconciled(shop)) == expected
    assert shop.retl("reconcile", "users", "--repair").code == 0
    assert shop.held() == shop.wanted()


def test_a_lost_state_is_rebuilt_from_the_members(shop: Shop) -> None:
    run(shop)
    lose_state(shop)
    with shop.server.client() as client:
        if shop.value == "set":
            client.srem("seg:vip", "user 2")
            client.sadd("seg:new%20%C3%A9", "user 1000")
        else:
            client.zrem("seg:vip", "user 2")
            client.zadd("seg:new%20%C3%A9", {"user 1000": 1, "user 3": 77})
        client.set("seg:other", "somebody's")
    different = int(shop.value == "zset")
    found = rebuilt(shop)
    assert (found["same"], found["different"], found["absent"]) == (19 - different, different, 1)
    assert rebuilt(shop, "--take-ownership")["taken"] == 1
    after = run(shop)
    assert (after["inserted"], after["updated"], after["deleted"]) == (1, different, 1)
    with shop.server.client() as client:
        client.delete("seg:other")
    assert shop.held() == shop.wanted()


def test_a_server_that_forgot_is_refused_until_every_row_is_asked_for(shop: Shop) -> None:
    run(shop)
    with shop.server.client() as client:
        client.flushdb()
    assert run(shop)["error"]["code"] == "TARGET_LOST"
    assert run(shop, "--full")["updated"] == 20
    assert shop.held() == shop.wanted()


if ALL:

    def test_a_set_with_a_ttl_is_filled_again(shop: Shop) -> None:
        shop.define(ttl="1h")
        run(shop)
        with shop.server.client() as client:
            assert client.ttl("seg:vip") > 3500
            client.flushdb()
        assert run(shop)["status"] == "SUCCESS"
        assert shop.held() == shop.wanted()


def test_one_set_that_vanished_is_found_by_the_sample(shop: Shop) -> None:
    run(shop)
    with shop.server.client() as client:
        client.delete("seg:vip")
    assert run(shop)["error"]["code"] == "TARGET_LOST"


def test_a_person_is_erased_from_each_set(shop: Shop) -> None:
    run(shop)
    (done,) = erased(shop, "--sync", "users", "--key", '["vip", "user 6"]')["syncs"]
    assert done["proof"]["target"] == {"how": "delete", "keys": 1, "read_back": True, "there": 1, "absent": 0}
    assert shop.held() == {one for one in shop.wanted() if one[1] != b"user 6"}
    assert run(shop)["skipped"] == 1
