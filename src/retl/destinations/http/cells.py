"""Makes functions that build rows from a shape, which is data: the `$` words and nothing else.

A text that begins with `$` is replaced by a value of the row. `$name` is a destination field, `$fields` an
object of all fields except the key's, `$row` an object of key and fields, `$key` the key, `$row_no` the row's
number in its request as text ("0", "1", …), `$ref` the external id of the row, from an earlier answer, and
`$version` the version that its object must still have. `$others` is an object of the fields that the request
names nowhere else. `$field.row` is a field with one of these names. Inside a text a word has braces:
`urn:person:{$key}`; such a
text is null if one of its values is. `$$` is a dollar sign. An object with one member that begins with `$` is
converted: `$json` is its JSON as a text, `$base64` the base64 of that, `$merge` one object of a list of
objects, `$path` a path, `$only` an object of those of the listed fields that the row has. `{$each: $others,
as: {field: $name, value: $value}}` is a list with an item for each member of an object, and nothing if it has
none. In a path the same words can be anywhere, each value escaped for its place; there `{name}` is a field
too, and `/Orders($predicate)` has the whole key as OData 4 writes it (`$predicate_v2`: OData 2). Names of
members and GraphQL documents (`query`) are constants. The fields' JSON comes from SQL and is copied
unchanged, so digits are kept.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from retl.destinations.http import escape, texts
from retl.errors import DefinitionError, Poisoned
from retl.model import Definition
from retl.net.lookup import text

OMIT = object()
FORMS = ("$json", "$base64", "$merge", "$path", "$only", "$each")
_NULL = msgspec.Raw(b"null")

# the key's values, then the external id and the version (JSON) if the cells need them, then the fields as one
# JSON object (str); a delete has no fields
Row = tuple[Any, ...]
Members = dict[str, msgspec.Raw]
Cell = Callable[[Row, int, Members], Any]

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
exact = msgspec.json.Encoder(decimal_format="number")  # Decimals keep their digits


class Cast(Definition):
    """How a target takes values if not in JSON's own forms. `nulls` replaces an empty field: null, `omit`
    (it is not sent), or a text such as "" or "#N/A"; one for all fields, or one for each of some fields, with
    "*" for the others. `keys` is for the key's values, `refs` for external
    ids, which are stored as text."""

    values: Literal["native", "string"] = "native"
    keys: Literal["native", "string"] = "native"
    refs: Literal["string", "integer"] = "string"
    nulls: str | dict[str, str | None] | None = None

    def apply(self, name: str, value: msgspec.Raw) -> Any:
        """The member with this name as it is sent, with its digits unchanged; OMIT if it is not sent."""
        plain = bytes(value)
        if plain == b"null":
            null = self.nulls
            if isinstance(null, dict):
                null = null.get(name, null.get("*"))
            return OMIT if null == "omit" else null
        if self.values == "native" or plain.startswith(b'"'):
            return value
        return plain.decode()


class NoField(DefinitionError):
    """HTTP_PLACEHOLDER: a shape or path names a field that the rows lack."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        hint = f"fields: {', '.join(known)}; `$$` is a dollar sign"
        super().__init__("HTTP_PLACEHOLDER", f"there is no field {name!r} here", hint=hint)
        self.name = name


class Cells:
    """Makes cells for rows with these key and other fields, with external ids if `refs` and with versions if
    `versions`. `others` are the fields for `$others`. `members` is True if a cell needs single fields.

    NoField for a field that the rows lack.
    """

    def __init__(
        self,
        keys: Sequence[str],
        fields: Sequence[str],
        cast: Cast,
        *,
        refs: bool = False,
        versions: bool = False,
        others: Sequence[str] = (),
    ) -> None:
        self.keys, self.fields, self._others = tuple(keys), frozenset(fields), tuple(others)
        self._version_at = len(self.keys) + refs
        self.head = self._version_at + versions  # the position of the fields, if a row has any
        self._cast = None if (cast.values, cast.nulls) == ("native", None) else cast
        self._ref: Callable[[str], Any] = int if cast.refs == "integer" else str
        self._key: Callable[[Any], Any] = text if cast.keys == "string" else lambda value: value
        self.members = self._cast is not None

    def make(self, shape: Any) -> Cell:
        """The function that makes this part of the shape for a row; OMIT = the row lacks it."""
        match shape:
            case {"$json": inner, **others} if not others:
                return self._text_of(self.make(inner), bytes.decode)
            case {"$base64": inner, **others} if not others:
                return self._text_of(self.make(inner), lambda whole: b64encode(whole).decode())
            case {"$path": str(path), **others} if not others:
                return self.path(path)
            case {"$merge": [*parts], **others} if not others:
                cells = [self.make(part) for part in parts]
                return lambda row, n, members: _joined([cell(row, n, members) for cell in cells])
            case {"$only": [*names], **others} if not others:
                return self._some([str(name) for name in names])
            case {"$each": inner, "as": item, **others} if not others:
                return _each(self.make(inner), _item(item))
            case dict():
                pairs = [(str(name), self._member(str(name), part)) for name, part in shape.items()]
                return lambda row, n, members: {
                    name: value for name, cell in pairs if (value := cell(row, n, members)) is not OMIT
                }
            case list() | tuple():
                cells = [self.make(part) for part in shape]
                return lambda row, n, members: [
                    value for cell in cells if (value := cell(row, n, members)) is not OMIT
                ]
            case "$fields" if self._cast is not None:
                return self._cast_fields
            case "$fields":
                return lambda row, n, members: msgspec.Raw(row[-1])
            case "$row":
                return self._whole
            case "$key" if len(self.keys) == 1:
                return lambda row, n, members: self._key(row[0])
            case "$others":
                return self._some(self._others)
            case "$ref":
                return lambda row, n, members: self._ref(row[len(self.keys)])
            case "$version":
                return lambda row, n, members: msgspec.Raw(row[self._version_at])
            case "$row_no":
                return lambda row, n, members: str(n)
            case str() if shape.startswith("$") and not shape.startswith("$$"):
                return self._field(shape[1:].removeprefix("field."))
            case str():
                return self._text(shape)
            case _:
                return lambda row, n, members: shape

    def path(self, path: str) -> Cell:
        """An address in which each value of the row stays in its place."""
        return _together([self.part(piece) for piece in texts.address(path)])

    def part(self, piece: texts.Piece) -> Callable[[Row, int, Members], str]:
        """A piece of an address."""
        if isinstance(piece, str):
            return lambda row, n, members: piece
        if piece.name in texts.PREDICATES:
            width, v2 = len(self.keys), piece.name == "$predicate_v2"
            return lambda row, n, members: escape.predicate(self.keys, row[:width], v2=v2)
        cell = self._uncast(piece.name)
        return lambda row, n, members: piece.escaped(_plain(cell(row, n, members)) or "")

    def header(self, value: str) -> Callable[[Row, int, Members], str]:
        """The value of a header."""
        pieces = texts.of_header(value)
        if pieces[0] or len(pieces) == 1:
            self._refuse_unfilled(value)

        def made(piece: texts.Piece) -> Callable[[Row, int, Members], str]:
            if isinstance(piece, str):
                return lambda row, n, members: piece
            cell, escaped = self._uncast(piece.name), escape.quoted if piece.place else escape.header
            return lambda row, n, members: escaped(_plain(cell(row, n, members)) or "")

        return _together([made(piece) for piece in pieces])

    def constants(self, value: Any, member: str | None = None) -> Any:
        """A value that is the same for all rows. DefinitionError if it has a placeholder."""
        if isinstance(value, dict):
            return {name: self.constants(part, name) for name, part in value.items()}
        if isinstance(value, list | tuple):
            return [self.constants(part) for part in value]
        if not isinstance(value, str):
            return value
        pieces = texts.inside(value)
        whole = value.startswith("$") and not value.startswith("$$")
        near = () if texts.is_document(member, value) else texts.unfilled(value, {*self.keys, *self.fields})
        for name in [value] if whole else map(str, pieces[1::2]) if len(pieces) > 1 else near:
            raise texts.refused(
                name,
                "is in an `envelope`, which is the same for all rows",
                f"a value of a row belongs into `row`; for a dollar sign write $${name.strip('{}$')}",
            )
        return pieces[0]

    def _member(self, name: str, shape: Any) -> Cell:
        """A member of an object. DefinitionError if its name looks like a placeholder or a form."""
        if name in FORMS or len(texts.inside(name)) > 1:
            raise texts.refused(name, "is the name of a member, which is a constant")
        if not isinstance(shape, str) or not texts.is_document(name, shape):
            return self.make(shape)
        if len(pieces := texts.inside(shape)) > 1:
            raise texts.refused(str(pieces[1]), "is in a GraphQL document", "values go into its `variables`")
        return lambda row, n, members: pieces[0]

    def _text(self, shape: str) -> Cell:
        """A text with values in it: null if one of them is."""
        self._refuse_unfilled(shape)
        pieces = texts.inside(shape)
        if len(pieces) == 1:
            return lambda row, n, members: pieces[0]
        words = [piece for piece in pieces if isinstance(piece, texts.Word)]
        cells = [self._uncast(word.name) for word in words]
        inner = [texts.LANGUAGES.get(word.form or "", str) for word in words]
        names = [word.name.removeprefix("$").removeprefix("field.") for word in words]
        cast = self._cast

        def filled(row: Row, n: int, members: Members) -> Any:
            values = [_plain(cell(row, n, members)) for cell in cells]
            if None in values:
                return cast and cast.apply(names[values.index(None)], _NULL)
            made = [escaped(value or "") for escaped, value in zip(inner, values, strict=True)]
            return "".join(p for pair in zip(pieces[::2], [*made, ""], strict=True) for p in map(str, pair))

        return filled

    def _uncast(self, word: str) -> Cell:
        """A word inside a text, where an empty field is null whatever the cast writes for it."""
        cell, name = self.make(word), word[1:].removeprefix("field.")
        if word in ("$key", "$ref", "$version", "$row", "$row_no", "$fields") or name in self.keys:
            return cell
        return lambda row, n, members: members.get(name, OMIT)

    def _refuse_unfilled(self, value: str) -> None:
        for name in texts.unfilled(value, {*self.keys, *self.fields}):
            hint = f"write {{${name}}} for the value, $${name} for a dollar sign and {{ {name} }} for braces"
            raise texts.refused(name, "inside a text is not filled in", hint)

    def _text_of(self, cell: Cell, form: Callable[[bytes], str]) -> Cell:
        def made(row: Row, n: int, members: Members) -> Any:
            value = cell(row, n, members)
            return OMIT if value is OMIT else form(exact.encode(value))

        return made

    def _some(self, names: Sequence[str]) -> Cell:
        """An object of those of these fields that the row has, in this order."""
        self.members, cast = True, self._cast or Cast()

        def made(row: Row, n: int, members: Members) -> Any:
            found = ((name, cast.apply(name, members[name])) for name in names if name in members)
            return {name: value for name, value in found if value is not OMIT}

        return made

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
        return lambda row, n, members: cast.apply(name, members[name]) if name in members else OMIT

    def _cast_fields(self, row: Row, n: int, members: Members) -> dict[str, Any]:
        assert self._cast is not None
        made = ((name, self._cast.apply(name, value)) for name, value in members.items())
        return {name: value for name, value in made if value is not OMIT}

    def _whole(self, row: Row, n: int, members: Members) -> msgspec.Raw:
        key = exact.encode({name: self._key(value) for name, value in zip(self.keys, row, strict=False)})
        fields = b"{}"
        if len(row) > self.head:
            fields = (
                row[-1].encode() if self._cast is None else exact.encode(self._cast_fields(row, n, members))
            )
        return msgspec.Raw(key if fields == b"{}" else key[:-1] + b"," + fields[1:])


def _joined(objects: Sequence[Any]) -> dict[str, msgspec.Raw]:
    """Several objects as one. Poisoned if one is no object, or two have a member of the same name: a value
    must not replace a constant."""
    whole: dict[str, msgspec.Raw] = {}
    for part in (exact.encode(one) for one in objects if one is not OMIT):
        if not part.startswith(b"{"):
            raise Poisoned("NO_OBJECT", "a value that joins an object is none")
        members = _members.decode(part)
        if whole.keys() & members.keys():
            raise Poisoned("MEMBER_TWICE", "a value has a member that the object around it has, too")
        whole |= members
    return whole


def _item(shape: Any) -> Callable[[str, Any], Any]:
    """Makes an item of `$each` from the name and the value of a member. DefinitionError for other words."""
    match shape:
        case dict():
            pairs = [(str(name), _item(part)) for name, part in shape.items()]
            return lambda name, value: {one: made(name, value) for one, made in pairs}
        case list() | tuple():
            parts = [_item(part) for part in shape]
            return lambda name, value: [made(name, value) for made in parts]
        case "$name":
            return lambda name, value: name
        case "$value":
            return lambda name, value: value
        case str():
            pieces = texts.inside(shape)
            if len(pieces) > 1 or (shape.startswith("$") and not shape.startswith("$$")):
                word = str(pieces[1]) if len(pieces) > 1 else shape
                raise texts.refused(word, "is in an item of `$each`, which takes $name and $value")
            return lambda name, value: pieces[0]
    return lambda name, value: shape


def _each(cell: Cell, item: Callable[[str, Any], Any]) -> Cell:
    def made(row: Row, n: int, members: Members) -> Any:
        found = exact.encode(cell(row, n, members))
        if not found.startswith(b"{"):
            raise Poisoned("NO_OBJECT", "a value whose members are listed is no object")
        return [item(name, value) for name, value in _members.decode(found).items()] or OMIT

    return made


def _together(parts: Sequence[Callable[[Row, int, Members], str]]) -> Callable[[Row, int, Members], str]:
    return lambda row, n, members: "".join(part(row, n, members) for part in parts)


def _plain(value: Any) -> str | None:
    """A value as text; None if it is null or the row lacks it."""
    if value is None or value is OMIT or (isinstance(value, msgspec.Raw) and bytes(value) == b"null"):
        return None
    return text(value)
