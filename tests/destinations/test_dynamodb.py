"""DynamoDB passes the suite on moto, and keeps the promises that are its alone."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from msgspec.structs import replace
from pydantic import ValidationError

from retl.destinations.batch import ABSENT, PRESENT, Batch, Field, Kind, Mode, Shape, Visit, WriteMode
from retl.destinations.dynamodb import adapter, items
from retl.destinations.dynamodb.adapter import DynamoDB, DynamoDBOptions
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
    told,
)
from tests.dynamodb import REGION, Aws, plain
from tests.proxy import Proxy

SHAPE = Shape("suite", "state-1", (Field("id", STRING),), FIELDS, "upsert", "delete")


class DynamoDBTarget(Target):
    """A table of its own, reached through a proxy."""

    type = "dynamodb"
    counts_all = False

    def __init__(self, server: Aws, proxy: Proxy, item: str = "merge") -> None:
        self.server, self.proxy, self.item = server, proxy, item
        self.shape, self.table, self.account = SHAPE, f"users-{secrets.token_hex(6)}", server.writer
        self.commit = b"ClientRequestToken" if item == "merge" else b"BatchWriteItem"

    def make(self, shape: Shape, *, secret: str | None = None, **options: Any) -> DynamoDB:
        self.shape = shape
        user, password = self.account
        connection = {
            "region": REGION,
            "endpoint": f"http://{self.proxy.host}:{self.proxy.port}",
            "access_key_id": user,
            "secret_access_key": secret or password,
            "timeout": 1,
            "connect_timeout": 1,
        }
        made = {"connection": connection, "table": self.table, "item": self.item, "create": True}
        return DynamoDB(DynamoDBOptions.model_validate(made | options), shape)

    def contents(self) -> Contents:
        found: Contents = {}
        for row in self.server.rows(self.table):
            key = tuple(row.pop(field.name) for field in self.shape.key)
            found[key] = {field.name: plain(row.get(field.name)) for field in self.shape.fields}
        return found

    def poison(self, row: Row) -> Row:
        return (row[0], row[1] + "x" * 410_000, *row[2:])

    def forbid(self) -> None:
        self.account = self.server.reader

    def annotate(self, key: Row) -> Callable[[], bool] | None:
        if self.item == "whole":
            return None
        client = self.server.client()
        client.update_item(
            TableName=self.table,
            Key={"id": {"S": key[0]}},
            UpdateExpression="SET theirs = :t",
            ExpressionAttributeValues={":t": {"S": "here"}},
        )
        return lambda: "here" in [row.get("theirs") for row in self.server.rows(self.table)]


@pytest.fixture
def proxy(dynamodb: Aws) -> Iterator[Proxy]:
    with Proxy(dynamodb.host, dynamodb.port) as proxy:
        yield proxy


class TestMerge(Suite):
    @pytest.fixture
    def target(self, dynamodb: Aws, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> DynamoDBTarget:
        monkeypatch.setattr(adapter, "BATCH_ROWS", 20)  # moto copies the table for each transaction
        return DynamoDBTarget(dynamodb, proxy)


class TestWhole(Suite):
    @pytest.fixture
    def target(self, dynamodb: Aws, proxy: Proxy) -> DynamoDBTarget:
        return DynamoDBTarget(dynamodb, proxy, "whole")


# what no suite asks for


class Table:
    """A table of the test, reached directly."""

    def __init__(self, server: Aws) -> None:
        self.server, self.name = server, f"users-{secrets.token_hex(6)}"

    def make(self, shape: Shape = SHAPE, **options: Any) -> DynamoDB:
        user, secret = self.server.writer
        keys = {"access_key_id": user, "secret_access_key": secret}
        connection = {"region": REGION, "endpoint": self.server.url, **keys}
        made = {"connection": connection, "table": self.name, "create": True} | options
        return DynamoDB(DynamoDBOptions.model_validate(made), shape)

    def ready(self, shape: Shape = SHAPE, **options: Any) -> DynamoDB:
        made = self.make(shape, **options)
        made.check(VISIT)
        made.prepare(VISIT)
        return made

    def create(self, keys: dict[str, str]) -> None:
        """Somebody else makes it."""
        roles = zip(keys, ("HASH", "RANGE"), strict=False)
        defined = [{"AttributeName": n, "AttributeType": kind} for n, kind in keys.items()]
        self.server.client().create_table(
            TableName=self.name,
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=defined,
            KeySchema=[{"AttributeName": name, "KeyType": role} for name, role in roles],
        )

    def rows(self) -> list[dict[str, Any]]:
        return sorted(self.server.rows(self.name), key=str)


@pytest.fixture
def table(dynamodb: Aws) -> Table:
    dynamodb.bodies.clear()
    return Table(dynamodb)


def batch(count: int = 3, mode: Mode = "upsert", shape: Shape = SHAPE) -> Batch:
    return Rows(shape, sample(count)).batch(mode)


def results(destination: DynamoDB, rows: list[Row], mode: Mode = "upsert", run: str = "run-1") -> list[Any]:
    return deliver(destination, Rows(destination.shape, rows).batch(mode, run_id=run))


def with_write(write: WriteMode) -> Shape:
    return replace(SHAPE, write=write)


def test_conditions_are_tested_by_dynamodb_and_the_others_of_a_transaction_arrive(table: Table) -> None:
    results(table.ready(), sample(2))
    changed: list[Row] = [("k1", "other", None, 7), ("k9", "new", None, 9)]
    assert results(table.ready(with_write("update_only")), changed, "update_only")[1] == ABSENT
    assert [row["id"] for row in table.rows()] == ["k0", "k1"]
    inserted = results(table.ready(with_write("insert_only")), changed, "insert_only", "run-2")
    assert inserted[0] == PRESENT
    assert [row["id"] for row in table.rows()] == ["k0", "k1", "k9"]
    assert [row["name"] for row in table.rows()] == ["name 0", "other", "new"]


def test_a_request_that_is_sent_again_has_the_same_token_and_bytes(table: Table) -> None:
    destination = table.ready()
    table.server.bodies.clear()
    for _ in range(2):
        destination.write(batch())
    first, second = table.server.bodies
    assert first == second == destination.preview(batch())
    assert json.loads(first)["ClientRequestToken"]


def test_a_preview_is_what_is_sent_whole_and_to_delete(table: Table) -> None:
    destination = table.ready(item="whole")
    for one in (batch(60), batch(60, "delete")):
        table.server.bodies.clear()
        destination.write(one)
        assert destination.preview(one).split(b"\n") == table.server.bodies
        assert len(table.server.bodies) == 3
    assert table.rows() == []


def test_whole_items_lose_what_others_added_and_merged_ones_keep_it(table: Table) -> None:
    results(table.ready(), sample(1))
    add = {":t": {"S": "here"}}
    table.server.client().update_item(
        TableName=table.name,
        Key={"id": {"S": "k0"}},
        UpdateExpression="SET theirs = :t",
        ExpressionAttributeValues=add,
    )
    results(table.ready(), [("k0", "n", None, 1)])
    assert table.rows() == [{"id": "k0", "name": "n", "visits": 1, "theirs": "here"}]
    results(table.ready(item="whole"), [("k0", "n", None, 1)])
    assert table.rows() == [{"id": "k0", "name": "n", "visits": 1}]


def test_what_stays_unprocessed_or_is_throttled_may_go_again(table: Table) -> None:
    destination = table.ready(item="whole")
    table.server.faults = ["unprocessed"]
    assert kinds(results(destination, sample(3))) == [Kind.RETRY, Kind.WRITTEN, Kind.WRITTEN]
    table.server.faults = ["unprocessed"]
    with pytest.raises(Unavailable):
        destination.write(batch(1))
    table.server.faults = ["", "ProvisionedThroughputExceededException"]
    assert kinds(results(destination, sample(30))) == [Kind.WRITTEN] * 25 + [Kind.RETRY] * 5
    for code in ("ThrottlingException", "RequestLimitExceeded", "ProvisionedThroughputExceededException"):
        table.server.faults = [code]
        with pytest.raises(Unavailable):
            destination.write(batch())
    assert kinds(results(destination, sample(30))) == [Kind.WRITTEN] * 30
    assert len(table.rows()) == 30


def test_errors_are_what_they_are(table: Table) -> None:
    destination = table.ready()
    for code, kind in {
        "InternalServerError": Systemic,
        "TransactionInProgressException": Ambiguous,
        "ValidationException": Poisoned,
        "AccessDeniedException": Systemic,
        "ExpiredTokenException": Systemic,
        "ResourceNotFoundException": Systemic,
        "IdempotentParameterMismatchException": Systemic,
    }.items():
        table.server.faults = [code]
        with pytest.raises(kind) as caught:
            results(
                destination, [(CANARY, CANARY, None, 1), ("b", "b", None, 1)]
            ) if kind is not Poisoned else (destination.write(batch()))
        assert CANARY not in told(caught.value)
    assert table.rows() == []


def test_a_row_that_dynamodb_refuses_costs_only_itself(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table.server, "refused", {"b"})
    for item in ("merge", "whole"):
        destination = table.ready(item=item)
        found = results(destination, [("a", "x", None, 1), ("b", CANARY, None, 2), ("c", None, None, 3)])
        assert CANARY not in str(found[1])
        assert kinds(found) == [Kind.WRITTEN, Kind.REJECTED, Kind.WRITTEN]
        assert found[1].code == "ITEM_REFUSED"
        assert [row["id"] for row in table.rows()] == ["a", "c"]


def test_numbers_keep_38_digits_and_others_are_refused(table: Table) -> None:
    fields = (
        Field("exact", Type("decimal", 38, 10)),
        Field("real", Type("float")),
        Field("data", Type("json")),
    )
    destination = table.ready(replace(SHAPE, fields=fields))
    most = Decimal("9999999999999999999999999999.9999999999")
    rows: list[Row] = [
        ("a", most, 0.1, "[1.10, 12345678901234567890123456789012345678]"),
        ("b", Decimal("1E-10"), -0.0, None),
        ("c", None, 1e300, None),
        ("d", None, 5e-324, None),
        ("e", None, None, "[123456789012345678901234567890123456789]"),
        ("f", None, 1e125, "1e-130"),
        ("g", None, None, '"\\ud800"'),
    ]
    found = results(destination, rows)
    refused = [one.code for one in found]
    assert refused == [None, "NOT_EXACT", "NOT_EXACT", "NOT_EXACT", "NOT_EXACT", None, "NOT_UNICODE"]
    a, f = table.rows()
    assert (a["exact"], a["real"]) == (most, Decimal("0.1"))
    assert a["data"] == [Decimal("1.1"), Decimal("12345678901234567890123456789012345678")]
    assert (f["real"], f["data"]) == (Decimal("1e125"), Decimal("1e-130"))


def test_a_key_of_two_columns_is_a_partition_and_a_sort_key(table: Table) -> None:
    shape = replace(SHAPE, key=(Field("n", Type("decimal", 9, 2)), Field("day", Type("date"))))
    destination = table.ready(shape)
    rows: list[Row] = [(Decimal("1.10"), date(2026, 11, 28), "a", None, 1)]
    assert kinds(results(destination, rows)) == [Kind.WRITTEN]
    (row,) = table.rows()
    assert (row["n"], row["day"]) == (Decimal("1.1"), "2026-11-28")
    assert list(destination.scan()) == [("1.10", "2026-11-28")]
    assert list(destination.differing(Rows(shape, rows).batch())) == [()]
    assert kinds(results(destination, rows, "delete")) == [Kind.WRITTEN]
    assert table.rows() == []


def test_keys_that_no_item_can_have_are_rejects(table: Table) -> None:
    rows: list[Row] = [
        ("", "a", None, 1),
        ("x" * 2049, "b", None, 2),
        ("\ud800", "c", None, 3),
        ("d", "d", None, 4),
    ]
    destination = table.ready()
    assert [one.code for one in results(destination, rows)] == [
        "KEY_EMPTY",
        "KEY_TOO_LONG",
        "NOT_UNICODE",
        None,
    ]
    assert [one is None for one in destination.read(Rows(SHAPE, rows).batch())] == [True, True, True, False]


def test_a_row_without_fields_or_values_is_an_item_of_its_key(table: Table) -> None:
    for shape, rows in (
        (replace(SHAPE, fields=()), [("a",)]),
        (SHAPE, [("b", None, None, None)]),
    ):
        assert kinds(results(table.ready(shape), rows)) == [Kind.WRITTEN]
    assert table.rows() == [{"id": "a"}, {"id": "b"}]


def test_a_transaction_has_no_more_than_fits(table: Table) -> None:
    destination = table.ready()
    rows: list[Row] = [(f"k{n}", "x" * 300_000, None, n) for n in range(25)]
    assert set(kinds(results(destination, rows))) == {Kind.WRITTEN}
    sizes = [len(body) for body in table.server.bodies if b"ClientRequestToken" in body]
    assert max(sizes) < 4 << 20
    assert len(table.rows()) == 25


def test_a_value_is_told_from_another_of_the_same_look(table: Table) -> None:
    fields = (Field("data", Type("json")),)
    destination = table.ready(replace(SHAPE, fields=fields))
    results(destination, [("a", '{"x":[1,true]}'), ("b", "1"), ("c", "null")])
    asked = Rows(destination.shape, [("a", '{"x":[true,1]}'), ("b", '"1"'), ("c", "null"), ("d", "1e300")])
    assert list(destination.differing(asked.batch())) == [("data",), ("data",), (), None]


def test_a_table_that_nobody_makes_or_with_another_key_is_a_mismatch(table: Table) -> None:
    with pytest.raises(Mismatch, match="no table"):
        table.make(create=False).check(VISIT)
    table.create({"id": "N"})
    with pytest.raises(Mismatch, match=r"id \(N\)"):
        table.make().check(VISIT)
    with pytest.raises(Mismatch, match="key of the table"):
        table.make(replace(SHAPE, key=(Field("user", STRING),))).check(VISIT)


def test_a_run_that_was_asked_to_stop_sends_no_other_request(table: Table) -> None:
    destination = table.ready()
    destination.interrupt()
    with pytest.raises(Unavailable):
        destination.write(batch())
    assert table.rows() == []


def test_a_check_leaves_no_item(table: Table) -> None:
    table.ready()
    table.ready(item="whole")
    table.make().check(Visit("run-2", 2))
    assert table.rows() == []


def test_whole_items_and_keys_that_do_not_fit_are_refused(table: Table) -> None:
    assert "insert_only" not in table.make(item="whole").capabilities.modes
    for key in ((Field("id", Type("boolean")),), tuple(Field(name, STRING) for name in "abc")):
        with pytest.raises(DefinitionError, match="one or two columns"):
            table.make(replace(SHAPE, key=key))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"table": "a b c"}, "3 to 255"),
        ({"connection": {"region": "x", "access_key_id": "a"}}, "belong together"),
        ({"connection": {"region": "x", "session_token": "a"}}, "belongs to an"),
        (
            {
                "connection": {
                    "region": "x",
                    "profile": "p",
                    "access_key_id": "a",
                    "secret_access_key": "b",
                }
            },
            "is not beside it",
        ),
        ({"connection": {"region": "x", "endpoint": "http://example.com"}}, "must be https"),
        ({"connection": {"region": "x", "endpoint": "ftp://example.com"}}, "must look like"),
        ({"connection": {"region": "x", "allow_plaintext": True}}, "is for an `endpoint`"),
        ({"connection": {}}, "region"),
        ({"item": "part"}, "merge"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        DynamoDBOptions.model_validate({"connection": {"region": "x"}, "table": "users"} | options)


def test_a_place_is_the_region_and_the_table_and_never_a_secret() -> None:
    connection = {"region": "eu-central-1", "access_key_id": "a", "secret_access_key": "s"}
    options = DynamoDBOptions.model_validate({"connection": connection, "table": "users"})
    assert DynamoDB.place(options, "upsert") == "dynamodb:eu-central-1/users"
    local = {"connection": connection | {"endpoint": "http://127.0.0.1:8000"}, "table": "users"}
    assert (
        DynamoDB.place(DynamoDBOptions.model_validate(local), "upsert")
        == "dynamodb:127.0.0.1:8000/eu-central-1/users"
    )


@pytest.mark.parametrize("host", ["dynamodb", "dynamodb-fips", "DynamoDB"])
def test_a_table_has_one_place_however_the_address_of_its_region_is_written(host: str) -> None:
    written = {"region": "eu-central-1", "endpoint": f"https://{host}.eu-central-1.amazonaws.com/"}
    options = DynamoDBOptions.model_validate({"connection": written, "table": "users"})
    assert DynamoDB.place(options, "upsert") == "dynamodb:eu-central-1/users"


@pytest.mark.parametrize("text", ["100", "1E+2", "1e2", "100.00"])
def test_a_key_is_found_however_an_answer_writes_its_number(text: str) -> None:
    shape = replace(SHAPE, key=(Field("n", Type("decimal", 9, 2)),))
    assert items.key_in(shape, {"n": {"N": text}}) == items.key_of(shape, (Decimal("100.00"),))


def test_without_any_account_it_stops(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    for more in ({}, {"profile": "nobody"}):
        connection = {"region": REGION, "endpoint": table.server.url} | more
        with pytest.raises(Systemic) as caught:
            table.make(connection=connection).check(VISIT)
        assert caught.value.code == "AWS_LOGIN"
