"""Discord: a webhook that answers 204, one message per row."""

from __future__ import annotations

import json
from typing import Any

from retl.destinations.batch import Field
from retl.testing.messages import FakeChannel
from tests import api as fake
from tests.presets.proof import TEXT, Proof
from tests.presets.webhooks import PATH


class FakeDiscord(FakeChannel):
    def post(self, content: Any) -> tuple[int, Any]:
        assert content["allowed_mentions"] == {"parse": []}
        if not content["content"]:
            return 400, {"code": 50006, "message": "Cannot send an empty message"}
        self.posted[content["content"]] += 1
        return 204, None


class TestDiscord(Proof):
    preset, vendor, write, idempotent = "discord", FakeDiscord, "append", False
    connection = {"url": f"https://vendor{PATH}"}
    fields = (Field("text", TEXT),)
    rows = (("a", "one"), ("b", "two"), ("c", "three"))
    bad = ("d", None)
    contract = ("discord/webhook.json", "")
    throttled = json.dumps(
        {"message": "You are being rate limited.", "retry_after": 0.1, "global": False}
    ).encode()

    def expire(self, api: Any) -> None:
        api.faults.append(fake.answer(404, b'{"message": "Unknown Webhook", "code": 10015}'))

    def contents(self, api: Any) -> dict[str, Any]:
        names = {row[1]: row[0] for row in self.rows}
        return {names[text]: {"text": text} for text in api.posted}
