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

import re

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
from retl.destinations.smtp.wire import SmtpConnection, Wire
from retl.errors import Poisoned, Systemic, Unavailable
from retl.model import Definition
from retl.net.gate import Gate
from retl.net.scrub import scrub

_NOT_US = (503, 530, 534, 535, 538)  # about the session or the account, whatever was said
_ABOUT_ROW = re.compile(r"[45]\.[1267]\.")  # address, mailbox, content, policy (RFC 3463)


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

    def __init__(self, options: SmtpOptions, shape: Shape, gate: Gate | None = None) -> None:
        super().__init__(options, shape, gate)
        self._keys = [field.name for field in shape.key]
        self._form = options.form()
        self._form.fit([*self._keys, *(field.name for field in shape.fields)])
        self._wire = Wire(options.connection)
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
        with self._wire.in_time():
            if self._form.sender.names:
                self._wire.reach()
            else:
                self._begin(Letter(self._form.sender.address({})))

    def write(self, batch: Batch) -> Answer:
        try:
            letter = self._letter(batch)
        except Poisoned as error:
            if len(batch) > 1:
                raise
            return Outcome(RowResult(Kind.REJECTED, error.code, error.message))
        with self._wire.in_time():
            return self._begin(letter) or self._send(letter)

    def preview(self, batch: Batch) -> bytes:
        return self._letter(batch).dump()

    def close(self) -> None:
        self._wire.close()

    def _letter(self, batch: Batch) -> Letter:
        if len(batch) > 1:
            raise Poisoned("TOO_MANY_ROWS", f"{len(batch)} rows where a message takes 1")
        (row,) = batch.documents()
        # not the run's: a mail that is sent again by the next run is still the same mail
        identity = repr((self.shape.state_id, self.shape.sync, batch.keys()[0], batch.round))
        return self._form.letter(self._keys, row, identity, batch.started_at)

    def _begin(self, letter: Letter) -> Outcome | None:
        code, said = self._wire.begin(letter.sender)
        about_row = bool(self._form.sender.names) or code == 552
        return None if code == 250 else self._refused(code, said, letter, about_row=about_row)

    def _send(self, letter: Letter) -> Outcome:
        for command, good in ((f"RCPT TO:<{letter.recipient}>", (250, 251)), ("DATA", (354,))):
            code, said = self._wire.say(command)
            if code not in good:
                return self._refused(code, said, letter)
        message = re.sub(rb"(?m)^\.", b"..", letter.message)
        self._wire.send(message)
        self._bytes += len(message)
        code, said = self._wire.finish()
        return Outcome(WRITTEN) if code < 300 else self._refused(code, said, letter)

    def _refused(self, code: int, said: bytes, letter: Letter, *, about_row: bool = True) -> Outcome:
        """What a refusal means: for this row alone, or for all that come. Nothing was applied."""
        name, spoken = f"SMTP_{code}", said.decode("ascii", "replace")
        known = [letter.sender, letter.recipient, *letter.values]
        reason = scrub(spoken, known) or "the server refused the message"
        is_refusal = 400 <= code < 600
        if not is_refusal or code == 421:  # it hangs up, or nobody knows where the talk stands
            self._wire.close()
        if not is_refusal or code in _NOT_US or (code >= 500 and not about_row):
            raise Systemic(name, f"{self.capabilities.object} answered {code}: {reason}", hint=_HINT)
        if code >= 500:
            return Outcome(RowResult(Kind.REJECTED, name, reason))
        if code != 421 and about_row and (code == 450 or _ABOUT_ROW.match(spoken)):
            return Outcome(UNKNOWN, {0: RowResult(Kind.RETRY, name, reason)})  # an end of this row alone
        raise Unavailable(name, f"{self.capabilities.object} answered {code}: {reason}")


_HINT = "check the connection's user and password, and whether the account may send as `from`"
