"""A pooler in transaction mode: each transaction of a client gets the server process that has been idle for
longest, as PgBouncer does it with `server_round_robin`.

It knows of PostgreSQL's protocol only where a message ends and whether a transaction is open; in session mode
it keeps a client's first process. It speaks no TLS. What a client leaves in a process stays there.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from typing import Literal

STARTUP = 196608  # protocol 3.0; any other code asks for encryption
ANSWERED = (3, 5, 10, 11)  # requests of the server that the client must answer before the login goes on


class Pooler:
    """Listens on 127.0.0.1:`port` for as long as the `with` block lasts."""

    def __init__(self, host: str, port: int, mode: Literal["session", "transaction"]) -> None:
        self._server, self._mode = (host, port), mode
        self._idle: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Pooler:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for server in self._idle:
            server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), client:  # ValueError: select of one that was closed
            server = self._login(client)
            while True:
                if self._mode == "transaction":
                    self._idle.append(server)
                if not select.select([client], [], [])[0] or not client.recv(1, socket.MSG_PEEK):
                    break
                if self._mode == "transaction":
                    server = self._idle.pop(0)
                if not _transact(client, server):
                    break
            if self._mode == "session":
                server.close()

    def _login(self, client: socket.socket) -> socket.socket:
        """A process of the server that knows the client, who does not learn its number."""
        while struct.unpack("!I", (startup := _sized(client, b""))[4:8])[0] != STARTUP:
            client.sendall(b"N")
        server = socket.create_connection(self._server)
        server.sendall(startup)
        while True:
            message = _message(server)
            kind, body = message[:1], message[5:]
            client.sendall(message[:5] + b"\0\0\0\1" + body[4:] if kind == b"K" else message)
            if kind == b"R" and struct.unpack("!I", body[:4])[0] in ANSWERED:
                server.sendall(_message(client))
            if kind == b"Z":
                return server


def _transact(client: socket.socket, server: socket.socket) -> bool:
    """Pass messages on until the server is between two transactions; False if the client has gone."""
    while True:
        for ready in select.select([client, server], [], [])[0]:
            message = _message(ready)
            if ready is client and message[:1] == b"X":
                return False
            (server if ready is client else client).sendall(message)
            if ready is server and message[:1] == b"Z" and message[5:] == b"I":
                return True


def _message(of: socket.socket) -> bytes:
    return _sized(of, _exactly(of, 1))


def _sized(of: socket.socket, head: bytes) -> bytes:
    length = _exactly(of, 4)
    return head + length + _exactly(of, struct.unpack("!I", length)[0] - 4)


def _exactly(of: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        if not (chunk := of.recv(size - len(found))):
            raise ConnectionError
        found += chunk
    return found
