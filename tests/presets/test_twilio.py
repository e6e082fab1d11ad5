"""Twilio: a message per row, as a form; queued, and never sent twice without being asked for."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

from retl.destinations.batch import Field
from retl.testing.messages import FakeChannel
from tests.api import TOKEN
from tests.presets.proof import TEXT, Proof

ACCOUNT = "AC0000000000000000000000000000000a"
FIELDS = (Field("To", TEXT), Field("From", TEXT), Field("Body", TEXT))


class FakeTwilio(FakeChannel):
    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        assert (method, path) == ("POST", f"/2010-04-01/Accounts/{ACCOUNT}/Messages.json")
        return self.post(dict(parse_qsl(body.decode())))

    def post(self, content: Any) -> tuple[int, Any]:
        if not content.get("To"):
            return 400, {
                "code": 21211,
                "message": "The 'To' number is not a valid phone number.",
                "status": 400,
            }
        self.posted[content["Body"]] += 1
        return 201, {"sid": f"SM{len(self.posted)}", "status": "queued"}


class TestTwilio(Proof):
    preset, vendor, write, idempotent = "twilio", FakeTwilio, "append", False
    connection = {"account": ACCOUNT, "user": ACCOUNT, "secret": TOKEN}
    fields = FIELDS
    rows = tuple((key, "+15550001", "+15550002", f"message {key}") for key in "abc")
    bad = ("d", None, "+15550002", "message d")
    contract = ("twilio/messages.json", "")
    golden = ("twilio_message.jsonl", 0, {}, FIELDS, [("a", "+15550001", "+15550002", "hi & bye é")])

    def contents(self, api: Any) -> dict[str, Any]:
        return {
            text[-1]: self.sent_as((*row[:3], text))
            for row in self.rows
            for text in api.posted
            if row[3] == text
        }

    def alike(self, request: dict[str, Any]) -> Any:
        body = request["body"]
        return {**request, "body": dict(parse_qsl(body)) if isinstance(body, str) else body}
