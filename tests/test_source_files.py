"""Files as a source: what a pattern names is one mart, and it is read as one state or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pytest

from retl.engine.workspace import Workspace
from retl.errors import Mismatch, SourceError
from retl.observe.signals import Stop
from retl.sources.api import Invocation, Snapshot
from retl.sources.files import Files, Folder, Pattern
from retl.sources.files.glob import Glob
from tests.commands import Workshop
from tests.servers import RedisServer

SYNC = {
    "key": "[user_id]",
    "contract": "{user_id: {type: integer}, segment: {type: string, nullable: true}, day: {type: date}}",
    "destination": '{type: redis, key: "seg:{user_id}", value: json, ttl: none}',
}
PROJECT = "sources:\n  drop: {type: files, root: exports}\n"


@pytest.fixture
def drop(tmp_path: Path, redis_server: RedisServer) -> Workshop:
    workshop = Workshop(tmp_path / "shop")
    workshop.use(redis=redis_server)
    workshop.write("retl.yml", PROJECT)
    parquet(workshop.folder / "exports/day=2026-11-27/a.parquet", "SELECT 1 AS user_id, 'vip' AS segment")
    parquet(workshop.folder / "exports/day=2026-11-28/b.parquet", "SELECT 2 AS user_id")
    return workshop


def parquet(path: Path, sql: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    duckdb.connect().execute(f"COPY ({sql}) TO '{path}' (FORMAT parquet)")


def opened(folder: Path, path: str) -> Callable[[Workspace], Snapshot]:
    return Files(Folder(root="exports"), Pattern(path=path), Invocation(folder, {})).open


def test_the_files_of_a_pattern_are_one_mart(drop: Workshop, redis_server: RedisServer) -> None:
    drop.sync("s", source="{from: drop, path: 'day=*/*.parquet'}", **SYNC)
    (run,) = drop.json("sync")["syncs"]
    assert (run["status"], run["inserted"]) == ("SUCCESS", 2)
    assert redis_server.client().get("seg:1") == b'{"segment":"vip","day":"2026-11-27"}'
    assert redis_server.client().get("seg:2") == b'{"segment":null,"day":"2026-11-28"}'
    parquet(drop.folder / "exports/day=2026-11-28/c.parquet", "SELECT 3 AS user_id, 'new' AS segment")
    (run,) = drop.json("sync")["syncs"]
    assert (run["inserted"], run["unchanged"]) == (1, 2)
    assert drop.json("show")["source_version"].startswith("3 files ")


def test_a_file_that_changes_while_it_is_read_delivers_nothing(drop: Workshop) -> None:
    workspace = Workspace(drop.folder, Stop())
    snapshot = opened(drop.folder, "day=*/*.parquet")(workspace)
    os.utime(drop.folder / "exports/day=2026-11-27/a.parquet", ns=(0, 1))
    with pytest.raises(SourceError) as caught, snapshot:
        pass
    assert caught.value.code == "SOURCE_MOVES"
    workspace.close()


@pytest.mark.parametrize("does", ["vanishes", "is cut"])
def test_half_of_a_file_is_never_delivered(drop: Workshop, does: str) -> None:
    path = drop.folder / "exports/day=2026-11-28/b.parquet"
    workspace = Workspace(drop.folder, Stop())
    snapshot = opened(drop.folder, "day=*/*.parquet")(workspace)
    path.unlink() if does == "vanishes" else os.truncate(path, 60)
    with pytest.raises(SourceError) as caught, snapshot:
        workspace.run(f"SELECT * FROM ({snapshot.rows([]).sql})")
    workspace.close()
    assert caught.value.code == "SOURCE_MOVES"


def test_a_file_that_comes_meanwhile_is_for_the_next_run(drop: Workshop) -> None:
    source = opened(drop.folder, "day=*/*.parquet")
    with closing(Workspace(drop.folder, Stop())) as workspace, source(workspace) as snapshot:
        parquet(drop.folder / "exports/day=2026-11-28/c.parquet", "SELECT 3 AS user_id")
        found = workspace.run(f"SELECT user_id FROM ({snapshot.rows([]).sql}) ORDER BY 1")
    assert found == [(1,), (2,)]


def read(folder: Path, path: str) -> tuple[dict[str, str], list[tuple[Any, ...]]]:
    """The columns with their types, and the rows in order."""
    with closing(Workspace(folder, Stop())) as workspace, opened(folder, path)(workspace) as snapshot:
        rows = workspace.run(f"SELECT * FROM ({snapshot.rows([]).sql}) ORDER BY ALL")
        return dict(snapshot.description.columns), rows


CONFLICTS = {
    ("1", "'x'"): "VARCHAR",
    ("1::BIGINT", "1.5::DOUBLE"): "DOUBLE",
    ("1.10::DECIMAL(12,2)", "1.5::DOUBLE"): "DOUBLE",
    ("DATE '2026-11-28'", "TIMESTAMP '2026-11-28'"): "TIMESTAMP",
    ("TIMESTAMP '2026-11-28'", "TIMESTAMPTZ '2026-11-28'"): "TIMESTAMP WITH TIME ZONE",
    ("true", "1"): "INTEGER",
    ("[1]", "['x']"): "VARCHAR[]",
    ("{'a': 1}", "{'a': 'x'}"): "STRUCT(a VARCHAR)",
}


@pytest.mark.parametrize(("types", "whole"), CONFLICTS.items(), ids=str)
@pytest.mark.parametrize("order", [0, 1])
def test_types_of_which_none_has_all_values_are_drift_in_any_order(
    tmp_path: Path, types: tuple[str, str], whole: str, order: int
) -> None:
    for name, value in zip("ab" if order else "ba", types, strict=True):
        parquet(tmp_path / f"exports/{name}.parquet", f"SELECT 1 AS id, {value} AS v")
    with pytest.raises(Mismatch, match=r"the column v is .* with the other files") as caught:
        read(tmp_path, "*.parquet")
    assert caught.value.code == "SOURCE_DRIFT"
    assert whole in caught.value.message


WIDENED = {
    ("1::SMALLINT", "1::BIGINT"): "BIGINT",
    ("1::BIGINT", "18446744073709551615::UBIGINT"): "HUGEINT",
    ("1", "1.10::DECIMAL(12,2)"): "DECIMAL(12,2)",
    ("1::BIGINT", "1.10::DECIMAL(12,2)"): "DECIMAL(21,2)",
    ("1.1::DECIMAL(4,1)", "1.10::DECIMAL(12,2)"): "DECIMAL(12,2)",
    ("{'a': 1}", "{'a': 1::BIGINT, 'b': 'x'}"): "STRUCT(a BIGINT, b VARCHAR)",
    ("NULL", "'x'"): "VARCHAR",
}


@pytest.mark.parametrize(("types", "whole"), WIDENED.items(), ids=str)
@pytest.mark.parametrize("order", [0, 1])
def test_types_that_widen_are_joined_in_any_order(
    tmp_path: Path, types: tuple[str, str], whole: str, order: int
) -> None:
    for name, value in zip("ab" if order else "ba", types, strict=True):
        parquet(tmp_path / f"exports/{name}.parquet", f"SELECT {value} AS v")
    columns, rows = read(tmp_path, "*.parquet")
    assert len(rows) == 2
    assert columns["v"] == whole or (whole.startswith(("STRUCT", "DECIMAL")) and columns["v"] != whole)


def test_a_name_with_brackets_is_no_pattern(tmp_path: Path) -> None:
    for number, name in enumerate(["a[1]", "a1", "a*", "a?"]):
        parquet(tmp_path / "exports" / f"{name}.parquet", f"SELECT {number} AS id")
    assert read(tmp_path, "a[[]1].parquet")[1] == [(0,)]
    assert read(tmp_path, "*.parquet")[1] == [(0,), (1,), (2,), (3,)]


def test_a_folder_says_a_type_only_if_all_its_values_are_sure(tmp_path: Path) -> None:
    for day, code in (("2026-11-27", "007"), ("2026-11-28", "8"), ("__HIVE_DEFAULT_PARTITION__", "a%3Ab")):
        parquet(tmp_path / f"exports/day={day}/code={code}/a.parquet", "SELECT 1 AS id")
    columns, rows = read(tmp_path, "*/*/*.parquet")
    assert columns == {"id": "INTEGER", "code": "VARCHAR", "day": "DATE"}
    assert [(code, day and str(day)) for _, code, day in rows] == [
        ("007", "2026-11-27"),
        ("8", "2026-11-28"),
        ("a:b", None),
    ]


def test_a_folder_above_the_root_is_no_column(tmp_path: Path) -> None:
    parquet(tmp_path / "env=1/exports/day=1/a.parquet", "SELECT 1 AS id, 'x' AS env")
    (tmp_path / "exports").symlink_to(tmp_path / "env=1/exports")
    with pytest.raises(SourceError, match="above `root` would become a column"):
        read(tmp_path, "**/*.parquet")


def test_folders_with_different_names_are_refused(tmp_path: Path) -> None:
    parquet(tmp_path / "exports/day=1/a.parquet", "SELECT 1 AS id")
    parquet(tmp_path / "exports/b.parquet", "SELECT 1 AS id")
    with pytest.raises(SourceError, match="are in folders with different names"):
        read(tmp_path, "**/*.parquet")


MATCHES = {
    "*.csv": ("a.csv", ["b/a.csv", "_a.csv", ".a.csv", "a.csv.gz"]),
    "a/**/b": ("a/x/y/b", ["a/xb", "a/_tmp/b", "b"]),
    "**/b": ("b", ["a/b/c"]),
    "dt=*/?.x": ("dt=1/a.x", ["dt=1/ab.x", "dt=1/2/a.x"]),
    "_x=*/*": ("_x=1/a", ["_x=1/_SUCCESS"]),
    "_done": ("_done", ["done"]),
    "[ab]1": ("b1", ["c1"]),
}


@pytest.mark.parametrize(("pattern", "found"), MATCHES.items())
def test_a_pattern_matches_what_it_says(pattern: str, found: tuple[str, list[str]]) -> None:
    assert Glob(pattern).matches(found[0])
    assert not any(Glob(pattern).matches(other) for other in found[1])


def test_a_broken_parquet_file_is_named(tmp_path: Path) -> None:
    parquet(tmp_path / "exports/a.parquet", "SELECT 1 AS id")
    os.truncate(tmp_path / "exports/a.parquet", 40)
    with pytest.raises(SourceError, match=r"a\.parquet is no complete Parquet file"):
        read(tmp_path, "*.parquet")


def test_no_file_is_no_empty_mart(drop: Workshop) -> None:
    drop.sync("s", source="{from: drop, path: 'day=2025-*/*.parquet'}", deletes="delete", **SYNC)
    (run,) = drop.retl("sync", "--output", "json").document["syncs"]
    assert (run["status"], run["error"]["code"]) == ("FAILED", "MART_MISSING")


@pytest.mark.parametrize("path", ["../x.parquet", "/etc/x.parquet", "a/../../x.parquet"])
def test_a_pattern_does_not_lead_out_of_the_folder(drop: Workshop, path: str) -> None:
    drop.sync("s", source=f"{{from: drop, path: '{path}'}}", **SYNC)
    said = drop.retl("validate")
    assert said.code == 2
    assert "does not lead out of it" in said.err


def test_a_link_out_of_the_folder_is_no_file_of_it(drop: Workshop, tmp_path: Path) -> None:
    parquet(tmp_path / "elsewhere.parquet", "SELECT 9 AS user_id")
    (drop.folder / "exports/link.parquet").symlink_to(tmp_path / "elsewhere.parquet")
    workspace = Workspace(drop.folder, Stop())
    with pytest.raises(SourceError, match="no file in exports matches"):
        opened(drop.folder, "link.parquet")(workspace)
    workspace.close()


def test_a_source_nobody_defined_is_named_with_its_line(drop: Workshop) -> None:
    drop.sync("s", source="{from: dorp, path: '*.parquet'}", **SYNC)
    said = drop.retl("validate")
    assert said.code == 2
    assert "has no source 'dorp'" in said.err
    assert "did you mean 'drop'?" in said.err
