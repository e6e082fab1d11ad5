"""The HTTP server of `retl watch` and `retl serve`: it asks a function for the answer to each request.

Requests are bounded in size, time and number. It has no TLS: outside this machine a proxy must have it. It
never repeats a part of a request in an answer or in the log, and knows no path and no token.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from email.message import Message
from hashlib import sha256
from hmac import compare_digest
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6, SO_REUSEADDR, SOL_SOCKET
from typing import Any

from msgspec import Struct, field

from retl.errors import DefinitionError
from retl.model import is_loopback
from retl.net.deadline import hang_up_after
from retl.observe import log

LONGEST_BODY = 64 * 1024
DEADLINE, IDLE = 10.0, 5.0  # seconds for one request, and for each wait within it
AT_ONCE = 32  # requests
SHORTEST_TOKEN = 16

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Connection": "close",
}


class Answer(Struct, frozen=True):
    """`headers` replace those that every answer has."""

    status: int
    kind: str
    text: str
    headers: Mapping[str, str] = field(default_factory=dict)


class Request(Struct, frozen=True):
    """`target` is the path with its query, as it was sent. `body` reads the body, or raises Refused."""

    method: str
    target: str
    headers: Message
    body: Callable[[], bytes]

    def has_bearer(self, token: str) -> bool:
        """Whether the Authorization header has the token."""
        kind, _, given = (self.headers.get("Authorization") or "").partition(" ")
        return is_same(given.strip(), token) and kind.lower() == "bearer"


class Refused(Exception):
    """Ends a request with this answer."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer


def document(status: int, content: Mapping[str, Any], **headers: str) -> Answer:
    """An answer in JSON; `_` in a header's name stands for `-`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, "application/json", json.dumps(content) + "\n", named)


def refusal(status: int, code: str, message: str, **headers: str) -> Answer:
    return document(status, {"error": {"code": code, "message": message}}, **headers)


def is_same(given: str, token: str) -> bool:
    """Whether a token was given and is the right one; compared in constant time."""
    return compare_digest(_digest(given), _digest(token)) and bool(token)


def _digest(text: str) -> bytes:
    return sha256(text.encode("utf-8", "surrogatepass")).digest()


class Server:
    """Serves from threads of its own until it is closed."""

    def __init__(
        self, address: str, answer: Callable[[Request], Answer], *, deadline: float = DEADLINE
    ) -> None:
        """`answer` is called in many threads, at most `deadline` seconds each: later its answer is lost.
        DefinitionError LISTEN if the address cannot be had."""
        self.answer, self.deadline = answer, deadline
        host, port = parse(address)
        try:
            self._server = _Bounded(host, port, self)
        except OSError as problem:
            raise DefinitionError(
                "LISTEN", f"cannot listen on {address}: {problem.strerror}", hint="choose another --listen"
            ) from None
        bound, self.port = self._server.server_address[:2]
        level: log.Level = "info" if is_loopback(host) else "warning"
        log.event("listening", level=level, host=str(bound), port=self.port, tls=False)
        thread = threading.Thread(target=self._server.serve_forever, name="retl-http", daemon=True)
        thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def parse(address: str) -> tuple[str, int]:
    """`127.0.0.1:8080` or `[::1]:8080` → host and port. DefinitionError LISTEN."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise DefinitionError("LISTEN", f"--listen takes HOST:PORT, not {address!r}", hint="127.0.0.1:8080")
    return host, int(port)


class _Bounded(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int, server: Server) -> None:
        self.address_family = AF_INET6 if ":" in host else AF_INET
        self.owner = server
        self._room = threading.BoundedSemaphore(AT_ONCE)
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # Not HTTPServer's: it looks the host's name up, which may take seconds.
        self.socket.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            with hang_up_after(self.owner.deadline, request.fileno()):
                super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is the client's affair."""


class _Handler(BaseHTTPRequestHandler):
    """One request, and the end of its connection."""

    timeout = IDLE
    server: _Bounded

    def do_GET(self) -> None:
        try:
            self._send(self.server.owner.answer(Request(self.command, self.path, self.headers, self._body)))
        except Refused as refused:
            self._send(refused.answer)

    do_HEAD = do_POST = do_GET

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdigit()):
            raise Refused(refusal(411, "BODY_LENGTH", "a body needs a Content-Length"))
        if len(length) > 9 or int(length) > LONGEST_BODY:
            raise Refused(refusal(413, "BODY_LONG", f"a body may have {LONGEST_BODY} bytes"))
        return self.rfile.read(int(length))

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """For requests that the library refuses: its own answer would repeat parts of them."""
        self._send(refusal(int(code), "REQUEST", HTTPStatus(code).phrase))

    def _send(self, answer: Answer) -> None:
        body = answer.text.encode(errors="replace")
        self.close_connection = True
        self.send_response(answer.status)
        told = {"Content-Type": answer.kind, "Content-Length": str(len(body))}
        for name, value in {**_HEADERS, **answer.headers, **told}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        return "retl"

    def log_message(self, *_: Any) -> None:
        """A request's line may contain anything."""
