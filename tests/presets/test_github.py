"""GitHub: an event per row, without a body in the answer."""

from __future__ import annotations

import json
from typing import Any

from retl.testing.messages import FakeChannel
from tests import api as fake
from tests.api import TOKEN
from tests.presets.proof import Proof

SECONDARY = b'{"message": "You have exceeded a secondary rate limit. Please wait."}'


class FakeGitHub(FakeChannel):
    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("authorization") != f"Bearer {TOKEN}":
            return 401, {"message": "Bad credentials"}
        assert (method, path) == ("POST", "/repos/o/r/dispatches")
        sent = json.loads(body)
        payload = sent["client_payload"]
        if payload["id"] in self.refuse:
            return 422, {"message": "Invalid request."}
        self.posted[payload["id"]] += 1
        self.objects[payload.pop("id")] = payload
        return 204, None


class TestGitHub(Proof):
    preset, write, idempotent = "github", "append", False
    vendor = staticmethod(lambda: FakeGitHub(refuse=["d@x.io"]))
    parameters = {"owner": "o", "repository": "r", "event": "retl"}
    bad = ("d@x.io", "Dan", 1)
    golden = ("github_dispatch.jsonl", 0, parameters, (), [("1",)])
    special = {"a secondary limit, told in a 403": [fake.answer(403, SECONDARY)]}
