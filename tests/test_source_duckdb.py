"""A DuckDB file as a source: views over files of the lake, and others who write to it meanwhile."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from retl.engine.workspace import Workspace
from retl.errors import SourceError
from retl.observe.signals import Stop
from retl.project.definitions import Warehouse
from retl.project.marts import Source
from retl.sources.api import Invocation
from retl.sources.duckdb import DuckDB
from tests import duckdb_files
from tests.commands import Workshop
from tests.inprocess import answer


def mart(path: Path, *statements: str) -> None:
    with duckdb_files.opened(path) as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    (tmp_path / "run").mkdir()
    with Workspace(tmp_path / "run", Stop()) as made:
        yield made


def source(folder: Path) -> DuckDB:
    warehouse = Warehouse.model_validate({"path": "mart.duckdb"})
    return DuckDB(warehouse, Source.model_validate({"table": "m"}), Invocation(folder, {}))


@pytest.mark.parametrize("pattern", ["lake/m.parquet", "./lake/*.parquet"])
def test_a_view_over_a_relative_path_is_read_where_the_path_is_right_and_named_elsewhere(
    tmp_path: Path, pattern: str
) -> None:
    workshop = Workshop(tmp_path / "project", {"REDIS_PORT": "1"})
    workshop.write("retl.yml", "warehouse: {path: data/warehouse.duckdb, read_paths: [lake]}\n")
    workshop.write("lake/empty", "")
    lake = workshop.folder / "lake/m.parquet"
    workshop.warehouse(f"COPY (SELECT i AS user_id, 'a' AS a FROM range(5) t(i)) TO '{lake}'")
    before = os.getcwd()
    os.chdir(workshop.folder)
    try:
        workshop.warehouse(f"CREATE VIEW v AS FROM read_parquet('{pattern}')")
    finally:
        os.chdir(before)
    workshop.sync("users", source="{table: v}")
    inside = workshop.retl("plan", "--sync", "users", "--output", "json")
    assert json.loads(inside.out)["syncs"][0]["error"]["code"] != "MART_UNREADABLE"
    words = ("plan", "--sync", "users", "--project", str(workshop.folder), "--output", "json")
    error = answer(words, workshop.environ(), tmp_path).document["syncs"][0]["error"]
    assert (error["code"], pattern in error["message"]) == ("MART_UNREADABLE", True)
    assert "read_paths" in error["hint"]
    assert "relative path" in error["hint"]


def test_a_view_over_a_folder_that_is_not_listed_is_named_with_it(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path / "project", {"REDIS_PORT": "1"})
    lake = tmp_path / "m.parquet"
    workshop.warehouse(f"COPY (SELECT 1 AS user_id, 2 AS n) TO '{lake}'")
    workshop.warehouse(f"CREATE VIEW v AS FROM '{lake}'")
    workshop.sync("users", source="{table: v}")
    error = workshop.retl("plan", "--sync", "users", "--output", "json").document["syncs"][0]["error"]
    assert error["message"] == f"table v reads {lake}, which is not in `read_paths`"
    assert "relative" not in error["hint"]


def test_a_mart_that_is_overwritten_while_it_is_read_is_not_delivered(
    tmp_path: Path, workspace: Workspace
) -> None:
    path = tmp_path / "mart.duckdb"
    mart(path, "CREATE TABLE m AS SELECT 1 AS id")
    mart(tmp_path / "new.duckdb", "CREATE TABLE m AS SELECT i AS id FROM range(100000) t(i)")
    with pytest.raises(SourceError) as caught, source(tmp_path).open(workspace):
        shutil.copyfile(tmp_path / "new.duckdb", path)
    assert caught.value.code == "SOURCE_MOVES"


def test_a_mart_that_is_replaced_while_it_is_read_is_read_as_it_was(
    tmp_path: Path, workspace: Workspace
) -> None:
    path = tmp_path / "mart.duckdb"
    mart(path, "CREATE TABLE m AS SELECT 1 AS id")
    mart(tmp_path / "new.duckdb", "CREATE TABLE m AS SELECT 2 AS id, 3 AS other")
    with source(tmp_path).open(workspace) as snapshot:
        (tmp_path / "new.duckdb").rename(path)
        assert workspace.run(snapshot.rows(["id"]).sql) == [(1,)]
    with source(tmp_path).open(workspace) as snapshot:
        assert workspace.run(snapshot.rows(["id"]).sql) == [(2, 3)]
        path.unlink()
