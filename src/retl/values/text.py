"""Values that a file has as text, such as those of CSV: how SQL reads them as a contract's type.

A text is read only if the type holds exactly what it says: `1.005` is no decimal with two places, `1.5` is no
integer, and a time with an offset is no naive one. Nothing is trimmed or rounded, and the formats are the
same on every machine: ISO dates and times, a decimal point, no separators of thousands.
"""

from __future__ import annotations

from retl.values.sql import literal
from retl.values.storage import storage_type
from retl.values.types import Type

_TRUE, _FALSE = "('true', 't', 'yes', 'y', '1')", "('false', 'f', 'no', 'n', '0')"
_CLOCK = r"[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6}0*)?)?"
_OFFSET = r"(Z|[+-][0-9]{2}(:?[0-9]{2})?)"
_DAY = "[0-9]{4}-[0-9]{2}-[0-9]{2}"
_PATTERNS = {
    "integer": r"[+-]?[0-9]+(\.0*)?",
    "float": r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?",
    "uuid": "(?i)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    "date": _DAY,
    "timestamp": f"{_DAY}([ T]{_CLOCK})?",
    "timestamptz": f"{_DAY}([ T]{_CLOCK}{_OFFSET}?)?",
}


def value(type: Type, text: str, timezone: str) -> str:
    """SQL for the value of a text, as its storage type; NULL if the text is no such value. A time without an
    offset under `timestamptz` is read in `timezone`. The items of a list are those of a JSON array."""
    if type.name == "string":
        return text
    if type.name == "boolean":
        return f"CASE WHEN lower({text}) IN {_TRUE} THEN TRUE WHEN lower({text}) IN {_FALSE} THEN FALSE END"
    if type.name == "list":
        return f"list_transform({_items(text)}, lambda e: {value(type.item, 'e', timezone)})"
    if type.name == "integer":
        text = f"split_part({text}, '.', 1)"
    cast = f"TRY_CAST({text} AS {storage_type(type)})"
    if type.name == "timestamptz":
        naive = f"timezone({literal(timezone)}, TRY_CAST({text} AS TIMESTAMP))"
        return (
            f"CASE WHEN regexp_matches({text}, {literal(':.*' + _OFFSET + '$')}) THEN {cast} ELSE {naive} END"
        )
    return cast


def readable(type: Type, text: str, timezone: str) -> str:
    """SQL predicate, never NULL: the text is NULL, or `value` is exactly what it says."""
    if type.name == "string":
        return "TRUE"
    read = f"{value(type, text, timezone)} IS NOT NULL"
    if type.name == "list":
        items = f"len(list_filter({_items(text)}, lambda e: NOT {readable(type.item, 'e', timezone)})) = 0"
        read = f"json_type(TRY_CAST({text} AS JSON)) = 'ARRAY' AND {items}"
    pattern = _decimal(type) if type.name == "decimal" else _PATTERNS.get(type.name)
    if pattern is not None:
        read = f"regexp_full_match({text}, {literal(pattern)}) AND {read}"
    return f"({text} IS NULL OR coalesce({read}, FALSE))"


def _items(text: str) -> str:
    return f"""from_json(TRY_CAST({text} AS JSON), '["VARCHAR"]')"""


def _decimal(type: Type) -> str:
    """Digits that fit without rounding; zeros may lead and follow."""
    places = type.decimal_places or 0
    whole = (type.max_digits or 0) - places
    return rf"[+-]?0*[0-9]{{0,{whole}}}(\.[0-9]{{0,{places}}}0*)?"
