"""Makes functions that build rows from a shape, which is data: the `$` words and nothing else.

A text that begins with `$` is replaced by a value of the row; everything else is a constant. `$name` is a
destination field, `$fields` an object of all fields except the key's, `$row` an object of key and fields,
`$key` the key, `$row_no` the row's number in its request as text ("0", "1", …), `$ref` the external id of the
row, from an earlier answer. `$field.row` is a field with one of these names; `$$` is a dollar sign at the
start of a text. An object with one member that begins with `$` is converted: `$base64` is the base64 of its
JSON, `$merge` one object of a list of objects, `$path` a path. In a path the same words can be anywhere, each
value percent-encoded; there `{name}` is a field too. The fields' JSON comes from SQL and is copied unchanged,
so digits are kept.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import Any, Literal
from urllib.parse import quote

import msgspec

from retl.errors import DefinitionError, Poisoned
from retl.model import Definition
from retl.net.lookup import text

_WORD = re.compile(r"\$\$|(\$[A-Za-z_]\w*)|\{([^{}/]+)\}")
OMIT = object()
OF_ALL_ROWS = ("$keys", "$refs", "$body")
FORMS = ("$base64", "$merge", "$path")

# the key's values, then the external id if the cells need it, then the fields as one JSON object (str);
# a delete has no fields
Row = tuple[Any, ...]
Members = dict[str, msgspec.Raw]
Cell = Callable[[Row, int, Members], Any]

exact = msgspec.json.Encoder(decimal_format="number")  # Decimals keep their digits


class Cast(Definition):
    """How a target takes values if not in JSON's own forms. `nulls` replaces an empty field: null, `omit`
    (it is not sent), or a text such as "" or "#N/A". `keys` is for the key's values, `refs` for external
    ids, which are stored as text."""

    values: Literal["native", "string"] = "native"
    keys: Literal["native", "string"] = "native"
    refs: Literal["string", "integer"] = "string"
    nulls: str | None = None

    def apply(self, value: msgspec.Raw) -> Any:
        """A member as it is sent, with its digits unchanged; OMIT if it is not sent."""
        plain = bytes(value)
        if plain == b"null":
            return OMIT if self.nulls == "omit" else self.nulls
        if self.values == "native" or plain.startswith(b'"'):
            return value
        return plain.decode()


class NoField(DefinitionError):
    """HTTP_PLACEHOLDER: a shape or path names a field that the rows lack."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        hint = f"fields: {', '.join(known)}; `$$` is a dollar sign"
        super().__init__("HTTP_PLACEHOLDER", f"there is no field {name!r} here", hint=hint)
        self.name = name


def split(path: str) -> list[str]:
    """A path as a list: constants, and words at odd positions; {name} becomes `$field.name`."""
    parts, constant, end = list[str](), "", 0
    for found in _WORD.finditer(path):
        constant += path[end : found.start()]
        end = found.end()
        if found[0] == "$$":
            constant += "$"
        else:
            parts += [constant, found[1] or f"$field.{found[2]}"]
            constant = ""
    return [*parts, constant + path[end:]]


class Cells:
    """Makes cells for rows with these key and other fields, and with external ids if `refs`. `members` is
    True if a cell needs single fields.

    NoField for a field that the rows lack.
    """

    def __init__(self, keys: Sequence[str], fields: Sequence[str], cast: Cast, *, refs: bool = False) -> None:
        self.keys, self.fields = tuple(keys), frozenset(fields)
        self.head = len(self.keys) + refs  # the position of the fields, if a row has any
        self._cast = None if (cast.values, cast.nulls) == ("native", None) else cast
        self._ref: Callable[[str], Any] = int if cast.refs == "integer" else str
        self._key: Callable[[Any], Any] = text if cast.keys == "string" else lambda value: value
        self.members = self._cast is not None

    def make(self, shape: Any) -> Cell:
        """The function that makes this part of the shape for a row; OMIT = the row lacks it."""
        match shape:
            case {"$base64": inner, **others} if not others:
                cell = self.make(inner)
                return lambda row, n, members: b64encode(exact.encode(cell(row, n, members))).decode()
            case {"$path": str(path), **others} if not others:
                return self.path(path)
            case {"$merge": [*parts], **others} if not others:
                cells = [self.make(part) for part in parts]
                return lambda row, n, members: _joined([cell(row, n, members) for cell in cells])
            case dict():
                pairs = [(str(name), self.make(part)) for name, part in shape.items()]
                return lambda row, n, members: {
                    name: value for name, cell in pairs if (value := cell(row, n, members)) is not OMIT
                }
            case list() | tuple():
                cells = [self.make(part) for part in shape]
                return lambda row, n, members: [
                    value for cell in cells if (value := cell(row, n, members)) is not OMIT
                ]
            case str() if shape.startswith("$$"):
                return lambda row, n, members: shape[1:]
            case "$fields" if self._cast is not None:
                return self._cast_fields
            case "$fields":
                return lambda row, n, members: msgspec.Raw(row[-1])
            case "$row":
                return self._whole
            case "$key" if len(self.keys) == 1:
                return lambda row, n, members: self._key(row[0])
            case "$ref":
                return lambda row, n, members: self._ref(row[len(self.keys)])
            case "$row_no":
                return lambda row, n, members: str(n)
            case str() if shape.startswith("$"):
                return self._field(shape[1:].removeprefix("field."))
            case _:
                return lambda row, n, members: shape

    def path(self, path: str) -> Cell:
        """A path in which each value of the row is one percent-encoded segment."""
        parts = [self.segment(part) if n % 2 else part for n, part in enumerate(split(path))]
        return lambda row, n, members: "".join(
            part if isinstance(part, str) else part(row, n, members) for part in parts
        )

    def segment(self, word: str) -> Callable[[Row, int, Members], str]:
        """A `$` word as part of a path."""
        cell = self.make(word)
        return lambda row, n, members: _segment(cell(row, n, members))

    def _field(self, name: str) -> Cell:
        if name in self.keys:
            index = self.keys.index(name)
            return lambda row, n, members: self._key(row[index])
        if name not in self.fields:
            raise NoField(name, [*self.keys, *sorted(self.fields)])
        self.members = True
        cast = self._cast
        if cast is None:
            return lambda row, n, members: members.get(name, OMIT)
        return lambda row, n, members: cast.apply(members[name]) if name in members else OMIT

    def _cast_fields(self, row: Row, n: int, members: Members) -> dict[str, Any]:
        assert self._cast is not None
        made = ((name, self._cast.apply(value)) for name, value in members.items())
        return {name: value for name, value in made if value is not OMIT}

    def _whole(self, row: Row, n: int, members: Members) -> msgspec.Raw:
        key = exact.encode({name: self._key(value) for name, value in zip(self.keys, row, strict=False)})
        fields = b"{}"
        if len(row) > self.head:
            fields = (
                row[-1].encode() if self._cast is None else exact.encode(self._cast_fields(row, n, members))
            )
        return msgspec.Raw(key if fields == b"{}" else key[:-1] + b"," + fields[1:])


def _joined(objects: Sequence[Any]) -> msgspec.Raw:
    """Several objects as one; equal names are not detected."""
    inside = [exact.encode(one)[1:-1] for one in objects]
    return msgspec.Raw(b"{" + b",".join(part for part in inside if part) + b"}")


def _segment(value: Any) -> str:
    """A value as part of a path. Poisoned if it would change the path: empty, `.` or `..`, which servers
    resolve even if they are percent-encoded."""
    missing = value is None or value is OMIT or (isinstance(value, msgspec.Raw) and bytes(value) == b"null")
    plain = "" if missing else text(value)
    if plain in ("", ".", ".."):
        raise Poisoned("NO_PATH", "a value of the path is empty, null or a dot segment")
    return quote(plain, safe="")
