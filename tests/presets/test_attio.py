"""Attio: one record a request, found by a unique attribute; deletes name it by its id."""

from __future__ import annotations

import json
from functools import partial
from typing import Any
from urllib.parse import parse_qs, urlsplit

from retl.errors import Systemic
from retl.testing import FakeApi
from tests import api as fake
from tests.api import TOKEN
from tests.presets.proof import Proof


class Attio(FakeApi):
    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("authorization") != f"Bearer {TOKEN}":
            return 401, {"status_code": 401, "type": "auth_error", "code": "unauthorized", "message": "no"}
        asked = urlsplit(path)
        if method == "DELETE":
            name = asked.path.removeprefix("/v2/objects/people/records/rec-").replace("%40", "@")
            gone = {"status_code": 404, "type": "invalid_request_error", "code": "not_found", "message": "no"}
            return (200, {}) if self.objects.pop(name, None) is not None else (404, gone)
        assert (method, asked.path) == ("PUT", "/v2/objects/people/records")
        values = json.loads(body)["data"]["values"]
        (match,) = parse_qs(asked.query)["matching_attribute"]
        (key,) = values.pop(match)
        if key in self.refuse:
            said = {"type": "invalid_request_error", "code": "validation_type", "message": "no such value"}
            return 400, {"status_code": 400, **said}
        self.merge(key, values)
        return 200, {"data": {"id": {"record_id": f"rec-{key}"}, "values": {}}}


class TestAttio(Proof):
    preset, key = "attio", "email"
    vendor = partial(Attio, refuse=["d@x.io"])
    parameters = {"object": "people", "match": "email_addresses"}
    bad, deletes = ("d@x.io", "Dan", -1), parameters
    stops = {
        "no such object": (fake.answer(404, b'{"code":"not_found","message":"no such object"}'), Systemic)
    }
    special = {"two writes at once": [fake.passed, fake.answer(409, b'{"code":"concurrent_write_conflict"}')]}
