"""Braze: a campaign that the API triggers, for up to 50 users a request."""

from __future__ import annotations

import json
from typing import Any

from retl.testing.messages import FakeChannel
from tests.api import TOKEN
from tests.presets.proof import Proof


class FakeCampaigns(FakeChannel):
    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("authorization") != f"Bearer {TOKEN}":
            return 401, {"message": "Invalid API Key"}
        assert (method, path) == ("POST", "/campaigns/trigger/send")
        sent = json.loads(body)
        rows = sent["recipients"]
        if sent["campaign_id"] != "c1" or len(rows) > 50:
            return 400, {"message": "The maximum number of recipients is 50"}
        if self.refuse & {row["external_user_id"] for row in rows}:
            return 400, {"message": "Invalid recipient"}
        for row in rows:
            self.posted[row["external_user_id"]] += 1
            self.merge(row["external_user_id"], row["trigger_properties"])
        return 201, {"dispatch_id": "d", "message": "success"}


class TestBrazeCampaigns(Proof):
    preset, write, idempotent, limit = "braze_campaigns", "append", False, 50
    vendor = staticmethod(lambda: FakeCampaigns(refuse=["d@x.io"]))
    connection = {"api_key": TOKEN, "instance": "rest.example.com"}
    parameters = {"campaign": "c1"}
    bad = ("d@x.io", "Dan", 1)
    contract = ("braze/campaign.json", "")
