"""The JSON text of a value, made by SQL or by Python."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Context, Decimal
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
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
    """Every decimal place, and a digit before the point: DuckDB writes '.50' where all digits are places."""
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


def json_value(value: Any, type: Type, formats: Formats, timezone: str = "UTC") -> Any:
    """What `json_sql` makes of a stored value, for msgspec to write: JSON text goes through as it is."""
    name = type.name
    if value is None:
        return None
    if name == "list":
        return [json_value(item, type.item, formats, timezone) for item in value]
    if name == "integer" and formats.bigints == "string" and abs(value) > _SAFE:
        return str(value)
    if name == "decimal":
        return f"{_scaled(value, type):f}" if formats.decimals == "string" else _scaled(value, type)
    if name == "uuid":
        return str(value)
    if name == "json":
        from msgspec import Raw

        return Raw(value.encode())
    if name == "date":
        return (
            (value - date(1970, 1, 1)).days * 86_400_000 if formats.dates == "epoch_ms" else value.isoformat()
        )
    if name in ("timestamp", "timestamptz"):
        moment = _in_utc(value, timezone)
        if formats.timestamps == "iso":
            return _iso_text(moment) + "Z"
        unit = timedelta(seconds=1) if formats.timestamps == "epoch_s" else timedelta(milliseconds=1)
        return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // unit
    return value


def _scaled(value: Any, type: Type) -> Decimal:
    """With exactly the type's places, as DuckDB has it: there is no negative zero."""
    exponent = Decimal(1).scaleb(-(type.decimal_places or 0))
    scaled = Decimal(str(value)).quantize(exponent, context=Context(prec=76))
    return scaled if scaled else scaled.copy_abs()


def _in_utc(value: datetime, timezone: str) -> datetime:
    """As DuckDB reads a local time that a clock change made double or missing: by the smaller offset."""
    if value.tzinfo is None:
        zone = ZoneInfo(timezone)
        value = min(
            (value.replace(tzinfo=zone, fold=fold) for fold in (0, 1)),
            key=lambda moment: moment.utcoffset() or timedelta(),
        )
    return value.astimezone(UTC)


def _iso_text(moment: datetime) -> str:
    return moment.replace(tzinfo=None).isoformat()
