"""The text of a key, and back. Different keys have different texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    pass
from retl.values.json_text import _iso, _iso_text, _scaled, _utc, decimal_text
from retl.values.storage import storage_type
from retl.values.types import Type, TypeName

_ESCAPES = {n: f"\\u{n:04X}" for n in range(32)} | {
    ord(char): "\\" + short for char, short in zip('\b\f\n\r\t"\\', 'bfnrt"\\', strict=True)
}


_BARE = ("integer", "boolean")  # in a JSON array as themselves; all else as a string, which keeps its digits


def key_sql(types: Sequence[Type], exprs: Sequence[str]) -> str:
    """SQL for the key as text from the storage types: one column as its plain text, several as a JSON array;
    NULL if any part is. Different keys have different texts."""
    texts = [_key_text_sql(type, expr) for type, expr in zip(types, exprs, strict=True)]
    if len(texts) == 1:
        return texts[0]
    parts = [
        text
        if type.name in _BARE
        else f"CASE WHEN {expr} IS NOT NULL THEN CAST(to_json({text}) AS VARCHAR) END"
        for type, expr, text in zip(types, exprs, texts, strict=True)
    ]
    return "'[' || " + " || ',' || ".join(parts) + " || ']'"


def _key_text_sql(type: Type, expr: str) -> str:
    if type.name == "string":
        return expr
    if type.name == "decimal":
        return decimal_text(type, expr)
    if type.name == "timestamp":
        return f"({_iso(expr)})"
    if type.name == "timestamptz":
        return f"({_iso(_utc(expr))} || 'Z')"
    return f"CAST({expr} AS VARCHAR)"


def key_value_sql(types: Sequence[Type], index: int, key_expr: str) -> str:
    """SQL for the typed value of one key column, from the key's text."""
    text = key_expr if len(types) == 1 else f"json_extract_string({key_expr}, '$[{index}]')"
    return text if types[index].name == "string" else f"CAST({text} AS {storage_type(types[index])})"


def key_text(values: Sequence[Any], types: Sequence[Type]) -> str:
    """The text that `key_sql` makes of these values; none of them may be None."""
    texts = [_key_text(value, type) for value, type in zip(values, types, strict=True)]
    if len(texts) == 1:
        return texts[0]
    parts = (
        text if type.name in _BARE else f'"{text.translate(_ESCAPES)}"'
        for text, type in zip(texts, types, strict=True)
    )
    return f"[{','.join(parts)}]"


def _key_text(value: Any, type: Type) -> str:
    if type.name == "boolean":
        return "true" if value else "false"
    if type.name == "decimal":
        return f"{_scaled(value, type):f}"
    if type.name == "timestamp":
        return _iso_text(value)
    if type.name == "timestamptz":
        return _iso_text(value.astimezone(UTC)) + "Z"
    return str(value)


def parse_key(text: str, types: Sequence[Type]) -> tuple[Any, ...]:
    """The values a key text stands for. ValueError, without the text, if it is none for these types."""
    parts: Any = [text] if len(types) == 1 else json.loads(text)
    if not isinstance(parts, list) or len(parts) != len(types):
        raise ValueError(f"a key of {len(types)} columns is a JSON array of {len(types)} values")
    return tuple(_parsed(part, type) for part, type in zip(parts, types, strict=True))


_WRITTEN: dict[TypeName, Any] = {
    "string": str,
    "uuid": UUID,
    "integer": int,
    "decimal": Decimal,
    "boolean": {"true": True, "false": False}.__getitem__,
    "date": date.fromisoformat,
    "timestamp": datetime.fromisoformat,
    "timestamptz": datetime.fromisoformat,
}


def _parsed(part: Any, type: Type) -> Any:
    text = json.dumps(part) if isinstance(part, int) else part  # true and 7 as the words they are
    try:
        return _WRITTEN[type.name](text)
    except (ValueError, LookupError, ArithmeticError, TypeError, AttributeError):
        raise ValueError(f"a part of the key is no {type}") from None
