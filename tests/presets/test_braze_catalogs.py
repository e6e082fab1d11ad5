"""Braze catalogs: a refused request names the items that are to blame."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from retl.testing import FakeApi
from tests.api import TOKEN
from tests.presets.proof import Proof


class Catalog(FakeApi):
    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("authorization") != f"Bearer {self.token}":
            return 401, {"message": "Invalid API key"}
        assert path == "/catalogs/products/items"
        items = json.loads(body)["items"]
        bad = [one["id"] for one in items if one["id"] in self.refuse]
        if len(items) > 50 or bad:
            told = {
                "id": "invalid-fields",
                "message": "Some of the fields given do not exist",
                "parameters": ["id"],
            }
            errors = [{**told, "parameter_values": [one]} for one in bad] or [
                {"id": "request-includes-too-many-items"}
            ]
            return 400, {"errors": errors, "message": "Invalid Request"}
        for one in items:
            key = one.pop("id")
            if method == "DELETE":
                self.objects.pop(key, None)
            else:
                self.objects[key] = one if method == "PUT" else {**self.objects[key], **one}
        return 202, {"message": "success"}


class TestBrazeCatalogs(Proof):
    preset, limit = "braze_catalogs", 50
    vendor = partial(Catalog, refuse=["d@x.io"])
    connection = {"host": "rest.iad-03.braze.com", "api_key": TOKEN}
    parameters = {"catalog": "products"}
    bad = ("d@x.io", "Dan", -1)
    deletes: Mapping[str, Any] = parameters
