"""TikTok: 200 for everything, a whole request taken or refused by a code in the body."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from retl.testing import FakeApi
from tests import api as fake
from tests.api import TOKEN
from tests.presets.proof import Proof


class TikTok(FakeApi):
    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("access-token") != self.token:
            return 200, {"code": 40105, "message": "Access token is incorrect or has been revoked"}
        assert (method, path) == ("POST", "/open_api/v1.3/segment/mapping/")
        asked = json.loads(body)
        assert (asked["advertiser_ids"], asked["id_schema"]) == (["123"], ["EMAIL_SHA256"])
        keys = [one["id"] for row in asked["batch_data"] for one in row if one["audience_ids"] == ["456"]]
        if len(keys) > 1000 or self.refuse & set(keys):
            return 200, {"code": 40002, "message": "Parameter error"}
        for key in keys:
            if asked["action"] == "add":
                self.merge(key, {})
            else:
                assert asked["action"] == "delete"
                self.objects.pop(key, None)
        return 200, {"code": 0, "message": "OK", "data": {}}


class TestTikTok(Proof):
    preset, limit, key = "tiktok", 1000, "email_hash"
    vendor = partial(TikTok, refuse=["d@x.io"])
    connection = {"token": TOKEN}
    parameters = {"advertiser": "123", "audience": "456"}
    fields = ()
    rows = (("a@x.io",), ("b@x.io",), ("c@x.io",))
    bad = ("d@x.io",)
    deletes = parameters
    special = {"too often, in a 200": [fake.answer(200, b'{"code":40100,"message":"too frequently"}')] * 2}

    def expire(self, api: Any) -> None:
        api.faults.append(fake.answer(200, b'{"code":40105,"message":"Access token is incorrect"}'))
