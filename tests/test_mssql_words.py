"""SQL Server's words without a server: texts, names, types, and statements that a grammar of T-SQL reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlglot
from msgspec.structs import replace
from sqlglot import exp

from retl.destinations.batch import Bends, Field, Shape, SoftDelete, Visit
from retl.destinations.mssql.dialect import MsSqlDialect, column, folds, sized
from retl.destinations.mssql.session import SETTINGS
from retl.destinations.sql.dialect import Table
from retl.destinations.sql.statements import Statements
from retl.net.mssql import SqlServer, state
from retl.values.types import Type
from tests.destinations.rows import Rows
from tests.destinations.suite import FIELDS, HOSTILE, STRING

DIALECT = MsSqlDialect()
NAMES = ("a]b", "[", "'", '"', "--", "/*", "?", "{d", "select", "Ünï", "x;y")
SHAPE = Shape("it's", "state]1", (Field("id", STRING), Field("]", Type("integer"))), FIELDS, deletes="delete")
ODD = replace(SHAPE, fields=tuple(Field(name, STRING) for name in NAMES))


def read(sql: str) -> list[exp.Expression]:
    found = sqlglot.parse(sql, read="tsql", error_level=sqlglot.ErrorLevel.RAISE)
    assert all(one is not None and not isinstance(one, exp.Command) for one in found), sql
    return [one for one in found if one is not None]


@pytest.mark.parametrize("text", [*HOSTILE[:-2], "\\\n", "a\\\r\nb", "\\\n\\\n'", "x\x00\\\ny"], ids=repr)
def test_a_text_is_read_as_it_was_and_joins_no_lines(text: str) -> None:
    made = DIALECT.literal(text)
    assert "\\\n" not in made
    assert "\\\r\n" not in made
    assert "\0" not in made
    (tree,) = read(f"SELECT {made}")
    parts = list(tree.find_all(exp.National, bfs=False))
    if "\0" not in text:
        assert "".join(one.name for one in parts) == text


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_one_identifier(name: str) -> None:
    (tree,) = read(f"SELECT {DIALECT.quoted(name)}")
    (found,) = tree.find_all(exp.Identifier)
    assert (found.name, found.quoted) == (name, True)


@pytest.mark.parametrize("name", ["", "#temp", "a ", "a\0b", "x" * 129, "𝄞" * 65])
def test_a_name_that_the_server_would_not_take_as_it_is_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="1 to 128 characters"):
        DIALECT.check_name(name)


def statements(shape: Shape, table: Table | None) -> Iterator[str]:
    """Every statement that a run may send, but those of transactions."""
    sql = Statements(DIALECT, DIALECT.relation('"a]b"."t\'s"'), shape, table)
    batch = Rows(shape, [("a", 1, *[None] * len(shape.fields))]).batch()
    visit = Visit("run'1", 3, frozenset({"run-0"}))
    yield from (sql.create_schema(), sql.create_table(), sql.create_marker(), sql.add_key())
    yield from (
        sql.add_column(shape.fields[0]),
        sql.change_column("a]b", "c"),
        sql.change_column("a]b", None),
    )
    yield from (*sql.make_stage(), sql.empty(), *sql.take_out(range(2500)), sql.collisions())
    yield from (sql.update(0, 9) or "", sql.insert(0, 9), sql.insert(0, 9, absent=False), sql.delete(0, 9))
    yield from (
        sql.there(0, 9),
        sql.sent(0, 9),
        sql.due(0, 9),
        sql.read(shape.fields),
        sql.differing(),
        sql.scan(),
    )
    yield from (sql.mark(batch, 0, "me"), sql.note(batch, 0, 1, [[1, "'"]]), sql.void(batch, 1, "me"))
    yield from (sql.marked(batch, 0), *sql.move_fence(3), sql.prune(visit), sql.trace(), sql.strangers())
    yield DIALECT.age.format(column="[at]", relation=sql.relation.sql)
    for staged in (False, True):
        columns = ["int"] * staged + ["nvarchar(max)"] * (len(shape.key) + len(shape.fields))
        yield DIALECT.unpacked(sql.into(batch, staged=staged), '[{"v0":"it\'s"}]', columns)


CAREFUL = tuple(replace(one, nulls="keep", only_if_empty=True) for one in FIELDS)
SOFT = replace(SHAPE, deletes=SoftDelete({"name": "it's", "visits": None}), fields=CAREFUL)
FOUND = Table(
    {
        "id": column("id", "varchar(9)", "SQL_Latin1_General_CP1_CI_AS", nullable=False),
        "]": column("]", "int", None, nullable=False),
        "name": column("name", "nvarchar(max)", "Latin1_General_100_CI_AI_SC_UTF8"),
        "amount": column("amount", "decimal(12,2)", None),
        "visits": column("visits", "bigint", None),
    },
    keys=(frozenset({"id", "]"}),),
)


@pytest.mark.parametrize("table", [None, FOUND], ids=["made", "found"])
@pytest.mark.parametrize(
    "shape", [SHAPE, ODD, SOFT, replace(SHAPE, write="append")], ids=["plain", "odd", "soft", "append"]
)
def test_every_statement_is_read_by_a_grammar_and_none_is_a_merge(shape: Shape, table: Table | None) -> None:
    sent = [*statements(shape, table), *SETTINGS]
    for one in sent:
        assert not any(tree.find(exp.Merge) for tree in read(one))
    assert len(sent) > 40


def test_conditions_are_no_values_and_rows_are_locked_before_they_are_missed() -> None:
    """T-SQL has no boolean in a list of values."""
    made = list(statements(SHAPE, FOUND))
    for one in made:
        for select in (found for tree in read(one) for found in tree.find_all(exp.Select)):
            assert not any(
                isinstance(value, exp.Predicate | exp.Not | exp.Or) for value in select.expressions
            ), one
    inserts = [one for one in made if "NOT EXISTS (SELECT 1 FROM [a]]b].[t's]" in one]
    assert inserts
    assert all("WITH (UPDLOCK, HOLDLOCK)" in one for one in inserts)


@pytest.mark.parametrize(
    ("given", "declared"),
    [
        (("nvarchar", 510, 0, 0), "nvarchar(255)"),
        (("varchar", -1, 0, 0), "varchar(max)"),
        (("numeric", 9, 12, 2), "decimal(12,2)"),
        (("datetime2", 8, 26, 6), "datetime2(6)"),
        (("datetimeoffset", 10, 34, 7), "datetimeoffset(7)"),
        (("float", 8, 53, 0), "float"),
        (("bigint", 8, 19, 0), "bigint"),
    ],
)
def test_a_type_is_read_from_the_catalog(given: tuple[str, int, int, int], declared: str) -> None:
    assert sized(*given) == declared


WHOLE = {"tinyint", "smallint", "int", "bigint"}
DECIMALS = {"decimal(38,10)", "decimal(12,1)", "decimal(5,0)"}
TEXTS = {"varchar(3)", "varchar(max)", "nvarchar(3)", "nvarchar(36)", "nvarchar(max)"}
TYPES = {
    *WHOLE, *DECIMALS, *TEXTS, "bit", "float", "real", "money", "smallmoney", "date", "datetime", "smalldatetime", "datetime2(3)",
    "datetime2(6)", "datetime2(7)", "datetimeoffset(0)", "datetimeoffset(6)", "time(7)", "char(3)", "char(36)", "nchar(36)",
    "char(40)", "text", "ntext", "xml", "json", "sql_variant", "uniqueidentifier", "binary(3)", "varbinary(max)", "timestamp",
    "hierarchyid", "geometry", "image",
}  # fmt: skip


@pytest.mark.parametrize(
    ("type", "fit"),
    [
        (Type("string"), TEXTS),
        (Type("integer"), WHOLE | DECIMALS),
        (Type("decimal", 12, 2), {"decimal(38,10)"}),
        (Type("decimal", 5, 0), WHOLE | DECIMALS),
        (Type("float"), {"float"}),
        (Type("boolean"), {"bit", *WHOLE}),
        (Type("date"), {"date"}),
        (Type("timestamp"), {"datetime2(6)", "datetime2(7)"}),
        (Type("timestamptz"), {"datetime2(6)", "datetime2(7)", "datetimeoffset(6)"}),
        (
            Type("uuid"),
            {"uniqueidentifier", "char(36)", "nchar(36)", "nvarchar(36)", "nvarchar(max)", "varchar(max)"},
        ),
        (Type("json"), TEXTS),
        (Type("list", items="string"), TEXTS),
    ],
    ids=lambda one: str(one) if isinstance(one, Type) else "",
)
def test_only_columns_that_keep_every_value_or_refuse_it_are_taken(type: Type, fit: set[str]) -> None:
    field = Field("v", type)
    assert {one for one in TYPES if DIALECT.holds(column("v", one, None), field, key=False)} == fit
    made = DIALECT.made(field, key=False)
    assert DIALECT.holds(made, field, key=False)


@pytest.mark.parametrize(
    ("collation", "ignored"),
    [
        ("SQL_Latin1_General_CP1_CI_AS", ("case", "trailing")),
        ("Latin1_General_CI_AI", ("accents", "case", "trailing")),
        ("Latin1_General_100_CS_AS_KS_WS_SC_UTF8", ("trailing",)),
        ("Latin1_General_100_BIN2_UTF8", ("trailing",)),
    ],
)
def test_a_collation_says_what_it_ignores(collation: str, ignored: tuple[str, ...]) -> None:
    assert folds(collation) == ignored


@pytest.mark.parametrize(
    ("declared", "collation", "bends"),
    [
        ("nvarchar(9)", "Latin1_General_CI_AS", Bends(units=9)),
        ("nvarchar(max)", "Latin1_General_CI_AS", None),
        ("varchar(9)", "Latin1_General_CI_AS", Bends(ascii=True, characters=9)),
        ("varchar(max)", "Latin1_General_CI_AS", Bends(ascii=True)),
        ("varchar(9)", "Latin1_General_100_CI_AS_SC_UTF8", Bends(bytes=9)),
        ("varchar(max)", "Latin1_General_100_CI_AS_SC_UTF8", None),
    ],
)
def test_what_a_text_column_would_change_is_known(declared: str, collation: str, bends: Bends | None) -> None:
    assert DIALECT.bends(Field("v", STRING), column("v", declared, collation)) == bends


def test_all_spellings_of_a_table_are_one_object() -> None:
    one = {DIALECT.relation(name).identity for name in ("people", "dbo.People", '"DBO"."PEOPLE"')}
    assert one == {"[dbo].[people]"}
    with pytest.raises(ValueError, match="table of SQL Server"):
        DIALECT.relation("a.b.c")


def test_an_address_holds_no_secret_and_knows_this_machine() -> None:
    given: dict[str, Any] = {"dbname": "CRM", "user": "u", "password": "secret"}
    here = {SqlServer(host=host, **given).address for host in ("localhost", "127.0.0.1", "::1")}
    assert here == {"localhost:1433/crm"}
    assert state(ValueError("secret")) == ""
