"""The HTTP interface of a ClickHouse server, for the source and the target: its account, and how a query and
its parameters are written, and an error is read. It sends nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple
from urllib.parse import quote, urlencode

from pydantic import Field, SecretStr, model_validator

from retl.model import Definition, needs_tls
from retl.net.auth import HeaderName
from retl.net.client import Address
from retl.net.messages import Reply
from retl.net.proxy import Setting

LOCKED = 164  # the account may not write, or not change settings
BUSY = (202, 203, 209, 210, 425, 999)  # too many queries, no connection free, timeouts inside the cluster
UNKNOWN_NAME = (16, 36, 46, 47, 60, 81, 386, 456)  # a column, function, table, database, type or parameter
_CODE = "x-clickhouse-exception-code"
_WORD = re.compile(r"\(([A-Z][A-Z0-9_]{2,60})\)(?: \(version [^()]*(?:\([^()]*\))?\))?\s*$")


class ClickHouseServer(Definition):
    """A server, by its HTTP interface."""

    type: Literal["clickhouse"] = "clickhouse"
    base_url: str
    user: str = "default"
    password: SecretStr = SecretStr("")
    database: str = "default"
    proxy: Setting = None
    tls_ca_file: str | None = Field(None, description="The authorities of the server, if not the system's.")
    allow_plaintext: bool = False

    @model_validator(mode="after")
    def _fits(self) -> ClickHouseServer:
        address = Address.parse(self.base_url)
        if address.scheme == "http" and needs_tls(address.host, allow_plaintext=self.allow_plaintext):
            raise ValueError("base_url must be https, or set `allow_plaintext: true`")
        given = f"{self.user}{self.password.get_secret_value()}{self.database}"
        if not (given.isascii() and given.isprintable()):
            raise ValueError("user, password and database are printable ASCII, because headers carry them")
        return self

    @property
    def address(self) -> Address:
        return Address.parse(self.base_url)

    @property
    def account(self) -> dict[str, str]:
        """The headers that every request has."""
        given: dict[HeaderName, str] = {
            "X-ClickHouse-User": self.user,
            "X-ClickHouse-Key": self.password.get_secret_value(),
        }
        return {name: value for name, value in given.items() if value}


class Said(NamedTuple):
    """An error of the server: its code (0: it is none of ClickHouse) and that with its name. The sentence
    beside them may quote rows, so it is not here."""

    code: int
    named: str


def refused(reply: Reply) -> Said | None:
    """The error in an answer; None if it is no error."""
    if reply.status == 200 and _CODE not in reply.headers:
        return None
    text = reply.headers.get(_CODE, "")
    code, words = int(text) if text.isdecimal() else 0, _WORD.findall(reply.body.decode(errors="replace"))
    return Said(code, f"{code}, {words[0]}" if words else str(code))


def target(address: Address, given: Mapping[str, str], parameters: Mapping[str, str]) -> str:
    """The path of a request with these settings, and with parameters for `{name:Type}` in its SQL."""
    named = {f"param_{name}": value for name, value in parameters.items()}
    return f"{address.prefix}/?{urlencode({**given, **named}, quote_via=quote)}"


def written(value: Any) -> str:
    """A parameter as ClickHouse reads it: special characters of texts are escaped."""
    if value is None:
        return r"\N"
    if isinstance(value, bool):
        return "1" if value else "0"
    escapes = {"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r", "\0": r"\0"}
    return "".join(escapes.get(one, one) for one in str(value))


def quoted(name: str) -> str:
    """An identifier for SQL text."""
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"
