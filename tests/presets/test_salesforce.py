"""Salesforce collections: failures by position, without an id; a locked row comes back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from pydantic import ValidationError

from retl.destinations import load
from retl.destinations.batch import Kind
from retl.destinations.http.rules import Rules
from retl.errors import Spent, Unavailable
from retl.net.waits import quota
from tests import api as fake
from tests.api import TOKEN
from tests.presets.oauth import TokenServer, expire
from tests.presets.proof import Proof, Recorded, lines
from tests.test_http_rs256 import PEM

LOCKED = {
    "success": False,
    "errors": [{"statusCode": "UNABLE_TO_LOCK_ROW", "message": "unable to obtain access"}],
}


class Salesforce(TokenServer):
    token_path = "/services/oauth2/token"

    def take(self, method: str, path: str, content: Any) -> tuple[int, Any]:
        if method == "DELETE":
            ids = [unquote(one) for one in urlsplit(path).query.split("&")[0].removeprefix("ids=").split(",")]
            keys = [one.removeprefix("003") for one in ids]
            gone = [self.users.pop(one, None) is not None for one in keys]
            missing = {"success": False, "errors": [{"statusCode": "ENTITY_IS_DELETED", "message": "gone"}]}
            return 200, [
                {"id": one, "success": True, "errors": []} if was else missing
                for one, was in zip(ids, gone, strict=True)
            ]
        rows, result = content["records"], []
        if len(rows) > 200 or content["allOrNone"] is not False:
            return 400, [{"errorCode": "EXCEEDED_ID_LIMIT", "message": "record limit reached"}]
        for row in rows:
            assert row.pop("attributes") == {"type": "Contact"}
            if (row["visits"] or 0) < 0:
                result.append(
                    {"success": False, "errors": [{"statusCode": "INVALID", "message": "below zero"}]}
                )
            else:
                key = row.pop(path.rpartition("/")[2])
                self.users.setdefault(key, {}).update(row)
                result.append({"id": f"003{key}", "success": True, "errors": []})
        return 200, result


class TestSalesforce(Proof):
    preset, vendor, limit, key, renews = "salesforce", Salesforce, 200, "Ext__c", True
    connection = {"client_id": "me", "client_secret": TOKEN, "domain": "example.my.salesforce.com"}
    parameters = {"object": "Contact", "match": "Ext__c"}
    bad = ("d@x.io", "Dan", -1)
    deletes = parameters
    special = {"a locked row": [fake.changed(lambda said: [LOCKED, *said[1:]])]}

    def expire(self, api: Any) -> None:
        expire(api)

    def recorded(self) -> Iterator[Recorded]:
        for one in lines("recordings/salesforce.jsonl"):
            if one["path"].endswith("/composite/sobjects") or (
                one["method"] == "DELETE" and "sobjects" in one["path"]
            ):
                result = one["resp_body"]
                kinds = [Kind.WRITTEN if item["success"] else Kind.REJECTED for item in result]
                names = [str(n) for n in range(len(result))]
                yield Recorded(
                    one, names, kinds, refs=[item.get("id") if item["success"] else None for item in result]
                )

    def test_a_failure_is_known_by_its_place_for_it_has_no_id(self) -> None:
        nameless = [
            one for one in self.recorded() if any("id" not in item for item in one.answer["resp_body"])
        ]
        assert nameless
        for one in nameless:
            outcome = self.read(one)
            for n, item in enumerate(one.answer["resp_body"]):
                assert outcome.result(n).code == (
                    None if item["success"] else item["errors"][0]["statusCode"]
                )

    def test_a_certificate_can_stand_in_for_the_secret(self) -> None:
        keys = {
            "client_id": "me",
            "domain": "example.my.salesforce.com",
            "private_key": PEM,
            "user": "retl@x.io",
        }
        model = load("salesforce").Options
        auth = model(connection=keys, object="Contact", match="Ext__c").http.connection.auth  # type: ignore[attr-defined]
        assert (auth.grant, auth.subject, auth.audience) == (
            "jwt_bearer",
            "retl@x.io",
            "https://login.salesforce.com",
        )
        with pytest.raises(ValidationError):
            model(connection={**keys, "private_key": None}, object="Contact", match="Ext__c")

    @pytest.mark.parametrize(
        ("limit", "error"), [("TotalRequests", Spent), ("ConcurrentRequests", Unavailable)]
    )
    def test_a_spent_day_is_no_refusal_and_no_throttling(self, limit: str, error: type[Exception]) -> None:
        said = [{"errorCode": "REQUEST_LIMIT_EXCEEDED", "message": f"{limit} Limit exceeded."}]
        with pytest.raises(error):
            self.read(Recorded({"status": 403, "resp_headers": {}, "resp_body": said}, ["a"], []))

    def test_the_budget_is_read_from_its_header(self) -> None:
        rules: Rules = self.options().http.outcome
        assert rules.budget is not None
        found = quota({"sforce-limit-info": "api-usage=3750/15000"}, rules.budget)
        assert found is not None
        assert (found.left, found.restart) == (0.75, None)
