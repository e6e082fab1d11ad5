"""Who we are to a server: the forms of `auth` in a connection, and where each puts its secret.

Secrets stay `SecretStr` until the moment of sending and never become part of a request that is shown,
stored or compared.
"""

from __future__ import annotations

from base64 import b64encode
from typing import Annotated, Literal
from urllib.parse import quote

from pydantic import AfterValidator, Field, SecretStr

from retl.definitions import Definition


def _on_one_line(secret: SecretStr) -> SecretStr:
    """ValueError, without the secret, where it could break out of the header it is put in."""
    text = secret.get_secret_value()
    if not text or not text.isascii() or not text.isprintable():
        raise ValueError("a credential or header value is printable ASCII on one line, and not empty")
    return secret


Secret = Annotated[SecretStr, AfterValidator(_on_one_line)]
HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")]


class Anonymous(Definition):
    """No credential; also what the others are where they say nothing."""

    type: Literal["none"] = "none"

    def headers(self) -> dict[str, str]:
        return {}

    def query(self) -> str:
        """What joins the query string, percent-encoded, without `?` or `&` at its ends."""
        return ""


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


Auth = Annotated[Anonymous | Bearer | Basic | InHeader | InQuery, Field(discriminator="type")]


def secrets(auth: Anonymous) -> list[str]:
    """Every secret in it, plain and as it is sent, for whoever has to keep them out of a text."""
    plain = [value.get_secret_value() for _, value in auth if isinstance(value, SecretStr)]
    sent = [part for value in auth.headers().values() for part in value.split(" ")[-1:]]
    return [text for text in (*plain, *sent, auth.query().partition("=")[2]) if text]
