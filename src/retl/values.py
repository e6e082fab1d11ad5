"""The contract's types, and the form each value takes in DuckDB, CSV, JSON, DDL and the row hash.

A value that cannot take a form exactly is a reject, never an approximation. Everything here is pure:
functions return SQL text for a DuckDB session in UTC, or translate one Python value. An expression
named `expr` is the mart's column where a function also takes its DuckDB type, else its carrier.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Context, Decimal
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from retl.project.definitions import Formats

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


@dataclass(frozen=True, slots=True)
class Type:
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


def quoted(identifier: str) -> str:
    """An identifier for SQL text. ValueError if it holds NUL."""
    return '"' + _plain(identifier).replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string literal for SQL text. ValueError if it holds NUL."""
    return "'" + _plain(text).replace("'", "''") + "'"


def _plain(text: str) -> str:
    if "\0" in text:
        raise ValueError("SQL text cannot hold a NUL character")
    return text


# --- DuckDB: which column types fit a contract type, and the value as its carrier -------------------

_SHORT = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"}
_INTEGERS = _SHORT | {"UBIGINT", "HUGEINT", "UHUGEINT"}
_NAIVE = {"TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS"}
_AWARE = {"TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ_NS"}
_NESTED = {"STRUCT", "MAP", "TUPLE", "LIST"}
NO_TYPE = '"NULL"'  # the column of a bare NULL: it fits whatever is asked
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


def _base(column_type: str) -> str:
    """'DECIMAL(5,2)' → 'DECIMAL'; a list or array of whatever → 'LIST'."""
    return "LIST" if column_type.endswith("]") else column_type.partition("(")[0].strip()


def _element(column_type: str) -> str:
    return column_type[: column_type.rindex("[")]


def of_duckdb(column_type: str) -> Type | None:
    """The contract type of a mart column that has no contract; None if there is none for it."""
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
    """Whether a column of this DuckDB type can be judged under this contract type at all."""
    base = _base(column_type)
    if base == NO_TYPE:
        return True
    if type.name == "list":
        return base == "LIST" and fits(type.item, _element(column_type))
    if type.name == "json" and base in _NESTED:
        return _speaks_json(column_type)
    return base in _FITS[type.name]


def carrier(type: Type) -> str:
    """The DuckDB type that carries values of this contract type."""
    if type.name == "decimal":
        return f"DECIMAL({type.max_digits},{type.decimal_places})"
    return f"{carrier(type.item)}[]" if type.name == "list" else _CARRIERS[type.name]


def carry(type: Type, expr: str, column_type: str, timezone: str = "UTC") -> str:
    """SQL for the mart's value as its carrier; NULL where that is impossible, perhaps changed where
    `exact` says so. A naive timestamp under `timestamptz` is read in `timezone`."""
    base, target = _base(column_type), carrier(type)
    if column_type == target:
        return expr
    if base == NO_TYPE:
        return f"CAST({expr} AS {target})"
    if type.name == "list":
        return f"list_transform({expr}, lambda e: {carry(type.item, 'e', _element(column_type), timezone)})"
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
    """SQL predicate, never NULL: the value is NULL, or its carrier holds it unchanged and it is
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
    value = carry(type, expr, column_type, timezone)
    tests = [*_unchanged(type, expr, column_type, value), *_representable(type, value, timezone)]
    return _never_null(expr, " AND ".join(tests)) if tests else "TRUE"


def _never_null(expr: str, test: str) -> str:
    return f"({expr} IS NULL OR coalesce({test}, FALSE))"


def _unchanged(type: Type, expr: str, column_type: str, value: str) -> list[str]:
    """A value is carried unchanged if casting it back gives the same value."""
    base = _base(column_type)
    if column_type == carrier(type) or base == "ENUM" or (type.name == "integer" and base in _SHORT):
        return []
    if type.name == "json":
        return [f"{value} IS NOT NULL"]
    if base == "VARCHAR":
        return [f"CAST({value} AS VARCHAR) = lower({expr})"]
    if type.name == "timestamptz" and base in _NAIVE:
        value = f"TRY_CAST({expr} AS TIMESTAMP)"
    return [f"TRY_CAST({_by_text(type, value, base)} AS {column_type}) = {expr}"]


# The parser also takes NaN, Infinity and trailing commas: looked for where the strings are emptied.
_JSON_STRING = r'"(?:[^"\\]|\\.)*"'
_JSON_LAX = r",\s*[}\]]|[nN][aA][nN]|[iI][nN][fF]"
_JSON_NUL = r"(?:^|[^\\])(?:\\\\)*\\u0000"


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
        ]
    if name not in _RANGES:
        return []
    tests = [f"{value} BETWEEN {_RANGES[name]}"]
    if name == "timestamp" and timezone != "UTC":
        tests.append(f"timezone({literal(timezone)}, {value}) BETWEEN {_RANGES['timestamptz']}")
    return tests


# --- JSON ------------------------------------------------------------------------------------------

_SAFE = 2**53
_ESCAPES = {n: f"\\u{n:04X}" for n in range(32)} | {
    ord(char): "\\" + short for char, short in zip('\b\f\n\r\t"\\', 'bfnrt"\\', strict=True)
}


def json_sql(type: Type, expr: str, formats: Formats, timezone: str = "UTC") -> str:
    """SQL for the carrier's JSON text; NULL gives 'null'. Naive timestamps are read in `timezone`;
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
            f"'\"' || {_decimal_text(type, expr)} || '\"'"
            if formats.decimals == "string"
            else _decimal_text(type, expr)
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


def _decimal_text(type: Type, expr: str) -> str:
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
    """What `json_sql` makes of a carrier's value, for msgspec to write: JSON text goes through as it is."""
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


# --- CSV, DDL and PostgreSQL's column types ----------------------------------------------------------


def csv_sql(type: Type, expr: str) -> str:
    """SQL for what a CSV for PostgreSQL's COPY holds: array literals for lists, text for json."""
    if type.name == "list":
        escaped = r"replace(replace(CAST(e AS VARCHAR), '\', '\\'), '" + '"' + r"""', '\"')"""
        return _joined(expr, f"coalesce('\"' || {escaped} || '\"', 'NULL')", "{}")
    return f"CAST({expr} AS VARCHAR)" if type.name == "json" else expr


def is_text(type: Type) -> bool:
    """Whether its CSV form must be quoted to be told from NULL and from end-of-data marks."""
    return type.name in ("string", "json", "list")


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
# Column types by format_type() that hold every value or answer with an error, never with a change.
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
    """Whether a column (by `format_type`) takes every value unaltered or refuses it with an error.
    `max_length` is the contract's, `enum` says the column's type is an enum; unknown types are not."""
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


KEY_TYPES = frozenset({"string", "uuid", "integer", "decimal", "boolean", "date", "timestamp", "timestamptz"})


def injective(type: Type, pg_type: str) -> bool:
    """Whether a lossless column of this type also tells any two keys of the contract's type apart."""
    return type.name in KEY_TYPES and not pg_type.startswith(("citext", "character("))


# --- keys, the row hash, transforms ----------------------------------------------------------------

_BARE = ("integer", "boolean")  # in a JSON array as themselves; all else as a string, which keeps its digits


def key_sql(types: Sequence[Type], exprs: Sequence[str]) -> str:
    """SQL for the key as text from the carriers: one column as its plain text, several as a JSON array;
    NULL if any part is. Different keys have different texts."""
    texts = [_key_text_sql(type, expr) for type, expr in zip(types, exprs, strict=True)]
    if len(texts) == 1:
        return texts[0]
    parts = [
        text
        if type.name in _BARE
        else f"CASE WHEN {expr} IS NOT NULL THEN CAST(to_json({text}) AS VARCHAR) END"
        for type, expr, text in zip(types, exprs, texts, strict=True)
    ]
    return "'[' || " + " || ',' || ".join(parts) + " || ']'"


def _key_text_sql(type: Type, expr: str) -> str:
    if type.name == "string":
        return expr
    if type.name == "decimal":
        return _decimal_text(type, expr)
    if type.name == "timestamp":
        return f"({_iso(expr)})"
    if type.name == "timestamptz":
        return f"({_iso(_utc(expr))} || 'Z')"
    return f"CAST({expr} AS VARCHAR)"


def key_value_sql(types: Sequence[Type], index: int, key_expr: str) -> str:
    """SQL for the typed value of one key column, from the key's text."""
    text = key_expr if len(types) == 1 else f"json_extract_string({key_expr}, '$[{index}]')"
    return text if types[index].name == "string" else f"CAST({text} AS {carrier(types[index])})"


def key_text(values: Sequence[Any], types: Sequence[Type]) -> str:
    """The text that `key_sql` makes of these values; none of them may be None."""
    texts = [_key_text(value, type) for value, type in zip(values, types, strict=True)]
    if len(texts) == 1:
        return texts[0]
    parts = (
        text if type.name in _BARE else f'"{text.translate(_ESCAPES)}"'
        for text, type in zip(texts, types, strict=True)
    )
    return f"[{','.join(parts)}]"


def _key_text(value: Any, type: Type) -> str:
    if type.name == "boolean":
        return "true" if value else "false"
    if type.name == "decimal":
        return f"{_scaled(value, type):f}"
    if type.name == "timestamp":
        return _iso_text(value)
    if type.name == "timestamptz":
        return _iso_text(value.astimezone(UTC)) + "Z"
    return str(value)


def parse_key(text: str, types: Sequence[Type]) -> tuple[Any, ...]:
    """The values a key text stands for. ValueError, without the text, if it is none for these types."""
    parts: Any = [text] if len(types) == 1 else json.loads(text)
    if not isinstance(parts, list) or len(parts) != len(types):
        raise ValueError(f"a key of {len(types)} columns is a JSON array of {len(types)} values")
    return tuple(_parsed(part, type) for part, type in zip(parts, types, strict=True))


_WRITTEN: dict[TypeName, Any] = {
    "string": str,
    "uuid": UUID,
    "integer": int,
    "decimal": Decimal,
    "boolean": {"true": True, "false": False}.__getitem__,
    "date": date.fromisoformat,
    "timestamp": datetime.fromisoformat,
    "timestamptz": datetime.fromisoformat,
}


def _parsed(part: Any, type: Type) -> Any:
    text = json.dumps(part) if isinstance(part, int) else part  # true and 7 as the words they are
    try:
        return _WRITTEN[type.name](text)
    except (ValueError, LookupError, ArithmeticError, TypeError, AttributeError):
        raise ValueError(f"a part of the key is no {type}") from None


def hash_sql(fields: Sequence[tuple[str, str, Type]], salt: str) -> str:
    """SQL for a row's hash over (destination field, carrier, type), in any order: 16 bytes of its values,
    then 4 of the salt (hexadecimal digits), which stands for all that is the same in every row.

    sha256 takes time by the block of 64 bytes: neither the fields' names, in whose order the values stand,
    nor the salt are hashed once more with each row.
    """
    # JSON inside JSON loses digits, and '.5' is not JSON at all: both go in as text
    as_text = ("json", "decimal")
    parts = ", ".join(
        f"CAST({expr} AS VARCHAR)" if type.name in as_text else expr
        for _, expr, type in sorted(fields, key=lambda field: field[0])
    )
    digest = f"substring(sha256(CAST(json_array({parts}) AS VARCHAR)), 1, 32)"
    return f"unhex({digest} || {literal(salt[:8])})"


_TRANSFORMS: dict[str, str] = {
    "trim": r"trim({}, E' \t\n\r\x0b\x0c')",
    "lower": "lower({})",
    "upper": "upper({})",
    "sha256_hex": "sha256({})",
}


def transform_sql(name: str, expr: str) -> str:
    """SQL for a transform of a string's carrier; NULL stays NULL. `trim` takes ASCII white space."""
    return _TRANSFORMS[name].format(expr)
