"""The canonical text of a value and the hash of a row: the format of docs/formats.md.

Both belong to retl alone: neither DuckDB's JSON nor its version has a say in them. The vectors in
tests/canonical_vectors.json fix them; to change either sends every row of every user once more.
"""

from __future__ import annotations

from collections.abc import Sequence

from retl.values.json_text import decimal_text
from retl.values.sql import literal
from retl.values.types import Type

HASH_VERSION = 1  # part of the payload fingerprint: raise it when a row's hash is made differently

_ISO = "'%Y-%m-%dT%H:%M:%S.%f'"
_ISO_UTC = "'%Y-%m-%dT%H:%M:%S.%fZ'"


def hash_sql(fields: Sequence[tuple[str, str, Type]], salt: str) -> str:
    """SQL for a row's hash over (destination field, SQL, type), in any order: 16 bytes of its values,
    then 4 of the salt (hexadecimal digits), which stands for all that is the same in every row.

    sha256 takes time by the block of 64 bytes: neither the fields' names, in whose order the values stand,
    nor the salt are hashed once more with each row.
    """
    parts = [
        part for _, expr, type in sorted(fields, key=lambda field: field[0]) for part in framed(type, expr)
    ]
    digest = f"substring(sha256(concat({', '.join(parts) or literal('')})), 1, 32)"
    return f"unhex({digest}) || unhex({literal(salt[:8])})"


def canonical_sql(type: Type, expr: str) -> str:
    """SQL for the canonical text of a storage type's value; NULL stays NULL."""
    text = f"CAST({expr} AS VARCHAR)"
    match type.name:
        case "string":
            return expr
        case "decimal":
            return decimal_text(type, expr)
        case "timestamp":
            return f"strftime({expr}, {_ISO})"
        case "timestamptz":  # timezone() takes three times as long; what epoch_us() cannot say is no NULL
            return f"coalesce(strftime(make_timestamp(epoch_us({expr})), {_ISO_UTC}), {text})"
        case "list":
            element = f"concat({', '.join(framed(type.item, 'e'))})"
            return f"array_to_string(list_transform({expr}, lambda e: {element}), '')"
        case _:
            return text


def framed(type: Type, expr: str) -> list[str]:
    """The arguments of concat() that write a value so that it can be told where it ends: bytes, ':', text
    where the text may hold anything, else text, ';'. concat() skips NULL: the mark alone is left of it."""
    text = canonical_sql(type, expr)
    return [f"strlen({text})", "':'", text] if type.name in ("string", "json", "list") else [text, "';'"]
