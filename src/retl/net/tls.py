"""Encrypted connections: certificates are always verified, and no option turns that off.

The authorities are the system's, those in SSL_CERT_FILE, or those in a file. libpq verifies for PostgreSQL.
"""

from __future__ import annotations

import io
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import inf
from typing import Any, TypeVar, cast

from retl.errors import Systemic
from retl.net.deadline import Deadline, TimedSocket

T = TypeVar("T")

_HINT = (
    "set SSL_CERT_FILE, or the connection's `tls_ca_file` if it has one, to the authority that signed it;"
    " verification cannot be turned off"
)


class TimedTlsSocket(TimedSocket, ssl.SSLSocket):
    """A TimedSocket with TLS."""


class TlsInTls:
    """TLS with a server, inside the TLS of a proxy: it can do what `TimedSocket` does for HTTP."""

    def __init__(self, outer: TimedSocket, context: ssl.SSLContext, host: str) -> None:
        self._outer = outer
        self._received, self._sent = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._received, self._sent, server_hostname=host)
        self._run(self._tls.do_handshake)

    def wait_until(self, deadline: Deadline, idle: float = inf) -> None:
        self._outer.wait_until(deadline, idle)

    def is_quiet(self) -> bool:
        return not (self._tls.pending() or self._received.pending) and self._outer.is_quiet()

    def hang_up(self) -> None:
        self._outer.hang_up()

    def sendall(self, data: bytes) -> None:
        with memoryview(data) as view:
            sent = 0
            while sent < len(view):
                sent += self._run(partial(self._tls.write, view[sent:]))

    def recv_into(self, buffer: Any) -> int:
        try:
            return self._run(lambda: cast(int, self._tls.read(len(buffer), buffer)))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return 0

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Readable(self))

    def close(self) -> None:
        self._outer.close()

    def _run(self, step: Callable[[], T]) -> T:
        """Repeat the step until it needs no more bytes from the server."""
        while True:
            try:
                found = step()
            except ssl.SSLWantReadError:
                self._flush()
                if data := self._outer.recv(1 << 16):
                    self._received.write(data)
                else:
                    self._received.write_eof()
            else:
                self._flush()
                return found

    def _flush(self) -> None:
        if data := self._sent.read():
            self._outer.sendall(data)


class _Readable(io.RawIOBase):
    def __init__(self, stream: TlsInTls) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._stream.recv_into(buffer)


Stream = TimedSocket | TlsInTls


def context(
    ca_file: str | None = None,
    protocols: Sequence[str] = (),
    own: tuple[str, str] | None = None,
) -> ssl.SSLContext:
    """A context that verifies by the authorities in `ca_file`, if given. It makes TimedTlsSockets, offers the
    protocols (ALPN), and shows our own certificate if asked: `own` are the files of it and of its key.
    Systemic TLS_UNVERIFIED if the authorities cannot be read, TLS if our own files cannot."""
    try:
        made = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise Systemic("TLS_UNVERIFIED", f"`tls_ca_file` cannot be read: {why}") from None
    if own is not None:
        _show(made, *own)
    made.sslsocket_class = TimedTlsSocket
    if protocols:
        made.set_alpn_protocols(list(protocols))
    return made


def _show(made: ssl.SSLContext, cert_file: str, key_file: str) -> None:
    def refuse_password() -> str:  # OpenSSL would ask for it at the terminal
        raise Systemic("TLS", "the key in `tls_key_file` has a password; retl reads keys without one")

    try:
        made.load_cert_chain(cert_file, key_file, password=refuse_password)
    except OSError as error:
        why = getattr(error, "reason", None) or error.strerror or type(error).__name__
        raise Systemic("TLS", f"`tls_cert_file` or `tls_key_file` cannot be used: {why}") from None


@contextmanager
def verifying(server: str) -> Iterator[None]:
    """Systemic TLS_UNVERIFIED if the certificate of this server is not valid."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise Systemic(
            "TLS_UNVERIFIED", f"the certificate of {server} is not valid: {error.verify_message}", hint=_HINT
        ) from None


def connect(
    host: str, port: int, within: Deadline, *, server: str, context: ssl.SSLContext | None = None
) -> TimedSocket:
    """An open connection, with TLS if there is a context. OSError if it cannot be opened in time, Systemic
    if the certificate of `server` (its name in messages) is not valid."""
    made = TimedSocket(fileno=socket.create_connection((host, port), within.left()).detach())
    try:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.settimeout(within.left())
        if context is not None:
            made = _secured(made, host, server, context)
    except BaseException:
        made.close()
        raise
    made.wait_until(within)
    return made


def secure(made: TimedSocket, host: str, within: Deadline, *, server: str, context: ssl.SSLContext) -> Stream:
    """TLS with `host` over a connection that a proxy made. Raises like `connect`."""
    made.wait_until(within)
    if isinstance(made, TimedTlsSocket):
        with verifying(server):
            return TlsInTls(made, context, host)
    made.settimeout(within.left())
    found = _secured(made, host, server, context)
    found.wait_until(within)
    return found


def _secured(made: TimedSocket, host: str, server: str, context: ssl.SSLContext) -> TimedTlsSocket:
    with verifying(server):
        secured = context.wrap_socket(made, server_hostname=host)
    assert isinstance(secured, TimedTlsSocket)
    return secured
