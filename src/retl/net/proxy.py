"""The way to a server through a forward proxy, if a connection names one or asks for the environment's.

To a server with TLS the proxy only relays bytes (CONNECT), and the certificate that is verified is the
server's. The proxy gets requests to a server without TLS as they are. If it refuses, nothing is sent past it.
"""

from __future__ import annotations

import re
import ssl
from base64 import b64encode
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from typing import TYPE_CHECKING, Annotated
from urllib.parse import unquote, urlsplit

from msgspec import Struct, field
from pydantic import AfterValidator, Field, SecretStr

from retl.errors import Systemic, Unavailable
from retl.net import tls
from retl.net.deadline import Deadline
from retl.net.waits import wait_asked
from retl.observe.redact import register

if TYPE_CHECKING:
    from retl.net.client import Address

ENVIRONMENT = "environment"
_FORM = re.compile(r"[A-Za-z0-9._~:/\[\]%+@!$&'()*,;=-]+")


class Proxy(Struct, frozen=True):
    """The address of a proxy; its credential is in `headers`."""

    __repr__ = object.__repr__  # headers are secrets

    scheme: str
    host: str
    port: int
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, url: str) -> Proxy:
        """ValueError, without the URL. A user and password in it are secrets from now on."""
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            parts, port = urlsplit(""), 0
        more = parts.path.strip("/") or parts.query or parts.fragment
        if parts.scheme not in ("http", "https") or not parts.hostname or more or not _FORM.fullmatch(url):
            raise ValueError("a proxy looks like http://host:port or https://user:password@host:port")
        if parts.username is None:
            return cls(parts.scheme, parts.hostname, port)
        user, password = unquote(parts.username), unquote(parts.password or "")
        register(password, parts.password or "")
        pair = b64encode(f"{user}:{password}".encode()).decode()
        return cls(parts.scheme, parts.hostname, port, {"Proxy-Authorization": f"Basic {pair}"})

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    def connect(self, address: Address, within: Deadline, context: ssl.SSLContext | None) -> tls.Stream:
        """A connection to the server, or to the proxy if the server has no TLS (no `context`). Unavailable or
        Systemic if the proxy does not provide it; OSError from TLS with the server."""
        own = tls.context(protocols=["http/1.1"]) if self.scheme == "https" else None
        try:
            made = tls.connect(self.host, self.port, within, server=f"the proxy {self}", context=own)
        except OSError as error:
            raise Unavailable(
                "PROXY_UNREACHED", f"the proxy {self} cannot be reached, nothing was sent: {error}"
            ) from None
        if context is None:
            return made
        try:
            self._ask(made, address)
            return tls.secure(made, address.host, within, server=str(address), context=context)
        except BaseException:
            made.close()
            raise

    def _ask(self, wire: tls.Stream, address: Address) -> None:
        """Ask for a tunnel to the server."""
        host = f"[{address.host}]" if ":" in address.host else address.host
        server = f"{host}:{address.port}"
        lines = [f"CONNECT {server} HTTP/1.1", f"Host: {server}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        try:
            wire.sendall("\r\n".join([*lines, "", ""]).encode())
            answer = HTTPResponse(wire, method="CONNECT")  # type: ignore[arg-type]
            answer.begin()
            answer.close()
        except (OSError, HTTPException) as error:
            raise Unavailable(
                "PROXY_UNREACHED",
                f"the proxy {self} did not answer, nothing was sent: {type(error).__name__}",
            ) from None
        if not 200 <= answer.status < 300:
            headers = {name.lower(): value for name, value in answer.getheaders()}
            raise self._refusal(answer.status, server, headers)

    def _refusal(self, status: int, server: str, headers: dict[str, str]) -> Systemic | Unavailable:
        phrase = f"{status} {HTTPStatus(status).phrase}" if status in set(HTTPStatus) else str(status)
        message = f"the proxy {self} does not connect to {server}, nothing was sent: it answered {phrase}"
        if status == 429 or status >= 500:
            return Unavailable("PROXY_UNREACHED", message, retry_after=wait_asked(headers))
        hint = "ask its operator to allow this server"
        if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
            wrong = "check user and password" if self.headers else "put user and password"
            hint = f"{wrong} in `proxy`: http://user:password@host:port"
        return Systemic("PROXY_REFUSED", message, hint=hint)


def _usable(setting: SecretStr) -> SecretStr:
    """ValueError, without the setting, if it is no proxy."""
    if setting.get_secret_value() != ENVIRONMENT:
        Proxy.parse(setting.get_secret_value())
    return setting


Setting = Annotated[
    SecretStr | None,
    AfterValidator(lambda setting: setting and _usable(setting)),
    Field(
        description="A forward proxy: `http://` or `https://`, host and port, with `user:password@` if it"
        " needs them. `environment`: as HTTPS_PROXY, HTTP_PROXY and NO_PROXY say. Without it none is used."
    ),
]


def on_the_way(setting: SecretStr | None, address: Address) -> Proxy | None:
    """The proxy for this server. Systemic if the environment names none that can be used."""
    if setting is None:
        return None
    text = setting.get_secret_value()
    return _of_environment(address) if text == ENVIRONMENT else Proxy.parse(text)


def _of_environment(address: Address) -> Proxy | None:
    from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

    found = getproxies_environment()
    text = found.get(address.scheme) or found.get("all")
    if not text or proxy_bypass_environment(f"{address.host}:{address.port}", found):
        return None
    try:
        return Proxy.parse(text if "://" in text else f"http://{text}")
    except ValueError as error:
        name = f"{address.scheme.upper()}_PROXY"
        raise Systemic("PROXY_REFUSED", f"{name} in the environment cannot be used: {error}") from None
