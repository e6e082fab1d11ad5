"""Linear: GraphQL, customers by their external id."""

from __future__ import annotations

import json
from functools import partial
from typing import Any, ClassVar

from retl.testing import FakeApi
from tests import api as fake
from tests.api import TOKEN
from tests.presets.proof import Proof

LIMITED = b'{"errors":[{"message":"Rate limit exceeded","extensions":{"code":"RATELIMITED"}}]}'


class FakeLinear(FakeApi):
    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("authorization") != TOKEN:
            return 401, {"errors": [{"message": "Authentication required"}]}
        asked = json.loads(body)
        if "customerDelete" in asked["query"]:
            key = asked["variables"]["id"].removeprefix("c-")
            if self.objects.pop(key, None) is None:
                return 200, {"data": None, "errors": [{"message": "Entity not found: Customer"}]}
            return 200, {"data": {"customerDelete": {"success": True}}}
        given = asked["variables"]["input"]
        key = given.pop("externalId")
        if key in self.refuse:
            error = {"message": "Argument Validation Error", "extensions": {"code": "INVALID_INPUT"}}
            return 200, {"data": None, "errors": [error]}
        self.merge(key, given)
        return 200, {"data": {"customerUpsert": {"success": True, "customer": {"id": f"c-{key}"}}}}


class TestLinear(Proof):
    preset = "linear"
    vendor = partial(FakeLinear, refuse=["d@x.io"])
    connection = {"api_key": TOKEN}
    bad = ("d@x.io", "Dan", -1)
    deletes: ClassVar = {}
    special = {"a limit, told in a 400": [fake.answer(400, LIMITED)]}
