"""How a column changed since the last good run, and when that refuses a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from retl.engine import statistics
from retl.engine.workspace import Workspace
from retl.observe.signals import Stop
from tests.commands import Workshop
from tests.servers import RedisServer

PARTS = "(SELECT range AS user_id, CASE WHEN range % 10 < {casual} THEN 'casual' ELSE 'power' END AS segment FROM range(1000))"


@pytest.fixture
def shop(tmp_path: Path, redis_server: RedisServer) -> Workshop:
    workshop = Workshop(tmp_path / "shop")
    workshop.use(redis=redis_server)
    mart(workshop, 5)
    workshop.sync(
        "s", source="{table: parts}", key="[user_id]", guards="{drift: {column: segment, max_psi: 0.2}}"
    )
    workshop.json("sync")
    return workshop


def mart(workshop: Workshop, casual: int) -> None:
    workshop.warehouse(f"CREATE OR REPLACE TABLE parts AS FROM {PARTS.format(casual=casual)}")


def test_a_column_that_shifts_refuses_the_run_until_it_is_accepted(shop: Workshop) -> None:
    mart(shop, 6)  # 0.04
    assert shop.json("sync")["exit_code"] == 0
    mart(shop, 9)  # (0.9 - 0.6) ln(0.9 / 0.6) + (0.1 - 0.4) ln(0.1 / 0.4) = 0.54
    said = shop.retl("sync")
    assert said.code == 3
    assert "segment changed since the last good run: the values: population stability index 0.538" in said.err
    assert "[DRIFT]" in said.err
    assert shop.retl("sync").code == 3, "a refused run is no good run"
    assert shop.retl("sync", "--accept", "DRIFT").code == 0
    assert shop.retl("sync").code == 0


def test_a_part_of_the_mart_is_not_judged(shop: Workshop) -> None:
    mart(shop, 10)
    assert shop.retl("sync", "--key", "1").code == 0
    assert shop.retl("sync").code == 3


def test_no_value_of_a_text_column_is_kept(shop: Workshop) -> None:
    ledger = (shop.folder / ".retl" / "ledger.db").read_bytes()
    assert b'"shares"' in ledger
    assert b"casual" not in ledger


@pytest.mark.parametrize(
    ("then", "now", "part", "change"),
    [
        ("(1), (2), (NULL), (4)", "(1), (NULL), (NULL), (4)", "null_rate", 0.25),
        ("(1), (2), (3), (4)", "(1), (1), (1), (4)", "distinct", -0.5),
        ("(1), (3)", "(2), (4)", "mean", 0.5),
        ("('a'), ('b')", "('a'), ('b')", "psi", 0.0),
        ("('a'), ('b')", "('c'), ('c')", "psi", None),
        ("(NULL), (NULL)", "(1), (2)", "mean", None),
        ("(0.0), ('nan'::DOUBLE)", "(1.5), (2.5)", "mean", float("inf")),
    ],
)
def test_changes_are_measured(tmp_path: Path, then: str, now: str, part: str, change: float | None) -> None:
    with Workspace(tmp_path, Stop()) as workspace:
        found = []
        for values in (then, now):
            workspace.run(f"CREATE OR REPLACE TABLE m AS SELECT * FROM (VALUES {values}) t(x)")
            kind = workspace.one("SELECT any_value(typeof(x)) FROM m")[0]
            found.append(statistics.measure(workspace, "m", "x", kind, found[0] if found else None))
        drifted = getattr(statistics.compare(*found), part)
        if part == "psi" and change is None:
            assert drifted > 5
        else:
            assert drifted == (None if change is None else pytest.approx(change))


def test_numbers_are_compared_in_the_bins_of_the_run_before(tmp_path: Path) -> None:
    with Workspace(tmp_path, Stop()) as workspace:
        workspace.run("CREATE TABLE before AS SELECT range::DECIMAL(9, 2) AS x FROM range(1000)")
        workspace.run("CREATE TABLE after AS SELECT (range + 500)::DECIMAL(9, 2) AS x FROM range(1000)")
        then = statistics.measure(workspace, "before", "x", "DECIMAL(9,2)", None)
        assert len(then["shares"]) == statistics.BINS
        same = statistics.compare(then, statistics.measure(workspace, "before", "x", "DECIMAL(9,2)", then))
        moved = statistics.compare(then, statistics.measure(workspace, "after", "x", "DECIMAL(9,2)", then))
        assert same.psi == 0
        assert moved.psi is not None
        assert moved.psi > 1


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"guards": "{drift: {column: segment}}"}, "needs a limit"),
        ({"guards": "{drift: {column: color, max_psi: 0.2}}"}, "COLUMN_UNKNOWN"),
        (
            {"guards": "{drift: [{column: segment, max_psi: 0.2}]}", "changes": "{watermark: user_id}"},
            "compares whole marts",
        ),
    ],
)
def test_a_limit_that_cannot_be_judged_is_refused(shop: Workshop, parts: dict[str, str], says: str) -> None:
    shop.sync("s", **{"source": "{table: parts}", "key": "[user_id]", **parts})
    said = shop.retl("validate")
    assert said.code == 2
    assert says in said.err
