"""Redis Cluster: rows on many servers, each of which can fail alone, and slots that move between them."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from msgspec.structs import replace
from pydantic import ValidationError
from redis.crc import key_slot

from retl.destinations.batch import Field, Kind, Shape
from retl.destinations.redis.adapter import Redis
from retl.destinations.redis.cluster import Cluster
from retl.destinations.redis.connection import RedisConnection
from retl.destinations.redis.resp import Account
from retl.destinations.redis.slots import SLOTS, slot, tags
from retl.errors import DefinitionError, Systemic, Unavailable
from tests.crash_sweep import FailureRate, sweep_events
from tests.crashes import COLUMNS, Project, Scene
from tests.destinations.rows import Row, Rows
from tests.destinations.suite import STRING, VISIT, Contents, Suite, Target, deliver, kinds, sample
from tests.destinations.test_redis import BULK_LIMIT, RIGHTS, SHAPE, options
from tests.redis_cluster import SECRET, Node, Proxies, RedisCluster, started, until
from tests.world.hosts import CACHES

OTHER = list(CACHES.values())[-1]  # Redis 7 where it is installed; all others are Valkey
THREE = "127.0.0.1:1, 127.0.0.1:2, 127.0.0.1:3"


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RedisCluster, Proxies]]:
    """Masters without replicas, each behind a proxy."""
    with ExitStack() as stack:
        cluster = stack.enter_context(started(tmp_path_factory.mktemp("cluster"), replicas=False))
        yield cluster, Proxies(cluster, stack)


@pytest.fixture
def cluster(lasting: tuple[RedisCluster, Proxies]) -> Iterator[RedisCluster]:
    """Empty, and its proxies pass everything."""
    made, proxies = lasting
    proxies.heal()
    made.flush()
    yield made
    for one in made.masters:
        one.ask("ACL", "DELUSER", ClusterTarget.user)
        one.ask("CONFIG", "SET", "proto-max-bulk-len", 512 << 20)


@pytest.fixture
def make(cluster: RedisCluster) -> Iterator[Callable[..., Redis]]:
    """A destination that writes to it."""
    made: list[Redis] = []

    def make(shape: Shape = SHAPE, **settings: Any) -> Redis:
        made.append(Redis(options(**{"key": "s:{id}", "connection": cluster.connection} | settings), shape))
        made[-1].check(VISIT)
        made[-1].prepare(VISIT)
        return made[-1]

    yield make
    for one in made:
        one.close()


class ClusterTarget(Target):
    """An account with the documented rights and no other, on every server."""

    type = "redis"
    commit = b"HINCRBY"
    user = "retl-cluster"

    def __init__(self, cluster: RedisCluster, proxies: Proxies) -> None:
        self.cluster, self.proxy = cluster, proxies  # type: ignore[assignment]
        self.proxies = proxies
        for one in self.proxies.each:
            one.connections = one.sent = 0
        self._everywhere("ACL", "SETUSER", self.user, "reset", "on", f">{SECRET}", "~reco:*", "~retl:stamp:*")
        self._everywhere("ACL", "SETUSER", self.user, *RIGHTS["json"].split())
        self._everywhere("ACL", "SETUSER", self.user, "+cluster|slots", "+cluster|nodes", "+asking")

    def _everywhere(self, *words: Any) -> None:
        for one in self.cluster.masters:
            one.ask(*words)

    def make(self, shape: Shape, *, secret: str | None = None, **settings: Any) -> Redis:
        account = {"user": self.user, "password": secret or SECRET, "timeout": 1, "connect_timeout": 1}
        server = {"cluster": [f"{one.host}:{one.port}" for one in self.proxies.each]}
        given = {"connection": server | account, "key": "reco:{id}", "value": "json", "ttl": "1h"}
        return Redis(options(**given | settings), shape)

    def contents(self) -> Contents:
        found: Contents = {}
        for one in self.cluster.masters:
            for key in one.ask("KEYS", "reco:*"):
                name = (unquote(key.decode().removeprefix("reco:")),)
                found[name] = json.loads(one.ask("GET", key), parse_float=Decimal)
        return found

    def poison(self, row: Row) -> Row:
        self._everywhere("CONFIG", "SET", "proto-max-bulk-len", BULK_LIMIT)
        return (row[0], row[1] + "x" * BULK_LIMIT, *row[2:])

    def forbid(self) -> None:
        self._everywhere("ACL", "SETUSER", self.user, "-set", "-hset", "-eval")

    def annotate(self, key: Row) -> Callable[[], bool] | None:
        return None


class TestClusters(Suite):
    @pytest.fixture
    def target(self, cluster: RedisCluster, lasting: tuple[RedisCluster, Proxies]) -> ClusterTarget:
        return ClusterTarget(cluster, lasting[1])


# slots


def test_slots_are_those_of_the_servers() -> None:
    for key in ("a", "", "é", "user:{42}:x", "{}x", "a{}{b}", "a{b", "a}b{c}", "{{x}}", "x" * 300):
        assert slot(key) == slot(key.encode()) == key_slot(key.encode())


def test_there_is_a_stamp_in_each_part_of_the_slots_and_their_names_never_change() -> None:
    found = tags(128)
    assert [slot(tag) * 128 // SLOTS for tag in found] == list(range(128))
    assert (found[0], found[1], found[64], found[127]) == ("14", "10", "16", "44")


# rows


def held(cluster: RedisCluster, pattern: str) -> list[int]:
    """How many keys each master has."""
    return [len(one.ask("KEYS", pattern)) for one in cluster.masters]


def test_rows_are_on_all_servers_and_each_has_the_mark_of_the_batch(
    cluster: RedisCluster, make: Callable[..., Redis]
) -> None:
    destination, batch = make(), Rows(SHAPE, sample(300)).batch()
    assert set(kinds(deliver(destination, batch))) == {Kind.WRITTEN}
    assert min(held(cluster, "s:*")) > 50
    assert sum(held(cluster, "s:*")) == 300
    assert sum(held(cluster, "retl:stamp:state-1:*")) == 128
    assert min(held(cluster, "retl:stamp:state-1:*")) > 30
    seen = destination.check(VISIT)
    assert seen.batches == {(batch.run_id, batch.id)}


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_what_one_server_lost_is_noticed_also_if_the_batch_had_no_row_there(
    cluster: RedisCluster, make: Callable[..., Redis], lost: int
) -> None:
    destination, rows = make(), Rows(SHAPE, sample(1))
    deliver(destination, rows.batch())
    cluster.masters[lost].ask("FLUSHALL")
    assert destination.check(VISIT).batches == frozenset()


def test_a_server_that_is_emptied_within_a_batch_is_noticed(
    cluster: RedisCluster, make: Callable[..., Redis], lasting: tuple[RedisCluster, Proxies]
) -> None:
    destination, batch = make(), Rows(SHAPE, sample(3000)).batch()
    node = cluster.masters[1]
    with node.client() as other:  # a connection of its own: this happens in another thread
        row = next(one for one in reversed(sample(3000)) if cluster.holding(f"s:{one[0]}") is node)
        lasting[1].each[1].act(other.flushall, f"s:{row[0]}\r\n".encode())
        with pytest.raises(Unavailable) as caught:
            destination.write(batch)
    assert caught.value.code == "TARGET_RESET"
    assert set(kinds(deliver(destination, batch))) == {Kind.WRITTEN}


def test_hashes_fields_and_members_find_their_server(
    cluster: RedisCluster, make: Callable[..., Redis]
) -> None:
    rows = sample(20)
    for value, key in (("hash", "h:{id}"), ({"field": "visits"}, "f:{id}")):
        destination, batch = make(key=key, value=value), Rows(SHAPE, rows).batch()
        assert set(kinds(deliver(destination, batch))) == {Kind.WRITTEN}
        assert [one is not None for one in destination.read(batch)] == [True] * 20
        assert sorted(destination.scan()) == sorted((row[0],) for row in rows)
    shape = replace(SHAPE, key=(Field("group", STRING), Field("id", STRING)), fields=(), deletes="delete")
    members = make(shape, key="set:{group}", value="set", ttl="1h")
    batch = Rows(shape, [(f"g{n % 7}", f"m{n}") for n in range(30)]).batch()
    assert set(kinds(deliver(members, batch))) == {Kind.WRITTEN}
    assert sorted(members.scan()) == sorted((f"g{n % 7}", f"m{n}") for n in range(30))
    with cluster.client() as client:
        assert client.smembers("set:g1") == {f"m{n}".encode() for n in range(1, 30, 7)}
        assert 0 < client.ttl("set:g1") <= 3600
        assert client.hget("h:k3", "visits") == client.get("f:k3") == b"3"


# slots that move


def test_a_slot_that_moved_is_followed(cluster: RedisCluster, make: Callable[..., Redis]) -> None:
    destination, batch = make(), Rows(SHAPE, sample(100)).batch()
    number = slot("s:k7")
    source = cluster.owner(number)
    to = next(one for one in cluster.masters if one is not source)
    try:
        deliver(destination, batch)
        cluster.move(range(number, number + 1), to)
        seen = destination.read(batch)
        assert None not in list(seen)
        cluster.move(range(number, number + 1), source)
        cluster.move(range(number, number + 1), to)
        again = Rows(SHAPE, sample(100, "other")).batch(run_id="run-2")
        assert set(kinds(deliver(destination, again))) == {Kind.WRITTEN}
        assert json.loads(to.ask("GET", "s:k7"))["name"] == "other 7"
        assert destination.check(VISIT).batches == {(one.run_id, one.id) for one in (batch, again)}
    finally:
        cluster.move(range(number, number + 1), source)


@pytest.mark.parametrize("key", ["s:k7", "stamp"])
def test_a_slot_that_is_moving_is_followed_key_by_key(
    cluster: RedisCluster, make: Callable[..., Redis], key: str
) -> None:
    destination, batch = make(), Rows(SHAPE, sample(100)).batch()
    key = destination._stamp.keys[5] if key == "stamp" else key
    number = slot(key)
    source = cluster.owner(number)
    to = next(one for one in cluster.masters if one is not source)
    deliver(destination, Rows(SHAPE, sample(50)).batch(run_id="run-0"))
    cluster.open(number, to)
    try:
        assert set(kinds(deliver(destination, batch))) == {Kind.WRITTEN}
        cluster.carry(number, source, to)
        again = Rows(SHAPE, sample(100, "other")).batch(run_id="run-2")
        assert set(kinds(deliver(destination, again))) == {Kind.WRITTEN}
        assert None not in list(destination.read(batch))
        with pytest.raises(Unavailable) as caught:
            list(destination.scan())
        assert caught.value.code == "CLUSTER_MOVING"
    finally:
        cluster.carry(number, source, to)
        cluster.shut(number, to)
        cluster.move(range(number, number + 1), source)
    assert sorted(destination.scan()) == sorted((row[0],) for row in sample(100))
    assert {json.loads(one)["name"] for one in values(cluster, "s:*")} == {f"other {n}" for n in range(100)}
    assert (again.run_id, again.id) in destination.check(VISIT).batches


def values(cluster: RedisCluster, pattern: str) -> list[bytes]:
    return [one.ask("GET", key) for one in cluster.masters for key in one.ask("KEYS", pattern)]


def test_rows_wait_for_a_server_that_has_no_stamp_yet(
    cluster: RedisCluster, make: Callable[..., Redis], tmp_path: Path
) -> None:
    destination = make()
    number = slot("s:k7")
    assert number not in map(slot, destination._stamp.keys)
    source = cluster.owner(number)
    with Node(tmp_path).start() as fresh:
        fresh.meet(cluster.masters[0])
        until(lambda: fresh.id.encode() in source.ask("CLUSTER", "NODES"))
        until(lambda: b"cluster_state:ok" in fresh.ask("CLUSTER", "INFO"))
        widened = RedisCluster([*cluster.masters, fresh], [])
        widened.move(range(number, number + 1), fresh)
        outcome = deliver(destination, Rows(SHAPE, sample(20)).batch())
        assert [n for n, one in enumerate(outcome) if one.kind is Kind.RETRY] == [7]
        assert outcome[7].code == "TRYAGAIN"
        with pytest.raises(Unavailable) as caught:
            destination.check(VISIT)
        assert caught.value.code == "CLUSTER_SLOTS"
        widened.carry(number, widened.open(number, source), source)
        cluster.shut(number, source)
        for one in cluster.masters:
            one.ask("CLUSTER", "FORGET", fresh.id)
    assert set(kinds(deliver(destination, Rows(SHAPE, sample(20)).batch()))) == {Kind.WRITTEN}


def test_a_stream_and_its_stamp_are_in_one_slot_and_move_together(
    cluster: RedisCluster, make: Callable[..., Redis]
) -> None:
    shape = replace(SHAPE, write="append")
    for key in ("events", "events:{{a}}"):
        destination, name = make(shape, key=key, value="stream"), key.format()
        rows = Rows(shape, sample(30))
        first, second, third = (rows.batch("append", first=n, last=n + 9) for n in (0, 10, 20))
        deliver(destination, first)
        number = slot(name)
        source = cluster.owner(number)
        to = next(one for one in cluster.masters if one is not source)
        cluster.open(number, to)
        try:
            source.ask("MIGRATE", "127.0.0.1", to.port, name, 0, 5000, "AUTH", SECRET)
            with pytest.raises(Unavailable) as caught:
                destination.write(second)
            assert caught.value.code == "TRYAGAIN"
            cluster.carry(number, source, to)
            assert kinds(deliver(destination, second)) == [Kind.WRITTEN] * 10
        finally:
            cluster.carry(number, source, to)
            cluster.shut(number, to)
        for batch in (first, third, third):
            assert kinds(deliver(destination, batch)) == [Kind.WRITTEN] * 10
        assert [held[1] for _, held in to.ask("XRANGE", name, "-", "+")] == [
            f"k{n}".encode() for n in range(30)
        ]
        assert len(destination.check(VISIT).batches) == 3
        cluster.move(range(number, number + 1), source)


# whole runs


def project(folder: Path, cluster: RedisCluster, sync: str, rows: str = "") -> Project:
    connections = f"  many: {{type: redis, {listed(cluster)}}}\n"
    made = Project(folder, sync, {}, connections=connections)
    if rows:
        made.mart(rows)
    return made


def listed(cluster: RedisCluster) -> str:
    given = cluster.connection
    return ", ".join(f"{name}: {json.dumps(value)}" for name, value in given.items())


LASTING = 'destination: {connection: many, key: "user:{user_id}", value: json, ttl: none}\n'


def texts(cluster: RedisCluster, pattern: str = "user:*") -> list[tuple[str | None, ...]]:
    rows = []
    for one in cluster.masters:
        for key in one.ask("KEYS", pattern):
            found = json.loads(one.ask("GET", key), parse_float=str)
            fields = (None if found[name] is None else str(found[name]) for name in COLUMNS[1:])
            rows.append((unquote(key.decode().removeprefix("user:")), *fields))
    return sorted(rows)


class ClusterScene(Scene):
    sync = LASTING + "deletes: delete\n"

    def __init__(self, folder: Path, cluster: RedisCluster) -> None:
        super().__init__(folder)
        self.cluster, self.connections = cluster, f"  many: {{type: redis, {listed(cluster)}}}\n"

    def environ(self) -> dict[str, str]:
        return {}

    def empty(self) -> None:
        self.cluster.flush()

    def content(self) -> list[tuple[str | None, ...]]:
        return texts(self.cluster)


def test_a_run_killed_at_any_event_is_made_good_by_the_next(cluster: RedisCluster, tmp_path: Path) -> None:
    scene, failure_rate = ClusterScene(tmp_path / "project", cluster), FailureRate()
    scene.begin()
    sweep_events(scene, failure_rate, 2, turn=1)
    assert failure_rate.problems == []
    assert failure_rate.kills >= 1


def test_a_run_while_slots_move_delivers_every_row_once(cluster: RedisCluster, tmp_path: Path) -> None:
    rows = "INSERT INTO mart SELECT 'more ' || i, 'new', i, NULL FROM range(500) t(i)"
    made = project(tmp_path / "project", cluster, LASTING, rows)
    ended, moved = threading.Event(), list[int]()
    first, second = cluster.masters[:2]

    def reshard() -> None:
        while not ended.is_set() and len(moved) < 400:
            cluster.move(range(len(moved), len(moved) + 1), second)
            moved.append(1)

    mover = threading.Thread(target=reshard)
    mover.start()
    try:
        done = made.sync()
    finally:
        ended.set()
        mover.join()
        between = len(moved)
        cluster.move(range(between), first)
    assert done.code == 0, done.stdout + done.stderr
    assert between > 10
    assert texts(cluster) == sorted(made.rows())
    again = made.sync()
    assert (again.code, again.summary["unchanged"]) == (0, 540)


def test_a_server_that_restarts_empty_is_noticed_by_the_next_run(
    cluster: RedisCluster, tmp_path: Path
) -> None:
    made = project(tmp_path / "project", cluster, LASTING)
    assert made.sync().code == 0
    lost = cluster.holding("user:user%20007")
    lost.ask("FLUSHALL")
    refused = made.sync()
    assert (refused.code, refused.summary["error"]["code"]) == (3, "TARGET_LOST")
    assert made.sync("--full").code == 0
    assert texts(cluster) == made.rows()
    made.define(LASTING.replace("none", "24h"))
    assert made.sync().code == 0
    lost.ask("FLUSHALL")
    assert made.sync().code == 0, "rows that expire are sent again without asking"
    assert texts(cluster) == made.rows()


def test_a_cluster_is_compared_repaired_and_read_as_one(cluster: RedisCluster, tmp_path: Path) -> None:
    made = project(tmp_path / "project", cluster, LASTING + "deletes: delete\n")
    assert made.sync().code == 0
    for name in ("user%20001", "user%20014", "user%20030"):
        cluster.holding(f"user:{name}").ask("UNLINK", f"user:{name}")
    with cluster.client() as other:
        other.set("user:theirs", "x")
    assert made.answered("reconcile", "users", "--repair", "--output", "json").code == 0
    assert texts_of_ours(cluster) == made.rows()
    shutil.rmtree(made.folder / ".retl")
    rebuilt = made.answered("state", "rebuild", "users", "--yes", "--output", "json")
    assert rebuilt.code == 0, rebuilt.stderr
    assert made.sync().summary["unchanged"] == 40


def texts_of_ours(cluster: RedisCluster) -> list[tuple[str | None, ...]]:
    """What the cluster holds but for a row of somebody else, which must be there."""
    with cluster.client() as other:
        assert other.getdel("user:theirs") == b"x"
    return texts(cluster)


def test_a_failover_to_a_replica_that_lagged_is_noticed(tmp_path: Path) -> None:
    with started(tmp_path / "cluster", binary=OTHER) as cluster:
        made = project(tmp_path / "project", cluster, LASTING)
        assert made.sync().code == 0
        replica, left = cluster.replicas[1], [2]
        until(lambda: replica.ask("DBSIZE") == cluster.masters[1].ask("DBSIZE"))

        def hears(line: str) -> None:
            if '"batch_acknowledged"' in line:
                left[0] -= 1
                if left[0] == 0:
                    cluster.masters[1].die()
                    until(lambda: cluster.owner(8000) is replica)

        replica.lag()
        made.mart("UPDATE mart SET searches = searches + 1")
        ended = made.answered("sync", "--sync", "users", "--output", "json", hears=hears)
        assert left[0] <= 0
        assert ended.code == 1, ended.stdout
        assert ended.summary["error"]["code"] == "TARGET_RESET"
        again = made.sync()
        again = again if again.code == 0 else made.sync("--full")
        assert again.code == 0, again.stdout
        cluster.masters[1] = replica
        assert texts(cluster) == made.rows()
        assert made.sync().summary["unchanged"] == 40


# options


def test_what_is_not_a_cluster_is_told(cluster: RedisCluster, redis_server: Any) -> None:
    alone = {"cluster": f"{redis_server.host}:{redis_server.port}", "password": redis_server.password}
    one = {"host": cluster.masters[0].host, "port": cluster.masters[0].port, "password": SECRET}
    for connection in (alone, one):
        destination = Redis(options(connection=connection), SHAPE)
        with pytest.raises(Systemic) as caught:
            destination.check(VISIT)
        assert caught.value.code == "REDIS_CLUSTER"


def _account() -> Account:
    return Account(None, tls=False, ca_file=None, own=None, connect_timeout=1, timeout=1)


def test_a_node_on_another_machine_needs_tls() -> None:
    made = Cluster("redis://x", [], _account(), allow_plaintext=False)
    with pytest.raises(Systemic) as caught:
        made._listed([[0, SLOTS - 1, [b"192.0.2.1", 6379, b"id"]]], "localhost")
    assert caught.value.code == "CLUSTER_PLAINTEXT"


@pytest.mark.parametrize("named", [None, b"", b"?"])
def test_a_node_without_a_name_is_where_we_asked(named: bytes | None) -> None:
    made = Cluster("redis://x", [], _account(), allow_plaintext=False)
    owners = made._listed([[0, SLOTS - 1, [named, 6379, b"id"]]], "localhost")
    assert set(owners) == {("localhost", 6379)}


def test_a_cluster_that_serves_not_all_slots_is_down() -> None:
    made = Cluster("redis://x", [], _account(), allow_plaintext=False)
    with pytest.raises(Unavailable) as caught:
        made._listed([[0, 99, [b"", 6379, b"id"]]], "localhost")
    assert caught.value.code == "CLUSTERDOWN"


@pytest.mark.parametrize("asks", [{"conflicts": "target_wins"}, {"images": True}])
def test_what_needs_one_step_for_a_batch_is_refused(asks: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError) as caught:
        Redis(options(connection={"cluster": THREE}), replace(SHAPE, **asks))
    assert caught.value.code in ("CONFLICTS_UNSUPPORTED", "ROLLBACK_UNSUPPORTED")


def test_the_first_node_names_the_target() -> None:
    def place(nodes: Any) -> str:
        return Redis.place(options(connection={"cluster": nodes, "allow_plaintext": True}), "upsert")

    assert place("R1:7000, r2:7001") == place(["r1:7000"]) == "redis://r1:7000/0/a:{id}"


@pytest.mark.parametrize(
    "given",
    [
        {"cluster": True},
        {"cluster": "localhost"},
        {"cluster": "localhost:0"},
        {"cluster": "localhost:7000", "db": 1},
        {"cluster": "localhost:7000", "host": "localhost"},
        {"cluster": "localhost:7000", "sentinels": "localhost:26379", "service": "x"},
        {"cluster": "redis-1:7000"},
    ],
)
def test_a_cluster_that_does_not_fit_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RedisConnection.model_validate(given)
