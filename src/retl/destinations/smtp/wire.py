"""One lane's connection to a mail server: encrypted, logged in, and cut off when its time is over.

It speaks SMTP through the standard library's smtplib and hands back the server's replies; what they mean
for a row, others know. Certificates are always verified. It never sends anything twice.
"""

from __future__ import annotations

import contextlib
import smtplib
import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Annotated, Literal

from pydantic import Field, SecretStr, model_validator

from retl.errors import Ambiguous, Systemic, TargetError, Unavailable
from retl.model import Definition, Duration
from retl.net.scrub import scrub

_PORTS = {"starttls": 587, "ssl": 465, "none": 25}

Reply = tuple[int, bytes]


class SmtpConnection(Definition):
    """A mail server, the account, and how long to wait."""

    host: str = "localhost"
    port: Annotated[int, Field(ge=1, le=65535)] | None = Field(
        None, description="587 with starttls, 465 with ssl, 25 without."
    )
    tls: Literal["starttls", "ssl", "none"] = "starttls"
    tls_ca_file: str | None = None
    allow_plaintext: bool = False
    user: str | None = None
    password: SecretStr | None = None
    connect_timeout: Duration = 10.0
    timeout: Duration = Field(60.0, description="Between two answers.")
    total: Duration = Field(300.0, description="For a message from begin to end.")

    @model_validator(mode="after")
    def _fits(self) -> SmtpConnection:
        if self.tls == "none" and not (self.allow_plaintext or _on_loopback(self.host)):
            raise ValueError("a server on another machine needs `tls` (or `allow_plaintext: true`)")
        if (self.user is None) != (self.password is None):
            raise ValueError("`user` and `password` go together")
        return self

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port or _PORTS[self.tls]

    @property
    def name(self) -> str:
        host, port = self.address
        return f"smtp://{host.lower()}:{port}"


class Wire:
    """Belongs to one lane, never to two threads."""

    def __init__(self, server: SmtpConnection) -> None:
        self._given = server
        self._smtp: smtplib.SMTP | None = None

    def begin(self, sender: str) -> Reply:
        """The reply to a new message from this sender. Unavailable or Systemic if there is no session."""
        if self._smtp is not None and not self._answers():
            self.close()
        with self._unsent():
            if self._smtp is None:
                self._connect()
            return self._open.docmd(f"MAIL FROM:<{sender}>")

    def say(self, command: str) -> Reply:
        with self._unsent():
            return self._open.docmd(command)

    def send(self, message: bytes) -> None:
        """The message without the line that ends it: until that one nothing can have been taken."""
        with self._unsent():
            self._open.send(message)

    def finish(self) -> Reply:
        """The line that ends a message. Ambiguous if there is no reply to it."""
        try:
            self._open.send(b".\r\n")
            code, said = self._open.getreply()
        except OSError as error:
            self.close()
            raise self._doubt(_why(error)) from None
        if not (200 <= code < 300 or 400 <= code < 600):
            self.close()
            raise self._doubt(f"its reply was {code}")
        return code, said

    def reach(self) -> None:
        """A session, and nothing more."""
        with self._unsent():
            if self._smtp is None:
                self._connect()

    def close(self) -> None:
        smtp, self._smtp = self._smtp, None
        if smtp is not None:
            with contextlib.suppress(OSError):
                smtp.close()

    @contextlib.contextmanager
    def in_time(self) -> Iterator[None]:
        """Hang up when the time for a message is over, so that a server that drips cannot keep a run."""

        def hang_up() -> None:
            sock = self._smtp.sock if self._smtp is not None else None
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(self._given.total, hang_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    @property
    def _open(self) -> smtplib.SMTP:
        assert self._smtp is not None
        return self._smtp

    def _answers(self) -> bool:
        try:
            return self._open.docmd("RSET")[0] == 250
        except OSError:
            return False

    def _doubt(self, why: str) -> Ambiguous:
        return Ambiguous(
            "SMTP_NO_ANSWER", f"{self._given.name} did not say whether it took the message: {why}"
        )

    @contextlib.contextmanager
    def _unsent(self) -> Iterator[None]:
        """Whatever breaks in here broke before a message could have been taken."""
        try:
            yield
        except OSError as error:
            self.close()
            raise Unavailable(
                "SMTP_UNREACHED", f"{self._given.name}: nothing was sent: {_why(error)}"
            ) from None
        except TargetError:
            self.close()
            raise

    def _connect(self) -> None:
        given = self._given
        self._smtp = smtp = smtplib.SMTP(local_hostname=_own_name(), timeout=given.timeout)
        smtp.sock = socket.create_connection(given.address, given.connect_timeout)
        smtp.sock.settimeout(given.timeout)
        if given.tls == "ssl":
            smtp.sock = self._encrypted(smtp.sock)
        self._expect(220, *smtp.getreply())
        self._expect(250, *smtp.ehlo())
        if given.tls == "starttls":
            if not smtp.has_extn("starttls"):
                raise Systemic(
                    "SMTP_NO_STARTTLS",
                    f"{self._given.name} does not offer encryption",
                    hint="is it the submission port (587)? `tls: ssl` encrypts from the first byte (465)",
                )
            self._expect(220, *smtp.docmd("STARTTLS"))
            smtp.sock, smtp.file = self._encrypted(smtp.sock), None  # what was said before is void
            self._expect(250, *smtp.ehlo())
        if given.user is not None and given.password is not None:
            self._log_in(smtp, given.user, given.password.get_secret_value())

    def _encrypted(self, plain: socket.socket) -> socket.socket:
        given = self._given
        try:
            context = ssl.create_default_context(cafile=given.tls_ca_file)
        except OSError as error:
            raise Systemic("TLS_UNVERIFIED", f"`tls_ca_file` cannot be read: {_why(error)}") from None
        try:
            return context.wrap_socket(plain, server_hostname=given.host)
        except ssl.SSLCertVerificationError as error:
            raise Systemic(
                "TLS_UNVERIFIED",
                f"the certificate of {self._given.name} is not valid: {error.verify_message}",
                hint="`tls_ca_file` can name the authority that signed it; verification cannot be turned off",
            ) from None

    def _log_in(self, smtp: smtplib.SMTP, user: str, password: str) -> None:
        """One attempt by one mechanism: some servers lock an account after a few."""
        offered = smtp.esmtp_features.get("auth", "").upper().split()
        if "PLAIN" in offered:
            code, said = smtp.docmd("AUTH", f"PLAIN {_base64(f'{chr(0)}{user}{chr(0)}{password}')}")
        elif "LOGIN" in offered:
            self._expect(334, *smtp.docmd("AUTH", "LOGIN"))
            self._expect(334, *smtp.docmd(_base64(user)))
            code, said = smtp.docmd(_base64(password))
        else:
            raise Systemic("SMTP_AUTH", f"{self._given.name} offers no way to log in that is known here")
        self._expect(235, code, said)

    def _expect(self, wanted: int, code: int, said: bytes) -> None:
        if code == wanted:
            return
        kind = Unavailable if 400 <= code < 500 else Systemic
        words = scrub(said.decode("ascii", "replace"), []) or "no word of why"
        raise kind(f"SMTP_{code}", f"{self._given.name} answered {code}: {words}")


def _on_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _base64(text: str) -> str:
    return b64encode(text.encode()).decode()


def _own_name() -> str:
    name = socket.gethostname()
    return name if "." in name and name.isascii() else "localhost"


def _why(error: OSError) -> str:
    return error.strerror or type(error).__name__
