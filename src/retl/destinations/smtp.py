"""E-mail through an SMTP server: each row once as one message to one recipient.

`from`, `to`, `subject`, `body` (and `reply_to`, `html`) are texts in which `{field}` is a field of the row,
`{$fields}` all of them as JSON, `{{` a brace. A NULL is an empty text. Values never make a header, a
recipient or markup: in `html` they are escaped, and a line break in the head or an address that is not
plain rejects the row. For several recipients make several rows.

The account needs the right to send as `from`; `check` asks for that where `from` holds no field. Off this
machine the connection is encrypted and the certificate verified: `tls: starttls` (the default, port 587)
or `ssl` (465); `none` needs `allow_plaintext: true`.

A mail cannot be taken back, so `write: append` is the only mode, and `delivery` must be chosen:
at_most_once leaves a mail whose answer was lost in doubt, at_least_once sends it again. The Message-ID
belongs to the row, so every resend carries the same one and mail programs can tell. A 5xx rejects the row;
a 4xx about the recipient leaves it for the next run, any other one is tried again. Accepted is not read:
what bounces later stays unknown here. Another server is another target: `first_run` says whether it gets
the rows of today's mart.

Servers limit messages per minute or day: say so in the connection's `limits`, a message is a request.
"""

from __future__ import annotations

import contextlib
import re
import smtplib
import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Annotated, Literal

from pydantic import Field, SecretStr, model_validator

from retl.batch import (
    UNKNOWN,
    WRITTEN,
    Answer,
    Batch,
    Capabilities,
    Kind,
    Outcome,
    RowResult,
    Shape,
    WriteMode,
)
from retl.definitions import Definition, Duration
from retl.destinations import Destination
from retl.errors import Ambiguous, Poisoned, Systemic, TargetError, Unavailable
from retl.http.scrub import scrub
from retl.mail import Form, Letter

_PORTS = {"starttls": 587, "ssl": 465, "none": 25}
_NOT_US = (503, 530, 534, 535, 538)  # about the session or the account, whatever was said
_ABOUT_ROW = re.compile(r"[45]\.[1267]\.")  # address, mailbox, content, policy (RFC 3463)


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


def _on_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class SmtpOptions(Definition):
    connection: SmtpConnection = SmtpConnection()
    sender: str = Field(alias="from", description="Who it is from: address, or Name <address>.")
    to: str = Field(description="The one recipient, such as {email} or {name} <{email}>.")
    subject: str
    body: str = Field(description="The text.")
    html: str | None = Field(None, description="The same as HTML, beside the text; values are escaped.")
    reply_to: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> SmtpOptions:
        self.form()
        return self

    def form(self) -> Form:
        return Form(self.sender, self.to, self.subject, self.body, self.html, self.reply_to)


class Smtp(Destination[SmtpOptions]):
    Connection = SmtpConnection
    Options = SmtpOptions

    def __init__(self, options: SmtpOptions, shape: Shape) -> None:
        super().__init__(options, shape)
        self._keys = [field.name for field in shape.key]
        self._form = options.form()
        self._form.fit([*self._keys, *(field.name for field in shape.fields)])
        self._smtp: smtplib.SMTP | None = None
        self.capabilities = Capabilities(
            object=Smtp.identity(options, shape.write),
            operations=frozenset({"append"}),
            idempotent=False,
            form="documents",
            max_rows=1,
        )

    @classmethod
    def identity(cls, options: SmtpOptions, write: WriteMode) -> str:
        host, port = options.connection.address
        return f"smtp://{host.lower()}:{port}"

    def check(self) -> None:
        if self._form.sender.names:
            self._ready()
            return
        sender = self._form.sender.address({})
        with self._in_time():
            self._begin(Letter(sender))

    def write(self, batch: Batch) -> Answer:
        try:
            letter = self._letter(batch)
        except Poisoned as error:
            if len(batch) > 1:
                raise
            return Outcome(RowResult(Kind.REJECTED, error.code, error.message))
        with self._in_time():
            refusal = self._begin(letter) or self._address(letter)
            return refusal or self._finish(letter)

    def request(self, batch: Batch) -> bytes:
        return self._letter(batch).dump()

    def close(self) -> None:
        smtp, self._smtp = self._smtp, None
        if smtp is not None:
            with contextlib.suppress(OSError):
                smtp.close()

    def _letter(self, batch: Batch) -> Letter:
        if len(batch) > 1:
            raise Poisoned("TOO_MANY_ROWS", f"{len(batch)} rows where a message takes 1")
        (row,) = batch.documents()
        # not the run's: a mail that is sent again by the next run is still the same mail
        identity = repr((self.shape.state_id, self.shape.sync, batch.keys()[0], batch.round))
        return self._form.letter(self._keys, row, identity, batch.started_at)

    # a message, step by step: until its last line is sent, nothing was applied

    def _begin(self, letter: Letter) -> Outcome | None:
        smtp = self._ready()
        with self._unsent():
            code, said = smtp.docmd(f"MAIL FROM:<{letter.sender}>")
        about_row = bool(self._form.sender.names) or code == 552
        return None if code == 250 else self._refused(code, said, letter, about_row=about_row)

    def _address(self, letter: Letter) -> Outcome | None:
        assert self._smtp is not None
        with self._unsent():
            for command, good in ((f"RCPT TO:<{letter.recipient}>", (250, 251)), ("DATA", (354,))):
                code, said = self._smtp.docmd(command)
                if code not in good:
                    return self._refused(code, said, letter)
            self._smtp.send(re.sub(rb"(?m)^\.", b"..", letter.message))
        return None

    def _finish(self, letter: Letter) -> Outcome:
        assert self._smtp is not None
        try:
            self._smtp.send(b".\r\n")
            code, said = self._smtp.getreply()
        except OSError as error:
            self.close()
            raise Ambiguous(
                "SMTP_NO_ANSWER", f"{self._server} did not say whether it took the message: {_why(error)}"
            ) from None
        return Outcome(WRITTEN) if code == 250 else self._refused(code, said, letter)

    def _refused(self, code: int, said: bytes, letter: Letter, *, about_row: bool = True) -> Outcome:
        """What a refusal means: for this row alone, or for all that come. Nothing was applied."""
        name = f"SMTP_{code}"
        spoken = said.decode("ascii", "replace")
        reason = (
            scrub(spoken, [letter.sender, letter.recipient, *letter.values])
            or "the server refused the message"
        )
        if code == 421 or not 400 <= code < 600:
            self.close()
        if code in _NOT_US or (code >= 500 and not about_row) or not 400 <= code < 600:
            raise Systemic(name, f"{self._server} answered {code}: {reason}", hint=_HINT)
        if code >= 500:
            return Outcome(RowResult(Kind.REJECTED, name, reason))
        if code != 421 and about_row and (code == 450 or _ABOUT_ROW.match(spoken)):
            return Outcome(UNKNOWN, {0: RowResult(Kind.RETRY, name, reason)})  # an end of this row alone
        raise Unavailable(name, f"{self._server} answered {code}: {reason}")

    # the connection

    @property
    def _server(self) -> str:
        return self.capabilities.object

    def _ready(self) -> smtplib.SMTP:
        """A connection that answers, greeted and logged in, with no message begun."""
        if self._smtp is not None:
            with contextlib.suppress(OSError):
                if self._smtp.docmd("RSET")[0] == 250:
                    return self._smtp
            self.close()
        with self._unsent():
            self._connect()
        assert self._smtp is not None
        return self._smtp

    def _connect(self) -> None:
        given = self.options.connection
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
                    f"{self._server} does not offer encryption",
                    hint="is it the submission port (587)? `tls: ssl` encrypts from the first byte (465)",
                )
            self._expect(220, *smtp.docmd("STARTTLS"))
            smtp.sock, smtp.file = self._encrypted(smtp.sock), None  # what was said before is void
            self._expect(250, *smtp.ehlo())
        if given.user is not None and given.password is not None:
            self._log_in(smtp, given.user, given.password.get_secret_value())

    def _encrypted(self, plain: socket.socket) -> socket.socket:
        given = self.options.connection
        try:
            context = ssl.create_default_context(cafile=given.tls_ca_file)
        except OSError as error:
            raise Systemic("TLS_UNVERIFIED", f"`tls_ca_file` cannot be read: {_why(error)}") from None
        try:
            return context.wrap_socket(plain, server_hostname=given.host)
        except ssl.SSLCertVerificationError as error:
            raise Systemic(
                "TLS_UNVERIFIED",
                f"the certificate of {self._server} is not valid: {error.verify_message}",
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
            raise Systemic("SMTP_AUTH", f"{self._server} offers no way to log in that is known here")
        self._expect(235, code, said)

    def _expect(self, wanted: int, code: int, said: bytes) -> None:
        if code == wanted:
            return
        kind = Unavailable if 400 <= code < 500 else Systemic
        raise kind(
            f"SMTP_{code}", f"{self._server} answered {code}: {scrub(said.decode('ascii', 'replace'), [])}"
        )

    @contextlib.contextmanager
    def _unsent(self) -> Iterator[None]:
        """Whatever breaks in here broke before a message could have been taken."""
        try:
            yield
        except OSError as error:
            self.close()
            raise Unavailable("SMTP_UNREACHED", f"{self._server}: nothing was sent: {_why(error)}") from None
        except TargetError:
            self.close()
            raise

    @contextlib.contextmanager
    def _in_time(self) -> Iterator[None]:
        """Hang up when the time for a message is over, so that a server that drips cannot keep a run."""

        def hang_up() -> None:
            sock = self._smtp.sock if self._smtp is not None else None
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(self.options.connection.total, hang_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


_HINT = "check the connection's user and password, and whether the account may send as `from`"


def _base64(text: str) -> str:
    return b64encode(text.encode()).decode()


def _own_name() -> str:
    name = socket.gethostname()
    return name if "." in name and name.isascii() else "localhost"


def _why(error: OSError) -> str:
    return error.strerror or type(error).__name__
