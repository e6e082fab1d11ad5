"""Answers that vendors really gave, read by rules that are nothing but data."""

from __future__ import annotations

import json
from typing import Any

import pytest

from retl.destinations.batch import Kind, Outcome
from retl.destinations.http.outcome import Sent, interpret
from retl.destinations.http.rules import Rules
from retl.errors import Poisoned
from retl.net.messages import Reply
from tests.presets.proof import lines

SALESFORCE = Rules(
    rows="positional",
    row_ok={"at": "success", "in": [True]},
    code="errors.0.statusCode",
    reason="errors.0.message",
    ref="id",
)
MARKETO = Rules(
    ok_when={"at": "success", "in": [True]},
    rows="positional",
    at="result",
    row_ok={"at": "status", "in": ["created", "updated", "deleted"]},
    code=("reasons.0.code", "errors.0.code"),
    reason=("reasons.0.message", "errors.0.message"),
    ref="id",
)
HUBSPOT = Rules(
    ok=(200, 201), partial=(207,), rows="listed", at="results", match={"at": "properties.name"}, ref="id"
)


def recorded(vendor: str, path: str, status: int) -> list[dict[str, Any]]:
    found = [
        one
        for one in lines(f"recordings/{vendor}.jsonl")
        if one["method"] in ("POST", "PATCH") and path in one["path"] and one["status"] == status
    ]
    assert found
    return found


def read(one: dict[str, Any], rules: Rules, names: list[str] | int) -> Outcome:
    headers = {name.lower(): value for name, value in one["resp_headers"].items()}
    answer = Reply(one["status"], headers, json.dumps(one["resp_body"]).encode())
    rows = names if isinstance(names, int) else len(names)
    return interpret(answer, rules, Sent(rows, True, lambda to: names, lambda row: []))  # type: ignore[arg-type,return-value]


def test_salesforce_tells_each_row_by_its_place() -> None:
    seen = set()
    for one in recorded("salesforce", "/composite/sobjects", 200):
        items = one["resp_body"]
        outcome = read(one, SALESFORCE, len(items))
        for n, item in enumerate(items):
            result = outcome.result(n)
            seen.add(result.kind)
            assert (result.kind is Kind.WRITTEN) == item["success"]
            assert result.ref == (item["id"] if item["success"] else None)
            assert item["success"] or result.code == item["errors"][0]["statusCode"]
    assert seen == {Kind.WRITTEN, Kind.REJECTED}


def test_marketo_says_success_and_means_the_request() -> None:
    seen = set()
    for one in recorded("marketo", "/rest/v1/leads.json", 200):
        if not one["resp_body"]["success"]:
            continue
        items = one["resp_body"]["result"]
        outcome = read(one, MARKETO, len(items))
        for n, item in enumerate(items):
            seen.add(outcome.result(n).kind)
            assert (outcome.result(n).kind is Kind.REJECTED) == (item["status"] == "skipped")
    assert seen == {Kind.WRITTEN, Kind.REJECTED}


def test_hubspot_answers_in_an_order_of_its_own() -> None:
    reordered = 0
    for one in recorded("hubspot", "/objects/COMPANY/batch/create", 201):
        names = [row["properties"]["name"] for row in one["req_body"]["inputs"]]
        items = one["resp_body"]["results"]
        reordered += names != [item["properties"]["name"] for item in items]
        outcome = read(one, HUBSPOT, names)
        ids = {item["properties"]["name"]: item["id"] for item in items}
        assert [outcome.result(n).ref for n in range(len(names))] == [ids[name] for name in names]
    assert reordered


def test_airtable_refuses_a_batch_without_saying_which_row() -> None:
    for one in recorded("airtable", "/v0/", 422):
        with pytest.raises(Poisoned):
            read(one, Rules(code="error.type"), 2)
        assert read(one, Rules(code="error.type"), 1).default.code == one["resp_body"]["error"]["type"]
