"""The HTTP side of a watch: POST /sync/NAME asks for a run, /healthz and /metrics tell how it goes.

It takes a token for POST and uses nothing of a request's body.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from retl.app.server import Answer, Request, document, refusal
from retl.errors import RetlError

DEFAULT = "127.0.0.1:8080"


class Asked(Protocol):
    """What a request asks of a watch."""

    def event(self, name: str) -> str | None:
        """Ask for a run; its id, or None if the sync takes no events."""
        ...

    def health(self) -> dict[str, Any]: ...

    def metrics(self) -> str:
        """RetlError if the ledger cannot be read."""
        ...


def answer(request: Request, asked: Asked, token: Callable[[], str | None]) -> Answer:
    """`token` is asked for at each POST."""
    if request.method == "POST":
        return _post(request, asked, token() or "")
    if request.target == "/healthz":
        health = asked.health()
        return document(200 if health["status"] == "ok" else 503, health)
    if request.target == "/metrics":
        try:
            return Answer(200, "text/plain; version=0.0.4; charset=utf-8", asked.metrics())
        except RetlError as problem:
            return refusal(503, problem.code, "the ledger cannot be read")
    if request.target.startswith("/sync/"):
        return refusal(405, "METHOD", "use POST", Allow="POST")
    return refusal(404, "PATH_UNKNOWN", "there are /healthz, /metrics and POST /sync/NAME")


def _post(request: Request, asked: Asked, token: str) -> Answer:
    if not request.has_bearer(token):
        hint = "send the header Authorization: Bearer TOKEN"
        return refusal(401, "TOKEN", hint, WWW_Authenticate="Bearer")
    request.body()
    path = request.target
    name = path.removeprefix("/sync/") if path.startswith("/sync/") else ""
    if asked.health()["status"] != "ok":
        return refusal(503, "STOPPING", "the watch is about to end", Retry_After="5")
    if (run_id := asked.event(name) if name else None) is None:
        return refusal(404, "SYNC_UNKNOWN", "no sync of this name has `when: event`")
    return document(202, {"sync": name, "run_id": run_id})
