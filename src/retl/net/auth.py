"""Who we are to a server: the forms of `auth` in a connection, and where each puts its secret.

Secrets stay `SecretStr` until the moment of sending and never become part of a request that is shown,
stored or compared.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from hashlib import sha256
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlsplit

from pydantic import AfterValidator, Field, SecretStr, field_validator

from retl.model import Definition


def _on_one_line(secret: SecretStr) -> SecretStr:
    """ValueError, without the secret, where it could break out of the header it is put in."""
    text = secret.get_secret_value()
    if not text or not text.isascii() or not text.isprintable():
        raise ValueError("a credential or header value is printable ASCII on one line, and not empty")
    return secret


Secret = Annotated[SecretStr, AfterValidator(_on_one_line)]
HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")]


Permit = Callable[[int | None], AbstractContextManager[object]]


def free(size: int | None = None) -> AbstractContextManager[object]:
    """A turn that is always there."""
    return nullcontext()


class Anonymous(Definition):
    """No credential; also what the others are where they say nothing."""

    type: Literal["none"] = "none"

    def headers(self) -> dict[str, str]:
        return {}

    def credential(self, permit: Permit) -> dict[str, str]:
        """The headers for the next request. What has to be asked for first is asked for in a `turn`."""
        return self.headers()

    def query(self) -> str:
        """What joins the query string, percent-encoded, without `?` or `&` at its ends."""
        return ""

    def target(self) -> str | None:
        """Path and query, where they are the secret themselves and stand in place of a request's own."""
        return None

    def body(self, body: bytes) -> bytes:
        """The body with the credential in it, where that is its place."""
        return body

    def mark(self) -> str:
        """What tells this target from others at its address where the address is not told; no secret."""
        return ""

    def renewed(self, reply: Any, sent: dict[str, str], permit: Permit = free) -> bool:
        """Does this answer say that the credential in the headers `sent` is worn out, and is there
        another now? Nothing was applied then."""
        return False

    def secrets(self) -> list[str]:
        """Every secret in it, plain and as it is sent, for whoever has to keep them out of a text."""
        plain = [value.get_secret_value() for _, value in self if isinstance(value, SecretStr)]
        sent = [part for value in self.headers().values() for part in value.split(" ")[-1:]]
        return [text for text in (*plain, *sent, self.query().partition("=")[2]) if text]


class Bearer(Anonymous):
    type: Literal["bearer"]  # type: ignore[assignment]
    token: Secret

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token.get_secret_value()}"}


class Basic(Anonymous):
    """User and password; APIs that want their key as the user leave the password out."""

    type: Literal["basic"]  # type: ignore[assignment]
    username: SecretStr
    password: SecretStr = SecretStr("")

    def headers(self) -> dict[str, str]:
        pair = f"{self.username.get_secret_value()}:{self.password.get_secret_value()}"
        return {"Authorization": f"Basic {b64encode(pair.encode()).decode()}"}


class InHeader(Anonymous):
    type: Literal["header"]  # type: ignore[assignment]
    name: HeaderName
    value: Secret

    def headers(self) -> dict[str, str]:
        return {self.name: self.value.get_secret_value()}


class InQuery(Anonymous):
    """A secret in the URL, for the APIs that know no better: it is added last and never shown."""

    type: Literal["query"]  # type: ignore[assignment]
    name: str
    value: SecretStr

    def query(self) -> str:
        return f"{quote(self.name, safe='')}={quote(self.value.get_secret_value(), safe='')}"


class InBody(Anonymous):
    """A secret among the members of the JSON object that is sent: it is added last and never shown."""

    type: Literal["body"]  # type: ignore[assignment]
    name: Annotated[str, Field(pattern=r"^[A-Za-z_]+$")]
    value: Secret

    def body(self, body: bytes) -> bytes:
        pair = json.dumps({self.name: self.value.get_secret_value()})[:-1].encode()
        return pair + (b"," if body[1:2] != b"}" else b"") + body[1:] if body.startswith(b"{") else body

    def mark(self) -> str:
        return _mark(self.value)


class WholeUrl(Anonymous):
    """The address itself is the secret, path and query and all, as with incoming webhooks."""

    type: Literal["url"]  # type: ignore[assignment]
    url: SecretStr

    @field_validator("url")
    @classmethod
    def _absolute(cls, url: SecretStr) -> SecretStr:
        text = url.get_secret_value()
        parts = urlsplit(text)
        if not re.fullmatch(r"[!-~]+", text) or parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("a webhook's address looks like https://host/path and is percent-encoded")
        if parts.fragment or parts.username is not None:
            raise ValueError("a webhook's address holds no user and no fragment")
        return url

    @property
    def origin(self) -> str:
        parts = urlsplit(self.url.get_secret_value())
        return f"{parts.scheme}://{parts.netloc}"

    def target(self) -> str:
        parts = urlsplit(self.url.get_secret_value())
        return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def mark(self) -> str:
        return _mark(self.url)

    def secrets(self) -> list[str]:
        return [self.url.get_secret_value(), self.target(), *self.target().split("/")]


def _mark(secret: SecretStr) -> str:
    return "#" + sha256(secret.get_secret_value().encode()).hexdigest()[:16]
