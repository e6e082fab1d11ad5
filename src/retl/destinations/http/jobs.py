"""Asynchronous jobs of a target: submit a batch, poll the job, fetch its errors.

The job's id is the handle that delivery stores, so after a crash the job is polled and not submitted
again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from retl.destinations.batch import UNKNOWN, Answer, Outcome, Pending
from retl.destinations.http.outcome import Sent, interpret
from retl.destinations.http.rules import Rules
from retl.errors import Ambiguous
from retl.model import Definition, Duration
from retl.net.lookup import Match, look, text
from retl.net.messages import Reply, Request

_READ = Rules(ok=(200,))
_PAGES = 1000


class Job(Definition):
    """`id` is the path of the job's id in the answer to the submission. The job is polled at `path` (with
    `$job`) until the answer matches `done` or `failed`. The errors of a finished job are the lists at
    `errors_at` in `errors_path` and in the following pages, linked by `next`. `outcome` reads
    {"job": the last answer, "errors": all of them}; the result of a failed job is unknown."""

    id: str
    path: str
    every: Duration = 5.0
    done: Match
    failed: Match
    errors_path: str | None = None
    errors_at: str = ""
    next: str | None = None
    outcome: Rules

    def submitted(self, reply: Reply) -> Pending:
        """Ambiguous if the answer names no job: the batch may have been accepted anyway."""
        name = look(reply.content, self.id)
        if type(name) not in (str, int) or not text(name):
            raise Ambiguous("HTTP_NO_JOB", "the target accepted the batch and did not name the job")
        return Pending(text(name), self.every)

    def ask(self, handle: str, sent: Sent, send: Callable[[Request], Reply], prefix: str) -> Answer:
        """The state or result of the job, by requests that change nothing. UNKNOWN if the target no longer
        knows the job. Errors of these requests are raised as usual."""
        job = quote(handle, safe="")
        reply = send(Request("GET", prefix + self.path.replace("$job", job), (), b""))
        if reply.status in (404, 410):
            return Outcome(UNKNOWN)
        interpret(reply, _READ, sent)
        if self.failed.fits(reply.content):
            return Outcome(UNKNOWN)
        if not self.done.fits(reply.content):
            return Pending(handle, self.every)
        errors: list[Any] = []
        target = self.errors_path and prefix + self.errors_path.replace("$job", job)
        for _ in range(_PAGES):
            if not target:
                break
            page = send(Request("GET", target, (), b""))
            interpret(page, _READ, sent)
            found = look(page.content, self.errors_at)
            errors += found if isinstance(found, list) else []
            target = _local(look(page.content, self.next)) if self.next else None
        whole = msgspec.json.encode({"job": reply.content, "errors": errors})
        return interpret(Reply(200, reply.headers, whole), self.outcome, sent)


def _local(url: Any) -> str | None:
    """Path and query of a link. Its host is ignored: only the connection's own server is asked."""
    if not isinstance(url, str) or not url:
        return None
    parts = urlsplit(url)
    return quote(parts.path, safe="/%:@") + (f"?{quote(parts.query, safe='=&%[]:,')}" if parts.query else "")
