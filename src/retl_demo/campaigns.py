"""A small campaign tool on a real socket: what the sample sync `churn_campaign` talks to.

It upserts recipients by id, at most 100 per request, behind a bearer token, and honours idempotency
keys: the same key gets the same stored answer and nothing is applied twice. It serves only the loopback
interface and keeps its data in memory. It does not imitate a real vendor.

::

    POST /v1/recipients/batch   {"recipients": [{"id": …, "attributes": {…}}, …]}
    200 or 207                  {"results": [{"id": …, "status": "created" | "updated"} |
                                             {"id": …, "status": "rejected", "error": {"code", "message"}}]}
    GET  /v1/recipients         {"recipients": [{"id": …, "attributes": {…}, "applied": 1}, …]}
    otherwise                   {"error": {"code", "message"}}
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any, Self

MAX_ROWS = 100
MAX_BYTES = 1_000_000
_Reply = tuple[HTTPStatus, dict[str, Any]]


@dataclass
class Recipient:
    """One object of the tool, and how often a request was applied to it."""

    id: str | int
    attributes: dict[str, Any]
    applied: int


class Campaigns:
    """A running campaign tool; a context manager that stops it.

    `refuse` are ids that it answers with SUPPRESSED, like a real tool after an unsubscribe.
    """

    def __init__(self, token: str, refuse: Iterable[str | int] = ()) -> None:
        self.token = token
        self.refuse = frozenset(refuse)
        self.requests = 0  # batches received, also those answered from memory or refused
        self.replayed = 0  # of these, answered from memory
        self._recipients: dict[str | int, Recipient] = {}
        self._answers: dict[str, tuple[bytes, _Reply]] = {}
        self._lock = Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Exchange", (_Exchange,), {"tool": self}))
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def recipients(self) -> dict[str | int, Recipient]:
        """A copy of all recipients, by id."""
        with self._lock:
            return {key: Recipient(**asdict(held)) for key, held in self._recipients.items()}

    def stop(self) -> None:
        """Accept no more requests. Its recipients can still be read from this object."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def receive(self, body: bytes, key: str | None) -> _Reply:
        """Apply a batch once; for a known key repeat the stored answer."""
        with self._lock:
            self.requests += 1
            if key in self._answers:
                known, reply = self._answers[key]
                if known != body:
                    return _refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "KEY_REUSED", "same key, another body")
                self.replayed += 1
                return reply
            reply = self._apply(body)
            if key and reply[0] < HTTPStatus.BAD_REQUEST:
                self._answers[key] = body, reply
            return reply

    def _apply(self, body: bytes) -> _Reply:
        try:
            rows = json.loads(body)["recipients"]
        except (ValueError, TypeError, KeyError):
            rows = None
        if not isinstance(rows, list):
            return _refusal(HTTPStatus.BAD_REQUEST, "MALFORMED", "a JSON object with a list `recipients`")
        if len(rows) > MAX_ROWS:
            return _refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "TOO_MANY", f"at most {MAX_ROWS} recipients")
        results = [self._upsert(row) for row in rows]
        refused = any(result["status"] == "rejected" for result in results)
        return HTTPStatus.MULTI_STATUS if refused else HTTPStatus.OK, {"results": results}

    def _upsert(self, row: Any) -> dict[str, Any]:
        key = row.get("id") if isinstance(row, dict) else None
        attributes = row.get("attributes") if isinstance(row, dict) else None
        if not isinstance(key, str | int) or key == "" or not isinstance(attributes, dict):
            return {
                "id": None,
                "status": "rejected",
                **_error("INVALID", "an id and attributes are required"),
            }
        if key in self.refuse:
            return {"id": key, "status": "rejected", **_error("SUPPRESSED", "the recipient unsubscribed")}
        held = self._recipients.setdefault(key, Recipient(key, {}, 0))
        held.attributes |= attributes
        held.applied += 1
        return {"id": key, "status": "created" if held.applied == 1 else "updated"}


class _Exchange(BaseHTTPRequestHandler):
    """One kept-alive connection."""

    tool: Campaigns
    protocol_version = "HTTP/1.1"
    timeout = 60
    wbufsize = -1  # send head and body in one packet, without waiting for an acknowledgement in between
    disable_nagle_algorithm = True

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client may die
            super().handle()

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if length > MAX_BYTES:
            self.close_connection = True  # the body is not read, so the rest of the stream is unusable
            self._reply(
                _refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "TOO_LARGE", f"at most {MAX_BYTES} bytes")
            )
            return
        body = self.rfile.read(length)
        if len(body) < length:
            self.close_connection = True  # the sender is gone: ignore half a request
        elif self._allowed("/v1/recipients/batch"):
            self._reply(self.tool.receive(body, self.headers.get("Idempotency-Key")))

    def do_GET(self) -> None:
        if self._allowed("/v1/recipients"):
            held = [asdict(recipient) for recipient in self.tool.recipients().values()]
            self._reply((HTTPStatus.OK, {"recipients": held}))

    def _allowed(self, path: str) -> bool:
        """True if token and path are right; otherwise it has sent the error."""
        given = self.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {self.tool.token}".encode()):
            self._reply(_refusal(HTTPStatus.UNAUTHORIZED, "UNAUTHORIZED", "a valid bearer token is required"))
        elif self.path != path:
            self._reply(_refusal(HTTPStatus.NOT_FOUND, "NOT_FOUND", "no such resource"))
        else:
            return True
        return False

    def _reply(self, reply: _Reply) -> None:
        status, document = reply
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: the demo uses stderr."""


def _error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


def _refusal(status: HTTPStatus, code: str, message: str) -> _Reply:
    return status, _error(code, message)
