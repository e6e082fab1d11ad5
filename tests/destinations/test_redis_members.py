"""A Redis key that holds many rows: sets and sorted sets pass the suite, and keep the promises that are theirs."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any, Literal

import pytest
from msgspec.structs import replace

from retl.destinations.batch import Field, Kind, Shape
from retl.destinations.redis.adapter import Redis
from retl.errors import DefinitionError, Systemic
from retl.values.types import Type
from tests.destinations import rows as written
from tests.destinations.suite import (
    FIELDS,
    STRING,
    VISIT,
    Contents,
    Rows,
    Suite,
    Target,
    deliver,
    kinds,
    sample,
)
from tests.destinations.test_redis import (
    BULK_LIMIT,
    SECRET,
    options,
)
from tests.proxy import Proxy
from tests.redis_fixtures import client, proxy

__all__ = ["client", "proxy"]  # fixtures

VISITS = FIELDS[2]
RIGHTS = {
    "set": "+sadd +srem +sismember +sscan",
    "zset": "+zadd +zrem +zscore +zscan",
}
OF_ALL = "+multi +discard +pttl +scan +hset +hincrby +hgetall +hdel +select +ping"
OF_TTL = "+eval +expire"
KEY = "audience"
AUDIENCES = (Field("audience", STRING), Field("id", STRING))


class Members(Target):
    """One set; an account with the documented rights and no other."""

    type = "redis"
    commit = b"HINCRBY"

    def __init__(self, client: Any, proxy: Proxy, db: int, value: Literal["set", "zset"]) -> None:
        self.client, self.proxy, self.db, self.value = client, proxy, db, value
        self.user = f"retl-{value}"
        self.fields = () if value == "set" else (VISITS,)
        self.allow(RIGHTS[value], OF_ALL)

    def allow(self, *rights: str) -> None:
        listed = " ".join(rights).split()
        keys = [f"~{KEY}*", "~retl:stamp:*"]
        self.client.execute_command("ACL", "SETUSER", self.user, "reset", "on", f">{SECRET}", *keys, *listed)

    def make(self, shape: Shape, *, secret: str | None = None, **settings: Any) -> Redis:
        account = {"user": self.user, "password": secret or SECRET, "timeout": 1, "connect_timeout": 1}
        server = {"host": self.proxy.host, "port": self.proxy.port, "db": self.db}
        ttl = "1h" if shape.deletes == "delete" else "none"
        if ttl == "1h":
            self.allow(RIGHTS[self.value], OF_ALL, OF_TTL)
        given = {"connection": server | account, "key": KEY, "value": self.value, "ttl": ttl} | settings
        return Redis(options(**given), shape)

    def contents(self) -> Contents:
        return {(name,): held for name, held in self.held(KEY).items()}

    def held(self, key: str) -> dict[str, dict[str, Any]]:
        if self.value == "set":
            return {name.decode(): {} for name in self.client.smembers(key)}
        found = self.client.zrange(key, 0, -1, withscores=True)
        return {name.decode(): {"visits": score} for name, score in found}

    def poison(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
        self.client.config_set("proto-max-bulk-len", BULK_LIMIT)
        return (row[0] + "x" * BULK_LIMIT, *row[1:])

    def forbid(self) -> None:
        self.client.execute_command("ACL", "SETUSER", self.user, "-sadd", "-zadd", "-eval")

    def annotate(self, key: tuple[Any, ...]) -> Callable[[], bool] | None:
        return None

    def shape(self, *key: Field) -> Shape:
        return Shape("suite", "state-1", key or (Field("id", STRING),), self.fields)

    def theirs(self, key: str, member: str) -> None:
        """Somebody else adds a member."""
        self.client.sadd(key, member) if self.value == "set" else self.client.zadd(key, {member: 0.5})


@pytest.fixture(params=["set", "zset"])
def members(client: Any, proxy: Proxy, redis_server: Any, request: pytest.FixtureRequest) -> Any:
    return Members(client, proxy, redis_server.db, request.param)


@pytest.fixture
def ranking(client: Any, proxy: Proxy, redis_server: Any) -> Any:
    return Members(client, proxy, redis_server.db, "zset")


class TestSets(Suite):
    @pytest.fixture
    def target(self, client: Any, proxy: Proxy, redis_server: Any) -> Members:
        return Members(client, proxy, redis_server.db, "set")


class TestSortedSets(Suite):
    @pytest.fixture
    def target(self, client: Any, proxy: Proxy, redis_server: Any) -> Members:
        return Members(client, proxy, redis_server.db, "zset")


# which column is what


@pytest.mark.parametrize("key", ["", "a:{id}", "a:{audience}:{id}", "a", "a:{x}", "a:{audience}:{audience}"])
def test_one_column_of_the_key_is_the_member_and_no_other(members: Members, key: str) -> None:
    shape = members.shape(*AUDIENCES) if key != "a:{id}" else members.shape()
    with pytest.raises(DefinitionError) as caught:
        members.make(shape, key=key)
    assert caught.value.code == "KEY_TEMPLATE"


@pytest.mark.parametrize(("template", "of"), [("audience:{audience}", 0), ("audience:{id}", 1)])
def test_rows_are_members_of_the_set_that_the_rest_of_their_key_names(
    members: Members, template: str, of: int
) -> None:
    shape = members.shape(*AUDIENCES)
    rows = [("vip", "a:1", "", None, 3), ("vip", "b", "", None, 2), ("new é", "a:1", "", None, 1)]
    named = {"vip": "vip", "new é": "new%20%C3%A9"} if of == 0 else {"a:1": "a%3A1", "b": "b"}
    destination = members.make(shape, key=template)
    destination.check(VISIT)
    assert kinds(deliver(destination, Rows(shape, rows).batch())) == [Kind.WRITTEN] * 3
    for value, text in named.items():
        ours = {row[1 - of]: row[-1] for row in rows if row[of] == value}
        held = members.held(f"audience:{text}")
        assert held == {name: ({} if members.value == "set" else {"visits": n}) for name, n in ours.items()}
    assert sorted(destination.scan()) == sorted(row[:2] for row in rows)


def test_what_cannot_be_kept_is_refused_by_name(members: Members) -> None:
    shape = members.shape()
    strategy = tuple(replace(field, conflicts="target_wins") for field in shape.fields)
    cases = [
        ("SET_FIELDS", replace(shape, fields=FIELDS), {}),
        ("SET_FIELDS", replace(shape, fields=(VISITS,) if members.value == "set" else FIELDS[:1]), {}),
        ("SET_TTL", shape, {"ttl": "1h"}),
        ("CONFLICTS_UNSUPPORTED", replace(shape, fields=strategy, conflicts="target_wins"), {}),
        ("ROLLBACK_UNSUPPORTED", replace(shape, images=True), {}),
    ]
    for code, refused, settings in cases:
        with pytest.raises(DefinitionError) as caught:
            members.make(refused, **settings)
        assert caught.value.code == code


# what is not ours


def test_members_of_others_stay_and_are_not_compared(members: Members) -> None:
    shape = replace(members.shape(), deletes="delete")
    destination, rows = members.make(shape), Rows(shape, sample(4))
    members.theirs(KEY, "theirs")
    deliver(destination, rows.batch())
    deliver(destination, rows.batch("delete"))
    assert set(members.held(KEY)) == {"theirs"}
    assert list(destination.read(rows.batch())) == [None] * 4
    assert list(destination.scan()) == [("theirs",)]


def test_a_member_that_is_no_text_is_nobodys_row(members: Members) -> None:
    members.theirs(KEY, b"\xff")  # type: ignore[arg-type]
    assert list(members.make(members.shape()).scan()) == []


def test_a_key_of_another_kind_is_a_reject_and_stays_as_it_is(members: Members) -> None:
    members.client.set(KEY, "somebody's")
    for deletes in ("keep", "delete"):
        shape = replace(members.shape(), deletes=deletes)
        destination, batch = members.make(shape), Rows(shape, sample(2)).batch()
        assert [one.code for one in deliver(destination, batch)] == ["WRONGTYPE"] * 2
        assert list(destination.read(batch)) == list(destination.differing(batch)) == [None] * 2
        assert list(destination.scan()) == []
    assert members.client.get(KEY) == b"somebody's"
    assert members.client.ttl(KEY) == -1


# the TTL of a whole set


def test_each_write_renews_the_ttl_of_the_whole_set_and_no_delete_does(members: Members) -> None:
    shape = replace(members.shape(), deletes="delete")
    destination, rows = members.make(shape), Rows(shape, sample(3))
    destination.check(VISIT)
    deliver(destination, rows.batch())
    assert 3500 < members.client.ttl(KEY) <= 3600
    members.client.expire(KEY, 1000)
    deliver(destination, rows.batch("delete", first=0, last=0))
    assert members.client.ttl(KEY) <= 1000
    assert [found and found[-1] for found in destination.differing(rows.batch(first=1))] == ["(expires)"] * 2
    deliver(destination, rows.batch(first=1, last=1))
    assert members.client.ttl(KEY) > 3500


def test_without_a_ttl_that_of_the_key_stays(members: Members) -> None:
    members.theirs(KEY, "theirs")
    members.client.expire(KEY, 1000)
    destination, batch = members.make(members.shape()), Rows(members.shape(), sample(1)).batch()
    deliver(destination, batch)
    assert 0 < members.client.ttl(KEY) <= 1000
    assert list(destination.differing(batch)) == [()]


# scores


def scored(type_: Type, *values: Any) -> written.Rows:
    shape = Shape("suite", "state-1", (Field("id", STRING),), (Field("score", type_),))
    return written.Rows(shape, [(f"k{n}", value) for n, value in enumerate(values)])


@pytest.mark.parametrize(
    ("type_", "good", "bad"),
    [
        (Type("integer"), [0, -5, 2**53, 2**62, -(2**63)], [2**53 + 1, 2**63 - 1, None]),
        (
            Type("decimal", 38, 10),
            [Decimal("0.1"), Decimal("-12345.6789"), Decimal("1E+22"), Decimal("123456789012345")],
            [Decimal("9999999999999999999999999999.9999999999"), Decimal("12345678.1234567891"), None],
        ),
        (Type("float"), [0.1, -0.0, 5e-324, 1.7976931348623157e308, 1 / 3], [None]),
    ],
)
def test_a_score_arrives_exactly_or_the_row_is_a_reject(
    ranking: Members, type_: Type, good: list[Any], bad: list[Any]
) -> None:
    rows = scored(type_, *good, *bad)
    destination = ranking.make(rows.shape)
    outcome = deliver(destination, rows.batch())
    assert kinds(outcome) == [Kind.WRITTEN] * len(good) + [Kind.REJECTED] * len(bad)
    assert {one.code for one in outcome} - {None} <= {"SCORE", "NO_SCORE"}
    held = ranking.client.zrange(KEY, 0, -1, withscores=True)
    assert dict(held) == {b"k%d" % n: float(value) for n, value in enumerate(good)}
    assert list(destination.differing(rows.batch())) == [()] * len(good) + [None] * len(bad)
    assert [row and float(row["score"]) for row in destination.read(rows.batch())] == [
        *map(float, good),
        *[None] * len(bad),
    ]


def test_a_row_whose_score_is_gone_leaves_no_old_score(ranking: Members) -> None:
    before, after = scored(Type("integer"), 1, 2), scored(Type("integer"), 1, None)
    destination = ranking.make(before.shape)
    deliver(destination, before.batch())
    assert [one.code for one in deliver(destination, after.batch(run_id="run-2"))] == [None, "NO_SCORE"]
    assert ranking.client.zrange(KEY, 0, -1) == [b"k0"]


def test_a_ranking_has_the_order_of_its_scores(ranking: Members) -> None:
    rows = scored(Type("decimal", 12, 2), Decimal("2.50"), Decimal("10.00"), Decimal("-1.00"))
    deliver(ranking.make(rows.shape), rows.batch())
    assert ranking.client.zrevrange(KEY, 0, -1) == [b"k1", b"k0", b"k2"]


# check


def test_check_adds_no_member_and_needs_each_right(members: Members) -> None:
    shape = replace(members.shape(), deletes="delete")
    destination = members.make(shape)
    destination.check(VISIT)
    assert members.client.keys("*") == []
    for right in f"{RIGHTS[members.value]} {OF_TTL} +multi +discard".split():
        if right in ("+sismember", "+zscore", "+sscan", "+zscan"):  # for reading back alone
            continue
        members.client.execute_command("ACL", "SETUSER", members.user, right.replace("+", "-"))
        with pytest.raises(Systemic):
            destination.check(VISIT)
        members.client.execute_command("ACL", "SETUSER", members.user, right)
        assert members.client.keys("*") == []
    destination.check(VISIT)


def test_a_replica_and_a_full_server_stop_before_the_first_member(members: Members) -> None:
    destination = members.make(members.shape())
    members.client.config_set("maxmemory", "1")
    try:
        with pytest.raises(Systemic) as full:
            destination.check(VISIT)
    finally:
        members.client.config_set("maxmemory", "0")
    members.client.replicaof("127.0.0.1", 1)
    try:
        with pytest.raises(Systemic) as replica:
            destination.check(VISIT)
    finally:
        members.client.replicaof("NO", "ONE")
    assert (full.value.code, replica.value.code) == ("OOM", "READONLY")


def test_a_request_for_members_reads_like_redis_cli(members: Members) -> None:
    shape = members.shape()
    batch = Rows(shape, [("é 1", "", None, 3)]).batch()
    for operation, line in (
        (batch, 'SADD audience "é 1"' if members.value == "set" else 'ZADD audience 3 "é 1"'),
        (Rows(shape, [("a",)]).batch("delete"), f"{'SREM' if members.value == 'set' else 'ZREM'} audience a"),
    ):
        assert members.make(shape).preview(operation).decode().splitlines()[1] == line
