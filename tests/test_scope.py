"""`deletes: {delete: true, within: …}`: absence means something only inside the scope."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retl.contract.judge import build
from retl.engine import diff, mapping
from retl.engine.mapping import Run
from retl.engine.scope import IN_SCOPE, Scope, find, grown
from retl.engine.scratch import private_directory
from retl.engine.workspace import Workspace
from retl.observe.signals import Stop
from retl.project.contracts import Contract
from retl.project.definitions import Guards, Sync
from retl.run.guards import DELETES_ALWAYS_PASS, Facts, judge
from tests.commands import Workshop
from tests.servers import Database

MONTHS = [date(2026, month, 1) for month in range(1, 13)]
PAGE = (Path(__file__).parents[1] / "docs" / "concepts.md").read_text(encoding="utf-8")
HORIZON = PAGE.partition('```yaml title="syncs/forecast.yml"\n')[2].partition("```")[
    0
]  # the documented example
HORIZON += "guards: {max_delete_rate: 1, max_row_drop: 1, max_reject_rate: 1}\n"


class Planning:
    """A project with a forecast in a warehouse and in PostgreSQL."""

    def __init__(self, folder: Path, postgres: Database, definition: str = HORIZON) -> None:
        self.workshop, self.postgres = Workshop(folder / "project"), postgres
        self.workshop.use(postgres=postgres)
        self.workshop.write("syncs/forecast.yml", definition)
        self.workshop.warehouse("CREATE TABLE forecast (product VARCHAR, forecast_month DATE, amount BIGINT)")

    def mart(self, rows: dict[tuple[str, date], int]) -> None:
        values = ", ".join(
            f"('{product}', DATE '{month}', {amount})" for (product, month), amount in rows.items()
        )
        self.workshop.warehouse(
            "DELETE FROM forecast;" + (f"INSERT INTO forecast VALUES {values}" if rows else "")
        )

    def sync(self, start: date, *words: str) -> dict[str, Any]:
        asked = "$start" in (self.workshop.folder / "syncs" / "forecast.yml").read_text()
        given = ("--var", f"start={start}") if asked else ()
        said = self.workshop.retl("sync", *given, *words, "--output", "json")
        (found,) = said.document["syncs"]
        return dict(found)

    def target(self) -> dict[tuple[str, date], int]:
        with self.postgres.connect() as connection:
            rows = connection.execute("SELECT product, forecast_month, amount FROM plan.forecast").fetchall()
        return {(product, month): amount for product, month, amount in rows}


@pytest.fixture
def planning(tmp_path: Path, postgres: Database) -> Planning:
    return Planning(tmp_path, postgres)


def rows(*months: int, products: str = "ab") -> dict[tuple[str, date], int]:
    return {(product, MONTHS[month - 1]): month for product in products for month in months}


def test_past_months_stay_and_a_row_that_left_the_horizon_is_deleted(planning: Planning) -> None:
    planning.mart(rows(1, 2, 3))
    assert planning.sync(MONTHS[0])["inserted"] == 6
    planning.mart(rows(2, 3, products="a"))
    plan = planning.workshop.retl("plan", "--sync", "forecast", "--var", "start=2026-02-01")
    assert "2 keys left the mart and stay" in plan.out
    said = planning.workshop.retl(
        "explain", "forecast", "--key", '["b","2026-01-01"]', "--var", f"start={MONTHS[1]}"
    )
    assert "outside" in said.out
    done = planning.sync(MONTHS[1])
    assert (done["status"], done["deleted"]) == ("SUCCESS", 2)
    assert planning.target() == {**rows(1), **rows(2, 3, products="a")}
    assert planning.sync(MONTHS[1])["unchanged"] == 2


def test_a_scope_that_grew_is_refused_unless_the_deletes_are_counted(planning: Planning) -> None:
    planning.mart(rows(*range(1, 7)))
    planning.sync(MONTHS[0])
    planning.mart(rows(5, 6))
    planning.sync(MONTHS[4])
    refused = planning.sync(MONTHS[2])
    assert (refused["status"], [one["code"] for one in refused["guards"]]) == ("REFUSED", ["SCOPE_GREW"])
    assert "4 of 4" in refused["error"]["message"]
    assert planning.target() == rows(*range(1, 7))
    assert planning.sync(MONTHS[2])["status"] == "REFUSED"  # it is still as it was
    done = planning.sync(MONTHS[2], "--allow-deletes", "4")
    assert (done["status"], done["deleted"]) == ("SUCCESS", 4)
    # without a scope every key is inside
    planning.workshop.write(
        "syncs/forecast.yml", HORIZON.replace('{delete: true, within: "forecast_month >= $start"}', "delete")
    )
    assert [one["code"] for one in planning.sync(MONTHS[2])["guards"]] == ["SCOPE_GREW"]


def test_an_empty_horizon_is_refused_even_if_the_mart_has_other_rows(planning: Planning) -> None:
    planning.mart(rows(1, 2, 3))
    planning.sync(MONTHS[0])
    planning.mart(rows(1))
    refused = planning.sync(MONTHS[1])
    assert [one["code"] for one in refused["guards"]] == ["EMPTY_SOURCE"]
    planning.mart({})
    assert planning.sync(MONTHS[11])["status"] == "SUCCESS"  # nothing is inside: nothing could be deleted
    assert len(planning.target()) == 6


def test_a_rate_of_deletes_counts_inside_the_scope(planning: Planning) -> None:
    planning.workshop.write(
        "syncs/forecast.yml", HORIZON.replace("max_delete_rate: 1", "max_delete_rate: 0.5")
    )
    planning.mart(rows(*range(1, 13), products="abcdefgh"))
    planning.sync(MONTHS[0])
    planning.mart(rows(11, 12, products="abc"))
    refused = planning.sync(MONTHS[9])
    assert [one["code"] for one in refused["guards"]] == ["DELETE_RATE"]
    assert "18 deletes are planned, more than max_delete_rate (0.5) of 24" in refused["error"]["message"]
    assert planning.sync(MONTHS[9], "--allow-deletes", "18")["deleted"] == 18


def test_a_soft_delete_obeys_the_scope(tmp_path: Path, postgres: Database) -> None:
    soft = '{set: {amount: 0}, within: "forecast_month >= $start"}'
    definition = HORIZON.replace('{delete: true, within: "forecast_month >= $start"}', soft)
    planning = Planning(tmp_path, postgres, definition)
    planning.mart(rows(1, 2, 3))
    planning.sync(MONTHS[0])
    planning.mart(rows(2, 3, products="a"))
    assert planning.sync(MONTHS[1])["deleted"] == 2
    assert planning.target() == {
        **rows(1),
        **rows(2, 3, products="a"),
        **dict.fromkeys(rows(2, 3, products="b"), 0),
    }


@pytest.mark.parametrize(
    ("within", "said"),
    [
        ("amount > 3", "put the column into the key"),
        (
            "forecast_month >= (SELECT min(forecast_month) FROM forecast)",
            "condition over the columns of the key",
        ),
        ("forecast_month >= current_date", "vars: {start: today}"),
        ("forecast_month >= today()", "vars: {start: today}"),
        ("forecast_month >= $begin", "$begin"),
        ("TRUE) OR (TRUE", None),
        ("product", "condition over the columns of the key"),
        ("1 = 1; DROP TABLE forecast", ""),
    ],
)
def test_a_scope_is_a_condition_over_the_key(planning: Planning, within: str, said: str | None) -> None:
    planning.workshop.write("syncs/forecast.yml", HORIZON.replace("forecast_month >= $start", within))
    planning.mart(rows(1))
    for words in (("validate",), ("sync",)):
        answer = planning.workshop.retl(*words)
        assert (answer.code, said is None or said in answer.err) == (0 if said is None else 2, True), (
            answer.err
        )


def test_deletes_are_spelled_in_one_of_three_ways(planning: Planning) -> None:
    for wrong in (
        "{delete: false, within: TRUE}",
        "{within: TRUE}",
        "{delete: true}",
        "{delete: true, within: 3}",
    ):
        planning.workshop.write("syncs/forecast.yml", HORIZON.replace(HORIZON.splitlines()[4][9:], wrong))
        assert planning.workshop.retl("validate").code == 2, wrong


# --- the engine alone, over random histories of a moving horizon

FORECAST = Sync.model_validate(
    {
        "name": "forecast",
        "source": {"table": "forecast"},
        "key": ["product", "forecast_month"],
        "destination": {"type": "redis"},
        "deletes": {"delete": True, "within": "forecast_month >= $start"},
    }
)
CONTRACT = build(
    Contract.model_validate(
        {
            "columns": {
                "product": {"type": "string"},
                "forecast_month": {"type": "date"},
                "amount": {"type": "integer"},
            }
        }
    ),
    {"product": "VARCHAR", "forecast_month": "DATE", "amount": "BIGINT"},
    Path(),
    FORECAST.key,
    "UTC",
)
MAP = mapping.build(
    FORECAST, CONTRACT, Run.at(datetime(2026, 1, 1, tzinfo=UTC)), state_id="s", timezone="UTC"
)
Key = tuple[str, int]  # product, month
STEPS = st.lists(
    st.tuples(st.sets(st.tuples(st.sampled_from("abc"), st.integers(1, 12))), st.integers(1, 12)), max_size=5
)


def text(key: Key) -> str:
    return f'["{key[0]}","{MONTHS[key[1] - 1]}"]'


def mirrored(workspace: Workspace, base: set[Key], mart: set[Key], start: int, former: Scope | None) -> Any:
    """What a run finds: its refusals, and the keys that it deletes."""
    condition = Scope("forecast_month >= $start", {"start": str(MONTHS[start - 1])})
    for name, keys in (("baseline", base), ("rows", mart)):
        columns = {
            "key": "VARCHAR",
            "row": "BIGINT",
            "fault": "VARCHAR",
            "hash": "BLOB",
            "cleared": "BOOLEAN",
        }
        columns |= {"owned": "BOOLEAN", "ref": "VARCHAR"}
        filled = ((text(key), n, None, "00", True, True, None) for n, key in enumerate(sorted(keys)))
        workspace.load(name, columns, filled)
    scoped = find(workspace, MAP, condition)
    strategy = diff.Strategy(everything=False, absence=True, once=False, hold_unknown=False, scope=IN_SCOPE)
    diff.diff(workspace, MAP, strategy, len(base), whole=True)
    due = workspace.run("SELECT key FROM candidates WHERE op = 'delete' AND ending IS NULL")
    facts = Facts(
        read=len(mart),
        total=len(mart),
        new_rejects=0,
        baseline_rows=len(base),
        deletes=len(due),
        deletes_on=True,
        inserts=len(mart - base),
        matched=len(mart & base),
        scope_known=scoped.known,
        scope_read=scoped.read,
        scope_grown=grown(workspace, MAP, former) if former else 0,
    )
    limits = Guards(max_delete_rate=1)
    return condition, [one.code for one in judge(facts, limits)], {key for (key,) in due}


@pytest.fixture(scope="module")
def workspace() -> Iterator[Workspace]:
    with private_directory() as folder, Workspace(folder, Stop()) as made:
        yield made


@given(steps=STEPS)
def test_no_history_of_a_moving_horizon_deletes_outside_of_it(
    workspace: Workspace, steps: list[tuple[set[Key], int]]
) -> None:
    base, last, former = set[Key](), None, None
    for mart, start in steps:
        condition, codes, deleted = mirrored(workspace, base, mart, start, former)
        inside = {key for key in base if key[1] >= start}
        assert deleted == {text(key) for key in inside - mart}
        expected = []
        grew = {key for key in inside - mart if last is not None and key[1] < last}
        if inside and not any(month >= start for _, month in mart):
            expected.append("EMPTY_SOURCE")
        if grew:
            expected.append("SCOPE_GREW")
        if len(inside) > DELETES_ALWAYS_PASS and mart - base and not mart & base:
            expected.append("IDENTITY_CHANGED")
        assert codes == expected
        if not codes:
            base, last, former = (base - (inside - mart)) | mart, start, condition
