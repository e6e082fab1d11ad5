"""Streams of Redis: every row is an entry, exactly once, whatever becomes of an answer, a run or the server."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from pydantic import ValidationError

from retl.destinations.batch import Field, Kind, Shape, Visit
from retl.destinations.redis.adapter import Redis
from retl.errors import Ambiguous, DefinitionError, Systemic, Unavailable
from tests.commands import ROWS, Workshop
from tests.crash_sweep import KILLED, LOST_ANSWER, FailureRate, sweep_events
from tests.crashes import COLUMNS, RedisScene
from tests.destinations.rows import Row, Rows
from tests.destinations.suite import FIELDS, STRING, VISIT, Contents, Suite, Target, deliver, kinds, sample
from tests.destinations.test_redis import BULK_LIMIT, SECRET, options, read_back
from tests.proxy import Proxy
from tests.redis_fixtures import client, proxy
from tests.servers import RedisServer

__all__ = ["client", "proxy"]  # fixtures

SHAPE = Shape("suite", "state-1", (Field("id", STRING),), FIELDS, "append")
RIGHTS = "+xadd +xlen +eval +hget +hset +hincrby +hdel +hgetall +select +ping"


class StreamTarget(Target):
    type = "redis"
    write = "append"
    commit = b"EVAL"
    user = "retl-stream"

    def __init__(self, client: Any, proxy: Proxy, db: int) -> None:
        self.client, self.proxy, self.db, self.shape = client, proxy, db, SHAPE
        rights = ["~events", "~retl:stamp:*", *RIGHTS.split()]
        client.execute_command("ACL", "SETUSER", self.user, "reset", "on", f">{SECRET}", *rights)

    def make(self, shape: Shape, *, secret: str | None = None, **settings: Any) -> Redis:
        self.shape = shape
        account = {"user": self.user, "password": secret or SECRET, "timeout": 1, "connect_timeout": 1}
        server = {"host": self.proxy.host, "port": self.proxy.port, "db": self.db}
        given = {"connection": server | account, "key": "events", "value": "stream"}
        return Redis(options(**given | settings), shape)

    def contents(self) -> Contents:
        found: Contents = {}
        for _, held in self.client.xrange("events"):
            name = tuple(held[field.name.encode()].decode() for field in self.shape.key)
            found[name] = {f.name: read_back(held.get(f.name.encode()), f.type) for f in self.shape.fields}
        return found

    def poison(self, row: Row) -> Row:
        self.client.config_set("proto-max-bulk-len", BULK_LIMIT)
        return (row[0], row[1] + "x" * BULK_LIMIT, *row[2:])

    def forbid(self) -> None:
        self.client.execute_command("ACL", "SETUSER", self.user, "-xadd", "-eval", "-hset")

    def annotate(self, key: Row) -> Callable[[], bool] | None:
        return None

    def ids(self) -> list[str]:
        """The keys of all entries, in their order."""
        return [held[b"id"].decode() for _, held in self.client.xrange("events")]


@pytest.fixture
def target(client: Any, proxy: Proxy, redis_server: Any) -> Iterator[StreamTarget]:
    yield StreamTarget(client, proxy, redis_server.db)
    client.execute_command("ACL", "DELUSER", StreamTarget.user)


@pytest.fixture
def stream(target: StreamTarget) -> Iterator[Redis]:
    """Ready to write."""
    with closing(target.make(SHAPE)) as made:
        made.check(VISIT)
        made.prepare(VISIT)
        yield made


class TestStreams(Suite):
    @pytest.fixture
    def target(self, target: StreamTarget) -> StreamTarget:
        return target


def test_an_entry_has_key_and_fields_as_texts_and_nothing_for_null(
    stream: Redis, target: StreamTarget
) -> None:
    deliver(stream, Rows(SHAPE, [("a", "é", None, 7), ("b", "", None, None)]).batch("append"))
    assert [held for _, held in target.client.xrange("events")] == [
        {b"id": b"a", b"name": "é".encode(), b"visits": b"7"},
        {b"id": b"b", b"name": b""},
    ]


def test_entries_have_the_order_of_the_rows_and_those_of_others_stay(
    stream: Redis, target: StreamTarget
) -> None:
    target.client.xadd("events", {"id": "theirs"})
    rows = Rows(SHAPE, sample(2000))
    for first in (0, 1000):
        deliver(stream, rows.batch("append", first=first, last=first + 999))
    assert target.ids() == ["theirs", *(f"k{n}" for n in range(2000))]


def test_a_batch_without_an_answer_is_resolved_and_never_appended_twice(
    stream: Redis, target: StreamTarget
) -> None:
    batch = Rows(SHAPE, sample(3)).batch("append")
    target.proxy.drop_reply(b"EVAL")
    with pytest.raises(Ambiguous):
        stream.write(batch)
    assert stream.resolve(batch, None).default.kind == Kind.WRITTEN
    assert kinds(deliver(stream, batch)) == [Kind.WRITTEN] * 3
    target.proxy.drop_request(b"EVAL")
    second = Rows(SHAPE, sample(5)).batch("append", first=3)
    with pytest.raises(Ambiguous):
        stream.write(second)
    assert stream.resolve(second, None).default.kind == Kind.RETRY
    assert kinds(deliver(stream, second)) == [Kind.WRITTEN] * 2
    assert target.ids() == ["k0", "k1", "k2", "k3", "k4"]


def test_what_a_later_run_declared_void_is_never_appended(stream: Redis, target: StreamTarget) -> None:
    batch = Rows(SHAPE, sample(3)).batch("append")
    with closing(target.make(SHAPE)) as later:
        assert later.resolve(batch, None).default.kind == Kind.RETRY
        assert set(kinds(deliver(stream, batch))) == {Kind.UNKNOWN}
    assert target.ids() == []


def test_a_run_that_wakes_up_after_another_has_begun_appends_nothing(
    stream: Redis, target: StreamTarget
) -> None:
    batch = Rows(SHAPE, sample(3)).batch("append")
    with closing(target.make(SHAPE)) as later:
        later.prepare(Visit("run-2", 2))
        with pytest.raises(Systemic) as caught:
            stream.write(batch)
        assert caught.value.code == "VOIDED"
        with pytest.raises(Systemic) as again:
            stream.prepare(VISIT)
        assert again.value.code == "VOIDED"
        assert later.check(VISIT).epoch == 2
        target.client.delete(*target.client.keys("retl:stamp:*"))
        with pytest.raises(Unavailable) as reset:
            stream.write(batch)
        assert reset.value.code == "TARGET_RESET"
    assert target.ids() == []


def test_a_key_that_holds_something_else_is_told_by_check(target: StreamTarget) -> None:
    target.client.set("events", "theirs")
    with closing(target.make(SHAPE)) as made, pytest.raises(Systemic) as caught:
        made.check(VISIT)
    assert caught.value.code == "WRONGTYPE"


def test_a_stream_can_be_kept_short(target: StreamTarget) -> None:
    with closing(target.make(SHAPE, max_len=100)) as made:
        made.prepare(VISIT)
        deliver(made, Rows(SHAPE, sample(1000)).batch("append"))
    assert 100 <= len(target.ids()) < 300
    assert target.ids()[-1] == "k999"


@pytest.mark.parametrize(
    ("settings", "write", "code"),
    [
        ({}, "upsert", "STREAM_APPENDS"),
        ({"ttl": "1h"}, "append", "STREAM_TTL"),
        ({"key": "events:{id}"}, "append", "KEY_TEMPLATE"),
        ({"key": ""}, "append", "KEY_TEMPLATE"),
        ({"key": "retl:x"}, "append", "KEY_TEMPLATE"),
        ({"key": "a}}b", "connection": {"cluster": "localhost:7000"}}, "append", "KEY_TEMPLATE"),
    ],
)
def test_what_a_stream_cannot_be_is_refused(settings: dict[str, Any], write: Any, code: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        Redis(options(**{"key": "events", "value": "stream"} | settings), replace(SHAPE, write=write))
    assert caught.value.code == code


def test_a_row_that_no_script_could_add_is_refused() -> None:
    wide = replace(SHAPE, fields=tuple(Field(f"f{n}", STRING) for n in range(3500)))
    with pytest.raises(DefinitionError) as caught:
        Redis(options(key="events", value="stream"), wide)
    assert caught.value.code == "TOO_WIDE"


def test_a_row_as_wide_as_may_be_arrives(target: StreamTarget) -> None:
    wide = replace(SHAPE, fields=tuple(Field(f"f{n}", STRING) for n in range(3499)))
    with closing(target.make(wide)) as made:
        made.prepare(VISIT)
        row = ("a", *(f"v{n}" for n in range(3499)))
        assert kinds(deliver(made, Rows(wide, [row, ("b", *row[1:])]).batch("append"))) == [Kind.WRITTEN] * 2
    assert {len(held) for _, held in target.client.xrange("events")} == {3500}


def test_a_length_is_for_streams() -> None:
    with pytest.raises(ValidationError, match="max_len"):
        options(value="json", max_len=5)


class StreamScene(RedisScene):
    sync = (
        "destination: {connection: cache, key: events, value: stream, ttl: none}\n"
        "write: append\nfirst_run: send\n"
    )

    def content(self) -> list[tuple[str | None, ...]]:
        with self.server.client() as client:
            entries = [held for _, held in client.xrange("events")]
        return sorted(
            tuple(held[name.encode()].decode() if name.encode() in held else None for name in COLUMNS)
            for held in entries
        )

    def doubled(self) -> list[str]:
        keys = [row[0] for row in self.content()]
        return sorted({str(key) for key in keys if keys.count(key) > 1})


@pytest.fixture
def scene(tmp_path: Path, redis_server: Any) -> StreamScene:
    return StreamScene(tmp_path / "project", redis_server)


def test_a_run_killed_at_any_event_is_made_good_by_the_next(scene: StreamScene) -> None:
    failure_rate = FailureRate()
    scene.begin()
    sweep_events(scene, failure_rate, 2, turn=2)
    assert failure_rate.problems == []
    assert failure_rate.kills >= 1


def test_an_answer_that_was_lost_with_its_run_is_found_in_the_stamp(scene: StreamScene) -> None:
    scene.begin()
    assert scene.project.sync(RETL_CRASH_AT=LOST_ANSWER).code == KILLED
    assert scene.content() != []
    done = scene.project.sync()
    assert done.code == 0, done.stderr
    assert scene.content() == scene.project.rows()
    scene.project.mart("INSERT INTO mart SELECT 'user 500', 'new', 1, NULL")
    assert scene.project.sync().summary["inserted"] == 1
    assert scene.content() == scene.project.rows()


def test_a_server_that_lost_the_stream_is_noticed(scene: StreamScene) -> None:
    scene.begin()
    assert scene.project.sync().code == 0
    scene.empty()
    refused = scene.project.sync()
    assert (refused.code, refused.summary["error"]["code"]) == (3, "TARGET_LOST")
    assert scene.content() == []
    again = scene.project.sync("--accept", "TARGET_LOST")
    assert again.code == 0, again.stdout
    assert scene.content() == scene.project.rows()


def test_a_former_server_says_nothing_of_a_batch_without_an_answer(
    tmp_path: Path, redis_server: RedisServer, client: Any
) -> None:
    shop = Workshop(tmp_path / "shop")
    shop.use(redis_server)
    to = "{type: redis, key: events, value: stream, ttl: none}"
    shop.sync("users", destination=to, write="append", first_run="send", batch="{rows: 10}")
    assert shop.process("sync", "users", RETL_CRASH_AT="batch_answered:2").code == KILLED
    assert client.xlen("events") == 20
    now = {name: client.dump(name) for name in client.keys("*")}
    client.flushdb()  # a replica that was behind took over, or a backup came back
    for words in (["sync", "users"], ["sync", "users", "--dry-run"], ["sync", "users"]):
        assert shop.retl(*words).code == 3
    for name, held in now.items():
        client.restore(name, 0, held, replace=True)
    done = shop.json("sync", "users")["syncs"][0]
    assert (done["unchanged"], done["inserted"]) == (20, ROWS - 20), done
    assert client.xlen("events") == ROWS


@pytest.mark.parametrize("lost", ["stamp", "all"])
@pytest.mark.parametrize("event", ["batch_sending:1", "batch_answered:1"])
def test_a_first_run_that_was_killed_doubles_nothing_if_its_stamp_is_lost(
    tmp_path: Path, redis_server: RedisServer, client: Any, event: str, lost: str
) -> None:
    shop = Workshop(tmp_path / "shop")
    shop.use(redis_server)
    shop.write("retl.yml", "connections: {redis: {type: redis, limits: {concurrency: 1}}}\n")
    to = "{type: redis, key: events, value: stream, ttl: none}"
    shop.sync("users", destination=to, write="append", first_run="send", batch="{rows: 10}")
    assert shop.process("sync", "users", RETL_CRASH_AT=event).code == KILLED
    arrived = client.xlen("events")
    if lost == "all":  # the server keeps nothing over a restart
        client.flushdb()
    else:
        client.delete(*client.keys("retl:stamp:*"))
    doubted = lost == "stamp" and arrived > 0
    dry = shop.json("sync", "users", "--dry-run")["syncs"][0]
    said = shop.retl("sync", "users", "--output", "json")
    (done,) = said.document["syncs"]
    assert done["inserted"] == dry["inserted"] == (ROWS - arrived if doubted else ROWS)
    if doubted:
        assert (said.code, done["error"]["code"]) == (1, "IN_DOUBT")
        assert shop.retl("sync", "users").code == 1, "which waits for a decision"
        shop.json("resolve", "users", "--delivered", "--yes")
    assert shop.json("sync", "users")["syncs"][0]["unchanged"] == ROWS
    assert client.xlen("events") == ROWS


@pytest.mark.parametrize("batches", [3, 8], ids=["within the run", "after its last batch"])
def test_a_server_that_is_emptied_during_a_run_is_noticed_and_filled_again(
    scene: StreamScene, batches: int
) -> None:
    scene.begin()
    left = [batches]

    def hears(line: str) -> None:
        if '"batch_acknowledged"' in line:
            left[0] -= 1
            if left[0] == 0:
                scene.empty()

    ended = scene.project.answered("sync", "--sync", "users", "--output", "json", hears=hears)
    assert (ended.code, ended.summary["error"]["code"]) == (1, "TARGET_RESET")
    assert scene.content() == []
    refused = scene.project.sync()
    assert (refused.code, refused.summary["error"]["code"]) == (3, "TARGET_LOST")
    assert scene.project.sync("--accept", "TARGET_LOST").code == 0
    assert scene.content() == scene.project.rows()
    assert scene.project.sync().summary["unchanged"] == 40


def test_a_ledger_that_was_restored_is_told_a_way_that_leads_on(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """A stream cannot be compared with a mart, so nothing can be rebuilt from it."""
    shop = Workshop(tmp_path / "shop")
    shop.use(redis=redis_server)
    to = "{type: redis, key: 'crm:users', value: stream, ttl: none}"
    shop.sync("users", destination=to, write="append", first_run="send")
    shop.json("sync", "users")
    shutil.copytree(shop.folder / ".retl", tmp_path / "kept")
    shop.warehouse("INSERT INTO users VALUES (100, 'a', 1)")
    shop.json("sync", "users")
    shutil.rmtree(shop.folder / ".retl")
    shutil.copytree(tmp_path / "kept", shop.folder / ".retl")
    said = shop.retl("sync", "users")
    assert (said.code, "STATE_BEHIND" in said.err, "state rebuild" in said.err) == (3, True, False)
    assert "`retl state adopt users` takes every row of today's mart as sent" in said.err
    assert shop.retl("sync", "users", "--accept", "STATE_BEHIND").code == 3, "rows would come twice"
    shop.json("state", "adopt", "users", "--yes")
    shop.warehouse("INSERT INTO users VALUES (101, 'b', 1)")
    (done,) = shop.json("sync", "users")["syncs"]
    assert (done["inserted"], done["unchanged"]) == (1, ROWS + 1)
    with redis_server.client() as client:
        assert client.xlen("crm:users") == ROWS + 2
