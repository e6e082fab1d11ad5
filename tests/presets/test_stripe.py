"""Stripe: customers in forms, listed by their exact address."""

from __future__ import annotations

import json
from functools import partial
from typing import Any, ClassVar
from urllib.parse import parse_qsl

from retl.destinations.batch import Kind
from retl.testing import FakeApi
from tests import api as fake
from tests.api import TOKEN
from tests.destinations.rows import Row
from tests.presets.numbered import Numbered
from tests.presets.proof import Proof


class FakeStripe(Numbered):
    root = "/v1/customers"
    refusal = (
        400,
        {"error": {"type": "invalid_request_error", "code": "email_invalid", "message": "invalid"}},
    )
    deleted = (200, {"deleted": True})

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        form = dict(parse_qsl(body.decode(), keep_blank_values=True))
        return super().serve(method, path, headers, json.dumps(form).encode() if form else b"")

    def found(self, ids: list[str]) -> Any:
        return {"object": "list", "data": [{"id": one} for one in ids]}


class TestStripe(Proof):
    preset = "stripe"
    vendor = partial(FakeStripe, refuse=["d@x.io"])
    connection = {"api_key": TOKEN}
    rows = (("a@x.io", "Ann", 1), ("b@x.io", "Bob", 2), ("c@x.io", "Cid", 3))
    bad = ("d@x.io", "Dan", -1)
    deletes: ClassVar = {}
    special = {"the answer to a creation is lost": [fake.passed, fake.reset(applied=True)]}

    def sent_as(self, row: Row) -> dict[str, Any]:
        return {name: str(value) for name, value in super().sent_as(row).items()}

    def test_an_empty_field_clears_it(self, api: FakeApi) -> None:
        self.deliver(api, self.rows)
        self.deliver(api, [("a@x.io", None, 1)])
        assert api.objects["a@x.io"] == {"name": "", "visits": "1"}
        assert api.seen[-1][1::2] == ("/v1/customers/1", b"name=&visits=1")

    def test_two_customers_with_one_address_are_a_reject(self, api: FakeStripe) -> None:
        api.ids |= {"7": "a@x.io", "8": "a@x.io"}
        (result,) = self.deliver(api, self.rows[:1])
        assert (result.kind, result.code, api.objects) == (Kind.REJECTED, "AMBIGUOUS", {})
