"""Files as a source: what a pattern names is one mart, and it is read as one state or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from retl.engine.workspace import Workspace
from retl.errors import SourceError
from retl.observe.signals import Stop
from retl.sources.api import Invocation, Snapshot
from retl.sources.files import Files, Folder, Pattern
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
