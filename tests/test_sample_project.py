"""The sample project says what its README and demo rely on, and its warehouse fits its contracts."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from retl.project.contracts import Column
from retl.project.definitions import Project, Sync
from retl_demo import warehouse
from tests import duckdb_files

ROOT = warehouse.project()
SYNCS = sorted(path.stem for path in (ROOT / "syncs").glob("*.yml"))
USERS = 20_000


def load(name: str) -> Sync:
    document = yaml.safe_load((ROOT / "syncs" / f"{name}.yml").read_text(encoding="utf-8"))
    return Sync.model_validate({"name": name, **document})


def query(sync: Sync) -> str:
    """The sync's source as a SELECT in parentheses, with its run date written in."""
    source = sync.source
    text = source.sql or (f"FROM {source.table}" if source.table else (ROOT / str(source.file)).read_text())
    return f"({text.replace('$run_date', repr(str(warehouse.RUN_DATE)))})"


def rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with duckdb_files.opened(path, read_only=True) as connection:
        return connection.execute(sql).fetchall()


def difference(before: Path, after: Path, table: str, key: str = "1") -> int:
    """How many keys of `table` have rows in one of the two warehouses that the other has not."""
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{before}' AS before (READ_ONLY)")
        connection.execute(f"ATTACH '{after}' AS after (READ_ONLY)")
        one, two = f"FROM before.{table}", f"FROM after.{table}"
        moved = f"(({one} EXCEPT {two}) UNION ALL ({two} EXCEPT {one}))"
        ((count,),) = connection.execute(f"SELECT count(DISTINCT {key}) FROM {moved} AS moved").fetchall()
    return int(count)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("warehouse") / "data" / "warehouse.duckdb"
    warehouse.build(path)
    return path


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("warehouse") / "warehouse.duckdb"
    warehouse.build(path)
    assert warehouse.change(path) == USERS // 100
    return path


def test_the_project_has_these_six_syncs() -> None:
    assert SYNCS == [
        "churn_campaign",
        "customer_segments",
        "email_triggers",
        "product_recommendations",
        "recommendations",
        "user_segments",
    ]


def test_the_project_file_is_of_the_warehouse_s_day() -> None:
    project = Project.model_validate(yaml.safe_load((ROOT / "retl.yml").read_text(encoding="utf-8")))
    assert project.vars == {"run_date": warehouse.RUN_DATE.isoformat()}
    assert {ref.type for ref in project.connections.values()} == {"postgres", "http"}


@pytest.mark.parametrize("name", SYNCS)
def test_every_sync_is_described_and_has_a_contract_with_its_key(name: str) -> None:
    sync = load(name)
    assert sync.description
    assert sync.tags
    assert sync.contract
    assert sync.contract.columns
    assert set(sync.key) <= set(sync.contract.columns)
    assert all(other in SYNCS for other in sync.after)


@pytest.mark.parametrize("name", SYNCS)
def test_every_row_of_the_sample_fits_its_contract(built: Path, name: str) -> None:
    sync = load(name)
    assert sync.contract
    assert sync.contract.columns
    bad = " OR ".join(broken(column, model) for column, model in sync.contract.columns.items())
    key = ", ".join(sync.key)
    ((total, keys, bad_rows),) = rows(
        built, f"SELECT count(*), count(DISTINCT ({key})), count(*) FILTER (WHERE {bad}) FROM {query(sync)}"
    )
    assert total == keys > 500
    assert bad_rows == 0
    for check in sync.checks:
        assert rows(built, f"WITH source AS {query(sync)} {check}") == []


def broken(column: str, model: Column) -> str:
    """The SQL that is true for a value outside the contract."""
    tests = ["false"] if model.nullable else [f"{column} IS NULL"]
    tests += [f"{column} < {model.ge}"] if model.ge is not None else []
    tests += [f"{column} > {model.le}"] if model.le is not None else []
    tests += [f"{column} NOT IN {model.one_of}"] if model.one_of else []
    tests += [f"NOT regexp_matches({column}, '{model.pattern}')"] if model.pattern else []
    tests += [f"length({column}) > {model.max_length}"] if model.max_length else []
    if model.type == "decimal":
        tests += [f"typeof({column}) <> 'DECIMAL({model.max_digits},{model.decimal_places})'"]
    return " OR ".join(tests)


@pytest.mark.parametrize("table", ["users", *warehouse.MARTS])
def test_the_same_warehouse_is_built_every_time(built: Path, tmp_path: Path, table: str) -> None:
    again = tmp_path / "again.duckdb"
    warehouse.build(again, users=10)
    warehouse.build(again)
    assert rows(built, "SELECT count(*) FROM users") == [(USERS,)]
    assert difference(built, again, table) == 0


def test_a_value_stays_what_it_was(built: Path) -> None:
    row = rows(built, "FROM mart_user_segments WHERE user_id = 'u012345'")[0]
    expected = "u012345 u012345@example.com dormant 11 1 98.92 2026-06-10 00:00:00"
    assert " ".join(str(value) for value in row) == expected


@pytest.mark.parametrize("table", ["mart_user_segments", "mart_recommendations"])
def test_a_change_moves_one_user_in_a_hundred_and_no_other(built: Path, changed: Path, table: str) -> None:
    assert difference(built, changed, table, "user_id") == USERS // 100


def test_a_change_is_the_same_every_time_and_exact_for_odd_numbers(tmp_path: Path) -> None:
    paths = [tmp_path / "one.duckdb", tmp_path / "two.duckdb", tmp_path / "base.duckdb"]
    for path in paths:
        warehouse.build(path, users=997)
    assert [warehouse.change(path, 0.1) for path in paths[:2]] == [100, 100]
    assert difference(paths[0], paths[1], "users") == 0
    assert difference(paths[0], paths[2], "mart_user_segments", "user_id") == 100


def test_a_changed_customer_drops_from_five_products_to_three(built: Path, changed: Path) -> None:
    sync = load("product_recommendations")
    per_customer = f"SELECT n, count(*) FROM (SELECT customer_id, count(*) AS n FROM {query(sync)} GROUP BY 1) GROUP BY 1"
    before, after = dict(rows(built, per_customer)), dict(rows(changed, per_customer))
    assert list(before) == [5]
    assert after.keys() == {3, 5}
    assert after[3] == USERS // 100
    assert sync.deletes.how == "delete"


def test_the_marts_speak_of_the_run_date_and_the_day_before(tmp_path: Path) -> None:
    path = tmp_path / "other.duckdb"
    warehouse.build(path, users=100, run_date=date(2027, 1, 1))
    days = rows(path, "SELECT DISTINCT run_date FROM customer_analytics ORDER BY 1")
    assert days == [(date(2026, 12, 31),), (date(2027, 1, 1),)]
