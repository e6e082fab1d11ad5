"""OAuth 2 without a person: gets a bearer token by client credentials, refresh token or signed claim, and
keeps it until it expires. `Auth` is the union of all forms of `auth`.

All lanes of a connection share one object, so they share one token and renew it once. A token is kept only in
memory.
"""

from __future__ import annotations

import re
from threading import Lock
from time import monotonic, time
from typing import Annotated, Literal
from urllib.parse import urlencode, urlsplit

from pydantic import Field, PrivateAttr, SecretStr, field_validator, model_validator

from retl.errors import Ambiguous, Systemic, Unavailable
from retl.model import needs_tls
from retl.net.auth import Anonymous, Basic, Bearer, InBody, InHeader, InQuery, Permit, WholeUrl, free
from retl.net.client import Address, Client, Timeouts
from retl.net.lookup import Match, look
from retl.net.messages import Reply, Request
from retl.net.rs256 import Key
from retl.net.waits import wait_asked
from retl.observe.redact import register

_EARLY = 60.0  # seconds before its end from which a token is not used
_LIFE = 3600.0  # seconds, if the server does not say
_CLAIM = 180  # seconds that a signed claim is valid
_JWT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_NEEDED = {
    "client_credentials": "client_secret",
    "refresh_token": "refresh_token",
    "jwt_bearer": "private_key",
}


class OAuth2(Anonymous):
    """`expired` matches the body of a 200 that means an expired token; a 401 always means that. With
    `method: GET` the parameters are in the query, which some servers require."""

    type: Literal["oauth2"]  # type: ignore[assignment]
    token_url: str
    grant: Literal["client_credentials", "refresh_token", "jwt_bearer"] = "client_credentials"
    client_id: str
    client_secret: SecretStr | None = None
    refresh_token: SecretStr | None = None
    private_key: SecretStr | None = None  # RSA, PEM
    subject: str | None = None  # the claim's subject, if it is not the client
    audience: str | None = None  # default: token_url
    scope: str | None = None
    method: Literal["POST", "GET"] = "POST"
    expired: Match | None = None
    _lock: Lock = PrivateAttr(default_factory=Lock)
    _token: str | None = PrivateAttr(default=None)
    _ends: float = PrivateAttr(default=0.0)
    _key: Key | None = PrivateAttr(default=None)

    @field_validator("token_url")
    @classmethod
    def _safe(cls, url: str) -> str:
        address = Address.parse(url)
        if address.scheme != "https" and needs_tls(address.host):
            raise ValueError("token_url must be https")
        return url

    @model_validator(mode="after")
    def _fits(self) -> OAuth2:
        name = _NEEDED[self.grant]
        if getattr(self, name) is None:
            raise ValueError(f"`grant: {self.grant}` needs `{name}`")
        if self.private_key is not None:
            self._key = Key.parse(self.private_key.get_secret_value())
        return self

    def headers(self) -> dict[str, str]:
        return self.credential(free)

    def credential(self, permit: Permit, proxy: SecretStr | None = None) -> dict[str, str]:
        """The header with the token, which is requested if needed. Unavailable if the token server cannot
        be reached, Systemic if it refuses."""
        with self._lock:
            if self._token is None or monotonic() >= self._ends:
                self._renew(permit, proxy)
            return {"Authorization": f"Bearer {self._token}"}

    def renewed(
        self, reply: Reply, sent: dict[str, str], permit: Permit = free, proxy: SecretStr | None = None
    ) -> bool:
        in_body = self.expired is not None and reply.status == 200 and self.expired.fits(reply.json_or_text)
        if reply.status != 401 and not in_body:
            return False
        with self._lock:
            if sent["Authorization"] == f"Bearer {self._token}":  # else another lane has renewed it
                self._renew(permit, proxy)
        return True

    def secrets(self) -> list[str]:
        given = [
            one.get_secret_value() for one in (self.client_secret, self.refresh_token) if one is not None
        ]
        return [*given, *([self._token] if self._token else [])]

    def _form(self) -> dict[str, str | None]:
        if self._key is not None and self.grant == "jwt_bearer":
            claims = {"iss": self.client_id, "sub": self.subject or self.client_id, "scope": self.scope}
            claims |= {"aud": self.audience or self.token_url}
            now = int(time())
            given = {name: value for name, value in claims.items() if value}
            return {
                "grant_type": _JWT,
                "assertion": self._key.token({**given, "iat": now, "exp": now + _CLAIM}),
            }
        secret, refresh = self.client_secret, self.refresh_token
        return {
            "grant_type": self.grant,
            "client_id": self.client_id,
            "client_secret": secret.get_secret_value() if secret else None,
            "refresh_token": refresh.get_secret_value() if refresh else None,
            "scope": self.scope,
        }

    def _renew(self, permit: Permit, proxy: SecretStr | None) -> None:
        self._token = None
        address = Address.parse(self.token_url)
        text = urlencode({name: value for name, value in self._form().items() if value})
        path = urlsplit(self.token_url).path
        content = (("Content-Type", "application/x-www-form-urlencoded"),)
        request = Request("POST", path, content, text.encode())
        if self.method == "GET":
            request = Request("GET", f"{path}?{text}", (), b"")
        client = Client(address, Anonymous(), {}, Timeouts(), lambda size: permit(None), proxy=proxy)
        try:
            reply = client.send(request)
        except Ambiguous as error:  # nothing of any row was sent
            raise Unavailable("OAUTH_NO_ANSWER", error.message) from None
        finally:
            client.close()
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
        register(token)
        seconds = float(life) if type(life) in (int, float) else _LIFE
        self._token, self._ends = token, monotonic() + max(seconds - _EARLY, seconds / 2)


Auth = Annotated[
    Anonymous | Bearer | Basic | InHeader | InQuery | InBody | WholeUrl | OAuth2, Field(discriminator="type")
]
