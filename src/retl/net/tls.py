"""Encrypted connections: certificates are always verified, and no option turns that off.

The authorities are the system's, those in SSL_CERT_FILE, or those in a file. libpq verifies for PostgreSQL.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from retl.errors import Systemic
from retl.net.deadline import Deadline, TimedSocket

_HINT = (
    "set SSL_CERT_FILE, or the connection's `tls_ca_file` if it has one, to the authority that signed it;"
    " verification cannot be turned off"
)


class TimedTlsSocket(TimedSocket, ssl.SSLSocket):
    """A TimedSocket with TLS."""


def context(ca_file: str | None = None, protocols: Sequence[str] = ()) -> ssl.SSLContext:
    """A context that verifies by the authorities in `ca_file`, if given. It makes TimedTlsSockets and offers
    the protocols (ALPN). Systemic TLS_UNVERIFIED if the file cannot be read."""
    try:
        made = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise Systemic("TLS_UNVERIFIED", f"`tls_ca_file` cannot be read: {why}") from None
    made.sslsocket_class = TimedTlsSocket
    if protocols:
        made.set_alpn_protocols(list(protocols))
    return made


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
            with verifying(server):
                secured = context.wrap_socket(made, server_hostname=host)
            assert isinstance(secured, TimedTlsSocket)
            made = secured
    except BaseException:
        made.close()
        raise
    made.wait_until(within)
    return made
