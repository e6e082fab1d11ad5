"""The JSON of a value as Python makes it: what the SQL of values/json_text.py is held against."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Context, Decimal
from typing import Any
from zoneinfo import ZoneInfo

from msgspec import Raw

from retl.model import Formats
from retl.values.types import Type

_SAFE = 2**53


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
        return f"{scaled(value, type):f}" if formats.decimals == "string" else scaled(value, type)
    if name == "uuid":
        return str(value)
    if name == "json":
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


def scaled(value: Any, type: Type) -> Decimal:
    """With exactly the type's places, as DuckDB has it: there is no negative zero."""
    exponent = Decimal(1).scaleb(-(type.decimal_places or 0))
    found = Decimal(str(value)).quantize(exponent, context=Context(prec=76))
    return found if found else found.copy_abs()


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
