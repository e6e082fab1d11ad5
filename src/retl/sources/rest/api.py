"""The server of an API: sends one GET after the other, at the pace of the source, and tries again what failed
for the moment. It reads status and size of an answer, not its content.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from types import TracebackType
from typing import Literal, Self

from pydantic import Field, model_validator

from retl.errors import Ambiguous, SourceError, Systemic, Unavailable
from retl.model import Limits, Retry
from retl.net.auth import InBody, InQuery, Secret, WholeUrl
from retl.net.client import Address, Client
from retl.net.connection import HttpConnection
from retl.net.deadline import Deadline
from retl.net.messages import Reply, Request
from retl.net.signing import FormDigest
from retl.net.waits import wait_asked
from retl.observe.signals import Stop
from retl.pace.limiter import Pace
from retl.sources.rest.pages import Answer

_AGAIN = (408, 425, 429, 500, 502, 503, 504)  # reading twice does no harm
_HINTS = {
    401: "check `auth` of the source",
    403: "check what the account of `auth` may read",
    404: "check `base_url` and `path`",
}


class RestConnection(HttpConnection):
    """An API and our credential for it. `headers` count as secrets: they are sent and never shown."""

    type: Literal["rest"] = "rest"
    limits: Limits = Limits()
    retry: Retry = Retry()
    tls_ca_file: str | None = Field(None, description="The authorities of the server, if not the system's.")
    timezone: str = Field("UTC", description="The time zone of timestamps without one.")

    @model_validator(mode="after")
    def _reads(self) -> RestConnection:
        if isinstance(self.auth, InBody | FormDigest | WholeUrl):
            raise ValueError(f"`auth` of type {self.auth.type} is only for sending")
        if self.csrf is not None:
            raise ValueError("`csrf` is only for sending")
        return self


class Api:
    """One path of a server, for one thread; a context manager that closes the connection."""

    def __init__(
        self,
        connection: RestConnection,
        path: str,
        headers: Mapping[str, Secret],
        longest: int,
        timeout: float,
        pace: Pace,
        stop: Stop,
    ) -> None:
        self.address = Address.parse(connection.base_url)
        self.path = self.address.prefix + path
        self.where = f"GET {self.address}{self.path}"
        self.hidden = connection.auth.name if isinstance(connection.auth, InQuery) else None
        self._headers = tuple((name, value.get_secret_value()) for name, value in headers.items())
        self._deadline, self._stop, self._longest, self._timeout = Deadline(timeout), stop, longest, timeout
        self._retrying = pace.retrying(connection.retry, stop.event)
        self._client = Client(
            self.address,
            connection.auth,
            {name: value.get_secret_value() for name, value in connection.headers.items()},
            connection.timeouts,
            pace.permits(stop),
            longest,
            proxy=connection.proxy,
            ca_file=connection.tls_ca_file,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._client.close()

    def ask(self, target: str) -> Answer:
        """The answer to a GET. SourceError if there is none, Later if the server wants a long pause."""
        self._stop.check()
        request = Request("GET", target, self._headers, b"")
        try:
            with self._stop.interrupting(self._client.interrupt):
                return Answer(self._retrying(self._once, request), self.where)
        except (Unavailable, Systemic) as problem:
            self._stop.check()
            raise SourceError(problem.code, problem.message, hint=problem.hint) from None

    def _once(self, request: Request) -> Reply:
        """One request. Unavailable if it may succeed later."""
        if self._deadline.over:
            raise SourceError(
                "HTTP_NO_ANSWER",
                f"{self.where} was not read to its end within {self._timeout:g} s",
                hint="raise `timeout` of the source, or read less at once with `params`",
            )
        try:
            reply = self._client.send(request)
        except Ambiguous as problem:
            raise Unavailable(problem.code, problem.message) from None
        code = f"HTTP_{reply.status}"
        if reply.status in _AGAIN:
            raise Unavailable(code, self._said(reply), retry_after=wait_asked(reply.headers))
        if reply.status != HTTPStatus.OK:
            raise SourceError(code, self._said(reply), hint=_HINTS.get(reply.status))
        if not reply.whole:
            raise Unavailable(
                "HTTP_CUT_OFF",
                f"the answer of {self.where} was cut off, or has more than {self._longest} bytes",
                hint="ask for smaller pages, or raise `max_bytes`",
            )
        return reply

    def _said(self, reply: Reply) -> str:
        known = reply.status in set(HTTPStatus)
        return f"{self.where} answered {reply.status}" + (
            f" {HTTPStatus(reply.status).phrase}" if known else ""
        )
