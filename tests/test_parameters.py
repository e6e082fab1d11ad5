"""`vars` and --var: a number is bound as a number and a day as a date, in DuckDB and in the SQL of each source."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest

import retl
from retl.engine.scope import Scope
from retl.errors import DefinitionError
from retl.net import clickhouse
from retl.project import parameters
from retl.sources import bigquery, databricks, mssql, mysql, postgres, redshift, snowflake, sqlite, trino
from tests.commands import Workshop
from tests.servers import Database

DAY = date(2026, 11, 20)
TODAY = date(2026, 12, 1)
VARS = "vars: {n: 10, share: 1.5, on: true, day: 2026-11-20, name: eu, code: '007'}\n"
TYPES = (
    "typeof($n) = 'INTEGER' AND typeof($share) = 'DOUBLE' AND typeof($on) = 'BOOLEAN' AND typeof($day) = 'DATE'"
    " AND typeof($name) = 'VARCHAR' AND typeof($code) = 'VARCHAR'"
)
SQL = f"SELECT * FROM users WHERE {TYPES} AND user_id <= $n AND $day - INTERVAL 1 DAY < DATE '2100-01-01'"


def bound(text: str, declared: Any) -> Any:
    value = parameters.given("n", text, declared)
    return parameters.bound({"n": value}, {"n": declared}, TODAY)["n"]


@pytest.mark.parametrize(
    ("text", "declared", "value"),
    [
        ("9", 1000, 9),
        ("9", 1.5, 9.0),
        ("1e3", 1.5, 1000.0),
        ("false", True, False),
        ("9", "eu", "9"),
        ("2026-11-20", "eu", "2026-11-20"),
        ("today", "eu", "today"),
        ("", "eu", ""),
        ("2026-11-20", "today", DAY),
        ("today", "2026-01-01", TODAY),
        ("9", None, 9),
        ("1.5", None, 1.5),
        ("007", None, "007"),
        ("2026-11-20", None, DAY),
        ("2026-02-30", None, "2026-02-30"),
        ("today", None, TODAY),
        ("eu", None, "eu"),
        ("true", None, True),
        ("", None, None),
    ],
)
def test_a_var_has_the_type_of_its_value_in_retl_yml_else_that_of_yaml(
    text: str, declared: Any, value: Any
) -> None:
    found = bound(text, declared)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "declared", "wanted"),
    [
        ("nine", 1000, "a whole number"),
        ("1.5", 1000, "a whole number"),
        ("true", 1, "a whole number"),
        ("many", 1.5, "a number"),
        ("1", True, "true or false"),
        ("soon", "today", "a day"),
        ("2026-02-30", "2026-01-01", "a day"),
    ],
)
def test_a_var_of_another_type_is_an_error_that_says_which_it_takes(
    text: str, declared: Any, wanted: str
) -> None:
    with pytest.raises(DefinitionError, match=f"--var n takes {wanted}") as caught:
        bound(text, declared)
    assert caught.value.code == "VAR_INVALID"


def test_retl_yml_says_the_types(workshop: Workshop) -> None:
    (found,) = workshop.json("sync", "--dry-run")["syncs"]
    assert found["read"] == 10


def test_the_command_line_keeps_the_types(workshop: Workshop) -> None:
    words = ("n=5", "share=2", "on=false", "day=today", "name=9", "code=8")
    (found,) = workshop.json("sync", "--dry-run", *(part for one in words for part in ("--var", one)))[
        "syncs"
    ]
    assert found["read"] == 5
    said = workshop.retl("sync", "--var", "n=five")
    assert (said.code, "[VAR_INVALID]" in said.err) == (2, True)


def test_a_plan_keeps_the_types_until_it_is_applied(workshop: Workshop) -> None:
    words = ("--var", "n=5", "--var", "day=2026-11-21", "--var", "name=2026-01-01")
    workshop.json("plan", "users", "--out", "a.plan", *words)
    (done,) = workshop.json("apply", "a.plan")["syncs"]
    assert (done["status"], done["read"]) == ("SUCCESS", 5)
    kept = {"n": "5", "day": "2026-11-21", "name": "2026-01-01"}
    assert kept.items() <= workshop.json("show")["vars"].items()


def test_a_name_that_the_project_does_not_have_is_refused_with_the_nearest(workshop: Workshop) -> None:
    said = workshop.retl("sync", "--var", "shar=2")
    assert (said.code, said.err.count("did you mean 'share'?")) == (2, 1), said.err
    said = workshop.retl("plan", "users", "--var", "shore=2")
    assert (said.code, "[USAGE]" in said.err) == (2, True)
    assert workshop.retl("contract", "diff", "users", "--var", "zzz=2").code == 2
    with retl.open(workshop.folder) as session, pytest.raises(DefinitionError, match="--var shar:") as caught:
        session.run(variables={"shar": 2})
    assert caught.value.code == "USAGE"
    with retl.open(workshop.folder) as session, pytest.raises(DefinitionError, match="takes a whole number"):
        session.run(variables={"n": "many"})


def test_a_variable_may_be_used_by_a_sync_a_file_or_the_command_line_alone(workshop: Workshop) -> None:
    workshop.write("marts/users.sql", "SELECT * FROM users WHERE user_id <= $least")
    workshop.sync(
        "users", source="{file: marts/users.sql}", destination="{type: postgres, table: users, create: true}"
    )
    where = ("--where", "user_id > $above")
    (found,) = workshop.json("sync", "--dry-run", "--var", "least=8", "--var", "above=3", *where)["syncs"]
    assert found["inserted"] == 5
    assert workshop.retl("sync", "--dry-run", "--var", "least=8", "--var", "above=3").code == 2


def test_a_value_that_sql_cannot_read_names_its_variables(workshop: Workshop) -> None:
    sql = "SELECT * FROM users WHERE CAST($since AS DATE) > DATE '2026-01-01'"
    workshop.sync(
        "users", source=f'{{sql: "{sql}"}}', destination="{type: postgres, table: users, create: true}"
    )
    said = workshop.retl("sync", "--dry-run", "--var", "since=oops")
    assert (said.code, "$since" in said.err, "oops" in said.err) == (1, True, False), said.err


@pytest.fixture
def workshop(tmp_path: Path, postgres: Database) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.use(postgres=postgres)
    made.write("retl.yml", VARS)
    made.sync("users", source=f'{{sql: "{SQL}"}}', destination="{type: postgres, table: users, create: true}")
    return made


def test_a_scope_keeps_the_types_until_the_next_run() -> None:
    scope = Scope("day >= $day AND n < $n", {"day": DAY, "n": 5, "name": "2026-01-01"})
    assert Scope.parse(scope.text()) == scope


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        *((one.written, "DATE '2026-11-20'") for one in (bigquery, databricks, mysql, postgres, redshift)),
        *((one.written, "DATE '2026-11-20'") for one in (snowflake, trino)),
        (mssql.written, "CAST(N'2026-11-20' AS date)"),
        (sqlite.written, "'2026-11-20'"),
        (clickhouse.written, "2026-11-20"),
    ],
)
def test_a_day_is_a_date_in_the_sql_of_each_source(written: Any, wanted: str) -> None:
    assert written(DAY) == wanted
    assert written(9).strip("()") == "9"


def test_postgresql_counts_with_a_day_and_a_number(postgres: Database) -> None:
    from retl.sources.postgres import written

    with postgres.connect() as connection:
        row = connection.execute(f"SELECT {written(DAY)} - interval '7 days', {written(9)} + 1").fetchone()
    assert row is not None
    assert (row[0].date(), row[1]) == (date(2026, 11, 13), 10)
