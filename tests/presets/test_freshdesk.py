"""Freshdesk: contacts are listed by address."""

from __future__ import annotations

import json
from base64 import b64encode
from functools import partial
from typing import Any, ClassVar

from retl.destinations.batch import Kind
from tests import api as fake
from tests.api import TOKEN
from tests.presets.numbered import Numbered
from tests.presets.proof import Proof


def said(**error: Any) -> dict[str, Any]:
    return {"description": "Validation failed", "errors": [{"field": "email", **error}]}


class FakeFreshdesk(Numbered):
    root = "/api/v2/contacts"
    refusal = (400, said(code="invalid_value", message="It should be in the valid format"))

    def allowed(self, headers: dict[str, str]) -> bool:
        return headers.get("authorization") == "Basic " + b64encode(f"{self.token}:X".encode()).decode()

    def found(self, ids: list[str]) -> Any:
        return [{"id": int(one)} for one in ids]

    def shown(self, number: str) -> Any:
        return {"id": int(number)}

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        return super().serve(method, path.removesuffix("/hard_delete?force=true"), headers, body)


class TestFreshdesk(Proof):
    preset = "freshdesk"
    vendor = partial(FakeFreshdesk, refuse=["d@x.io"])
    connection = {"domain": "example", "api_key": TOKEN}
    rows = (("a@x.io", "Ann", 1), ("b@x.io", "Bob", 2), ("c@x.io", "Cid", 3))
    bad = ("d@x.io", "Dan", -1)
    deletes: ClassVar = {}
    special = {"the answer to a creation is lost": [fake.passed, fake.reset(applied=True)]}

    def test_a_permanent_delete_is_one_request(self, api: FakeFreshdesk) -> None:
        given = {"delete": "permanent"}
        (written,) = self.deliver(api, self.rows[:1], parameters=given)
        self.deliver(api, [self.rows[0][:1]], "delete", given, [written.ref])
        assert api.seen[-1][:2] == ("DELETE", "/api/v2/contacts/1/hard_delete?force=true")
        assert api.objects == {}

    def test_the_address_of_an_agent_is_a_reject(self, api: FakeFreshdesk) -> None:
        api.misbehave(fake.passed, fake.answer(409, json.dumps(said(code="duplicate_value"))))
        first, second = self.deliver(api, self.rows[:2])
        assert (first.kind, first.code, second.kind) == (Kind.REJECTED, "duplicate_value", Kind.WRITTEN)
