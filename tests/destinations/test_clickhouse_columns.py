"""The lossless pairs are asked of ClickHouse's own catalog: every column type it has, every contract type.

A pair that is let through keeps each value exactly or makes its row a reject; one that is not let through is
refused before anything is written.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from msgspec.structs import replace

from retl.destinations.batch import Field, Kind, Shape, Visit
from retl.destinations.clickhouse import columns
from retl.destinations.clickhouse.adapter import ClickHouse, ClickHouseOptions
from retl.destinations.clickhouse.table import statement
from retl.errors import Mismatch
from retl.values.types import Type
from tests.clickhouse_server import WRITER, Server
from tests.destinations.rows import Row, Rows
from tests.destinations.suite import as_contents, deliver
from tests.destinations.test_clickhouse import held

KEY = Field("id", Type("integer"))
TIMES = [
    datetime(1, 1, 1), datetime(1899, 12, 31, 23, 59, 59, 999999), datetime(1900, 1, 1), datetime(1969, 12, 31, 23, 59, 59, 999999),
    datetime(1970, 1, 1, 0, 0, 0, 1), datetime(2026, 3, 29, 2, 30), datetime(2262, 4, 11, 23, 47, 16, 854775),
    datetime(2262, 4, 11, 23, 47, 16, 854776), datetime(2299, 12, 31, 23, 59, 59, 999999), datetime(2300, 1, 1), datetime(9999, 12, 31),
]  # fmt: skip
DATES = [date(1, 1, 1), date(1899, 12, 31), date(1900, 1, 1), date(1969, 12, 31), date(1970, 1, 1), date(2024, 2, 29), date(2149, 6, 6), date(2149, 6, 7), date(2299, 12, 31), date(2300, 1, 1), date(9999, 12, 31)]  # fmt: skip
INTEGERS = [0, -1, 127, 128, -128, -129, 255, 256, 32767, 32768, -32769, 65536, 2**31 - 1, 2**31, -(2**31) - 1, 2**32, 2**53 + 1, 2**63 - 1, -(2**63)]  # fmt: skip
TEXTS = [
    "",
    " ",
    "a ",
    "NULL",
    "\\N",
    "0",
    "007",
    "1e3",
    "é𝄞",
    "a\x00b",
    "x" * 300,
    "2026-01-01",
    "127.0.0.1",
]
VALUES: dict[Type, list[Any]] = {
    Type("string"): TEXTS,
    Type("uuid"): [UUID(int=0), UUID(int=2**128 - 1), UUID("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")],
    Type("integer"): INTEGERS,
    Type("decimal", 12, 2): [Decimal("1.05"), Decimal("-0.01"), Decimal("9999999999.99"), Decimal("0.00")],
    Type("decimal", 38, 10): [Decimal("9999999999999999999999999999.9999999999"), Decimal("0.0000000001")],
    Type("float"): [0.1, -0.0, 5e-324, 1.7976931348623157e308, 16777217.0],
    Type("boolean"): [True, False],
    Type("date"): DATES,
    Type("timestamp"): TIMES,
    Type("timestamptz"): [one.replace(tzinfo=UTC) for one in TIMES],
    Type("json"): ["{}", '{"a":[1,{"b":null}],"c":1.10}', "[]", '"text"', "null"],
    Type("list", items="string"): [[], [""], ["a", "NULL", "\\"], ["a", None]],
    Type("list", items="integer"): [[], [1, -(2**63)], [300], [None]],
    Type("list", items="date"): [[date(1970, 1, 1)], [date(1, 1, 1)], [date(2026, 1, 1), None]],
    Type("list", items="timestamp"): [[datetime(2026, 1, 1)], [datetime(1, 1, 1)]],
}
SIZED = [
    "FixedString(4)", "Enum8('a' = 1)", "Decimal(12, 2)", "Decimal(10, 2)", "Decimal(12, 1)", "Decimal(38, 10)", "Decimal(76, 20)",
    "Decimal(20, 5)", "DateTime('UTC')", "DateTime64(3, 'UTC')", "DateTime64(6)", "DateTime64(6, 'UTC')", "DateTime64(6, 'Europe/Berlin')",
    "DateTime64(9, 'UTC')", "Array(String)", "Array(Nullable(String))", "Array(LowCardinality(String))", "Array(UInt8)", "Array(Nullable(Int64))",
    "Array(Date)", "Array(Nullable(Date32))", "Array(DateTime64(6, 'UTC'))", "Array(Array(String))", "Map(String, String)", "Tuple(String)",
    "LowCardinality(Nullable(String))",
]  # fmt: skip
EXACT = {  # what is let through, without what wraps it
    "string": {"String"},
    "json": {"String"},
    "uuid": {"UUID", "String"},
    "integer": {f"{sign}Int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)},
    "decimal": {"Decimal(12, 2)", "Decimal(38, 10)"},
    "float": {"Float64"},
    "boolean": {"Bool"},
    "date": {"Date", "Date32"},
    "timestamp": {"DateTime64(6, 'UTC')", "DateTime64(9, 'UTC')"},
    "timestamptz": {"DateTime64(6)", "DateTime64(6, 'UTC')", "DateTime64(6, 'Europe/Berlin')", "DateTime64(9, 'UTC')"},
    "list": {one for one in SIZED if one.startswith("Array") and "Array(Array" not in one},
}  # fmt: skip


@pytest.fixture
def database(clickhouse: Server) -> Iterator[str]:
    made = f"crm_{secrets.token_hex(6)}"
    clickhouse.do(f"CREATE DATABASE {made} ENGINE = Atomic")
    yield made
    clickhouse.do(f"DROP DATABASE {made}")


def catalog(server: Server) -> list[str]:
    """Every type that a column can have: the families that need no arguments, and some that do, also
    Nullable and LowCardinality."""
    families = server.rows("SELECT name FROM system.data_type_families WHERE alias_to = ''")
    found = []
    for name in [*(one["name"] for one in families), *SIZED]:
        for kind in (name, f"Nullable({name})", f"LowCardinality({name})"):
            said = kind.replace("'", "\\'")
            try:
                described = server.rows(f"SELECT toTypeName(defaultValueOfTypeName('{said}')) AS type")
            except RuntimeError:
                continue
            found.append(described[0]["type"])
    return list(dict.fromkeys(found))


def destination(server: Server, table: str, shape: Shape) -> ClickHouse:
    connection = {"base_url": server.url, "user": WRITER[0], "password": WRITER[1]}
    return ClickHouse(ClickHouseOptions.model_validate({"connection": connection, "table": table}), shape)


def test_every_type_of_the_catalog_is_let_through_or_refused(clickhouse: Server) -> None:
    kinds = catalog(clickhouse)
    assert len(kinds) > 60
    let_through: dict[str, set[str]] = {name: set() for name in EXACT}
    for type_ in VALUES:
        for kind in kinds:
            if columns.unfit(type_, kind, "x") is not None:
                let_through[type_.name].add(columns.peeled(kind))
    assert let_through == EXACT


@pytest.mark.parametrize("type_", VALUES, ids=str)
def test_a_pair_keeps_each_value_exactly_or_rejects_its_row(
    clickhouse: Server, database: str, type_: Type
) -> None:
    bare = [one for one in sorted(EXACT[type_.name]) if columns.unfit(type_, one, "x") is not None]
    fits = [bare[0], *(one if one.startswith("Array") else f"Nullable({one})" for one in bare)]
    fields = tuple(Field(f"x{n}", type_) for n in range(len(fits)))
    for n, kind in enumerate(fits):  # a table for each, so that a value is rejected by one alone
        shape = Shape("suite", "state-1", (KEY,), (fields[n],), "upsert", "keep")
        made = f"(id Int64, x{n} {kind}, v UInt64) ENGINE = ReplacingMergeTree(v) ORDER BY id"
        clickhouse.do(f"CREATE TABLE {database}.t{n} {made}")
        one = destination(clickhouse, f"{database}.t{n}", shape)
        one.check(Visit("run-1", 1))
        one.prepare(Visit("run-1", 1))
        rows: list[Row] = [(at, value) for at, value in enumerate([*VALUES[type_], None])]
        found = deliver(one, Rows(shape, rows).batch())
        assert {result.code for result in found} <= {None, "NOT_EXACT"}
        written = [row for row, result in zip(rows, found, strict=True) if result.kind is Kind.WRITTEN]
        assert held(clickhouse, f"{database}.t{n}", shape) == as_contents(shape, written), kind
        assert list(one.differing(Rows(shape, written).batch())) == [()] * len(written)
        if "Nullable" in kind.partition("Array")[0]:
            assert written[-1][1] is None
        one.close()


def test_the_columns_that_create_makes_reject_only_what_no_column_keeps(
    clickhouse: Server, database: str
) -> None:
    fields = tuple(Field(f"x{n}", type_) for n, type_ in enumerate(VALUES))
    shape = Shape("suite", "state-1", (KEY,), fields, "upsert", "keep")
    one = destination(clickhouse, f"{database}.users", shape)
    clickhouse.do(statement(one.options.name, shape))
    one.check(Visit("run-1", 1))
    for kind in (one.columns() or {}).values():
        assert "LowCardinality" not in kind
    for n, type_ in enumerate(VALUES):
        made = columns.ddl(type_, key=False)
        assert (one.columns() or {})[f"x{n}"] == made
        test = columns.unfit(type_, made, "x")
        assert bool(test) == (type_.name in ("date", "timestamp", "timestamptz", "list"))


def test_a_column_of_another_scale_is_refused(clickhouse: Server, database: str) -> None:
    shape = Shape("suite", "state-1", (KEY,), (Field("x", Type("decimal", 12, 2)),), "upsert", "keep")
    made = "(id Int64, x Decimal(12, 1), v UInt64) ENGINE = ReplacingMergeTree(v) ORDER BY id"
    clickhouse.do(f"CREATE TABLE {database}.t {made}")
    with pytest.raises(Mismatch, match=r"is Decimal\(12, 1\), which does not keep every decimal\(12,2\)"):
        destination(clickhouse, f"{database}.t", shape).check(Visit("run-1", 1))
    same = replace(shape, fields=(Field("x", Type("decimal", 12, 1)),))
    assert destination(clickhouse, f"{database}.t", same).check(Visit("run-1", 1)) is not None
