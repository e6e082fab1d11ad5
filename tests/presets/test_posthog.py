"""PostHog: events that set properties of persons; a success is received, not applied."""

from __future__ import annotations

import json
from typing import Any

from retl.destinations.batch import Field
from retl.testing import FakeApi
from tests.api import TOKEN
from tests.presets.proof import TEXT, WHOLE, Proof


class PostHog(FakeApi):
    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        assert (method, path) == ("POST", "/batch/")
        content = json.loads(body)
        if content["api_key"] != TOKEN:
            return 401, {"type": "authentication_error", "code": "invalid_api_key"}
        if len(body) > 20_000_000:
            return 413, b"too large"
        for one in content["batch"]:
            assert one["event"] == "$set"
            self.merge(one["distinct_id"], one["$set"])
        return 200, {"status": "Ok"}


class TestPostHog(Proof):
    preset = "posthog"
    vendor = PostHog
    connection = {"api_key": TOKEN}
    golden = ("posthog_set.jsonl", 0, {}, (Field("name", TEXT), Field("n", WHOLE)), [("1", "Ann", 1)])

    def alike(self, request: dict[str, Any]) -> Any:
        """Without what the SDK adds of itself."""
        (event,) = request["body"]["batch"]
        kept = {name: event[name] for name in ("event", "distinct_id", "$set")}
        return request["path"], kept, event["properties"]["$geoip_disable"]
