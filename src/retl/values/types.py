"""The contract's types, and which DuckDB column types fit them."""

from __future__ import annotations

import re
from typing import Literal

from msgspec import Struct

TypeName = Literal[
    "string",
    "uuid",
    "integer",
    "decimal",
    "float",
    "boolean",
    "date",
    "timestamp",
    "timestamptz",
    "json",
    "list",
]


class Type(Struct, frozen=True):
    """A contract type; digits for decimal, the element's type for list."""

    name: TypeName
    max_digits: int | None = None
    decimal_places: int | None = None
    items: TypeName | None = None

    def __str__(self) -> str:
        if self.name == "decimal":
            return f"decimal({self.max_digits},{self.decimal_places})"
        return f"list of {self.items}" if self.name == "list" else self.name

    @property
    def item(self) -> Type:
        """The type of a list's elements."""
        assert self.items is not None
        return Type(self.items)


_SHORT = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"}


_INTEGERS = _SHORT | {"UBIGINT", "HUGEINT", "UHUGEINT"}


_NAIVE = {"TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS"}


_AWARE = {"TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ_NS"}


_NESTED = {"STRUCT", "MAP", "TUPLE", "LIST"}


NO_TYPE = '"NULL"'  # the type of a bare NULL: it fits every contract type


_FITS: dict[TypeName, set[str]] = {
    "string": {"VARCHAR", "ENUM"},
    "uuid": {"UUID", "VARCHAR"},
    "integer": _INTEGERS | {"BIGNUM", "DECIMAL", "FLOAT", "DOUBLE"},
    "decimal": _INTEGERS | {"DECIMAL", "FLOAT", "DOUBLE"},
    "float": _INTEGERS | {"DECIMAL", "FLOAT", "DOUBLE"},
    "boolean": {"BOOLEAN"},
    "date": {"DATE"},
    "timestamp": _NAIVE,
    "timestamptz": _NAIVE | _AWARE,
    "json": {"JSON", "VARCHAR"},
}


_OWN: dict[str, TypeName] = {
    **dict.fromkeys(_INTEGERS | {"BIGNUM"}, "integer"),
    **dict.fromkeys(_NAIVE, "timestamp"),
    **dict.fromkeys(_AWARE, "timestamptz"),
    **dict.fromkeys(("VARCHAR", "ENUM", NO_TYPE), "string"),
    **dict.fromkeys(("FLOAT", "DOUBLE"), "float"),
    "UUID": "uuid",
    "BOOLEAN": "boolean",
    "DATE": "date",
    "JSON": "json",
}


def _base(column_type: str) -> str:
    """'DECIMAL(5,2)' → 'DECIMAL'; any list or array → 'LIST'."""
    return "LIST" if column_type.endswith("]") else column_type.partition("(")[0].strip()


def _element(column_type: str) -> str:
    return column_type[: column_type.rindex("[")]


def of_duckdb(column_type: str) -> Type | None:
    """The contract type of a mart column that has no contract; None if no type fits."""
    base = _base(column_type)
    if base == "DECIMAL":
        digits, places = re.findall(r"\d+", column_type)
        return Type("decimal", int(digits), int(places))
    if base == "LIST":
        element = of_duckdb(_element(column_type))
        if element and element.name not in ("list", "json", "decimal"):
            return Type("list", items=element.name)
    if base in _NESTED:
        return Type("json") if _speaks_json(column_type) else None
    return Type(_OWN[base]) if base in _OWN else None


def _speaks_json(column_type: str) -> bool:
    """Whether `to_json` keeps every value of this type. Inside a nested type it cuts the digits of JSON
    numbers and writes binary values as if they were text."""
    base = _base(column_type)
    if base == "LIST":
        return _speaks_json(_element(column_type))
    if base not in _NESTED:
        return base == "DECIMAL" or (base in _OWN and base != "JSON")
    named = base == "STRUCT"
    return all(_speaks_json(_unnamed(part) if named else part) for part in _arguments(column_type))


def _arguments(column_type: str) -> list[str]:
    """The arguments of a nested type: split at commas outside of quotes and parentheses."""
    parts, depth, quote, start = [], 0, "", column_type.find("(") + 1
    for at, char in enumerate(column_type):
        if quote or char in "'\"":
            quote = "" if char == quote else quote or char
        elif char in "()":
            depth += 1 if char == "(" else -1
        if not quote and ((char == "," and depth == 1) or (char == ")" and depth == 0)):
            parts.append(column_type[start:at].strip())
            start = at + 1
    return parts


def _unnamed(part: str) -> str:
    """'"a b" INTEGER' or 'a INTEGER' → 'INTEGER'."""
    return re.sub(r'^("([^"]|"")*"|\S+)\s+', "", part, count=1)


def fits(type: Type, column_type: str) -> bool:
    """Whether a column of this DuckDB type can be judged with this contract type."""
    base = _base(column_type)
    if base == NO_TYPE:
        return True
    if type.name == "list":
        return base == "LIST" and fits(type.item, _element(column_type))
    if type.name == "json" and base in _NESTED:
        return _speaks_json(column_type)
    return base in _FITS[type.name]


KEY_TYPES = frozenset({"string", "uuid", "integer", "decimal", "boolean", "date", "timestamp", "timestamptz"})


def widens(column_type: str, to: str) -> bool:
    """Whether every value of a DuckDB type is the same value in another, such as that of several files."""
    base, target = _base(column_type), _base(to)
    if column_type == to or base == NO_TYPE:
        return True
    if base == target == "LIST":
        return widens(_element(column_type), _element(to))
    if base == target == "STRUCT":
        inner = {_name(part): _unnamed(part) for part in _arguments(to)}
        return all(widens(_unnamed(part), inner[_name(part)]) for part in _arguments(column_type))
    if target == "DECIMAL" and base in _INTEGERS | {"DECIMAL"}:
        digits, places = _digits(to)
        own, own_places = _digits(column_type)
        return own_places <= places and own - own_places <= digits - places
    families = (_INTEGERS, _NAIVE, {"FLOAT", "DOUBLE"}, {"VARCHAR", "ENUM"})
    return any(base in family and target in family for family in families)


def _name(part: str) -> str:
    return part.removesuffix(_unnamed(part)).strip()


_INTEGER_DIGITS = {"TINYINT": 3, "SMALLINT": 5, "INTEGER": 10, "BIGINT": 19, "UBIGINT": 20, "HUGEINT": 39}


def _digits(column_type: str) -> tuple[int, int]:
    """The digits of a number, and how many of them are behind the point."""
    base = _base(column_type)
    if base in _INTEGERS:
        return _INTEGER_DIGITS.get(base) or _INTEGER_DIGITS[base.removeprefix("U")], 0
    digits, places = map(int, re.findall(r"\d+", column_type))
    return digits, places
