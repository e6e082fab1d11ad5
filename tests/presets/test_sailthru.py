"""Sailthru: JSON inside a form, signed with a digest of all its values."""

from __future__ import annotations

import json
from functools import partial
from hashlib import md5
from typing import Any
from urllib.parse import parse_qsl

from retl.testing import FakeApi
from tests.api import TOKEN
from tests.presets.proof import Proof


class FakeSailthru(FakeApi):
    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        assert (method, path) == ("POST", "/user")
        form = dict(parse_qsl(body.decode()))
        signature = form.pop("sig")
        if (
            md5((TOKEN + "".join(sorted(form.values()))).encode(), usedforsecurity=False).hexdigest()
            != signature
        ):
            return 401, {"error": 5, "errormsg": "Invalid signature"}
        assert (form["api_key"], form["format"]) == ("key-of-the-account", "json")
        user = json.loads(form["json"])
        assert user["key"] == "email"
        if user["id"] in self.refuse:
            return 400, {"error": 11, "errormsg": "Invalid email: this is no address"}
        self.merge(user["id"], user["vars"])
        return 200, {"ok": True}


class TestSailthru(Proof):
    preset = "sailthru"
    vendor = partial(FakeSailthru, refuse=["d@x.io"])
    connection = {"api_key": "key-of-the-account", "secret": TOKEN}
    rows = (("a@x.io", "Ann", 1), ("b@x.io", "Bob", 2), ("c@x.io", "Cid", 3))
    bad = ("d@x.io", "Dan", -1)
    throttled = b'{"error": 43, "errormsg": "Too many POST requests this minute to /user API"}'
