"""The table of lossless pairs is asked of PostgreSQL: every column type it has, every contract type.

A pair that `types.lossless` lets through may refuse a value with an error and never alters one; those it
does not let through for being lossy do alter the value that stands here. A pair that is judged finds every
value that it alters.
"""

from __future__ import annotations

import json
from decimal import Decimal
from struct import pack, unpack
from typing import Any

import duckdb
import psycopg
import pytest

from retl.destinations.postgres import types
from retl.destinations.postgres.judged import Judged
from retl.destinations.postgres.rejection import unreadable
from retl.net.postgres import SETTINGS
from retl.values import csv_text, storage
from retl.values.sql import literal
from retl.values.types import Type
from tests.servers import Database
from tests.value_cases import DATES, FLOATS, INTEGERS, JSONS, TEXTS, TIMES, same, tree

FINITE_TIMES = {
    what: sql
    for what, sql in TIMES.items()
    if what not in ("infinity", "-infinity", "before Christ", "five digits")
}
VALUES: dict[Type, list[str]] = {
    Type("string"): [sql for what, sql in TEXTS.items() if "NUL " not in what],
    Type("uuid"): ["'00000000-0000-0000-0000-000000000000'", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"],
    Type("integer"): [sql for sql in INTEGERS.values() if -(2**63) <= int(sql) < 2**63] + ["32767", "32768", "-2147483649", "1234", "55"],
    Type("decimal", 12, 2): ["1.05", "-0.01", "9999999999.99", "0", "100"],
    Type("decimal", 38, 10): ["'9999999999999999999999999999.9999999999'", "'0.0000000001'", "1.5"],
    Type("decimal", 5, 0): ["99999", "-99999", "0"],
    Type("float"): [sql for what, sql in FLOATS.items() if "inf" not in what and what != "NaN"] + ["1.7976931348623157e308"],
    Type("boolean"): ["true", "false"],
    Type("date"): [DATES[what] for what in ("first of its calendar", "last of four digits", "leap day", "before the epoch")],
    Type("timestamp"): list(FINITE_TIMES.values()),
    Type("timestamptz"): [f"{sql[:-1]}+00'" for sql in FINITE_TIMES.values()] + ["'2026-03-29 02:30:00.1+05:45'"],
    Type("json"): [sql for what, sql in JSONS.items() if what not in ("escaped NUL", "a name twice")],
    Type("list", items="string"): ["['', 'NULL', 'null', '{}', 'a,b', '\"', '\\', ' a ', e'\\n', NULL]", "[]", "[NULL]", "['abc   ']"],
    Type("list", items="integer"): ["[1, NULL, -9223372036854775808]", "[]"],
    Type("list", items="float"): ["[0.1, NULL, 1e300]"],
    Type("list", items="timestamp"): ["['2026-01-01 00:00:00.1'::TIMESTAMP, NULL]"],
}  # fmt: skip
SIZED = (
    "character varying(3)", "character varying(36)", "character varying(32)", "character varying(20)", "character(3)",
    "numeric(12,2)", "numeric(12,1)", "numeric(10,2)", "numeric(38,10)", "numeric(3,0)", "numeric(3,-2)", "numeric(5,0)",
    "timestamp(0) without time zone", "timestamp(6) without time zone", "timestamp(3) with time zone",
    "timestamp(6) with time zone", "time(0) without time zone", "bit(3)", "bit varying(3)", "interval(0)",
    "text[]", "character varying[]", "character varying(3)[]", "character(3)[]", "bigint[]", "integer[]", "double precision[]",
    "real[]", "numeric(12,1)[]", "timestamp without time zone[]", "timestamp(0) without time zone[]", "date[]", "name[]",
)  # fmt: skip
LOSSY = [
    (Type("string"), "character varying(3)", "'abc   '"),
    (Type("string"), "character(3)", "'ab '"),
    (Type("string"), "name", "repeat('x', 64)"),
    (Type("string"), '"char"', "'abc'"),
    (Type("string"), "bytea", "'abc'"),
    (Type("string"), "numeric", "'007'"),
    (Type("string"), "boolean", "'yes'"),
    (Type("string"), "jsonb", "'1E2'"),
    (Type("integer"), "double precision", "9007199254740993"),
    (Type("integer"), "real", "16777217"),
    (Type("integer"), "numeric(3,-2)", "1234"),
    (Type("integer"), "numeric(12,-2)", "1234"),
    (Type("decimal", 12, 2), "numeric(12,1)", "1.05"),
    (Type("decimal", 12, 2), "real", "9999999999.99"),
    (Type("decimal", 38, 10), "double precision", "'9999999999999999999999999999.9999999999'"),
    (Type("decimal", 5, 3), "money", "1.005"),
    (Type("float"), "real", "1.0000000001"),
    (Type("float"), "numeric", "'-0.0'"),
    (Type("float"), "numeric(12,2)", "1.005"),
    (Type("timestamp"), "timestamp(0) without time zone", "'2026-01-01 00:00:00.6'"),
    (Type("timestamp"), "date", "'2026-01-01 12:00:00'"),
    (Type("timestamp"), "timestamp with time zone", "'2026-01-01 12:00:00'"),
    (Type("timestamptz"), "timestamp(3) with time zone", "'2026-01-01 12:00:00.123456+00'"),
    (Type("timestamptz"), "date", "'2026-01-01 12:00:00+00'"),
    (Type("list", items="string"), "character varying(3)[]", "['abc   ']"),
    (Type("list", items="string"), "name[]", "[repeat('x', 64)]"),
    (Type("list", items="float"), "real[]", "[1.0000000001]"),
    (Type("list", items="timestamp"), "date[]", "['2026-01-01 12:00:00'::TIMESTAMP]"),
]


@pytest.fixture(scope="module")
def duck() -> duckdb.DuckDBPyConnection:
    con = duckdb.connect()
    con.execute("SET timezone = 'UTC'")
    return con


def column_types(connection: psycopg.Connection[Any]) -> list[str]:
    """Every type a column can have here, as the catalog spells it."""
    names = connection.execute(
        "SELECT format_type(oid, NULL) FROM pg_type WHERE typtype = 'b' AND typcategory <> 'A'"
        " AND typnamespace = 'pg_catalog'::regnamespace AND oid NOT IN ('bpchar'::regtype)"
    ).fetchall()
    return [*sorted(name for (name,) in names), *SIZED]


def written(connection: psycopg.Connection[Any], pg_type: str, text: str | None) -> list[str | None] | None:
    """What a column of this type gives back for a text that COPY brings; None if it refuses it."""
    shown = "to_json(v::text[])::text" if pg_type.endswith("[]") else "v::text"
    try:
        with connection.transaction():
            with connection.cursor().copy("COPY pair (v) FROM STDIN") as copy:
                copy.write_row([text])
            connection.execute("SET LOCAL timezone = 'UTC'")
            rows = connection.execute(f"SELECT {shown} FROM pair").fetchall()
            connection.execute("DELETE FROM pair")
            return [row[0] for row in rows]
    except (
        psycopg.DataError,
        psycopg.OperationalError,
        psycopg.errors.FeatureNotSupported,
        psycopg.errors.SyntaxError,
    ):
        return None


def spelled(duck: duckdb.DuckDBPyConnection, type: Type, sql: str) -> tuple[Any, str | None]:
    """The value's text (for a list, of each element), and what COPY is sent."""
    carried = f"CAST({sql} AS {storage.storage_type(type)})"
    each = f"list_transform({carried}, lambda e: CAST(e AS VARCHAR))"
    told = each if type.name == "list" else f"CAST({carried} AS VARCHAR)"
    sent = f"CAST({csv_text.csv_sql(type, carried)} AS VARCHAR)"
    ((source, text),) = duck.execute(f"SELECT {told}, {sent}").fetchall()
    return source, text


def outcome(connection: Any, duck: duckdb.DuckDBPyConnection, type: Type, pg_type: str, sql: str) -> str:
    """'equal', 'refused' or 'altered'; the table `pair` has the column."""
    of_list = type.name == "list"
    source, text = spelled(duck, type, sql)
    found = written(connection, pg_type, text)
    if found is None:
        return "refused"
    (back,) = found
    kind = f"{type.items}[]" if of_list else type.name
    if type.name == "json":
        source, back = tree(source), back and tree(back)
    elif of_list:
        back = back and tree(back)
    return "equal" if same(source, back, kind) else "altered"


@pytest.mark.parametrize("type", VALUES, ids=str)
def test_a_pair_said_to_be_lossless_alters_nothing(
    postgres: Database, duck: duckdb.DuckDBPyConnection, type: Type
) -> None:
    proved = []
    with postgres.connect() as connection:
        connection.execute("SET timezone = 'Pacific/Auckland'")
        for pg_type in column_types(connection):
            if not types.lossless(type, pg_type):
                continue
            connection.execute(f"CREATE TEMP TABLE pair (v {pg_type})")
            ((catalog,),) = connection.execute(
                "SELECT format_type(atttypid, atttypmod) FROM pg_attribute"
                " WHERE attrelid = 'pair'::regclass AND attname = 'v'"
            ).fetchall()
            assert catalog == pg_type
            found = {sql: outcome(connection, duck, type, pg_type, sql) for sql in VALUES[type]}
            assert "altered" not in found.values(), (pg_type, found)
            assert "equal" in found.values(), pg_type
            proved.append(pg_type)
            connection.execute("DROP TABLE pair")
    created = types.ddl(type).replace("timestamp[]", "timestamp without time zone[]")
    spoken = {"timestamp": "timestamp without time zone", "timestamptz": "timestamp with time zone"}
    assert spoken.get(created, created) in proved


def judged_outcome(connection: Any, one: Judged, text: str | None) -> tuple[str, str | None]:
    """'kept' or 'refused', by the predicate, and what the column shows; the table `pair` has the column."""
    sent = f"(SELECT {'NULL' if text is None else literal(text)}::text AS v) AS r"
    shown = "to_json(s.v::text[])::text" if one.compared.endswith("[]") else "s.v::text"
    if one.compared == "jsonb":
        shown = "to_json(s.v)::text"
    try:
        with connection.transaction():
            connection.execute(f"INSERT INTO pair (v) SELECT {one.made('r.v')} FROM {sent}")
            query = f"SELECT {one.differs('r.v', 's.v')}, {shown} FROM pair AS s, {sent}"
            ((altered, held),) = connection.execute(query).fetchall()
            connection.execute("DELETE FROM pair")
            return "refused" if altered else "kept", held
    except psycopg.errors.FeatureNotSupported:
        return "refused", None
    except psycopg.Error as error:
        if not unreadable(error, ()):
            raise
        return "refused", None


@pytest.mark.parametrize("type", VALUES, ids=str)
def test_a_judged_pair_finds_every_value_that_it_alters(
    postgres: Database, duck: duckdb.DuckDBPyConnection, type: Type
) -> None:
    kept = 0
    with postgres.connect() as connection:
        connection.prepare_threshold = None
        for name, setting in SETTINGS.items():
            connection.execute(f"SET {name} = '{setting}'")
        for pg_type in column_types(connection):
            connection.execute(f"CREATE TEMP TABLE pair (v {pg_type})")
            ((base, cast),) = connection.execute(
                "SELECT format_type(t.oid, -1), format('pg_catalog.%I', t.typname) FROM pg_attribute AS a"
                " JOIN pg_type AS t ON t.oid = atttypid WHERE attrelid = 'pair'::regclass AND attname = 'v'"
            ).fetchall()
            compared = types.comparison(type, base)
            if compared and not types.lossless(type, pg_type):
                for sql in VALUES[type]:
                    source, text = spelled(duck, type, sql)
                    end, held = judged_outcome(connection, Judged(base, cast, compared, key=True), text)
                    kept += end == "kept"
                    assert end == "refused" or alike(type, base, source, held), (pg_type, sql, held)
            connection.execute("DROP TABLE pair")
    assert kept or type.name in ("boolean", "list")


def alike(type: Type, base: str, source: Any, held: Any) -> bool:
    kind = f"{type.items}[]" if type.name == "list" else type.name
    if held is not None and base == "money" and type.name != "string":
        held = held.replace("$", "").replace(",", "")
    if held is not None and type.name == "date":
        assert held[10:] == " 00:00:00"
        held = held[:10]
    if kind == "json" and held is not None and base.endswith("[]"):  # 1E2 and 100 are one number
        return bool(json.loads(source, parse_float=Decimal) == json.loads(held, parse_float=Decimal))
    if kind == "json" and held is not None:
        return source == held
    if kind.endswith("[]"):
        held = held and tree(held)
    if same(source, held, kind):
        return True
    # a real shows fewer digits than it has: its number is that of four bytes
    return (
        base == "real" and type.name == "float" and unpack("f", pack("f", float(source)))[0] == float(source)
    )


@pytest.mark.parametrize(("type", "pg_type", "sql"), LOSSY, ids=lambda one: str(one)[:30])
def test_a_pair_said_to_be_lossy_is(
    postgres: Database, duck: duckdb.DuckDBPyConnection, type: Type, pg_type: str, sql: str
) -> None:
    assert not types.lossless(type, pg_type)
    with postgres.connect() as connection:
        connection.execute("SET timezone = 'Pacific/Auckland'")
        connection.execute(f"CREATE TEMP TABLE pair (v {pg_type})")
        assert outcome(connection, duck, type, pg_type, sql) == "altered"


def test_a_sized_text_that_the_contract_fits_alters_nothing(
    postgres: Database, duck: duckdb.DuckDBPyConnection
) -> None:
    with postgres.connect() as connection:
        connection.execute("CREATE TEMP TABLE pair (v character varying(3))")
        assert types.lossless(Type("string"), "character varying(3)", max_length=3)
        for sql in ("'abc'", "'   '", "''", "'🦆🦆🦆'", "'a  '", "e'\\t\\n\\\\'"):
            assert outcome(connection, duck, Type("string"), "character varying(3)", sql) == "equal"
        connection.execute("DROP TABLE pair")
        connection.execute("CREATE TYPE mood AS ENUM ('', 'a b', 'ü')")
        connection.execute("CREATE TEMP TABLE pair (v mood)")
        assert types.lossless(Type("string"), "mood", enum=True)
        for sql, expected in (("''", "equal"), ("'a b'", "equal"), ("'ü'", "equal"), ("'A B'", "refused")):
            assert outcome(connection, duck, Type("string"), "mood", sql) == expected
