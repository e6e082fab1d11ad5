"""A real Redis Cluster of the tests: masters that each have a replica, and what operators do to it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import redis
from redis.crc import key_slot

from retl_demo.process import LOOPBACK
from tests.proxy import Proxy
from tests.world.hosts import Cache

SLOTS = 16384
SECRET = "secret-of-the-cluster"


class Node(Cache):
    """One server of a cluster. It keeps nothing on disk but its place in the cluster."""

    def __init__(self, directory: Path, binary: Path | None = None) -> None:
        super().__init__(directory, binary)
        self.password = SECRET
        self._asking: redis.Redis | None = None

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        bus = port + 10_000 if port < 50_000 else port - 10_000
        command = [str(self._binary), "-", "--port", str(port), "--bind", LOOPBACK, "--save", ""]
        command += ["--appendonly", "no", "--cluster-enabled", "yes", "--cluster-node-timeout", "1000"]
        command += ["--cluster-port", str(bus), "--repl-diskless-sync-delay", "0"]
        command += ["--cluster-replica-validity-factor", "0"]
        given = f"requirepass {self.password}\nmasterauth {self.password}\n"
        self.bus = bus
        return self._popen(command, self.directory, given=given)

    @cached_property
    def id(self) -> str:
        return str(self.ask("CLUSTER", "MYID").decode())

    @property
    def spot(self) -> str:
        return f"{self.host}:{self.port}"

    def ask(self, *words: Any) -> Any:
        """The reply as it is."""
        if self._asking is None:
            self._asking = self.client()
            self._asking.response_callbacks.clear()
        return self._asking.execute_command(*words)

    def stop(self) -> None:
        if self._asking is not None:
            self._asking.close()
        super().stop()

    def sees(self, slot: int) -> str:
        """The id of the server that has this slot, as this one believes."""
        for first, last, master, *_ in self.ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return str(master[2].decode())
        raise AssertionError(slot)

    def meet(self, other: Node) -> None:
        self.ask("CLUSTER", "MEET", LOOPBACK, other.port, other.bus)

    def lag(self, client_type: str = "master") -> None:
        """From now on this replica gets nothing more."""
        self.ask("CONFIG", "SET", "masterauth", "wrong")
        self.ask("CLIENT", "KILL", "TYPE", client_type)

    def promote(self) -> None:
        """It takes the place of its master without a vote."""
        self.ask("CLUSTER", "FAILOVER", "TAKEOVER")
        until(lambda: self.ask("ROLE")[0] == b"master")

    def die(self) -> None:
        assert self._process
        self._process.kill()
        self._process.wait(10)


class RedisCluster:
    """`masters` share the slots; `replicas[n]` follows `masters[n]`."""

    def __init__(self, masters: list[Node], replicas: list[Node]) -> None:
        self.masters, self.replicas = masters, replicas

    @property
    def nodes(self) -> list[Node]:
        return [*self.masters, *self.replicas]

    @property
    def connection(self) -> dict[str, Any]:
        """The options of a connection; nobody is at the first address."""
        seeds = ["127.0.0.1:1", *(one.spot for one in self.masters)]
        return {"cluster": seeds, "password": SECRET, "timeout": "5s", "connect_timeout": "1s"}

    def client(self) -> redis.RedisCluster:
        """Another client than the one under test."""
        return redis.RedisCluster(host=LOOPBACK, port=self.masters[0].port, password=SECRET)

    def owner(self, slot: int) -> Node:
        """As the first master sees it."""
        found = self.masters[0].sees(slot)
        return next(one for one in self.nodes if one.id == found)

    def settled(self, slot: int) -> bool:
        """Whether all masters see one owner; an older message between them may set one back for a while."""
        return len({one.sees(slot) for one in self.masters}) == 1

    def open(self, slot: int, to: Node) -> Node:
        """Begin to move a slot; its owner."""
        until(lambda: self.settled(slot))
        source = self.owner(slot)
        to.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", to.id)
        return source

    def carry(self, slot: int, source: Node, to: Node) -> None:
        """Move the keys of a slot that is open."""
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 1000):
            source.ask("MIGRATE", LOOPBACK, to.port, "", 0, 5000, "AUTH", SECRET, "KEYS", *keys)

    def shut(self, slot: int, to: Node) -> None:
        """The slot has moved, and every master knows. What one of them hears late may set it back, so it is
        repeated, with an epoch of the new owner that is larger than all others."""

        def agree() -> bool:
            to.ask("CLUSTER", "BUMPEPOCH")
            for one in (to, *(one for one in self.masters if one is not to)):
                one.ask("CLUSTER", "SETSLOT", slot, "NODE", to.id)
            return {one.sees(slot) for one in self.masters} == {to.id}

        until(lambda: agree() and agree())

    def move(self, slots: range, to: Node) -> None:
        for slot in slots:
            source = self.open(slot, to)
            if source is not to:
                self.carry(slot, source, to)
                self.shut(slot, to)

    def flush(self) -> None:
        for one in self.masters:
            one.ask("FLUSHALL")

    def holding(self, key: str) -> Node:
        """The master that has this key."""
        return self.owner(key_slot(key.encode()))


class Proxies:
    """A proxy before each master, at the address that the cluster names. Faults are for all of them."""

    def __init__(self, cluster: RedisCluster, stack: ExitStack) -> None:
        self.each = [stack.enter_context(Proxy(one.host, one.port)) for one in cluster.masters]
        for node, proxy in zip(cluster.masters, self.each, strict=True):
            node.ask("CONFIG", "SET", "cluster-announce-port", proxy.port)
        wanted = {proxy.port for proxy in self.each}
        for node in cluster.masters:
            until(lambda: {one[2][1] for one in node.ask("CLUSTER", "SLOTS")} == wanted)  # noqa: B023

    @property
    def connections(self) -> int:
        return sum(one.connections for one in self.each)

    @property
    def sent(self) -> int:
        return sum(one.sent for one in self.each)

    def __getattr__(self, name: str) -> Callable[..., None]:
        def all_of_them(*given: Any, **named: Any) -> None:
            for one in self.each:
                getattr(one, name)(*given, **named)

        return all_of_them


@contextmanager
def started(
    folder: Path, masters: int = 3, *, replicas: bool = True, binary: Path | None = None
) -> Iterator[RedisCluster]:
    with ExitStack() as stack:
        count = masters * (2 if replicas else 1)
        nodes = [stack.enter_context(Node(folder / f"node-{n}", binary).start()) for n in range(count)]
        first, *others = nodes
        edges = [n * SLOTS // masters for n in range(masters + 1)]
        for n, one in enumerate(nodes[:masters]):
            one.ask("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
            one.ask("CLUSTER", "ADDSLOTSRANGE", edges[n], edges[n + 1] - 1)
        for one in others:
            first.meet(one)
        until(lambda: all(len(one.ask("CLUSTER", "NODES").splitlines()) == count for one in nodes))
        for master, replica in zip(nodes, nodes[masters:], strict=False):
            wanted = master.id
            until(lambda: tells(replica, wanted))  # noqa: B023
            replica.ask("CLUSTER", "REPLICATE", wanted)
        until(lambda: all(b"cluster_state:ok" in one.ask("CLUSTER", "INFO") for one in nodes))
        for replica in nodes[masters:]:
            until(lambda: b"master_link_status:up" in replica.ask("INFO", "replication"))  # noqa: B023
        yield RedisCluster(nodes[:masters], nodes[masters:])


def tells(node: Node, other: str) -> bool:
    return other.encode() in node.ask("CLUSTER", "NODES")


def until(true: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)
