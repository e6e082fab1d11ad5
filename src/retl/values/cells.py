"""A value as a driver of a database takes it, made by SQL: the value itself, its text, or a double.

`utc` is the text of a timestamptz without its zone."""

from __future__ import annotations

from typing import Literal

from retl.model import Formats
from retl.values.json_text import decimal_text, json_sql
from retl.values.types import Type


def cell_sql(type: Type, form: Literal["value", "text", "double", "utc"], expr: str) -> str:
    """SQL for the storage type's value in this form; NULL stays NULL."""
    if form == "double":
        return f"CAST({expr} AS DOUBLE)"
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
