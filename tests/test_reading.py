"""How far a long read is: rows where a table is read as it is, otherwise a share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from retl.engine import freeze, reading
from retl.engine.sql_text import Query
from retl.engine.workspace import Workspace
from retl.observe import log
from retl.observe.signals import Stop

ROWS = 3_000_000
FEW = 1_000


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path, Stop(), threads=1)
    made.run(f"CREATE TABLE m AS SELECT i AS id, i || '@example.com' AS email FROM range({FEW}) t(i)")
    return made


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT id, email FROM m", FEW),
        ("SELECT id % 10 AS id, count(*) AS n FROM m GROUP BY 1", None),
        ("SELECT * FROM m WHERE email LIKE '7%'", None),
        ("SELECT * FROM nowhere", None),
    ],
)
def test_the_rows_of_a_mart_are_known_only_where_a_table_is_read_as_it_is(
    workspace: Workspace, sql: str, rows: int | None
) -> None:
    assert reading.rows_of(workspace, Query(sql, {}, "m")) == rows


def test_a_long_read_says_how_many_rows_it_has_read(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.run(f"INSERT INTO m SELECT i, i || '@example.com' FROM range({FEW}, {ROWS}) t(i)")
    monkeypatch.setattr(reading, "EVERY", 0.02)
    told: list[Mapping[str, Any]] = []

    def listener(event: str, fields: Mapping[str, Any]) -> None:
        told.extend([fields] if event == "mart_reading" else [])

    log.listen(listener)
    try:
        query = Query("SELECT id, email FROM m", {}, "m")
        assert freeze.freeze(workspace, query, {"id": "BIGINT", "email": "VARCHAR"}) == ROWS
    finally:
        log.unlisten(listener)
    assert len(told) > 1
    rows = [one["rows"] for one in told]
    assert rows == sorted(rows)
    assert 0 < rows[0] < rows[-1] <= ROWS


def test_nobody_is_asked_where_nobody_listens(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "rows_of", lambda *_: pytest.fail("asked"))
    assert freeze.freeze(workspace, Query("SELECT id FROM m LIMIT 3", {}, "m"), {"id": "BIGINT"}) == 3
