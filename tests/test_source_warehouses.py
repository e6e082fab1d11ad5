"""Sources of warehouses that cannot be run here: what they ask for, and what they make of the answers.

The session that they share is tried with DuckDB as the warehouse: a real engine, real Arrow streams."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pytest
from pydantic import ValidationError

from retl import sources
from retl.engine.freeze import freeze
from retl.engine.sql_text import Query
from retl.engine.workspace import Workspace
from retl.errors import DefinitionError, SourceError
from retl.observe.signals import Stop
from retl.sources import bigquery, columnar, databricks, mssql, snowflake, sql
from retl.sources.api import Invocation
from retl.sources.columnar import Column

UNPROVED = ("bigquery", "databricks", "mssql", "snowflake")


class Engine:
    """DuckDB as the warehouse."""

    version = "job 1"

    def __init__(self, relation: str) -> None:
        self.relation, self.closed = relation, False
        self.database = duckdb.connect()

    def columns(self) -> Sequence[Column]:
        described = self.database.execute(f"DESCRIBE SELECT * FROM {self.relation}").fetchall()
        return [Column(name, kind, f'"{name}"') for name, kind, *_ in described]

    def stream(self, select: str) -> object:
        return self.database.sql(f"SELECT {select} FROM {self.relation}").to_arrow_reader(1000)

    def close(self) -> None:
        self.closed = True
        self.database.close()


@pytest.fixture
def workspace(tmp_path: Path) -> Any:
    with Workspace(tmp_path, Stop()) as made:
        yield made


def test_the_rows_of_one_query_are_the_mart(workspace: Workspace) -> None:
    engine = Engine("(SELECT range AS n, range::DECIMAL(38, 0) AS big, 'x' AS dropped FROM range(5000))")
    with columnar.connect(lambda: engine, workspace, "table t") as snapshot:
        assert snapshot.description.columns == {"n": "BIGINT", "big": "DECIMAL(38,0)", "dropped": "VARCHAR"}
        assert snapshot.description.version == "job 1"
        assert freeze(workspace, snapshot.rows(["n", "big"]), {"n": "BIGINT", "big": "DECIMAL(38,0)"}) == 5000
    assert engine.closed
    assert workspace.one("SELECT sum(n), max(big) FROM frozen") == (12497500, 4999)


def test_columns_that_differ_only_in_case_are_refused(workspace: Workspace) -> None:
    class Twice(Engine):
        def columns(self) -> Sequence[Column]:
            return [Column("id", "BIGINT", "id"), Column("ID", "BIGINT", "ID")]

    engine = Twice("range(1)")
    with pytest.raises(DefinitionError, match="two columns 'ID'"):
        columnar.connect(lambda: engine, workspace, "table t")
    assert engine.closed


def test_the_server_s_words_are_shown_while_no_row_was_read_and_not_later(workspace: Workspace) -> None:
    with pytest.raises(SourceError, match="Table with name nothing does not exist"):
        columnar.connect(lambda: Engine("nothing"), workspace, "table nothing")
    engine = Engine("(SELECT CAST(v AS INTEGER) AS v FROM (VALUES ('1'), ('ada@example.com')) t(v))")
    with (
        columnar.connect(lambda: engine, workspace, "table t") as snapshot,
        pytest.raises(SourceError) as caught,
    ):
        freeze(workspace, snapshot.rows(["v"]), {"v": "INTEGER"})
    assert "example.com" not in caught.value.message
    assert "could not be read to its end" in caught.value.message


@pytest.mark.parametrize("name", UNPROVED)
def test_a_client_that_is_not_installed_is_one_sentence(
    name: str, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mssql_python", None)  # tests of the target need it
    given = {
        "bigquery": {"project": "p"},
        "databricks": {"host": "h", "http_path": "/sql", "token": "t"},
        "mssql": {"host": "localhost", "dbname": "d", "user": "u", "password": "p"},
        "snowflake": {"account": "a", "user": "u", "password": "p", "warehouse": "w", "database": "d"},
    }
    kind = sources.load(name)
    source = kind(kind.Connection(**given[name]), kind.Options(table="s.t"), Invocation(tmp_path, {}))
    with pytest.raises(SourceError) as caught:
        source.open(workspace)
    assert caught.value.code == "CLIENT_MISSING"
    assert caught.value.hint == f"pip install 'retl-cli[{name}]'"
    assert "unproved" in kind.evidence


def test_the_hint_names_an_extra_that_exists() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert set(UNPROVED) <= project["project"]["optional-dependencies"].keys()


@pytest.mark.parametrize(
    ("kind", "type", "read"),
    [
        ("int", "INTEGER", "[a]]b]"),
        ("decimal(38,10)", "DECIMAL(38,10)", "[a]]b]"),
        ("numeric(9)", "DECIMAL(9,0)", "[a]]b]"),
        ("money", "DECIMAL(19,4)", "CAST([a]]b] AS decimal(19, 4))"),
        ("nvarchar(max)", "VARCHAR", "CAST([a]]b] AS nvarchar(max))"),
        ("uniqueidentifier", "UUID", "CAST([a]]b] AS char(36))"),
        ("datetime", "TIMESTAMP", "CONVERT(varchar(40), CAST([a]]b] AS datetime2(3)), 126)"),
        ("datetime2(6)", "TIMESTAMP", "CONVERT(varchar(40), CAST([a]]b] AS datetime2(6)), 126)"),
        ("datetime2(7)", "VARCHAR", "CONVERT(varchar(40), [a]]b], 126)"),
        (
            "datetimeoffset(3)",
            "TIMESTAMP WITH TIME ZONE",
            "CONVERT(varchar(40), CAST(SWITCHOFFSET([a]]b], '+00:00') AS datetime2(3)), 126) + 'Z'",
        ),
        ("varbinary(16)", "VARCHAR", "CONVERT(varchar(max), CAST([a]]b] AS varbinary(max)), 1)"),
        ("geography", "VARCHAR", "[a]]b].ToString()"),
        ("sql_variant", "VARCHAR", "CONVERT(nvarchar(max), [a]]b])"),
    ],
)
def test_sql_server_is_asked_for_values_that_stay_exact(kind: str, type: str, read: str) -> None:
    assert mssql.column("a]b", kind) == Column("a]b", type, f"{read} AS [a]]b]")


@pytest.mark.parametrize(
    ("column", "type", "read"),
    [
        (snowflake.column("A", "NUMBER(38,0)"), "DECIMAL(38,0)", '"A"'),
        (snowflake.column("A", "VARCHAR(16777216)"), "VARCHAR", '"A"'),
        (snowflake.column("A", "VARIANT"), "JSON", 'to_json("A")'),
        (
            snowflake.column("A", "TIMESTAMP_TZ(9)"),
            "TIMESTAMP WITH TIME ZONE",
            "to_varchar(convert_timezone('UTC', \"A\"), 'YYYY-MM-DD\"T\"HH24:MI:SS.FF9') || 'Z'",
        ),
        (snowflake.column("A", "TIME(9)"), "VARCHAR", 'to_varchar("A")'),
        (bigquery.column("a", "INTEGER", "NULLABLE"), "BIGINT", "`a`"),
        (bigquery.column("a", "NUMERIC", "REQUIRED"), "DECIMAL(38,9)", "`a`"),
        (bigquery.column("a", "BIGNUMERIC", "NULLABLE"), "VARCHAR", "CAST(`a` AS STRING)"),
        (bigquery.column("a", "STRING", "REPEATED"), "VARCHAR[]", "`a`"),
        (bigquery.column("a", "RECORD", "REPEATED"), "JSON", "TO_JSON_STRING(`a`)"),
        (bigquery.column("a", "BYTES", "NULLABLE"), "VARCHAR", "TO_BASE64(`a`)"),
        (databricks.column("a", "decimal(10,2)"), "DECIMAL(10,2)", "`a`"),
        (databricks.column("a", "timestamp"), "TIMESTAMP WITH TIME ZONE", "`a`"),
        (databricks.column("a", "array<struct<b:int>>"), "JSON", "to_json(`a`)"),
        (databricks.column("a", "binary"), "VARCHAR", "hex(`a`)"),
        (databricks.column("a", "interval day to second"), "VARCHAR", "CAST(`a` AS STRING)"),
    ],
)
def test_a_type_without_an_exact_one_here_is_read_as_text(column: Column, type: str, read: str) -> None:
    assert column.type == type
    assert column.read.rpartition(" AS ")[0] == read


def test_a_connection_string_has_no_hole() -> None:
    server = mssql.Server(host="db.example", dbname="d;x", user="u", password="a}b;Encrypt=no")  # type: ignore[arg-type]
    assert server.text(ApplicationIntent="ReadOnly") == (
        "Server={tcp:db.example,1433};Database={d;x};Encrypt={yes};TrustServerCertificate={no};"
        "ApplicationIntent={ReadOnly};UID={u};PWD={a}}b;Encrypt=no}"
    )
    assert "a}b" not in repr(server)


@pytest.mark.parametrize(
    ("model", "given", "says"),
    [
        (mssql.Server, {"host": "h", "dbname": "d"}, "needs `user` and `password`"),
        (mssql.Server, {"host": "h", "dbname": "d", "login": "default", "password": "p"}, "has no password"),
        (
            snowflake.Account,
            {"account": "a", "user": "u", "warehouse": "w", "database": "d"},
            "exactly one of password",
        ),
        (
            snowflake.Account,
            {
                "account": "a",
                "user": "u",
                "warehouse": "w",
                "database": "d",
                "token": "t",
                "private_key_password": "p",
            },
            "needs `private_key`",
        ),
    ],
)
def test_a_login_is_one_way_in(model: Any, given: dict[str, str], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        model(**given)


@pytest.mark.parametrize(
    ("syntax", "text", "found"),
    [
        ("MSSQL", "SELECT [a$b], '$c', $d FROM t -- $e", "SELECT [a$b], '$c', ? FROM t -- $e"),
        ("SNOWFLAKE", "SELECT $$ $a; $$, $b FROM t // $c", "SELECT $$ $a; $$, ? FROM t // $c"),
        (
            "BIGQUERY",
            "SELECT '''it's $a''', \"\"\"$b\"\"\", r'\\'', $c # ;",
            "SELECT '''it's $a''', \"\"\"$b\"\"\", r'\\'', ? # ;",
        ),
        ("DATABRICKS", "SELECT 'a\\'$b', `c$d`, $e", "SELECT 'a\\'$b', `c$d`, ?"),
    ],
)
def test_a_variable_is_none_inside_quotes_and_comments(syntax: str, text: str, found: str) -> None:
    given = dict.fromkeys("abcde", 1)
    assert sql.statement(text, getattr(sql, syntax), given, "source.sql").text(lambda _value: "?") == found


@pytest.mark.parametrize("syntax", ["MSSQL", "SNOWFLAKE", "BIGQUERY", "DATABRICKS"])
@pytest.mark.parametrize("text", ["DELETE FROM t", "SELECT 1; DROP TABLE t", "SELECT '\\'; DROP TABLE t --'"])
def test_only_one_select_is_sent(syntax: str, text: str) -> None:
    if syntax != "MSSQL" and "\\" in text:
        text = "SELECT 'a''; DROP TABLE t"  # a backslash escapes there, so this text is open at its end
    with pytest.raises(DefinitionError):
        sql.statement(text, getattr(sql, syntax), {}, "source.sql")


@pytest.mark.parametrize(
    ("module", "value", "text"),
    [
        ("mssql", "o'hara", "N'o''hara'"),
        ("mssql", True, "1"),
        ("snowflake", "a\\'b", "'a\\\\''b'"),
        ("bigquery", "a\\'b\n", "'a\\\\\\'b\\n'"),
        ("databricks", "a\\'b", "'a\\\\\\'b'"),
        ("databricks", None, "NULL"),
        ("bigquery", -1, "(-1)"),
    ],
)
def test_a_variable_becomes_a_value(module: str, value: object, text: str) -> None:
    assert importlib.import_module(f"retl.sources.{module}").written(value) == text


def test_an_unknown_error_of_a_stream_has_a_meaning(workspace: Workspace) -> None:
    with columnar.connect(lambda: Engine("range(3)"), workspace, "t") as snapshot:
        found = snapshot.rows(["range"])
        assert isinstance(found, Query)
        assert found.meaning is not None
        assert found.meaning(RuntimeError("x")).code == "MART_UNREADABLE"
