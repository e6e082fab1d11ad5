"""A run that dies after the target has its rows, before the ledger knows: what it wrote is nobody's edit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.commands import Workshop
from tests.proxy import Proxy
from tests.servers import Databases, RedisServer
from tests.test_ambiguity import COMMITTING
from tests.test_conflict_history import KEEPING, People, Table, tables
from tests.test_conflicts import STRATEGIES, rows, run
from tests.test_conflicts_redis import hashes

KINDS = ("postgres", "redis")
IMAGES = ({}, {"rollback": "{keep: 30d}"})


@pytest.fixture
def people(
    request: pytest.FixtureRequest, postgres_databases: Databases, redis_server: RedisServer
) -> Iterator[People]:
    made: AbstractContextManager[Any] = (
        tables(postgres_databases) if request.param == "postgres" else hashes(redis_server)
    )
    with made as people:
        yield people


def killed(folder: Path, people: People, strategy: str, point: str, **parts: str) -> Workshop:
    """A project that delivered a, b, c and d, and a run that changed them, made `new`, and died."""
    workshop = people.project(folder / "project", STRATEGIES[strategy], batch="{rows: 200}", **parts)
    workshop.warehouse(rows(a=("p", 1), b=("p", 1), c=("p", 1), d=("p", 1)))
    assert run(workshop)["inserted"] == 104
    workshop.warehouse(rows(a=("q", 1), b=("q", 1), c=("q", 1), d=("q", 1), new=("q", 1)))
    assert workshop.process("sync", RETL_CRASH_AT=point).code == -9
    return workshop


@pytest.mark.parametrize("people", KINDS, indirect=True)
@pytest.mark.parametrize("strategy", KEEPING)
@pytest.mark.parametrize("point", ["digests_kept", "batch_answered", "answers_recorded"])
@pytest.mark.parametrize("images", IMAGES, ids=["", "images"])
def test_what_a_dead_run_wrote_follows_the_mart_and_an_edit_since_stays(
    tmp_path: Path, people: People, strategy: str, point: str, images: dict[str, str]
) -> None:
    workshop = killed(tmp_path, people, strategy, point, **images)
    arrived = people.held()["a"] == ("q", 1, None)
    assert arrived or point == "digests_kept"
    people.edit("b", "SET phone = 'h'")
    people.edit("c", "SET score = 7")
    workshop.warehouse(rows(a=("r", 2), b=("r", 1), c=("r", 1), d=("q", 1), new=("r", 1)))
    planned = run(workshop, "--dry-run")
    done = run(workshop)
    for one in (planned, done):
        ends = {name: one[name] for name in ("inserted", "updated", "skipped", "rejected")}
        asked, kept = (1, 0) if strategy == "manual" else (0, 1)
        assert ends == {
            "inserted": int(not arrived), "updated": 3, "skipped": kept, "rejected": asked
        }, ends  # fmt: skip
        assert one["conflicts"] == {"merged": 1, "kept": kept, "queued": asked}
    held = people.held()
    wanted = {"a": ("r", 2, None), "b": ("h", 1, None), "c": ("r", 7, None), "d": ("q", 1, None)}
    assert {key: held[key] for key in "abcd"} == wanted
    assert held["new"] == ("r", 1, None)
    assert run(workshop)["updated"] == 0
    assert workshop.retl("log", "verify").code == 0
    assert not [one.name for one in (workshop.folder / ".retl" / "runs").glob("returned-*")]


@pytest.mark.parametrize("people", KINDS, indirect=True)
def test_an_erasure_leaves_what_a_dead_run_wrote_of_others(tmp_path: Path, people: People) -> None:
    workshop = killed(tmp_path, people, "target_wins", "batch_answered")
    runs = workshop.folder / ".retl" / "runs"
    (kept,) = runs.glob("returned-*")
    assert kept.read_bytes().count(b"\n") == 5
    assert workshop.retl("erase", "--sync", "people", "--key", "a", "--reason", "ticket 7").code == 0
    assert not kept.exists() or kept.read_bytes().count(b"\n") == 4
    workshop.warehouse(rows(b=("r", 1), c=("r", 1), d=("q", 1), new=("r", 1)))
    done = run(workshop)
    assert (done["updated"], done["conflicts"]) == (3, {"merged": 0, "kept": 0, "queued": 0})


@pytest.mark.parametrize("images", IMAGES, ids=["", "images"])
def test_what_arrived_without_an_answer_is_as_the_first_attempt_left_it(
    tmp_path: Path, postgres_databases: Databases, images: dict[str, str]
) -> None:
    """The second attempt finds the first one's mark, and judges rows that somebody has edited meanwhile."""
    with postgres_databases.lend() as database, Proxy(database.host, database.port) as proxy:
        through = replace(database, host=proxy.host, port=proxy.port)
        workshop = Table(through).project(tmp_path / "project", STRATEGIES["target_wins"], **images)
        workshop.warehouse(rows(a=("p", 1), b=("p", 1)))
        assert run(workshop)["inserted"] == 102
        workshop.warehouse(rows(a=("q", 1), b=("q", 1)))
        direct = Table(database)
        proxy.drop_reply(*COMMITTING, then=lambda: direct.edit("b", "SET score = 7"))
        assert run(workshop)["updated"] == 2
        workshop.warehouse(rows(a=("r", 1), b=("r", 1)))
        found = run(workshop)
        assert (found["updated"], found["conflicts"]["kept"]) == (2, 0)
        held = direct.held()
        assert (held["a"], held["b"]) == (("r", 1, None), ("r", 7, None))
