"""Slack: a text `ok`, one message per row, never twice without being asked for."""

from __future__ import annotations

import json
from typing import Any

from retl.destinations import load
from retl.destinations.batch import Field, Kind
from retl.testing import FakeSlack
from retl.values.types import Type
from tests import api as fake
from tests.presets.proof import TEXT, Proof
from tests.presets.webhooks import PATH


class TestSlack(Proof):
    preset, vendor, write, idempotent = "slack", FakeSlack, "append", False
    connection = {"url": f"https://vendor{PATH}"}
    fields = (Field("text", TEXT),)
    rows = (("a", "one"), ("b", "two"), ("c", "three"))
    bad = ("d", None)
    golden = (
        "slack_webhook.jsonl",
        0,
        {"blocks": "blocks"},
        (Field("text", TEXT), Field("blocks", Type("json"))),
        [("a", "run failed", '[{"type":"section","text":{"type":"mrkdwn","text":"*run* failed"}}]')],
    )

    def expire(self, api: Any) -> None:
        api.faults.append(fake.answer(404, b"no_service"))

    def contents(self, api: Any) -> dict[str, Any]:
        names = {row[1]: row[0] for row in self.rows}
        return {names[text]: {"text": text} for text in api.posted}

    def alike(self, request: dict[str, Any]) -> Any:
        return {**request, "path": "its address, which is the secret"}

    def test_a_200_that_is_not_ok_is_no_success(self, api: FakeSlack) -> None:
        api.faults.append(fake.instead(200, b"maybe"))
        kinds = [result.kind for result in self.deliver(api, self.rows)]
        assert kinds == [Kind.UNKNOWN, Kind.WRITTEN, Kind.WRITTEN]
        assert not api.doubled

    def test_the_address_is_never_shown(self, api: FakeSlack) -> None:
        options = self.options(api.url)
        destination = load(self.preset)(options, self.shape())
        other = load(self.preset)(self.options("http://127.0.0.1:1"), self.shape())
        assert "token" not in f"{options!r} {destination.capabilities} {destination.options!r}"
        assert destination.capabilities.object != other.capabilities.object
        results = self.deliver(api, self.rows)
        assert {result.kind for result in results} == {Kind.WRITTEN}
        assert json.dumps([path for _, path, _, _ in api.seen]).count(PATH) == len(self.rows)
