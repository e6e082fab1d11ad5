"""The values of rows as attributes of DynamoDB, and back. Pure.

A text is S, a number N with all its digits, a boolean BOOL, a list L and an object M. An empty field is no
attribute: an index could not hold the type NULL. What DynamoDB would keep as another value is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from decimal import Context, Decimal, Inexact, InvalidOperation, Overflow, Subnormal
from typing import Any, NoReturn

from retl.destinations.batch import Shape
from retl.values.types import Type

Attribute = dict[str, Any]
Item = dict[str, Attribute]

LARGEST = 400 * 1024  # bytes of an item, names and values
KEY_BYTES = (2048, 1024)  # of the partition key, and of the sort key
REASONS = {
    "KEY_EMPTY": "the key is an empty text",
    "KEY_TOO_LONG": "the key has more than 2048 bytes, or the sort key more than 1024",
    "NOT_EXACT": "DynamoDB keeps 38 digits of a number, between 1E-130 and 9.9E+125, and no negative zero",
    "NOT_UNICODE": "a text is not valid Unicode",
    "TOO_LARGE": "the item would be larger than 400 KB",
}
_DIGITS = 38
_WHOLE = 10**_DIGITS
_NUMBERS = Context(prec=_DIGITS, Emin=-130, Emax=125, traps=[Inexact, Overflow, Subnormal, InvalidOperation])
_PLAIN = 40  # a number with a larger exponent is written with one


class Refused(Exception):
    """A row that cannot be an item. `code` is one of REASONS."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def _no_number(_: str) -> NoReturn:
    raise Refused("NOT_EXACT")


def fields(document: str) -> dict[str, Attribute | None]:
    """The attributes of a JSON object; None for a field that is empty. Refused."""
    values = json.loads(document, parse_float=Decimal, parse_constant=_no_number)
    return {name: None if value is None else attribute(value) for name, value in values.items()}


def attribute(value: Any) -> Attribute:
    match value:
        case None:
            return {"NULL": True}  # only inside of lists and objects
        case bool():
            return {"BOOL": value}
        case int() | Decimal():
            return {"N": number(value)}
        case str():
            return {"S": text(value)}
        case list():
            return {"L": [attribute(one) for one in value]}
        case _:
            return {"M": {text(name): attribute(one) for name, one in value.items()}}


def number(value: int | Decimal) -> str:
    """One text for each number: 1.10 and 1.1 are the same key."""
    if isinstance(value, int) and -_WHOLE < value < _WHOLE:
        return str(value)
    try:
        found = _NUMBERS.normalize(Decimal(value))
    except (Inexact, Overflow, Subnormal, InvalidOperation):
        raise Refused("NOT_EXACT") from None
    if not found and found.is_signed():
        raise Refused("NOT_EXACT")
    return format(found, "f") if abs(found.adjusted()) < _PLAIN else str(found)


def text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Refused("NOT_UNICODE") from None
    return value


def key_of(shape: Shape, row: Sequence[Any]) -> Item:
    """The key of a row, which begins with its values. Refused."""
    return {
        field.name: _key(value, number)
        for number, (field, value) in enumerate(zip(shape.key, row, strict=False))
    }


def key_in(shape: Shape, item: Item) -> Item:
    """The key of an item, as `key_of` makes it, however the answer writes its numbers."""
    return {
        one.name: {"N": number(Decimal(found["N"]))} if "N" in (found := item[one.name]) else found
        for one in shape.key
    }


def _key(value: Any, position: int) -> Attribute:
    if isinstance(value, int | Decimal):
        return {"N": number(value)}
    written = text(_key_text(value))
    if not written:
        raise Refused("KEY_EMPTY")
    if len(written.encode()) > KEY_BYTES[position]:
        raise Refused("KEY_TOO_LONG")
    return {"S": written}


def _key_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return value.isoformat() if isinstance(value, date | datetime) else str(value)


def key_kind(type_: Type) -> str | None:
    """The type of a key's attribute: S or N. None if no key can have this type."""
    if type_.name in ("integer", "decimal"):
        return "N"
    return "S" if type_.name in ("string", "uuid", "date", "timestamp", "timestamptz") else None


def key_value(attribute: Attribute, type_: Type) -> str:
    """The text of a key's value, as keys are written everywhere."""
    if "N" in attribute and type_.name == "decimal":
        return format(Decimal(attribute["N"]), f".{type_.decimal_places}f")
    return str(next(iter(attribute.values())))


def size(item: Mapping[str, Attribute]) -> int:
    """About the bytes that DynamoDB counts."""
    return sum(len(name.encode()) + _size(one) for name, one in item.items())


def _size(one: Attribute) -> int:
    ((kind, value),) = one.items()
    match kind:
        case "S":
            return len(value.encode())
        case "N":
            return (len(value) + 1) // 2 + 1
        case "L":
            return 3 + sum(1 + _size(part) for part in value)
        case "M":
            return 3 + len(value) + size(value)
        case _:
            return 1


def plain(one: Attribute | None) -> Any:
    """The value of an attribute as Python has it."""
    if one is None:
        return None
    ((kind, value),) = one.items()
    match kind:
        case "N":
            return Decimal(value)
        case "NULL":
            return None
        case "L":
            return [plain(part) for part in value]
        case "M":
            return {name: plain(part) for name, part in value.items()}
        case "NS":
            return {Decimal(part) for part in value}
        case _:
            return value


def same(held: Attribute | None, sent: Attribute | None) -> bool:
    """Whether both are the same value of the same type. What others wrote as NULL is an empty field."""
    if sent is None or held is None:
        return sent is None and (held is None or "NULL" in held)
    return held.keys() == sent.keys() and plain(held) == plain(sent) and not _mixed(held, sent)


def _mixed(held: Attribute, sent: Attribute) -> bool:
    """Whether a boolean and a number that Python calls equal are in the same place: True is 1."""
    if held.keys() != sent.keys():
        return True
    ((kind, ours),) = sent.items()
    theirs = held[kind]
    if kind == "L":
        return any(_mixed(a, b) for a, b in zip(theirs, ours, strict=True))
    return kind == "M" and any(_mixed(theirs[name], one) for name, one in ours.items())
