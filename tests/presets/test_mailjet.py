"""Mailjet: one contact of a list a request, in the vendor's own words."""

from __future__ import annotations

import json
from base64 import b64encode
from functools import partial
from typing import Any

from retl.destinations.batch import Field, Kind
from retl.testing import FakeApi
from tests.api import TOKEN
from tests.presets.proof import WHOLE, Proof

BASIC = b64encode(f"key:{TOKEN}".encode()).decode()


class Mailjet(FakeApi):
    bad = 0  # contacts that the last job refused

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("authorization") != f"Basic {BASIC}":
            return 401, {"ErrorInfo": "", "ErrorMessage": "API key authentication failed", "StatusCode": 401}
        jobs = "/v3/REST/contactslist/5/managemanycontacts"
        if (method, path) == ("POST", jobs):
            asked = json.loads(body)
            good = [one for one in asked["Contacts"] if one["Email"] not in self.refuse]
            for one in good:
                self.merge(one["Email"], one["Properties"])
            self.bad = len(asked["Contacts"]) - len(good)
            return 201, {"Count": 1, "Data": [{"JobID": 9}], "Total": 1}
        if path == f"{jobs}/9":
            file = "https://api.mailjet.com/v3/DATA/batchjob/9/JSONError/application:json/LAST"
            return 200, {
                "Data": [{"Status": "Completed", "Error": "", "ErrorFile": file if self.bad else ""}]
            }
        if path.startswith("/v3/DATA/batchjob/9/JSONError/"):
            return 200, [{"unsaid": "in the documentation"}] * self.bad
        if (method, path) != ("POST", "/v3/REST/contactslist/5/managecontact"):
            return 404, {"ErrorMessage": "unknown resource", "StatusCode": 404}
        asked = json.loads(body)
        key = asked["Email"]
        if key in self.refuse:
            return 400, {"ErrorInfo": "MJ08", "ErrorMessage": "invalid value", "StatusCode": 400}
        if asked["Action"] == "remove":
            self.objects.pop(key, None)
        else:
            assert asked["Action"] == "addnoforce"
            self.merge(key, asked["Properties"])
        return 201, {"Count": 1, "Data": [{"ContactID": 1, "Email": key}], "Total": 1}


class TestMailjet(Proof):
    preset, key = "mailjet", "email"
    vendor = partial(Mailjet, refuse=["d@x.io"])
    connection = {"api_key": "key", "secret_key": TOKEN}
    parameters = {"list": 5}
    bad = ("d@x.io", "Dan", -1)
    deletes = parameters
    golden = ("mailjet_managecontact.jsonl", 0, parameters, (Field("n", WHOLE),), [("a@x.io", 1)])

    def sent_as(self, row: Any) -> dict[str, Any]:
        return {name: value for name, value in super().sent_as(row).items() if value is not None}

    def test_a_job_is_halved_until_the_bad_contact_is_alone(self, api: Mailjet) -> None:
        results = self.deliver(api, [*self.rows, self.bad], parameters={"list": 5, "bulk": True})
        assert [one.kind for one in results] == [*[Kind.WRITTEN] * 3, Kind.REJECTED]
        assert api.objects == self.expected(self.rows)
        assert [method for method, _, _, _ in api.seen].count("POST") < 6
