"""Delta tables into PostgreSQL, with changes that the feed tells or does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
from deltalake import DeltaTable, write_deltalake

from tests import duckdb_files, servers
from tests.crashes import SECOND, SYNC_YML, PostgresScene, Project

THIRD = """
UPDATE mart SET searches = searches + 5 WHERE right(user_id, 1) IN ('2', '8');
UPDATE mart SET user_id = 'user 200' WHERE user_id = 'user 016';
DELETE FROM mart WHERE user_id IN ('user 001', 'user 100');
INSERT INTO mart VALUES ('user 003', 'back', 1, 1.00)"""


class Lake(Project):
    """A project whose mart is a Delta table, kept as the DuckDB mart is, which says what a target must hold."""

    def define(self, sync: str) -> None:
        (self.folder / "retl.yml").open("a").write("sources: {lake: {type: delta, root: lake}}\n")
        source = SYNC_YML.replace("source: {table: mart}", "source: {from: lake, table: mart}")
        (self.folder / "syncs" / "users.yml").write_text(source + sync)

    @property
    def table(self) -> DeltaTable:
        return DeltaTable(str(self.folder / "lake/mart"))

    def mart(self, sql: str) -> None:
        super().mart(sql)
        with duckdb_files.opened(self.folder / "mart.duckdb", read_only=True) as connection:
            rows = connection.sql("FROM mart").to_arrow_table()
        if not (self.folder / "lake/mart").exists():
            feed = {"delta.enableChangeDataFeed": "true"}
            write_deltalake(str(self.folder / "lake/mart"), rows, configuration=feed)
            return
        differs = " OR ".join(
            f"(t.{name} IS DISTINCT FROM s.{name})" for name in ("segment", "searches", "lifetime_value")
        )
        merge = self.table.merge(rows, "t.user_id = s.user_id", source_alias="s", target_alias="t")
        merge = merge.when_matched_update_all(differs).when_not_matched_insert_all()
        merge.when_not_matched_by_source_delete().execute()


class LakeScene(PostgresScene):
    before = (SECOND, THIRD)

    def __init__(self, folder: Path, database: servers.Database, changes: str) -> None:
        super().__init__(folder, database)
        self.sync = (
            f"{PostgresScene.sync}deletes: delete\nchanges: {changes}\nguards: {{max_delete_rate: 1}}\n"
        )

    def start_over(self) -> None:
        super().start_over()  # removes the state
        for path in sorted((self.folder / "lake").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        if (self.folder / "lake/mart").exists():
            (self.folder / "lake/mart").rmdir()
        self.project: Lake = Lake(self.folder, self.sync, self.environ())


FEEDS: dict[str, tuple[Callable[[Lake], object], str | None]] = {
    "compacted": (lambda lake: lake.table.optimize.compact(), None),
    "restored": (lambda lake: lake.table.restore(0), "version 2 is RESTORE"),
    "vacuumed": (
        lambda lake: (lake.mart(THIRD), *map(Path.unlink, lake.folder.glob("lake/mart/_change_data/*"))),
        "the change feed cannot be read: files of this version of Delta table mart are not there",
    ),
}


@pytest.mark.parametrize("case", FEEDS)
def test_what_the_feed_tells_is_delivered_and_else_the_table_is_read_whole(
    tmp_path: Path, postgres: servers.Database, case: str
) -> None:
    change, why = FEEDS[case]
    scene = LakeScene(tmp_path / "project", postgres, "cdf")
    scene.before = (SECOND,)
    scene.begin()
    done = scene.project.sync()
    assert done.code == 0, done.stderr
    assert done.summary["read"] == 6  # of 39 rows
    change(scene.project)
    plan = scene.project.answered("plan", "--sync", "users")
    assert ("every row of the source was read" in plan.stdout) == (why is not None)
    assert why is None or why in plan.stdout
    assert scene.project.sync().code == 0
    listed = "user_id, segment, searches::VARCHAR, lifetime_value::VARCHAR"
    with duckdb.connect() as connection:
        connection.register("held", scene.project.table.scan())
        wanted = connection.sql(f"SELECT {listed} FROM held ORDER BY 1").fetchall()
    assert scene.content() == sorted(wanted, key=str)
