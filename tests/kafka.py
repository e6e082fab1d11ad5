"""A broker that speaks Kafka's protocol, and what stands before it in the tests.

RETL_TEST_KAFKA=host:port names an expendable broker instead, without TLS and login, which calls itself by this
IPv4 address; then isolation is tested too, which the wheel's broker (Tansu) does not have. `Relay` adds what
Tansu lacks: TLS, a login (PLAIN), and accounts that may not write.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition
from confluent_kafka.admin import AdminClient

from retl_demo.servers import Tansu

ELSEWHERE = os.environ.get("RETL_TEST_KAFKA")
LOGIN = ("retl", "only-tests")
PRODUCE, _METADATA, _HANDSHAKE, _VERSIONS, INIT, ADD, END, _LOGIN = 0, 3, 17, 18, 22, 24, 26, 36  # requests
_NOT_ASKED, _READS = struct.pack(">i", -(2**31)), struct.pack(">i", 1 << 3 | 1 << 8)  # rights: Read, Describe


@dataclass
class Broker:
    """Where it is, for clients apart from any the code under test has; tests use topics of their own."""

    host: str
    port: int

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def quiet(self) -> dict[str, Any]:
        return {"bootstrap.servers": self.address, "log_level": 0}

    @cached_property
    def admin(self) -> AdminClient:
        return AdminClient(self.quiet)

    @cached_property
    def consumer(self) -> Consumer:
        settings = {"group.id": "tests", "isolation.level": "read_committed", "enable.partition.eof": True}
        return Consumer(self.quiet | settings | {"fetch.wait.max.ms": 20, "enable.auto.commit": False})

    def records(self, topic: str) -> list[Message]:
        """Everything in a topic that a reader of committed records finds, partition by partition."""
        there = self.admin.list_topics(timeout=10).topics.get(topic)
        if there is None:
            return []
        found, left = list[Message](), len(there.partitions)
        self.consumer.assign([TopicPartition(topic, number, 0) for number in there.partitions])
        while left:
            one = self.consumer.poll(10)
            assert one is not None, f"{topic} does not answer"
            error = one.error()
            assert error is None or error.code() == KafkaError._PARTITION_EOF, error
            left -= error is not None
            found += [one] if error is None else []
        self.consumer.unassign()
        return sorted(found, key=lambda one: (one.partition() or 0, one.offset() or 0))

    def committed(self, topic: str) -> list[Message]:
        """The records whose batch left its mark: Tansu also shows those of attempts that were aborted."""
        marks = [json.loads(one.value() or b"{}") for one in self.records(f"{topic}.retl")]
        attempts = {one.get("attempt") for one in marks}
        return [one for one in self.records(topic) if headers(one)["retl-batch"].split("/")[1] in attempts]


def headers(of: Message) -> dict[str, str]:
    return {name: bytes(value or b"").decode() for name, value in of.headers() or []}


@contextlib.contextmanager
def broker(directory: Path) -> Iterator[Broker]:
    """A broker for the session."""
    if ELSEWHERE:
        host, _, port = ELSEWHERE.rpartition(":")
        yield Broker(host, int(port))
    else:
        with Tansu(directory).start() as server:
            yield Broker(server.host, server.port)


@dataclass
class Relay:
    """Passes requests on to a broker, from clients that have logged in. Clients are told to find the broker at
    `public`, or here. `readonly`: the account may only read. `heard` is called with each request's number before
    it is passed on, and again before its answer is."""

    behind: Broker
    public: int = 0
    port: int = 0
    readonly: bool = False
    tls: ssl.SSLContext | None = None  # of the broker, for clients
    heard: Callable[[int, bool], object] = lambda _request, _answered: None
    _sockets: list[socket.socket] = field(default_factory=list)

    def __enter__(self) -> Relay:
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self._sockets.append(listener)
        threading.Thread(target=self._accept, args=[listener], daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                if self.tls is not None:
                    try:
                        client = self.tls.wrap_socket(client, server_side=True)
                    except OSError:  # of ssl too: the client trusts somebody else, or speaks no TLS
                        continue
                server = socket.create_connection((self.behind.host, self.behind.port))
                self._sockets += [client, server]
                asked = dict[bytes, int]()
                for body in (self._requests, self._answers):
                    threading.Thread(
                        target=_until_closed, args=[body, client, server, asked], daemon=True
                    ).start()

    def _requests(self, client: socket.socket, server: socket.socket, asked: dict[bytes, int]) -> None:
        known = False
        while frame := _frame(client):
            request, version = struct.unpack(">hh", frame[:4])
            number, body = frame[4:8], _after_text(frame[8:])
            if request == _HANDSHAKE:
                _send(client, number + struct.pack(">hih", 0, 1, 5) + b"PLAIN")
            elif request == _LOGIN:
                known = body[4:] == b"\0" + b"\0".join(part.encode() for part in LOGIN)
                answer = struct.pack(">hhi", 0 if known else 58, -1, 0)
                _send(client, number + answer + (struct.pack(">q", 0) if version else b""))
            elif request == INIT and self.readonly:
                tagged = b"\0" if version >= 2 else b""
                _send(client, number + tagged + struct.pack(">ihqh", 0, 53, -1, -1) + tagged)
            elif known or request == _VERSIONS:
                asked[number] = request
                self.heard(request, False)
                _send(server, frame)
            else:
                return

    def _answers(self, client: socket.socket, server: socket.socket, asked: dict[bytes, int]) -> None:
        name = self.behind.host.encode()
        ports = self.behind.port, self.public or self.port
        real, public = (name + struct.pack(">i", port) for port in ports)
        while frame := _frame(server):
            frame, request = frame.replace(real, public), asked.pop(frame[:4], -1)
            self.heard(request, True)
            if request == _METADATA and self.readonly:
                frame = frame.replace(_NOT_ASKED, _READS)
            _send(client, frame)


def _until_closed(
    body: Callable[..., None], client: socket.socket, server: socket.socket, asked: Any
) -> None:
    with contextlib.suppress(OSError):
        body(client, server, asked)
    for one in (client, server):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


def _frame(of: socket.socket) -> bytes:
    """The next request or answer without its length; empty at the end."""
    size = _exactly(of, 4)
    return _exactly(of, struct.unpack(">i", size)[0]) if size else b""


def _exactly(of: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        if not (more := of.recv(count - len(data))):
            return b""
        data += more
    return data


def _send(to: socket.socket, frame: bytes) -> None:
    to.sendall(struct.pack(">i", len(frame)) + frame)


def _after_text(data: bytes) -> bytes:
    size = struct.unpack(">h", data[:2])[0]
    return data[2 + max(size, 0) :]
