"""Histories of sources at random: after every step one run makes the target what the source says, by a full
comparison; and a reader that is wrong is noticed."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from msgspec.structs import replace

from retl.engine.sql_text import Query
from retl.sources.api import Feed
from retl.sources.delta.version import Version
from retl.sources.files.place import Disk
from retl.sources.iceberg import Pinned
from retl.sources.postgres import Transaction
from tests.histories import DeltaTable, History, IcebergTable, PostgresRows, of_files
from tests.servers import Database, ObjectStore

STEPS = 1000 if os.environ.get("RETL_TEST_ALL") else 6  # of each kind of source
SEED = int(os.environ.get("RETL_TEST_SEED", "13"))
FORMATS = ("parquet", "csv")  # with JSON lines in a bucket they are the files
PATIENCE = 60  # steps until a wrong reader must be noticed

KINDS: dict[str, type[History]] = {
    "parquet": of_files("parquet"),
    "csv": of_files("csv"),
    "postgres": PostgresRows,
    "iceberg": IcebergTable,
    "delta": DeltaTable,
}


@pytest.fixture
def target(postgres: Database) -> Iterator[psycopg.Connection[Any]]:
    with postgres.connect() as connection:
        connection.execute("CREATE SCHEMA crm")
        yield connection


def played(history: History, name: str, steps: int = STEPS) -> None:
    """Play it, and say what came of it."""
    begun = time.process_time()
    counts = history.play(steps)
    spent = time.process_time() - begun
    print(f"{name}, seed {SEED}: {steps} steps, {counts}, {spent:.0f} CPU s", file=sys.stderr)
    assert sum(counts[name] for name in ("inserted", "updated", "deleted")) > steps // 2


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_after_every_step_the_target_is_what_the_source_says(
    kind: str, tmp_path: Path, postgres: Database, target: psycopg.Connection[Any]
) -> None:
    steps = STEPS // 3 + 1 if kind in FORMATS else STEPS
    played(KINDS[kind](SEED, tmp_path / "project", target, postgres), kind, steps)


@pytest.mark.timeout(3600)
def test_after_every_step_the_target_is_what_a_bucket_says(
    tmp_path: Path, postgres: Database, target: psycopg.Connection[Any], objectstore: ObjectStore
) -> None:
    kind = of_files("ndjson", objectstore)
    played(kind(SEED, tmp_path / "project", target, postgres), "ndjson in a bucket", STEPS // 3 + 1)


# readers that are wrong


def without_the_newest_file(of: pytest.MonkeyPatch) -> None:
    """A file that has just come or changed is not listed."""
    every = Disk.list

    def listed(self: Disk, pattern: Any) -> dict[str, str]:
        found = every(self, pattern)
        newest = max(found, key=lambda name: (self.root / name).stat().st_mtime_ns)
        return {name: state for name, state in found.items() if name != newest or len(found) == 1}

    of.setattr(Disk, "list", listed)


def with_the_first_content(of: pytest.MonkeyPatch) -> None:
    """A file that changes under its name is read as it was."""
    kept: dict[str, bytes] = {}

    def taken(self: Disk, files: Any, workspace: Any) -> dict[str, Path]:
        for name in files:
            copy = self.root / "_kept" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(kept.setdefault(name, (self.root / name).read_bytes()))
        return {name: self.root / "_kept" / name for name in files}

    of.setattr(Disk, "take", taken)


def without_some_rows(of: pytest.MonkeyPatch) -> None:
    """A row in ten is not read."""
    every = Transaction.rows

    def rows(self: Transaction, columns: Any, since: Any = None) -> Query:
        found = every(self, columns, since)
        return replace(found, sql=f"SELECT * FROM ({found.sql}) WHERE id % 10 <> 9")

    of.setattr(Transaction, "rows", rows)


def a_feed(snapshot: Any, change: Callable[[Feed], Feed]) -> Callable[[pytest.MonkeyPatch], None]:
    """The feed as somebody would tell it who does not tell all."""
    every = snapshot.feed

    def feed(self: Any, columns: Any, key: Any, after: str) -> Feed | str:
        found = every(self, columns, key, after)
        return found if isinstance(found, str) else change(found)

    return lambda of: of.setattr(snapshot, "feed", feed)


def some(query: Query) -> Query:
    return replace(query, sql=f"SELECT * FROM ({query.sql}) WHERE id % 5 <> 4")


def without_changes(found: Feed) -> Feed:
    """Some keys are not told, neither those that came nor those that left."""
    return replace(found, rows=some(found.rows), left=some(found.left))


WRONG: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "parquet, not the newest file": ("parquet", without_the_newest_file),
    "csv, a changed file as it was": ("csv", with_the_first_content),
    "postgres, not every row": ("postgres", without_some_rows),
    "iceberg, not every changed key": ("iceberg", a_feed(Pinned, without_changes)),
    "delta, not every changed key": ("delta", a_feed(Version, without_changes)),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_reader_that_is_wrong_is_noticed(
    name: str,
    tmp_path: Path,
    postgres: Database,
    target: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind, breaks = WRONG[name]
    history = KINDS[kind](SEED, tmp_path / "project", target, postgres)
    if isinstance(history, IcebergTable):  # a change of the number of rows would be noticed by the run itself
        history.history.append(set(range(60)))
        history.steps = ("upsert", "rewrite")
    history.play(1)
    breaks(monkeypatch)
    with pytest.raises(AssertionError):
        history.play(PATIENCE)
