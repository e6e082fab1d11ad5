"""A server that speaks MongoDB's protocol (OP_MSG) on a socket, for pymongo: an emulator, and not MongoDB.

It keeps documents in memory, with transactions of snapshots, write conflicts and unique indexes, accounts
(SCRAM-SHA-256), and a validator. Faults are those that a network and a replica set have. If
`RETL_TEST_MONGODB` is the URL of an administrator of a real server, `server()` gives that one instead.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import socket
import socketserver
import struct
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import pbkdf2_hmac, sha256
from typing import Any
from urllib.parse import quote, urlsplit

import bson
from pymongo import MongoClient

from tests.mongo_store import CODEC, Failed, Store

URL = os.environ.get("RETL_TEST_MONGODB", "")
DATABASE = "retl_tests"
Account = tuple[str, str]  # user and password
_OPEN = {"hello", "ismaster", "isMaster", "saslStart", "saslContinue", "endSessions", "ping"}
_WRITES = {"insert", "update", "delete", "create", "createIndexes", "collMod", "drop", "createUser"}
_ROUNDS = 4096


@dataclass
class Mongo:
    """Where it is. `faults`: for each of the next requests of a name what becomes of it: "lost" (served, and
    no answer), "unsent" (neither), "alone" (served, and not confirmed by most members), "stale" (a read of
    what most members have finds nothing), "waits" (served after `release` is set), a code, or its answer.
    `heard(name, served)` is called before and after a request is served."""

    host: str = "127.0.0.1"
    port: int = 0
    admin: Account = ("admin", "admin")
    writer: Account = ("", "")
    reader: Account = ("", "")
    store: Store = field(default_factory=Store)
    standalone: bool = False
    users: dict[str, tuple[str, list[str]]] = field(default_factory=dict)
    faults: list[tuple[str, str | int | dict[str, Any]]] = field(default_factory=list)
    commands: list[dict[str, Any]] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)
    heard: Callable[[str, bool], object] = lambda _name, _served: None

    @property
    def real(self) -> bool:
        return bool(URL)

    def url(self, account: Account, *, host: str = "", port: int = 0) -> str:
        user, password = map(quote, account)
        where = f"{host or self.host}:{port or self.port}"
        return f"mongodb://{user}:{password}@{where}/{DATABASE}?directConnection=true&authSource=admin"

    def client(self, account: Account | None = None) -> MongoClient[dict[str, Any]]:
        return MongoClient(self.url(account or self.admin), uuidRepresentation="standard")

    def documents(self, name: str) -> list[dict[str, Any]]:
        """Every document of a collection."""
        with self.client() as client:
            return list(client.get_database(DATABASE, codec_options=CODEC)[name].find())

    def make_accounts(self) -> None:
        with self.client() as client:
            made = [f"{role}-{secrets.token_hex(4)}" for role in ("readWrite", "read")]
            for name in made:
                roles = [{"role": name.partition("-")[0], "db": DATABASE}]
                client.admin.command("createUser", name, pwd=f"password of {name}", roles=roles)
        self.writer, self.reader = ((name, f"password of {name}") for name in made)

    # --- requests

    def fault(self, name: str) -> str | int | dict[str, Any]:
        if self.faults and self.faults[0][0] == name:
            return self.faults.pop(0)[1]
        return ""

    def serve(self, name: str, command: dict[str, Any], user: str) -> dict[str, Any]:
        """The answer to a command that is neither of a login nor a greeting."""
        roles = self.users.get(user, ("", []))[1]
        if name not in _OPEN and (not roles or (name in _WRITES and roles == ["read"])):
            raise Failed(13, "not authorized")
        if self.standalone and "txnNumber" in command:
            raise Failed(20, "Transaction numbers are only allowed on a replica set member or mongos")
        if name == "createUser":
            given = [one["role"] for one in command["roles"]]
            self.users[command["createUser"]] = (command["pwd"], given)
            return {}
        return self.store.serve(name, command)

    def hello(self, command: dict[str, Any]) -> dict[str, Any]:
        about: dict[str, Any] = {
            "ismaster": True, "isWritablePrimary": True, "helloOk": True, "readOnly": False,
            "maxBsonObjectSize": 16 << 20, "maxMessageSizeBytes": 48_000_000, "maxWriteBatchSize": 100_000,
            "logicalSessionTimeoutMinutes": 30, "minWireVersion": 0, "maxWireVersion": 21,
        }  # fmt: skip
        if not self.standalone:
            me = f"{self.host}:{self.port}"
            about |= {"setName": "tests", "hosts": [me], "me": me, "primary": me}
        if "saslSupportedMechs" in command:
            about["saslSupportedMechs"] = ["SCRAM-SHA-256"]
        return about


class _Login:
    """SCRAM-SHA-256 of one connection: RFC 5802."""

    def __init__(self, users: dict[str, tuple[str, list[str]]], payload: bytes) -> None:
        self._bare = payload.decode().removeprefix("n,,")
        parts = dict(one.split("=", 1) for one in self._bare.split(","))
        self.user = parts["n"].replace("=2C", ",").replace("=3D", "=")
        self._password = users.get(self.user, (secrets.token_hex(8), []))[0]
        salt = secrets.token_bytes(16)
        self._salted = pbkdf2_hmac("sha256", self._password.encode(), salt, _ROUNDS)
        self.first = f"r={parts['r']}{secrets.token_hex(8)},s={b64encode(salt).decode()},i={_ROUNDS}"

    def last(self, payload: bytes) -> bytes:
        unproved, _, proof = payload.decode().rpartition(",p=")
        said = f"{self._bare},{self.first},{unproved}".encode()
        client, server = (_hmac(self._salted, text) for text in (b"Client Key", b"Server Key"))
        signature = _hmac(sha256(client).digest(), said)
        if bytes(a ^ b for a, b in zip(b64decode(proof), signature, strict=True)) != client:
            raise Failed(18, "Authentication failed.")
        return b"v=" + b64encode(_hmac(server, said))


def _hmac(key: bytes, text: bytes) -> bytes:
    return hmac.new(key, text, sha256).digest()


class _Connection(socketserver.BaseRequestHandler):
    server: _Server
    request: socket.socket
    user = ""
    login: _Login | None = None

    def handle(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                length, request, _, kind = struct.unpack("<4i", self._read(16))
                body = self._read(length - 16)
                command = _query(body) if kind == 2004 else _message(body)
                answer = self._answer(command)
                if answer is None:
                    return
                raw = bson.encode(answer, codec_options=CODEC)
                if kind == 2004:
                    head, kind = struct.pack("<iqii", 8, 0, 0, 1), 1
                else:
                    head = struct.pack("<iB", 0, 0)
                whole = struct.pack("<4i", 16 + len(head) + len(raw), 0, request, kind) + head + raw
                self.request.sendall(whole)

    def _read(self, size: int) -> bytes:
        found = bytearray()
        while len(found) < size:
            if not (some := self.request.recv(size - len(found))):
                raise EOFError
            found += some
        return bytes(found)

    def _answer(self, command: dict[str, Any]) -> dict[str, Any] | None:
        """None: the connection is closed without an answer."""
        mongo, name = self.server.mongo, next(iter(command))
        try:
            if name in ("hello", "ismaster", "isMaster"):
                return mongo.hello(command) | {"ok": 1}
            if name in ("saslStart", "saslContinue"):
                return self._log_in(name, command["payload"]) | {"ok": 1}
            mongo.commands.append(command)
            mongo.heard(name, False)
            fault = mongo.fault(name)
            if fault == "unsent":
                return None
            if isinstance(fault, int):
                raise Failed(fault, "a fault of the test")
            if isinstance(fault, dict):
                return fault | {"ok": 1}
            if fault == "waits":
                mongo.release.wait(10)
            answer = mongo.serve(name, command, self.user)
            mongo.heard(name, True)
            if fault == "stale":
                answer["cursor"]["firstBatch"] = []
            if fault == "alone":
                answer |= {"writeConcernError": {"code": 64, "errmsg": "waiting for replication timed out"}}
            return None if fault == "lost" else answer | {"ok": 1}
        except Failed as failed:
            return failed.answer(transacts="autocommit" in command and name != "commitTransaction")

    def _log_in(self, name: str, payload: bytes) -> dict[str, Any]:
        if name == "saslStart":
            self.login = _Login(self.server.mongo.users, payload)
            return {"conversationId": 1, "done": False, "payload": self.login.first.encode()}
        assert self.login is not None
        last = self.login.last(payload)
        self.user = self.login.user
        return {"conversationId": 1, "done": True, "payload": last}


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, mongo: Mongo) -> None:
        self.mongo = mongo
        super().__init__(("127.0.0.1", 0), _Connection)


def _query(body: bytes) -> dict[str, Any]:
    """The command of an OP_QUERY, in which clients greet a server that they do not know."""
    return bson.decode(body[body.index(b"\0", 4) + 9 :], CODEC)


def _message(body: bytes) -> dict[str, Any]:
    """The command of an OP_MSG, with the documents of its sections."""
    at, command, more = 4, dict[str, Any](), dict[str, Any]()
    while at < len(body):
        kind, (size,) = body[at], struct.unpack_from("<i", body, at + 1)
        section = body[at + 1 : at + 1 + size]
        if kind == 0:
            command = bson.decode(section, CODEC)
        else:
            end = section.index(b"\0", 4)
            more[section[4:end].decode()] = bson.decode_all(section[end + 1 :], CODEC)
        at += 1 + size
    return command | more


@contextlib.contextmanager
def server() -> Iterator[Mongo]:
    """An emulator in this process, or the real server of RETL_TEST_MONGODB."""
    if URL:
        parts = urlsplit(URL)
        account = (parts.username or "", parts.password or "")
        mongo = Mongo(parts.hostname or "127.0.0.1", parts.port or 27017, account)
        mongo.make_accounts()
        yield mongo
        return
    mongo = Mongo(users={"admin": ("admin", ["root"])})
    with _Server(mongo) as listening:
        mongo.port = listening.server_address[1]
        thread = threading.Thread(target=listening.serve_forever, args=[0.05], daemon=True)
        thread.start()
        try:
            mongo.make_accounts()
            yield mongo
        finally:
            listening.shutdown()
            thread.join()
