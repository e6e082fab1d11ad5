"""MongoDB passes the suite on an emulator of its protocol, and keeps the promises that are its alone."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import bson
import pytest
from msgspec.structs import replace
from pydantic import ValidationError

from retl.destinations.batch import (
    ABSENT,
    PRESENT,
    Batch,
    Field,
    Kind,
    Mode,
    Order,
    Outcome,
    RowResult,
    Shape,
    SoftDelete,
    Visit,
    WriteMode,
)
from retl.destinations.mongodb.adapter import MongoDB, MongoDBOptions
from retl.destinations.mongodb.connection import MongoDBConnection
from retl.errors import Ambiguous, DefinitionError, Mismatch, Poisoned, Systemic, Unavailable
from retl.values.types import Type
from tests.destinations.rows import Row, Rows
from tests.destinations.suite import (
    CANARY,
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
from tests.mongo import DATABASE, Account, Mongo
from tests.proxy import Proxy

SHAPE = Shape("suite", "state-1", (Field("id", STRING),), FIELDS, "upsert", "delete")


class MongoTarget(Target):
    """A collection of its own, reached through a proxy."""

    type = "mongodb"
    counts_all = False

    def __init__(self, server: Mongo, proxy: Proxy, write: WriteMode = "upsert", **options: Any) -> None:
        self.server, self.proxy, self.write, self.options = server, proxy, write, options
        self.shape, self.name, self.account = SHAPE, f"users_{secrets.token_hex(6)}", server.writer
        self.commit = b"commitTransaction" if options.get("transactions", True) else b"updates\0"

    def make(self, shape: Shape, *, secret: str | None = None) -> MongoDB:
        self.shape = shape
        user, password = self.account
        account = (user, secret or password)
        url = self.server.url(account, host=self.proxy.host, port=self.proxy.port)
        connection = {"url": url, "timeout": 1, "connect_timeout": 0.8}
        made = {"connection": connection, "collection": self.name, "create": True} | self.options
        return MongoDB(MongoDBOptions.model_validate(made), shape)

    def contents(self) -> Contents:
        found: Contents = {}
        for row in self.server.documents(self.name):
            by_id = self.options.get("by", "_id") == "_id" and self.write != "append"
            key = (row["_id"],) if by_id else tuple(row[one.name] for one in self.shape.key)
            found[key] = {one.name: plain(row.get(one.name), one.type) for one in self.shape.fields}
        return found

    def poison(self, row: Row) -> Row:
        with self.server.client() as client:
            rules = {"$jsonSchema": {"properties": {"name": {"maxLength": 200}}}}
            client[DATABASE].command("collMod", self.name, validator=rules)
        return (row[0], row[1] + "x" * 300, *row[2:])

    def forbid(self) -> None:
        self.account = self.server.reader

    def annotate(self, key: Row) -> Callable[[], bool] | None:
        name = "_id" if self.options.get("by", "_id") == "_id" else "id"
        with self.server.client() as client:
            client[DATABASE][self.name].update_one({name: key[0]}, {"$set": {"theirs": "here"}})
        return lambda: "here" in [row.get("theirs") for row in self.server.documents(self.name)]


def plain(value: Any, type_: Type) -> Any:
    """A value of a document as its JSON says it."""
    match value:
        case bson.Decimal128():
            return value.to_decimal()
        case bson.DatetimeMS() if type_.name == "date":
            return value.as_datetime().date().isoformat()
        case bson.DatetimeMS():
            return value.as_datetime().replace(tzinfo=None).isoformat() + "Z"
        case UUID():
            return str(value)
        case float():
            return Decimal(repr(value))
        case dict():
            return {name: plain(one, type_) for name, one in value.items()}
        case list():
            return [plain(one, type_) for one in value]
        case _:
            return value


@pytest.fixture
def proxy(mongodb: Mongo) -> Iterator[Proxy]:
    with Proxy(mongodb.host, mongodb.port) as proxy:
        yield proxy


class Quick(Suite):
    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The client looks for a primary that was away every 50 ms, and not twice in a second."""
        monkeypatch.setattr("pymongo.common.MIN_HEARTBEAT_INTERVAL", 0.05)


class TestTransactions(Quick):
    @pytest.fixture
    def target(self, mongodb: Mongo, proxy: Proxy) -> MongoTarget:
        return MongoTarget(mongodb, proxy)


class TestAppend(Quick):
    @pytest.fixture
    def target(self, mongodb: Mongo, proxy: Proxy) -> MongoTarget:
        return MongoTarget(mongodb, proxy, "append")


class TestWithoutTransactions(Quick):
    @pytest.fixture
    def target(self, mongodb: Mongo, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> MongoTarget:
        monkeypatch.setattr("retl.destinations.mongodb.adapter.BATCH_ROWS", 60)  # the emulator has no B-tree
        return MongoTarget(mongodb, proxy, transactions=False, times="text", by="fields")


# what no suite asks for


class Collection:
    """A collection of the test, reached directly."""

    def __init__(self, server: Mongo) -> None:
        self.server, self.name = server, f"users_{secrets.token_hex(6)}"
        self.made: list[MongoDB] = []

    def make(self, shape: Shape = SHAPE, account: Account | None = None, **options: Any) -> MongoDB:
        url = self.server.url(account or self.server.writer)
        connection = {"url": url, "timeout": 2, "connect_timeout": 1}
        made = {"connection": connection, "collection": self.name, "create": True} | options
        self.made.append(MongoDB(MongoDBOptions.model_validate(made), shape))
        return self.made[-1]

    def ready(self, shape: Shape = SHAPE, visit: Visit = VISIT, **options: Any) -> MongoDB:
        made = self.make(shape, **options)
        made.check(visit)
        made.prepare(visit)
        return made

    def command(self, name: str, **more: Any) -> None:
        """As somebody else."""
        with self.server.client() as client:
            client[DATABASE].command(name, self.name, **more)

    def rows(self) -> list[dict[str, Any]]:
        return sorted(self.server.documents(self.name), key=str)


@pytest.fixture
def users(mongodb: Mongo) -> Iterator[Collection]:
    mongodb.commands.clear()
    made = Collection(mongodb)
    yield made
    for one in made.made:
        one.close()
    mongodb.faults.clear()
    mongodb.heard = lambda _name, _served: None


def results(
    destination: MongoDB, rows: list[Row], mode: Mode = "upsert", run: str = "run-1"
) -> list[RowResult]:
    return deliver(destination, Rows(destination.shape, rows).batch(mode, run_id=run))


def batch(count: int = 3, mode: Mode = "upsert", shape: Shape = SHAPE, run: str = "run-1") -> Batch:
    return Rows(shape, sample(count)).batch(mode, run_id=run)


BOTH = pytest.mark.parametrize("transactions", [True, False], ids=["transactions", "without"])


@BOTH
def test_conditions_are_tested_by_mongodb(users: Collection, transactions: bool) -> None:
    changed: list[Row] = [("k1", "other", None, 7), ("k9", "new", None, 9)]
    options = {"transactions": transactions}
    results(users.ready(**options), sample(2))
    updated = results(users.ready(replace(SHAPE, write="update_only"), **options), changed, "update_only")
    assert updated == [RowResult(Kind.WRITTEN), ABSENT]
    assert [row["_id"] for row in users.rows()] == ["k0", "k1"]
    inserted = results(users.ready(replace(SHAPE, write="insert_only"), **options), changed, "insert_only")
    assert inserted == [PRESENT, RowResult(Kind.WRITTEN)]
    assert [row["name"] for row in users.rows()] == ["name 0", "other", "new"]


def test_a_document_that_others_remove_in_between_goes_again(users: Collection) -> None:
    results(users.ready(transactions=False), sample(2))
    destination = users.ready(replace(SHAPE, write="update_only"), transactions=False)
    if users.server.real:
        return

    def remove(name: str, served: bool) -> None:
        users.server.heard = lambda _name, _served: None
        users.command("delete", deletes=[{"q": {"_id": "k1"}, "limit": 1}])

    users.server.heard = lambda name, served: remove(name, served) if name == "update" else None
    assert kinds(results(destination, sample(2), "update_only")) == [Kind.RETRY, Kind.RETRY]
    assert results(destination, sample(2), "update_only")[1] == ABSENT


@BOTH
def test_a_value_that_another_document_has_costs_only_its_row(users: Collection, transactions: bool) -> None:
    destination = users.ready(transactions=transactions)
    index = {"key": {"name": 1}, "name": "name_1", "unique": True}
    users.command("createIndexes", indexes=[index])
    rows: list[Row] = [
        ("a", "x", None, 1),
        ("b", CANARY, None, 2),
        ("c", CANARY, None, 3),
        ("d", "y", None, 4),
    ]
    found = results(destination, rows)
    assert kinds(found) == [Kind.WRITTEN, Kind.WRITTEN, Kind.REJECTED, Kind.WRITTEN]
    assert (found[2].code, found[2].order) == ("11000", Order(("name",)))
    assert CANARY not in str(found[2])
    assert [row["_id"] for row in users.rows()] == ["a", "b", "d"]


@BOTH
def test_a_validator_makes_a_reject_that_names_the_field(users: Collection, transactions: bool) -> None:
    destination = users.ready(transactions=transactions)
    rules = {"$jsonSchema": {"properties": {"name": {"maxLength": 20}}}}
    users.command("collMod", validator=rules)
    (found, other) = results(destination, [("a", CANARY * 5, None, 1), ("b", "b", None, 2)])
    assert (found.kind, found.code, other.kind) == (Kind.REJECTED, "121", Kind.WRITTEN)
    assert "name" in str(found.reason)
    assert CANARY not in str(found)


def test_values_have_the_types_of_bson(users: Collection) -> None:
    types = ("uuid", "integer", "float", "boolean", "date", "timestamp", "timestamptz", "json")
    fields = tuple(Field(name, Type(name)) for name in types)
    listed = Field("list", Type("list", items="date"))
    destination = users.ready(replace(SHAPE, fields=(*fields, Field("money", Type("decimal", 9, 2)), listed)))
    moment = datetime(2026, 11, 30, 6, 7, 8, 123000)
    data = '{"b":[1,2.5,1.10,12345678901234567890,null,true,"x"],"":{"$x":1,"a.b":2},"big":0.12345678901234567890}'
    row: Row = ("a", UUID(int=7), 5, 2.0, True, date(2026, 2, 28), moment, moment.replace(tzinfo=UTC), data)
    assert kinds(results(destination, [(*row, Decimal("1.10"), [date(1, 1, 1), None])])) == [Kind.WRITTEN]
    (held,) = users.rows()
    at = bson.DatetimeMS(moment.replace(tzinfo=UTC))
    assert (held["uuid"], held["boolean"], held["timestamp"], held["timestamptz"]) == (
        UUID(int=7),
        True,
        at,
        at,
    )
    assert (type(held["integer"]), type(held["float"])) == (bson.Int64, float)
    assert held["date"].as_datetime().replace(tzinfo=None) == datetime(2026, 2, 28)
    assert (held["money"], held["list"][1]) == (bson.Decimal128("1.10"), None)
    decimals = [bson.Decimal128(text) for text in ("12345678901234567890", "0.12345678901234567890")]
    assert held["json"] == {
        "b": [1, 2.5, 1.1, decimals[0], None, True, "x"],
        "": {"$x": 1, "a.b": 2},
        "big": decimals[1],
    }
    assert list(destination.differing(Rows(destination.shape, [(*row, Decimal("1.1"), None)]).batch())) == [
        ("money", "list")
    ]


def test_what_would_be_another_value_is_a_reject(users: Collection) -> None:
    fields = (Field("t", Type("timestamp")), Field("n", Type("decimal", 38, 10)), Field("j", Type("json")))
    rows: list[Row] = [
        ("a", datetime(2026, 1, 1, 0, 0, 0, 1), None, None),
        ("b", None, Decimal("9999999999999999999999999999.9999999999"), None),
        ("c", None, None, "12345678901234567890123456789012345"),
        ("d", None, None, "[" * 100 + "]" * 100),
        ("e", None, None, '"\\ud800"'),
        ("f", None, None, '{"a\\u0000b":1}'),
        ("g", None, None, f'"{"x" * (16 << 20)}"'),
        ("\ud800", None, None, None),
        ("x" * (9 << 20), None, None, f'"{"x" * (8 << 20)}"'),
        ("h", datetime(2026, 1, 1), Decimal("1.5"), "null"),
    ]
    codes = ["NOT_EXACT"] * 3 + [
        "TOO_DEEP",
        "NOT_UNICODE",
        "NUL_IN_NAME",
        "TOO_LARGE",
        "NOT_UNICODE",
        "TOO_LARGE",
        None,
    ]
    destination = users.ready(replace(SHAPE, fields=fields))
    assert [one.code for one in results(destination, rows)] == codes
    (held,) = users.rows()
    assert (held["_id"], held["j"]) == ("h", None)
    exact = users.ready(replace(SHAPE, fields=fields[:1]), times="text")
    results(exact, [("i", datetime(2026, 1, 1, 0, 0, 0, 1))])
    assert users.rows()[1]["t"] == "2026-01-01T00:00:00.000001Z"


def test_an_empty_field_is_not_in_the_document_and_a_null_of_json_is(users: Collection) -> None:
    destination = users.ready(replace(SHAPE, fields=(Field("data", Type("json")), Field("name", STRING))))
    rows: list[Row] = [("a", "null", None), ("b", None, None)]
    results(destination, [(row[0], "1", "x") for row in rows])
    results(destination, rows, run="run-2")
    assert users.rows() == [{"_id": "a", "data": None}, {"_id": "b"}]
    assert list(destination.differing(Rows(destination.shape, rows).batch())) == [(), ()]
    assert list(destination.read(Rows(destination.shape, rows[1:]).batch())) == [{"data": None, "name": None}]


def test_a_key_of_two_columns_is_an_embedded_document_in_their_order(users: Collection) -> None:
    shape = replace(SHAPE, key=(Field("n", Type("decimal", 9, 2)), Field("day", Type("date"))))
    destination = users.ready(shape)
    rows: list[Row] = [(Decimal("1.10"), date(2026, 11, 28), "a", None, 1)]
    results(destination, rows)
    (held,) = users.rows()
    assert list(held["_id"]) == ["n", "day"]
    other = {"day": held["_id"]["day"], "n": held["_id"]["n"]}  # in another order it is another key
    users.command("insert", documents=[{"_id": other}, {"_id": {**held["_id"], "more": 1}}])
    assert list(destination.scan()) == [("1.10", "2026-11-28")]
    assert list(destination.differing(Rows(shape, rows).batch())) == [()]
    results(destination, rows, "delete")
    assert len(users.rows()) == 2


def test_a_key_in_fields_needs_a_unique_index_on_exactly_them(users: Collection) -> None:
    shape = replace(SHAPE, key=(Field("org", STRING), Field("id", Type("integer"))))
    rows: list[Row] = [("x", 1, "a", None, 1), ("x", 2, "b", None, 2)]
    users.command("create")
    users.command("createIndexes", indexes=[{"key": {"org": 1}, "name": "org_1", "unique": True}])
    with pytest.raises(Mismatch, match=r"no unique index") as caught:
        users.make(shape, by="fields", create=False).check(VISIT)
    assert (caught.value.code, "org: 1, id: 1" in str(caught.value.hint)) == ("NO_UNIQUE_INDEX", True)
    users.command("drop")
    destination = users.ready(shape, by="fields")
    assert kinds(results(destination, rows)) == [Kind.WRITTEN] * 2
    assert kinds(results(destination, rows, run="run-2")) == [Kind.WRITTEN] * 2
    assert [(one["org"], one["id"], one["name"]) for one in users.server.documents(users.name)] == [
        ("x", 1, "a"),
        ("x", 2, "b"),
    ]
    assert list(destination.differing(Rows(shape, [rows[1], rows[0]]).batch())) == [(), ()]
    users.make(shape, by="fields", create=False).check(VISIT)


def test_a_key_that_others_insert_at_the_same_time_goes_again_whatever_the_order_of_its_index(
    users: Collection,
) -> None:
    """A conflict of two upserts is nobody's fault: the next attempt finds the document."""
    if users.server.real:
        return
    shape = replace(SHAPE, key=(Field("org", STRING), Field("id", Type("integer"))))
    users.command("create")
    index = {"key": {"id": 1, "org": 1}, "name": "id_org", "unique": True}
    users.command("createIndexes", indexes=[index])
    destination = users.ready(shape, by="fields", transactions=False)
    refused = {"index": 0, "code": 11000, "errmsg": "E11000", "keyPattern": {"id": 1, "org": 1}}
    users.server.faults.append(("update", {"n": 0, "nModified": 0, "writeErrors": [refused]}))
    rows: list[Row] = [("x", 1, "a", None, 1)]
    assert kinds(results(destination, rows)) == [Kind.RETRY]
    assert kinds(results(destination, rows)) == [Kind.WRITTEN]


def test_two_documents_with_one_key_can_have_no_index(users: Collection) -> None:
    users.command("insert", documents=[{"_id": 1, "id": "a"}, {"_id": 2, "id": "a"}])
    with pytest.raises(Mismatch, match="same key"):
        users.ready(by="fields")


def test_numbers_of_others_are_the_same_key_whatever_their_type(users: Collection) -> None:
    shape = replace(SHAPE, key=(Field("id", Type("integer")),))
    users.command("insert", documents=[{"_id": 5.0, "name": "theirs", "visits": 1}, {"_id": "text"}])
    destination = users.ready(shape)
    asked = Rows(shape, [(5, "theirs", None, 1), (6, "x", None, 1)]).batch()
    assert list(destination.differing(asked)) == [("visits",), None]  # an int32 is no int64
    results(destination, [(5, "theirs", None, 1)])
    assert list(destination.differing(asked)) == [(), None]
    assert sorted(destination.scan()) == [("5.0",), ("text",)]


def test_soft_deletes_set_their_fields_and_make_nothing(users: Collection) -> None:
    shape = replace(SHAPE, deletes=SoftDelete({"visits": -1, "gone": True}))
    destination = users.ready(shape)
    results(destination, sample(2))
    results(destination, [("k0",), ("k7",)], "delete")
    assert [(row["visits"], row.get("gone")) for row in users.rows()] == [(-1, True), (1, None)]


def test_appended_rows_are_documents_of_their_own_with_an_id_made_of_run_and_row(users: Collection) -> None:
    shape = replace(SHAPE, write="append", deletes="keep")
    destination = users.ready(shape)
    for run in ("run-1", "run-1", "run-2"):  # the second one is the same batch
        results(destination, sample(2), "append", run)
    rows = users.rows()
    assert sorted(row["id"] for row in rows) == ["k0", "k0", "k1", "k1"]
    assert len({row["_id"] for row in rows}) == 4
    shown = destination.preview(batch(1, "append", shape))
    assert any(row["_id"].encode() in shown for row in rows)
    assert not destination.capabilities.idempotent


# transactions, marks and the fence


def test_a_lost_answer_to_a_commit_is_found_by_the_mark(users: Collection) -> None:
    destination = users.ready()
    users.server.faults += [("commitTransaction", "lost")] * 2  # the client asks once more by itself
    if not users.server.real:
        with pytest.raises(Ambiguous):
            destination.write(batch())
        assert destination.resolve(batch(), None, act=False) == Outcome(RowResult(Kind.WRITTEN))
        assert destination.resolve(batch(), None) == Outcome(RowResult(Kind.WRITTEN))
    assert destination.write(batch()) == Outcome(RowResult(Kind.WRITTEN))
    assert len(users.rows()) == 3


def test_a_commit_that_never_came_can_never_come_later(users: Collection) -> None:
    destination = users.ready()
    users.server.faults += [("commitTransaction", "unsent")] * 2
    if users.server.real:
        return
    with pytest.raises(Ambiguous):
        destination.write(batch())
    users.server.store.expire()
    assert destination.resolve(batch(), None).default.kind is Kind.RETRY
    assert users.rows() == []
    other = users.make()
    with pytest.raises(Systemic, match="newer run"):  # the lane that did not give it up
        other.write(batch())
    assert kinds(results(destination, sample(3))) == [Kind.WRITTEN] * 3


def test_who_asks_for_a_batch_waits_for_its_commit(users: Collection) -> None:
    destination, asks = users.ready(), users.make()
    if users.server.real:
        return
    users.server.release.clear()
    users.server.faults.append(("commitTransaction", "waits"))
    written = list[Outcome]()
    writer = threading.Thread(target=lambda: written.append(destination.write(batch())))
    writer.start()
    while users.server.faults:
        time.sleep(0.01)
    threading.Timer(0.2, users.server.release.set).start()
    assert asks.resolve(batch(), None) == Outcome(RowResult(Kind.WRITTEN))
    writer.join()
    assert written == [Outcome(RowResult(Kind.WRITTEN))]


def test_rejects_are_in_the_mark(users: Collection) -> None:
    shape = replace(SHAPE, fields=(Field("t", Type("timestamp")),))
    destination = users.ready(shape)
    rows = Rows(shape, [("a", datetime(2026, 1, 1)), ("b", datetime(2026, 1, 1, 0, 0, 0, 1))]).batch()
    first = destination.write(rows)
    assert first.result(1).code == "NOT_EXACT"
    assert users.make(shape).resolve(rows, None) == first


def test_every_transaction_is_confirmed_by_most_members_on_disk(users: Collection) -> None:
    users.ready().write(batch())
    if not users.server.real:
        commits = [one for one in users.server.commands if "commitTransaction" in one]
        assert [one["writeConcern"] for one in commits] == [{"w": "majority", "j": True}]
    users.server.commands.clear()
    users.ready(transactions=False).write(batch())
    updates = [one for one in users.server.commands if "update" in one and len(one["updates"]) == 3]
    assert all((one["writeConcern"]["w"], one["writeConcern"]["j"]) == ("majority", True) for one in updates)


@BOTH
def test_what_most_members_have_not_confirmed_is_in_doubt(users: Collection, transactions: bool) -> None:
    destination = users.ready(transactions=transactions)
    if users.server.real:
        return
    users.server.faults.append(("commitTransaction" if transactions else "update", "alone"))
    with pytest.raises(Ambiguous):
        destination.write(batch())
    if transactions:
        users.server.faults += [("find", "stale")] * 2
        with pytest.raises(Ambiguous, match="most members do not yet"):
            destination.resolve(batch(), None)
        with pytest.raises(Ambiguous, match="most members do not yet"):
            destination.write(batch())
    expected = Kind.WRITTEN if transactions else Kind.UNKNOWN
    assert destination.resolve(batch(), None).default.kind is expected
    assert kinds(results(destination, sample(3))) == [Kind.WRITTEN] * 3


def test_an_older_run_and_a_ledger_that_was_relieved_write_nothing_more(users: Collection) -> None:
    older = users.ready(visit=Visit("run-1", 1))
    users.ready(visit=Visit("run-2", 2))
    newer = Rows(SHAPE, sample(1)).batch(run_id="run-2")
    with pytest.raises(Systemic, match="newer run"):
        older.prepare(Visit("run-1", 1))
    users.made[1].write(replace(newer, epoch=2))
    with pytest.raises(Systemic, match="newer run"):
        older.write(batch())
    theirs = users.ready(replace(SHAPE, state_id="state-2"), Visit("run-9", 1))
    with pytest.raises(Systemic, match="newer run"):
        users.made[1].write(replace(batch(run="run-3"), epoch=2))
    theirs.write(batch(run="run-9"))
    trace = users.make().check(Visit("run-4", 3))
    assert trace is not None
    assert (trace.taken, trace.strangers, trace.epoch) == (True, False, 2)
    strange = users.make(replace(SHAPE, state_id="state-3")).check(VISIT)
    assert strange is not None
    assert (strange.taken, strange.strangers) == (False, True)


def test_appending_syncs_do_not_relieve_each_other(users: Collection) -> None:
    shape = replace(SHAPE, write="append", deletes="keep")
    one, other = users.ready(shape), users.ready(replace(shape, sync="other"))
    for destination, run in ((one, "run-1"), (other, "run-2"), (one, "run-3")):
        assert kinds(results(destination, sample(2), "append", run)) == [Kind.WRITTEN] * 2
    trace = one.check(VISIT)
    assert trace is not None
    assert trace.foreign == {"run-2"}
    assert not trace.taken


def test_an_append_whose_collection_is_empty_lost_its_rows(users: Collection) -> None:
    shape = replace(SHAPE, write="append", deletes="keep")
    destination = users.ready(shape)
    unfit: list[Row] = [("k9", "name", Decimal("9" * 40), 9)]  # more digits than MongoDB holds: a reject
    for run, rows in (("run-1", sample(2)), ("run-2", unfit)):
        results(destination, rows, "append", run)
    before = users.make(shape).check(VISIT)
    users.command("delete", deletes=[{"q": {}, "limit": 0}])
    after = users.make(shape).check(VISIT)
    assert before is not None
    assert after is not None
    assert len(before.batches) == 2
    assert (before.replaced, after.batches) == (frozenset(), before.batches)
    assert {run for run, _ in after.replaced} == {"run-1"}


def test_a_collection_that_was_made_again_is_noticed_and_old_marks_go(users: Collection) -> None:
    destination = users.ready()
    destination.write(batch())
    trace = users.make().check(VISIT)
    assert trace is not None
    assert trace.batches == {("run-1", batch().id)}
    assert (trace.replaced, trace.epoch) == (frozenset(), 1)
    marks = [one for one in users.server.documents("retl_applied") if one["object"] == users.name]
    assert {len(bytes.fromhex(one["storage"])) for one in marks} == {16}
    users.command("drop")
    users.command("create")
    again = users.make().check(VISIT)
    assert again is not None
    assert again.replaced == {("run-1", batch().id)}
    users.ready(visit=Visit("run-2", 2, frozenset({"run-1"})))
    users.ready(visit=Visit("run-3", 3))
    after = users.make().check(VISIT)
    assert after is not None
    assert after.batches == frozenset()


@BOTH
@pytest.mark.parametrize("code", [10107, 189, 11600, 91])
def test_a_primary_that_goes_is_tried_again(users: Collection, transactions: bool, code: int) -> None:
    destination = users.ready(transactions=transactions)
    users.server.faults.append(("update", code))
    if not users.server.real:
        with pytest.raises((Unavailable, Ambiguous)) as caught:
            destination.write(batch())
        lost = not transactions and code != 10107
        assert isinstance(caught.value, Ambiguous if lost else Unavailable)
    assert users.rows() == []
    assert kinds(results(destination, sample(3))) == [Kind.WRITTEN] * 3


def test_a_conflict_with_another_transaction_is_tried_again(users: Collection) -> None:
    destination = users.ready()
    results(destination, sample(1))
    with users.server.client() as client, client.start_session() as session:
        session.start_transaction()
        client[DATABASE][users.name].update_one({"_id": "k0"}, {"$set": {"x": 1}}, session=session)
        with pytest.raises(Unavailable, match="others write"):
            destination.write(batch(run="run-2"))
        session.commit_transaction()
    assert kinds(results(destination, sample(3), run="run-2")) == [Kind.WRITTEN] * 3


def test_a_server_without_transactions_is_refused_unless_they_are_off(users: Collection) -> None:
    if users.server.real:
        return
    users.server.standalone = True
    try:
        with pytest.raises(Systemic) as caught:
            users.make().check(VISIT)
        assert (caught.value.code, "transactions: false" in str(caught.value.hint)) == (
            "NO_TRANSACTIONS",
            True,
        )
        destination = users.ready(transactions=False)
        assert kinds(results(destination, sample(3))) == [Kind.WRITTEN] * 3
        assert destination.resolve(batch(), None).default.kind is Kind.UNKNOWN
        assert not destination.capabilities.resolves
        assert "append" not in destination.capabilities.modes
    finally:
        users.server.standalone = False


# what does not fit


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"capped": True, "size": 4096}, "capped"),
        ({"collation": {"locale": "en", "strength": 2}}, "collation"),
    ],
)
def test_collections_that_lose_or_mix_documents_are_refused(
    users: Collection, options: dict[str, Any], words: str
) -> None:
    users.command("create", **options)
    with pytest.raises(Mismatch, match=words):
        users.make().check(VISIT)


def test_a_missing_collection_is_a_mismatch_and_one_that_goes_an_error(users: Collection) -> None:
    with pytest.raises(Mismatch, match="no collection"):
        users.make(create=False).check(VISIT)
    for transactions in (True, False):
        with pytest.raises(Systemic, match="no collection"):
            users.make(create=False, transactions=transactions).write(batch())


def test_a_check_leaves_no_document(users: Collection) -> None:
    users.command("create")
    for transactions in (True, False):
        users.make(transactions=transactions).check(VISIT)
    assert users.rows() == []


@pytest.mark.parametrize("name", ["_id", "$set", "a.b", "", "a\0b"])
def test_names_with_a_meaning_of_their_own_are_refused(users: Collection, name: str) -> None:
    with pytest.raises(DefinitionError, match="no field of a document"):
        users.make(replace(SHAPE, fields=(Field(name, STRING),)))


def test_keys_and_updates_that_cannot_be_are_refused(users: Collection) -> None:
    with pytest.raises(DefinitionError, match="texts, uuids"):
        users.make(replace(SHAPE, key=(Field("id", Type("float")),)))
    with pytest.raises(DefinitionError, match="needs a field"):
        users.make(replace(SHAPE, write="update_only", fields=()))


def test_a_row_without_fields_is_a_document_of_its_key(users: Collection) -> None:
    for by in ("_id", "fields"):
        destination = users.ready(replace(SHAPE, fields=()), by=by)
        assert kinds(results(destination, [(by,)], run=by)) == [Kind.WRITTEN]
    assert [row.get("id") for row in users.rows()].count("fields") == 1


def test_a_batch_that_is_too_large_for_a_transaction_is_halved(users: Collection) -> None:
    destination = users.ready()
    rows: list[Row] = [(f"k{n}", "x" * (12 << 20), None, n) for n in range(6)]
    with pytest.raises(Poisoned):
        destination.write(Rows(SHAPE, rows).batch())
    assert users.rows() == []


def test_a_run_that_was_asked_to_stop_sends_no_other_request(users: Collection) -> None:
    destination = users.ready()
    destination.interrupt()
    with pytest.raises(Unavailable):
        destination.write(batch())
    assert users.rows() == []


# connections


def connection(**parts: Any) -> MongoDBConnection:
    return MongoDBConnection.model_validate(parts)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({}, "either"),
        ({"url": "mongodb://h/d", "hosts": "h"}, "either"),
        ({"url": "http://h/d"}, "must look like"),
        ({"url": "mongodb://h"}, "name the `database`"),
        ({"hosts": "h"}, "`database` is missing"),
        ({"hosts": "h", "database": "d", "user": "u"}, "belong together"),
        ({"url": "mongodb://h/d?readPreference=nearest"}, "readpreference"),
        ({"url": "mongodb://h/d", "replica_set": "r"}, "holds the account"),
    ],
)
def test_a_connection_that_cannot_be_is_refused(parts: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        connection(**parts)


def test_a_place_is_the_same_however_its_servers_are_written() -> None:
    written = (
        {"url": "mongodb+srv://u:secret@B.example.com,a.example.com:27017/d?retryWrites=true&w=majority"},
        {
            "hosts": ["a.example.com", "b.example.com:27017"],
            "database": "d",
            "user": "x",
            "password": "secret",
        },
    )
    places = set()
    for one in written:
        options = MongoDBOptions.model_validate({"connection": one, "collection": "users"})
        places.add(MongoDB.place(options, "upsert"))
        assert "secret" not in repr(options)
    assert places == {"mongodb:a.example.com:27017,b.example.com:27017/d.users"}


def test_another_machine_is_spoken_to_with_tls_unless_that_is_allowed() -> None:
    parts = {"hosts": "db.example.com", "database": "d"}
    assert connection(**parts).keywords()["tls"] is True
    assert connection(**parts, allow_plaintext=True).keywords()["tls"] is False
    assert connection(hosts="[::1]:27018", database="d").keywords()["tls"] is False
    assert connection(url="mongodb://db.example.com/d?tls=false").keywords()["tls"] is True


def test_a_database_by_parts_is_reached_with_an_account(users: Collection) -> None:
    user, password = users.server.writer
    server = f"{users.server.host}:{users.server.port}"
    parts = {"hosts": server, "database": DATABASE, "user": user, "password": password, "timeout": 2}
    assert kinds(results(users.ready(connection=parts), sample(2))) == [Kind.WRITTEN] * 2
    assert len(users.rows()) == 2
