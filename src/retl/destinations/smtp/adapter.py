"""E-mail through an SMTP server: each row once as one message to one recipient.

`from`, `to`, `subject`, `body` (and `reply_to`, `html`) are templates: `{field}` is a field of the row,
`{$fields}` all fields as JSON, `{{` a brace. NULL is an empty text. A value never adds a header, a recipient
or markup: in `html` values are escaped. A line break in a header or an address that is not plain rejects the
row. For several recipients make several rows.

The account needs the right to send as `from`; `check` tests that if `from` contains no field. To other
machines the connection is encrypted and the certificate verified: `tls: starttls` (the default, port 587)
or `ssl` (465); `none` needs `allow_plaintext: true`.

A mail cannot be undone, so `write: append` is the only mode and `delivery` must be chosen. If the answer to a
mail is lost, at_most_once leaves it in doubt and at_least_once sends it again. The Message-ID belongs to the
row: it is the same in every resend, so mail programs can recognise it. A 5xx rejects the row. A 4xx about the
recipient leaves it for the next run; any other 4xx is retried. Later bounces are not seen. Another server is
another target: `first_run` says whether it gets the rows of today's mart.

Servers limit messages per minute or day: set the connection's `limits`; one message is one request.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import Field, model_validator

from retl.destinations.api import Destination
from retl.destinations.batch import (
    UNKNOWN,
    WRITTEN,
    Answer,
    Batch,
    Capabilities,
    Kind,
    Outcome,
    RowResult,
    Shape,
    Visit,
    WriteMode,
)
from retl.destinations.smtp.letters import Form, Letter
from retl.destinations.smtp.wire import MailSession, SmtpConnection, unsent
from retl.errors import Poisoned, Systemic, TargetError, Unavailable
from retl.model import Definition
from retl.net.gate import Gate
from retl.net.scrub import scrub

_NOT_US = (503, 530, 534, 535, 538)  # these always concern the session or the account
_ABOUT_ROW = re.compile(r"[45]\.[1267]\.")  # address, mailbox, content, policy (RFC 3463)


class SmtpOptions(Definition):
    connection: SmtpConnection = SmtpConnection()
    sender: str = Field(alias="from", description="The sender: address, or Name <address>.")
    to: str = Field(description="The one recipient, such as {email} or {name} <{email}>.")
    subject: str
    body: str = Field(description="The text.")
    html: str | None = Field(None, description="The same as HTML, besides the text; values are escaped.")
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

    def __init__(self, options: SmtpOptions, shape: Shape, gate: Gate | None = None) -> None:
        super().__init__(options, shape, gate)
        self._keys = [field.name for field in shape.key]
        self._form = options.form()
        self._form.fit([*self._keys, *(field.name for field in shape.fields)])
        self._session: MailSession | None = None
        self.capabilities = Capabilities(
            object=Smtp.place(options, shape.write),
            modes=frozenset({"append"}),
            idempotent=False,
            form="documents",
            max_rows=1,
        )

    @classmethod
    def place(cls, options: SmtpOptions, write: WriteMode) -> str:
        return options.connection.name

    @classmethod
    def claim(cls, options: SmtpOptions, write: WriteMode) -> str | None:
        return None

    def check(self, visit: Visit) -> None:
        with self._unsent() as session:
            if not self._form.sender.names:
                self._begin(session, Letter(self._form.sender.address({})))

    def write(self, batch: Batch) -> Answer:
        try:
            letter = self._letter(batch)
        except Poisoned as error:
            if len(batch) > 1:
                raise
            return Outcome(RowResult(Kind.REJECTED, error.code, error.message))
        return self._send(letter)

    def preview(self, batch: Batch) -> bytes:
        return self._letter(batch).dump()

    def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()

    @contextmanager
    def _unsent(self) -> Iterator[MailSession]:
        """A session that is ready for a message."""
        connection = self.options.connection
        try:
            with unsent(connection):
                if self._session is None or not self._session.is_ready():
                    self.close()
                    self._session = MailSession(connection)
                yield self._session
        except TargetError:  # the state of the session is not known
            self.close()
            raise

    def _letter(self, batch: Batch) -> Letter:
        if len(batch) > 1:
            raise Poisoned("TOO_MANY_ROWS", f"{len(batch)} rows, but a message takes 1")
        (row,) = batch.documents()
        # without the run: a mail that the next run sends again is still the same mail
        identity = repr((self.shape.state_id, self.shape.sync, batch.keys()[0], batch.round))
        return self._form.letter(self._keys, row, identity, batch.started_at)

    def _begin(self, session: MailSession, letter: Letter) -> Outcome | None:
        code, answer = session.mail(letter.sender)
        about_row = bool(self._form.sender.names) or code == 552
        return None if code == 250 else self._refused(code, answer, letter, about_row=about_row)

    def _send(self, letter: Letter) -> Outcome:
        with self._unsent() as session:
            if refused := self._begin(session, letter):
                return refused
            code, answer = session.rcpt(letter.recipient)
            if code not in (250, 251):
                return self._refused(code, answer, letter)
            code, answer = session.docmd("DATA")
            if code != 354:
                return self._refused(code, answer, letter)
            self._bytes += session.send_lines(letter.message)
        code, answer = session.end()
        return Outcome(WRITTEN) if code < 300 else self._refused(code, answer, letter)

    def _refused(self, code: int, answer: bytes, letter: Letter, *, about_row: bool = True) -> Outcome:
        """The result of a refusal: of this row alone, or an error for all rows. Nothing was applied."""
        name, words = f"SMTP_{code}", answer.decode("ascii", "replace")
        known = [letter.sender, letter.recipient, *letter.values]
        reason = scrub(words, known) or "the server refused the message"
        is_refusal = 400 <= code < 600
        if not is_refusal or code in _NOT_US or (code >= 500 and not about_row):
            raise Systemic(name, f"{self.capabilities.object} answered {code}: {reason}", hint=_HINT)
        if code >= 500:
            return Outcome(RowResult(Kind.REJECTED, name, reason))
        if code != 421 and about_row and (code == 450 or _ABOUT_ROW.match(words)):
            return Outcome(UNKNOWN, {0: RowResult(Kind.RETRY, name, reason)})  # concerns this row alone
        raise Unavailable(name, f"{self.capabilities.object} answered {code}: {reason}")


_HINT = "check the connection's user and password, and whether the account may send as `from`"
