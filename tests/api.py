"""An HTTP API on a real socket: it remembers objects, enforces its own rules, and misbehaves on schedule.

    POST   /v1/users/batch  {"users": [{"id", "attributes"}]}  merges; one result per row, 207 if one is bad
    PUT    /v1/users/{id}   attributes                         merges; 422 for a bad row
    PATCH  /v1/users/{id}   attributes                         merges; 404 where there is none
    DELETE /v1/users/{id}                                      204, or 404 where there is none
    POST   /v1/strict       as batch, all or nothing           422 for the whole batch, naming no row
    POST   /v1/events       {"events": [row]}                  adds; known again by Idempotency-Key
    GET    /v1/me                                              who am I

A row is bad if its `visits` is below zero; the answer repeats its `name`, as careless vendors do.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

TOKEN = "token-of-the-tests"

Fault = Callable[["_Exchange"], bool]  # True = the request is done with, it is not to be served


class Api:
    """Listens on 127.0.0.1:`port` while the `with` block lasts. `faults` are used up, one per request;
    `seen` are the requests that came in whole, as (method, path, headers, body)."""

    def __init__(self) -> None:
        self.users: dict[str, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self.answers: dict[str, tuple[int, Any]] = {}
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.faults: deque[Fault] = deque()
        self.forbidden = False
        self.lock = threading.Lock()

    def __enter__(self) -> Api:
        self._server = _Server(("127.0.0.1", 0), _Exchange)
        self._server.api = self
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.02], daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("authorization") != f"Bearer {TOKEN}":
            return 401, {"error": {"code": "bad_token", "message": f"who is {headers.get('authorization')}?"}}
        if self.forbidden:
            return 403, {"error": {"code": "forbidden", "message": "not with this scope"}}
        content: Any = json.loads(body, parse_float=Decimal) if body else None
        match (method, path.split("/")[2:]):
            case ("GET", ["me"]):
                return 200, {"id": "me"}
            case ("POST", ["users", "batch"]):
                results = [self.merge(row["id"], row["attributes"]) for row in content["users"]]
                return (207 if any("error" in one for one in results) else 200), {"results": results}
            case ("POST", ["strict"]):
                if any(_bad(row["attributes"]) for row in content["users"]):
                    return 422, {"error": {"code": "invalid", "message": "visits must not be below zero"}}
                return 200, [self.merge(row["id"], row["attributes"]) for row in content["users"]]
            case ("PUT", ["users", name]):
                result = self.merge(unquote(name), content)
                return (422 if "error" in result else 200), result
            case ("PATCH", ["users", name]):
                if unquote(name) not in self.users:
                    return 404, {"error": {"code": "absent"}}
                return 200, self.merge(unquote(name), content)
            case ("DELETE", ["users", name]):
                return (204, None) if self.users.pop(unquote(name), None) is not None else (404, {})
            case ("POST", ["events"]):
                return self.add(content["events"], headers.get("idempotency-key"))
        return 404, {"error": {"code": "no_route"}}

    def merge(self, key: str, attributes: dict[str, Any]) -> dict[str, Any]:
        if (bad := _bad(attributes)) is not None:
            return bad
        self.users.setdefault(key, {}).update(attributes)
        return {"status": "updated", "id": f"u-{key}"}

    def add(self, events: list[dict[str, Any]], key: str | None) -> tuple[int, Any]:
        if key is not None and key in self.answers:
            return self.answers[key]
        bad = next((found for event in events if (found := _bad(event)) is not None), None)
        if bad is None:
            self.events.extend(events)
        answer = (200, {"taken": len(events)}) if bad is None else (422, bad)
        if key is not None:
            self.answers[key] = answer
        return answer


def _bad(attributes: dict[str, Any]) -> dict[str, Any] | None:
    if (attributes.get("visits") or 0) >= 0:
        return None
    message = f"user {attributes['name']} has visits below zero"
    return {"status": "error", "error": {"code": "invalid", "message": message}}


# faults


def answer(status: int, body: bytes | str = b"", **headers: str) -> Fault:
    """Answer so, and do nothing."""

    def fault(exchange: _Exchange) -> bool:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        exchange.reply(status, body.encode() if isinstance(body, str) else body, given)
        return True

    return fault


def instead(status: int, body: bytes | str, **headers: str) -> Fault:
    """Do what was asked, and answer so."""

    def fault(exchange: _Exchange) -> bool:
        exchange.perform()
        return answer(status, body, **headers)(exchange)

    return fault


def changed(change: Callable[[Any], Any]) -> Fault:
    """Do what was asked, and change the content of the answer."""

    def fault(exchange: _Exchange) -> bool:
        status, content = exchange.perform()
        exchange.reply(status, *written(change(content)))
        return True

    return fault


def reset(*, applied: bool) -> Fault:
    """Break the connection before or after doing what was asked."""

    def fault(exchange: _Exchange) -> bool:
        if applied:
            exchange.perform()
        exchange.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        exchange.connection.close()
        exchange.close_connection = True
        return True

    return fault


def cut() -> Fault:
    """Do what was asked, and break off in the middle of the answer."""

    def fault(exchange: _Exchange) -> bool:
        status, content = exchange.perform()
        body, _ = written(content)
        head = f"HTTP/1.1 {status} Told\r\nContent-Length: {len(body) + 10}\r\n\r\n"
        exchange.wfile.write(head.encode() + body[: len(body) // 2])
        exchange.close_connection = True
        return True

    return fault


def dripping(head: bytes, seconds: float) -> Fault:
    """Do what was asked, send `head`, then a byte every 50 ms for so long."""

    def fault(exchange: _Exchange) -> bool:
        exchange.perform()
        exchange.close_connection = True
        end = time.monotonic() + seconds
        try:
            exchange.wfile.write(head)
            while time.monotonic() < end:
                exchange.wfile.write(b"x")
                time.sleep(0.05)
        except OSError:
            pass  # the client has had enough
        return True

    return fault


def written(content: Any) -> tuple[bytes, dict[str, str]]:
    """A content as body and headers: bytes are text, with their type a pair, everything else is JSON."""
    if isinstance(content, tuple):
        return content[0], {"Content-Type": content[1]}
    if isinstance(content, bytes):
        return content, {"Content-Type": "text/plain"}
    return b"" if content is None else json.dumps(content).encode(), {"Content-Type": "application/json"}


class _Server(ThreadingHTTPServer):
    api: Api
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that tests break are no news."""


class _Exchange(BaseHTTPRequestHandler):
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
            api.seen.append((self.command, self.path, self.named(), self.content))
            fault = api.faults.popleft() if api.faults else None
        if fault is None or not fault(self):
            status, content = self.perform()
            self.reply(status, *written(content))

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_request

    def named(self) -> dict[str, str]:
        return {name.lower(): value for name, value in self.headers.items()}

    def perform(self) -> tuple[int, Any]:
        api = self.server.api
        with api.lock:
            return api.serve(self.command, self.path, self.named(), self.content)

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        given = {**headers, "Content-Length": str(len(body))}
        head = [f"HTTP/1.1 {status} Told", *(f"{name}: {value}" for name, value in given.items())]
        self.close_connection = self.close_connection or headers.get("Connection") == "close"
        self.wfile.write("\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""
