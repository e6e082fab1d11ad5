"""Many rows as parts of one $batch: what each kind of answer to the whole means for the rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar
from urllib.parse import unquote

import pytest
from hypothesis import given
from pydantic import ValidationError

from retl import destinations
from retl.destinations.batch import Kind
from retl.destinations.http.options import HttpOptions
from retl.destinations.http.outcome import Sent
from retl.destinations.http.rules import Rules
from retl.destinations.http.steps import Batched, Steps, Together, raised
from retl.errors import Poisoned
from retl.net.messages import Reply, Request
from retl.testing import odata
from retl.testing.faults import answer, changed, cut, instead, passed, reset
from retl.testing.vendor import Vendor
from tests.destinations.rows import Rows
from tests.presets import test_sap_odata as sap
from tests.presets.gateway import Gateway
from tests.test_http_escape import TEXTS

ROWS = [(f"k{n}", f"name {n}", n) for n in range(6)]


@pytest.fixture
def api() -> Iterator[Gateway]:
    with Gateway(refuse=["k2"]) as api:
        yield api


def delivered(api: Gateway) -> list[Kind]:
    """What became of the rows; those that are written are there, once."""
    kinds = [one.kind for one in sap.TestSap().deliver(api, ROWS)]
    assert api.doubled == 0
    assert {f"k{n}" for n, kind in enumerate(kinds) if kind is Kind.WRITTEN} <= api.objects.keys()
    return kinds


def parts(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[Any], Any]:
    """A change of the parts of an answer."""

    def made(content: Any) -> Any:
        body, headers = content
        *given, end = body.split(b"--answer")[1:]
        return b"".join(b"--answer" + one for one in [*change(given), end]), headers

    return made


ONE_BAD = [Kind.REJECTED if n == 2 else Kind.WRITTEN for n in range(len(ROWS))]


@pytest.mark.parametrize(
    "fault",
    [
        passed,
        changed(parts(lambda given: given[:3])),  # OData 4 may end at the first error
        changed(parts(lambda given: given[:2])),
        changed(parts(lambda given: [*given, given[0]])),
        changed(parts(lambda given: [*given[:4], given[4].replace(b" 201 ", b" 503 "), given[5]])),
        changed(parts(lambda given: [*given[:4], given[4].replace(b" 201 ", b" 500 "), given[5]])),
        instead(200, b"{}"),
        instead(202, b"--answer\r\n", Content_Type="multipart/mixed; boundary=answer"),
        instead(500, b"<html></html>", Content_Type="text/html"),
        answer(503, b""),
        answer(400, b"{}"),
        cut(),
    ],
)
def test_one_bad_row_costs_only_itself_whatever_the_answer_is(api: Gateway, fault: Any) -> None:
    api.faults += [passed, passed, fault]  # the token, the questions, and the writes
    assert delivered(api) == ONE_BAD
    assert not api.faults


def test_fifty_rows_are_two_requests_and_a_throttled_part_comes_again(api: Gateway) -> None:
    many = [(f"k{n}", "Ann", n) for n in range(100, 150)]
    api.busy = {"k107"}
    assert {one.kind for one in sap.TestSap().deliver(api, many)} == {Kind.WRITTEN}
    assert (len(api.objects), api.doubled) == (50, 0)
    assert 3 < len(api.seen) <= 5


def test_when_every_part_is_throttled_the_connection_waits(api: Gateway) -> None:
    api.busy = {row[0] for row in ROWS}
    assert delivered(api) == ONE_BAD
    assert [path for _, path, _, _ in api.seen].count("/sap/$batch") <= 4


def test_a_preview_shows_the_request_of_all_rows() -> None:
    proof = sap.TestSap()
    made = destinations.load("sap_odata")(proof.options(None), proof.shape())
    shown = made.preview(Rows(proof.shape(), ROWS).batch("upsert"))
    assert shown.startswith(b"POST /sap/$batch")
    assert shown.count(b"GET /sap/A_Product('k") == len(ROWS)
    assert shown.count(b"Host: ") == 1


@pytest.mark.parametrize(
    "more",
    [
        {"find": None},
        {"find": {"path": "/a/{id}", "ref": "id", "settles": "1s"}},
        {"upsert": {"path": "/a"}, "insert": None, "update": None},
        {"delete": {"path": "/a/{id}", "method": "DELETE", "then": "/a/{id}/x"}},
        {"batch": {"path": "/$batch", "max_rows": 50}},
        {"batch": {"path": "/$$batch", "max_rows": 1}},
    ],
)
def test_only_rows_with_requests_of_their_own_fit_into_a_batch(more: dict[str, Any]) -> None:
    whole = {
        "connection": {"base_url": "https://x", "auth": {"type": "none"}},
        "find": {"path": "/a/{id}", "ref": "id"},
        "insert": {"path": "/a"},
        "update": {"path": "/a/{id}", "method": "PUT"},
        "batch": {"path": "/$$batch", "max_rows": 50},
    }
    HttpOptions.model_validate(whole)
    with pytest.raises(ValidationError, match=r"batch|max_rows"):
        HttpOptions.model_validate({**whole, **more})


def test_the_fake_that_is_made_from_a_preset_speaks_it() -> None:
    proof = sap.TestSap()
    with Vendor() as vendor:
        options = proof.options(vendor.url)
        vendor.speak(destinations.load("sap_odata")(options, proof.shape()))
        vendor.sent = {row[0]: (row[:1], json.dumps(proof.sent_as(row))) for row in ROWS}
        vendor.bad = {"k2"}
        vendor.faults += [passed, passed, reset(applied=True)]
        assert [one.kind for one in proof.deliver(vendor, ROWS)] == ONE_BAD
        assert (len(vendor.objects), vendor.doubled) == (5, 0)
        assert {path for _, path, _, _ in vendor.seen} == {"/sap/", "/sap/$batch"}


@given(TEXTS, TEXTS)
def test_no_value_leaves_its_part(key: str, name: str) -> None:
    """Not as a line, nor as a boundary, a header or another request."""
    shape, served = sap.TestSap().shape(), list[tuple[str, str, bytes]]()
    made = destinations.load("sap_odata")(sap.TestSap().options(None), shape)

    def serve(method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        served.append((method, unquote(path), body))
        return 200, {}

    for refs in ([None, None], ["r", "r"]):  # questions, and changes of what is known
        batch = Rows(shape, [(key, name, 1), ("x", "y", 2)], refs).batch("upsert")
        head, _, body = made.preview(batch).partition(b"\r\n\r\n")
        kind = next(line for line in head.decode().split("\r\n") if line.startswith("Content-Type: "))
        answer = odata.batch(serve, {"content-type": kind.removeprefix("Content-Type: ")}, body)
        assert answer[0] == 202
    quoted = key.replace("'", "''")
    assert [path for _, path, _ in served] == [f"/sap/A_Product('{one}')" for one in (quoted, "x")] * 2
    assert [json.loads(body)["name"] for method, _, body in served if method == "PATCH"] == [name, "y"]


class TestSapRowByRow(sap.TestSap):
    """A service of version 4 without $batch."""

    vendor = partial(Gateway, refuse=["d@x.io"], version="v4")
    parameters: ClassVar = {**sap.TestSap.parameters, "version": "v4", "requests": "single"}
    deletes: ClassVar = parameters
    special: ClassVar = {"the answer to a creation is lost": [passed, passed, reset(applied=True)]}


def test_what_concerns_the_whole_is_no_answer_about_a_row() -> None:
    """Also if a row would take such an error for its own."""

    def row() -> Steps[str]:
        try:
            yield Request("GET", "/a", (), b""), Rules()
        except Poisoned:
            return "refused"
        return "written"

    def send(request: Request, rules: Rules) -> Reply:
        return Reply(400, {}, b'{"error": {"code": "no"}}')

    def about() -> Sent:
        return Sent(2, True, lambda to: [], lambda row: [])

    together = Together(path="/$$batch", max_rows=2)
    batched = Batched(together, "", ("Host", "x"), send, about, Rules(), lambda quota: None)
    with pytest.raises(Poisoned, match="400"):
        list(batched.run([row(), row()], raised))
