"""How DuckDB stores a value without loss: the type, the cast to it, and the test that the cast is exact."""

from __future__ import annotations

from retl.values.sql import literal
from retl.values.types import _NAIVE, _NESTED, _SHORT, NO_TYPE, Type, TypeName, _base, _element

_CARRIERS: dict[TypeName, str] = {
    "string": "VARCHAR",
    "uuid": "UUID",
    "integer": "BIGINT",
    "float": "DOUBLE",
    "boolean": "BOOLEAN",
    "date": "DATE",
    "timestamp": "TIMESTAMP",
    "timestamptz": "TIMESTAMP WITH TIME ZONE",
    "json": "JSON",
}


_RANGES: dict[TypeName, str] = {
    "date": "DATE '0001-01-01' AND DATE '9999-12-31'",
    "timestamp": "TIMESTAMP '0001-01-01' AND TIMESTAMP '9999-12-31 23:59:59.999999'",
    "timestamptz": "TIMESTAMPTZ '0001-01-01 00:00:00+00' AND TIMESTAMPTZ '9999-12-31 23:59:59.999999+00'",
}


def storage_type(type: Type) -> str:
    """The DuckDB type that stores values of this contract type."""
    if type.name == "decimal":
        return f"DECIMAL({type.max_digits},{type.decimal_places})"
    return f"{storage_type(type.item)}[]" if type.name == "list" else _CARRIERS[type.name]


def cast(type: Type, expr: str, column_type: str, timezone: str = "UTC") -> str:
    """SQL for the mart's value as its storage type; NULL if the cast is impossible. The value may change
    if `exact` is false. A naive timestamp under `timestamptz` is read in `timezone`."""
    base, target = _base(column_type), storage_type(type)
    if column_type == target:
        return expr
    if base == NO_TYPE:
        return f"CAST({expr} AS {target})"
    if type.name == "list":
        return f"list_transform({expr}, lambda e: {cast(type.item, 'e', _element(column_type), timezone)})"
    if type.name == "json" and base in _NESTED:
        return f"CASE WHEN {expr} IS NOT NULL THEN to_json({expr}) END"
    if type.name == "timestamptz" and base in _NAIVE:
        return f"timezone({literal(timezone)}, TRY_CAST({expr} AS TIMESTAMP))"
    return f"TRY_CAST({_by_text(type, expr, base)} AS {target})"


def _by_text(type: Type, expr: str, base: str) -> str:
    """Between binary and decimal fractions the shortest text is the value (0.1 is 0.10, not
    0.1000000000000000055…); a BIGNUM's own cast raises instead of giving NULL."""
    binary = {"decimal": {"FLOAT", "DOUBLE"}, "float": {"DECIMAL"}}.get(type.name, set())
    return f"CAST({expr} AS VARCHAR)" if base in binary | {"BIGNUM"} else expr


def exact(type: Type, expr: str, column_type: str, timezone: str = "UTC") -> str:
    """SQL predicate, never NULL: the value is NULL, or its storage type holds it unchanged and it is
    representable everywhere: finite numbers, years 1 to 9999 (also once `timezone` is applied),
    microseconds, strict JSON, no NUL character."""
    if _base(column_type) == NO_TYPE:
        return "TRUE"
    if type.name == "list":
        inner = exact(type.item, "e", _element(column_type), timezone)
        return (
            "TRUE"
            if inner == "TRUE"
            else _never_null(expr, f"len(list_filter({expr}, lambda e: NOT {inner})) = 0")
        )
    value = cast(type, expr, column_type, timezone)
    tests = [*_unchanged(type, expr, column_type, value), *_representable(type, value, timezone)]
    return _never_null(expr, " AND ".join(tests)) if tests else "TRUE"


def _never_null(expr: str, test: str) -> str:
    return f"({expr} IS NULL OR coalesce({test}, FALSE))"


def _unchanged(type: Type, expr: str, column_type: str, value: str) -> list[str]:
    """The cast is exact if casting back gives the same value."""
    base = _base(column_type)
    if column_type == storage_type(type) or base == "ENUM" or (type.name == "integer" and base in _SHORT):
        return []
    if type.name == "json":
        return [f"{value} IS NOT NULL"]
    if base == "VARCHAR":
        return [f"CAST({value} AS VARCHAR) = lower({expr})"]
    if type.name == "timestamptz" and base in _NAIVE:
        value = f"TRY_CAST({expr} AS TIMESTAMP)"
    return [f"TRY_CAST({_by_text(type, value, base)} AS {column_type}) = {expr}"]


# The parser also accepts NaN, Infinity and trailing commas: search for them after emptying all strings.
_JSON_STRING = r'"(?:[^"\\]|\\.)*"'


_JSON_LAX = r",\s*[}\]]|[nN][aA][nN]|[iI][nN][fF]"


# The limits are ours, below those of what reads JSON on its way: Pydantic parses 201 levels and writes 255,
# Python and msgspec read 1,000 less those of the code that calls them, and Python numbers of 4,300 digits.
JSON_LEVELS, JSON_DIGITS = 200, 1000


_JSON_LONG = f"[0-9]{{{JSON_DIGITS}}}"


_JSON_NUL = r"(?:^|[^\\])(?:\\\\)*\\u0000"


def _readable(rest: str) -> str:
    """Whether JSON, with empty strings, has not too many levels, nor too long a number. Most documents have
    few levels: those are counted without a look at each bracket."""
    brackets, few = f"regexp_replace({rest}, '[^][{{}}]+', '', 'g')", 8
    for _ in range(few):
        brackets = rf"regexp_replace({brackets}, '\[\]|\{{\}}', '', 'g')"
    step = "CASE WHEN x IN ('[', '{') THEN 1 ELSE -1 END"
    steps = f"list_transform(string_split({brackets}, ''), lambda x: {step})"
    most = f"CASE WHEN n > {JSON_LEVELS} THEN n ELSE n + x END"
    levels = f"CASE WHEN {brackets} = '' THEN 0 ELSE list_reduce({steps}, lambda n, x: {most}, {few}) END"
    return f"NOT regexp_matches({rest}, {literal(_JSON_LONG)}) AND {levels} <= {JSON_LEVELS}"


def _representable(type: Type, value: str, timezone: str) -> list[str]:
    name = type.name
    if name == "string":
        return [f"NOT contains({value}, chr(0))"]
    if name == "float":
        return [f"isfinite({value})"]
    if name == "json":
        text = f"CAST({value} AS VARCHAR)"
        rest = f"regexp_replace({text}, {literal(_JSON_STRING)}, '\"\"', 'g')"
        return [
            f"json_valid({text})",
            f"NOT regexp_matches({rest}, {literal(_JSON_LAX)})",
            f"NOT regexp_matches({text}, {literal(_JSON_NUL)})",
            f"CASE WHEN strlen({text}) > {2 * JSON_LEVELS} THEN {_readable(rest)} ELSE TRUE END",
        ]
    if name not in _RANGES:
        return []
    tests = [f"{value} BETWEEN {_RANGES[name]}"]
    if name == "timestamp" and timezone != "UTC":
        tests.append(f"timezone({literal(timezone)}, {value}) BETWEEN {_RANGES['timestamptz']}")
    return tests
