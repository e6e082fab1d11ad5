"""The server's side of TDS 7.4, the protocol of SQL Server, on a socket: logins, batches of SQL, and results.

It knows no SQL: an engine gets the text of a batch and answers with results. Without TLS, for the loopback.
"""

from __future__ import annotations

import contextlib
import socketserver
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

_PRELOGIN, _LOGIN, _BATCH, _ANSWER, _ATTENTION = 0x12, 0x10, 0x01, 0x04, 0x06
_MORE, _ERROR, _COUNT, _ATTENDED = 0x1, 0x2, 0x10, 0x20  # of a DONE
_PACKET = 4096
_COLLATION = b"\x09\x04\xd0\x00\x34"


class Result(NamedTuple):
    """A table of rows: texts, whole numbers, floats, bytes or NULL."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


class Failure(NamedTuple):
    """An error that the client sees as the server's own."""

    number: int
    words: str
    severity: int = 16


class Hangup(Exception):
    """The server goes away without an answer."""


class Engine(ABC):
    """What is behind one session."""

    @abstractmethod
    def login(self, user: str, password: str, database: str) -> Failure | None: ...

    @abstractmethod
    def batch(self, sql: str) -> Sequence[Result | Failure]: ...

    @abstractmethod
    def end(self) -> None:
        """The client has gone."""


class Handler(socketserver.BaseRequestHandler):
    """One connection. `server.engine()` makes what is behind it."""

    def handle(self) -> None:
        engine: Engine = self.server.engine()  # type: ignore[attr-defined]
        try:
            with contextlib.suppress(OSError, EOFError, Hangup):
                self._serve(engine)
        finally:
            engine.end()

    def _serve(self, engine: Engine) -> None:
        while True:
            kind, body = self._message()
            if kind == _PRELOGIN:
                self._answer(_prelogin())
            elif kind == _LOGIN:
                user, password, database = _login(body)
                failed = engine.login(user, password, database)
                if failed is not None:
                    self._answer(_failure(failed) + _done(_ERROR))
                    return
                self._answer(_welcome(database))
            elif kind == _BATCH:
                (headers,) = struct.unpack_from("<I", body)
                self._answer(_results(engine.batch(body[headers:].decode("utf-16le", "surrogatepass"))))
            elif kind == _ATTENTION:
                self._answer(_done(_ATTENDED))
            else:
                raise Hangup

    def _message(self) -> tuple[int, bytes]:
        body = b""
        while True:
            kind, status, size = struct.unpack(">BBH", self._read(8)[:4])
            body += self._read(size - 8)
            if status & 1:
                return kind, body

    def _read(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            piece = self.request.recv(size - len(found))
            if not piece:
                raise EOFError
            found += piece
        return found

    def _answer(self, body: bytes) -> None:
        room = _PACKET - 8
        pieces = [body[at : at + room] for at in range(0, len(body), room)] or [b""]
        packets = b""
        for number, piece in enumerate(pieces, 1):
            last = number == len(pieces)
            packets += struct.pack(">BBHHBB", _ANSWER, last, len(piece) + 8, 51, number & 255, 0) + piece
        self.request.sendall(packets)  # at once: a driver in this process reads without letting us go on


def _prelogin() -> bytes:
    """No TLS (2), and no more than one request at a time."""
    options = {0: bytes((16, 0, 0x10, 0, 0, 0)), 1: b"\x02", 2: b"\0", 3: b"", 4: b"\0"}
    head, data = b"", b""
    for token, value in options.items():
        head += struct.pack(">BHH", token, 5 * len(options) + 1 + len(data), len(value))
        data += value
    return head + b"\xff" + data


def _login(body: bytes) -> tuple[str, str, str]:
    def raw(at: int) -> bytes:
        offset, length = struct.unpack_from("<HH", body, at)
        return body[offset : offset + 2 * length]

    password = bytes(((one ^ 0xA5) >> 4) | (((one ^ 0xA5) << 4) & 0xF0) for one in raw(44))
    return raw(40).decode("utf-16le"), password.decode("utf-16le"), raw(68).decode("utf-16le")


def _short(text: str) -> bytes:
    return bytes((len(text),)) + text.encode("utf-16le")


def _changed(kind: int, new: str, old: str) -> bytes:
    body = bytes((kind,)) + _short(new) + _short(old)
    return b"\xe3" + struct.pack("<H", len(body)) + body


def _welcome(database: str) -> bytes:
    ack = b"\x01\x74\x00\x00\x04" + _short("Microsoft SQL Server") + bytes((16, 0, 0x10, 0))
    collation = bytes((7, len(_COLLATION))) + _COLLATION + b"\0"
    return (
        _changed(1, database, "master")
        + b"\xe3" + struct.pack("<H", len(collation)) + collation
        + b"\xad" + struct.pack("<H", len(ack)) + ack
        + _changed(4, str(_PACKET), str(_PACKET))
        + _done()
    )  # fmt: skip


def _done(status: int = 0, rows: int = 0) -> bytes:
    return b"\xfd" + struct.pack("<HHQ", status, 0xC1, rows)


def _failure(failed: Failure) -> bytes:
    words = failed.words.encode("utf-16le")
    body = struct.pack("<IBBH", failed.number, 1, failed.severity, len(words) // 2) + words
    body += _short("tests") + _short("") + struct.pack("<I", 1)
    return b"\xaa" + struct.pack("<H", len(body)) + body


def _results(results: Sequence[Result | Failure]) -> bytes:
    body = b""
    for number, one in enumerate(results, 1):
        more = _MORE * (number < len(results))
        if isinstance(one, Failure):
            body += _failure(one) + _done(more | _ERROR)
        else:
            body += _table(one) + _done(more | _COUNT, len(one.rows))
    return body or _done()


def _table(found: Result) -> bytes:
    kinds = [_kind([row[n] for row in found.rows]) for n in range(len(found.columns))]
    body = b"\x81" + struct.pack("<H", len(kinds))
    for name, kind in zip(found.columns, kinds, strict=True):
        body += struct.pack("<IH", 0, 9) + _TYPES[kind] + _short(name)
    for row in found.rows:
        body += b"\xd1" + b"".join(_value(kind, one) for kind, one in zip(kinds, row, strict=True))
    return body


_TYPES = {int: b"\x26\x08", float: b"\x6d\x08", str: b"\xe7\xff\xff" + _COLLATION, bytes: b"\xa5\xff\xff"}


def _kind(values: Sequence[Any]) -> type:
    found = {type(one) for one in values if one is not None}
    return found.pop() if len(found) == 1 else str


def _value(kind: type, value: Any) -> bytes:
    if kind is int or kind is float:
        return b"\0" if value is None else b"\x08" + struct.pack("<q" if kind is int else "<d", value)
    if value is None:
        return b"\xff" * 8
    data = value if kind is bytes else str(value).encode("utf-16le", "surrogatepass")
    return struct.pack("<Q", len(data)) + (struct.pack("<I", len(data)) + data if data else b"") + bytes(4)
