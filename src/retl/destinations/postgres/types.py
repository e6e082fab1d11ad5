"""PostgreSQL column types: which one `create` makes, which ones store a contract type without loss, and
which ones are judged value by value.

Types are named as format_type() names them without a length (`base`), or with it (`pg_type`).
"""

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
    """Whether a column stores every value unchanged or raises an error. `max_length` is from the contract,
    `enum` is for enum types; False for unknown types."""
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


_SHORT_TEXTS = _TEXTS | {"bpchar", "name", "citext"}
_FRACTIONS = {"numeric", "real", "double precision", "money"}
_SPOKEN: dict[str, str] = {  # base types that a contract can name, beside lists
    **dict.fromkeys(("bigint", "integer", "smallint"), "integer"),
    "numeric": "decimal",
    "double precision": "float",
    "boolean": "boolean",
    "date": "date",
    "timestamp without time zone": "timestamp",
    "timestamp with time zone": "timestamptz",
    "json": "json",
    "jsonb": "json",
}
# For each contract type: the type in which what was sent and what the column holds are compared, and the
# base types of columns that may hold it. A string may go into every column that a contract cannot name.
_JUDGED: dict[TypeName, tuple[str, set[str]]] = {
    "uuid": ("text", _SHORT_TEXTS),
    "json": ("text", _SHORT_TEXTS),
    "integer": ("numeric", _SHORT_TEXTS | _FRACTIONS),
    "decimal": ("numeric", _FRACTIONS),
    "float": ("float8", _FRACTIONS),
    "date": ("timestamp", {"timestamp without time zone"}),
    "timestamp": ("timestamp", {"timestamp without time zone"}),
    "timestamptz": ("timestamptz", {"timestamp with time zone"}),
}


# Types of which COPY writes just what a cast to text gives, without the cast. Not so of boolean and bpchar.
WRITTEN_AS_TEXT = {
    *_TEXTS,
    *_WHOLE,
    "real",
    "double precision",
    "uuid",
    "date",
    "timestamp without time zone",
    "timestamp with time zone",
    "json",
    "jsonb",
    "bytea",
}
VECTORS = ("vector", "halfvec")  # of pgvector: single and half precision, all of one length


def comparison(type: Type, base: str, *, composite: bool = False) -> str | None:
    """The type in which a value of the contract and what such a column made of it can be compared; None if
    the two have nothing in common."""
    if type.name == "json" and (composite or base.endswith("[]")):
        return None if base.startswith("reg") else "jsonb"
    if type.name == "list" and base in VECTORS:
        return "float8[]" if type.items == "float" else None
    if type.name == "list":
        if not base.endswith("[]"):
            return None
        unnamed = type.items == "string" and _items(base) == "string"
        item = "text" if unnamed and not base.startswith("reg") else comparison(type.item, base[:-2])
        return item and f"{item}[]"
    if type.name == "string":
        named = base.startswith("reg")  # of other objects: an error of the catalog, not of the value
        return None if named or spoken(base) else "text"
    compared, bases = _JUDGED.get(type.name, ("", set[str]()))
    return compared if base in bases else None


def spoken(base: str) -> str | None:
    """The contract type that such a column is made for."""
    return f"list, items: {_items(base)}" if base.endswith("[]") else _SPOKEN.get(base)


def _items(base: str) -> str:
    """The type of the items of a contract's list for such an array. Lists have no decimals and no JSON: their
    texts go into arrays of them."""
    found = _SPOKEN.get(base[:-2], "string")
    return "string" if found in ("decimal", "json") else found


# Values of these types are equal only if their texts are. (Not so: interval, numeric, ranges of it.)
_EQUAL_AS_TEXT = _SHORT_TEXTS | {
    *(
        "uuid",
        "inet",
        "cidr",
        "macaddr",
        "macaddr8",
        "bytea",
        '"bit"',
        "bit varying",
        "oid",
        "xid8",
        "pg_lsn",
    ),
    *("time without time zone", "time with time zone", "int4range", "int8range", "daterange", "tsrange"),
    *('"char"', "tstzrange"),
}


def injective(type: Type, base: str, *, enum: bool = False) -> bool:
    """Whether different keys of the contract's type, if the column holds them unchanged, stay different in
    it. Case folding is not its concern: such keys are compared in each batch."""
    if type.name not in KEY_TYPES:
        return False
    return comparison(type, base) != "text" or enum or base in _EQUAL_AS_TEXT
