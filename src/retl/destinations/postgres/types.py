"""PostgreSQL column types: which one `create` makes, and which ones store a contract type without loss."""

from __future__ import annotations

import re

from retl.values.types import KEY_TYPES, Type, TypeName

_CREATED: dict[TypeName, str] = {
    "string": "text",
    "uuid": "uuid",
    "integer": "bigint",
    "float": "double precision",
    "boolean": "boolean",
    "date": "date",
    "timestamp": "timestamp",
    "timestamptz": "timestamptz",
    "json": "jsonb",
}


# Column types by format_type() that store every value unchanged, or raise an error.
_TEXTS = {"text", "character varying"}


_WHOLE = {"bigint", "integer", "smallint", "numeric"}


_HOLDS: dict[TypeName, set[str]] = {
    "string": _TEXTS | {"citext"},
    "uuid": _TEXTS | {"uuid"},
    "integer": _WHOLE | _TEXTS,
    "decimal": {"numeric"},
    "float": {"double precision"},
    "boolean": {"boolean"},
    "date": {"date"},
    "timestamp": {"timestamp without time zone", "timestamp(6) without time zone"},
    "timestamptz": {"timestamp with time zone", "timestamp(6) with time zone"},
    "json": {"json", "jsonb"} | _TEXTS,
}


def ddl(type: Type) -> str:
    """The PostgreSQL column type that `create` makes."""
    if type.name == "decimal":
        return f"numeric({type.max_digits},{type.decimal_places})"
    return f"{ddl(type.item)}[]" if type.name == "list" else _CREATED[type.name]


def lossless(type: Type, pg_type: str, *, max_length: int | None = None, enum: bool = False) -> bool:
    """Whether a column (by `format_type`) stores every value unchanged or raises an error. `max_length` is
    from the contract, `enum` is for enum types; False for unknown types."""
    if type.name == "list":
        return pg_type.endswith("[]") and lossless(type.item, pg_type[:-2])
    if enum:
        return type.name == "string"
    if pg_type in _HOLDS[type.name]:
        return True
    if sized := re.fullmatch(r"character varying\((\d+)\)", pg_type):
        # COPY cuts blanks beyond the length without an error
        longest = {"string": max_length, "uuid": 36, "integer": 20}.get(type.name)
        return longest is not None and longest <= int(sized[1])
    if type.name in ("integer", "decimal"):
        places = type.decimal_places or 0
        sized = re.fullmatch(r"numeric\(\d+,(-?\d+)\)", pg_type)
        return (sized is not None and int(sized[1]) >= places) or (places == 0 and pg_type in _WHOLE)
    return False


def injective(type: Type, pg_type: str) -> bool:
    """Whether different keys of the contract's type stay different in a lossless column of this type."""
    return type.name in KEY_TYPES and not pg_type.startswith(("citext", "character("))
