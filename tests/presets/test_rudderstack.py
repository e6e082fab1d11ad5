"""RudderStack: OK for everything that is not too large, so sizes are judged before anything is sent."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

from retl.destinations.batch import Field, Kind
from retl.testing import FakeApi
from tests.api import TOKEN
from tests.presets.proof import TEXT, Proof

LOGIN = b64encode(f"{TOKEN}:".encode()).decode()


class RudderStack(FakeApi):
    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("authorization") != f"Basic {LOGIN}":
            return 401, b"Failed to read writeKey from header"
        assert (method, path) == ("POST", "/v1/batch")
        calls = json.loads(body)["batch"]
        if len(body) > 4_000_000 or any(len(json.dumps(one)) > 32_768 for one in calls):
            return 413, b"Request size exceeds max limit"
        for one in calls:
            assert one["type"] == "identify"
            self.merge(one["userId"], one["context"]["traits"])
        return 200, b"OK"


class TestRudderStack(Proof):
    preset = "rudderstack"
    vendor = RudderStack
    connection = {"write_key": TOKEN, "data_plane": "vendor"}
    golden = ("rudderstack_identify.jsonl", 0, {}, (Field("name", TEXT),), [("u1", "Ann")])

    def alike(self, request: dict[str, Any]) -> Any:
        """Without what the SDK adds of itself."""
        (call,) = request["body"]["batch"]
        return request["path"], call["type"], call["userId"], call["context"]["traits"]

    def test_a_row_that_is_too_large_is_rejected_here(self, api: RudderStack) -> None:
        results = self.deliver(api, [self.rows[0], ("big@x.io", "x" * 33_000, 1), self.rows[1]])
        assert [result.kind for result in results] == [Kind.WRITTEN, Kind.REJECTED, Kind.WRITTEN]
        assert results[1].code == "TOO_LARGE"

    def test_a_batch_has_at_most_4_mb(self, api: RudderStack) -> None:
        many = [(f"k{n}", "x" * 30_000, n) for n in range(200)]
        assert {result.kind for result in self.deliver(api, many)} == {Kind.WRITTEN}
        assert len(api.objects) == 200
