"""A bearer token that is requested, kept until it expires, and renewed once if the target refuses it.

All lanes of a connection share one object, so they share one token and renew it once. A token is kept only in
memory. How a token is requested is decided by the subclasses.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from threading import Lock
from time import monotonic
from typing import Annotated, Any, Literal
from urllib.parse import urlencode, urlsplit

from pydantic import AfterValidator, PrivateAttr, SecretStr

from retl.errors import Ambiguous, Systemic, Unavailable
from retl.model import needs_tls
from retl.net.auth import Anonymous, Permit, free
from retl.net.client import Address, Client, Timeouts
from retl.net.lookup import Match, look
from retl.net.messages import Reply, Request
from retl.net.waits import wait_asked
from retl.observe.redact import register_brief

_EARLY = 60.0  # seconds before its end from which a token is not used
_LIFE = 3600.0  # seconds, if the server does not say


def safe(url: str) -> str:
    """ValueError if a token would be sent over http."""
    address = Address.parse(url)
    if address.scheme != "https" and needs_tls(address.host):
        raise ValueError("token_url must be https")
    return url


TokenUrl = Annotated[str, AfterValidator(safe)]


class Token(Anonymous):
    """`expired` matches the body of a 200 that means an expired token; a 401 always means that."""

    expired: Match | None = None
    _lock: Lock = PrivateAttr(default_factory=Lock)
    _token: str | None = PrivateAttr(default=None)
    _ends: float = PrivateAttr(default=0.0)

    @property
    def word(self) -> str:
        """The word before the token in its header."""
        return "Bearer"

    @property
    def verb(self) -> Literal["POST", "GET"]:
        return "POST"

    @property
    @abstractmethod
    def endpoint(self) -> str:
        """The address that gives tokens."""

    @abstractmethod
    def form(self) -> dict[str, str | None]:
        """The parameters of a request for a token; those without a value are not sent."""

    def login(self) -> Anonymous:
        """The credential of a request for a token, besides its parameters."""
        return Anonymous()

    def taken(self, content: Any) -> None:
        """Called with each answer that has a token, before the token is used."""

    def other(self) -> bool:
        """Whether, after a refusal, another process has left a better credential to ask with."""
        return False

    def headers(self) -> dict[str, str]:
        return self.credential(free)

    def credential(self, permit: Permit, proxy: SecretStr | None = None) -> dict[str, str]:
        """The header with the token, which is requested if needed. Unavailable if the token server cannot
        be reached, Systemic if it refuses."""
        with self._lock:
            if self._token is None or monotonic() >= self._ends:
                self._renew(permit, proxy)
            return {"Authorization": f"{self.word} {self._token}"}

    def renewed(
        self, reply: Reply, sent: dict[str, str], permit: Permit = free, proxy: SecretStr | None = None
    ) -> bool:
        in_body = self.expired is not None and reply.status == 200 and self.expired.fits(reply.json_or_text)
        if reply.status != 401 and not in_body:
            return False
        with self._lock:
            if sent["Authorization"] == f"{self.word} {self._token}":  # else another lane has renewed it
                self._renew(permit, proxy)
        return True

    def secrets(self) -> list[str]:
        plain = [value.get_secret_value() for _, value in self if isinstance(value, SecretStr)]
        return [*plain, *([self._token] if self._token else [])]

    def _renew(self, permit: Permit, proxy: SecretStr | None) -> None:
        self._token = None
        address, reply = Address.parse(self.endpoint), self._asked(permit, proxy)
        if reply.status in (400, 401) and self.other():
            reply = self._asked(permit, proxy)
        token, life = look(reply.content, "access_token"), look(reply.content, "expires_in")
        if reply.status == 429 or reply.status >= 500 or not reply.whole:
            raise Unavailable(
                "OAUTH_UNAVAILABLE",
                f"{address} answered {reply.status} to a token request",
                retry_after=wait_asked(reply.headers),
            )
        if reply.status not in (200, 201) or not isinstance(token, str) or not re.fullmatch(r"[!-~]+", token):
            error_code = look(reply.content, "error")
            is_code = isinstance(error_code, str) and re.fullmatch(r"[a-z_]{1,40}", error_code)
            code = f": {error_code}" if is_code else ""
            raise Systemic(
                "OAUTH_REFUSED",
                f"{address} gave no token, it answered {reply.status}{code}",
                hint="check client_id and its secret, refresh token or key, and token_url",
            )
        self.taken(reply.content)
        register_brief(token)
        seconds = float(life) if type(life) in (int, float) else _LIFE
        self._token, self._ends = token, monotonic() + max(seconds - _EARLY, seconds / 2)

    def _asked(self, permit: Permit, proxy: SecretStr | None) -> Reply:
        """The answer to a request for a token."""
        address, path = Address.parse(self.endpoint), urlsplit(self.endpoint).path
        text = urlencode({name: value for name, value in self.form().items() if value})
        content = (("Content-Type", "application/x-www-form-urlencoded"),)
        request = Request("POST", path, content, text.encode())
        if self.verb == "GET":
            request = Request("GET", f"{path}?{text}", (), b"")
        client = Client(address, self.login(), {}, Timeouts(), lambda size: permit(None), proxy=proxy)
        try:
            return client.send(request)
        except Ambiguous as error:  # nothing of any row was sent
            raise Unavailable("OAUTH_NO_ANSWER", error.message) from None
        finally:
            client.close()
