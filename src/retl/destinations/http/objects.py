"""An object of the target, as answers show it: its fields in one form, and its version.

Texts of answers and of rows become the same bytes if they mean the same: a number whatever its digits, a time
whatever its zone. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal

import msgspec
from pydantic import Field as Option
from pydantic import model_validator

from retl.destinations.batch import Field, Shape
from retl.destinations.http.body import Endpoint
from retl.destinations.http.cells import Cast
from retl.destinations.value import SIZE, Held, Texts, Value
from retl.errors import Poisoned
from retl.model import Definition
from retl.net.auth import HeaderName
from retl.net.lookup import look
from retl.net.messages import Reply

VERSION = "\0version"  # no member of an object has this name
_NUMBERS = frozenset({"integer", "decimal", "float"})
LONGEST = 256  # bytes of a version that is remembered
_VERSIONS = msgspec.json.Encoder(decimal_format="number")
_EXACT = msgspec.json.Decoder(float_hook=Decimal)
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Read(Endpoint):
    """The question for the object of one row. `at` is the path of the object in the answer; a list must have
    one item, and an empty one, null, 404 and 410 mean that there is none. `answer` is its path in answers to
    writes, if it is another one. `fields` is the path of the object of fields inside it, and `names` the path
    of each field that stands elsewhere in it. `$names` in `path` are the names of key and fields, with commas
    between them."""

    method: Literal["GET", "POST"] = "GET"  # type: ignore[assignment]
    at: str = ""
    answer: str | None = None
    fields: str = ""
    names: dict[str, str] = Option(default={})


class Version(Definition):
    """What differs after every change of an object: the value at the path `at` of the object, an object of
    the values at several paths, or a `header` of the answer. Both a read and, as far as the target tells it,
    the answer to a write have it. `any` is what `$version` is where a sync may overwrite whatever is there;
    else a header or member that is `$version` is not sent then."""

    at: str | dict[str, str] | None = None
    header: HeaderName | None = None
    any: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Version:
        if (self.at is None) == (self.header is None):
            raise ValueError("`version` needs `at` or `header`: where an answer has it")
        return self


class Object(Value):
    """The fields of an object, and its version if the target has one. After their digests the version stands
    as it is: only an object that retl left as a whole has one."""

    rest = True

    def __init__(self, shape: Shape, read: Read | None, version: Version | None, cast: Cast) -> None:
        super().__init__(shape)
        self._read, self._version, self._cast = read or Read(path="/"), version, cast
        self.names = tuple(field.name for field in shape.compared)
        self.ours = tuple(field.name for field in shape.fields)
        self._fields = {field.name: field for field in shape.fields}

    def field(self, name: str) -> Field:
        return self._fields[name]

    def stands_for(self, name: str) -> Sequence[str]:
        return [name]

    def texts(self, document: str) -> Texts:
        return {name: self._form(name, _EXACT.decode(raw)) for name, raw in _MEMBERS.decode(document).items()}

    def newest(self, held: Mapping[str, bytes], name: str) -> str | None:
        found = held.get(name)
        if found is None or found.startswith((b"[", b"{")):
            return None
        return msgspec.json.decode(found, type=str) if found.startswith(b'"') else found.decode()

    def others(self, held: Mapping[str, bytes]) -> bytes:
        """The version, of a length that digests can have."""
        version = held.get(VERSION, b"")
        return version + b"\0" * (-len(version) % SIZE)

    def differing(self, held: Mapping[str, bytes], document: str) -> tuple[str, ...]:
        """The compared fields in which an object does not hold what the document has."""
        texts = self.texts(document)
        return tuple(name for name in self.names if name in texts and held.get(name) != texts[name])

    def version(self, seen: bytes | None) -> bytes | None:
        """The version of an object that we left with these digests; None if it is not known."""
        whole = seen is not None and len(seen) % SIZE == 0
        return seen[SIZE * len(self.names) :].rstrip(b"\0") or None if seen and whole else None

    def held(self, reply: Reply, *, written: bool = False) -> Held:
        """The object in an answer to a read, or to a write; None if there is none. ValueError if there are
        several. JSON that cannot be read is no object. Poisoned HTTP_NO_FIELDS as `values`."""
        found = self._found(reply, written=written)
        if found is None:
            return self._members({}, reply) if written else None
        held = self._members(found, reply)
        if not written:
            self._require_fields(found)
        return held

    def values(self, reply: Reply) -> dict[str, Any] | None:
        """Our fields of the object in an answer to a read, for people. Poisoned HTTP_NO_FIELDS if it is an
        answer of another kind, such as a list: its fields are not NULL, they are unknown."""
        found = self._found(reply, written=False)
        if found is None:
            return None
        self._require_fields(found)
        members = self._raw(found)
        return {name: members.get(name) for name in self.ours}

    def _found(self, reply: Reply, *, written: bool) -> dict[str, Any] | None:
        try:
            content = _EXACT.decode(reply.body) if reply.body.strip() else None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            content = None
        at = self._read.answer if written and self._read.answer is not None else self._read.at
        found = look(content, at)
        if found is None and not written and content and isinstance(content, dict):
            first = at.partition(".")[0]
            if first not in (*content, "*"):
                raise _unreadable(f"nothing at `{first}`")
        if isinstance(found, list):
            if len(found) > 1:
                raise ValueError("several objects")
            found = found[0] if found else None
        return found if isinstance(found, dict) else None

    def _require_fields(self, found: dict[str, Any]) -> None:
        """An object leaves out what is empty, but not the part that has its fields; nor all fields, the key,
        an id and the version together."""
        place, at = self._read.fields, self._version.at if self._version is not None else None
        if place:
            has_fields, lacking = isinstance(look(found, place), dict), f"no object at `{place}`"
        else:
            names = (*(one.name for one in self.shape.key), *self.ours, *self._read.names, "id")
            has_fields = not self.ours or self._read.names != {} or not found.keys().isdisjoint(names)
            has_fields = has_fields or (at is not None and _at(found, at) is not None)
            lacking = "none of the fields"
        if not has_fields:
            raise _unreadable(lacking)

    def _raw(self, found: dict[str, Any]) -> dict[str, Any]:
        inner = look(found, self._read.fields)
        members = {**found, **(inner if isinstance(inner, dict) else {})}
        return members | {name: look(found, path) for name, path in self._read.names.items()}

    def _members(self, found: dict[str, Any], reply: Reply) -> dict[str, bytes]:
        formed = {name: self._form(name, value) for name, value in self._raw(found).items()}
        held = {name: value for name, value in formed.items() if value is not None}
        if self._version is not None:
            told: Any = reply.headers.get(str(self._version.header).lower())
            if (at := self._version.at) is not None:
                told = _at(found, at)
            if told is not None:
                held[VERSION] = _VERSIONS.encode(told)
        if len(held.get(VERSION, b"")) > LONGEST:
            del held[VERSION]
        return held

    def _form(self, name: str, value: Any) -> bytes | None:
        """The bytes of a value of this field, the same for the same meaning; None for null."""
        nulls = self._cast.nulls
        null = nulls.get(name, nulls.get("*")) if isinstance(nulls, dict) else nulls
        if value is None or (isinstance(value, str) and value == null and null != "omit"):
            return None
        kind = self._fields[name].type.name if name in self._fields else ""
        if isinstance(value, str):
            value = _meant(kind, value)
        return msgspec.json.encode(_sorted(value))


def _unreadable(lacking: str) -> Poisoned:
    return Poisoned(
        "HTTP_NO_FIELDS",
        f"the answer to the read of one object has {lacking}",
        hint="the server answered something else than this object: check `read` and base_url",
    )


def _at(found: dict[str, Any], at: str | dict[str, str]) -> Any:
    """The version of an object, or None if a part of it is not there."""
    if isinstance(at, dict):
        parts = {name: _at(found, path) for name, path in at.items()}
        return None if None in parts.values() else parts
    told = found[at] if at in found else look(found, at)  # @odata.etag is one name
    return told if isinstance(told, str | int | Decimal) else None


def _meant(kind: str, text: str) -> Any:
    """What a text says in a field of this type: targets write numbers and times as texts of their own."""
    try:
        if kind in _NUMBERS and Decimal(text).is_finite():
            return Decimal(text)
        if kind == "timestamptz":
            time = datetime.fromisoformat(text)
            return time.astimezone(UTC).isoformat() if time.tzinfo is not None else text
    except (ArithmeticError, ValueError):
        return text
    return text == "true" if kind == "boolean" and text in ("true", "false") else text


def _sorted(value: Any) -> Any:
    """Members in the order of their names, numbers without zeros at their end."""
    if isinstance(value, dict):
        return {name: _sorted(value[name]) for name in sorted(value)}
    if isinstance(value, list):
        return [_sorted(one) for one in value]
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return value
    sign, digits, exponent = Decimal(str(value)).as_tuple()
    if not isinstance(exponent, int):
        return str(value)
    kept = "".join(map(str, digits)).lstrip("0")
    short = kept.rstrip("0")
    exponent += len(kept) - len(short)
    number = f"{'-' if sign and short else ''}{short or '0'}"
    return msgspec.Raw(f"{number}e{exponent}".encode() if short and exponent else number.encode())
