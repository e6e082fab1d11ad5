"""Accounts of programs that prove themselves with a key: Google's service accounts, applications in Entra,
and key pairs whose own signed claim is the token.
"""

from __future__ import annotations

import ssl
from base64 import urlsafe_b64encode
from hashlib import sha256
from time import time
from typing import Annotated, Literal
from uuid import uuid4

import msgspec
from pydantic import Field, PrivateAttr, SecretStr, model_validator

from retl.model import Duration
from retl.net.auth import Anonymous, Permit
from retl.net.rs256 import CLAIM, JWT_ASSERTION, JWT_GRANT, Key
from retl.net.token import Token, TokenUrl, safe

_HOUR = 3600  # seconds; Google takes no longer claim


class _ServiceAccount(msgspec.Struct):
    """What is needed of Google's key file."""

    client_email: str
    private_key: str
    private_key_id: str
    token_uri: str = "https://oauth2.googleapis.com/token"  # noqa: S105


class Google(Token):
    """A service account of Google: `key` is the JSON of its key file. `scope` is one or more addresses,
    separated by blanks. `subject` is a user for whom it acts (domain-wide delegation)."""

    type: Literal["google"]  # type: ignore[assignment]
    key: SecretStr
    scope: Annotated[str, Field(min_length=1)]
    subject: str | None = None
    _account: _ServiceAccount = PrivateAttr()
    _key: Key = PrivateAttr()

    @model_validator(mode="after")
    def _fits(self) -> Google:
        try:
            self._account = msgspec.json.decode(self.key.get_secret_value(), type=_ServiceAccount)
        except (msgspec.DecodeError, UnicodeEncodeError):
            raise ValueError("a `key` is the JSON of a service account's key file") from None
        safe(self._account.token_uri)
        self._key = Key.parse(self._account.private_key)
        return self

    @property
    def endpoint(self) -> str:
        return self._account.token_uri

    def form(self) -> dict[str, str | None]:
        now = int(time())
        claims = {"iss": self._account.client_email, "scope": self.scope, "aud": self._account.token_uri}
        claims |= {"sub": self.subject} if self.subject else {}  # Google refuses the account itself here
        head = {"kid": self._account.private_key_id}
        assertion = self._key.token({**claims, "iat": now, "exp": now + _HOUR}, head)
        return {"grant_type": JWT_GRANT, "assertion": assertion}

    def secrets(self) -> list[str]:
        return [*super().secrets(), self._account.private_key]


class Entra(Token):
    """An application in Microsoft Entra: `client_secret`, or a `certificate` with its `private_key` (PEM).
    `scope` is the resource with `/.default`. `authority` is another cloud's."""

    type: Literal["entra"]  # type: ignore[assignment]
    tenant: Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]+$")]
    client_id: str
    scope: Annotated[str, Field(min_length=1)]
    client_secret: SecretStr | None = None
    private_key: SecretStr | None = None
    certificate: str | None = None
    authority: TokenUrl = "https://login.microsoftonline.com"
    _key: Key | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _fits(self) -> Entra:
        if (self.client_secret is None) == (self.private_key is None):
            raise ValueError("an application needs `client_secret`, or `private_key` and `certificate`")
        if (self.private_key is None) != (self.certificate is None):
            raise ValueError("`private_key` and `certificate` belong together")
        if self.private_key is not None:
            self._key = Key.parse(self.private_key.get_secret_value())
            self._thumbprint()
        return self

    @property
    def endpoint(self) -> str:
        return f"{self.authority}/{self.tenant}/oauth2/v2.0/token"

    def form(self) -> dict[str, str | None]:
        shared = {"grant_type": "client_credentials", "client_id": self.client_id, "scope": self.scope}
        if self.client_secret is not None:
            return {**shared, "client_secret": self.client_secret.get_secret_value()}
        assert self._key is not None
        now = int(time())
        claims = {"iss": self.client_id, "sub": self.client_id, "aud": self.endpoint, "jti": str(uuid4())}
        head = {"x5t#S256": self._thumbprint()}
        assertion = self._key.token({**claims, "nbf": now, "exp": now + CLAIM}, head)
        return {**shared, "client_assertion_type": JWT_ASSERTION, "client_assertion": assertion}

    def _thumbprint(self) -> str:
        try:
            der = ssl.PEM_cert_to_DER_cert((self.certificate or "").replace("\\n", "\n").strip())
        except ValueError:
            raise ValueError("a `certificate` is in PEM") from None
        return urlsafe_b64encode(sha256(der).digest()).rstrip(b"=").decode()


class KeyPair(Anonymous):
    """A claim that we sign ourselves is the token: Snowflake's key pairs, GitHub's apps. `issuer`, `subject`,
    `audience` and `key_id` are what the target asks for; a claim is valid for `life`."""

    type: Literal["key_pair"]  # type: ignore[assignment]
    private_key: SecretStr
    issuer: Annotated[str, Field(min_length=1)]
    subject: str | None = None
    audience: str | None = None
    key_id: str | None = None
    life: Annotated[Duration, Field(ge=10, le=86400)] = 300.0
    _key: Key = PrivateAttr()

    @model_validator(mode="after")
    def _fits(self) -> KeyPair:
        self._key = Key.parse(self.private_key.get_secret_value())
        return self

    def credential(self, permit: Permit, proxy: SecretStr | None = None) -> dict[str, str]:
        now = int(time())
        claims = {"iss": self.issuer, "sub": self.subject, "aud": self.audience}
        given = {name: value for name, value in claims.items() if value}
        head = {"kid": self.key_id} if self.key_id else {}
        token = self._key.token({**given, "iat": now, "exp": now + int(self.life)}, head)
        return {"Authorization": f"Bearer {token}"}
