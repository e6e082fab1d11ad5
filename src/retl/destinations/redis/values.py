"""How a row is kept as the value of a Redis key, and the digests by which an edit of it is noticed.

A string is one value: a JSON object, or one field. A hash has an entry per field, and may have others that
are not ours. What a key holds is a mapping of names to bytes, None if there is no key; a string has one name.
Pure: replies in, commands out.
"""

from __future__ import annotations

import base64
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from retl.destinations.batch import Field, Shape
from retl.destinations.redis.comparison import object_differs
from retl.destinations.redis.resp import Command
from retl.destinations.value import ABSENT, RAW, Held, Texts, Value

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Stored(Value):
    """The value of a key: how it is read, and how it is kept as an image."""

    digested: tuple[str, ...]  # what its digests are of

    @abstractmethod
    def look(self, key: str) -> Command:
        """The command that reads everything the key holds."""

    @abstractmethod
    def held(self, reply: Any) -> Held:
        """What the key holds, from the reply to `look` or from the script."""

    def image(self, held: Mapping[str, bytes], *, whole: bool) -> str:
        """What the key holds, as a JSON object of texts; bytes that are no text stand in an object."""
        names = held if whole else self.ours
        return json.dumps({name: _shown(held.get(name)) for name in names})


class String(Stored):
    """A JSON object of all fields, or one field. Everything of it is replaced at once, so it has one digest
    and one strategy."""

    def __init__(self, shape: Shape, only: str | None) -> None:
        super().__init__(shape)
        self.only = only
        self.names = self.ours = (only or "value",)
        self.digested = ("value",)  # whatever it is made of
        self._json = json_fields(shape)
        self._compared = {field.name for field in shape.compared}

    def field(self, name: str) -> Field:
        fields = self.shape.compared or self.shape.fields
        return fields[0] if self.only is None else next(one for one in fields if one.name == self.only)

    def stands_for(self, name: str) -> Sequence[str]:
        return [name] if self.only is not None else [one.name for one in self.shape.compared]

    def texts(self, document: str) -> Texts:
        if self.only is None:
            return {"value": document.encode()}
        return {self.only: field_texts(document, self._json)[self.only]}

    def look(self, key: str) -> Command:
        return ("GET", key)

    def held(self, reply: Any) -> Held:
        return None if reply is None else {self.names[0]: reply}

    def image(self, held: Mapping[str, bytes], *, whole: bool) -> str:
        (name,) = self.names  # a field of the sync, so it is text
        return msgspec.json.encode({name: _shown(held[name])}).decode()

    def same(self, name: str, held: bytes | None, sent: bytes | None) -> bool:
        if held == sent or self.only is not None or held is None or sent is None:
            return held == sent
        return object_differs(held, sent.decode(), ("?",), self._compared) == ()

    def absent_is_a_value(self, seen: bytes | None) -> bool:
        return self.only is not None and seen == ABSENT

    def newest(self, held: Mapping[str, bytes], name: str) -> str | None:
        try:
            found = _FIELDS.decode(held["value"]).get(name)
        except (msgspec.DecodeError, UnicodeError):
            return None
        return None if found is None else _unquoted(bytes(found))


class Hash(Stored):
    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.names = self.digested = tuple(field.name for field in shape.compared)
        compared = set(self.names)
        self.ours = (*self.names, *(field.name for field in shape.fields if field.name not in compared))
        self.rest = shape.digests == "row"
        self._fields = {field.name: field for field in shape.fields}
        self._json = json_fields(shape)

    def field(self, name: str) -> Field:
        return self._fields[name]

    def stands_for(self, name: str) -> Sequence[str]:
        return [name]

    def texts(self, document: str) -> Texts:
        return field_texts(document, self._json)

    def look(self, key: str) -> Command:
        return ("HGETALL", key)

    def held(self, reply: Any) -> Held:
        if not reply:
            return None
        entries = iter(reply)
        return {name.decode(errors=RAW): text for name, text in zip(entries, entries, strict=True)}


def field_texts(document: str, json_fields: frozenset[str]) -> Texts:
    """Each field as Redis stores it: text unquoted, other types as JSON, NULL as None."""
    found: Texts = {}
    for name, raw in _FIELDS.decode(document).items():
        text = bytes(raw)
        if text == b"null":
            found[name] = None
        elif text.startswith(b'"') and name not in json_fields:
            found[name] = msgspec.json.decode(text, type=str).encode()
        else:
            found[name] = text
    return found


def json_fields(shape: Shape) -> frozenset[str]:
    return frozenset(field.name for field in shape.fields if field.type.name == "json")


def read_image(before: str) -> dict[str, bytes | None]:
    """The inverse of `Value.image`."""
    return {
        name: None
        if text is None
        else base64.b64decode(text["base64"])
        if isinstance(text, dict)
        else text.encode()
        for name, text in json.loads(before).items()
    }


def _shown(text: bytes | None) -> str | dict[str, str] | None:
    if text is None:
        return None
    try:
        return text.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(text).decode()}


def _unquoted(raw: bytes) -> str | None:
    if raw == b"null":
        return None
    return msgspec.json.decode(raw, type=str) if raw.startswith(b'"') else raw.decode()
