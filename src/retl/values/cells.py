"""A value as a driver of a database takes it, made by SQL: the value itself, its text, or a double.

`utc` is the text of a timestamptz without its zone. `stored` is what binary formats store: days and
microseconds since 1970, the digits of a decimal as a whole number, the text of a uuid. Or as SQL writes it:
as a literal.
"""

from __future__ import annotations

from typing import Literal

from retl.model import Formats
from retl.values.json_text import decimal_text, json_sql
from retl.values.types import Type

Form = Literal["value", "text", "double", "utc", "stored"]
_QUOTE = "chr(39)"
_SHORT = 18  # digits that a BIGINT holds, which is faster to read than a HUGEINT


def cell_sql(type: Type, form: Form, expr: str) -> str:
    """SQL for the storage type's value in this form; NULL stays NULL."""
    if form == "double":
        return f"CAST({expr} AS DOUBLE)"
    if form == "stored":
        return _stored_sql(type, expr)
    if form == "value" or type.name == "string":
        return expr
    if type.name == "decimal":
        return decimal_text(type, expr)
    if type.name == "timestamptz":
        zone = "" if form == "utc" else "+00:00"
        return f"strftime(timezone('UTC', {expr}), '%Y-%m-%d %H:%M:%S.%f{zone}')"
    if type.name == "list":
        return f"CASE WHEN {expr} IS NOT NULL THEN {json_sql(type, expr, Formats())} END"
    return f"CAST({expr} AS VARCHAR)"


def _stored_sql(type: Type, expr: str) -> str:
    match type.name:
        case "date":
            return f"({expr} - DATE '1970-01-01')"
        case "timestamp" | "timestamptz":
            return f"epoch_us({expr})"
        case "decimal":
            whole = "BIGINT" if (type.max_digits or 0) <= _SHORT else "HUGEINT"
            return f"CAST(replace(CAST({expr} AS VARCHAR), '.', '') AS {whole})"
        case "uuid":
            return f"CAST({expr} AS VARCHAR)"
        case "list":
            return f"list_transform({expr}, lambda e: {_stored_sql(type.item, 'e')})"
        case _:
            return expr


def literal_sql(type: Type, form: Form, expr: str) -> str:
    """SQL for the same as a literal that SQL reads: NULL, a number (0 and 1 for a boolean), or a text in
    single quotes. A float that is no number is a text."""
    cell = cell_sql(type, form, expr)
    text = f"CAST({cell} AS VARCHAR)"
    if form == "value" and type.name == "boolean":
        made = f"CAST(CAST({expr} AS TINYINT) AS VARCHAR)"
    elif form == "double" or (form == "value" and type.name == "float"):
        made = f"CASE WHEN isfinite({cell}) THEN {text} ELSE {_QUOTE} || {text} || {_QUOTE} END"
    elif form == "value" and type.name == "integer":
        made = text
    elif type.name in ("string", "json", "list"):
        made = f"{_QUOTE} || replace({text}, {_QUOTE}, {_QUOTE} || {_QUOTE}) || {_QUOTE}"
    else:
        made = f"{_QUOTE} || {text} || {_QUOTE}"
    return f"coalesce({made}, 'NULL')"
