"""One lane's HTTP connection to one server: sends a request once, and returns the answer or raises an error.

It uses the standard library's http.client over a socket with one deadline for the whole request, so a server
that sends its answer byte by byte cannot block a run. No cookies but those of a `csrf` token, no redirects,
no proxy that nobody asked for, no unverified certificates. It never retries: delivery knows whether that is
safe.
"""

from __future__ import annotations

import re
import ssl
import zlib
from collections.abc import Callable, Mapping
from functools import cached_property
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse
from time import monotonic
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from msgspec import Struct
from msgspec.structs import replace
from pydantic import SecretStr

from retl.errors import Ambiguous, Unavailable
from retl.model import Definition, Duration, is_loopback
from retl.net import tls
from retl.net.auth import Anonymous, Permit, free
from retl.net.csrf import Csrf, Session
from retl.net.deadline import Deadline
from retl.net.messages import Reply, Request
from retl.net.proxy import Proxy, on_the_way

LONGEST_REPLY = 16 * 1024 * 1024  # bytes
_LOOKS = ("GET", "HEAD", "OPTIONS")  # they write nothing, so their latency does not count
_IDLE = 5.0  # seconds after which a kept connection may no longer be open
_ENCODINGS = ("gzip", "x-gzip", "deflate")
_PIECE = 65536  # bytes of an answer read at once; its size is checked after each piece


class Timeouts(Definition):
    """Seconds: to open a connection, between two bytes, and for a whole request."""

    connect: Duration = 10.0
    idle: Duration = 60.0
    total: Duration = 120.0


class Address(Struct, frozen=True):
    """The address of a server. All paths begin with `prefix`, which does not end with a slash."""

    scheme: str
    host: str
    port: int
    prefix: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """ValueError, without the URL, if it has more than scheme, host, port and path."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("a base_url looks like https://api.example.com/v1")
        if not re.fullmatch(r"[A-Za-z0-9._~:/\[\]%+@,;=()-]+", url) or "/." in parts.path:
            raise ValueError("a base_url is percent-encoded and has no dot segments")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError(
                "a base_url has no user, password, query or fragment: put credentials into `auth`"
            )
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return cls(parts.scheme, parts.hostname, port, parts.path.rstrip("/"))

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = self.port == (443 if self.scheme == "https" else 80)
        return host if usual else f"{host}:{self.port}"

    @property
    def place(self) -> str:
        """The address as text; equal for all names of the loopback interface."""
        host = replace(self, host="localhost") if is_loopback(self.host) else self
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
        proxy: SecretStr | None = None,
        ca_file: str | None = None,
        on_status: Callable[[int], None] = lambda _status: None,
        csrf: Csrf | None = None,
    ) -> None:
        """Every request, also one for a token, takes a permit of its own, and the way by `proxy`. `ca_file`:
        the authorities of the server, if not the system's. `on_status` is called with the status of each
        answer, but of one for a token."""
        self.address = address
        self._ca_file = ca_file
        self._auth, self._timeouts, self._permit, self._longest = auth, timeouts, permit, longest
        self._headers = {
            "Host": address.authority,
            "Accept": "application/json, */*;q=0.5",
            "Accept-Encoding": "identity",  # a small compressed answer could become endless here
            "User-Agent": "retl",
            **headers,
        }
        self._proxied = proxy
        self._on_status = on_status
        self._session = Session(csrf, address.prefix) if csrf else None
        self._kept: _Connection | None = None
        self.sent = 0  # bytes of all requests, heads included
        self._used = 0.0  # time of the last answer on the kept connection

    @cached_property
    def _proxy(self) -> Proxy | None:
        return on_the_way(self._proxied, self.address)

    @cached_property
    def _context(self) -> ssl.SSLContext | None:
        return tls.context(self._ca_file, ["http/1.1"]) if self.address.scheme == "https" else None

    def send(
        self,
        request: Request,
        extra: Mapping[str, str] | None = None,
        before: Callable[[], None] = lambda: None,
        into: BinaryIO | None = None,
    ) -> Reply:
        """Send once; once more with a new credential if the answer says that the old one has expired.
        `before` is called just before each send; nothing is sent if it raises. The body of a 200 goes into
        the file `into`, if there is one, and not into the reply. Unavailable if there was no connection, so
        nothing was sent; Ambiguous if it broke or timed out before a status came; Systemic if the server's
        certificate is not valid."""
        if self._session is None or request.method in _LOOKS:
            return self._renewing(request, extra, before, into)
        for _ in range(2):  # the session may be over
            token = self._session.headers(self._renewing)
            reply = self._renewing(request, {**(extra or {}), **token}, before, into)
            if not self._session.is_over(reply):
                break
        return reply

    def _renewing(
        self,
        request: Request,
        extra: Mapping[str, str] | None = None,
        before: Callable[[], None] = lambda: None,
        into: BinaryIO | None = None,
    ) -> Reply:
        reply, credential = self._once(request, extra, before, into)
        if self._auth.renewed(reply, credential, self._permit, self._proxied):
            reply, _ = self._once(request, extra, before, into)
        return reply

    def _once(
        self,
        request: Request,
        extra: Mapping[str, str] | None,
        before: Callable[[], None],
        into: BinaryIO | None,
    ) -> tuple[Reply, dict[str, str]]:
        """The answer, and the credential that was sent."""
        query = self._auth.query()
        target = self._auth.target() or request.target
        if query:
            target += ("&" if "?" in target else "?") + query
        given = dict(request.headers)
        content = next((value for name, value in given.items() if name.lower() == "content-type"), "")
        body = self._auth.body(request.body, content)
        length = {"Content-Length": str(len(body))}
        credential = self._auth.credential(self._permit, self._proxied)
        headers = {**self._headers, **credential, **given, **(extra or {}), **length}
        headers = self._auth.signed(request.method, target, headers, body)
        if self._proxy is not None and self._context is None:  # the proxy itself reads the request
            target, headers = f"{self.address}{target}", {**headers, **self._proxy.headers}
        size = None if request.method in _LOOKS else len(body)
        with self._permit(size):
            connection = self._connection(Deadline(self._timeouts.total))
            before()
            return self._exchange(connection, request.method, target, headers, body, into), credential

    def connect(self) -> None:
        """Open and close a connection, with TLS, and send nothing. Raises like `send`."""
        self._reach(Deadline(self._timeouts.total)).close()

    def interrupt(self) -> None:
        """End the request that another thread waits for: it is Ambiguous, or its answer is not whole."""
        if (kept := self._kept) is not None:
            kept.sock.hang_up()

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def _exchange(
        self,
        connection: _Connection,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes,
        into: BinaryIO | None,
    ) -> Reply:
        try:
            connection.request(method, target, body, dict(headers))
            self.sent += _size(method, target, headers, body)
            response = connection.getresponse()
            if response.status < 200:
                raise HTTPException("an unexpected interim answer")
        except (OSError, HTTPException) as error:
            # The server may have closed a kept connection before this request, or after it had executed
            # it. Both look the same.
            self.close()
            raise Ambiguous(
                "HTTP_NO_ANSWER", f"{self.address} did not answer: {type(error).__name__}"
            ) from None
        self._on_status(response.status)
        if into is not None and response.status == HTTPStatus.OK:
            content, whole = b"", _copy(response, into)
        else:
            content, whole = _read(response, self._longest or LONGEST_REPLY)
        if not whole or response.will_close:
            self.close()
        self._used = monotonic()
        return Reply(response.status, _headers(response), content, whole)

    def _connection(self, deadline: Deadline) -> _Connection:
        """The kept connection with this deadline, or a new one if it may be closed."""
        kept = self._kept
        if kept and monotonic() - self._used < _IDLE and kept.sock.is_quiet():
            kept.sock.wait_until(deadline, self._timeouts.idle)
            return kept
        self.close()
        self._kept = _Connection(self.address, self._reach(deadline))
        return self._kept

    def _reach(self, deadline: Deadline) -> tls.Stream:
        """An open socket. Unavailable if it cannot be opened, Systemic if the server's certificate is not
        valid."""
        address, within = self.address, Deadline(min(self._timeouts.connect, self._timeouts.total))
        made: tls.Stream
        try:
            if self._proxy is not None:
                made = self._proxy.connect(address, within, self._context)
            else:
                made = tls.connect(
                    address.host, address.port, within, server=str(address), context=self._context
                )
        except OSError as error:
            raise Unavailable(
                "HTTP_UNREACHED",
                f"{address} cannot be reached, nothing was sent: {error.strerror or error}",
                hint="check the connection's address, and that the server runs; then run again",
            ) from None
        made.wait_until(deadline, self._timeouts.idle)
        return made


class _Answer(HTTPResponse):
    """Skips informational answers (100, 102, 103 …), of which http.client skips only 100."""

    def begin(self) -> None:
        super().begin()
        while 100 <= self.status < 200 and self.status != HTTPStatus.SWITCHING_PROTOCOLS:
            self.headers = self.msg = None  # type: ignore[assignment]  # else `begin` reads no more
            super().begin()


class _Connection(HTTPConnection):
    """Sends headers and body in one packet instead of two."""

    auto_open = 0
    response_class = _Answer
    sock: tls.Stream

    def __init__(self, address: Address, sock: tls.Stream) -> None:
        super().__init__(address.host, address.port)
        self.sock = sock
        self._parts: list[bytes] = []

    def send(self, data: Any) -> None:
        self._parts.append(data)

    def getresponse(self) -> HTTPResponse:
        self.sock.sendall(b"".join(self._parts))
        self._parts.clear()
        return super().getresponse()


def _size(method: str, target: str, headers: Mapping[str, str], body: bytes) -> int:
    """The number of bytes of a request: first line, headers, an empty line and the body."""
    head = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), ""]
    return sum(len(line) + 2 for line in head) + len(body)


def _headers(response: HTTPResponse) -> dict[str, str]:
    """The headers by name in lower case. Several Link headers are one list, cookies are lines; of others the
    last counts."""
    found: dict[str, str] = {}
    for name, value in response.getheaders():
        between = {"link": ", ", "set-cookie": "\n"}.get(name.lower())
        known = found.get(name.lower()) if between else None
        found[name.lower()] = f"{known}{between}{value}" if known else value
    return found


def _copy(response: HTTPResponse, into: BinaryIO) -> bool:
    """Copy the body into a file; whether it is complete. A body that is compressed is not."""
    if response.getheader("Content-Encoding", "identity").lower() not in ("", "identity"):
        return False
    while True:
        try:
            piece = response.read1(_PIECE)
        except (OSError, HTTPException, ValueError):
            return False
        if not piece:
            break
        into.write(piece)
    if response.length:
        return False
    response.close()  # the connection may send its next request
    return True


def _read(response: HTTPResponse, longest: int) -> tuple[bytes, bool]:
    """The body, and whether it is complete. A broken body is no error, because the status is known."""
    chunks: list[bytes] = []
    size = 0
    try:
        while chunk := response.read1(_PIECE):  # unlike `read` bounded also if a chunk's size is negative
            size += len(chunk)
            if size > longest:
                return b"", False
            chunks.append(chunk)
    except (OSError, HTTPException, ValueError):
        return b"", False
    if response.length:
        return b"", False
    response.close()  # the connection may send its next request
    decoded = _decoded(b"".join(chunks), response.getheader("Content-Encoding", ""), longest)
    return (b"", False) if decoded is None else (decoded, True)


def _decoded(body: bytes, encodings: str, longest: int) -> bytes | None:
    """The body without its compression, which no request asks for. None if it is cut off, longer than
    `longest` bytes, or compressed in a way that the standard library cannot read."""
    for encoding in reversed(encodings.lower().split(",")):
        if (name := encoding.strip()) in ("", "identity") or not body:
            continue
        found = _inflated(body, longest, gzip=name != "deflate") if name in _ENCODINGS else None
        if found is None:
            return None
        body = found
    return body


def _inflated(body: bytes, longest: int, *, gzip: bool) -> bytes | None:
    """The decompressed bytes; a gzip body may have several members. `deflate` has a zlib header, or none."""
    bits = 31 if gzip else 15 if body[0] & 15 == 8 and int.from_bytes(body[:2]) % 31 == 0 else -15
    whole = b""
    while body:
        stream = zlib.decompressobj(bits)
        try:
            whole += stream.decompress(body, longest + 1 - len(whole))
        except zlib.error:
            return None
        if len(whole) > longest or not stream.eof:
            return None
        body = stream.unused_data.lstrip(b"\0") if gzip else b""
    return whole
