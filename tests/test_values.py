"""Values keep their digits, or are refused: each claim is asked of a real DuckDB."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import duckdb
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retl.destinations.postgres.types import ddl, injective, lossless
from retl.model import Formats
from retl.values import canonical, csv_text, json_text, keys, storage, transforms
from retl.values.sql import literal, quoted
from retl.values.types import KEY_TYPES, Type, fits, of_duckdb
from tests.json_values import json_value, scaled

T = {
    name: Type(name)
    for name in ("string", "uuid", "integer", "float", "boolean", "date", "timestamp", "timestamptz", "json")
}
MONEY = Type("decimal", 12, 2)
con = duckdb.connect()
con.execute("SET timezone = 'UTC'")


def ask(sql: str, parameters: list[Any] | None = None) -> Any:
    (row,) = con.execute(f"SELECT {sql}", parameters).fetchall()
    return row[0]


def spelled(value: Any) -> str:
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


def judged(type: Type, column_type: str, text: str | None, timezone: str = "UTC") -> bool:
    """Whether this value of that column carries exactly under the type."""
    value = "NULL" if text is None else literal(text)
    relation = f"(SELECT CAST({value} AS {column_type}) AS x)"
    (row,) = con.execute(
        f"SELECT {storage.exact(type, 'x', column_type, timezone)} FROM {relation}"
    ).fetchall()
    assert isinstance(row[0], bool)
    return row[0]


def test_names_and_texts_are_quoted() -> None:
    assert quoted('a"b') == '"a""b"'
    assert literal("a'b") == "'a''b'"
    with pytest.raises(ValueError, match="NUL"):
        literal("a\0b")
    with pytest.raises(ValueError, match="NUL"):
        quoted("\0")


def nested(levels: int) -> str:
    """So many lists inside each other."""
    return "[" * levels + "]" * levels


EXACT = [
    (T["integer"], "HUGEINT", "9223372036854775807", True),
    (T["integer"], "HUGEINT", "9223372036854775808", False),
    (T["integer"], "BIGNUM", "99999999999999999999999999999999999999999999", False),
    (T["integer"], "BIGNUM", "-7", True),
    (T["integer"], "UBIGINT", "18446744073709551615", False),
    (T["integer"], "DECIMAL(5,2)", "7.00", True),
    (T["integer"], "DECIMAL(5,2)", "7.01", False),
    (T["integer"], "DOUBLE", "7", True),
    (T["integer"], "DOUBLE", "7.5", False),
    (T["integer"], "DOUBLE", "9223372036854775808", False),
    (T["integer"], "DOUBLE", "nan", False),
    (T["float"], "BIGINT", "9007199254740992", True),
    (T["float"], "BIGINT", "9007199254740993", False),
    (T["float"], "DECIMAL(38,10)", "0.1", True),
    (T["float"], "DECIMAL(38,10)", "1234567890123456789.0123456789", False),
    (T["float"], "DOUBLE", "inf", False),
    (T["float"], "DOUBLE", "nan", False),
    (T["float"], "FLOAT", "-inf", False),
    (MONEY, "DOUBLE", "0.1", True),
    (MONEY, "DOUBLE", "1.005", False),
    (MONEY, "FLOAT", "0.1", True),
    (MONEY, "DOUBLE", "1e22", False),
    (MONEY, "DOUBLE", "nan", False),
    (MONEY, "DOUBLE", "inf", False),
    (MONEY, "DECIMAL(5,3)", "1.005", False),
    (MONEY, "DECIMAL(5,3)", "1.000", True),
    (MONEY, "DECIMAL(38,0)", "10000000000", False),
    (MONEY, "HUGEINT", "9999999999", True),
    (MONEY, "HUGEINT", "10000000000", False),
    (Type("decimal", 38, 2), "DOUBLE", "1e22", True),
    (Type("decimal", 38, 10), "DOUBLE", "1.5e-7", True),
    (Type("decimal", 38, 6), "DOUBLE", "1.5e-7", False),
    (T["date"], "DATE", "infinity", False),
    (T["date"], "DATE", "9999-12-31", True),
    (T["date"], "DATE", "10000-01-01", False),
    (T["date"], "DATE", "0001-01-01", True),
    (T["date"], "DATE", "0001-12-31 (BC)", False),
    (T["timestamp"], "TIMESTAMP", "-infinity", False),
    (T["timestamp"], "TIMESTAMP", "9999-12-31 23:59:59.999999", True),
    (T["timestamp"], "TIMESTAMP_NS", "2026-01-01 00:00:00.123456", True),
    (T["timestamp"], "TIMESTAMP_NS", "2026-01-01 00:00:00.123456789", False),
    (T["timestamp"], "TIMESTAMP_NS", "infinity", False),
    (T["timestamp"], "TIMESTAMP_S", "290000-01-01 00:00:00", False),
    (T["timestamptz"], "TIMESTAMP WITH TIME ZONE", "infinity", False),
    (T["timestamptz"], "TIMESTAMPTZ_NS", "2026-01-01 00:00:00.000000001+00", False),
    (T["timestamptz"], "TIMESTAMP", "2026-01-01 00:00:00", True),
    (T["timestamptz"], "TIMESTAMP_NS", "2026-01-01 00:00:00.000000001", False),
    (T["uuid"], "VARCHAR", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", True),
    (T["uuid"], "VARCHAR", "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}", False),
    (T["uuid"], "VARCHAR", "", False),
    (T["string"], "VARCHAR", "", True),
    (T["string"], "ENUM('a', ' ')", " ", True),
    (T["json"], "VARCHAR", '{"NaN": [1, "Infinity,]"]}', True),
    (T["json"], "JSON", "NaN", False),
    (T["json"], "VARCHAR", '{"a": -Infinity}', False),
    (T["json"], "VARCHAR", "[1, ]", False),
    (T["json"], "VARCHAR", "", False),
    (T["json"], "VARCHAR", "{a: 1}", False),
    (T["json"], "VARCHAR", r'"\u0000"', False),
    (T["json"], "VARCHAR", r'"\\u0000"', True),
    (T["json"], "VARCHAR", r'"\ud800"', False),
    (T["json"], "VARCHAR", nested(200), True),
    (T["json"], "VARCHAR", nested(201), False),
    (T["json"], "VARCHAR", nested(5000), False),
    (T["json"], "VARCHAR", f'["{nested(5000)}", "{"9" * 5000}"]', True),
    (T["json"], "VARCHAR", f"[{', '.join([nested(7)] * 300)}]", True),
    (T["json"], "VARCHAR", f"[{', '.join([nested(199)] * 3)}]", True),
    (T["json"], "VARCHAR", f"[{', '.join([nested(200)] * 3)}]", False),
    (T["json"], "VARCHAR", f"[-{'9' * 5000}]", False),
    (T["json"], "DOUBLE[]", "[1.5, nan]", False),
    (T["json"], "STRUCT(a DECIMAL(38,10))", "{'a': 1.5}", True),
    (Type("list", items="integer"), "HUGEINT[]", "[1, NULL]", True),
    (Type("list", items="integer"), "HUGEINT[]", "[1, 9223372036854775808]", False),
    (Type("list", items="float"), "DOUBLE[]", "[nan]", False),
    (Type("list", items="date"), "DATE[2]", "[2026-01-01, infinity]", False),
]


@pytest.mark.parametrize(("type", "column_type", "text", "expected"), EXACT)
def test_a_value_is_exact_or_refused(type: Type, column_type: str, text: str, expected: bool) -> None:
    assert fits(type, column_type)
    assert judged(type, column_type, text) is expected
    assert judged(type, column_type, None)


def test_a_string_with_nul_is_refused() -> None:
    assert ask(storage.exact(T["string"], "('a' || chr(0))", "VARCHAR")) is False


def test_a_naive_time_must_stay_inside_the_calendar_in_utc_too() -> None:
    last = "9999-12-31 23:59:59"
    for name in ("timestamp", "timestamptz"):
        assert judged(T[name], "TIMESTAMP", last, "Europe/Vienna")
        assert not judged(T[name], "TIMESTAMP", last, "America/New_York")


def test_every_duckdb_type_has_a_contract_type_or_none() -> None:
    none = {"time", "time_tz", "time_ns", "interval", "blob", "bit", "union", "geometry"}
    rows = con.execute("DESCRIBE SELECT * FROM test_all_types()").fetchall()
    for name, column_type, *_ in rows:
        type = of_duckdb(column_type)
        assert (type is None) == (name in none), column_type
        if type is not None:
            assert fits(type, column_type)
            column = quoted(name)
            carried = storage.cast(type, column, column_type)
            sql = f"""SELECT {storage.exact(type, column, column_type)}, {json_text.json_sql(type, carried, Formats())},
                             {csv_text.csv_sql(type, carried)} FROM test_all_types()"""
            for exact, text, _ in con.execute(sql).fetchall():
                if exact:
                    json.loads(text, parse_constant=pytest.fail)


def test_what_to_json_would_alter_has_no_contract_type() -> None:
    for column_type in (
        "STRUCT(a JSON)",
        "BLOB[]",
        "MAP(VARCHAR, STRUCT(x INTEGER, y TIME))",
        "JSON[]",
        "STRUCT(a TUPLE(BIT))",
    ):
        assert of_duckdb(column_type) is None
        assert not fits(T["json"], column_type)
    for column_type in ('STRUCT("blob, (" INTEGER, time DECIMAL(5,2))', "STRUCT(json VARCHAR)[]"):
        assert of_duckdb(column_type) == T["json"]


def test_text_never_becomes_a_number() -> None:
    for name in ("integer", "float", "boolean", "date", "timestamp", "timestamptz"):
        assert not fits(T[name], "VARCHAR")
    assert not fits(MONEY, "VARCHAR")
    assert not fits(T["string"], "BIGINT")
    assert not fits(T["timestamp"], "TIMESTAMP WITH TIME ZONE")


hostile_text = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20
) | st.sampled_from(
    ["", " ", "\\.", '"', "\\", "\x1f\x7f\u2028", "e\u0301", "👨‍👩‍👧", "NULL", "{}", "'", "007"]
)
local_times = st.datetimes(datetime(1970, 1, 1), datetime(2037, 12, 31))
PYTHON: dict[Type, st.SearchStrategy[Any]] = {
    T["string"]: hostile_text,
    T["uuid"]: st.uuids(),
    T["integer"]: st.integers(-(2**63), 2**63 - 1) | st.sampled_from([2**53, 2**53 + 1, -(2**53) - 1]),
    MONEY: st.decimals(-(10**9), 10**9, places=2),
    Type("decimal", 38, 38): st.integers(-(10**38) + 1, 10**38 - 1).map(
        lambda n: Decimal((n < 0, tuple(map(int, str(abs(n)))), -38))
    ),
    T["boolean"]: st.booleans(),
    T["date"]: st.dates(),
    T["timestamp"]: local_times,
    T["timestamptz"]: st.datetimes(timezones=st.just(UTC)),
    T["float"]: st.floats(allow_nan=False, allow_infinity=False),
    Type("list", items="string"): st.lists(hostile_text | st.none(), max_size=4),
    Type("list", items="timestamp"): st.lists(local_times | st.none(), max_size=4),
}
typed = st.sampled_from(list(PYTHON)).flatmap(lambda type: st.tuples(st.just(type), PYTHON[type]))
formats = st.builds(
    Formats,
    bigints=st.sampled_from(["number", "string"]),
    decimals=st.sampled_from(["number", "string"]),
    dates=st.sampled_from(["iso", "epoch_ms"]),
    timestamps=st.sampled_from(["iso", "epoch_s", "epoch_ms"]),
)


@given(typed, formats, st.sampled_from(["UTC", "Europe/Vienna", "America/New_York"]))
def test_sql_and_python_write_the_same_json(pair: tuple[Type, Any], formats: Formats, timezone: str) -> None:
    type, value = pair
    carried = f"CAST(? AS {storage.storage_type(type)})"
    if type.name == "decimal":
        carried = f"CAST({literal(spelled(value))} AS {storage.storage_type(type)})"
    if type.name == "timestamptz":
        carried = f"timezone('UTC', CAST({literal(str(value.replace(tzinfo=None)))} AS TIMESTAMP))"
    in_sql = ask(
        f"{json_text.json_sql(type, 'x', formats, timezone)} FROM (SELECT {carried} AS x)",
        [value] if "?" in carried else None,
    )
    in_python = (
        msgspec.json.Encoder(decimal_format="number")
        .encode(json_value(value, type, formats, timezone))
        .decode()
    )
    assert json.loads(in_sql, parse_float=Decimal) == json.loads(in_python, parse_float=Decimal)


def test_json_keeps_digits_and_says_utc() -> None:
    plain = Formats()

    def shown(type: Type, literal: str, formats: Formats = plain, timezone: str = "UTC") -> str:
        return str(ask(json_text.json_sql(type, f"({literal})", formats, timezone)))

    assert shown(MONEY, "1.10::DECIMAL(12,2)") == "1.10"
    assert shown(MONEY, "1.10::DECIMAL(12,2)", Formats(decimals="string")) == '"1.10"'
    assert shown(Type("decimal", 2, 2), "-0.5::DECIMAL(2,2)") == "-0.50"
    assert shown(T["integer"], "9007199254740993") == "9007199254740993"
    assert shown(T["integer"], "9007199254740993", Formats(bigints="string")) == '"9007199254740993"'
    assert shown(T["integer"], "9007199254740992", Formats(bigints="string")) == "9007199254740992"
    assert (
        shown(T["timestamp"], "TIMESTAMP '2026-11-21 07:00:00'", timezone="Europe/Vienna")
        == '"2026-11-21T06:00:00Z"'
    )
    assert (
        shown(T["timestamptz"], "TIMESTAMPTZ '2026-11-21 06:00:00.25+00'") == '"2026-11-21T06:00:00.250000Z"'
    )
    assert shown(T["timestamp"], "TIMESTAMP '1969-12-31 23:59:59.5'", Formats(timestamps="epoch_s")) == "-1"
    assert shown(T["date"], "DATE '0009-01-02'") == '"0009-01-02"'
    assert shown(T["json"], "'{\"a\": 1.00}'::JSON") == '{"a": 1.00}'
    assert shown(T["string"], "NULL::VARCHAR") == "null"
    assert msgspec.json.encode(json_value('{"a": 1.00}', T["json"], plain)) == b'{"a": 1.00}'


def test_a_list_is_an_array_literal_for_copy() -> None:
    shown = ask(
        csv_text.csv_sql(Type("list", items="string"), r"""['a"b', 'c\d', NULL, '', 'NULL', '{,}']""")
    )
    assert shown == r'{"a\"b","c\\d",NULL,"","NULL","{,}"}'
    assert ask(csv_text.csv_sql(Type("list", items="string"), "[]::VARCHAR[]")) == "{}"
    assert ask(csv_text.csv_sql(Type("list", items="string"), "NULL::VARCHAR[]")) is None
    assert csv_text.is_text(T["json"])
    assert not csv_text.is_text(MONEY)


LOSSLESS = [
    (T["string"], "text", True),
    (T["string"], "character varying", True),
    (T["string"], "character varying(3)", False),
    (T["string"], "character(3)", False),
    (T["string"], "citext", True),
    (T["string"], "bigint", False),
    (T["string"], "some_domain", False),
    (T["integer"], "smallint", True),
    (T["integer"], "numeric(10,2)", True),
    (T["integer"], "numeric(3,-2)", False),
    (T["integer"], "double precision", False),
    (MONEY, "numeric(10,2)", True),
    (MONEY, "numeric", True),
    (MONEY, "numeric(12,1)", False),
    (MONEY, "bigint", False),
    (Type("decimal", 5, 0), "bigint", True),
    (MONEY, "double precision", False),
    (T["float"], "double precision", True),
    (T["float"], "real", False),
    (T["timestamp"], "timestamp without time zone", True),
    (T["timestamp"], "timestamp(0) without time zone", False),
    (T["timestamp"], "timestamp with time zone", False),
    (T["timestamp"], "date", False),
    (T["timestamptz"], "timestamp(6) with time zone", True),
    (T["uuid"], "character varying(36)", True),
    (T["uuid"], "character varying(32)", False),
    (T["json"], "jsonb", True),
    (Type("list", items="string"), "text[]", True),
    (Type("list", items="string"), "character varying(3)[]", False),
    (Type("list", items="string"), "text", False),
]


@pytest.mark.parametrize(("type", "pg_type", "expected"), LOSSLESS)
def test_only_lossless_pairs_pass(type: Type, pg_type: str, expected: bool) -> None:
    assert lossless(type, pg_type) is expected


def test_a_sized_text_needs_a_contract_that_stays_inside() -> None:
    assert lossless(T["string"], "character varying(3)", max_length=3)
    assert not lossless(T["string"], "character varying(3)", max_length=4)
    assert lossless(T["string"], "mood", enum=True)
    assert not lossless(T["integer"], "mood", enum=True)


def test_every_created_column_is_lossless() -> None:
    spoken = {"timestamp": "timestamp without time zone", "timestamptz": "timestamp with time zone"}
    for type in [*T.values(), MONEY, Type("list", items="string"), Type("list", items="float")]:
        assert lossless(type, spoken.get(ddl(type), ddl(type)))


def test_a_key_column_tells_keys_apart() -> None:
    assert injective(T["string"], "text")
    assert not injective(T["string"], "interval")
    assert not injective(T["string"], "numrange")
    assert not injective(T["float"], "double precision")


key_types = [type for type in PYTHON if type.name in KEY_TYPES]
key_parts = st.lists(
    st.sampled_from(key_types).flatmap(lambda type: st.tuples(st.just(type), PYTHON[type])),
    min_size=1,
    max_size=3,
)


def key_part(value: Any, type: Type) -> str:
    """One column of a key, as its text must be."""
    if type.name == "boolean":
        return "true" if value else "false"
    if type.name == "decimal":
        return f"{scaled(value, type):f}"
    if type.name in ("timestamp", "timestamptz"):
        zone = "Z" if value.tzinfo else ""
        return (value.astimezone(UTC) if value.tzinfo else value).replace(tzinfo=None).isoformat() + zone
    return str(value)


@given(key_parts)
def test_a_key_has_one_text_and_comes_back_from_it(parts: list[tuple[Type, Any]]) -> None:
    types = [type for type, _ in parts]
    exprs = [f"CAST({literal(spelled(value))} AS {storage.storage_type(type)})" for type, value in parts]
    text = ask(keys.key_sql(types, exprs))
    texts = [key_part(value, type) for type, value in parts]
    if len(parts) == 1:
        assert [text] == texts
    else:
        held = [f"{part}".lower() if isinstance(part, bool | int) else part for part in json.loads(text)]
        assert held == texts
    back = [ask(f"{keys.key_value_sql(types, at, '?')} = {expr}", [text]) for at, expr in enumerate(exprs)]
    assert back == [True] * len(back)


def test_keys_do_not_run_into_each_other() -> None:
    pair = [T["string"], T["string"]]

    def key(*values: str) -> str:
        return str(ask(keys.key_sql(pair, [literal(value) for value in values])))

    assert key("a", 'b","c') != key('a","b', "c")
    assert ask(keys.key_sql([T["string"], T["integer"]], ["'c1'", "3"])) == '["c1",3]'
    assert key("\x01\n", 'é"') == '["\\u0001\\n","é\\""]'
    assert ask(keys.key_sql(pair, ["'a'", "NULL::VARCHAR"])) is None


def test_the_hash_sees_every_digit_and_no_order() -> None:
    def hashed(*fields: tuple[str, str, Type]) -> bytes:
        return bytes(ask(canonical.hash_sql(fields, "5a17c0de")))

    a, b = ("A", "1", T["integer"]), ("a", "2", T["integer"])
    assert len(hashed()) == 20
    assert hashed(a, b) == hashed(b, a)
    assert hashed(("x", "NULL::VARCHAR", T["string"])) != hashed(("x", "'null'", T["string"]))
    json_pair = [
        ("x", f"'{n}'::JSON", T["json"]) for n in ("0.12345678901234567890", "0.12345678901234567891")
    ]
    assert hashed(json_pair[0]) != hashed(json_pair[1])
    small = Type("decimal", 38, 38)
    assert hashed(("x", ".1::DECIMAL(38,38)", small)) != hashed(("x", ".2::DECIMAL(38,38)", small))
    assert ask(canonical.hash_sql([a], "5a17c0de")) != ask(canonical.hash_sql([a], "5a17c0df"))


def test_transforms_leave_null_alone() -> None:
    assert ask(transforms.transform_sql("trim", "E' \\t\\n a b\\r '")) == "a b"
    assert ask(transforms.transform_sql("lower", "'ÄB'")) == "äb"
    assert ask(transforms.transform_sql("upper", "'äb'")) == "ÄB"
    assert ask(transforms.transform_sql("sha256_hex", "'a'")).startswith("ca978112ca1b")
    hashed = transforms.transform_sql(
        "md5_hex", transforms.transform_sql("lower", "'Urist.McVankab@freddiesjokes.com'")
    )
    assert ask(hashed) == "62eeb292278cc15f5817cb78f7790b08"
    for name in ("trim", "lower", "upper", "sha256_hex", "md5_hex"):
        assert ask(transforms.transform_sql(name, "NULL::VARCHAR")) is None
