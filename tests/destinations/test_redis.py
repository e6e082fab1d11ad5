"""Redis and Valkey pass the suite as strings and as hashes, and keep the promises that are theirs alone."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from pydantic import ValidationError

from retl.destinations.batch import Field, Kind, Shape, Visit
from retl.destinations.redis.adapter import Redis, RedisConnection, RedisOptions
from retl.destinations.redis.resp import judge
from retl.errors import DefinitionError, Systemic, Unavailable
from retl.values.types import Type
from tests.destinations.rows import Row, Rows
from tests.destinations.suite import (
    FIELDS,
    STRING,
    VISIT,
    Contents,
    Suite,
    Target,
    as_contents,
    deliver,
    kinds,
    sample,
)
from tests.proxy import Proxy
from tests.redis_fixtures import client, proxy

__all__ = ["client", "proxy"]  # fixtures

SHAPE = Shape("suite", "state-1", (Field("id", STRING),), FIELDS)
SECRET = "account-secret"
RIGHTS = {
    "json": "+set +unlink +mget +pttl +scan +hset +hincrby +hgetall +hdel +select +ping",
    "hash": "+eval +hset +hdel +expire +exists +unlink +hmget +pttl +scan +hincrby +hgetall +select +ping",
}
BULK_LIMIT = 1 << 20


class RedisTarget(Target):
    """An account with the documented rights and no other."""

    type = "redis"
    commit = b"HINCRBY"

    def __init__(self, client: Any, proxy: Proxy, db: int, value: Literal["json", "hash"]) -> None:
        self.client, self.proxy, self.db, self.value = client, proxy, db, value
        self.user, self.shape = f"retl-{value}", SHAPE
        rights = ["~reco:*", "~retl:stamp:*", *RIGHTS[value].split()]
        client.execute_command("ACL", "SETUSER", self.user, "reset", "on", f">{SECRET}", *rights)

    def make(self, shape: Shape, *, secret: str | None = None, **options: Any) -> Redis:
        self.shape = shape
        account = {"user": self.user, "password": secret or SECRET, "timeout": 1, "connect_timeout": 1}
        server = {"host": self.proxy.host, "port": self.proxy.port, "db": self.db}
        settings = {"connection": server | account, "key": "reco:{id}", "value": self.value, "ttl": "1h"}
        return Redis(RedisOptions.model_validate(settings | options), shape)

    def contents(self) -> Contents:
        found: Contents = {}
        for key in self.client.scan_iter("reco:*"):
            name = (unquote(key.decode().removeprefix("reco:")),)
            if self.value == "json":
                found[name] = json.loads(self.client.get(key), parse_float=Decimal)
            elif self.client.type(key) == b"hash":
                held = self.client.hgetall(key)
                found[name] = {
                    f.name: read_back(held.get(f.name.encode()), f.type) for f in self.shape.fields
                }
        return found

    def poison(self, row: Row) -> Row:
        if self.value == "json":
            self.client.config_set("proto-max-bulk-len", BULK_LIMIT)
            return (row[0], row[1] + "x" * BULK_LIMIT, *row[2:])
        self.client.set(f"reco:{row[0]}", "somebody else's")
        return row

    def forbid(self) -> None:
        self.client.execute_command("ACL", "SETUSER", self.user, "-set", "-hset", "-eval")

    def annotate(self, key: Row) -> Callable[[], bool] | None:
        if self.value == "json":
            return None
        self.client.hset(f"reco:{key[0]}", "theirs", "kept")
        return lambda: self.client.hget(f"reco:{key[0]}", "theirs") == b"kept"


def options(**settings: Any) -> RedisOptions:
    return RedisOptions.model_validate({"key": "a:{id}", "ttl": "none"} | settings)


def read_back(held: bytes | None, type_: Type) -> Any:
    if held is None:
        return None
    if type_.name in ("string", "uuid", "date", "timestamp", "timestamptz"):
        return held.decode()
    return json.loads(held, parse_float=Decimal)


@pytest.fixture
def target(client: Any, proxy: Proxy, redis_server: Any) -> RedisTarget:
    """One that writes JSON."""
    return RedisTarget(client, proxy, redis_server.db, "json")


@pytest.fixture
def hashes(client: Any, proxy: Proxy, redis_server: Any) -> RedisTarget:
    return RedisTarget(client, proxy, redis_server.db, "hash")


class TestStrings(Suite):
    @pytest.fixture
    def target(self, client: Any, proxy: Proxy, redis_server: Any) -> RedisTarget:
        return RedisTarget(client, proxy, redis_server.db, "json")


class TestHashes(Suite):
    @pytest.fixture
    def target(self, client: Any, proxy: Proxy, redis_server: Any) -> RedisTarget:
        return RedisTarget(client, proxy, redis_server.db, "hash")


# key templates

PARTS = st.text() | st.text(":*{}%\r\n.", max_size=3)


@given(st.lists(st.tuples(PARTS, PARTS), min_size=2, max_size=2, unique=True))
@pytest.mark.parametrize("key", ["a:{x}:{y}", "{{{x}}}:{y}", "a{y}.|%2F{x}z", "a-{x}b/c{y}"])
def test_two_rows_never_share_a_redis_key(key: str, rows: list[tuple[str, str]]) -> None:
    shape = replace(SHAPE, key=(Field("x", STRING), Field("y", STRING)))
    destination = Redis(options(key=key), shape)
    shown = destination.preview(Rows(shape, [(*row, "", None, 0) for row in rows]).batch("delete"))
    first, second, *_ = shown.splitlines()
    assert first != second


@pytest.mark.parametrize(
    "key",
    [
        "reco:", "reco:{ID}", "reco:{id}:{id}", "reco:{id}:{x}", "reco:{id!r}", "reco:{id:>9}", "reco:{}",
        "reco:{id", "reco:}{id}", "retl:{id}", "retl:stamp:{id}", "{id}:x", "re{id}:x",
    ],
)  # fmt: skip
def test_a_key_template_that_could_mislead_is_refused(key: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        Redis(options(key=key), SHAPE)
    assert caught.value.code == "KEY_TEMPLATE"


@pytest.mark.parametrize("key", ["a:{x}{y}", "a:{x}-{y}", "a:{x}b{y}", "a:{x}%3A{y}"])
def test_placeholders_that_values_could_blur_are_refused(key: str) -> None:
    with pytest.raises(DefinitionError, match="between two placeholders"):
        Redis(options(key=key), replace(SHAPE, key=(Field("x", STRING), Field("y", STRING))))


def test_a_key_may_carry_a_hash_tag(target: RedisTarget) -> None:
    destination = target.make(SHAPE, key="reco:{{{id}}}:v1")
    deliver(destination, Rows(SHAPE, [("a b", "x", None, 1)]).batch())
    assert target.client.keys("reco:*") == [b"reco:{a%20b}:v1"]


# options


@pytest.mark.parametrize("ttl", ["0s", "1.5s", "500ms", -1, None, "forever", True, 2**40])
def test_a_ttl_is_whole_seconds_or_none(ttl: Any) -> None:
    with pytest.raises(ValidationError):
        RedisOptions.model_validate({"key": "a:{id}", "ttl": ttl})


def test_a_ttl_must_be_said() -> None:
    with pytest.raises(ValidationError):
        RedisOptions.model_validate({"key": "a:{id}"})


def test_plaintext_leaves_the_machine_only_when_asked_to() -> None:
    with pytest.raises(ValidationError, match="tls: true"):
        RedisConnection(host="redis.internal")
    assert RedisConnection(host="redis.internal", allow_plaintext=True)
    assert RedisConnection(host="redis.internal", tls=True)
    assert RedisConnection(host="::1")


def test_a_field_that_is_not_there_is_a_definition_error() -> None:
    with pytest.raises(DefinitionError, match="not a field"):
        Redis(options(value={"field": "score"}), SHAPE)


def test_what_shapes_the_bytes_is_told() -> None:
    capabilities = Redis(options(ttl="1m", value={"field": "visits"}), SHAPE).capabilities
    assert capabilities.shaping == {"value": {"field": "visits"}, "ttl": 60}
    assert capabilities.expires == 60
    assert capabilities.object == "redis://localhost:6379/0/a:{id}"


# values


def test_every_write_renews_the_ttl(target: RedisTarget, hashes: RedisTarget) -> None:
    for each in (target, hashes):
        each.client.flushdb()
        for ttl in (3600, 7200):
            deliver(each.make(SHAPE, ttl=ttl), Rows(SHAPE, sample(1)).batch())
            assert 0 <= ttl - each.client.ttl("reco:k0") < 60


def test_without_ttl_nothing_expires(target: RedisTarget, hashes: RedisTarget) -> None:
    for each in (target, hashes):
        each.client.flushdb()
        deliver(each.make(SHAPE, ttl="none"), Rows(SHAPE, sample(1)).batch())
        assert each.client.ttl("reco:k0") == -1


def test_a_refused_hash_leaves_the_foreign_key_without_ttl(hashes: RedisTarget) -> None:
    row = hashes.poison(sample(1)[0])
    for batch in (Rows(SHAPE, [row]).batch(), Rows(SHAPE, [(row[0], None, None, None)]).batch()):
        outcome = deliver(hashes.make(SHAPE), batch)
        assert [result.code for result in outcome] == ["WRONGTYPE"]
        assert hashes.client.get("reco:k0") == b"somebody else's"
        assert hashes.client.ttl("reco:k0") == -1


def test_one_field_is_written_bare_and_no_value_is_no_key(target: RedisTarget) -> None:
    destination = target.make(SHAPE, value={"field": "amount"})
    rows = Rows(SHAPE, [("a", "x", Decimal("1.50"), 1), ("b", "x", Decimal("0.10"), 1)])
    assert kinds(deliver(destination, rows.batch())) == [Kind.WRITTEN] * 2
    assert target.client.mget("reco:a", "reco:b") == [b"1.50", b"0.10"]
    assert target.client.ttl("reco:a") > 0
    cleared = Rows(SHAPE, [("a", "x", None, 1), ("b", "x", Decimal("0.10"), 1)])
    assert kinds(deliver(destination, cleared.batch())) == [Kind.WRITTEN] * 2
    assert list(destination.read(cleared.batch())) == [{"amount": None}, {"amount": "0.10"}]
    assert target.client.exists("reco:a") == 0


def test_reading_a_foreign_value_finds_none_of_our_fields(target: RedisTarget, hashes: RedisTarget) -> None:
    target.client.set("reco:k0", b"\xff not JSON")
    target.client.set("reco:k1", "[1]")
    target.client.hset("reco:k2", "name", "x")
    batch = Rows(SHAPE, sample(3)).batch()
    assert list(target.make(SHAPE).read(batch)) == [{}, {}, None]
    assert list(hashes.make(SHAPE).read(batch)) == [None, None, {"name": "x", "amount": None, "visits": None}]


@pytest.mark.parametrize("value", ["[" * 5000 + "]" * 5000, "9" * 5000])
def test_a_value_that_python_cannot_read_is_there_and_differs(target: RedisTarget, value: str) -> None:
    destination = target.make(SHAPE)
    rows = Rows(SHAPE, sample(1))
    target.client.set("reco:k0", f'{{"name": {value}}}')
    assert list(destination.read(rows.batch())) == [{}]
    (fields,) = destination.differing(rows.batch())
    assert fields


def test_a_request_reads_like_redis_cli(target: RedisTarget) -> None:
    batch = Rows(SHAPE, [("é 1", 'say "hi"\n', None, 1)]).batch()
    begin, row, end = target.make(SHAPE).preview(batch).decode().splitlines()
    assert row == (
        r'SET reco:%C3%A9%201 "{\"name\":\"say \\\"hi\\\"\\n\",\"amount\":null,\"visits\":1}" EX 3600'
    )
    assert begin == f"HSET {STAMP} run-1/{batch.id} 1"
    assert end == f"HINCRBY {STAMP} run-1/{batch.id} 1"


def test_large_values_and_many_rows_take_turns(target: RedisTarget) -> None:
    rows = [(f"k{n}", "v" * 50_000, None, n) for n in range(100)] + sample(2500)[100:]
    destination = target.make(SHAPE)
    assert set(kinds(deliver(destination, Rows(SHAPE, rows).batch()))) == {Kind.WRITTEN}
    assert target.contents() == as_contents(SHAPE, rows)


# the stamp


STAMP = "retl:stamp:state-1:reco%3A%7Bid%7D"


def test_the_stamp_lists_the_batches_that_were_written(target: RedisTarget) -> None:
    rows = Rows(SHAPE, sample(4))
    batches = [rows.batch(first=0, last=1), rows.batch(first=2, last=3)]
    for batch in batches:
        deliver(target.make(SHAPE), batch)
    marks = {(batch.run_id, batch.id) for batch in batches}
    assert target.make(SHAPE).check(VISIT).batches == marks
    assert target.make(replace(SHAPE, state_id="another")).check(VISIT).batches == set()
    target.client.hset(STAMP, "run-1/begun", 1)
    assert target.make(SHAPE).check(VISIT).batches == marks
    target.client.flushdb()
    assert target.make(SHAPE).check(VISIT).batches == set()


def test_a_restored_server_lacks_the_later_batches(target: RedisTarget) -> None:
    rows = Rows(SHAPE, sample(4))
    first = rows.batch(first=0, last=1)
    deliver(target.make(SHAPE), first)
    backup = target.client.dump(STAMP)
    deliver(target.make(SHAPE), rows.batch(first=2, last=3))
    target.client.restore(STAMP, 0, backup, replace=True)
    assert target.make(SHAPE).check(VISIT).batches == {(first.run_id, first.id)}


def test_the_stamps_of_earlier_runs_go_but_for_those_the_ledger_will_ask_for(target: RedisTarget) -> None:
    for n in (1, 2, 3):
        deliver(target.make(SHAPE), Rows(SHAPE, sample(1)).batch(run_id=f"run-{n}"))
    target.make(SHAPE).prepare(Visit("run-4", 4, keep=frozenset({"run-2"})))
    assert {run for run, _ in target.make(SHAPE).check(VISIT).batches} == {"run-2"}


def test_a_stamp_that_cannot_be_kept_stops_the_run(target: RedisTarget) -> None:
    target.client.set("retl:stamp:state-1:reco%3A%7Bid%7D", "a string")
    with pytest.raises(Systemic) as caught:
        target.make(SHAPE).write(Rows(SHAPE, sample(1)).batch())
    assert caught.value.code == "STAMP_REFUSED"


# conditional batches


@pytest.mark.parametrize("value", ["json", "hash"])
def test_a_conditional_batch_needs_the_documented_rights_and_no_more(
    target: RedisTarget, hashes: RedisTarget, value: str
) -> None:
    each = target if value == "json" else hashes
    fields = tuple(replace(field, conflicts="target_wins") for field in SHAPE.fields)
    shape = replace(SHAPE, fields=fields, digests="row", conflicts="target_wins")
    with pytest.raises(Systemic):
        each.make(shape).check(VISIT)
    more = ["+eval", "+hget", *(["+get"] if value == "json" else [])]
    each.client.execute_command("ACL", "SETUSER", each.user, *more)
    destination, rows = each.make(shape), Rows(shape, sample(3))
    destination.check(VISIT)
    batch = rows.batch()
    assert [one.result.kind for one in destination.peek(batch)] == [Kind.WRITTEN] * 3
    assert not each.contents()
    assert kinds(deliver(destination, batch)) == [Kind.WRITTEN] * 3
    assert destination.check(VISIT).batches == {(batch.run_id, batch.id)}
    assert kinds(deliver(destination, rows.batch("delete", run_id="run-2"))) == [Kind.KEPT] * 3


# refusals


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("WRONGTYPE Operation against a key", "WRONGTYPE"),
        ("WRONGTYPE Operation against a key holding the wrong kind of value script: 1f, on @user_script:2.", "WRONGTYPE"),
        ("ERR Error running script (call to f_1f): @user_script:2: WRONGTYPE Operation against", "WRONGTYPE"),
        ("ERR AUTH <password> called without any password configured", "AUTH"),
        ("ERR max number of clients reached", "max number of clients"),
        ("ERR unknown command 'OOM'", "ERR"),
        ("-BUSYKEY Target key name already exists.", "-BUSYKEY"),
        ("LOADING Valkey is loading the dataset in memory", "LOADING"),
    ],
)  # fmt: skip
def test_a_refusal_is_told_by_its_code(text: str, code: str) -> None:
    import hiredis

    found, sentence = judge(hiredis.ReplyError(text))
    assert found == code
    assert "OOM" not in sentence


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ERR DB index is out of range", "the server refused the command: DB index is out of range"),
        (
            "OOM command not allowed when used memory > 'maxmemory'.",
            "the server is out of memory: command not allowed when used memory > maxmemory.",
        ),
        (
            "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
            "the server cannot save its data and refuses writes: Redis is configured to save RDB snapshots, but"
            " it's currently unable to persist to disk.",
        ),
        (
            "NOPERM User app has no permissions to run the 'set' command",
            "the account may not do this: User app has no permissions to run the set command",
        ),
        (
            "ERR unknown command 'FOO', with args beginning with: 'Ann' 'it''s' ",
            "the server refused the command: unknown command …",
        ),
        ("ERR no such key reco:Ann%20Lee of Ann Lee, 42", "the server refused the command: no such key …:… of …, …"),
        ("ERR value \"Ann\" 'Lee", "the server refused the command: value …"),
        ("ODD", "the server refused the command"),
    ],
)  # fmt: skip
def test_a_refusal_carries_the_servers_words_and_none_of_ours(text: str, words: str) -> None:
    import hiredis

    assert judge(hiredis.ReplyError(text), ["Ann Lee", "Ann%20Lee", "reco", "42"])[1] == words


def test_a_rows_refusal_has_the_servers_words(hashes: RedisTarget) -> None:
    outcome = deliver(hashes.make(SHAPE), Rows(SHAPE, [hashes.poison(sample(1)[0])]).batch())
    assert outcome[0].reason is not None
    assert "key holds a value of another kind: Operation against a key holding" in outcome[0].reason


def test_a_full_server_says_so_in_its_own_words(target: RedisTarget) -> None:
    target.client.config_set("maxmemory", "1")
    try:
        with pytest.raises(Systemic, match="out of memory: command not allowed when used memory > maxmemory"):
            target.make(SHAPE).write(Rows(SHAPE, sample(1)).batch())
    finally:
        target.client.config_set("maxmemory", "0")


def test_a_database_that_is_not_there_is_told(target: RedisTarget) -> None:
    connection = {"port": target.proxy.port, "db": 99, "user": target.user, "password": SECRET}
    with pytest.raises(Systemic, match=r"/99: .*DB index is out of range"):
        target.make(SHAPE, connection=connection).check(VISIT)


def test_a_right_that_is_missing_is_no_sign_of_lost_rows(hashes: RedisTarget) -> None:
    batch = Rows(SHAPE, sample(1)).batch()
    deliver(hashes.make(SHAPE), batch)
    hashes.client.execute_command("ACL", "SETUSER", hashes.user, "-hmget", "-hgetall")
    for attempt in (lambda: list(hashes.make(SHAPE).read(batch)), lambda: hashes.make(SHAPE).check(VISIT)):
        with pytest.raises(Systemic, match=r"may not do this: .*has no permissions to run") as caught:
            attempt()
        assert caught.value.code == "NOPERM"


def test_a_stamp_that_is_no_hash_is_no_sign_of_lost_rows(target: RedisTarget) -> None:
    target.client.set("retl:stamp:state-1:reco%3A%7Bid%7D", "somebody's")
    with pytest.raises(Systemic, match=r"retl:stamp:.*another kind"):
        target.make(SHAPE).check(VISIT)


class Scripted:
    """A server that answers each command with the next of these replies."""

    def __init__(self, *replies: bytes) -> None:
        self.replies = list(replies)
        self.asked: list[bytes] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        with self.listener, self.listener.accept()[0] as peer:
            for reply in self.replies:
                self.asked.append(peer.recv(10_000))
                peer.sendall(reply)

    def connect(self) -> Redis:
        connection = {"host": "127.0.0.1", "port": self.listener.getsockname()[1], "timeout": 5}
        return Redis(options(connection=connection), SHAPE)


@pytest.mark.parametrize(("mode", "code"), [(b"cluster", "REDIS_CLUSTER"), (b"sentinel", "REDIS_SENTINEL")])
def test_what_does_not_store_every_key_is_refused_before_anything_is_sent(mode: bytes, code: str) -> None:
    server = Scripted(b"*4\r\n$6\r\nserver\r\n$5\r\nredis\r\n$4\r\nmode\r\n$%d\r\n%s\r\n" % (len(mode), mode))
    with pytest.raises(Systemic) as caught:
        server.connect().check(VISIT)
    server.thread.join(10)
    assert caught.value.code == code
    assert server.asked == [b"*1\r\n$5\r\nHELLO\r\n"]


def test_a_server_that_knows_no_hello_is_asked_on(target: RedisTarget) -> None:
    server = Scripted(
        b"-ERR unknown command `HELLO`\r\n", b"-LOADING Redis is loading the dataset in memory\r\n"
    )
    with pytest.raises(Unavailable, match="loading") as caught:
        server.connect().check(VISIT)
    server.thread.join(10)
    assert caught.value.code == "LOADING"


# eviction


@pytest.mark.parametrize(
    ("policy", "ttl", "note"),
    [
        ("allkeys-lru", "none", "removes any keys, also rows with `ttl: none`"),
        ("volatile-ttl", "none", "removes keys that have a TTL"),
        ("noeviction", "none", None),
        ("allkeys-lru", "1h", None),
    ],
)
def test_a_check_tells_what_an_eviction_would_remove(
    target: RedisTarget, policy: str, ttl: str, note: str | None
) -> None:
    former = target.client.config_get("maxmemory-policy")["maxmemory-policy"]
    target.client.config_set("maxmemory-policy", policy)
    try:
        for right in ("+info", "+config|get"):
            target.client.execute_command("ACL", "SETUSER", target.user, "-info", "-config", right)
            notes = target.make(SHAPE, ttl=ttl).notes()
            assert [note in one and policy in one for one in notes if note] == ([True] if note else [])
            assert bool(notes) == bool(note)
    finally:
        target.client.config_set("maxmemory-policy", former)


def test_an_account_that_may_not_ask_for_the_policy_is_told(target: RedisTarget) -> None:
    (note,) = target.make(SHAPE, ttl="none").notes()
    assert "+info" in note
    assert target.make(SHAPE, ttl="1h").notes() == []


def test_a_busy_server_is_unavailable_then_all_is_well(target: RedisTarget) -> None:
    destination, batch = target.make(SHAPE), Rows(SHAPE, sample(2)).batch()
    destination.check(VISIT)
    target.client.config_set("busy-reply-threshold", 1)
    killed: list[str] = []

    def spin() -> None:
        try:
            target.client.eval("while true do redis.call('PING') end", 0)
        except redis.ResponseError as error:
            killed.append(str(error))

    script = threading.Thread(target=spin)
    script.start()
    try:
        with target.client.client() as other:
            while "busy" not in answer_to(other.ping):
                time.sleep(0.005)
            with pytest.raises(Unavailable) as caught:
                destination.write(batch)
            assert caught.value.code == "BUSY"
            other.script_kill()
    finally:
        script.join()
        target.client.config_set("busy-reply-threshold", 5000)
    assert killed
    assert kinds(deliver(destination, batch)) == [Kind.WRITTEN] * 2


def answer_to(command: Callable[[], object]) -> str:
    try:
        return str(command())
    except redis.ResponseError as error:
        return str(error)


def test_a_replica_and_a_full_server_stop_before_the_first_write(
    target: RedisTarget, hashes: RedisTarget
) -> None:
    for each in (target, hashes):
        each.client.config_set("maxmemory", "1")
        try:
            with pytest.raises(Systemic) as full:
                each.make(SHAPE).check(VISIT)
            with pytest.raises(Systemic):
                each.make(SHAPE).write(Rows(SHAPE, sample(1)).batch())
        finally:
            each.client.config_set("maxmemory", "0")
        assert full.value.code == "OOM"
        each.client.replicaof("127.0.0.1", 1)
        try:
            with pytest.raises(Systemic) as replica:
                each.make(SHAPE).check(VISIT)
            with pytest.raises(Systemic):
                each.make(SHAPE).write(Rows(SHAPE, sample(1)).batch())
        finally:
            each.client.replicaof("NO", "ONE")
        assert replica.value.code == "READONLY"


def test_check_leaves_no_key_behind(target: RedisTarget, hashes: RedisTarget) -> None:
    target.client.set("reco:probe", "a row that happens to be called so")
    for each in (target, hashes):
        each.make(SHAPE, ttl="none").check(VISIT)
    assert target.client.keys("*") == [b"reco:probe"]
    assert target.client.ttl("reco:probe") == -1


def test_a_connection_that_was_lost_is_made_anew_before_anything_is_sent(target: RedisTarget) -> None:
    destination, batch = target.make(SHAPE), Rows(SHAPE, sample(2)).batch()
    destination.check(VISIT)
    target.proxy.refuse()
    target.proxy.heal()
    assert kinds(deliver(destination, batch)) == [Kind.WRITTEN] * 2


def test_a_value_too_long_is_found_among_megabytes(target: RedisTarget) -> None:
    poison = target.poison(sample(1)[0])
    rows = [poison] + [(f"r{n}", "v" * 100_000, None, n) for n in range(100)]
    outcome = deliver(target.make(SHAPE), Rows(SHAPE, rows).batch())
    assert kinds(outcome) == [Kind.REJECTED] + [Kind.WRITTEN] * 100
    assert outcome[0].code == "BULK_LENGTH"


def test_a_port_that_speaks_another_language_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with listener.accept()[0] as peer:
                peer.recv(100)
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        connection = {"host": "127.0.0.1", "port": listener.getsockname()[1], "timeout": 1}
        with pytest.raises(Unavailable, match="not RESP"):
            Redis(options(connection=connection), SHAPE).check(VISIT)
        thread.join()


def test_a_server_without_tls_is_not_written_to(target: RedisTarget) -> None:
    connection = {"host": "127.0.0.1", "port": target.proxy.port, "tls": True, "connect_timeout": 0.5}
    with pytest.raises((Systemic, Unavailable)):
        target.make(SHAPE, connection=connection).write(Rows(SHAPE, sample(1)).batch())
    assert target.contents() == {}


def signed(path: Path) -> Path:
    """A certificate for localhost that signs itself; its key is in the same file."""
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
        "-addext",
    ]
    made += ["subjectAltName=DNS:localhost", "-keyout", str(path), "-out", f"{path}.signed"]
    subprocess.run(made, check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + Path(f"{path}.signed").read_bytes())
    return path


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """The server's."""
    return signed(tmp_path / "server.pem")


@pytest.fixture
def tls_port(redis_server: Any, certificate: Path) -> Iterator[int]:
    """A port of this machine that speaks TLS for the server."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    with tls_before(redis_server, context) as port:
        yield port


@contextlib.contextmanager
def tls_before(redis_server: Any, context: ssl.SSLContext) -> Iterator[int]:
    def serve(listener: socket.socket) -> None:
        while True:
            try:
                client = context.wrap_socket(listener.accept()[0], server_side=True)
            except ssl.SSLError:
                continue
            except OSError:
                return
            with client, socket.create_connection((redis_server.host, redis_server.port)) as server:
                relay(client, server)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=[listener])
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def relay(client: ssl.SSLSocket, server: socket.socket) -> None:
    while True:
        ready = [client] if client.pending() else select.select([client, server], [], [])[0]
        reads, writes = (client, server) if client in ready else (server, client)
        if not (data := reads.recv(65536)):
            return
        writes.sendall(data)


def test_tls_is_verified(target: RedisTarget, certificate: Path, tls_port: int) -> None:
    server = {"port": tls_port, "db": target.db, "tls": True, "user": target.user, "password": SECRET}
    batch = Rows(SHAPE, sample(3)).batch()
    for host, ca in (
        ("localhost", None),
        ("127.0.0.1", certificate),
        ("localhost", certificate.parent / "none"),
    ):
        connection = server | {"host": host, "tls_ca_file": ca and str(ca)}
        with pytest.raises(Systemic) as caught:
            target.make(SHAPE, connection=connection).write(batch)
        assert caught.value.code == "TLS_UNVERIFIED"
        assert target.contents() == {}
    destination = target.make(
        SHAPE, connection=server | {"host": "localhost", "tls_ca_file": str(certificate)}
    )
    assert kinds(deliver(destination, batch)) == [Kind.WRITTEN] * 3
    destination.check(VISIT)
    destination.close()
    assert target.contents() == as_contents(SHAPE, sample(3))


def test_a_hash_of_nothing_is_a_reject_unless_somebody_keeps_it_alive(hashes: RedisTarget) -> None:
    destination = hashes.make(SHAPE)
    deliver(destination, Rows(SHAPE, sample(2)).batch())
    hashes.annotate(("k1",))
    empty = Rows(SHAPE, [("k0", None, None, None), ("k1", None, None, None)]).batch()
    outcome = deliver(destination, empty)
    assert kinds(outcome) == [Kind.REJECTED, Kind.WRITTEN]
    assert outcome[0].code == "EMPTYHASH"
    assert hashes.client.exists("reco:k0") == 0
    assert hashes.client.hgetall("reco:k1") == {b"theirs": b"kept"}
