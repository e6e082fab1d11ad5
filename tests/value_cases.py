"""The values no target is allowed to change, and the word on whether one did.

`OWN` are columns without a contract, as the warehouse types them; `JUDGED` are columns under a contract.
A case is one value in one column; every other column of its row is NULL, so that each is accepted or
refused for itself. `same` compares what the warehouse says of a value with what a target says, by Python
alone: nothing of retl decides here what is equal.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import duckdb

TEXTS = {
    "empty": "''",
    "one blank": "' '",
    "blanks around": "'  both  '",
    "blanks behind": "'abc   '",
    "tab": "e'a\\tb'",
    "line feed": "e'a\\nb'",
    "carriage return": "e'a\\r\\nb\\r'",
    "only a line feed": "e'\\n'",
    "end of data": "'\\.'",
    "end of data on its own line": "e'a\\n\\\\.\\nb'",
    "null of COPY": "'\\N'",
    "the word NULL": "'NULL'",
    "the word null": "'null'",
    "backslash": "'\\'",
    "double quote": "'\"'",
    "single quote": "''''",
    "quotes and commas": "'a,\"b\",''c'';d'",
    "NUL alone": "chr(0)",
    "NUL inside": "'a' || chr(0) || 'b'",
    "escape": "chr(27) || '[31mred'",
    "control characters": "chr(1) || chr(8) || chr(127) || chr(133)",
    "line separators": "chr(8232) || chr(8233)",
    "byte order mark": "chr(65279) || 'bom'",
    "no character": "chr(65535) || chr(65534)",
    "composed": "chr(233)",
    "decomposed": "'e' || chr(769)",
    "right to left": "'שלום ' || chr(8238) || 'abc'",
    "zero width": "'a' || chr(8203) || chr(8205) || 'b'",
    "emoji family": "'👨‍👩‍👧'",
    "beyond the plane": "chr(119070)",
    "the last character": "chr(1114111)",
    "leading zero": "'007'",
    "exponent": "'1e3'",
    "true": "'true'",
    "NaN": "'NaN'",
    "JSON object": "'{\"a\": 1}'",
    "JSON null": "'\"null\"'",
    "array literal": "'{a,b}'",
    "placeholder": "'{id} $id ${HOME} %s %25 $1'",
    "formula": '\'=HYPERLINK("http://x","y")\'',
    "formula by plus": "'+1+cmd|'' /C calc''!A0'",
    "formula by at": "'@SUM(1)'",
    "markup": "'<script>alert(\"x\")</script>&amp;'",
    "SQL": "'''; DROP TABLE x; --'",
    "Redis protocol": "e'$5\\r\\nHELLO\\r\\n'",
    "a path": "'../../etc/passwd'",
    "one million": "repeat('x', 1000000)",
    "escaped surrogate": "'\\ud800'",
}
DATES = {
    "first of its calendar": "'0001-01-01'",
    "before Christ": "'0001-12-31 (BC)'",
    "last of four digits": "'9999-12-31'",
    "five digits": "'10000-01-01'",
    "leap day": "'2024-02-29'",
    "infinity": "'infinity'",
    "-infinity": "'-infinity'",
    "before the epoch": "'1969-12-31'",
}
TIMES = {
    "first": "'0001-01-01 00:00:00'",
    "before Christ": "'0001-12-31 (BC) 00:00:00'",
    "last": "'9999-12-31 23:59:59.999999'",
    "five digits": "'10000-01-01 00:00:00'",
    "infinity": "'infinity'",
    "-infinity": "'-infinity'",
    "an hour that clocks skip": "'2026-03-29 02:30:00'",
    "an hour that clocks repeat": "'2026-10-25 02:30:00'",
    "around a leap second": "'2016-12-31 23:59:59.999999'",
    "after a leap second": "'2017-01-01 00:00:00'",
    "a microsecond before the epoch": "'1969-12-31 23:59:59.999999'",
    "tenths": "'2026-01-01 00:00:00.1'",
}
FLOATS = {
    "NaN": "'nan'",
    "infinity": "'inf'",
    "-infinity": "'-inf'",
    "negative zero": "'-0.0'",
    "a tenth": "0.1",
    "2^53": "9007199254740992",
    "2^53 + 2": "9007199254740994",
    "smallest": "'5e-324'",
    "1.005": "1.005",
    "1e22": "1e22",
    "1e23": "1e23",
    "whole": "3",
}
INTEGERS = {
    "2^53 - 1": "9007199254740991",
    "2^53 + 1": "9007199254740993",
    "-2^53 - 1": "-9007199254740993",
    "2^63 - 1": "9223372036854775807",
    "2^63": "9223372036854775808",
    "-2^63": "-9223372036854775808",
    "-2^63 - 1": "-9223372036854775809",
    "zero": "0",
}
JSONS = {
    "many digits": "'{\"n\": 12345678901234567890.123456789012345678901234567890}'",
    "trailing zeros": "'[1.10, 100, 1E2, -0.0]'",
    "huge exponent": "'1e400'",
    "an exponent beyond numbers": "'1e200000'",
    "a name twice": '\'{"a": 1, "a": 2}\'',
    "2^64 + 1": "'18446744073709551617'",
    "JSON's null": "'null'",
    "empty text": "'\"\"'",
    "escapes": '\'"\\u00e9\\n\\"\\\\\\/"\'',
    "escaped emoji": "'\"\\ud83d\\ude00\"'",
    "escaped NUL": "'\"a\\u0000b\"'",
    "markup": '\'{"<script>": "</script>"}\'',
    "deep": "repeat('[', 200) || repeat(']', 200)",
    "very deep": "repeat('[', 900) || repeat(']', 900)",
    "empty name": "'{\"\": {}}'",
    "white space": "e' { \"a\" :\\n [ 1 , 2 ] } '",
}
# type → {what: SQL of the value}; every type of test_all_types() joins with its least and greatest.
OWN: dict[str, dict[str, str]] = {
    "VARCHAR": TEXTS,
    "DATE": DATES,
    "TIMESTAMP": TIMES,
    "TIMESTAMP_NS": {"microseconds": "'2026-01-01 00:00:00.123456'", "nanoseconds": "'2026-01-01 00:00:00.123456789'"},
    "TIMESTAMP WITH TIME ZONE": {what: f"{text[:-1]}+00'" if "inf" not in text else text for what, text in TIMES.items()}
    | {"with an offset": "'2026-03-29 02:30:00+05:45'"},
    "DOUBLE": FLOATS,
    "FLOAT": {"a tenth": "0.1", "2^24 + 2": "16777218", "NaN": "'nan'", "negative zero": "'-0.0'", "smallest": "'1e-45'"},
    "BIGINT": {what: text for what, text in INTEGERS.items() if abs(int(text)) < 2**63 or text.startswith("-9223372036854775808")},
    "HUGEINT": INTEGERS,
    "DECIMAL(38,0)": {"38 digits": "'99999999999999999999999999999999999999'"},
    "DECIMAL(38,38)": {"38 places": "'0.00000000000000000000000000000000000001'", "half": "-0.5"},
    "DECIMAL(5,3)": {"1.005": "1.005", "1.000": "1.000", "-0.001": "-0.001"},
    "UUID": {"upper case": "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'"},
    "JSON": JSONS,
    "ENUM('', ' ', 'a,b', '\\.')": {"empty": "''", "blank": "' '", "comma": "'a,b'", "end of data": "'\\.'"},
    "VARCHAR[]": {
        "hostile texts": "['', 'NULL', 'null', '{}', 'a,b', '\"', '\\', '\\.', ' a ', e'\\n', NULL]",
        "NUL": "['a' || chr(0)]",
        "only NULL": "[NULL]",
        "10,000": "list_transform(range(10000), lambda i: 'x' || i)",
    },
    "DOUBLE[]": {"finite": "[0.1, '-0.0'::DOUBLE, 1e300, NULL]", "NaN": "['nan'::DOUBLE]"},
    "DECIMAL(12,2)[]": {"two places": "[1.10, NULL, -0.05]"},
    "BOOLEAN[]": {"all": "[true, false, NULL]"},
    "DATE[]": {"finite": "['0001-01-01'::DATE, '9999-12-31', NULL]"},
    "TIMESTAMP[]": {"finite": "['0001-01-01'::TIMESTAMP, '9999-12-31 23:59:59.999999', NULL]"},
    "TIMESTAMP WITH TIME ZONE[]": {"finite": "['0001-01-01 00:00:00+00'::TIMESTAMPTZ, '2026-03-29 02:30:00.1+02', NULL]"},
    "ENUM('a', 'b,\"')[]": {"both": "['a', NULL, 'b,\"']"},
    "UUID[]": {"one": "['a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11']"},
    "STRUCT(a STRUCT(b VARCHAR[]), n DECIMAL(38,10))": {
        "nested": "{'a': {'b': ['x', NULL, '']}, 'n': 1234567890123456789.0123456789}",
        "a NUL inside": "{'a': {'b': ['a' || chr(0)]}, 'n': 1}",
        "markup": "{'a': {'b': ['<script>']}, 'n': 0}",
    },
    "STRUCT(x DOUBLE, y BIGINT)": {
        "2^53 + 1": "{'x': 0.1, 'y': 9007199254740993}",
        "NaN": "{'x': 'nan', 'y': 1}",
        "infinity": "{'x': 'inf', 'y': 1}",
    },
    "STRUCT(h HUGEINT, u UHUGEINT)": {
        "2^127 - 1": "{'h': 170141183460469231731687303715884105727, 'u': 340282366920938463463374607431768211455}"
    },
    "STRUCT(d DECIMAL(3,3), f FLOAT)": {"below one": "{'d': -0.125, 'f': 0.1}"},
    "STRUCT(\"a b\" INTEGER, \"\"\"\" VARCHAR)": {"odd names": "{'a b': 1, '\"': 'x'}"},
    "MAP(VARCHAR, INTEGER)": {"odd names": "MAP {'': 1, 'a\"b': 2, 'é': NULL}"},
    "MAP(INTEGER, VARCHAR)": {"numbers as names": "MAP {1: 'a', -2: 'b'}"},
    "MAP(DOUBLE, VARCHAR)": {"fractions as names": "MAP {0.1: 'a', 1e300: 'b'}"},
    "MAP(BOOLEAN, STRUCT(x DATE))": {"truth as names": "MAP {true: {'x': DATE '0001-01-01'}, false: NULL}"},
    "MAP(VARCHAR, VARCHAR)": {"a NUL in a name": "MAP {'a' || chr(0): 'x'}", "the word null": "MAP {'null': 'null', 'x': NULL}"},
    "STRUCT(e ENUM('x'), u UUID)": {"both": "{'e': 'x', 'u': 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'}"},
    "STRUCT(t TIMESTAMP_NS, z TIMESTAMP WITH TIME ZONE)": {
        "nanoseconds": "{'t': '2026-01-01 00:00:00.123456789', 'z': '2026-01-01 00:00:00+02'}",
        "infinity": "{'t': 'infinity', 'z': '-infinity'}",
    },
    "STRUCT(d DATE)": {"before Christ": "{'d': '0001-12-31 (BC)'::DATE}", "infinity": "{'d': 'infinity'::DATE}"},
    "DECIMAL(38,38)[]": {"38 places": "['0.00000000000000000000000000000000000001'::DECIMAL(38,38)]"},
    "HUGEINT[]": {"2^127 - 1": "[170141183460469231731687303715884105727]"},
    "DECIMAL(18,17)[]": {"17 places": "[0.12345678901234567::DECIMAL(18,17)]"},
    "STRUCT(a DECIMAL(38,37))": {"37 places": "{'a': 1.2345678901234567890123456789012345678}"},
    "STRUCT(x HUGEINT, \"date\" DATE, s STRUCT(v VARCHAR)[])": {
        "least": "{'x': -170141183460469231731687303715884105728, 'date': '2024-02-29', 's': [{'v': e'\\\\u0000'}]}"
    },
    "BIGNUM[]": {"44 digits": "['99999999999999999999999999999999999999999999'::BIGNUM]"},
    "BIGNUM": {"small": "7", "44 digits": "'99999999999999999999999999999999999999999999'"},
}  # fmt: skip
# contract → {DuckDB type → {what: SQL of the value}}
JUDGED: dict[str, dict[str, dict[str, str]]] = {
    "{type: integer}": {
        "DOUBLE": {"whole": "7", "half": "7.5", "NaN": "'nan'", "2^53 + 2": "9007199254740994", "2^63": "9223372036854775808"},
        "DECIMAL(20,2)": {"whole": "7.00", "a cent more": "7.01", "2^53 + 1": "9007199254740993"},
        "UBIGINT": {"2^63 - 1": "9223372036854775807", "2^64 - 1": "18446744073709551615"},
    },
    "{type: decimal, max_digits: 12, decimal_places: 2}": {
        "DOUBLE": {"a tenth": "0.1", "1.005": "1.005", "1e22": "1e22", "NaN": "'nan'", "negative zero": "'-0.0'"},
        "DECIMAL(5,3)": {"1.005": "1.005", "1.000": "1.000"},
        "HUGEINT": {"ten digits": "9999999999", "eleven digits": "99999999999"},
        "FLOAT": {"a tenth": "0.1"},
    },
    "{type: decimal, max_digits: 38, decimal_places: 10}": {
        "DOUBLE": {"1.5e-7": "1.5e-7", "1e-11": "1e-11", "1e22": "1e22"},
    },
    "{type: float}": {
        "BIGINT": {"2^53": "9007199254740992", "2^53 + 1": "9007199254740993"},
        "DECIMAL(38,10)": {"a tenth": "0.1", "29 digits": "1234567890123456789.0123456789"},
    },
    "{type: uuid}": {
        "VARCHAR": {"upper case": "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", "braces": "'{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}'", "empty": "''"},
    },
    "{type: timestamptz}": {
        "TIMESTAMP": {"an hour that clocks skip": "'2026-03-29 02:30:00'", "infinity": "'infinity'"},
        "TIMESTAMP_NS": {"nanoseconds": "'2026-01-01 00:00:00.000000001'"},
    },
    "{type: json}": {
        "VARCHAR": {"object": "'{\"a\": 1.10}'", "NaN": "'[NaN]'", "trailing comma": "'[1,]'", "empty": "''", "no JSON": "'{a: 1}'", "lone surrogate": "'\"\\ud800\"'"},
        "INTEGER[]": {"list": "[1, NULL]"},
    },
    "{type: string, max_length: 3}": {
        "VARCHAR": {"three": "'abc'", "three emoji": "'🦆🦆🦆'", "blanks behind": "'abc   '", "decomposed": "'e' || chr(769) || 'ab'"},
    },
    "{type: list, items: integer}": {
        "HUGEINT[]": {"2^63 - 1": "[9223372036854775807, NULL]", "2^63": "[9223372036854775808]"},
    },
}  # fmt: skip
# what a column of such a type and contract is refused for, whatever it holds
UNFIT = {
    "{type: integer}": "VARCHAR",
    "{type: decimal, max_digits: 12, decimal_places: 2}": "VARCHAR",
    "{type: float}": "VARCHAR",
    "{type: boolean}": "INTEGER",
    "{type: date}": "TIMESTAMP",
    "{type: timestamp}": "TIMESTAMP WITH TIME ZONE",
    "{type: string}": "BLOB",
    "{type: uuid}": "BLOB",
    "{type: json}": "BLOB[]",
    "{type: list, items: string}": "VARCHAR",
}


@dataclass(frozen=True)
class Case:
    """One value: in which mart and column, under which contract, and what makes it."""

    mart: str
    column: str
    type: str
    contract: str | None
    what: str
    sql: str

    @property
    def id(self) -> str:
        return f"{self.column}/{self.what}"


def cases() -> list[Case]:
    """Every value of OWN and JUDGED, and both ends and the NULL of every type DuckDB has."""
    own = [
        *_ends(),
        *(_case("own", t, None, what, sql) for t, values in OWN.items() for what, sql in values.items()),
    ]
    judged = [
        _case("judged", type, contract, what, sql)
        for contract, types in JUDGED.items()
        for type, values in types.items()
        for what, sql in values.items()
    ]
    return own + judged


# Columns of PostgreSQL that an application made: the mart's type for each, and values of it.
APPLIED: dict[tuple[str, str], list[str]] = {
    ("char(3)", "VARCHAR"): ["'ab'", "'ab '", "'abcd'", "''"],
    ("varchar(3)", "VARCHAR"): ["'abc'", "'ab '", "'abc '", "'abcd'"],
    ("time", "VARCHAR"): ["'09:30:00'", "'09:30'", "'25:00:00'"],
    ("interval", "VARCHAR"): ["CAST(INTERVAL '14 months 1 day' AS VARCHAR)", "'26:00:00'", "'26 hours'"],
    ("inet", "VARCHAR"): ["'10.0.0.1'", "'10.0.0.1/32'", "'somewhere'"],
    ("macaddr", "VARCHAR"): ["'08:00:2B:01:02:03'", "'0800.2b01.0203'"],
    ("int4range", "VARCHAR"): ["'[1,5)'", "'[1,4]'"],
    ("bytea", "VARCHAR"): ["'\\x' || hex('ab'::BLOB)", "'ab'"],
    ("uuid", "VARCHAR"): ["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", "'a0eebc99'"],
    ("money", "DECIMAL(8,3)"): ["1234.5", "1.005"],
    ("real", "DOUBLE"): ["0.1", "9.8", "1.0000000001", "1e300"],
    ("real", "DECIMAL(12,2)"): ["9.80", "9999999999.99"],
    ("numeric(8,2)", "DOUBLE"): ["1.5", "1.005", "1e9"],
    ("numeric(8,1)", "DECIMAL(8,2)"): ["1.50", "1.05"],
    ("timestamp(0)", "TIMESTAMP"): ["'2026-01-02 03:04:05'", "'2026-01-02 03:04:05.6'"],
    ("timestamp", "DATE"): ["'2026-01-02'"],
    ("varchar(3)[]", "VARCHAR[]"): ["['abc', NULL]", "['abc ']", "['abcd']"],
    ("real[]", "DOUBLE[]"): ["[0.1, NULL]", "[1.0000000001]"],
}


def unfit_types() -> list[tuple[str, str | None]]:
    """Every (DuckDB type, contract) of which no value can be delivered, as tests/test_value_outcomes.py expects."""
    none = ["TIME", "TIME WITH TIME ZONE", "TIME_NS", "INTERVAL", "BLOB", "BIT", "GEOMETRY"]
    none += [
        'UNION("name" VARCHAR, age SMALLINT)',
        "BLOB[]",
        "STRUCT(a BLOB)",
        "MAP(VARCHAR, INTERVAL)",
        "JSON[]",
    ]
    return [(type, None) for type in none] + [(type, contract) for contract, type in UNFIT.items()]


def _case(mart: str, type: str, contract: str | None, what: str, sql: str) -> Case:
    column = type if contract is None else f"{type} as {short(contract)}"
    return Case(mart, column, type, contract, what, sql)


def short(contract: str) -> str:
    """'{type: decimal, max_digits: 12, decimal_places: 2}' → 'decimal(12,2)'."""
    first, *rest = re.findall(r": ([a-z0-9]+)", contract)
    return f"{first}({','.join(rest)})" if rest else first


def _ends() -> Iterator[Case]:
    with duckdb.connect() as con:
        described = con.execute("DESCRIBE SELECT * FROM test_all_types()").fetchall()
    refused = {type for type, contract in unfit_types() if contract is None}
    for name, type, *_ in described:
        if type not in refused:
            for number, what in enumerate(("least", "greatest", "NULL")):
                value = f'(SELECT "{name}" FROM test_all_types() OFFSET {number} LIMIT 1)'
                yield Case("own", type if len(type) < 80 else f"ENUM of {name}", type, None, what, value)


def kind(case: Case) -> str:
    """What a value is: a name in _MEANINGS, with [] for a list of such."""
    if case.contract is not None:
        found = re.match(r"{type: (\w+)(, items: (\w+))?", case.contract)
        assert found
        return f"{found[3]}[]" if found[3] else found[1]
    return _own_kind(case.type)


def _own_kind(type: str) -> str:
    if type.endswith("]"):
        inner = _own_kind(type[: type.rindex("[")])
        return "json" if inner.endswith("]") or inner in ("json", "decimal") else f"{inner}[]"
    return _KINDS.get(re.split(r"[ (…]", type)[0] if type not in _KINDS else type, "integer")


_KINDS = {
    "VARCHAR": "string",
    "ENUM": "string",
    "UUID": "uuid",
    "DECIMAL": "decimal",
    "FLOAT": "float",
    "DOUBLE": "float",
    "BOOLEAN": "boolean",
    "DATE": "date",
    "TIMESTAMP WITH TIME ZONE": "timestamptz",
    "TIMESTAMPTZ_NS": "timestamptz",
    "TIMESTAMP": "timestamp",
    "TIMESTAMP_S": "timestamp",
    "TIMESTAMP_MS": "timestamp",
    "TIMESTAMP_NS": "timestamp",
    **dict.fromkeys(("JSON", "STRUCT", "MAP", "TUPLE"), "json"),
}


def asked(con: duckdb.DuckDBPyConnection, case: Case) -> Any:
    """The value as the warehouse says it: text, a list of texts, or for json the Python tree."""
    name, of = '"' + case.column.replace('"', '""') + '"', kind(case)
    nested = of == "json" and case.type not in ("JSON", "VARCHAR")
    if of.endswith("[]"):
        name = f"list_transform({name}, lambda e: CAST(e AS VARCHAR))"
    elif nested:  # Python has no infinite date and no nanosecond
        leaves = re.sub(r"\b(DATE|UUID|TIMESTAMP(_NS| WITH TIME ZONE)?)(?=[ ,)\[])", "VARCHAR", case.type)
        name = f"CAST({name} AS {leaves})"
    else:
        name = f"CAST({f'CAST({name} AS DOUBLE)' if case.type == 'FLOAT' and of == 'float' else name} AS VARCHAR)"
    ((value,),) = con.execute(f"SELECT {name} FROM {case.mart} WHERE id = ?", [case.id]).fetchall()
    if of == "json" and not nested and value is not None:
        try:
            return tree(value)
        except ValueError:
            return ("no JSON", value)  # equal to nothing a target could hold
    return _plain(value) if nested else value


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {_member(name): _plain(item) for name, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case float():
            return Decimal(repr(value))
    return value


def _member(name: Any) -> str:
    return str(name).lower() if isinstance(name, bool) else str(name)


def same(source: Any, told: Any, of: str) -> bool:
    """Whether a target's value is the warehouse's: `source` as `asked` gives it; `told` as text, as JSON
    was read, or for json as a tree."""
    if source is None or told is None:
        return source is told
    if of.endswith("[]"):
        return len(source) == len(told) and all(
            same(one, other, of[:-2]) for one, other in zip(source, told, strict=True)
        )
    try:
        return bool(_MEANINGS[of](source) == _MEANINGS[of](told))
    except (ValueError, ArithmeticError, AssertionError, KeyError):
        return False


def tree(text: str) -> Any:
    """JSON as readers take it: numbers by their value, members in any order, the last of a name."""
    return json.loads(text, parse_float=Decimal)


def _number(value: Any) -> Decimal:
    assert not isinstance(value, bool)
    return Decimal(value)


def _whole(value: Any) -> int:
    number = _number(value)
    assert number == int(number)
    return int(number)


def _double(value: Any) -> bytes:
    return struct.pack("<d", float(value))


def _moment(value: Any) -> datetime:
    read = datetime.fromisoformat(value)
    return read.astimezone(UTC) if read.tzinfo else read.replace(tzinfo=UTC)


def _flag(value: Any) -> bool:
    return value if isinstance(value, bool) else {"true": True, "t": True, "false": False, "f": False}[value]


def _text(value: Any) -> str:
    assert isinstance(value, str)
    return value


_MEANINGS: Mapping[str, Any] = {
    "string": _text,
    "uuid": UUID,
    "integer": _whole,
    "decimal": _number,
    "float": _double,
    "boolean": _flag,
    "date": _text,
    "timestamp": _moment,
    "timestamptz": _moment,
    "json": lambda value: value,
}
