"""Files pass the suite in a bucket, and keep the promises that are theirs alone, there and in a folder."""

from __future__ import annotations

import json
import secrets
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any

import duckdb
import obstore
import pytest
from msgspec.structs import replace
from pydantic import ValidationError

from retl.destinations.batch import Batch, Field, Kind, Mode, Shape, Visit, WriteMode
from retl.destinations.files import adapter
from retl.destinations.files.adapter import Files, FilesOptions
from retl.errors import Ambiguous, DefinitionError, Systemic, Unavailable
from retl.values.types import Type
from tests.destinations.rows import Row, Rows, plain
from tests.destinations.suite import (
    FIELDS,
    STRING,
    VISIT,
    Contents,
    Suite,
    Target,
    deliver,
    kinds,
    sample,
)
from tests.exported import held, log, named, objects
from tests.proxy import Proxy
from tests.servers import ObjectStore

SHAPE = Shape("suite", "state-1", (Field("id", STRING),), FIELDS, "upsert", "delete")
ROOM = 1 << 17  # bytes of an object, in place of the real limit


class FilesTarget(Target):
    """A folder of the bucket, reached through a proxy."""

    type = "files"
    commit = b"/_retl/log/0"
    counts_all = False

    def __init__(self, server: ObjectStore, proxy: Proxy, write: WriteMode, **options: Any) -> None:
        self.server, self.proxy, self.write, self.settings = server, proxy, write, options
        self.shape, self.folder = SHAPE, f"out-{secrets.token_hex(6)}"
        self.store = server.store(f"{self.folder}/users")
        self.account = (server.user, server.password)

    def make(self, shape: Shape, *, secret: str | None = None, **options: Any) -> Files:
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
        return Files(
            FilesOptions.model_validate(
                {"connection": connection, "path": "users"} | self.settings | options
            ),
            shape,
        )

    def objects(self) -> dict[str, bytes]:
        """Everything that is there."""
        listed = [one["path"] for page in obstore.list(self.store) for one in page]
        return {path: bytes(obstore.get(self.store, path).bytes()) for path in sorted(listed)}

    def contents(self) -> Contents:
        return contents(self.shape, self.objects())

    def poison(self, row: Row) -> Row:
        return (row[0], row[1] + secrets.token_hex(ROOM), *row[2:])

    def forbid(self) -> None:
        self.account = self.server.reader()

    def annotate(self, key: Row) -> Callable[[], bool] | None:
        return None


def contents(shape: Shape, objects: dict[str, bytes]) -> Contents:
    """What a reader finds."""
    found: Contents = {}
    for file in named(objects):
        assert len(objects[file["path"]]) == file["bytes"]
        rows = read(shape, file["path"], objects[file["path"]])
        assert len(rows) == file["rows"]
        for row in rows:
            key = tuple(row.pop(field.name) for field in shape.key)
            if row.pop("_op", "upsert") == "delete":
                found.pop(key, None)
            else:
                found[key] = row
    return found


def read(shape: Shape, path: str, data: bytes) -> list[dict[str, Any]]:
    """The rows of a file as their JSON says them."""
    if path.endswith(".json"):
        return list(json.loads(data, parse_float=Decimal))
    if path.endswith(".ndjson"):
        return [json.loads(line, parse_float=Decimal) for line in data.decode().split("\n")[:-1]]
    with tempfile.NamedTemporaryFile(suffix=".parquet") as file, duckdb.connect() as connection:
        file.write(data)
        file.flush()
        connection.execute("SET timezone = 'UTC'")
        found = connection.execute(f"FROM read_parquet('{file.name}')")
        names = [column[0] for column in found.description or ()]
        rows = found.fetchall()
    types = {field.name: field.type for field in (*shape.key, *shape.fields)} | {"_op": Type("string")}
    return [{name: plain(value, types[name]) for name, value in zip(names, row, strict=True)} for row in rows]


@pytest.fixture
def proxy(objectstore: ObjectStore) -> Iterator[Proxy]:
    with Proxy(objectstore.host, objectstore.port) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def _room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "LARGEST", ROOM)


class TestChanges(Suite):
    @pytest.fixture
    def target(self, objectstore: ObjectStore, proxy: Proxy) -> FilesTarget:
        return FilesTarget(objectstore, proxy, "upsert", format="ndjson")


class TestAppend(Suite):
    @pytest.fixture
    def target(self, objectstore: ObjectStore, proxy: Proxy) -> FilesTarget:
        return FilesTarget(objectstore, proxy, "append")


class TestSnapshots(Suite):
    @pytest.fixture
    def target(self, objectstore: ObjectStore, proxy: Proxy) -> FilesTarget:
        return FilesTarget(objectstore, proxy, "upsert", mode="snapshot", format="json")


# a folder of this machine, and what no suite asks for


class Disk:
    """A folder of this machine."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, root / "users"

    def make(self, shape: Shape = SHAPE, **options: Any) -> Files:
        settings = {"connection": {"root": str(self.root)}, "path": "users", "format": "ndjson"} | options
        return Files(FilesOptions.model_validate(settings), shape)

    def ready(self, epoch: int = 1, marks: frozenset[str] = frozenset(), **options: Any) -> Files:
        made = self.make(**options)
        made.check(Visit(f"run-{epoch}", epoch))
        made.prepare(Visit(f"run-{epoch}", epoch, marks))
        return made

    def entries(self) -> list[dict[str, Any]]:
        return log(objects(self.folder))

    def held(self) -> list[str | None]:
        return [row["id"] for row in held(objects(self.folder), "id")]


def batch(run: int = 1, count: int = 3, first: int = 0, mode: Mode = "upsert") -> Batch:
    rows = Rows(SHAPE, sample(first + count))
    return replace(rows.batch(mode, first=first, run_id=f"run-{run}"), epoch=run)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path / "out")


def test_a_batch_is_an_object_and_then_an_entry(disk: Disk) -> None:
    destination = disk.ready()
    assert kinds(deliver(destination, batch())) == [Kind.WRITTEN] * 3
    begun, applied = disk.entries()
    assert (begun["state"], applied["state"]) == ("begin", "applied")
    (file,) = applied["files"]
    data = (disk.folder / file["path"]).read_bytes()
    assert file["path"] == f"data/{batch().id}.ndjson"
    assert (file["bytes"], file["sha256"], file["rows"]) == (len(data), sha256(data).hexdigest(), 3)


def test_a_folder_that_cannot_be_used_is_named_with_the_reason(disk: Disk) -> None:
    destination = disk.ready()
    (disk.folder / "data").write_text("no folder")
    with pytest.raises(Systemic) as refused:
        destination.write(batch())
    assert refused.value.code == "FOLDER_UNWRITABLE"
    assert str(disk.folder) in refused.value.message
    assert "free space" in str(refused.value.hint)
    (disk.folder / "data").unlink()
    assert kinds(deliver(destination, batch())) == [Kind.WRITTEN] * 3


def test_a_batch_that_is_voided_is_never_applied_and_goes_again(disk: Disk) -> None:
    destination = disk.ready()
    assert destination.resolve(batch(), None, act=False).default.kind is Kind.RETRY
    assert len(disk.entries()) == 1
    assert destination.resolve(batch(), None).default.kind is Kind.RETRY
    with pytest.raises(Systemic) as late:
        disk.make().write(batch())  # the same attempt, in a process that woke up late
    assert late.value.code == "VOIDED"
    assert disk.held() == []
    assert kinds(deliver(destination, batch())) == [Kind.WRITTEN] * 3
    assert [one["state"] for one in disk.entries()] == ["begin", "void", "applied"]
    assert disk.make().resolve(batch(), None).default.kind is Kind.WRITTEN
    assert len(disk.held()) == 3


def test_an_older_run_that_wakes_up_writes_nothing(disk: Disk) -> None:
    old = disk.ready(epoch=1)
    deliver(old, batch(1))
    new = disk.ready(epoch=2, marks=frozenset({"run-1"}))
    with pytest.raises(Systemic) as fenced:
        old.write(batch(1, first=3))
    assert fenced.value.code == "VOIDED"
    with pytest.raises(Systemic):
        disk.ready(epoch=1)
    deliver(new, batch(2, first=3))
    assert disk.held() == ["k0", "k1", "k2", "k3", "k4", "k5"]
    assert {run for run, _ in new.check(Visit("run-3", 3)).batches} == {"run-1", "run-2"}


def test_another_ledger_is_seen_and_whoever_begins_last_writes(disk: Disk) -> None:
    ours = disk.ready()
    deliver(ours, batch())
    theirs = Files(disk.make().options, replace(SHAPE, state_id="state-2"))
    trace = theirs.check(Visit("run-9", 1))
    assert trace.strangers
    assert trace.batches == frozenset()
    theirs.prepare(Visit("run-9", 1))
    with pytest.raises(Systemic):
        ours.write(batch(first=3))
    again = disk.make().check(Visit("run-2", 2))
    assert (len(again.batches), again.strangers) == (1, False)


def test_marks_of_runs_that_the_ledger_no_longer_needs_are_dropped(disk: Disk) -> None:
    for run in (1, 2, 3):
        deliver(disk.ready(run, frozenset({f"run-{run - 1}"})), batch(run, first=3 * run))
    trace = disk.make().check(Visit("run-4", 4))
    assert {run for run, _ in trace.batches} == {"run-2", "run-3"}
    assert trace.epoch == 3


def test_a_head_that_leads_nowhere_costs_only_reading(disk: Disk) -> None:
    deliver(disk.ready(), batch())
    (disk.folder / "_retl" / "head.json").write_text('{"entry": 70}')
    assert len(disk.make().check(Visit("run-2", 2)).batches) == 1


@pytest.mark.parametrize("left", [b"", b'{"ent', b"[1]", b'{"entry": null}'])
def test_a_damaged_head_costs_only_reading_and_a_damaged_entry_stops(disk: Disk, left: bytes) -> None:
    deliver(disk.ready(), batch())
    (disk.folder / "_retl" / "head.json").write_bytes(left)
    assert len(disk.make().check(Visit("run-2", 2)).batches) == 1
    entry = disk.folder / "_retl" / "log" / "000000000001.json"
    entry.write_bytes(entry.read_bytes()[:40])
    with pytest.raises(Systemic) as damaged:
        disk.make().check(Visit("run-2", 2))
    assert damaged.value.code == "TARGET_DAMAGED"
    with pytest.raises(Systemic, match="TARGET_DAMAGED"):
        next(iter(disk.make().read(batch())))


def sent(destination: Files, one: Batch) -> bool:
    """Whether a batch arrived, which another attempt follows if it did not."""
    try:
        return destination.write(one).default.kind is Kind.WRITTEN
    except Ambiguous:
        return destination.resolve(one, None).default.kind is Kind.WRITTEN


def test_four_writers_that_race_lose_and_double_nothing(objectstore: ObjectStore, proxy: Proxy) -> None:
    target = FilesTarget(objectstore, proxy, "append", format="ndjson")
    target.make(replace(SHAPE, write="append", deletes="keep")).prepare(VISIT)
    rows = Rows(target.shape, sample(40))

    def write(lane: int) -> None:
        destination = target.make(target.shape)
        for first in range(10 * lane, 10 * lane + 10, 2):
            made = rows.batch("append", first=first, last=first + 1)
            while not sent(destination, made):
                pass

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    applied = [one for one in log(target.objects()) if one["state"] == "applied"]
    assert len(applied) == len({one["batch"] for one in applied}) == 20
    assert {row["id"] for row in held(target.objects(), "id")} == {f"k{n}" for n in range(40)}


def test_a_batch_too_large_for_one_object_has_several(disk: Disk) -> None:
    rows = Rows(SHAPE, [(f"k{n}", secrets.token_hex(ROOM // 8), None, n) for n in range(9)])
    deliver(disk.ready(), rows.batch())
    (entry,) = [one for one in disk.entries() if one["state"] == "applied"]
    assert len(entry["files"]) > 2
    assert all(one["bytes"] <= ROOM for one in entry["files"])
    assert disk.held() == [f"k{n}" for n in range(9)]


# snapshots


def latest(disk: Disk) -> dict[str, Any]:
    return dict(json.loads((disk.folder / "latest.json").read_bytes()))


def test_a_reader_of_latest_sees_one_set_whatever_happens(disk: Disk) -> None:
    options = {"mode": "snapshot", "keep": 1}
    deliver(disk.ready(1, **options), batch(1))
    assert (latest(disk)["set"], latest(disk)["rows"]) == ("run-1", 3)
    halfway = disk.ready(2, **options)
    halfway.interrupt()
    with pytest.raises(Unavailable):
        halfway.write(batch(2, count=5))
    assert latest(disk)["set"] == "run-1"
    deliver(disk.ready(3, **options), batch(3, count=7))
    deliver(disk.ready(4, **options), batch(4, count=9))
    assert sets(disk) == {"run-3", "run-4"}
    assert len(disk.held()) == 9


def sets(disk: Disk) -> set[str]:
    return {path.split("/")[1] for path in objects(disk.folder) if path.startswith("sets/")}


def test_a_set_that_was_never_published_takes_no_place_of_one_that_was(disk: Disk) -> None:
    options = {"mode": "snapshot", "keep": 1}
    deliver(disk.ready(1, **options), batch(1))
    for epoch in (2, 3):
        killed = disk.ready(epoch, **options)
        killed._said(killed._open()[0], batch(epoch))  # it died before its entry
    deliver(disk.ready(4, **options), batch(4, count=5))
    assert (sets(disk), latest(disk)["kept"]) == ({"run-1", "run-4"}, ["run-1"])
    deliver(disk.ready(5, **options), batch(5, count=6))
    assert (sets(disk), latest(disk)["kept"]) == ({"run-4", "run-5"}, ["run-4"])


def test_the_set_before_the_newest_stays_though_the_clock_was_set_back(disk: Disk) -> None:
    options, kept = {"mode": "snapshot", "keep": 2}, list[set[str]]()
    for epoch, run in enumerate((5, 6, 3, 7, 8), 1):
        destination = disk.make(**options)
        destination.prepare(Visit(f"run-{run}", epoch))
        deliver(destination, replace(batch(run, count=epoch), epoch=epoch))
        kept.append(sets(disk))
    assert kept[3:] == [{"run-6", "run-3", "run-7"}, {"run-3", "run-7", "run-8"}]


def test_an_older_snapshot_never_replaces_a_newer_one(disk: Disk) -> None:
    old, new = disk.ready(1, mode="snapshot"), disk.make(mode="snapshot")
    entry = old._open()[1].commit(batch(1), 0, "applied", **old._said(old._open()[0], batch(1)))
    new.prepare(Visit("run-2", 2))
    deliver(new, batch(2, count=5))
    with pytest.raises(Systemic) as late:
        old._publish(old._open()[0], entry)
    assert late.value.code == "VOIDED"
    assert latest(disk)["set"] == "run-2"


def test_a_set_that_is_gone_has_no_mark(disk: Disk) -> None:
    destination = disk.ready(1, mode="snapshot")
    deliver(destination, batch(1))
    deliver(destination, batch(1, count=2, first=3, mode="delete"))
    assert len(disk.make(mode="snapshot").check(VISIT).batches) == 2
    (disk.folder / latest(disk)["files"][0]["path"]).unlink()
    assert disk.make(mode="snapshot").check(VISIT).batches == frozenset()
    (disk.folder / "latest.json").unlink()
    assert disk.make(mode="snapshot").check(VISIT).batches == frozenset()


@pytest.mark.parametrize("left", [b"", b'{"set": "run', b"[]", b"{}"])
def test_a_damaged_latest_publishes_nothing_and_the_next_set_replaces_it(disk: Disk, left: bytes) -> None:
    deliver(disk.ready(1, mode="snapshot"), batch(1))
    (disk.folder / "latest.json").write_bytes(left)
    assert disk.make(mode="snapshot").check(VISIT).batches == frozenset()
    deliver(disk.ready(2, mode="snapshot"), batch(2, count=5))
    assert (latest(disk)["set"], latest(disk)["kept"], len(disk.held())) == ("run-2", ["run-1"], 5)


def test_a_mart_without_rows_is_not_published(disk: Disk) -> None:
    destination = disk.ready(1, mode="snapshot")
    with pytest.raises(Systemic) as empty:
        destination.write(batch(1, mode="delete"))
    assert empty.value.code == "SNAPSHOT_EMPTY"


# options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": "../x"}, "no part is empty"),
        ({"path": "_retl"}, "begins with _"),
        ({"path": "/x"}, "no part is empty"),
        ({"format": "json"}, "except for `mode: snapshot`"),
        ({"format": ["csv", "ndjson"]}, "except for `mode: snapshot`"),
        ({"format": ["csv", "csv"], "mode": "snapshot"}, "once"),
        ({"keep": 3}, "`keep` is for"),
        ({"connection": {"root": "s3://b/x", "storage": {"account_name": "a"}}}, "no option of s3"),
        ({"connection": {"root": "out", "storage": {"region": "a"}}}, "`storage` is for a bucket"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        FilesOptions.model_validate({"connection": {"root": "out"}, "path": "x"} | options)


@pytest.mark.parametrize(
    ("shape", "options", "code"),
    [
        (replace(SHAPE, fields=(Field("_op", STRING),)), {}, "IDENTIFIER"),
        (replace(SHAPE, fields=(Field("ID", STRING),)), {}, "IDENTIFIER"),
    ],
)
def test_what_files_cannot_express_is_refused(
    disk: Disk, shape: Shape, options: dict[str, Any], code: str
) -> None:
    with pytest.raises(DefinitionError) as caught:
        disk.make(shape, **options)
    assert caught.value.code == code


def test_a_place_is_the_folder_and_never_a_secret() -> None:
    def place(root: str, **storage: Any) -> str:
        connection = {"root": root, "storage": storage}
        return Files.place(FilesOptions.model_validate({"connection": connection, "path": "x/y"}), "append")

    assert place("/data/out/") == "files:file:///data/out/x/y"
    assert place("s3://b/f/") == "files:s3://b/f/x/y"
    assert place("s3://b", endpoint="http://127.0.0.1:9000", access_key_id="a", secret_access_key="s") == (
        "files:s3://127.0.0.1:9000/b/x/y"
    )
    assert place("abfss://c@acc.dfs.core.windows.net/f") == "files:az://acc/c/f/x/y"
