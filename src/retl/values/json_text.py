"""The JSON text of a value, made by SQL."""

from __future__ import annotations

from retl.model import Formats
from retl.values.sql import literal
from retl.values.types import Type

_SAFE = 2**53


def json_sql(type: Type, expr: str, formats: Formats, timezone: str = "UTC") -> str:
    """SQL for the storage type's JSON text; NULL gives 'null'. Naive timestamps are read in `timezone`;
    `bigints: string` quotes integers beyond ±2^53 only; epochs are rounded down to their unit."""
    return f"coalesce({_json_sql(type, expr, formats, timezone)}, 'null')"


def _json_sql(type: Type, expr: str, formats: Formats, timezone: str) -> str:
    text, name = f"CAST({expr} AS VARCHAR)", type.name
    if name == "list":
        return _joined(expr, json_sql(type.item, "e", formats, timezone), "[]")
    if name == "integer" and formats.bigints == "string":
        return f"CASE WHEN {expr} BETWEEN -{_SAFE} AND {_SAFE} THEN {text} ELSE '\"' || {text} || '\"' END"
    if name == "decimal":
        return (
            f"'\"' || {decimal_text(type, expr)} || '\"'"
            if formats.decimals == "string"
            else decimal_text(type, expr)
        )
    if name in ("string", "float", "uuid"):
        return f"CAST(to_json({expr}) AS VARCHAR)"
    if name == "date":
        return (
            f"CAST(epoch_ms({expr}) AS VARCHAR)" if formats.dates == "epoch_ms" else f"'\"' || {text} || '\"'"
        )
    if name in ("timestamp", "timestamptz"):
        zoned = expr if name == "timestamptz" else f"timezone({literal(timezone)}, {expr})"
        if formats.timestamps == "iso":
            naive = expr if (name, timezone) == ("timestamp", "UTC") else _utc(zoned)
            return f"'\"' || {_iso(naive)} || 'Z\"'"
        unit = 1_000_000 if formats.timestamps == "epoch_s" else 1_000
        return (
            f"CAST((epoch_us({zoned}) - (epoch_us({zoned}) % {unit} + {unit}) % {unit}) // {unit} AS VARCHAR)"
        )
    return text


def decimal_text(type: Type, expr: str) -> str:
    """All decimal places, and a digit before the point: DuckDB writes '.50' if all digits are decimal
    places."""
    text = f"CAST({expr} AS VARCHAR)"
    return text if type.max_digits != type.decimal_places else rf"regexp_replace({text}, '^(-?)\.', '\10.')"


def _utc(zoned: str) -> str:
    return f"timezone('UTC', {zoned})"


def _iso(naive: str) -> str:
    whole = f"strftime({naive}, '%Y-%m-%dT%H:%M:%S')"
    return f"{whole} || CASE WHEN epoch_us({naive}) % 1000000 = 0 THEN '' ELSE strftime({naive}, '.%f') END"


def _joined(expr: str, element: str, brackets: str) -> str:
    inner = f"array_to_string(list_transform({expr}, lambda e: {element}), ',')"
    return f"'{brackets[0]}' || {inner} || '{brackets[1]}'"
