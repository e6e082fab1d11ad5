"""A partitioned table passes the suite as any other does, and tells what only it can tell."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from retl.destinations.batch import Shape, Visit
from retl.destinations.postgres.adapter import Postgres
from retl.destinations.postgres.types import ddl
from retl.errors import Mismatch
from retl.values.sql import quoted
from tests.destinations.rows import Rows
from tests.destinations.suite import VISIT, Suite, deliver, sample
from tests.destinations.test_postgres import SHAPE, PostgresTarget, target_of
from tests.servers import Database


class PartitionedTarget(PostgresTarget):
    """Three partitions, and one of them is partitioned again."""

    def make(self, shape: Shape, *, secret: str | None = None, **changes: Any) -> Postgres:
        columns = ", ".join(f"{quoted(f.name)} {ddl(f.type)}" for f in (*shape.key, *shape.fields))
        key = ", ".join(quoted(f.name) for f in shape.key)
        parts = "".join(
            f"CREATE TABLE IF NOT EXISTS crm.p{n} PARTITION OF crm.people FOR VALUES WITH (MODULUS 3, REMAINDER"
            f" {n}){f' PARTITION BY HASH ({key})' * (n == 2)};"
            for n in range(3)
        )
        self.admin.execute(
            f"CREATE TABLE IF NOT EXISTS crm.people ({columns}, theirs text DEFAULT 'nobody', PRIMARY KEY ({key}))"
            f" PARTITION BY HASH ({key}); {parts}"
            "CREATE TABLE IF NOT EXISTS crm.p3 PARTITION OF crm.p2 FOR VALUES WITH (MODULUS 1, REMAINDER 0)"
        )
        return super().make(shape, secret=secret, **changes)


class Partitioned(Suite):
    @pytest.fixture
    def target(self, postgres: Database) -> Iterator[PostgresTarget]:
        yield from target_of(postgres, "upsert", PartitionedTarget)


if os.environ.get("RETL_TEST_ALL"):  # the ways of writing are those of any table

    class TestPartitioned(Partitioned):
        pass


@pytest.fixture
def target(every_postgres: Database) -> Iterator[PostgresTarget]:
    yield from target_of(every_postgres, "upsert", PartitionedTarget)


def ready(target: PostgresTarget, epoch: int = 1) -> Postgres:
    destination = target.make(SHAPE)
    destination.check(Visit(f"run-{epoch}", epoch))
    destination.prepare(Visit(f"run-{epoch}", epoch, frozenset({"run-1"})))
    return destination


@pytest.mark.parametrize("many", [False, True])
def test_a_new_partition_is_no_loss_and_one_that_is_gone_or_emptied_is(
    target: PostgresTarget, many: bool
) -> None:
    target.admin.execute(
        "CREATE TABLE crm.people (id text PRIMARY KEY, name text, amount numeric(12,2), visits bigint)"
        " PARTITION BY RANGE (id); CREATE TABLE crm.p0 PARTITION OF crm.people FOR VALUES FROM ('k') TO ('l');"
        "CREATE TABLE crm.p1 PARTITION OF crm.people FOR VALUES FROM ('l') TO ('m')"
    )
    destination = PostgresTarget.make(target, SHAPE)
    destination.check(VISIT)
    destination.prepare(VISIT)
    deliver(destination, Rows(SHAPE, sample(3)).batch())
    destination.close()

    def replaced() -> bool:
        seen = PostgresTarget.make(target, SHAPE)
        trace = seen.check(Visit("run-2", 2))
        seen.close()
        assert trace is not None
        assert trace.batches
        return bool(trace.replaced)

    assert not replaced()
    target.admin.execute("CREATE TABLE crm.p2 PARTITION OF crm.people FOR VALUES FROM ('m') TO ('n')")
    assert not replaced()
    target.admin.execute("TRUNCATE crm.p0" if many else "ALTER TABLE crm.people DETACH PARTITION crm.p1")
    assert replaced()


def test_a_row_that_no_partition_takes_is_refused_alone_and_says_why(target: PostgresTarget) -> None:
    destination = ready(target)
    target.admin.execute("DROP TABLE crm.p0")
    found = [one for one in deliver(destination, Rows(SHAPE, sample(30)).batch()) if one.code is not None]
    assert {(one.code, one.reason) for one in found} == {("23514", "no partition of the table takes it")}
    assert len(target.contents()) == 30 - len(found) < 30
    destination.close()


def test_partitions_on_other_servers_are_refused(target: PostgresTarget) -> None:
    target.admin.execute(
        "CREATE FOREIGN DATA WRAPPER far; CREATE SERVER away FOREIGN DATA WRAPPER far;"
        "CREATE TABLE crm.people (id text, name text, amount numeric(12,2), visits bigint) PARTITION BY LIST (id);"
        "CREATE FOREIGN TABLE crm.p0 PARTITION OF crm.people DEFAULT SERVER away"
    )
    destination = PostgresTarget.make(target, Shape("s", "state-1", SHAPE.key, SHAPE.fields, "update_only"))
    with pytest.raises(Mismatch) as caught:
        destination.check(VISIT)
    assert caught.value.code == "TARGET_DRIFT"
    assert "crm.p0 is a foreign table" in caught.value.message
    destination.close()


def test_keys_that_cannot_be_unique_are_refused_and_it_says_why(target: PostgresTarget) -> None:
    target.admin.execute(
        "CREATE TABLE crm.people (id text, name text, amount numeric(12,2), visits bigint, UNIQUE (id, visits))"
        " PARTITION BY LIST (visits); CREATE TABLE crm.p0 PARTITION OF crm.people DEFAULT"
    )
    destination = PostgresTarget.make(target, SHAPE)
    with pytest.raises(Mismatch) as caught:
        destination.check(VISIT)
    assert "is partitioned by (visits)" in caught.value.message
    assert "ADD UNIQUE" not in (caught.value.hint or "")
    destination.close()
