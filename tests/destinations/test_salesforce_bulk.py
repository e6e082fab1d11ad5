"""The promises over Salesforce's bulk jobs: upserts, and inserts that happen once."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from retl.app.resolve import open_project
from retl.destinations.api import Destination
from retl.destinations.batch import Field, Kind, Mode, RowResult, Shape, SoftDelete, WriteMode
from retl.destinations.salesforce_bulk import adapter
from retl.destinations.salesforce_bulk.adapter import SalesforceBulk
from retl.errors import Mismatch
from retl.values.types import Type
from tests import api as fake
from tests import delivered
from tests.api import TOKEN
from tests.delivered import Prove
from tests.destinations.rows import Row, Rows
from tests.destinations.suite import CANARY, VISIT, Contents, Suite, Target, kinds, results
from tests.presets.proof import EVIDENCE, lines, passed
from tests.proxy import Proxy
from tests.salesforce import Org

TEXTS = ("string", "uuid", "date", "timestamp", "timestamptz")


class BulkTarget(Target):
    type = "salesforce_bulk"
    commit = b'"UploadComplete"'

    def __init__(self, org: Org, proxy: Proxy) -> None:
        self.org, self.proxy = org, proxy

    def make(self, shape: Shape, *, secret: str | None = None) -> Destination[Any]:
        self.shape = shape
        self.org.fields = {"id", "theirs", *(field.name for field in shape.fields)}
        connection = SalesforceBulk.Connection.model_validate(
            {
                "client_id": "me",
                "client_secret": secret or TOKEN,
                "domain": "example.my.salesforce.com",
                "base_url": f"http://127.0.0.1:{self.proxy.port}",
                "timeouts": {"connect": 1, "idle": 1, "total": 2},
            }
        )
        model = SalesforceBulk.Options
        return SalesforceBulk(model(connection=connection, object="Contact", match="id", every=0.01), shape)

    def contents(self) -> Contents:
        return {
            (held["id"],): {f.name: typed(held.get(f.name), f.type.name) for f in self.shape.fields}
            for held in self.org.records.values()
        }

    def poison(self, row: Row) -> Row:
        return (*row[:-1], -1)

    def forbid(self) -> None:
        self.org.forbidden = True

    def annotate(self, key: Row) -> Callable[[], bool] | None:
        (held,) = (one for one in self.org.records.values() if one["id"] == key[0])
        held["theirs"] = "kept"
        return lambda: held.get("theirs") == "kept"


class InsertTarget(BulkTarget):
    write = "append"


def typed(cell: str | None, type_name: str) -> Any:
    return cell if cell is None or type_name in TEXTS else json.loads(cell, parse_float=Decimal)


class BulkSuite(Suite):
    kind: type[BulkTarget] = BulkTarget

    @pytest.fixture
    def target(self) -> Iterator[Target]:
        with Org("id", set()) as org, Proxy("127.0.0.1", org.port) as proxy:
            yield self.kind(org, proxy)
            assert set(org.uploads.values()) <= {1}, "a job was given a file twice"


class TestUpserts(BulkSuite):
    pass


class TestInserts(BulkSuite):
    kind = InsertTarget


# the vendor's words

TEXT, WHOLE = Type("string"), Type("integer")
FIELDS = (Field("name", TEXT), Field("visits", WHOLE))
PEOPLE: list[Row] = [("ann", "Ann", 1), ("bob", "Bob", None), ("cy", None, 3)]
HELD = {"ann": ("Ann", "1"), "bob": ("Bob", None), "cy": (None, "3")}


@pytest.fixture
def org() -> Iterator[Org]:
    with Org("ext", {"ext", "name", "visits"}) as org:
        yield org
        assert set(org.uploads.values()) <= {1}, "a job was given a file twice"


def shaped(
    write: WriteMode = "upsert", deletes: Any = "keep", fields: Any = FIELDS, key: str = "ext"
) -> Shape:
    return Shape("sync", "state", (Field(key, TEXT),), fields, write, deletes)


def lane(org: Org, shape: Shape, **options: Any) -> SalesforceBulk:
    connection = SalesforceBulk.Connection.model_validate(
        {
            "client_id": "me",
            "client_secret": TOKEN,
            "domain": "x",
            "base_url": org.url,
            "timeouts": {"connect": 5, "idle": 1, "total": 2},
        }
    )
    given = {"connection": connection, "object": "Contact", "match": "ext", "every": 0.001, **options}
    return SalesforceBulk(SalesforceBulk.Options(**given), shape)


def deliver(
    org: Org,
    rows: Sequence[Row],
    shape: Shape | None = None,
    operation: Mode | None = None,
    refs: Sequence[str | None] = (),
) -> list[RowResult]:
    """What becomes of the rows, as one batch."""
    return delivered.deliver(lane(org, shape or shaped()), rows, operation, refs)


def held(org: Org) -> dict[str, tuple[str | None, str | None]]:
    return {one["ext"]: (one.get("name"), one.get("visits")) for one in org.records.values()}


@pytest.mark.parametrize("write", ["upsert", "append"])
def test_every_fault_at_every_request_is_survived_and_nothing_comes_twice(write: Any, prove: Prove) -> None:
    faults = {
        "429": [fake.answer(429, b"[]", Retry_After="0")] * 2,
        "503": [fake.answer(503, b"")],
        "500 after the commit": [fake.instead(500, b"")],
        "reset before the commit": [fake.reset(applied=False)],
        "reset after the commit": [fake.reset(applied=True)],
        "broken off in the answer": [fake.cut()],
        "401": [fake.answer(401, b"[]")],
        "daily quota": [fake.answer(403, b'[{"errorCode": "REQUEST_LIMIT_EXCEEDED"}]')],
    }
    for name, planned in faults.items():
        for number in range(1, 9):  # the token, and then: create, upload, complete, two looks, three files
            with Org("ext", {"ext", "name", "visits"}) as org:
                org.faults += [passed] * number + list(planned)
                found = deliver(org, PEOPLE, shaped(write))
                where = f"{name} at request {number}"
                assert not org.faults, where
                assert [one.kind for one in found] == [Kind.WRITTEN] * 3, where
                assert held(org) == HELD, where
                assert len(org.records) == 3, where
                assert set(org.uploads.values()) == {1}, where
                assert set(org.applied.values()) == {1}, where
        prove("faults", 8)
        prove("rows", 24)


def test_its_requests_are_those_of_a_client_in_use(org: Org, prove: Prove) -> None:
    theirs = lines("golden/salesforce_bulk2_upsert.jsonl")
    keep = (Field("LastName", TEXT, nulls="keep"),)
    rows = [("1", 'O"Hara, "x"'), ("2", "line\nbreak"), ("3", None)]
    org.match, org.fields = "Ext__c", {"Ext__c", "LastName"}
    shape = shaped(fields=keep, key="Ext__c")
    destination = lane(org, shape, match="Ext__c", version="v61.0")
    batch = Rows(shape, rows).batch()
    assert {one.kind for one in results(destination, batch, destination.write(batch))} == {Kind.WRITTEN}
    (job,) = org.jobs
    ours = {
        (method, path.replace(job, "J1")): (headers.get("content-type"), body)
        for method, path, headers, body in org.seen
    }
    for one in theirs:
        content, body = ours[one["method"], one["path"]]
        if one["method"] == "PUT":
            assert content == one["headers"]["Content-Type"]
            assert table(body.decode()) == table(one["body"])
            assert sorted(body) == sorted(one["body"].encode()), "quotes where they quote"
        elif one["method"] != "GET":
            assert json.loads(body) == one["body"]
        prove("golden", 1)


def table(file: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(file, newline="")))


def test_its_requests_are_in_the_vendor_s_collection(org: Org, prove: Prove) -> None:
    known = set()
    for path in (EVIDENCE / "contracts/salesforce/bulk_v2").glob("*.json"):
        one = json.loads(path.read_text())
        known.add((one["method"], re.sub(r"\{\{.*?\}\}", "*", one["url"]).removeprefix("*")))
    deliver(org, PEOPLE)
    sent = {
        (method, re.sub(r"/v[\d.]+/", "/v*/", re.sub(r"750\d+", "*", path)))
        for method, path, _, _ in org.seen
        if "/jobs/" in path
    }
    assert len(sent) == 7
    assert sent <= known
    prove("schema", len(sent))


def test_every_result_file_is_read_and_each_row_has_its_own_end(org: Org) -> None:
    rows = [*PEOPLE, ("dan", "Dan", -1), ("eve", "Eve", 5)]
    org.dies_after = 4
    destination = lane(org, shaped())
    batch = Rows(shaped(), rows).batch()
    found = results(destination, batch, destination.write(batch))
    assert kinds(found) == [Kind.WRITTEN] * 3 + [Kind.REJECTED, Kind.RETRY]
    assert found[3].code == "FIELD_CUSTOM_VALIDATION_EXCEPTION"
    assert found[3].reason == "user … has visits below zero:visits"
    assert [one.ref in org.records for one in found[:3]] == [True] * 3


def test_a_locked_row_is_sent_again_in_a_job_of_its_own(org: Org) -> None:
    org.locked.add("bob")
    assert {one.kind for one in deliver(org, PEOPLE)} == {Kind.WRITTEN}
    assert held(org) == HELD
    assert len(org.jobs) == 2


def test_rows_that_csv_cannot_say_stay_out_of_the_file(org: Org) -> None:
    rows = [
        ("a", "", 1), ("b", "#N/A", 1), ("c", "x" * 32_001, 1), ("d", "\ud800", 1), ("", "no key", 1), ("e", "ok", 1),
    ]  # fmt: skip
    found = deliver(org, rows)
    codes = ["EMPTY_TEXT", "RESERVED_TEXT", "TOO_LARGE", "NOT_UNICODE", "EMPTY_TEXT", None]
    assert [one.code for one in found] == codes
    assert held(org) == {"e": ("ok", "1")}
    assert {one.kind for one in deliver(org, rows[:2])} == {Kind.REJECTED}
    assert len(org.jobs) == 1, "there was nothing to make a job for"


def test_a_file_is_never_larger_than_the_vendor_takes(org: Org, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "LONGEST_FILE", 1000)
    org.largest = 1000
    rows = [(f"k{n}", "x" * 90, n) for n in range(40)]
    assert {one.kind for one in deliver(org, rows)} == {Kind.WRITTEN}
    assert len(org.records) == 40
    assert len(org.jobs) == 4
    assert all(len(job.file or b"") <= 1000 for job in org.jobs.values())


def test_names_that_two_rows_share_are_in_doubt_unless_their_results_agree(org: Org) -> None:
    rows = [("a", "one", 1), ("b", "two", 2), ("a", "three", 3)]
    destination = lane(org, shaped())
    batch = Rows(shaped(), rows).batch()
    found = results(destination, batch, destination.write(batch))
    assert kinds(found) == [Kind.UNKNOWN, Kind.WRITTEN, Kind.UNKNOWN]


@pytest.mark.parametrize("state", ["Aborted", "Failed"])
def test_a_job_that_never_began_applied_nothing(org: Org, state: str) -> None:
    destination = lane(org, shaped())
    batch = Rows(shaped(), PEOPLE).batch()
    pending = destination.write(batch)
    pending = destination.resolve(batch, pending.handle)  # type: ignore[union-attr]
    org.jobs[pending.handle].about |= {  # type: ignore[union-attr]
        "state": state,
        "errorMessage": f"InvalidBatch : Field name not found : visits {CANARY}"
        if state == "Failed"
        else None,
    }
    found = results(destination, batch, pending)
    assert set(kinds(found)) == {Kind.RETRY if state == "Aborted" else Kind.REJECTED}
    if state == "Failed":
        assert found[0].code == "InvalidBatch"
        assert found[0].reason == "the job failed before its first row at visits"


def test_a_job_that_somebody_aborted_half_way_leaves_the_unnamed_rows_in_doubt(org: Org) -> None:
    destination = lane(org, shaped())
    batch = Rows(shaped(), PEOPLE).batch()
    pending = destination.write(batch)
    pending = destination.resolve(batch, pending.handle)  # type: ignore[union-attr]
    org.jobs[pending.handle].about |= {"state": "Aborted", "numberRecordsProcessed": 2}  # type: ignore[union-attr]
    assert set(kinds(results(destination, batch, pending))) == {Kind.UNKNOWN}


def test_a_job_that_the_org_forgot_is_in_doubt(org: Org) -> None:
    destination = lane(org, shaped("append"))
    batch = Rows(shaped("append"), PEOPLE).batch("append")
    assert kinds(results(destination, batch, destination.resolve(batch, "750999"))) == [Kind.UNKNOWN] * 3


def test_another_lane_asks_after_a_job_and_sends_no_file(org: Org) -> None:
    batch = Rows(shaped(), PEOPLE).batch()
    first, second = lane(org, shaped()), lane(org, shaped())
    pending = first.write(batch)
    assert kinds(results(second, batch, second.resolve(batch, pending.handle))) == [Kind.RETRY] * 3  # type: ignore[union-attr]
    assert (org.uploads, held(org)) == ({}, {})
    assert next(iter(org.jobs.values())).about["state"] == "Aborted"


def test_deletes_find_records_by_their_keys(org: Org) -> None:
    hostile = [
        "o'neil",
        "back\\slash",
        'quo"te',
        "new\nline",
        "per%cent",
        "a+b&c",
        *(f"k{n}" for n in range(205)),
    ]
    deliver(org, [*PEOPLE, *((key, "x", 1) for key in hostile)])
    shape = shaped(deletes="delete")
    gone: list[Row] = [("ann",), ("nobody",), *((key,) for key in hostile)]
    assert {one.kind for one in deliver(org, gone, shape, "delete")} == {Kind.WRITTEN}
    assert held(org).keys() == {"bob", "cy"}
    assert {one.kind for one in deliver(org, gone, shape, "delete")} == {Kind.WRITTEN}


def test_a_delete_of_a_learnt_id_looks_nothing_up(org: Org) -> None:
    written = deliver(org, PEOPLE)
    rows, refs = [row[:1] for row in PEOPLE[:2]], [one.ref for one in written[:2]]
    org.seen.clear()
    for _ in range(2):  # what is gone already is gone
        gone = deliver(org, rows, shaped(deletes="delete"), "delete", refs)
        assert [one.kind for one in gone] == [Kind.WRITTEN] * 2
        assert held(org).keys() == {PEOPLE[2][0]}
    assert not any("query" in path for _, path, _, _ in org.seen)


def test_a_delete_never_takes_a_record_that_differs_in_case(org: Org) -> None:
    deliver(org, PEOPLE)
    found = deliver(org, [("ANN",), ("bob",)], shaped(deletes="delete"), "delete")
    assert [(one.kind, one.code) for one in found] == [(Kind.REJECTED, "KEY_COLLIDES"), (Kind.WRITTEN, None)]
    assert held(org).keys() == {"ann", "cy"}


def test_every_fault_at_every_request_of_a_delete_is_survived(prove: Prove) -> None:
    for planned in (fake.reset(applied=False), fake.reset(applied=True), fake.answer(503, b""), fake.cut()):
        for number in range(1, 11):
            with Org("ext", {"ext", "name", "visits"}) as org:
                deliver(org, PEOPLE)
                org.faults += [*[passed] * number, planned]
                found = deliver(org, [("ann",), ("cy",)], shaped(deletes="delete"), "delete")
                assert {one.kind for one in found} == {Kind.WRITTEN}
                assert held(org).keys() == {"bob"}
                assert not org.faults
                assert set(org.uploads.values()) == {1}
        prove("faults", 10)


def test_soft_deletes_write_their_values(org: Org) -> None:
    deliver(org, PEOPLE)
    shape = shaped(deletes=SoftDelete({"name": "gone"}))
    assert {one.kind for one in deliver(org, [("ann",), ("cy",)], shape, "delete")} == {Kind.WRITTEN}
    assert held(org) == HELD | {"ann": ("gone", "1"), "cy": ("gone", "3")}


def test_a_field_that_the_object_lacks_is_drift(org: Org) -> None:
    lane(org, shaped()).check(VISIT)
    with pytest.raises(Mismatch, match="colour"):
        lane(org, shaped(fields=(*FIELDS, Field("colour", TEXT)))).check(VISIT)
    with pytest.raises(Mismatch, match="external id"):
        lane(org, shaped(key="name", fields=()), match="name").check(VISIT)


def test_a_request_of_deletes_shows_the_keys(org: Org) -> None:
    shape = shaped(deletes="delete")
    shown = lane(org, shape).preview(Rows(shape, [("ann",)]).batch("delete"))
    assert b'"operation":"delete"' in shown
    assert shown.endswith(b"ext\nann\n")


def test_its_example_is_a_sync(tmp_path: Path) -> None:
    keys = {"client_id": "me", "client_secret": TOKEN, "domain": "example.my.salesforce.com"}
    (tmp_path / "syncs").mkdir()
    (tmp_path / "syncs/example.yml").write_text(SalesforceBulk.about.example)
    (tmp_path / "retl.yml").write_text(
        json.dumps({"connections": {"salesforce_bulk": {"type": "salesforce_bulk", **keys}}})
    )
    project = open_project(tmp_path, environ={})
    found = project.destination(project.syncs["example"])
    assert (found.type, found.limits.share) == ("salesforce_bulk", 0.5)
    assert TOKEN not in repr(found)
