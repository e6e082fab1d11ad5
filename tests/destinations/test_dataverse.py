"""The promises over Dataverse's $batch, and the vendor's words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from retl.app.resolve import open_project
from retl.destinations.api import Destination
from retl.destinations.batch import Field, Kind, Mode, RowResult, Shape, SoftDelete, WriteMode
from retl.destinations.dataverse.adapter import Dataverse, DataverseConnection, DataverseOptions
from retl.errors import DefinitionError, Mismatch
from retl.net.waits import Quota
from retl.values.types import Type
from tests import api as fake
from tests import delivered
from tests.api import TOKEN
from tests.dataverse import Environment
from tests.delivered import Prove
from tests.destinations.rows import Row, Rows
from tests.destinations.suite import VISIT, Contents, Suite, Target, kinds, results
from tests.presets.proof import lines, passed
from tests.proxy import Proxy


def made(url: str, shape: Shape, secret: str = TOKEN, **options: Any) -> Dataverse:
    connection = DataverseConnection.model_validate(
        {
            "org": "example.crm4.dynamics.com",
            "tenant": "contoso",
            "client_id": "me",
            "client_secret": secret,
            "login": url,
            "base_url": url,
            "timeouts": {"connect": 1, "idle": 1, "total": 2},
        }
    )
    return Dataverse(DataverseOptions(connection=connection, **{"table": "accounts", **options}), shape)


class DataverseTarget(Target):
    type = "dataverse"
    commit = b"--\r\n"

    def __init__(self, environment: Environment, proxy: Proxy) -> None:
        self.environment, self.proxy = environment, proxy

    def make(self, shape: Shape, *, secret: str | None = None) -> Destination[Any]:
        self.environment.columns = {"theirs", *(field.name for field in shape.fields)}
        return made(f"http://127.0.0.1:{self.proxy.port}", shape, secret or TOKEN, rows=1000)

    def contents(self) -> Contents:
        rows = self.environment.rows.items()
        return {(key,): {n: v for n, v in row.items() if n != "theirs"} for key, row in rows}

    def poison(self, row: Row) -> Row:
        return (*row[:-1], -1)

    def forbid(self) -> None:
        self.environment.forbidden = True

    def annotate(self, key: Row) -> Callable[[], bool] | None:
        row = self.environment.rows[key[0]]
        row["theirs"] = "kept"
        return lambda: row.get("theirs") == "kept"


class TestDataverse(Suite):
    @pytest.fixture
    def target(self) -> Iterator[Target]:
        with Environment("id", set()) as environment, Proxy("127.0.0.1", environment.port) as proxy:
            yield DataverseTarget(environment, proxy)


# the vendor's words

TEXT, WHOLE = Type("string"), Type("integer")
FIELDS = (Field("name", TEXT), Field("visits", WHOLE))
PEOPLE: list[Row] = [("ann", "Ann", 1), ("o'neil", "Bob", None), ("cy b", None, 3)]
HELD = {key: {"name": name, "visits": visits} for key, name, visits in PEOPLE}


@pytest.fixture
def environment() -> Iterator[Environment]:
    with Environment("number", {"name", "visits"}) as environment:
        yield environment


def shaped(write: WriteMode = "upsert", deletes: Any = "keep", fields: Any = FIELDS) -> Shape:
    return Shape("sync", "state", (Field("number", TEXT),), fields, write, deletes)


def deliver(
    environment: Environment,
    rows: Sequence[Row],
    shape: Shape | None = None,
    operation: Mode | None = None,
) -> list[RowResult]:
    """What becomes of the rows."""
    return delivered.deliver(made(environment.url, shape or shaped()), rows, operation)


def test_every_fault_is_survived(prove: Prove) -> None:
    faults = {
        "429": [fake.answer(429, b"{}", Retry_After="0")] * 2,
        "503": [fake.answer(503, b"")],
        "500 after the commit": [fake.instead(500, b"")],
        "reset before the commit": [fake.reset(applied=False)],
        "reset after the commit": [fake.reset(applied=True)],
        "broken off in the answer": [fake.cut()],
        "401": [fake.answer(401, b"{}")],
        "no multipart": [fake.instead(200, b"{}", Content_Type="application/json")],
        "a part short": [fake.changed(lambda said: (said[0].replace(b"--batchresponse_1--", b""), said[1]))],
    }
    for name, planned in faults.items():
        with Environment("number", {"name", "visits"}) as environment:
            environment.faults += [passed, *planned]
            found = deliver(environment, PEOPLE)
            assert not environment.faults, name
            assert [one.kind for one in found] == [Kind.WRITTEN] * 3, name
            assert environment.rows == HELD, name
        prove("faults", 1)
        prove("rows", 3)


def test_an_answer_with_a_part_too_few_or_too_many_says_nothing(environment: Environment) -> None:
    first = b"--batchresponse_1\r\n"
    changes = (
        lambda said: (first + said[0].split(first, 2)[2], said[1]),
        lambda said: (first + said[0].split(first, 2)[1] + said[0], said[1]),
    )
    for change in changes:
        lane = made(environment.url, shaped())
        environment.faults += [passed, fake.changed(change)]
        batch = Rows(shaped(), PEOPLE).batch()
        assert kinds(results(lane, batch, lane.write(batch))) == [Kind.UNKNOWN] * 3


def test_it_reads_each_part_s_own_answer(environment: Environment) -> None:
    environment.secured.add("eve")
    rows = [*PEOPLE, ("dan", "Dan", -1), ("eve", "Eve", 5), ("a/b", "Slash", 1)]
    found = deliver(environment, rows)
    assert kinds(found) == [Kind.WRITTEN] * 3 + [Kind.REJECTED] * 3
    assert [one.code for one in found[3:]] == ["0x80040203", "0x80048306", "KEY_CHARACTER"]
    assert found[3].reason == "account … has visits below zero"
    assert found[4].reason == "no privilege on …"
    assert all(re.fullmatch(r"[0-9a-f-]{36}", one.ref or "") for one in found[:3])
    assert environment.rows == HELD


def test_a_throttled_part_is_sent_again_and_the_connection_rests(environment: Environment) -> None:
    environment.busy["o'neil"] = 7
    lane = made(environment.url, shaped())
    quotas: list[Quota] = []
    lane.gate.on_quota = quotas.append  # type: ignore[method-assign]
    batch = Rows(shaped(), PEOPLE).batch()
    assert kinds(results(lane, batch, lane.write(batch))) == [Kind.WRITTEN, Kind.RETRY, Kind.WRITTEN]
    assert quotas == [Quota(0.0, 7.0)]
    environment.busy = {"ann": 0, "cy b": 0}
    assert kinds(deliver(environment, PEOPLE)) == [Kind.WRITTEN] * 3
    environment.busy = dict.fromkeys(HELD, 0)
    assert kinds(deliver(environment, PEOPLE)) == [Kind.WRITTEN] * 3
    assert environment.rows == HELD


def test_no_batch_holds_more_than_the_vendor_takes(environment: Environment) -> None:
    deliver(environment, [(f"k{n}", "x", n) for n in range(250)])
    assert (len(environment.rows), environment.largest) == (250, 100)
    with pytest.raises(ValueError, match="1000"):
        made(environment.url, shaped(), rows=1001)


def test_updates_create_nothing_and_inserts_change_nothing(environment: Environment) -> None:
    environment.rows["ann"] = {"name": "hers", "visits": 9}
    updated = deliver(environment, PEOPLE, shaped("update_only"))
    assert [(one.kind, one.settled) for one in updated] == [
        (Kind.WRITTEN, True),
        *[(Kind.SKIPPED, False)] * 2,
    ]
    assert environment.rows == {"ann": HELD["ann"]}
    environment.rows["ann"] = {"name": "hers", "visits": 9}
    inserted = deliver(environment, PEOPLE, shaped("insert_only"))
    assert [(one.kind, one.settled) for one in inserted] == [
        (Kind.SKIPPED, True),
        *[(Kind.WRITTEN, True)] * 2,
    ]
    assert environment.rows == HELD | {"ann": {"name": "hers", "visits": 9}}


def test_deletes_are_deletes_also_of_what_is_gone(environment: Environment) -> None:
    deliver(environment, PEOPLE)
    gone: list[Row] = [("ann",), ("o'neil",), ("nobody",)]
    for _ in range(2):
        found = deliver(environment, gone, shaped(deletes="delete"), "delete")
        assert {one.kind for one in found} == {Kind.WRITTEN}
        assert environment.rows.keys() == {"cy b"}


def test_soft_deletes_write_into_what_is_there_and_create_nothing(environment: Environment) -> None:
    deliver(environment, PEOPLE)
    shape = shaped(deletes=SoftDelete({"name": "gone"}))
    found = deliver(environment, [("ann",), ("nobody",)], shape, "delete")
    assert {one.kind for one in found} == {Kind.WRITTEN}
    assert environment.rows == HELD | {"ann": {"name": "gone", "visits": 1}}


def test_a_column_that_the_table_lacks_is_drift(environment: Environment) -> None:
    made(environment.url, shaped()).check(VISIT)
    bound = (*FIELDS, Field("parentaccountid@odata.bind", TEXT))
    made(environment.url, shaped(fields=bound)).check(VISIT)
    with pytest.raises(Mismatch, match="colour"):
        made(environment.url, shaped(fields=(*FIELDS, Field("colour", TEXT)))).check(VISIT)


def test_a_key_of_a_type_that_no_alternate_key_has_is_refused(environment: Environment) -> None:
    shape = Shape("sync", "state", (Field("number", Type("json")),), FIELDS)
    with pytest.raises(DefinitionError):
        made(environment.url, shape)


def test_its_requests_are_those_of_the_vendor_s_own_client(prove: Prove) -> None:
    (theirs,) = (
        one
        for one in lines("golden/dataverse_upsertmultiple_and_batch.jsonl")
        if one["path"].endswith("$batch")
    )
    shape = Shape("s", "s", (Field("accountnumber", TEXT),), (Field("name", TEXT),), deletes="delete")
    lane = made("http://127.0.0.1:1", shape)
    rows = Rows(shape, [("A1", "ACME")])
    patch, delete = (lane.preview(rows.batch(operation)) for operation in ("upsert", "delete"))
    head = patch.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    assert head[0] == f"{theirs['method']} {theirs['path']}"
    for name in ("OData-Version", "OData-MaxVersion", "Prefer"):
        assert f"{name}: {theirs['headers'][name]}" in head
    first, second = normal(theirs["body"])
    assert normal(patch.partition(b"\r\n\r\n")[2].decode()) == [first]
    ours = normal(delete.partition(b"\r\n\r\n")[2].decode())
    assert ours == [second.replace("00000000-0000-0000-0000-000000000001", "accountnumber='A1'")]
    prove("golden", 2)


def normal(body: str) -> list[str]:
    """The parts of a multipart without boundary, host, spaces in JSON, and the empty line of an empty body,
    which the standard's examples have and this client leaves out."""
    boundary = body.split("\r\n", 1)[0]
    *parts, last = body.split(boundary)
    assert (parts.pop(0), last) == ("", "--\r\n")
    return [re.sub(r"https?://[^/]+", "", part).replace('": "', '":"').rstrip() for part in parts]


def test_its_example_is_a_sync(tmp_path: Path) -> None:
    keys = {
        "org": "example.crm4.dynamics.com",
        "tenant": "contoso",
        "client_id": "me",
        "client_secret": TOKEN,
    }
    (tmp_path / "syncs").mkdir()
    (tmp_path / "syncs/example.yml").write_text(Dataverse.about.example)
    (tmp_path / "retl.yml").write_text(
        json.dumps({"connections": {"dataverse": {"type": "dataverse", **keys}}})
    )
    project = open_project(tmp_path, environ={})
    found = project.destination(project.syncs["example"])
    assert (found.type, found.limits.share) == ("dataverse", 0.5)
    assert TOKEN not in repr(found)
