"""Pub/Sub: messages in base64, and an id for each."""

from __future__ import annotations

import json
from base64 import b64decode
from typing import Any

from tests.presets.google import KEY, Google
from tests.presets.oauth import expire
from tests.presets.proof import Proof
from tests.presets.queues import Queue


class PubSub(Google, Queue):
    def take(self, method: str, path: str, content: Any) -> tuple[int, Any]:
        assert path == "/v1/projects/p/topics/t:publish"
        messages = [json.loads(b64decode(one["data"])) for one in content["messages"]]
        if len(messages) > 1000 or any(one["id"] in self.refuse for one in messages):
            return 400, {"error": {"code": 400, "status": "INVALID_ARGUMENT", "message": "invalid"}}
        assert [one["attributes"]["key"] for one in content["messages"]] == [one["id"] for one in messages]
        for one in messages:
            self.keep(one)
        return 200, {"messageIds": [str(n) for n in range(len(messages))]}


class TestPubSub(Proof):
    preset, vendor, write, limit, idempotent, renews = "google_pubsub", PubSub, "append", 1000, False, True
    connection = {"key": KEY}
    parameters = {"project": "p", "topic": "t"}
    bad = ("d@x.io", "Dan", 4)
    contract = ("google/pubsub.json", "#/schemas/PublishRequest")

    def expire(self, api: Any) -> None:
        expire(api)
