"""An HTTP API on a real socket that remembers objects and misbehaves on schedule.

A vendor is a subclass that says what it `serve`s. Each request is one exchange; a fault takes an
exchange and does something else with it, or something more. One request is served at a time.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

TOKEN = "token-of-the-tests"  # noqa: S105 - the default token of a fake

Fault = Callable[["Exchange"], bool]  # True = the request is finished and must not be served


class FakeApi:
    """Listens on 127.0.0.1:`port` while the `with` block lasts.

    `objects` are what it holds, by key; `refuse` the keys it refuses. `faults` are used up, one per
    request; `seen` are the requests that came in whole, as (method, path, headers, body).
    """

    def __init__(self, token: str = TOKEN, refuse: Collection[str] = ()) -> None:
        self.token, self.refuse = token, frozenset(refuse)
        self.port = 0  # any that is free
        self.objects: dict[str, dict[str, Any]] = {}
        self.times: list[float] = []  # of `seen`, on a monotonic clock
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.faults: deque[Fault] = deque()
        self.lock = threading.Lock()

    def __enter__(self) -> Self:
        self._server = _Server(("127.0.0.1", self.port), Exchange)
        self._server.api = self
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.02], daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """The value for a connection's `base_url`."""
        return f"http://127.0.0.1:{self.port}"

    def misbehave(self, *faults: Fault) -> None:
        """One fault for each of the next requests, in order; after that no more faults."""
        self.faults.extend(faults)

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        """The answer to a request: its status, and its content (bytes are text, everything else is JSON)."""
        raise NotImplementedError

    def merge(self, key: str, fields: dict[str, Any]) -> None:
        self.objects.setdefault(key, {}).update(fields)


def written(content: Any) -> tuple[bytes, dict[str, str]]:
    """A content as body and headers: bytes are text, with their type or their headers a pair, everything else
    is JSON."""
    if isinstance(content, tuple):
        return content[0], content[1] if isinstance(content[1], dict) else {"Content-Type": content[1]}
    if isinstance(content, bytes):
        return content, {"Content-Type": "text/plain"}
    return b"" if content is None else json.dumps(content).encode(), {"Content-Type": "application/json"}


class _Server(ThreadingHTTPServer):
    api: FakeApi
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Do not print connections that faults break."""


class Exchange(BaseHTTPRequestHandler):
    """One request, and what a fault may do with it."""

    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    content = b""

    def handle_request(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.content = self.rfile.read(length)
        if len(self.content) < length:
            self.close_connection = True
            return
        api = self.server.api
        with api.lock:
            api.times.append(time.monotonic())
            api.seen.append((self.command, self.path, self.named(), self.content))
            fault = api.faults.popleft() if api.faults else None
        if fault is None or not fault(self):
            status, content = self.perform()
            self.reply(status, *written(content))

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_request

    def named(self) -> dict[str, str]:
        return {name.lower(): value for name, value in self.headers.items()}

    def perform(self) -> tuple[int, Any]:
        """Process the request; the answer is not sent yet."""
        api = self.server.api
        with api.lock:
            return api.serve(self.command, self.path, self.named(), self.content)

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        given = {**headers, "Content-Length": str(len(body))}
        head = [f"HTTP/1.1 {status} Told", *(f"{name}: {value}" for name, value in given.items())]
        self.close_connection = self.close_connection or headers.get("Connection") == "close"
        self.wfile.write("\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""
