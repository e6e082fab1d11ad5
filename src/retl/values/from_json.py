"""How a JSON value becomes a value of a contract type: exactly, or not at all.

No value is rounded, and no number or text is taken for the other: only whole and decimal numbers may also be
texts, because many APIs protect digits that way. It knows no rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Context, Decimal
from functools import partial
from math import isfinite
from typing import Any, Literal

import msgspec
from msgspec import Struct

from retl.values.storage import storage_type
from retl.values.types import Type, TypeName

Text = str | list[Any] | None
Times = Literal["iso", "epoch_s", "epoch_ms"]
_WHOLE = re.compile(rb'("?)(-?(?:0|[1-9][0-9]{0,17}))\1')  # of any such text BIGINT has the number
_PLAIN = re.compile(rb'("?)(-?)(0|[1-9][0-9]{0,17})(?:\.([0-9]{1,18}))?\1')
_NUMBER = re.compile(rb'("?)(-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?0*([0-9]+))?)\1')
_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_FRACTION = re.compile(r"\.([0-9]{6})0+(?![0-9])")  # zeros beyond microseconds
_TOO_FINE = re.compile(r"[.,][0-9]{7}")
_STRING: msgspec.json.Decoder[str] = msgspec.json.Decoder(str)
_LIST: msgspec.json.Decoder[list[msgspec.Raw]] = msgspec.json.Decoder(list[msgspec.Raw])
_START = datetime(1970, 1, 1, tzinfo=UTC)


class Misfit(ValueError):
    """The value has another type, or the contract type cannot hold it."""


class Reader(Struct, frozen=True):
    """`read`: the bytes of a JSON value → the text that DuckDB casts to `column_type`, exactly; a list is a
    list of texts. It raises Misfit."""

    column_type: str
    read: Callable[[bytes], Text]

    @property
    def text_type(self) -> str:
        """The DuckDB type of the text."""
        return "VARCHAR[]" if self.column_type.endswith("[]") else "VARCHAR"


def reader(type: Type, times: Times = "iso") -> Reader:
    """How values of this contract type are read; `times`: how times are written."""
    if type.name == "list":
        item = reader(type.item, times)
        return Reader(storage_type(type), lambda raw: _list(raw, item))
    scalars: dict[TypeName, Callable[[bytes], str]] = {
        "string": _text,
        "uuid": _uuid,
        "integer": _integer,
        "decimal": partial(_exact, digits=type.max_digits or 0, places=type.decimal_places or 0),
        "float": _float,
        "boolean": _boolean,
        "date": _date,
        "timestamp": partial(_moment, times=times, aware=False),
        "timestamptz": partial(_moment, times=times, aware=True),
        "json": bytes.decode,
    }
    read = scalars[type.name]
    return Reader(storage_type(type), lambda raw: None if raw == b"null" else read(raw))


def _list(raw: bytes, item: Reader) -> Text:
    if raw == b"null":
        return None
    try:
        values = _LIST.decode(raw)
    except msgspec.DecodeError:
        raise Misfit from None
    return [item.read(bytes(value)) for value in values]


def _text(raw: bytes) -> str:
    try:
        text = _STRING.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Misfit from None
    if "\0" in text:
        raise Misfit
    return text


def _uuid(raw: bytes) -> str:
    text = _text(raw)
    if _UUID.fullmatch(text) is None:
        raise Misfit
    return text


def _number(raw: bytes) -> Decimal:
    """A number, or a text that is one, without zeros at its end."""
    found = _NUMBER.fullmatch(raw)
    if found is None or len(found[3] or b"") > 3:  # beyond 10^999 decimals have no exact arithmetic
        raise Misfit
    number = Decimal(found[2].decode())
    return number.normalize(Context(prec=max(len(number.as_tuple().digits), 1)))


def _exact(raw: bytes, digits: int, places: int) -> str:
    """A number with at most so many digits, and so many of them after the point."""
    if (found := _PLAIN.fullmatch(raw)) is not None:  # most numbers; what follows would say the same
        whole, fraction = found[3].decode(), (found[4] or b"").rstrip(b"0").decode()
        if len(fraction) > places or (whole != "0" and len(whole) > digits - places):
            raise Misfit
        return f"{found[2].decode()}{whole}{'.' if fraction else ''}{fraction}"
    number = _number(raw)
    if -int(number.as_tuple().exponent) > places or (number and number.adjusted() >= digits - places):
        raise Misfit
    return format(number, "f")


def _integer(raw: bytes) -> str:
    if (found := _WHOLE.fullmatch(raw)) is not None:
        return "0" if found[2] == b"-0" else found[2].decode()
    text = _exact(raw, 19, 0)
    if not -(2**63) <= int(text) < 2**63:
        raise Misfit
    return str(int(text))


def _float(raw: bytes) -> str:
    if raw[:1] == b'"' or _NUMBER.fullmatch(raw) is None or not isfinite(float(raw)):
        raise Misfit
    return raw.decode()


def _boolean(raw: bytes) -> str:
    if raw not in (b"true", b"false"):
        raise Misfit
    return raw.decode()


def _date(raw: bytes) -> str:
    text = _text(raw)
    try:
        if len(text) != 10:
            raise Misfit
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise Misfit from None


def _moment(raw: bytes, times: Times, *, aware: bool) -> str:
    """A text of ISO 8601 with an offset (`aware`) or without one, or seconds or milliseconds since 1970."""
    if times != "iso":
        return _since_1970(raw, 1 if times == "epoch_s" else 1000, aware=aware)
    text = _text(raw).upper()
    try:
        if "." in text or "," in text:
            text = _FRACTION.sub(r".\1", text)
            if _TOO_FINE.search(text):
                raise Misfit
        if len(text) < 16:
            raise Misfit
        found = datetime.fromisoformat(text)
        if (found.tzinfo is not None) != aware:
            raise Misfit
        return (found.astimezone(UTC) if aware and found.tzinfo is not UTC else found).isoformat(" ")
    except (ValueError, OverflowError):
        raise Misfit from None


def _since_1970(raw: bytes, per_second: int, *, aware: bool) -> str:
    microseconds = _number(raw) * (1_000_000 // per_second)
    try:
        if microseconds != microseconds.to_integral_value():
            raise Misfit
        found = _START + timedelta(microseconds=int(microseconds))
    except OverflowError:
        raise Misfit from None
    return (found if aware else found.replace(tzinfo=None)).isoformat(" ")
