"""Makes a mail from a row: templates with its fields, addresses, and the bytes of the message.

In a template `{field}` is that field of the row as text (NULL is empty, a number its digits, lists and
json are JSON), `{$fields}` is one JSON object of all fields except the key's, `{{` and `}}` are braces.
There are no expressions and no formats. A value never adds a header, a recipient or markup. It does no I/O.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from email.header import Header
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, formataddr
from functools import cached_property
from hashlib import sha256
from typing import Any

import msgspec
from msgspec import Struct

from retl.errors import DefinitionError, Poisoned
from retl.net.lookup import text

FIELDS = "$fields"
_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|([{}])")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CONTROL_IN_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line feed
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ADDRESS = re.compile(rf"{_ATOM}(?:\.{_ATOM})*@{_LABEL}(?:\.{_LABEL})*")
_MAILBOX = re.compile(r"(?P<name>[^<>]*?)\s*<(?P<named>[^<>]+)>|(?P<bare>[^<>]+)")
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])

Values = Mapping[str, str]


class Text:
    """A template. ValueError for a single brace."""

    def __init__(self, template: str) -> None:
        self._parts: list[tuple[str, str | None]] = []
        at = 0
        for found in _PIECE.finditer(template):
            if found[2]:
                raise ValueError("a single brace: a field is {name}, a brace is {{ or }}")
            literal = template[at : found.start()] + (found[0][0] if found[1] is None else "")
            self._parts.append((literal, found[1]))
            at = found.end()
        self._parts.append((template[at:], None))

    @property
    def names(self) -> list[str]:
        return [name for _, name in self._parts if name is not None]

    @property
    def literal(self) -> str:
        return "".join(literal for literal, _ in self._parts)

    def fill(self, values: Values, form: Callable[[str], str] = str) -> str:
        return "".join(
            literal + (form(values[name]) if name is not None else "") for literal, name in self._parts
        )


class Line(Text):
    """A template for one line of the header."""

    def __init__(self, template: str) -> None:
        super().__init__(template)
        if _CONTROL.search(template):
            raise ValueError("a header line of a mail must not contain a line break or control character")

    def fill(self, values: Values, form: Callable[[str], str] = str) -> str:
        made = super().fill(values, form)
        if _CONTROL.search(made):
            raise Poisoned("MAIL_CONTROL", "a value for the header has a line break or control character")
        return made


class Mailbox:
    """One address, alone or as `Name <address>`. Each part is a separate template, so no value can turn one
    into the other. ValueError for anything else."""

    def __init__(self, template: str) -> None:
        found = _MAILBOX.fullmatch(template.strip())
        if found is None:
            raise ValueError("an address looks like name@example.com or Name <name@example.com>")
        self._name = Line(found["name"] or "")
        self._address = Line((found["named"] or found["bare"]).strip())
        if not self.names and not _is_address(self._address.literal):
            raise ValueError("this is not an address")

    @property
    def names(self) -> list[str]:
        return [*self._name.names, *self._address.names]

    def address(self, values: Values) -> str:
        """Poisoned MAIL_ADDRESS if the value is not exactly one address."""
        made = self._address.fill(values)
        if not _is_address(made):
            raise Poisoned("MAIL_ADDRESS", "the value is not one plain ASCII mail address")
        return made

    def head(self, values: Values) -> str:
        name, address = self._name.fill(values), self.address(values)
        return formataddr((name, address)) if _is_plain(name) else f"{_encoded(name)} <{address}>"


def _is_address(text: str) -> bool:
    return bool(_ADDRESS.fullmatch(text)) and len(text) <= 254 and len(text.partition("@")[0]) <= 64


class Letter(Struct, frozen=True):
    """One message: the two addresses of the envelope, the bytes, and the values in it."""

    sender: str
    recipient: str = ""
    message: bytes = b""
    values: tuple[str, ...] = ()

    def dump(self) -> bytes:
        return f"MAIL FROM:<{self.sender}>\r\nRCPT TO:<{self.recipient}>\r\n\r\n".encode() + self.message


class Form:
    """The templates of a sync, which make a letter from a row. ValueError if one is wrong."""

    def __init__(
        self, sender: str, to: str, subject: str, body: str, html: str | None, reply_to: str | None
    ) -> None:
        self.sender, self.to = Mailbox(sender), Mailbox(to)
        self._reply_to = Mailbox(reply_to) if reply_to is not None else None
        self._subject, self._body = Line(subject), Text(body)
        self._html = Text(html) if html is not None else None

    @cached_property
    def names(self) -> set[str]:
        parts = (self.sender, self.to, self._reply_to, self._subject, self._body, self._html)
        return {name for part in parts if part is not None for name in part.names}

    def fit(self, known: Sequence[str]) -> None:
        """DefinitionError MAIL_PLACEHOLDER for a field that the rows lack."""
        for name in sorted(self.names - {*known, FIELDS}):
            raise DefinitionError(
                "MAIL_PLACEHOLDER", f"there is no field {name!r} here", hint=f"fields: {', '.join(known)}"
            )

    def letter(self, keys: Sequence[str], row: Sequence[Any], identity: str, moment: str) -> Letter:
        """The letter of a row: its key's values (named `keys`), then its fields as one JSON object. The same
        `identity` gives the same Message-ID; `moment` is ISO 8601. Poisoned if a value does not fit its
        place."""
        try:
            return self._letter(_values(keys, row), sha256(identity.encode()).hexdigest()[:32], moment)
        except UnicodeEncodeError:
            raise Poisoned(
                "NOT_UNICODE", "a text holds half a surrogate pair, which UTF-8 cannot encode"
            ) from None

    def _letter(self, values: Values, name: str, moment: str) -> Letter:
        sender = self.sender.address(values)
        head = {
            "Message-ID": f"<{name}@{sender.rpartition('@')[2]}>",
            "From": self.sender.head(values),
            "To": self.to.head(values),
            "Subject": _encoded(self._subject.fill(values)),
            "Auto-Submitted": "auto-generated",
        }
        if self._reply_to is not None:
            head["Reply-To"] = self._reply_to.head(values)
        if moment:
            head["Date"] = format_datetime(datetime.fromisoformat(moment))
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        own = tuple(value for name, value in values.items() if name != FIELDS)
        return Letter(sender, self.to.address(values), lines.encode() + self._content(values, name), own)

    def _content(self, values: Values, name: str) -> bytes:
        content = EmailMessage(policy=SMTP)
        content.set_content(_lines(self._body.fill(values)), cte="quoted-printable")
        if self._html is not None:
            marked_up = _lines(self._html.fill(values, html.escape))
            content.add_alternative(marked_up, subtype="html", cte="quoted-printable")
            content.set_boundary(f"={name}=")
        return content.as_bytes()


def _values(keys: Sequence[str], row: Sequence[Any]) -> dict[str, str]:
    """The values of a row as texts, by name."""
    members = _members.decode(row[-1])
    made = {name: _plain(bytes(value)) for name, value in members.items()}
    return made | dict(zip(keys, map(text, row), strict=False)) | {FIELDS: row[-1]}


def _plain(value: bytes) -> str:
    if value == b"null":
        return ""
    return msgspec.json.decode(value, type=str) if value.startswith(b'"') else value.decode()


def _lines(body: str) -> str:
    """A text body. Poisoned if a mail cannot contain it unchanged."""
    if _CONTROL_IN_TEXT.search(body):
        raise Poisoned(
            "MAIL_CONTROL",
            "a value has a control character that a mail cannot contain; lines must end with \\n alone",
        )
    return body


def _encoded(line: str) -> str:
    """A header line for this text, encoded if needed."""
    return line if _is_plain(line) else Header(line, "utf-8", maxlinelen=75).encode(linesep="\r\n")


def _is_plain(line: str) -> bool:
    return line.isascii() and line == line.strip() and "=?" not in line and len(line) <= 60
