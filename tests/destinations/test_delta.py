"""Delta tables pass the suite in a bucket, and keep the promises that are theirs alone, there and in a folder."""

from __future__ import annotations

import json
import os
import resource
import secrets
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any
from uuid import UUID

import duckdb
import pytest
from deltalake import DeltaTable, write_deltalake
from msgspec.structs import replace
from pydantic import ValidationError

from retl.destinations.batch import UNKNOWN, Batch, Field, Kind, Mode, Outcome, Shape, Visit, WriteMode
from retl.destinations.delta import marks
from retl.destinations.delta.adapter import Delta, DeltaOptions
from retl.errors import Ambiguous, DefinitionError, Mismatch, Poisoned, Systemic, Unavailable
from retl.values.types import Type
from tests.destinations.rows import Row, Rows, plain
from tests.destinations.suite import (
    CANARY,
    FIELDS,
    INTEGER,
    STRING,
    VISIT,
    Contents,
    Suite,
    Target,
    as_contents,
    deliver,
    kinds,
    sample,
    told,
)
from tests.proxy import Proxy
from tests.servers import ObjectStore

SHAPE = Shape("suite", "state-1", (Field("id", STRING),), FIELDS, "upsert", "delete")
POISON = "poison"


def held(table: DeltaTable, shape: Shape) -> Contents:
    """What a reader finds."""
    types = {field.name: field.type for field in (*shape.key, *shape.fields)}
    with duckdb.connect() as connection:
        connection.execute("SET timezone = 'UTC'")
        connection.register("theirs", table.scan())
        found = connection.execute("FROM theirs")
        names = [column[0] for column in found.description or ()]
        rows = [dict(zip(names, row, strict=True)) for row in found.fetchall()]
    contents: Contents = {}
    for row in rows:
        key = tuple(row[field.name] for field in shape.key)
        values = {field.name: plain(row[field.name], types[field.name]) for field in shape.fields}
        assert contents.get(key) != values, f"{key} is there twice"
        contents[key] = values
    return contents


class DeltaTarget(Target):
    """A table in the bucket, reached through a proxy."""

    type = "delta"
    counts_all = False

    def __init__(self, server: ObjectStore, proxy: Proxy, write: WriteMode) -> None:
        self.server, self.proxy, self.write = server, proxy, write
        self.shape, self.folder = SHAPE, f"out-{secrets.token_hex(6)}"
        self.account = (server.user, server.password)
        self.commit = f"PUT /{server.bucket}/{self.folder}/users/_delta_log/".encode()

    def make(self, shape: Shape, *, secret: str | None = None, **options: Any) -> Delta:
        self.shape = shape
        user, password = self.account
        storage = {
            "endpoint": f"http://{self.proxy.host}:{self.proxy.port}",
            "region": self.server.region,
            "access_key_id": user,
            "secret_access_key": secret or password,
        }
        root = f"s3://{self.server.bucket}/{self.folder}"
        connection = {"root": root, "storage": storage, "timeout": 1, "connect_timeout": 1}
        made = {"connection": connection, "path": "users", "create": True} | options
        return Delta(DeltaOptions.model_validate(made), shape)

    @property
    def table(self) -> DeltaTable | None:
        options = {
            "aws_endpoint": self.server.url,
            "aws_region": self.server.region,
            "aws_access_key_id": self.server.user,
            "aws_secret_access_key": self.server.password,
            "allow_http": "true",
        }
        uri = f"s3://{self.server.bucket}/{self.folder}/users"
        there = DeltaTable.is_deltatable(uri, options)
        return DeltaTable(uri, storage_options=options) if there else None

    def contents(self) -> Contents:
        table = self.table
        return {} if table is None else held(table, self.shape)

    def poison(self, row: Row) -> Row:
        table = self.table
        assert table is not None
        if "delta.constraints.fit" not in table.metadata().configuration:
            table.alter.add_constraint({"fit": f"name NOT LIKE '{POISON}%'"})
        return (row[0], f"{POISON}{row[1]}", *row[2:])

    def forbid(self) -> None:
        self.account = self.server.reader()

    def annotate(self, key: Row) -> Callable[[], bool] | None:
        return None  # see below


@pytest.fixture
def proxy(objectstore: ObjectStore) -> Iterator[Proxy]:
    with Proxy(objectstore.host, objectstore.port) as proxy:
        yield proxy


class TestUpsert(Suite):
    @pytest.fixture
    def target(self, objectstore: ObjectStore, proxy: Proxy) -> DeltaTarget:
        return DeltaTarget(objectstore, proxy, "upsert")


if os.environ.get("RETL_TEST_ALL"):  # the same log and bucket; only the commit is another

    class TestAppend(Suite):
        @pytest.fixture
        def target(self, objectstore: ObjectStore, proxy: Proxy) -> DeltaTarget:
            return DeltaTarget(objectstore, proxy, "append")


# a folder of this machine, and what no suite asks for


class Disk:
    """A table in a folder of this machine."""

    def __init__(self, root: Path) -> None:
        self.root, self.uri = root, str(root / "users")

    def make(self, shape: Shape = SHAPE, **options: Any) -> Delta:
        made = {"connection": {"root": str(self.root)}, "path": "users", "create": True} | options
        return Delta(DeltaOptions.model_validate(made), shape)

    def ready(self, epoch: int = 1, shape: Shape = SHAPE, **options: Any) -> Delta:
        made = self.make(shape, **options)
        made.check(Visit(f"run-{epoch}", epoch))
        made.prepare(Visit(f"run-{epoch}", epoch))
        return made

    @property
    def table(self) -> DeltaTable:
        return DeltaTable(self.uri)

    def held(self, shape: Shape = SHAPE) -> Contents:
        return held(self.table, shape)

    def count(self) -> int:
        with duckdb.connect() as connection:
            connection.register("theirs", self.table.scan())
            ((count,),) = connection.execute("SELECT count(*) FROM theirs").fetchall()
        return int(count)

    def by_others(self, sql: str, mode: Any = "append") -> None:
        with duckdb.connect() as connection:
            write_deltalake(self.uri, connection.sql(sql), mode=mode, schema_mode="merge")


APPEND = replace(SHAPE, write="append", deletes="keep")


def batch(run: int = 1, count: int = 3, first: int = 0, mode: Mode = "upsert", shape: Shape = SHAPE) -> Batch:
    rows = Rows(shape, sample(first + count))
    return replace(rows.batch(mode, first=first, run_id=f"run-{run}"), epoch=run)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path / "lake")


def test_a_commit_has_the_rows_a_mark_and_the_next_application_transaction(disk: Disk) -> None:
    destination = disk.ready()
    assert kinds(deliver(destination, batch())) == [Kind.WRITTEN] * 3
    newest = disk.table.history(1)[0]
    said = json.loads(newest["retl"])
    assert (newest["version"], newest["operation"]) == (2, "MERGE")
    assert (said["batch"], said["run"], said["state"]) == (batch().id, "run-1", "applied")
    assert disk.table.transaction_version("retl/state-1/suite") == 2  # the first is that of the run
    assert disk.held() == as_contents(SHAPE, sample(3))


@pytest.mark.parametrize("mode", ["append", "upsert"])
def test_a_batch_is_never_applied_twice_by_whatever_handle(disk: Disk, mode: Mode) -> None:
    shape = APPEND if mode == "append" else SHAPE
    first = disk.ready(shape=shape)
    deliver(first, batch(mode=mode, shape=shape))
    version = disk.table.version()
    for one in (first, disk.make(shape)):
        assert kinds(deliver(one, batch(mode=mode, shape=shape))) == [Kind.WRITTEN] * 3
        assert one.resolve(batch(mode=mode, shape=shape), None).default.kind is Kind.WRITTEN
    assert (disk.table.version(), disk.count()) == (version, 3)


@pytest.mark.parametrize("mode", ["append", "upsert"])
def test_of_two_commits_that_began_at_the_same_state_one_is_let_through(disk: Disk, mode: Mode) -> None:
    shape = APPEND if mode == "append" else SHAPE
    one, other = disk.ready(shape=shape), disk.make(shape)
    stale = other._opening.newest()
    other._look(stale)
    deliver(one, batch(mode=mode, shape=shape))
    found = other._commit(stale, batch(mode=mode, shape=shape), 0)
    assert found["author"] == one._marks.author  # it lost, and read that the batch is there
    assert disk.count() == 3
    stale = other._opening.newest()
    other._look(stale)
    deliver(one, batch(mode=mode, shape=shape, first=3))
    with pytest.raises(Unavailable) as lost:
        other._commit(stale, batch(mode=mode, shape=shape, first=6), 0)
    assert lost.value.code == "CONCURRENT_WRITE"
    assert kinds(deliver(other, batch(mode=mode, shape=shape, first=6))) == [Kind.WRITTEN] * 3
    assert disk.count() == 9


def test_a_batch_without_an_answer_is_resolved_and_an_aborted_one_is_kept_out(disk: Disk) -> None:
    destination, other = disk.ready(shape=APPEND), disk.make(APPEND)
    one = batch(mode="append", shape=APPEND)
    assert other.resolve(one, None, act=False).default.kind is Kind.RETRY
    version = disk.table.version()
    assert other.resolve(one, None).default.kind is Kind.RETRY
    assert disk.table.version() == version + 1
    with pytest.raises(Systemic) as kept:
        destination.write(one)
    assert kept.value.code == "VOIDED"
    assert disk.count() == 0
    assert kinds(deliver(other, one)) == [Kind.WRITTEN] * 3  # the attempt after the aborted one
    assert disk.make(APPEND).resolve(one, None).default.kind is Kind.WRITTEN
    assert disk.count() == 3


def test_an_older_run_that_wakes_up_writes_nothing(disk: Disk) -> None:
    old = disk.ready(1)
    deliver(old, batch(1))
    deliver(disk.ready(2), batch(2, first=3))
    with pytest.raises(Systemic) as fenced:
        old.write(batch(1, first=6))
    assert fenced.value.code == "VOIDED"
    assert disk.count() == 6


def test_syncs_and_others_that_race_lose_and_double_nothing(disk: Disk) -> None:
    disk.ready(shape=APPEND)

    def writer(number: int) -> None:
        shape = replace(APPEND, sync=f"sync-{number}")
        destination = disk.make(shape)
        for first in range(0, 12, 3):
            one = batch(mode="append", shape=shape, first=first)
            for _ in range(50):
                try:
                    destination.write(one)
                    break
                except Unavailable:
                    continue
                except Ambiguous:
                    destination.resolve(one, None)
            else:
                raise AssertionError("it never got through")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(writer, [1, 1, 2, 3]))  # two processes of the same run among them
    assert disk.count() == 3 * 12


def test_columns_and_rows_of_others_stay(disk: Disk) -> None:
    destination = disk.ready()
    deliver(destination, batch())
    disk.by_others("SELECT 'theirs' AS id, 7 AS score")
    disk.table.update(updates={"score": "1"}, predicate="id = 'k1'")
    changed = Rows(SHAPE, [("k1", "other", None, 9), ("k9", "new", None, 1)])
    deliver(destination, changed.batch(run_id="run-2"))
    with duckdb.connect() as connection:
        connection.register("theirs", disk.table.scan())
        found = connection.execute("SELECT id, name, score FROM theirs ORDER BY id").fetchall()
    assert found == [
        ("k0", "name 0", None),
        ("k1", "other", 1),
        ("k2", "name 2", None),
        ("k9", "new", None),
        ("theirs", None, 7),
    ]


def test_a_merge_that_changes_nothing_leaves_its_mark_too(disk: Disk) -> None:
    destination = disk.ready()
    gone = batch(mode="delete")
    assert kinds(deliver(destination, gone)) == [Kind.WRITTEN] * 3
    assert disk.make().resolve(gone, None, act=False).default.kind is Kind.WRITTEN


@pytest.mark.parametrize("folder", ["constraints", "invariants"])
def test_the_name_of_a_folder_is_not_taken_for_the_reason_of_an_error(
    objectstore: ObjectStore, proxy: Proxy, folder: str
) -> None:
    """The commit is applied, its answer is lost: if that were a refusal, its halves would be added again."""
    target = DeltaTarget(objectstore, proxy, "append")
    destination = target.make(APPEND, path=folder)
    destination.check(Visit("run-1", 1))
    destination.prepare(Visit("run-1", 1))
    written = f"/{target.folder}/{folder}/_delta_log/"
    proxy.drop_reply(f"PUT /{objectstore.bucket}{written}".encode(), refuse=True)
    one = batch(mode="append", shape=APPEND)
    with pytest.raises(Ambiguous):
        destination.write(one)
    proxy.heal()
    assert destination.resolve(one, None).default.kind is Kind.WRITTEN


def test_a_full_disk_is_named_with_its_folder_and_the_batch_goes_again(disk: Disk) -> None:
    destination, rows = disk.ready(), batch(count=500)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(Systemic) as refused:
            destination.write(rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert refused.value.code == "FOLDER_UNWRITABLE"
    assert refused.value.message == f"the folder {disk.uri} cannot be used: File too large"
    assert "space" in str(refused.value.hint)
    assert kinds(deliver(destination, rows)) == [Kind.WRITTEN] * 500
    assert disk.count() == 500


def test_what_others_did_to_the_table_is_noticed(disk: Disk) -> None:
    destination = disk.ready()
    deliver(destination, batch())
    deliver(destination, batch(first=3))
    visit = Visit("run-2", 2, frozenset({"run-1"}))
    trace = disk.make().check(visit)
    assert trace is not None
    assert (len(trace.batches), trace.replaced, trace.epoch, trace.strangers) == (2, frozenset(), 1, False)
    theirs = disk.make(replace(SHAPE, state_id="state-2")).check(visit)
    assert theirs is not None
    assert theirs.strangers
    disk.table.restore(1)
    restored = disk.make().check(visit)
    assert restored is not None
    assert len(restored.replaced) == 2
    disk.ready(2).close()
    pruned = disk.make().check(Visit("run-3", 3, frozenset({"run-2"})))
    assert pruned is not None
    assert (pruned.batches, pruned.epoch, pruned.strangers) == (frozenset(), 2, False)
    shutil.rmtree(disk.uri)
    again = disk.make().check(visit)
    assert again is not None
    assert again.batches == frozenset()


def test_a_log_that_no_longer_has_the_last_run_is_no_evidence(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = disk.ready()
    for first in (0, 3, 6):
        deliver(destination, batch(first=first))
    visit = Visit("run-2", 2, frozenset({"run-1"}))
    monkeypatch.setattr(marks, "WINDOW", 1)
    trace = disk.make().check(visit)
    assert trace is not None
    assert len(trace.batches) == 3  # the log is read back to where the run began
    assert disk.make().resolve(batch(first=9), None, act=False).default.kind is Kind.RETRY  # read whole
    disk.table.create_checkpoint()
    for version in (0, 1, 2):
        (Path(disk.uri) / f"_delta_log/{version:020d}.json").unlink()
    other = disk.make()
    assert other.check(visit) is None
    assert other.resolve(batch(first=9), None) == Outcome(UNKNOWN)
    assert other.resolve(batch(first=6), None).default.kind is Kind.WRITTEN
    assert kinds(deliver(other, batch(first=9))) == [Kind.WRITTEN] * 3


def test_rows_that_the_table_refuses_cost_only_themselves(disk: Disk) -> None:
    destination = disk.ready()
    disk.table.alter.add_constraint({"fit": "visits < 100"})
    rows: list[Row] = [
        ("a", "a", None, 1),
        ("b", CANARY, None, 100),
        ("c", "\ud800", None, 3),
        ("d", "d", None, 4),
    ]
    found = deliver(destination, Rows(SHAPE, rows).batch())
    assert [one.code for one in found] == [None, "23514", "NOT_UNICODE", None]
    assert CANARY not in str(found)
    with pytest.raises(Poisoned) as caught:
        destination.write(Rows(SHAPE, rows[:2]).batch())
    assert CANARY not in told(caught.value)
    assert sorted(key for (key,) in disk.held()) == ["a", "d"]


def test_create_makes_the_table_and_later_its_columns(disk: Disk) -> None:
    wide = (
        Field("a uuid", Type("uuid")),
        Field('odd " name', Type("json")),
        Field("tags", Type("list", items="date")),
    )
    shape = replace(SHAPE, key=(*SHAPE.key, Field("day", Type("date"))), fields=wide)
    assert disk.make(shape).columns() is None
    destination = disk.ready(shape=shape)
    assert disk.make(shape).columns() == {
        "id": "string",
        "day": "date",
        "a uuid": "string",
        'odd " name': "string",
        "tags": "array<date>",
    }
    rows: list[Row] = [("a", date(2026, 1, 1), UUID(int=1), '{"x":1.10}', [date(1, 1, 1), None])]
    for run in ("run-1", "run-2"):
        assert kinds(deliver(destination, Rows(shape, rows).batch(run_id=run))) == [Kind.WRITTEN]
    assert list(destination.differing(Rows(shape, rows).batch())) == [()]
    assert list(destination.scan()) == [("a", "2026-01-01")]
    wider = replace(shape, fields=(*wide, Field("more", INTEGER)))
    assert list(disk.make(wider).differing(Rows(wider, [(*rows[0], 5)]).batch())) == [("more",)]
    destination = disk.ready(shape=wider)
    deliver(destination, Rows(wider, [(*rows[0], 5)]).batch(run_id="run-3"))
    assert disk.held(wider)["a", date(2026, 1, 1)]["more"] == 5


def test_a_table_that_does_not_fit_is_a_mismatch(disk: Disk) -> None:
    with pytest.raises(Mismatch, match="no Delta table"):
        disk.make(create=False).check(VISIT)
    disk.by_others(
        "SELECT 'a'::VARCHAR id, 'n'::VARCHAR AS name, 1.5::DECIMAL(10,2) AS amount, 1::INTEGER AS visits"
    )
    with pytest.raises(Mismatch, match=r"amount of users is decimal\(10,2\), and decimal\(12,2\)"):
        disk.make().check(VISIT)
    shape = replace(SHAPE, fields=(FIELDS[0], Field("more", STRING)))
    with pytest.raises(Mismatch, match="no column more") as caught:
        disk.make(shape, create=False).check(VISIT)
    assert "string" in str(caught.value.hint)
    disk.make(shape).check(VISIT)
    with pytest.raises(DefinitionError, match="case"):
        disk.make(replace(SHAPE, fields=(Field("ID", STRING),)))


def test_a_run_that_was_asked_to_stop_makes_no_commit(disk: Disk) -> None:
    destination = disk.ready()
    destination.interrupt()
    with pytest.raises(Unavailable):
        destination.write(batch())
    assert disk.count() == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": "../up"}, "`path` is a folder"),
        ({"path": "_delta_log"}, "`path` is a folder"),
        ({"path": "a%2fb"}, "`path` is a folder"),
        ({"connection": {"root": "/a%b"}}, "with % cannot"),
        ({"connection": {"root": "/x", "storage": {"region": "x"}}}, "is for a bucket"),
        ({"partition_by": "day"}, "Extra inputs"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        DeltaOptions.model_validate({"connection": {"root": "/x"}, "path": "users"} | options)


def test_a_place_is_the_folder_and_never_a_secret() -> None:
    storage = {"access_key_id": "a", "secret_access_key": "s", "endpoint": "https://Store:9000"}
    connection = {"root": "s3://bucket/crm/", "storage": storage}
    options = DeltaOptions.model_validate({"connection": connection, "path": "users"})
    assert Delta.place(options, "append") == "delta:s3://Store:9000/bucket/crm/users"
