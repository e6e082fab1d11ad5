"""Several inputs: each is read whole at one state, and one SELECT over them makes the mart."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from tests.commands import Workshop
from tests.servers import RedisServer

SQL = "SELECT c.user_id, r.score FROM c JOIN r USING (user_id) WHERE user_id NOT IN (SELECT user_id FROM old)"
INPUTS = "{c: {from: warehouse, table: users}, r: {from: drop, path: '*.parquet'}, old: {table: former}}"
MOST = "99999999999999999999999999999999999999"


@pytest.fixture
def shop(tmp_path: Path, redis_server: RedisServer) -> Workshop:
    workshop = Workshop(tmp_path / "shop")
    workshop.use(redis=redis_server)
    workshop.write("retl.yml", "sources:\n  drop: {type: files, root: exports}\n")
    workshop.warehouse("CREATE TABLE former AS SELECT 4 AS user_id")
    workshop.sync("s", source=f'{{inputs: {INPUTS}, sql: "{SQL}"}}')
    scores(workshop, f"(1, {MOST}), (2, 7), (4, 9), (900, 1)")
    return workshop


def scores(workshop: Workshop, rows: str) -> None:
    (workshop.folder / "exports").mkdir(exist_ok=True)
    duckdb.connect().execute(
        f"COPY (SELECT col0 AS user_id, CAST(col1 AS DECIMAL(38, 0)) AS score FROM (VALUES {rows}))"
        f" TO '{workshop.folder / 'exports/a.parquet'}' (FORMAT parquet)"
    )


def test_the_inputs_are_joined_without_loss(shop: Workshop, redis_server: RedisServer) -> None:
    (run,) = shop.json("sync")["syncs"]
    assert (run["status"], run["inserted"]) == ("SUCCESS", 2)
    assert redis_server.client().get("s:1") == f'{{"score":{MOST}}}'.encode()
    scores(shop, "(1, 5), (2, 7)")
    (run,) = shop.json("sync")["syncs"]
    assert (run["updated"], run["unchanged"]) == (1, 1)


def test_a_variable_may_be_given_with_the_run_alone(shop: Workshop) -> None:
    shop.sync("s", source=f'{{inputs: {INPUTS}, sql: "{SQL} AND user_id > $least"}}')
    said = shop.retl("validate")
    assert (said.code, "VAR_MISSING" in said.err) == (2, True), said.err
    (run,) = shop.json("sync", "--var", "least=1")["syncs"]
    assert (run["status"], run["inserted"]) == ("SUCCESS", 1)


def test_each_input_s_version_is_recorded(shop: Workshop) -> None:
    shop.json("sync")
    version = shop.json("show")["source_version"]
    assert [part.split(": ")[0] for part in version.split(", ")] == ["c", "r", "old"]
    assert "r: 1 files " in version


@pytest.mark.parametrize(
    "source",
    ["{inputs: {r: {from: drop, path: '*.parquet'}}, sql: 'FROM r'}", "{from: drop, path: '*.parquet'}"],
)
def test_the_status_of_a_sync_of_files_is_told_where_there_is_a_warehouse(
    shop: Workshop, source: str
) -> None:
    shop.sync("s", source=source)
    shop.json("sync")
    (found,) = shop.json("status")["syncs"]
    assert (found["status"], found["lag_seconds"]) == ("SUCCESS", None)


@pytest.mark.parametrize(
    ("source", "code", "says"),
    [
        (f"{{inputs: {INPUTS}}}", "", "`inputs` are the sources of one `sql`"),
        (f"{{inputs: {INPUTS}, table: users}}", "", "`inputs` are the sources of one `sql`"),
        (f'{{inputs: {{}}, sql: "{SQL}"}}', "", "`inputs` are the sources of one `sql`"),
        (
            f'{{inputs: {{c: {{from: lake, table: users}}}}, sql: "{SQL}"}}',
            "SOURCE_UNKNOWN",
            "no source 'lake'",
        ),
        ("{inputs: {c: {table: users}}, sql: 'DROP TABLE c'}", "SQL_NOT_ONE_SELECT", "exactly one SELECT"),
        ("{inputs: {c: {table: users, color: red}}, sql: 'FROM c'}", "OPTION_UNKNOWN", "'color'"),
        ("{table: users, complete: true}", "OPTION_UNUSED", "`complete` has no effect"),
    ],
)
def test_what_does_not_fit_together_is_refused(shop: Workshop, source: str, code: str, says: str) -> None:
    shop.sync("s", source=source)
    said = shop.retl("validate")
    assert said.code == 2
    assert says in said.err
    assert code in said.err


def test_the_select_sees_only_its_inputs(shop: Workshop) -> None:
    (shop.folder / "secret.csv").write_text("user_id\n1\n")
    for sql in ("FROM users", f"SELECT * FROM read_csv('{shop.folder / 'secret.csv'}')"):
        shop.sync("s", source=f'{{inputs: {INPUTS}, sql: "{sql}"}}')
        said = shop.retl("sync", "--dry-run")
        assert "SOURCE_DRIFT" in said.err or "MART_UNREADABLE" in said.err, sql


def test_an_input_that_cannot_be_read_stops_the_run(shop: Workshop) -> None:
    (shop.folder / "exports/a.parquet").unlink()
    said = shop.retl("sync")
    assert said.code == 1
    assert "no file in exports matches *.parquet [MART_MISSING]" in said.err


def test_a_source_that_reports_no_changes_cannot_be_followed(shop: Workshop) -> None:
    shop.sync("s", changes="cdf")
    assert "CHANGES_UNKNOWN" in shop.retl("validate").err
