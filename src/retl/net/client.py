"""One lane's connection to one server: sends a request once and says what came back, or why nothing did.

It speaks through the standard library's http.client over a socket of its own making: there every step
can be held to one deadline, so that a server that drips its answer byte by byte cannot keep a run. No
cookies, no redirects, no proxies from the environment. Certificates are always verified, against the
system's authorities or those of SSL_CERT_FILE. It never repeats a request: whether that is safe, others
know.
"""

from __future__ import annotations

import io
import re
import select
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from http.client import HTTPConnection, HTTPException, HTTPResponse
from ipaddress import ip_address
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from retl.errors import Ambiguous, Systemic, Unavailable
from retl.model import Definition, Duration
from retl.net.auth import Anonymous, Permit, free
from retl.net.messages import Reply, Request

LONGEST_REPLY = 16 * 1024 * 1024  # bytes
_LOOKS = ("GET", "HEAD", "OPTIONS")  # questions, which do not tell how a target bears what is written
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

    @property
    def place(self) -> str:
        """The same for every spelling of the loopback interface."""
        host = replace(self, host="localhost") if self.is_loopback else self
        return f"{host}{self.prefix}"

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
        permit: Permit = free,
        longest: int | None = None,
    ) -> None:
        """Every request that leaves, also those for credentials, is sent in a `turn` of its own."""
        self.address = address
        self._auth, self._timeouts, self._permit, self._longest = auth, timeouts, permit, longest
        self._headers = {
            "Host": address.authority,
            "Accept": "application/json, */*;q=0.5",
            "Accept-Encoding": "identity",  # a compressed answer could be small on the wire and endless here
            "User-Agent": "retl",
            **headers,
        }
        self._kept: HTTPConnection | None = None
        self._wire: _Wire | None = None
        self.sent = 0  # bytes of all requests, heads included
        self._used = 0.0  # when the kept connection brought its last answer

    @cached_property
    def _context(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        return context

    def send(self, request: Request, extra: Mapping[str, str] | None = None) -> Reply:
        """Send once; once more with a new credential where the answer was that the old one is worn out.
        Unavailable if no connection came about, so that nothing was sent; Ambiguous if it broke or
        took too long before a status came; Systemic if the server's certificate is not valid."""
        reply, credential = self._once(request, extra)
        if self._auth.renewed(reply, credential, self._permit):
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
        credential = self._auth.credential(self._permit)
        headers = {**self._headers, **credential, **dict(request.headers), **(extra or {}), **length}
        size = None if request.method in _LOOKS else len(body)
        with self._permit(size):
            return self._exchange(request.method, target, headers, body), credential

    def connect(self) -> None:
        """Reach the server, TLS included, and say nothing to it. Raises as `send` does."""
        self._reach(monotonic() + self._timeouts.total).close()

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = self._wire = None

    def _exchange(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Reply:
        deadline = monotonic() + self._timeouts.total
        connection = self._connection(deadline)
        try:
            assert self._wire is not None
            self._wire.holds = bool(body)
            connection.request(method, target, body, dict(headers))
            self.sent += _size(method, target, headers, body)
            response = connection.getresponse()
            if response.status < 200:
                raise HTTPException("an interim answer that nobody asked for")
        except (OSError, HTTPException) as error:
            # A kept connection that the server closed meanwhile looks the same as one it closed
            # after it had done what it was asked, so both are nobody's to guess.
            self.close()
            raise Ambiguous(
                "HTTP_NO_ANSWER", f"{self.address} did not answer: {type(error).__name__}"
            ) from None
        content, whole = _read(response, self._longest or LONGEST_REPLY)
        if not whole or response.will_close:
            self.close()
        self._used = monotonic()
        return Reply(
            response.status,
            {name.lower(): value for name, value in response.getheaders()},
            content,
            whole,
        )

    def _connection(self, deadline: float) -> HTTPConnection:
        """The kept connection, its steps held to `deadline`, or a new one where it may have ended."""
        kept, wire = self._kept, self._wire
        if kept and wire and monotonic() - self._used < _IDLE and wire.is_quiet():
            wire.deadline = deadline
            return kept
        self.close()
        self._kept = HTTPConnection(self.address.host, self.address.port)
        self._kept.auto_open = 0
        self._kept.sock = self._wire = self._reach(deadline)
        return self._kept

    def _reach(self, deadline: float) -> _Wire:
        """A connection that stands. Unavailable if none came about, Systemic if the server is not who it
        says it is."""
        place, seconds = (self.address.host, self.address.port), self._timeouts.connect
        try:
            plain = socket.create_connection(place, timeout=min(seconds, self._timeouts.total))
            try:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                wire = plain
                if self.address.scheme == "https":
                    plain.settimeout(min(seconds, max(deadline - monotonic(), 0.001)))
                    wire = self._context.wrap_socket(plain, server_hostname=self.address.host)
            except BaseException:
                plain.close()
                raise
            return _Wire(wire, self._timeouts.idle, deadline)
        except ssl.SSLCertVerificationError as error:
            raise Systemic(
                "TLS_UNVERIFIED",
                f"the certificate of {self.address} is not valid: {error.verify_message}",
                hint="SSL_CERT_FILE can name the authority that signed it; verification cannot be turned off",
            ) from None
        except OSError as error:
            raise Unavailable(
                "HTTP_UNREACHED", f"{self.address} cannot be reached, nothing was sent: {error}"
            ) from None


def _size(method: str, target: str, headers: Mapping[str, str], body: bytes) -> int:
    """The bytes of a request on the wire: its first line, its headers, an empty line and the body."""
    head = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), ""]
    return sum(len(line) + 2 for line in head) + len(body)


def _read(response: HTTPResponse, longest: int) -> tuple[bytes, bool]:
    """The body, and whether it is all of it. With a status at hand a broken body is no broken answer."""
    chunks: list[bytes] = []
    size = 0
    try:
        while chunk := response.read(_PIECE):
            size += len(chunk)
            if size > longest:
                return b"", False
            chunks.append(chunk)
    except (OSError, HTTPException, ValueError):
        return b"", False
    return (b"".join(chunks), True) if not response.length else (b"", False)


class _Wire:
    """What http.client takes for a socket: none of its steps outlasts `deadline` or is idle too long."""

    def __init__(self, sock: socket.socket, idle: float, deadline: float) -> None:
        self._sock, self._idle, self.deadline = sock, idle, deadline
        self._holders = 1  # http.client closes its connection while the last answer is still being read
        self._limited = -1.0
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self.held = b""  # of the request, until its body comes
        self.holds = False  # a body will come

    def sendall(self, data: bytes) -> None:
        """Head and body leave together: two packets would wake the server twice."""
        if self.holds:
            self.held, self.holds = data, False
            return
        data, self.held = self.held + data, b""
        for start in range(0, len(data), _PIECE):
            self._limit()
            self._sock.sendall(data[start : start + _PIECE])

    def receive(self, into: memoryview) -> int:
        self._limit()
        return self._sock.recv_into(into)

    def is_quiet(self) -> bool:
        """Nothing to read between two answers: what there is would be the server's goodbye."""
        return not self._poll.poll(0)

    def makefile(self, mode: str) -> io.BufferedReader:
        self._holders += 1
        return io.BufferedReader(_Incoming(self))

    def close(self) -> None:
        self._holders -= 1
        if not self._holders:
            self._sock.close()

    def _limit(self) -> None:
        # never 0, which would mean "do not block"
        limit = max(min(self._idle, self.deadline - monotonic()), 0.001)
        if limit != self._limited:
            self._sock.settimeout(limit)
            self._limited = limit


class _Incoming(io.RawIOBase):
    def __init__(self, wire: _Wire) -> None:
        self._wire = wire

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._wire.receive(buffer)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._wire.close()
