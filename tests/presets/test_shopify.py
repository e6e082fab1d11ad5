"""Shopify: 200 for everything; what became of a customer is in the body."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from retl.destinations.batch import Kind
from retl.testing import FakeApi
from tests import api as fake
from tests.api import TOKEN
from tests.presets.proof import Proof, Recorded

THROTTLED = b'{"errors":[{"message":"Throttled","extensions":{"code":"THROTTLED"}}]}'


class Shopify(FakeApi):
    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("x-shopify-access-token") != self.token:
            return 401, {"errors": "[API] Invalid API key or access token"}
        assert (method, path) == ("POST", "/admin/api/2026-07/graphql.json")
        asked = json.loads(body)
        given = asked["variables"]
        if "customerDelete" in asked["query"]:
            key = given["key"]["id"].removeprefix("gid://shopify/Customer/")
            known = self.objects.pop(key, None) is not None
            errors = [] if known else [{"message": "Customer can't be found"}]
            return 200, {
                "data": {
                    "customerDelete": {
                        "deletedCustomerId": given["key"]["id"] if known else None,
                        "userErrors": errors,
                    }
                }
            }
        key = given["key"]["email"]
        assert given["input"].pop("email") == key
        if key in self.refuse:
            error = {"code": "INVALID", "message": "Email is invalid"}
            return 200, {"data": {"customerSet": {"customer": None, "userErrors": [error]}}}
        self.merge(key, given["input"])
        made = {"customer": {"id": f"gid://shopify/Customer/{key}"}, "userErrors": []}
        return 200, {"data": {"customerSet": made}}


class TestShopify(Proof):
    preset, key = "shopify", "email"
    vendor = partial(Shopify, refuse=["d@x.io"])
    connection = {"token": TOKEN, "shop": "example.myshopify.com"}
    bad = ("d@x.io", "Dan", -1)
    deletes: Mapping[str, Any] = {}
    special = {"throttled in a 200": [fake.answer(200, THROTTLED)] * 2}

    def test_who_placed_orders_stays(self) -> None:
        errors = [{"message": "Customer can't be deleted because they have associated orders"}]
        said = {"data": {"customerDelete": {"deletedCustomerId": None, "userErrors": errors}}}
        one = Recorded({"status": 200, "resp_headers": {}, "resp_body": said}, ["a"], [], "delete")
        assert self.read(one).result(0).kind is Kind.REJECTED
