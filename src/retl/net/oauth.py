"""OAuth 2 without a person: gets a bearer token by client credentials, refresh token or signed claim.

`Auth` is the union of all forms of `auth`.
"""

from __future__ import annotations

from time import time
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import Field, PrivateAttr, SecretStr, model_validator

from retl.errors import Systemic
from retl.net.accounts import Entra, Google, KeyPair
from retl.net.auth import Anonymous, Basic, Bearer, InBody, InHeader, InQuery, WholeUrl
from retl.net.kept import Shelf, Successor
from retl.net.lookup import look
from retl.net.rs256 import CLAIM, JWT_ASSERTION, JWT_GRANT, Key
from retl.net.signing import AzureSas, FormDigest, Hmac, SigV4
from retl.net.token import Token, TokenUrl
from retl.observe.redact import register_brief

_NEEDED = {
    "client_credentials": ("client_secret", "private_key"),
    "refresh_token": ("refresh_token",),
    "jwt_bearer": ("private_key",),
}


class OAuth2(Token):
    """With `method: GET` the parameters are in the query, with `client: basic` the client's id and secret are
    in a header, which some servers require. `private_key` instead of `client_secret` signs a claim. `scheme`
    is the word before the token, `extra` more parameters."""

    type: Literal["oauth2"]  # type: ignore[assignment]
    token_url: TokenUrl
    grant: Literal["client_credentials", "refresh_token", "jwt_bearer"] = "client_credentials"
    client_id: str
    client_secret: SecretStr | None = None
    refresh_token: SecretStr | None = None
    private_key: SecretStr | None = None  # RSA, PEM
    subject: str | None = None  # the claim's subject, if it is not the client
    audience: str | None = None  # default: token_url
    scope: str | None = None
    method: Literal["POST", "GET"] = "POST"
    client: Literal["body", "basic"] = "body"
    scheme: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")] = "Bearer"
    extra: dict[str, str] = Field(default={})
    _key: Key | None = PrivateAttr(default=None)
    _newest: str | None = PrivateAttr(default=None)  # what replaced the refresh token
    _successor: Successor | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _fits(self) -> OAuth2:
        names = _NEEDED[self.grant]
        if all(getattr(self, name) is None for name in names):
            raise ValueError(f"`grant: {self.grant}` needs `{'` or `'.join(names)}`")
        if self.client == "basic" and self.client_secret is None:
            raise ValueError("`client: basic` needs `client_secret`")
        if self.private_key is not None:
            self._key = Key.parse(self.private_key.get_secret_value())
        return self

    @property
    def word(self) -> str:
        return self.scheme

    @property
    def verb(self) -> Literal["POST", "GET"]:
        return self.method

    @property
    def endpoint(self) -> str:
        return self.token_url

    def login(self) -> Anonymous:
        if self.client == "body" or self.client_secret is None:
            return Anonymous()
        return Basic(type="basic", username=SecretStr(self.client_id), password=self.client_secret)

    def keep_in(self, shelf: Shelf) -> None:
        if self.grant == "refresh_token" and self.refresh_token is not None:
            client = f"{self.token_url}\0{self.client_id}"
            self._successor = Successor(shelf, client, self.refresh_token.get_secret_value())

    def taken(self, content: Any) -> None:
        """Keep a new refresh token before anything else happens: the old one may be worth nothing now."""
        new = look(content, "refresh_token")
        if self.grant != "refresh_token" or not isinstance(new, str) or new == self._refresh():
            return
        register_brief(new)
        self._newest = new
        if self._successor is not None:
            if self._successor.read_only:
                raise _rotates("the server replaced the refresh token, and this command may keep nothing")
            self._successor.write(new)

    def other(self) -> bool:
        kept = self._successor.read() if self._successor is not None else None
        if kept is None or kept == self._newest:
            return False
        self._newest = kept
        return True

    def secrets(self) -> list[str]:
        return [*super().secrets(), *([self._newest] if self._newest else [])]

    def _refresh(self) -> str | None:
        """The newest refresh token."""
        if self._newest is None and self._successor is not None:
            self._newest = self._successor.read()
        given = self.refresh_token.get_secret_value() if self.refresh_token else None
        return self._newest or given

    def form(self) -> dict[str, str | None]:
        if self._key is not None and self.grant == "jwt_bearer":
            claims = {"iss": self.client_id, "sub": self.subject or self.client_id, "scope": self.scope}
            return {"grant_type": JWT_GRANT, "assertion": self._signed(self._key, claims), **self.extra}
        secret, refresh = self.client_secret, self._refresh()
        if self._newest is not None and self._successor is not None and self._successor.read_only:
            raise _rotates("the server replaces each refresh token, and this command may keep nothing")
        in_body = self.client == "body"
        made = {
            "grant_type": self.grant,
            "client_id": self.client_id if in_body else None,
            "client_secret": secret.get_secret_value() if secret and in_body else None,
            "refresh_token": refresh,
            "scope": self.scope,
            **self.extra,
        }
        if self._key is not None:
            claims = {"iss": self.client_id, "sub": self.client_id, "jti": str(uuid4())}
            made |= {"client_assertion_type": JWT_ASSERTION}
            made |= {"client_assertion": self._signed(self._key, claims)}
        return made

    def _signed(self, key: Key, claims: dict[str, str | None]) -> str:
        now = int(time())
        given = {name: value for name, value in claims.items() if value}
        return key.token({**given, "aud": self.audience or self.token_url, "iat": now, "exp": now + CLAIM})


def _rotates(why: str) -> Systemic:
    return Systemic("OAUTH_ROTATES", why, hint="run `retl sync` without --dry-run; it keeps the new token")


Auth = Annotated[
    Anonymous
    | Bearer
    | Basic
    | InHeader
    | InQuery
    | InBody
    | WholeUrl
    | OAuth2
    | Google
    | Entra
    | KeyPair
    | SigV4
    | Hmac
    | AzureSas
    | FormDigest,
    Field(discriminator="type"),
]
