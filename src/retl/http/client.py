"""One lane's connection to one server: sends a request once and says what came back, or why nothing did.

It speaks through httpcore2, the engine under httpx2: only there can every step on the socket be held
to one deadline, so that a server that drips its answer byte by byte cannot keep a run. No cookies, no
redirects, no proxies from the environment. Certificates are always verified, against the system's
authorities or those of SSL_CERT_FILE. It never repeats a request: whether that is safe, others know.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import httpcore2

from retl.definitions import Definition, Duration
from retl.errors import Ambiguous, Systemic, Unavailable
from retl.http.auth import Anonymous
from retl.http.body import Request
from retl.http.outcome import Reply

LONGEST_REPLY = 16 * 1024 * 1024  # bytes
_IDLE = 5.0  # seconds after which a kept connection is not trusted to be open any more
_PIECE = 65536  # bytes given to the socket at once, so that the deadline is looked at in between


class Timeouts(Definition):
    """Seconds: until a connection stands, between two bytes, and for a request from begin to end."""

    connect: Duration = 10.0
    idle: Duration = 60.0
    total: Duration = 120.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is. All its paths begin with `prefix`, which has no slash at its end."""

    scheme: str
    host: str
    port: int
    prefix: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """ValueError, without the URL, if it has anything but scheme, host, port and path."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("a base_url looks like https://api.example.com/v1")
        if not re.fullmatch(r"[A-Za-z0-9._~:/\[\]%+@,;=()-]+", url) or "/." in parts.path:
            raise ValueError("a base_url is written percent-encoded, without dot segments")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError(
                "a base_url holds no user, password, query or fragment: credentials go into `auth`"
            )
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return cls(parts.scheme, parts.hostname, port, parts.path.rstrip("/"))

    @property
    def is_loopback(self) -> bool:
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = self.port == (443 if self.scheme == "https" else 80)
        return host if usual else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


class Client:
    """Belongs to one lane, never to two threads."""

    def __init__(
        self,
        address: Address,
        auth: Anonymous,
        headers: Mapping[str, str],
        timeouts: Timeouts,
        longest: int | None = None,
    ) -> None:
        self.address = address
        self._auth, self._timeouts, self._longest = auth, timeouts, longest
        self._headers = {
            "Host": address.authority,
            "Accept": "application/json, */*;q=0.5",
            "Accept-Encoding": "identity",  # a compressed answer could be small on the wire and endless here
            "User-Agent": "retl",
            **headers,
        }
        self._network = _Network()
        self._pool: httpcore2.ConnectionPool | None = None

    @cached_property
    def _context(self) -> ssl.SSLContext:
        return httpcore2.default_ssl_context()

    def send(self, request: Request, extra: Mapping[str, str] | None = None) -> Reply:
        """Send once; once more with a new credential where the answer was that the old one is worn out.
        Unavailable if no connection came about, so that nothing was sent; Ambiguous if it broke or
        took too long before a status came; Systemic if the server's certificate is not valid."""
        reply, credential = self._once(request, extra)
        if self._auth.renewed(reply, credential):
            reply, _ = self._once(request, extra)
        return reply

    def _once(self, request: Request, extra: Mapping[str, str] | None) -> tuple[Reply, dict[str, str]]:
        """The answer, and the credential that was sent."""
        query = self._auth.query()
        target = self._auth.target() or request.target
        if query:
            target += ("&" if "?" in target else "?") + query
        body = self._auth.body(request.body)
        length = {"Content-Length": str(len(body))}
        credential = self._auth.headers()
        headers = {**self._headers, **credential, **dict(request.headers), **(extra or {}), **length}
        url = httpcore2.URL(
            scheme=self.address.scheme, host=self.address.host, port=self.address.port, target=target
        )
        return self._exchange(request.method, url, list(headers.items()), body), credential

    def connect(self) -> None:
        """Reach the server, TLS included, and say nothing to it. Raises as `send` does."""
        self._network.begin(self._timeouts.total)
        try:
            stream = self._network.connect_tcp(self.address.host, self.address.port, self._timeouts.connect)
            if self.address.scheme == "https":
                stream = stream.start_tls(self._context, self.address.host, self._timeouts.connect)
            stream.close()
        except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
            raise self._unreached(error) from None

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _exchange(
        self, method: str, url: httpcore2.URL, headers: list[tuple[str, str]], body: bytes
    ) -> Reply:
        if self._pool is None:
            self._pool = httpcore2.ConnectionPool(
                ssl_context=self._context if self.address.scheme == "https" else None,
                max_connections=1,
                keepalive_expiry=_IDLE,
                network_backend=self._network,
            )
        idle, connect = self._timeouts.idle, self._timeouts.connect
        limits = {"timeout": {"connect": connect, "read": idle, "write": idle, "pool": connect}}
        self._network.begin(self._timeouts.total)
        try:
            with self._pool.stream(method, url, headers=headers, content=body, extensions=limits) as response:
                names = {name.decode("latin-1").lower(): value for name, value in response.headers}
                told = {name: value.decode("latin-1") for name, value in names.items()}
                return Reply(response.status, told, *_read(response, self._longest or LONGEST_REPLY))
        except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
            raise self._unreached(error) from None
        except (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            # A kept connection that the server closed meanwhile looks the same as one it closed
            # after it had done what it was asked, so both are nobody's to guess.
            raise Ambiguous(
                "HTTP_NO_ANSWER", f"{self.address} did not answer: {type(error).__name__}"
            ) from None

    def _unreached(self, error: Exception) -> Systemic | Unavailable:
        cause = error.args[0] if error.args else None  # the pool takes __cause__ away
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Systemic(
                "TLS_UNVERIFIED",
                f"the certificate of {self.address} is not valid: {cause.verify_message}",
                hint="SSL_CERT_FILE can name the authority that signed it; verification cannot be turned off",
            )
        why = str(cause) if isinstance(cause, OSError) else type(error).__name__
        return Unavailable("HTTP_UNREACHED", f"{self.address} cannot be reached, nothing was sent: {why}")


def _read(response: httpcore2.Response, longest: int) -> tuple[bytes, bool]:
    """The body, and whether it is all of it. With a status at hand a broken body is no broken answer."""
    chunks: list[bytes] = []
    size = 0
    try:
        for chunk in response.iter_stream():
            size += len(chunk)
            if size > longest:
                return b"", False
            chunks.append(chunk)
    except (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError):
        return b"", False
    return b"".join(chunks), True


class _Network(httpcore2.NetworkBackend):
    """Sockets none of whose steps outlasts the deadline of the request in hand."""

    def __init__(self) -> None:
        self._tcp = httpcore2.SyncBackend()
        self._deadline = 0.0

    def begin(self, seconds: float) -> None:
        self._deadline = monotonic() + seconds

    def left(self, timeout: float | None) -> float:
        """Seconds a step may take: what is left, and never 0, which would mean "do not block"."""
        left = max(self._deadline - monotonic(), 0.001)
        return left if timeout is None else min(left, timeout)

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        return _Stream(self._tcp.connect_tcp(host, port, self.left(timeout)), self)


class _Stream(httpcore2.NetworkStream):
    def __init__(self, stream: httpcore2.NetworkStream, network: _Network) -> None:
        self._stream, self._network = stream, network

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._network.left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _PIECE):
            self._stream.write(buffer[start : start + _PIECE], self._network.left(timeout))

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        left = self._network.left(timeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left), self._network)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def close(self) -> None:
        self._stream.close()
