"""One lane's connection to a mail server: encrypted, logged in, and closed at its deadline.

smtplib implements the protocol; the adapter interprets replies. Only the end of a message is sent here: after
that the server may have accepted the message, so a lost reply leaves it in doubt. It never sends anything
twice.
"""

from __future__ import annotations

import re
import smtplib
import socket
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

from pydantic import Field, SecretStr, model_validator

from retl.errors import Ambiguous, Systemic, Unavailable
from retl.model import Definition, Duration, needs_tls
from retl.net import tls
from retl.net.deadline import Deadline, TimedSocket
from retl.net.scrub import scrub

_PORTS = {"starttls": 587, "ssl": 465, "none": 25}

Reply = tuple[int, bytes]


class SmtpConnection(Definition):
    """A mail server, the account, and timeouts."""

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
    total: Duration = Field(300.0, description="For a whole message.")

    @model_validator(mode="after")
    def _fits(self) -> SmtpConnection:
        if self.tls == "none" and needs_tls(self.host, allow_plaintext=self.allow_plaintext):
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


class MailSession(smtplib.SMTP):
    """An smtplib session, encrypted and logged in, over a socket with a deadline. OSError if the server does
    not reply."""

    sock: TimedSocket | None

    def __init__(self, server: SmtpConnection) -> None:
        self._server, self._deadline = server, Deadline(server.total)
        self._context = tls.context(server.tls_ca_file) if server.tls != "none" else None
        super().__init__(*server.address, local_hostname=_own_name(), timeout=server.timeout)
        try:
            if server.tls == "starttls":
                with tls.verifying(server.name):
                    self.starttls(context=self._context)
                self._wait()  # starttls has replaced the socket
            self.ehlo_or_helo_if_needed()
            if server.user is not None and server.password is not None:
                _log_in(self, server.name, server.user, server.password.get_secret_value())
        except BaseException:
            self.close()
            raise

    def _get_socket(self, host: str, port: int, timeout: float) -> TimedSocket:
        """smtplib calls this to make its socket; its own SMTP_SSL overrides it too."""
        server = self._server
        within = Deadline(min(server.connect_timeout, server.total))
        context = self._context if server.tls == "ssl" else None
        made = tls.connect(host, port, within, server=server.name, context=context)
        made.wait_until(self._deadline, timeout)
        return made

    def is_ready(self) -> bool:
        """Whether the server answers; restarts the deadline for one more message."""
        self._deadline = Deadline(self._server.total)
        try:
            self._wait()
            return self.rset()[0] == 250
        except OSError:
            return False

    def send_lines(self, message: bytes) -> int:
        """Send a message without its last line; returns the number of bytes sent."""
        escaped = re.sub(rb"(?m)^\.", b"..", message)
        self.send(escaped)
        return len(escaped)

    def end(self) -> Reply:
        """Send the line that ends a message. Ambiguous if there is no reply to it."""
        try:
            self.send(b".\r\n")
            code, answer = self.getreply()
        except OSError as error:
            raise self._doubt(_why(error)) from None
        if not (200 <= code < 300 or 400 <= code < 600):
            self.close()
            raise self._doubt(f"its reply was {code}")
        return code, answer

    def _wait(self) -> None:
        if self.sock is None:
            raise smtplib.SMTPServerDisconnected("it closed the connection")
        self.sock.wait_until(self._deadline, self._server.timeout)

    def _doubt(self, why: str) -> Ambiguous:
        return Ambiguous(
            "SMTP_NO_ANSWER", f"{self._server.name} did not say whether it accepted the message: {why}"
        )


@contextmanager
def unsent(server: SmtpConnection) -> Iterator[None]:
    """For steps before the end of a message is sent: a broken connection is Unavailable, a refused session
    is Systemic."""
    try:
        yield
    except smtplib.SMTPNotSupportedError:
        raise Systemic(
            "SMTP_NO_STARTTLS",
            f"{server.name} does not offer encryption",
            hint="is it the submission port (587)? `tls: ssl` encrypts from the first byte (465)",
        ) from None
    except smtplib.SMTPResponseException as error:
        code, answer = error.smtp_code, error.smtp_error
        kind = Unavailable if 400 <= code < 500 else Systemic
        text = answer if isinstance(answer, str) else answer.decode("ascii", "replace")
        reason = scrub(text, []) or "no reason given"
        raise kind(f"SMTP_{code}", f"{server.name} answered {code}: {reason}") from None
    except OSError as error:
        raise Unavailable("SMTP_UNREACHED", f"{server.name}: nothing was sent: {_why(error)}") from None


def _log_in(smtp: smtplib.SMTP, server: str, user: str, password: str) -> None:
    """One attempt with one mechanism. `SMTP.login` tries several, and some servers then lock the account; it
    also does not accept a password outside ASCII."""
    offered = smtp.esmtp_features.get("auth", "").upper().split()
    if "PLAIN" in offered:
        code, answer = smtp.docmd("AUTH", f"PLAIN {_base64(chr(0).join(('', user, password)))}")
    elif "LOGIN" in offered:
        code, answer = smtp.docmd("AUTH", "LOGIN")
        for text in (user, password):
            if code == 334:
                code, answer = smtp.docmd(_base64(text))
    else:
        raise Systemic("SMTP_AUTH", f"{server} offers neither AUTH PLAIN nor AUTH LOGIN")
    if code != 235:
        raise smtplib.SMTPAuthenticationError(code, answer)


def _base64(text: str) -> str:
    return b64encode(text.encode()).decode()


def _own_name() -> str:
    name = socket.gethostname()
    return name if "." in name and name.isascii() else "localhost"


def _why(error: OSError) -> str:
    return error.strerror or type(error).__name__
