"""SAP OData: a token and its session with each write, and an entity at the address of its key."""

from __future__ import annotations

import json
from base64 import b64encode
from functools import partial
from typing import Any, ClassVar
from urllib.parse import unquote

import pytest

from retl.destinations.batch import Kind
from retl.errors import Systemic
from retl.testing import FakeApi
from tests import api as fake
from tests.api import TOKEN
from tests.presets.proof import Proof

LOGIN = "Basic " + b64encode(f"RETL:{TOKEN}".encode()).decode()


class Gateway(FakeApi):
    """A token belongs to a session; `session` counts them, and writes need the newest."""

    session = doubled = 0

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("authorization") != LOGIN:
            return 401, {}
        if method == "GET" and path == "/sap/":
            self.session += 1
            cookies = {
                "Set-Cookie": f"SID=s{self.session}; path=/; HttpOnly",
                "set-cookie": "context=x; path=/",
            }
            return 200, (b'{"d": {}}', {"X-CSRF-Token": f"t{self.session}", **cookies})
        wanted = {"x-csrf-token": f"t{self.session}", "cookie": f"SID=s{self.session}; context=x"}
        if method != "GET" and {name: headers.get(name) for name in wanted} != wanted:
            return 403, (b"CSRF token validation failed", {"X-CSRF-Token": "Required"})
        place, content = unquote(path.removeprefix("/sap/A_Product")), json.loads(body) if body else None
        key = place.removeprefix("('").removesuffix("')").replace("''", "'") or content.pop("Product")
        if place and key not in self.objects:
            return 404, {
                "error": {"code": "005056A509B11EE1B9A8FEC11C21578E", "message": {"value": "not found"}}
            }
        if method == "GET":
            return 200, {"d": {"Product": key, **self.objects[key]}}
        if key in self.refuse:
            return 400, {
                "error": {"code": "M3/305", "message": {"lang": "en", "value": "The unit is unknown"}}
            }
        assert not place or headers["if-match"] == "*"
        if method == "DELETE":
            del self.objects[key]
        else:
            assert not place or headers["x-http-method"] == "MERGE"
            self.doubled += not place and key in self.objects
            self.merge(key, content)
        return (201 if not place else 204), {"d": {}} if not place else None


class TestSap(Proof):
    preset, key = "sap_odata", "Product"
    vendor = partial(Gateway, refuse=["d@x.io"])
    connection = {"url": "https://vendor/sap", "username": "RETL", "password": TOKEN}
    parameters = {"set": "A_Product", "match": "Product"}
    rows = (("O'Neil", "Ann", 1), ("b@x.io", "Bob", 2), ("c@x.io", "Cid", 3))
    bad = ("d@x.io", "Dan", -1)
    deletes: ClassVar = parameters
    special = {"the answer to a creation is lost": [fake.passed, fake.passed, fake.reset(applied=True)]}

    def test_a_session_that_ended_is_renewed_and_a_refusal_stops_the_run(self, api: Gateway) -> None:
        def ended(exchange: Any) -> bool:
            api.session += 1
            return False

        api.faults += [fake.passed, fake.passed, fake.passed, fake.passed, ended]  # look, token, write, look
        assert {one.kind for one in self.deliver(api, self.rows)} == {Kind.WRITTEN}
        assert (self.contents(api), api.doubled) == (self.expected(self.rows), 0)
        api.faults += [fake.passed, fake.answer(403, b"no role")]
        with pytest.raises(Systemic, match="no X-CSRF-Token"):
            self.deliver(api, self.rows)
