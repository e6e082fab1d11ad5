"""Values as Avro's bytes. What writes a value is made once for each pair of a contract type and an Avro type.

It is for pairs that `avro.unfit` lets through, and refuses none itself.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Context
from typing import Any

from retl.values.types import Type

Write = Callable[[Any], bytes]
_NULLS = ("null", {"type": "null"})
_NAIVE, _EPOCH = datetime(1970, 1, 1), datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_DAY = date(1970, 1, 1).toordinal()
_WIDE = Context(prec=100)  # else Python rounds to 28 digits
_double, _float = struct.Struct("<d").pack, struct.Struct("<f").pack


def writer(type_: Type, avro: Any) -> Write:
    """What writes the cells "stored" of a contract type, and None where the Avro type takes null."""
    if not isinstance(avro, list):
        return _plain(type_, avro)
    (index,) = (number for number, one in enumerate(avro) if one not in _NULLS)
    some, write = whole(index), _plain(type_, avro[index])
    if len(avro) == 1:
        return lambda value: some + write(value)
    none = whole(1 - index)
    return lambda value: none if value is None else some + write(value)


def _plain(type_: Type, avro: Any) -> Write:
    match type_.name:
        case "integer" | "date" | "timestamp" | "timestamptz":
            return whole
        case "float":
            return _double
        case "boolean":
            return lambda value: b"\1" if value else b"\0"
        case "decimal":
            return _decimal(avro.get("scale", 0) - (type_.decimal_places or 0), avro.get("size"))
        case "list":
            return _array(writer(type_.item, avro["items"]))
        case _:
            return text


def stored(type_: Type) -> Callable[[Any], Any] | None:
    """What makes the cell "stored" of a Python value; None if both are the same."""
    match type_.name:
        case "date":
            return lambda value: value.toordinal() - _FIRST_DAY
        case "timestamp":
            return lambda value: _micros(value - _NAIVE)
        case "timestamptz":
            return lambda value: _micros(value - _EPOCH)
        case "uuid":
            return str
        case "decimal":
            return lambda value: int(_WIDE.scaleb(value, type_.decimal_places or 0))
        case _:
            return None


def _micros(gone: timedelta) -> int:
    return (gone.days * 86_400 + gone.seconds) * 1_000_000 + gone.microseconds


def whole(number: int) -> bytes:
    """An int or long: the sign is the lowest bit, and each byte has seven bits, the lowest first."""
    number = (number << 1) ^ (number >> 63)
    if number < 128:
        return bytes((number,))
    made = bytearray()
    while number > 127:
        made.append(number & 127 | 128)
        number >>= 7
    made.append(number)
    return bytes(made)


def text(value: str) -> bytes:
    """UnicodeEncodeError for a half of a surrogate pair."""
    return _sized(value.encode())


def _sized(content: bytes) -> bytes:
    return whole(len(content)) + content


def _decimal(places: int, size: int | None) -> Write:
    """The digits as one whole number, with so many more places, in two's complement: of so many bytes, or of
    as few as possible."""
    factor: int = 10**places

    def write(digits: int) -> bytes:
        number = digits * factor
        if size is not None:
            return number.to_bytes(size, "big", signed=True)
        bits = (number if number >= 0 else ~number).bit_length()
        return _sized(number.to_bytes(bits // 8 + 1, "big", signed=True))

    return write


def _array(write: Write) -> Write:
    """One block of all items, and an empty one that ends it."""

    def written(values: list[Any]) -> bytes:
        items = b"".join([write(value) for value in values])
        return whole(len(values)) + items + b"\0" if values else b"\0"

    return written


def default(avro: Any, value: Any) -> bytes:
    """The default of a field, as its schema has it in JSON. ValueError if it cannot be written."""
    try:
        return _default(avro, value)
    except (LookupError, TypeError, AttributeError, struct.error, UnicodeError) as problem:
        raise ValueError("this default does not fit its type") from problem


def _default(avro: Any, value: Any) -> bytes:
    if isinstance(avro, list):
        return _of_union(avro, value)
    about: Mapping[str, Any] = avro if isinstance(avro, dict) else {"type": avro}
    match about["type"], value:
        case "null", None:
            return b""
        case "boolean", bool():
            return b"\1" if value else b"\0"
        case "int" | "long", int():
            return whole(value)
        case "float", int() | float():
            return _float(value)
        case "double", int() | float():
            return _double(value)
        case "string", str():
            return text(value)
        case "bytes", str():
            return _sized(value.encode("latin-1"))
        case "fixed", str():
            return value.encode("latin-1")
        case "enum", str():
            return whole(about["symbols"].index(value))
        case "array" | "map", [] | {}:
            return b"\0"
        case _:
            raise ValueError("no default of this type is written")


def _of_union(branches: list[Any], value: Any) -> bytes:
    for number, one in enumerate(branches):
        try:
            return whole(number) + default(one, value)
        except ValueError:
            continue
    raise ValueError("the default fits no branch of the union")
