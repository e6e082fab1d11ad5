"""The text of a key, and back, as SQL; and what a target makes of a key before it compares it. Different keys
have different texts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from retl.values.json_text import _iso, _utc, decimal_text
from retl.values.storage import storage_type
from retl.values.types import Type

_BARE = (
    "integer",
    "boolean",
)  # unquoted in a JSON array; others are strings, which keep their digits

_BLANKS = re.compile(r'("(?:[^"\\]|\\.)*")|\s+')  # outside of quotes

Fold = Literal["case", "accents", "blanks", "trailing"]  # what a target ignores in a text of a key
_FOLDED: dict[Fold, str] = {
    "blanks": "trim({})",
    "trailing": "rtrim({})",
    "accents": "strip_accents({})",
    "case": "lower({})",
}


def fold_sql(folds: Sequence[Fold], expr: str) -> str:
    """SQL for what is left of a text after a target has ignored these."""
    for fold, sql in _FOLDED.items():
        expr = sql.format(expr) if fold in folds else expr
    return expr


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


def key_form(types: Sequence[Type], names: Sequence[str]) -> str:
    """How a person writes a key: its value, or an array as `key_sql` makes it, with names for values."""
    parts = [name if one.name in _BARE else f'"{name}"' for one, name in zip(types, names, strict=True)]
    return f"--key VALUE, a value of {names[0]}" if len(parts) == 1 else f"--key '[{','.join(parts)}]'"


def key_texts(keys: Iterable[str], columns: int) -> tuple[str, ...]:
    """Keys as `key_sql` writes them, each once: a person may put blanks into the array of several columns."""
    if columns == 1:
        return tuple(dict.fromkeys(keys))
    return tuple(dict.fromkeys(_BLANKS.sub(lambda found: found[1] or "", key) for key in keys))


def spellings(keys: Iterable[str]) -> tuple[str, ...]:
    """Keys of syncs that are not known here: as they are given and, if they are arrays, without blanks."""
    given = tuple(keys)
    arrays = (key for key in given if key.lstrip().startswith("["))
    return tuple(dict.fromkeys((*given, *key_texts(arrays, 2))))


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
