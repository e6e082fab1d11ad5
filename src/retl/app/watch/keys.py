"""The key of a row from a part of a record: a text, or JSON.

It knows no types: each column's value becomes a text, which the run compares as a value of that column. What
it says of a record that has no key never quotes it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NoReturn

from retl.project.triggers import KeyFormat


class Unreadable(Exception):
    """Why a record has no usable key."""


def parts(raw: bytes | None, columns: Sequence[str], format: KeyFormat) -> tuple[str, ...]:
    """The text of each column. Text is the value of the one column. JSON is an object with the columns, also
    under `payload` as Kafka Connect writes it; an array of their values; or the one value. Unreadable."""
    if raw is None:
        raise Unreadable("this part of the record is empty")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise Unreadable("it is not UTF-8") from None
    return (text,) if format == "text" else _of_json(text, columns)


def _of_json(text: str, columns: Sequence[str]) -> tuple[str, ...]:
    try:
        found = json.loads(text, parse_int=_Number, parse_float=_Number, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise Unreadable("it is not JSON") from None
    if isinstance(found, dict):
        inner = found.get("payload")
        if isinstance(inner, dict) and any(one not in found for one in columns):
            found = inner
        if missing := [one for one in columns if one not in found]:
            raise Unreadable(f"it has no {', '.join(missing)}")
        found = [found[one] for one in columns]
    values = found if isinstance(found, list) else [found]
    if len(values) != len(columns):
        raise Unreadable(f"it has {len(values)} values, and the key has {len(columns)} columns")
    return tuple(map(_text, values))


class _Number(str):
    """A number as it is written."""

    __slots__ = ()


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return str(value)
    raise Unreadable("a part of the key is null" if value is None else "a part of the key is no single value")


def _refuse(word: str) -> NoReturn:
    raise ValueError(word)
