"""What every preset has to prove, as tests that none of them can leave out.

A preset joins by a module `test_<name>.py` beside this one: a fake of the vendor on a real socket (an
`FakeApi` that remembers objects and enforces the vendor's limits) and a class `Test…(Proof)` that says which
rows to send and what evidence there is. Contracts, golden requests and recorded answers are read from
the folder `evidence`, whose README names their sources. What is proved is told to `table`, which ends a test run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest

from retl import destinations
from retl.app.resolve import open_project
from retl.app.scaffold.openapi import nullable
from retl.destinations.batch import Field, Kind, Mode, Outcome, RowResult, Shape, WriteMode
from retl.destinations.http.adapter import HttpDestination
from retl.destinations.http.options import OPERATION_NAMES
from retl.destinations.http.outcome import Sent, interpret
from retl.errors import Poisoned, RetlError, Systemic
from retl.net.auth import Permit
from retl.net.gate import Gate
from retl.net.messages import Reply
from retl.testing import FakeApi, rehearsal
from retl.testing.rehearsal import schedule
from retl.testing.script import COUNTED
from retl.values.types import Type
from tests import api as fake
from tests.api import TOKEN, Fault, passed
from tests.delivered import deliver
from tests.destinations.rows import Row, Rows, document

EVIDENCE = Path(__file__).parent / "evidence"
TEXT, WHOLE = Type("string"), Type("integer")
Tell = Callable[[str, Any], None]


def lines(path: str) -> list[dict[str, Any]]:
    """The exchanges in a file of the evidence."""
    return [json.loads(line) for line in (EVIDENCE / path).read_text().splitlines()]


def read(body: bytes) -> Any:
    """A body as the object that it says: JSON, or the fields of a form."""
    return json.loads(body) if body.startswith((b"{", b"[")) else dict(parse_qsl(body.decode()))


def hurried(part: Any) -> Any:
    """A part of a preset that waits for nothing after a throttle."""
    names = ("outcome", "upsert", "insert", "update", "delete")
    found = {name: hurried(one) for name in names if (one := getattr(part, name, None)) is not None}
    if cases := getattr(part, "cases", ()):
        short = (one.model_copy(update={"wait": 0.01}) if one.wait is not None else one for one in cases)
        found["cases"] = tuple(short)
    if getattr(part, "wait", None) is not None:
        found["wait"] = 0.01
    return part.model_copy(update=found)


@dataclass(frozen=True)
class Recorded:
    """A recorded answer, and what it really meant: each row's name for the rules, and its fate."""

    answer: Mapping[str, Any]
    names: Sequence[str]
    kinds: Sequence[Kind]
    operation: Mode = "upsert"
    refs: Sequence[str | None] | None = None
    parameters: Mapping[str, Any] | None = None


def by_place(
    answer: Mapping[str, Any], items: Sequence[Any], good: Callable[[Any], bool], ref: str = "id"
) -> Recorded:
    """A recorded answer with an item for each row, in their order; a bad one tells no id."""
    kinds = [Kind.WRITTEN if good(item) else Kind.REJECTED for item in items]
    refs = [str(item[ref]) if good(item) else None for item in items]
    return Recorded(answer, [str(n) for n in range(len(items))], kinds, refs=refs)


class Through(Gate):
    """A gate that lets requests through `permit`, where one is given."""

    def __init__(self, permit: Permit | None) -> None:
        self._permit = permit

    def permits(self) -> Permit:
        return self._permit or super().permits()


class Proof:
    """`rows` are good ones, `bad` one that the vendor refuses; `limit` is the most a request may hold."""

    preset: str
    vendor: Callable[[], FakeApi]
    connection: Mapping[str, Any] = {"token": TOKEN}
    parameters: Mapping[str, Any] = {}
    key = "id"
    fields: tuple[Field, ...] = (Field("name", TEXT), Field("visits", WHOLE))
    rows: Sequence[Row] = (("a@x.io", "Ann", 1), ("b@x.io", "Bob", 2), ("c@x.io", None, 3))
    bad: Row | None = None
    write: WriteMode = "upsert"
    limit: int | None = None
    idempotent = True
    deletes: Mapping[str, Any] | None = None  # the parameters with which rows can be deleted
    special: Mapping[str, Sequence[Fault]] = {}  # faults of this vendor's own
    doubtful: frozenset[str] = frozenset()  # those after which nobody can say, until rows are sent again
    stops: Mapping[str, tuple[Fault, type[RetlError]]] = {}  # answers after which there is nothing to try
    throttled: bytes = b"{}"  # the body of a 429
    renews = False  # an expired token is renewed rather than the end of the run
    contract: tuple[str, str] | None = None  # a file of contracts/ and the pointer to a schema in it
    golden: tuple[str, int, Mapping[str, Any], tuple[Field, ...], Sequence[Row]] | None = None
    golden_delete: tuple[str, int, Sequence[Row]] | None = None  # with `parameters`, of these keys

    # what a module may say in its own words

    def sent_as(self, row: Row) -> dict[str, Any]:
        """The fields of a row as the vendor holds them."""
        found: dict[str, Any] = json.loads(document(self.shape(), row))
        return found

    def contents(self, api: Any) -> dict[str, Any]:
        """What the fake holds: key → fields."""
        found: dict[str, Any] = api.objects
        return found

    def alike(self, request: dict[str, Any]) -> Any:
        """A golden request, or ours, without what may differ."""
        return request

    def judged(self, request: Any) -> Any:
        """The part of a request's body that the contract's schema is about."""
        return request

    def recorded(self) -> Iterator[Recorded]:
        """Every recorded write of these operations."""
        yield from ()

    def expire(self, api: Any) -> None:
        """Let the token that was given end."""
        api.faults.append(fake.answer(401, b"{}"))

    # the machinery

    @pytest.fixture
    def api(self) -> Iterator[Any]:
        with self.vendor() as api:
            yield api

    @pytest.fixture
    def tell(self, record_property: Callable[[str, Any], None]) -> Tell:
        return lambda what, count=1: record_property("proof", [self.preset, what, count])

    def shape(self, fields: tuple[Field, ...] | None = None, deletes: Any = "keep") -> Shape:
        own = self.fields if fields is None else fields
        return Shape("sync", "state", (Field(self.key, TEXT),), own, self.write, deletes)

    def options(self, url: str | None = None, parameters: Mapping[str, Any] | None = None) -> Any:
        given = {"timeouts": {"connect": 5, "idle": 1, "total": 2}, **self.connection}
        at = {
            name: value.replace("https://vendor", url) if url else value
            for name, value in given.items()
            if isinstance(value, str)
        }
        given |= at
        if url is not None and "url" not in given:
            given["base_url"] = url
        model = destinations.load(self.preset).Options
        made = model(connection=given, **(self.parameters if parameters is None else parameters))
        if url is not None:
            made._http = hurried(made.http)  # vendors' limits last longer than the fakes'
        for name in ("upsert", "insert", "update", "delete"):  # vendors' jobs take longer than the fakes'
            one = getattr(made.http, name)
            if one is not None and one.job is not None:
                soon = one.model_copy(update={"job": one.job.model_copy(update={"every": 0.01})})
                made._http = made.http.model_copy(update={name: soon})
        if (find := made.http.find) is not None and find.settles is not None:  # and find new objects later
            made._http = made.http.model_copy(update={"find": find.model_copy(update={"settles": 0.01})})
        return made

    def deliver(
        self,
        api: FakeApi,
        rows: Sequence[Row],
        operation: Mode | None = None,
        parameters: Mapping[str, Any] | None = None,
        refs: Sequence[str | None] = (),
        permit: Permit | None = None,
    ) -> list[RowResult]:
        """What becomes of the rows, by the same delivery that runs use; what stops it is raised."""
        options = self.options(api.url, parameters)
        shape = self.shape(deletes="delete" if operation == "delete" else "keep")
        lane = destinations.load(self.preset)(options, shape, Through(permit))
        return deliver(lane, rows, operation, refs)

    def expected(self, rows: Sequence[Row]) -> dict[str, Any]:
        return {row[0]: self.sent_as(row) for row in rows}

    def faults(self) -> dict[str, Sequence[Fault]]:
        return {**schedule(self.throttled), **self.special}

    # the proofs

    def test_every_fault_is_survived(self, tell: Tell) -> None:
        for name, faults in self.faults().items():
            with self.vendor() as api:
                api.faults += [passed, *faults] if self.renews else faults  # the token comes first
                results = self.deliver(api, self.rows)
                found = self.contents(api)
                wanted = self.expected(self.rows)
                assert not api.faults, name
                if name in self.doubtful:
                    assert Kind.UNKNOWN in {result.kind for result in results}, name
                    results = self.deliver(api, self.rows)  # what the next run does
                if self.idempotent:
                    assert [result.kind for result in results] == [Kind.WRITTEN] * len(self.rows), name
                    assert found == wanted, name
                for row, result in zip(self.rows, results, strict=True):
                    assert result.kind in (Kind.WRITTEN, Kind.UNKNOWN), (name, result)
                    assert result.kind is Kind.UNKNOWN or found[row[0]] == wanted[row[0]], name
                again = getattr(api, "doubled", 0)
                assert not again, f"{name}: {again} rows came twice"
            tell("faults", 1)
            tell("rows", len(self.rows))

    def test_no_request_holds_more_than_the_vendor_takes(self, api: FakeApi) -> None:
        if self.limit is None:
            return
        width = 1 + len(self.fields)
        many = [(f"k{n}@x.io", f"name {n}", *self.rows[0][2:])[:width] for n in range(self.limit + 1)]
        assert {result.kind for result in self.deliver(api, many)} == {Kind.WRITTEN}
        assert len(self.contents(api)) == len(many)
        http = self.options(api.url).http
        name = OPERATION_NAMES[self.write]
        wide = getattr(http, name).model_copy(update={"max_rows": self.limit + 1})
        destination = HttpDestination(http.model_copy(update={name: wide}), self.shape())
        with pytest.raises(Poisoned):
            destination.write(Rows(self.shape(), many[: self.limit + 1]).batch(self.write))
        destination.close()

    def test_a_bad_row_costs_only_itself(self, api: FakeApi) -> None:
        if self.bad is None:
            return
        results = self.deliver(api, [self.rows[0], self.bad, *self.rows[1:]])
        kinds = [result.kind for result in results]
        assert kinds == [Kind.WRITTEN, Kind.REJECTED, *[Kind.WRITTEN] * (len(self.rows) - 1)]
        assert results[1].code
        assert self.contents(api) == self.expected(self.rows)

    def test_deletes_exactly_those_keys(self, api: FakeApi) -> None:
        if self.deletes is None:
            return
        written = self.deliver(api, self.rows, parameters=self.deletes)
        keys, refs = [row[:1] for row in self.rows[:2]], [result.ref for result in written[:2]]
        for _ in range(2):
            gone = self.deliver(api, keys, "delete", self.deletes, refs)
            assert {result.kind for result in gone} == {Kind.WRITTEN}
            assert self.contents(api) == self.expected(self.rows[2:])

    def test_an_expired_token_costs_no_row(self, api: FakeApi, tell: Tell) -> None:
        self.expire(api)
        if not self.renews:
            with pytest.raises(Systemic):
                self.deliver(api, self.rows)
            assert self.contents(api) == {}
        assert {result.kind for result in self.deliver(api, self.rows)} == {Kind.WRITTEN}
        assert self.contents(api) == self.expected(self.rows)
        tell("faults", 1)

    def test_some_answers_end_the_run_at_once(self) -> None:
        for name, (fault, error) in self.stops.items():
            with self.vendor() as api:
                api.faults += [passed, fault] if self.renews else [fault]
                with pytest.raises(error):
                    self.deliver(api, self.rows)
                assert not api.faults, name
                assert self.contents(api) == {}, name

    def test_every_request_takes_a_turn(self, api: FakeApi) -> None:
        """Also those for tokens, and those that ask after a job."""
        permits: list[int | None] = []

        @contextmanager
        def permit(size: int | None = None) -> Iterator[None]:
            permits.append(size)
            yield

        self.expire(api)
        with suppress(Systemic):
            self.deliver(api, self.rows, permit=permit)
        self.deliver(api, self.rows, permit=permit)
        assert len(permits) == len(api.seen) >= 2

    def test_its_requests_are_valid_under_the_vendor_s_schema(self, api: FakeApi, tell: Tell) -> None:
        if self.contract is None:
            return
        import jsonschema

        file, pointer = self.contract
        document = json.loads((EVIDENCE / "contracts" / file).read_text())
        document = nullable(document)
        schema = {**document, "$ref": pointer} if pointer else document
        self.deliver(api, self.rows)
        token = getattr(api, "token_path", None)  # where tokens come from
        writes = [
            read(body) for method, path, _, body in api.seen if method != "GET" and body and path != token
        ]
        assert writes
        for body in writes:
            jsonschema.Draft202012Validator(schema).validate(self.judged(body))
            tell("schema", 1)

    def test_its_request_equals_the_vendor_s_own(self, tell: Tell) -> None:
        if self.golden is None:
            return
        file, number, parameters, fields, rows = self.golden
        theirs = lines(f"golden/{file}")[number]
        shape = self.shape(fields)
        ours = self.request(parameters, shape, rows)
        assert self.alike(ours) == self.alike({name: theirs[name] for name in ours})
        tell("golden", 1)

    def test_its_delete_equals_the_vendor_s_own(self, tell: Tell) -> None:
        if self.golden_delete is None:
            return
        file, number, keys = self.golden_delete
        theirs = lines(f"golden/{file}")[number]
        ours = self.request(self.parameters, self.shape(deletes="delete"), keys, "delete")
        assert self.alike(ours) == self.alike(theirs)
        tell("golden", 1)

    def request(
        self,
        parameters: Mapping[str, Any],
        shape: Shape,
        rows: Sequence[Row],
        operation: Mode | None = None,
    ) -> dict[str, Any]:
        """Our request for these rows, in the form that golden requests have."""
        destination = destinations.load(self.preset)(self.options(None, parameters), shape)
        assert isinstance(destination, HttpDestination)
        dumped = destination.preview(Rows(shape, rows).batch(operation or self.write))
        head, _, body = dumped.partition(b"\r\n\r\n")
        method, path = head.split(b"\r\n")[0].decode().split(" ", 1)
        return {"method": method, "path": path, "body": read(body) if body else ""}

    def test_it_reads_recorded_answers_as_they_were_meant(self, tell: Tell) -> None:
        for one in self.recorded():
            outcome = self.read(one)
            assert [outcome.result(n).kind for n in range(len(one.names))] == list(one.kinds)
            if one.refs is not None:
                assert [outcome.result(n).ref for n in range(len(one.names))] == list(one.refs)
            tell("recorded", 1)

    def read(self, one: Recorded) -> Outcome:
        """What the preset's rules make of a recorded answer; a refusal of all is a refusal of each."""
        parameters = one.parameters or (self.deletes if one.operation == "delete" else None)
        shape = self.shape(deletes="delete" if one.operation == "delete" else "keep")
        destination = destinations.load(self.preset)(self.options(None, parameters), shape)
        assert isinstance(destination, HttpDestination)
        rules = destination.rules(one.operation)
        content = one.answer["resp_body"]
        headers = {name.lower(): value for name, value in one.answer["resp_headers"].items()}
        body = b"" if content in ("", None) else json.dumps(content).encode()

        def names(to: str) -> Sequence[str]:
            return [str(n) for n in range(len(one.names))] if to == "$row_no" else one.names

        sent = Sent(len(one.names), True, names, lambda row: [])
        try:
            return interpret(Reply(one.answer["status"], headers, body), rules, sent)
        except Poisoned as error:
            return Outcome(RowResult(Kind.REJECTED, error.code))

    def test_what_it_claims_as_evidence_is_here(self) -> None:
        shown = {"contract": self.contract, "golden": self.golden, "recording": next(self.recorded(), None)}
        claimed = destinations.load(self.preset).about.evidence
        assert {name for name, evidence in shown.items() if evidence} == shown.keys() & set(claimed)

    def test_its_example_is_a_sync(self, tmp_path: Path) -> None:
        preset = destinations.load(self.preset).preset  # type: ignore[attr-defined]
        keys = {name: value for name, value in self.connection.items() if name in preset.connection}
        (tmp_path / "syncs").mkdir()
        (tmp_path / "syncs/example.yml").write_text(preset.example)
        (tmp_path / "retl.yml").write_text(
            json.dumps({"connections": {self.preset: {"type": self.preset, **keys}}})
        )
        project = open_project(tmp_path, environ={})
        found = project.destination(project.syncs["example"])
        assert found.type == self.preset
        assert found.limits.share == 0.5
        assert TOKEN not in repr(found)


# the table


def table(proofs: Sequence[Sequence[Any]]) -> list[str]:
    """One line per preset: what of it was proved in this run."""
    found: dict[str, dict[str, int]] = {}
    for preset, what, count in proofs:
        counts = found.setdefault(preset, dict.fromkeys(COUNTED, 0))
        counts[what] += count
    rows = []
    for preset, counts in sorted(found.items()):
        evidence = ", ".join(destinations.load(preset).about.evidence)
        rows.append((preset, evidence, *(str(counts[what]) for what in COUNTED)))
    return rehearsal.table(rows)
