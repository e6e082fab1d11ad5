"""Pipedrive: persons have ids, and are searched for by an address."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar
from urllib.parse import SplitResult, parse_qs

from tests import api as fake
from tests.api import TOKEN
from tests.presets.numbered import Numbered
from tests.presets.proof import Proof


class FakePipedrive(Numbered):
    root = "/api/v2/persons"
    refusal = (400, {"success": False, "error": "Validation failed", "code": "ERR_SCHEMA_VALIDATION_FAILED"})
    deleted = (200, {"success": True})

    def allowed(self, headers: dict[str, str]) -> bool:
        return headers.get("x-api-token") == self.token

    def asked(self, method: str, where: SplitResult, content: Any) -> str | None:
        if method != "GET":
            return None
        query = parse_qs(where.query)
        assert (where.path, query["fields"], query["exact_match"]) == (
            f"{self.root}/search",
            ["email"],
            ["true"],
        )
        return query["term"][0]

    def found(self, ids: list[str]) -> Any:
        return {"success": True, "data": {"items": [{"item": {"id": int(one)}} for one in ids]}}

    def parts(self, content: Any) -> tuple[str | None, dict[str, Any]]:
        emails = content.pop("emails", [{"value": None}])
        return emails[0]["value"], content

    def shown(self, number: str) -> Any:
        return {"success": True, "data": {"id": int(number)}}


class TestPipedrive(Proof):
    preset = "pipedrive"
    vendor = partial(FakePipedrive, refuse=["d@x.io"])
    connection = {"company": "example", "token": TOKEN}
    rows = (("a@x.io", "Ann", 1), ("b@x.io", "Bob", 2), ("c@x.io", "Cid", 3))
    bad = ("d@x.io", "Dan", -1)
    deletes: ClassVar = {}
    special = {"the answer to a creation is lost": [fake.passed, fake.reset(applied=True)]}

    def test_who_is_there_is_changed_and_keeps_the_addresses(self, api: FakePipedrive) -> None:
        self.deliver(api, self.rows)
        (result,) = self.deliver(api, [("A@x.io", "Anna", 5)])
        assert (result.ref, api.doubled, api.objects["a@x.io"]) == ("1", 0, {"name": "Anna", "visits": 5})
        assert api.seen[-1][:2] == ("PATCH", "/api/v2/persons/1")
