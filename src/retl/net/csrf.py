"""A token against forged requests, as SAP's gateways ask for one: fetched with a GET, sent with each write.

The token belongs to the session in the cookies of its answer, which go along with it and are used for nothing
else. It is kept for the life of a client and fetched again when the server says so. It sends nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from retl.errors import Ambiguous, Systemic, Unavailable
from retl.model import Definition
from retl.net.auth import HeaderName
from retl.net.messages import Reply, Request

Ask = Callable[[Request], Reply]


class Csrf(Definition):
    """`path` is where the token is asked for, below base_url; `header` its name in the question, the answer
    and the writes."""

    path: Annotated[str, Field(pattern=r"^/[!-~]*$")] = "/"
    header: HeaderName = "X-CSRF-Token"


class Session:
    """The token of one client."""

    def __init__(self, csrf: Csrf, prefix: str) -> None:
        self._csrf, self._prefix = csrf, prefix
        self._headers: dict[str, str] = {}

    def headers(self, ask: Ask) -> dict[str, str]:
        """The headers for a write. Nothing was written if there is no token: Unavailable, or Systemic."""
        return self._headers or self._fetched(ask)

    def is_over(self, reply: Reply) -> bool:
        """Whether the server refused a write for want of a token that is valid."""
        over = reply.status == 403 and reply.headers.get(self._csrf.header.lower(), "").lower() == "required"
        if over:
            self._headers = {}
        return over

    def _fetched(self, ask: Ask) -> dict[str, str]:
        question = Request("GET", self._prefix + self._csrf.path, ((self._csrf.header, "Fetch"),), b"")
        try:
            reply = ask(question)
        except Ambiguous as error:
            raise Unavailable(error.code, error.message) from error
        token = reply.headers.get(self._csrf.header.lower())
        if reply.status >= 400 or not token or token.lower() == "required":
            later = reply.status == 429 or reply.status >= 500 or not reply.whole
            kind = Unavailable if later else Systemic
            raise kind(
                "HTTP_CSRF",
                f"no {self._csrf.header} came back: the target answered {reply.status}",
                hint="check the credential, and `path` of `csrf`",
            )
        cookies = [one.partition(";")[0] for one in reply.headers.get("set-cookie", "").split("\n") if one]
        self._headers = {self._csrf.header: token, **({"Cookie": "; ".join(cookies)} if cookies else {})}
        return self._headers
