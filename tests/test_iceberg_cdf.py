"""Runs that follow an Iceberg table into PostgreSQL: the target is the table after every run, also after kills."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests import forked
from tests.commands import Workshop
from tests.crashes import Running
from tests.lake import Shop
from tests.servers import Database
from tests.test_iceberg_feed import ROWS, History

STEPS, KILLS = (100, 20) if os.environ.get("RETL_TEST_ALL") else (4, 2)
EVENTS = ["mart_frozen", "guards_judged", "batch_intended", "batch_answered", "batch_committed"]
OPERATIONS = [*ROWS, "expire", "partition"]


class Followed(History):
    """A table whose changes a sync follows."""

    def note(self) -> None:
        pass


class Pipeline:
    """A project that delivers the table, and what it delivered."""

    def __init__(self, folder: Path, postgres: Database, crm: psycopg.Connection[Any]) -> None:
        self.workshop, self.crm = Workshop(folder), crm
        self.workshop.use(postgres=postgres)
        self.workshop.write(
            "retl.yml",
            "sources: {lake: {type: iceberg, catalog: {type: sql, path: lake/catalog.db, name: lake}}}\n",
        )
        self.workshop.sync(
            "customers",
            source="{from: lake, table: shop.customers}",
            key="[id]",
            contract="{id: {type: integer}, name: {type: string, nullable: true},"
            " amount: {type: decimal, max_digits: 12, decimal_places: 2, nullable: true}}",
            destination="{type: postgres, table: crm.customers, create: true}",
            changes="cdf",
            deletes="delete",
            batch="{rows: 7}",
            guards="{max_delete_rate: 1}",
        )
        crm.execute("CREATE SCHEMA crm")
        self.history = Followed(Shop(folder / "lake"))
        self._numbers = itertools.count()

    def run(self, *words: str) -> dict[str, Any]:
        (found,) = self.workshop.json("sync", "--accept", "EMPTY_SOURCE", *words)["syncs"]
        return dict(found)

    def killed(self, event: str) -> int:
        """The exit code of a run that dies at this event, if it comes to it."""
        files = [self.workshop.folder / f"{name}.{next(self._numbers)}" for name in ("out", "err")]
        environ = dict(
            self.workshop.environ(RETL_CRASH_AT=event, RETL_LOG_FORMAT="json", RETL_LOG_LEVEL="debug")
        )
        words = [
            "--project",
            str(self.workshop.folder),
            "sync",
            "--accept",
            "EMPTY_SOURCE",
            "--output",
            "json",
        ]
        return Running(forked.started(words, environ, *files), *files).end().code

    def held(self) -> dict[int, tuple[Any, ...]]:
        found = self.crm.execute("SELECT id, name, amount FROM crm.customers").fetchall()
        return {row[0]: tuple(row) for row in found}

    @property
    def wanted(self) -> dict[int, tuple[Any, ...]]:
        return self.history.expected(self.history.rows)


@pytest.fixture
def pipeline(tmp_path: Path, postgres: Database) -> Iterator[Pipeline]:
    with postgres.connect() as crm:
        yield Pipeline(tmp_path / "project", postgres, crm)


def test_only_files_that_changed_are_read(pipeline: Pipeline) -> None:
    pipeline.history.append(set(range(20)))
    assert pipeline.run()["inserted"] == 20
    pipeline.history.append(set(range(20, 30)))
    pipeline.history.delete_positions({25, 26})
    found = pipeline.run()
    assert (found["read"], found["inserted"], found["deleted"]) == (8, 8, 0)
    pipeline.history.delete_positions({22})
    found = pipeline.run()
    assert (found["read"], found["updated"], found["deleted"], found["unchanged"]) == (7, 0, 1, 7)
    assert pipeline.run()["read"] == 0
    assert pipeline.held() == pipeline.wanted


def test_compaction_is_read_and_sends_nothing(pipeline: Pipeline) -> None:
    for first in (0, 10, 20):
        pipeline.history.append(set(range(first, first + 10)))
    pipeline.run()
    pipeline.history.rewrite(set())
    found = pipeline.run()
    assert (found["read"], found["unchanged"], found["batches"]) == (30, 30, 0)


def test_an_expired_snapshot_reads_everything_and_the_plan_says_so(pipeline: Pipeline) -> None:
    pipeline.history.append(set(range(20)))
    pipeline.run()
    pipeline.history.delete({3})
    pipeline.history.expire(set())
    said = pipeline.workshop.retl("plan", "--sync", "customers")
    assert "the snapshot of the last run has expired" in said.out + said.err
    found = pipeline.run()
    assert (found["read"], found["deleted"]) == (19, 1)
    assert pipeline.held() == pipeline.wanted


def test_any_history_with_kills_ends_in_the_table(pipeline: Pipeline) -> None:
    chance = random.Random(7)
    pipeline.history.append(set(range(30)))
    pipeline.run()
    killed = set(chance.sample(range(STEPS), KILLS))
    died = 0
    for step in range(STEPS):
        for _ in range(chance.randint(1, 2)):
            ids = set(chance.sample(range(60), chance.randint(1, 15)))
            getattr(pipeline.history, chance.choice(OPERATIONS))(ids)
            pipeline.history.remember()
        if step in killed:
            died += pipeline.killed(chance.choice(EVENTS)) == -9
        found = pipeline.run()
        assert found["status"] == "SUCCESS", found
        assert pipeline.held() == pipeline.wanted, step
    assert died
