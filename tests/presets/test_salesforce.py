"""Salesforce collections: failures by position, without an id; a locked row comes back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from msgspec.structs import replace

from retl import destinations
from retl.destinations.http.rules import Rules
from retl.errors import Later
from retl.net.waits import quota
from retl.testing.server import Fault
from tests import api as fake
from tests.api import TOKEN
from tests.presets.crm import Salesforce
from tests.presets.oauth import expire
from tests.presets.proof import Proof, Recorded, by_place, lines

LOCKED = {
    "success": False,
    "errors": [{"statusCode": "UNABLE_TO_LOCK_ROW", "message": "unable to obtain access"}],
}


def limit_of(name: str) -> Fault:
    said = [{"errorCode": "REQUEST_LIMIT_EXCEEDED", "message": f"{name} Limit exceeded."}]
    return fake.answer(403, json.dumps(said))


class TestSalesforce(Proof):
    preset, vendor, limit, key, renews = "salesforce", Salesforce, 200, "Ext__c", True
    connection = {"client_id": "me", "client_secret": TOKEN, "domain": "example.my.salesforce.com"}
    parameters = {"object": "Contact", "match": "Ext__c"}
    bad = ("d@x.io", "Dan", -1)
    deletes = parameters
    special = {
        "a locked row": [fake.changed(lambda said: [LOCKED, *said[1:]])],
        "too many at once": [limit_of("ConcurrentRequests")],
    }
    stops = {"a spent day": (limit_of("TotalRequests"), Later)}

    def expire(self, api: Any) -> None:
        expire(api)

    def recorded(self) -> Iterator[Recorded]:
        for one in lines("recordings/salesforce.jsonl"):
            deletes = one["method"] == "DELETE" and "sobjects" in one["path"]
            if deletes or one["path"].endswith("/composite/sobjects"):
                yield by_place(one, one["resp_body"], lambda item: item["success"])

    def test_an_update_heeds_the_limits_of_the_account(self) -> None:
        shape = replace(self.shape(), write="update_only")
        rules = destinations.load(self.preset)(self.options(), shape).rules("update_only")  # type: ignore[attr-defined]
        assert rules.budget is not None
        assert {case.means for case in rules.cases} >= {"spent", "unavailable"}
        assert rules.rows == "all_or_nothing"

    def test_the_budget_is_read_from_its_header(self) -> None:
        rules: Rules = self.options().http.outcome
        assert rules.budget is not None
        found = quota({"sforce-limit-info": "api-usage=3750/15000"}, rules.budget)
        assert found is not None
        assert (found.left, found.restart) == (0.75, None)
