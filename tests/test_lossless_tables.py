"""The lossless pairs of SQLite and DuckDB, asked of both: every kind of column, every contract type.

A column that a dialect accepts may refuse a value with an error, and never keeps another one.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pytest

from retl.destinations.batch import Bends, Field, Shape
from retl.destinations.duckdb.adapter import DuckDBDialect
from retl.destinations.sql.dialect import Column, Dialect, Relation
from retl.destinations.sqlite.adapter import File, SQLiteDialect, SQLiteSession
from retl.engine.files import PASSING, stored
from retl.engine.literals import bends_sql
from retl.values import storage
from retl.values.cells import cell_sql
from retl.values.types import Type
from tests.test_lossless_pairs import VALUES, tree
from tests.value_cases import same

SQLITE_TYPES = (
    *("", "INTEGER", "INT", "BIGINT", "TINYINT", "BOOLEAN", "REAL", "DOUBLE PRECISION", "FLOAT", "NUMERIC", "BLOB"),
    *("DECIMAL(12,2)", "DECIMAL(5,0)", "TEXT", "VARCHAR(3)", "CHAR(3)", "CLOB", "DATE", "DATETIME", "TIMESTAMP"),
    *("TIME", "JSON", "UUID", "POINT", "STRING"),
)  # fmt: skip
DUCKDB_TYPES = (
    *("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "UBIGINT", "FLOAT", "DOUBLE", "BOOLEAN"),
    *("DECIMAL(12,2)", "DECIMAL(12,1)", "DECIMAL(38,10)", "DECIMAL(5,0)", "VARCHAR", "BLOB", "UUID", "DATE", "TIME"),
    *("TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "TIMESTAMP WITH TIME ZONE", "INTERVAL", "BIT"),
    *("JSON", "VARCHAR[]", "BIGINT[]", "DOUBLE[]", "FLOAT[]", "TIMESTAMP[]", "DATE[]", "ENUM('abc', ' ', '')"),
)  # fmt: skip
TABLE = Relation("", "pair", "pair", "pair")


@pytest.fixture(scope="module")
def duck() -> duckdb.DuckDBPyConnection:
    con = duckdb.connect()
    con.execute("SET timezone = 'UTC'")
    return con


def told(duck: duckdb.DuckDBPyConnection, type: Type, sql: str) -> Any:
    """The value as `same` compares it."""
    carried = f"CAST({sql} AS {storage.storage_type(type)})"
    each = f"list_transform({carried}, lambda e: CAST(e AS VARCHAR))"
    ((source,),) = duck.execute(
        f"SELECT {each if type.name == 'list' else f'CAST({carried} AS VARCHAR)'}"
    ).fetchall()
    return tree(source) if type.name == "json" else source


def is_same(type: Type, source: Any, held: Any) -> bool:
    if held is None:
        return source is None
    if type.name == "boolean" and not isinstance(held, str):
        held = json.dumps(bool(held))
    text = str(held)
    if type.name in ("json", "list"):
        return same(source, tree(text), f"{type.items}[]" if type.name == "list" else "json")
    return same(source, text, type.name)


def bent(duck: duckdb.DuckDBPyConnection, bends: Bends | None, given: Sequence[str]) -> set[int]:
    """Which of these values, as SQL, are altered in silence, as a run finds them."""
    if bends is None:
        return set()
    rows = " UNION ALL ".join(f"SELECT {n} AS n, {one} AS f0" for n, one in enumerate(given))
    which = bends_sql(Shape("", "", (), (Field("v", Type("string")),)), {0: bends})
    return {n for (n,) in duck.execute(f"SELECT n FROM ({rows}) WHERE {which}").fetchall()}


def accepted(dialect: Dialect, type: Type, columns: list[Column]) -> list[Column]:
    field = Field("v", type)
    found = [one for one in columns if dialect.holds(one, field, key=False)]
    assert dialect.ddl(type, key=False) in [one.type for one in found] or type.name == "decimal"
    return found


@pytest.mark.parametrize("type", VALUES, ids=str)
def test_sqlite_alters_no_value_of_a_pair_that_is_accepted(
    tmp_path: Any, duck: duckdb.DuckDBPyConnection, type: Type
) -> None:
    dialect, path = SQLiteDialect(), tmp_path / "pairs.db"
    with closing(sqlite3.connect(path)) as connection:
        listed = ", ".join(f"v{n} {declared}" for n, declared in enumerate(SQLITE_TYPES))
        connection.execute(f"CREATE TABLE pair ({listed})")
    session = SQLiteSession(File(path=str(path)), "rw")
    columns = [*session.table(TABLE).columns.values()]  # type: ignore[union-attr]
    session.close()
    assert [one.type for one in columns] == list(SQLITE_TYPES)
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for column in accepted(dialect, type, columns):
            connection.execute("DROP TABLE IF EXISTS pair")
            connection.execute(f"CREATE TABLE pair (v {column.type})")
            field, arrived = Field("v", type), 0
            given = [f"CAST({sql} AS {storage.storage_type(type)})" for sql in VALUES[type]]
            altered = bent(duck, dialect.bends(field, column), given)
            for n, sql in enumerate(VALUES[type]):
                if n in altered:
                    continue
                made = cell_sql(type, dialect.cell(field, column), given[n])
                ((cell,),) = duck.execute(f"SELECT {made}").fetchall()
                connection.execute("INSERT INTO pair VALUES (?)", [cell])
                ((held,),) = connection.execute("SELECT v FROM pair").fetchall()
                assert is_same(type, told(duck, type, sql), held), (column.type, sql, held)
                connection.execute("DELETE FROM pair")
                arrived += 1
            assert arrived, column.type


@pytest.mark.parametrize("type", VALUES, ids=str)
def test_duckdb_alters_no_value_of_a_pair_that_is_accepted(
    tmp_path: Path, duck: duckdb.DuckDBPyConnection, type: Type
) -> None:
    dialect, kind = DuckDBDialect(), storage.storage_type(type)
    for n, sql in enumerate(VALUES[type]):
        one = f"SELECT {stored(type, f'CAST({sql} AS {kind})')} AS v0"
        duck.execute(f"COPY ({one}) TO '{tmp_path}/{n}.parquet' ({PASSING})")
    for column in accepted(dialect, type, [Column("v", one, one) for one in DUCKDB_TYPES]):
        duck.execute(f"CREATE OR REPLACE TABLE pair (v {column.type})")
        arrived = 0
        for n, sql in enumerate(VALUES[type]):
            try:
                duck.execute(f"INSERT INTO pair SELECT v0 FROM read_parquet('{tmp_path}/{n}.parquet')")
            except (duckdb.ConversionException, duckdb.OutOfRangeException, duckdb.InvalidInputException):
                continue
            shown = "to_json(CAST(v AS VARCHAR[]))" if type.name == "list" else "v"
            ((held,),) = duck.execute(f"SELECT CAST({shown} AS VARCHAR) FROM pair").fetchall()
            assert is_same(type, told(duck, type, sql), held), (column.type, sql, held)
            duck.execute("DELETE FROM pair")
            arrived += 1
        assert arrived or column.type.startswith("ENUM"), column.type


@pytest.mark.parametrize(
    ("type", "declared", "sql"),
    [
        (Type("string"), "NUMERIC", "'007'"),
        (Type("integer"), "REAL", "9007199254740993"),
        (Type("decimal", 38, 10), "NUMERIC", "'9999999999999999999999999999.9999999999'"),
        (Type("json"), "JSON", "'1.10'"),
        (Type("float"), "REAL", "'-0.0'"),
    ],
    ids=str,
)
def test_what_sqlite_does_not_accept_it_would_alter(
    duck: duckdb.DuckDBPyConnection, type: Type, declared: str, sql: str
) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(f"CREATE TABLE pair (v {declared})")
        form = "value" if type.name in ("string", "integer", "float") else "text"
        made = cell_sql(type, form, f"CAST({sql} AS {storage.storage_type(type)})")
        ((cell,),) = duck.execute(f"SELECT {made}").fetchall()
        connection.execute("INSERT INTO pair VALUES (?)", [cell])
        ((held,),) = connection.execute("SELECT v FROM pair").fetchall()
    assert not is_same(type, told(duck, type, sql), held) or str(held) != str(cell)
