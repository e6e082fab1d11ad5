"""A snapshot in a table of PostgreSQL: all of a mart in one transaction, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from retl.destinations.batch import Shape, Visit
from retl.destinations.postgres.adapter import Postgres
from retl.errors import Systemic
from tests.destinations.rows import Rows
from tests.destinations.suite import VISIT, Suite, as_contents, deliver, sample
from tests.destinations.test_postgres import ROLE, SHAPE, PostgresTarget, target_of
from tests.servers import Database


class SnapshotTarget(PostgresTarget):
    def make(self, shape: Shape, *, secret: str | None = None, **changes: Any) -> Postgres:
        return super().make(shape, secret=secret, mode="snapshot", **changes)


class TestSnapshot(Suite):
    @pytest.fixture
    def target(self, postgres: Database) -> Iterator[PostgresTarget]:
        yield from target_of(postgres, "upsert", SnapshotTarget)


@pytest.fixture
def target(postgres: Database) -> Iterator[PostgresTarget]:
    yield from target_of(postgres, "upsert", SnapshotTarget)


def test_an_older_run_that_wakes_up_never_puts_back_its_mart(target: PostgresTarget) -> None:
    old, new = target.make(SHAPE), target.make(SHAPE)
    for destination, epoch in ((old, 1), (new, 2)):
        destination.check(Visit(f"run-{epoch}", epoch))
        destination.prepare(Visit(f"run-{epoch}", epoch))
    deliver(new, replace(Rows(SHAPE, sample(3)).batch(run_id="run-2"), epoch=2))
    with pytest.raises(Systemic) as late:
        old.write(replace(Rows(SHAPE, sample(5)).batch(run_id="run-1"), epoch=1))
    assert late.value.code == "VOIDED"
    assert target.contents() == as_contents(SHAPE, sample(3))
    old.close()
    new.close()


def test_an_account_that_cannot_write_markers_is_refused(target: PostgresTarget) -> None:
    target.admin.execute(f"REVOKE CREATE ON SCHEMA crm FROM {ROLE}")
    destination = target.make(SHAPE)
    with pytest.raises(Systemic) as caught:
        destination.check(VISIT)
    assert caught.value.code == "NO_MARKER"
    assert "older run" in caught.value.message
    with pytest.raises(Systemic) as caught:
        destination.write(Rows(SHAPE, sample(1)).batch())
    assert caught.value.code == "NO_MARKER"
    destination.close()


def test_its_preview_deletes_what_is_not_in_it(target: PostgresTarget) -> None:
    destination = target.make(SHAPE)
    shown = destination.preview(Rows(SHAPE, sample(1)).batch()).decode()
    assert "DELETE FROM ONLY" in shown
    destination.close()
