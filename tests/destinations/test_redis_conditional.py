"""A batch of Redis under a condition: what the script writes, leaves and returns, and what was durable before it.

Rows were delivered once; somebody else may have changed them since, or changes them while a batch is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from msgspec.structs import replace

from retl.destinations.batch import Batch, Conflicts, Field, Kind, Shape
from retl.destinations.redis.values import read_image
from retl.destinations.value import digest
from retl.errors import Systemic
from tests.destinations.rows import Row, Rows, document
from tests.destinations.suite import STRING, VISIT, deliver, kinds
from tests.destinations.test_redis import RIGHTS, RedisTarget
from tests.proxy import Proxy
from tests.redis_fixtures import client, proxy
from tests.servers import RedisServer

__all__ = ["client", "proxy"]  # fixtures

TEXTS = (Field("first", STRING), Field("second", STRING))
THEIRS = b'\xff\x00"\r\n'  # of somebody else, and no text


@dataclass
class Returned:
    """What a batch returned, by the numbers of its rows; `meanwhile` is done once images are durable."""

    after: dict[int, bytes] = field(default_factory=dict)
    before: dict[int, Any] = field(default_factory=dict)
    kept: list[dict[int, Any]] = field(default_factory=list)
    meanwhile: list[Callable[[], object]] = field(default_factory=list)

    def digests(self, batch: Batch, chunks: Iterable[bytes]) -> None:
        lines = b"".join(chunks).decode().splitlines()
        self.after = {int(n): bytes.fromhex(said[2:]) for n, said in (one.split(",") for one in lines)}

    def images(self, batch: Batch, chunks: Iterable[bytes]) -> None:
        pairs = (line.decode().split(",", 1) for line in b"".join(chunks).splitlines())
        self.before |= {int(n): read_image(said[1:-1].replace('""', '"')) for n, said in pairs}

    def keep(self, batch: Batch, *, images: bool) -> None:
        if images:
            self.kept.append(self.before)
        if self.meanwhile:
            self.meanwhile.pop(0)()

    def forget(self, batch: Batch) -> None:
        self.before = {}

    def updated(self, batch: Batch, chunks: Iterable[bytes], names: Sequence[str]) -> None:
        raise AssertionError("Redis returns images and digests apart")


class Keys(RedisTarget):
    """Five rows that were delivered, as JSON or as hashes."""

    def __init__(
        self, client: Any, proxy: Proxy, db: int, value: Any, *, images: bool, strategy: Conflicts
    ) -> None:
        super().__init__(client, proxy, db, value)
        rights = ["~reco:*", "~retl:stamp:*", *RIGHTS[value].split(), "+eval", "+hget", "+get"]
        client.execute_command("ACL", "SETUSER", self.user, *rights)
        fields = tuple(replace(one, conflicts=strategy) for one in TEXTS)
        self.of = Shape(
            "suite", "state-1", (Field("id", STRING),), fields, digests="fields", images=images, conflicts=strategy
        )  # fmt: skip
        self.returned = Returned()

    def batch(self, texts: Sequence[Row], left: Sequence[bytes | None], **more: Any) -> Batch:
        rows = Rows(self.of, texts, left=left)
        return replace(rows.batch(**more), returns=self.returned)

    def begun(self, ttl: str = "none") -> Any:
        """A destination that has written `old` rows."""
        self.destination = self.make(self.of, ttl=ttl)
        assert kinds(deliver(self.destination, self.batch(rows("old"), [None] * 5))) == [Kind.WRITTEN] * 5
        self.left = [self.returned.after[n] for n in range(5)]
        self.returned = Returned()
        return self.destination

    def next(self, **more: Any) -> list[Any]:
        return deliver(self.destination, self.batch(rows("new"), self.left, run_id="run-2", **more))

    def value_of(self, key: str) -> Any:
        return (
            self.client.get(f"reco:{key}")
            if self.value == "json"
            else self.client.hget(f"reco:{key}", "first")
        )

    def holds(self, text: str, n: int) -> Any:
        return document(self.of, rows(text)[n]).encode() if self.value == "json" else f"{text} {n}".encode()

    def edit(self, n: int, text: bytes) -> None:
        if self.value == "json":
            self.client.set(f"reco:{n}", text, keepttl=True)
        else:
            self.client.hset(f"reco:{n}", "first", text)

    def image(self, n: int) -> bytes:
        """What the image of a row says that `edit` changes."""
        found: bytes = self.returned.kept[-1][n]["value" if self.value == "json" else "first"]
        return found


def rows(text: str) -> list[Row]:
    return [(str(n), f"{text} {n}", "same") for n in range(5)]


@pytest.fixture
def keys(client: Any, proxy: Proxy, redis_server: RedisServer) -> Callable[..., Keys]:
    def make(value: str, *, images: bool = False, strategy: Conflicts = "target_wins") -> Keys:
        return Keys(client, proxy, redis_server.db, value, images=images, strategy=strategy)

    return make


EACH = [(value, images) for value in ("json", "hash") for images in (False, True)]


@pytest.mark.parametrize(("value", "images"), EACH)
def test_a_key_of_another_kind_among_others_is_one_reject(keys: Any, value: str, images: bool) -> None:
    made = keys(value, images=images)
    made.begun()
    made.client.delete("reco:2", "reco:4")
    made.client.rpush("reco:2", "theirs")
    made.client.rpush("reco:4", "theirs")
    made.left[4] = None  # as if it had never been delivered
    found = made.next()
    assert kinds(found) == [Kind.WRITTEN, Kind.WRITTEN, Kind.REJECTED, Kind.WRITTEN, Kind.REJECTED]
    assert {one.code for one in found if one.kind is Kind.REJECTED} == {"WRONGTYPE"}
    assert made.client.lrange("reco:2", 0, -1) == made.client.lrange("reco:4", 0, -1) == [b"theirs"]
    assert [made.value_of(str(n)) for n in (0, 1, 3)] == [made.holds("new", n) for n in (0, 1, 3)]
    assert made.returned.after.keys() == {0, 1, 3}
    if images:
        assert made.returned.kept[-1].keys() == {0, 1, 3}
        assert made.image(3) == made.holds("old", 3)


@pytest.mark.parametrize(("value", "images"), EACH)
@pytest.mark.parametrize("code", ["OOM", "READONLY"])
def test_a_server_that_refuses_writes_stops_the_run_and_nothing_is_written(
    keys: Any, value: str, images: bool, code: str
) -> None:
    made = keys(value, images=images)
    made.begun()
    if code == "OOM":
        made.client.config_set("maxmemory", "1")
    else:
        made.client.replicaof("127.0.0.1", 1)
    try:
        with pytest.raises(Systemic) as caught:
            made.next()
        assert caught.value.code == code
        assert [made.value_of(str(n)) for n in range(5)] == [made.holds("old", n) for n in range(5)]
    finally:
        made.client.config_set("maxmemory", "0")
        made.client.replicaof("NO", "ONE")
    assert kinds(made.next()) == [Kind.WRITTEN] * 5


@pytest.mark.parametrize(("value", "images"), EACH)
def test_a_server_that_forgot_its_scripts_gets_the_script_again(keys: Any, value: str, images: bool) -> None:
    """A batch comes with the text of its script, so no server can answer NOSCRIPT."""
    made = keys(value, images=images)
    made.begun()
    made.client.script_flush()
    assert kinds(made.next()) == [Kind.WRITTEN] * 5


@pytest.mark.parametrize(("value", "images"), EACH)
def test_an_edit_stays_with_its_time_to_live_and_the_others_are_renewed(
    keys: Any, value: str, images: bool
) -> None:
    made = keys(value, images=images)
    made.begun(ttl="1h")
    made.edit(1, THEIRS)
    for n in range(5):
        made.client.expire(f"reco:{n}", 77)
    assert kinds(made.next()) == [Kind.WRITTEN, Kind.KEPT, *[Kind.WRITTEN] * 3]
    assert made.value_of("1") == THEIRS
    times = [made.client.ttl(f"reco:{n}") for n in range(5)]
    assert [one <= 77 for one in times] == [False, True, False, False, False]
    assert made.returned.after[1][:8] == made.left[1][:8], "what is theirs is not taken for ours"


@pytest.mark.parametrize("value", ["json", "hash"])
def test_an_image_is_of_what_was_written_over(keys: Any, value: str) -> None:
    """Row 1 was edited before the batch, row 3 while it was kept, twice; row 4 was edited, and then was as we
    had left it again."""
    made = keys(value, images=True, strategy="warehouse_wins")
    made.begun()
    made.edit(1, THEIRS)
    made.edit(4, b"passing")
    before = made.holds("old", 4)
    made.returned.meanwhile = [
        lambda: (made.edit(3, b"one"), made.edit(4, before)),
        lambda: made.edit(3, THEIRS + b"two"),
    ]
    assert kinds(made.next()) == [Kind.WRITTEN] * 5
    assert [made.value_of(str(n)) for n in range(5)] == [made.holds("new", n) for n in range(5)]
    assert len(made.returned.kept) == 3, "images are durable before each attempt"
    assert [made.image(n) for n in range(5)] == [
        made.holds("old", 0), THEIRS, made.holds("old", 2), THEIRS + b"two", before
    ]  # fmt: skip
    whole = [made.holds("new", n) if value == "json" else f"new {n}".encode() for n in range(5)]
    assert [made.returned.after[n][:8] for n in range(5)] == [digest(one) for one in whole]


def test_a_field_that_is_empty_has_no_key_whatever_is_beside_it(keys: Any) -> None:
    made = keys("json")
    made.of = replace(made.of, fields=made.of.fields[:1])
    destination = made.make(made.of, value={"field": "first"}, ttl="none")
    assert (
        kinds(deliver(destination, made.batch([("a", "1"), ("b", "2"), ("c", "")], [None] * 3)))
        == [Kind.WRITTEN] * 3
    )
    left = [made.returned.after[n] for n in range(3)]
    texts = [("a", None), ("b", "3"), ("c", None)]
    assert kinds(deliver(destination, made.batch(texts, left, run_id="run-2"))) == [Kind.WRITTEN] * 3
    assert [made.client.get(f"reco:{key}") for key in "abc"] == [None, b"3", None]
    left = [made.returned.after[n] for n in range(3)]
    texts = [("a", "4"), ("b", "3"), ("c", None)]
    assert kinds(deliver(destination, made.batch(texts, left, run_id="run-3"))) == [Kind.WRITTEN] * 3
    assert [made.client.get(f"reco:{key}") for key in "abc"] == [b"4", b"3", None]


@pytest.mark.parametrize("left", [None, b"", b"unknown"])
def test_a_hash_of_which_nothing_is_compared_is_written(keys: Any, left: bytes | None) -> None:
    made = keys("hash")
    made.of = replace(made.of, fields=tuple(replace(one, compared=False) for one in made.of.fields))
    destination = made.make(made.of, ttl="none")
    made.client.hset("reco:1", "first", "theirs")
    batch = made.batch([("1", "ours", "same"), ("2", "ours", "same")], [left, None])
    assert kinds(deliver(destination, batch)) == [Kind.WRITTEN] * 2
    assert made.client.hget("reco:1", "first") == made.client.hget("reco:2", "first") == b"ours"


def test_what_the_server_does_at_once_is_bounded(keys: Any) -> None:
    """Two lanes write under a condition, with batches that the server finishes soon."""
    made = keys("json")

    def of(shape: Shape) -> tuple[int, int | None]:
        capabilities = made.make(shape).capabilities
        return capabilities.lanes, capabilities.max_rows

    assert of(made.of) == (2, 1000)
    assert of(replace(made.of, images=True)) == (2, 2000)
    assert of(replace(made.of, conflicts="warehouse_wins", fields=TEXTS, digests="none")) == (1, None)


@pytest.mark.parametrize("images", [False, True])
def test_a_check_tells_that_an_account_may_not_read_what_it_must_keep(keys: Any, images: bool) -> None:
    made = keys("json", images=images)
    made.client.execute_command("ACL", "SETUSER", made.user, "-mget")
    destination = made.make(made.of)
    if not images:
        destination.check(VISIT)
        return
    with pytest.raises(Systemic) as caught:
        destination.check(VISIT)
    assert caught.value.code == "NOPERM"
