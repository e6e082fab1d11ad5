"""`retl reconcile` and its repair where others edit, at every target that compares: what drifted is told alike under
every strategy, and a repair writes over an edit only where the sync says so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.commands import ROWS, Workshop
from tests.servers import Database, Databases, RedisServer
from tests.test_conflict_history import People, tables
from tests.test_conflicts import STRATEGIES, listed, rows, run
from tests.test_conflicts_http import peopled
from tests.test_conflicts_redis import hashes

KINDS = ("postgres", "redis", "atomic", "dataverse")
CHOSEN = [(kind, strategy) for kind in KINDS for strategy in STRATEGIES]
if not os.environ.get("RETL_TEST_ALL"):  # the strategies are the same everywhere
    CHOSEN = [one for one in CHOSEN if one[0] == "postgres" or one[1] == "newest_wins"]


@pytest.fixture
def people(
    request: pytest.FixtureRequest, postgres_databases: Databases, redis_server: RedisServer
) -> Iterator[People]:
    made: AbstractContextManager[Any] = (
        tables(postgres_databases)
        if request.param == "postgres"
        else hashes(redis_server)
        if request.param == "redis"
        else peopled(request.param)
    )
    with made as people:
        yield people


def reconciled(workshop: Workshop, *words: str) -> tuple[int, dict[str, Any]]:
    said = workshop.retl("reconcile", "people", *words, "--output", "json")
    return said.code, dict(said.document["sync" if "--repair" in words else "reconcile"])


@pytest.mark.parametrize(("people", "strategy"), CHOSEN, indirect=["people"])
def test_a_repair_writes_over_an_edit_only_where_the_sync_says_so(
    tmp_path: Path, people: People, strategy: str
) -> None:
    workshop = people.project(tmp_path / "project", STRATEGIES[strategy])
    workshop.warehouse(rows(a=("p", 1), b=("p", 1), c=("p", 1), d=("p", 1)))
    assert run(workshop)["inserted"] == 104
    people.edit("a", "SET phone = 'h'")
    people.edit("b", "DELETE")
    people.edit("c", "SET note = 'n'")
    people.edit("d", "SET phone = 'h'")
    workshop.warehouse(rows(a=("p", 1), b=("p", 1), c=("p", 1), d=("q", 1)))  # d is due: no drift
    code, found = reconciled(workshop)
    assert (code, found["edited"], found["missing"], found["due"]) == (1, 1, 1, 1)
    assert found["fields"] == {"phone": 1}
    before = people.held()
    planned = reconciled(workshop, "--repair", "--dry-run")[1]
    assert people.held() == before
    _, done = reconciled(workshop, "--repair")
    wins, asks = strategy == "warehouse_wins", strategy == "manual"
    kept = 0 if wins else 2  # the mart changed neither, so no person is asked
    for one in (planned, done):
        assert (one["updated"], one["inserted"], one["skipped"], one["rejected"]) == (wins, wins, kept, 0)
        assert one["conflicts"] == {"merged": 0, "kept": kept, "queued": 0}
    theirs = {"a": ("h", 1, None), "b": None, "c": ("p", 1, "n"), "d": ("h", 1, None)}
    ours = {"a": ("p", 1, None), "b": ("p", 1, None)} if wins else {}
    held = people.held()
    assert {key: held.get(key) for key in "abcd"} == theirs | ours
    after = run(workshop)
    assert (after["error"], after["rejected"], after["updated"]) == (None, int(asks), int(wins))
    assert [one[:2] for one in listed(workshop)] == [("d", "CONFLICT")] * asks
    if not wins:
        assert run(workshop, "--full")["error"] is None
        assert people.held()["b"] == ("p", 1, None), "which makes removed rows again"
        assert people.held()["a"] == ("h", 1, None)
    assert people.held()["d"] == (("q", 1, None) if wins else ("h", 1, None))
    assert people.held()["c"] == ("p", 1, "n")


@pytest.mark.parametrize("people", ["postgres", "redis"], indirect=True)
def test_an_edit_that_a_run_left_alone_is_still_theirs_after_the_run_is_taken_back(
    tmp_path: Path, people: People
) -> None:
    workshop = people.project(tmp_path / "project", "target_wins", rollback="{keep: 30d}")
    workshop.warehouse(rows(a=("p", 1)))
    run(workshop)
    people.edit("a", "SET phone = 'h'")
    workshop.warehouse(rows(a=("q", 2)))
    merged = run(workshop)
    assert (merged["conflicts"]["merged"], people.held()["a"]) == (1, ("h", 2, None))
    workshop.json("rollback", merged["run_id"], "--no-pause")
    assert people.held()["a"] == ("h", 1, None)
    workshop.warehouse(rows(a=("r", 3)))
    assert run(workshop)["conflicts"]["merged"] == 1
    assert people.held()["a"] == ("h", 3, None)


@pytest.mark.parametrize(
    "words", [["reconcile", "users", "--repair"], ["state", "rebuild", "users", "--yes"]]
)
def test_a_ledger_that_is_too_old_settles_no_batch_for_a_comparison(
    tmp_path: Path, postgres: Database, words: list[str]
) -> None:
    shop = Workshop(tmp_path / "shop")
    shop.use(postgres=postgres)
    to = "{type: postgres, table: users, create: true}"
    shop.sync("users", destination=to, conflicts="target_wins", batch="{rows: 50}")
    shop.json("sync", "users")
    shop.warehouse("UPDATE users SET spend = spend + 1000")
    assert shop.process("sync", "users", RETL_CRASH_AT="batch_answered").code == -9
    (killed, *_) = shop.json("runs")["runs"]
    state = shop.folder / ".retl"
    shutil.copytree(state, shop.folder / "kept")
    for _ in range(2):  # the newer ledger needs the marks of the killed run no longer
        shop.json("sync", "users")
        shop.warehouse("UPDATE users SET spend = spend + 1000")
    shutil.rmtree(state)
    shutil.copytree(shop.folder / "kept", state)
    shop.json(*words)
    assert shop.json("show", killed["run_id"])["so_far"]["without_answer"] == ROWS
