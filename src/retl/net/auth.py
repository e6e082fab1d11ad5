"""Credentials: the forms of `auth` in a connection, and where each puts its secret in a request.

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
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import msgspec
from pydantic import AfterValidator, Field, SecretStr, field_validator

from retl.errors import Systemic
from retl.model import Definition


def _on_one_line(secret: SecretStr) -> SecretStr:
    """ValueError, without the secret, if it could break out of its header."""
    text = secret.get_secret_value()
    if not text or not text.isascii() or not text.isprintable():
        raise ValueError("a credential or header value is printable ASCII on one line, and not empty")
    return secret


Secret = Annotated[SecretStr, AfterValidator(_on_one_line)]
HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")]


Permit = Callable[[int | None], AbstractContextManager[object]]


def free(size: int | None = None) -> AbstractContextManager[object]:
    """A permit that never waits."""
    return nullcontext()


class Anonymous(Definition):
    """No credential; also the defaults of the other forms."""

    type: Literal["none"] = "none"

    def headers(self) -> dict[str, str]:
        return {}

    def credential(self, permit: Permit, proxy: SecretStr | None = None) -> dict[str, str]:
        """The headers for the next request. A request for a token takes a permit and the same way too."""
        return self.headers()

    def query(self) -> str:
        """The part added to the query string, percent-encoded, without `?` or `&` at its ends."""
        return ""

    def target(self) -> str | None:
        """Path and query that replace the request's own, if they are the secret."""
        return None

    def body(self, body: bytes, content: str) -> bytes:
        """The body of this content type, with the credential if it belongs there. Systemic if it has no place
        for it."""
        return body

    def signed(self, method: str, target: str, headers: dict[str, str], body: bytes) -> dict[str, str]:
        """The headers of exactly this request, with its signature if it needs one."""
        return headers

    def mark(self) -> str:
        """A digest that separates targets with the same public address; not a secret."""
        return ""

    def renewed(
        self, reply: Any, sent: dict[str, str], permit: Permit = free, proxy: SecretStr | None = None
    ) -> bool:
        """Whether this answer says that the credential in the headers `sent` has expired, and there is now
        a new one. Then nothing was applied."""
        return False

    def keep_in(self, shelf: Any) -> None:
        """Keep there (`kept.Shelf`) what the server puts in the place of a secret."""

    def secrets(self) -> list[str]:
        """Every secret in it, plain and as it is sent, so that they can be removed from texts."""
        plain = [value.get_secret_value() for _, value in self if isinstance(value, SecretStr)]
        sent = [part for value in self.headers().values() for part in value.split(" ")[-1:]]
        return [text for text in (*plain, *sent, self.query().partition("=")[2]) if text]


class Bearer(Anonymous):
    type: Literal["bearer"]  # type: ignore[assignment]
    token: Secret

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token.get_secret_value()}"}


class Basic(Anonymous):
    """User and password; for APIs with their key as the user the password is empty."""

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
    """A secret in the URL, for APIs that need it: it is added last and never shown."""

    type: Literal["query"]  # type: ignore[assignment]
    name: str
    value: SecretStr

    def query(self) -> str:
        return f"{quote(self.name, safe='')}={quote(self.value.get_secret_value(), safe='')}"


class InBody(Anonymous):
    """A secret in the body: a member of the JSON object, of each object of a list or line, or a field of the
    form. It is added last and never shown."""

    type: Literal["body"]  # type: ignore[assignment]
    name: Annotated[str, Field(pattern=r"^[A-Za-z_$][\w.$-]*$")]
    value: Secret

    def body(self, body: bytes, content: str) -> bytes:
        secret = self.value.get_secret_value()
        if "x-www-form-urlencoded" in content:
            if self.name in dict(parse_qsl(body.decode(), keep_blank_values=True)):
                raise self._refusal("already has")
            return body + (b"&" if body else b"") + urlencode({self.name: secret}).encode()
        pair = json.dumps({self.name: secret})[1:].encode()
        try:
            if "ndjson" in content:
                return b"".join(self._joined(line, pair) + b"\n" for line in body.splitlines())
            if body.startswith(b"["):
                items = msgspec.json.decode(body, type=list[msgspec.Raw])
                return b"[" + b",".join(self._joined(bytes(item), pair) for item in items) + b"]"
            return self._joined(body, pair)
        except msgspec.DecodeError:
            raise self._refusal("has no place for") from None

    def _joined(self, whole: bytes, pair: bytes) -> bytes:
        """An object with one more member."""
        members = msgspec.json.decode(whole, type=dict[str, msgspec.Raw])
        if self.name in members:
            raise self._refusal("already has")
        return whole.rstrip()[:-1] + (b"," if members else b"") + pair

    def _refusal(self, why: str) -> Systemic:
        return Systemic("HTTP_AUTH", f"the body {why} a member {self.name!r}, which `auth` adds to it")

    def mark(self) -> str:
        return mark(self.value)


class WholeUrl(Anonymous):
    """The whole address is the secret, with path and query, such as for incoming webhooks."""

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
            raise ValueError("a webhook's address must not contain a user or fragment")
        return url

    @property
    def origin(self) -> str:
        parts = urlsplit(self.url.get_secret_value())
        return f"{parts.scheme}://{parts.netloc}"

    def target(self) -> str:
        parts = urlsplit(self.url.get_secret_value())
        return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def mark(self) -> str:
        return mark(self.url)

    def secrets(self) -> list[str]:
        return [self.url.get_secret_value(), self.target(), *self.target().split("/")]


def mark(secret: SecretStr) -> str:
    """A digest that separates the accounts of one address."""
    return "#" + sha256(secret.get_secret_value().encode()).hexdigest()[:16]
