"""What the answers that vendors really gave teach, read by the rules of their presets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from retl.destinations.batch import Kind
from retl.destinations.http.outcome import Sent, interpret
from retl.errors import Poisoned, Unavailable
from retl.net.messages import Reply
from tests.presets import test_airtable, test_hubspot, test_marketo, test_meta, test_salesforce
from tests.presets.proof import Recorded, lines

HUBSPOT = test_hubspot.TestHubSpot()
SALESFORCE = test_salesforce.TestSalesforce()
AIRTABLE = test_airtable.TestAirtable()


def test_hubspot_answers_in_an_order_of_its_own() -> None:
    def told(one: Recorded) -> list[Any]:
        return [row["id"] for row in one.answer["resp_body"]["results"]]

    upserts = [one for one in HUBSPOT.recorded() if one.refs and one.operation == "upsert"]
    reordered = [one for one in upserts if told(one) != list(one.refs or ())]
    assert reordered
    for one in reordered:
        outcome = HUBSPOT.read(one)
        assert [outcome.result(n).ref for n in range(len(one.names))] == one.refs


def test_a_429_of_hubspot_without_retry_after_is_passed_on_without_a_time() -> None:
    storm = [one for one in lines("recordings/hubspot.jsonl") if one["status"] == 429]
    assert storm
    for one in storm:
        with pytest.raises(Unavailable, match="secondly limit") as caught:
            HUBSPOT.read(Recorded(one, ["a"], []))
        assert caught.value.retry_after is None


def test_a_failure_of_salesforce_is_known_by_its_place_for_it_has_no_id() -> None:
    def has_nameless(one: Recorded) -> bool:
        return any("id" not in item for item in one.answer["resp_body"])

    nameless = [one for one in SALESFORCE.recorded() if has_nameless(one)]
    assert nameless
    for one in nameless:
        outcome = SALESFORCE.read(one)
        for n, item in enumerate(one.answer["resp_body"]):
            code = None if item["success"] else item["errors"][0]["statusCode"]
            assert outcome.result(n).code == code


def test_success_of_marketo_says_nothing_of_skipped_rows() -> None:
    kinds = [(one.answer["resp_body"]["success"], one.kinds) for one in test_marketo.TestMarketo().recorded()]
    assert any(success and Kind.REJECTED in found for success, found in kinds)


def test_counts_of_meta_without_rows_are_unknown() -> None:
    proof = test_meta.TestMeta()
    counted = [one for one in proof.recorded() if one.answer["resp_body"]["num_invalid_entries"]]
    assert counted
    for one in counted:
        outcome = proof.read(one)
        assert (outcome.default.kind, outcome.divides, outcome.exceptions) == (Kind.UNKNOWN, True, {})


def test_one_bad_row_of_airtable_refuses_its_batch_without_being_named() -> None:
    rules = AIRTABLE.options().http.outcome
    refused = [one for one in lines("recordings/airtable.jsonl") if one["status"] == 422]
    assert any(len(one["req_body"]["records"]) > 1 for one in refused)
    for one in refused:
        reply = Reply(422, {}, json.dumps(one["resp_body"]).encode())
        with pytest.raises(Poisoned):
            interpret(reply, rules, Sent(2, True, lambda to: ["a", "b"], lambda row: []))


def test_a_429_of_airtable_means_thirty_seconds() -> None:
    with pytest.raises(Unavailable) as caught:
        AIRTABLE.read(Recorded({"status": 429, "resp_headers": {}, "resp_body": {}}, ["a"], []))
    assert caught.value.retry_after == 30
