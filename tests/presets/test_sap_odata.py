"""SAP OData: a token and its session with each write, and an entity at the address of its whole key."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
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
    """A token belongs to a session; `session` counts them, and those up to `ended` are over. `keys` are the
    key properties; the ETag counts changes."""

    session = ended = doubled = 0
    keys: tuple[str, ...] = ("Product",)

    changes: Mapping[str, int] = MappingProxyType({})

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
        number = headers.get("x-csrf-token", "t0")[1:]
        alive = self.ended < int(number) and headers.get("cookie") == f"SID=s{number}; context=x"
        if method != "GET" and not alive:
            return 403, (b"CSRF token validation failed", {"X-CSRF-Token": "Required"})
        place, content = unquote(path.removeprefix("/sap/A_Product")), json.loads(body) if body else None
        key = place.removeprefix("(").removesuffix(")") or self.address(content)
        key = key.removeprefix("'").removesuffix("'").replace("''", "'") if len(self.keys) == 1 else key
        if place and key not in self.objects:
            return 404, {"error": {"code": "005056A509B1", "message": {"value": "not found"}}}
        if method == "GET":
            return self.shown(key)
        if key in self.refuse:
            return 400, {"error": {"code": "M3/305", "message": {"lang": "en", "value": "Unknown unit"}}}
        if place and headers["if-match"] not in ("*", self.tag(key)):
            return 412, {"error": {"code": "/IWBEP/CM_MGW_RT/102", "message": {"value": "ETag"}}}
        if method == "DELETE":
            del self.objects[key]
            return 204, None
        assert not place or headers["x-http-method"] == "MERGE"
        self.doubled += not place and key in self.objects
        self.merge(key, content)
        return (204, (b"", {"ETag": self.tag(key)})) if place else (201, self.shown(key)[1])

    def address(self, content: dict[str, Any]) -> str:
        values = [content.pop(name) for name in self.keys]
        quoted = [str(one) if isinstance(one, int) else "'" + one.replace("'", "''") + "'" for one in values]
        named = ",".join(f"{name}={one}" for name, one in zip(self.keys, quoted, strict=True))
        return named if len(values) > 1 else values[0]

    def shown(self, key: str) -> tuple[int, Any]:
        shown = json.dumps({"d": {self.keys[0]: key, **self.objects[key]}}).encode()
        return 200, (shown, {"ETag": self.tag(key), "Content-Type": "application/json"})

    def tag(self, key: str) -> str:
        return f"W/\"'{self.changes.get(key, 0)}'\""


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
            api.ended = api.session
            return False

        api.faults += [fake.passed, fake.passed, fake.passed, fake.passed, ended]  # look, token, write, look
        assert {one.kind for one in self.deliver(api, self.rows)} == {Kind.WRITTEN}
        assert (self.contents(api), api.doubled) == (self.expected(self.rows), 0)
        api.faults += [fake.passed, fake.answer(403, b"no role")]
        with pytest.raises(Systemic, match="no X-CSRF-Token"):
            self.deliver(api, self.rows)
