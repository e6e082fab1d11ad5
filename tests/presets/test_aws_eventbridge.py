"""EventBridge: an answer for each event, in order."""

from __future__ import annotations

import json
from typing import Any

from retl.destinations.batch import Field
from tests.presets.proof import WHOLE, Proof
from tests.presets.queues import AWS, Aws, alike


class EventBridge(Aws):
    service, asked = "events", "AWSEvents.PutEvents"

    def take(self, body: bytes) -> tuple[int, Any]:
        entries = json.loads(body)["Entries"]
        if len(entries) > 10:
            return 400, {"__type": "ValidationException", "message": "more than 10 entries"}
        told = [
            {"EventId": "11710aed-b79e"}
            if self.keep(json.loads(one["Detail"]))
            else {"ErrorCode": "InvalidArgument"}
            for one in entries
        ]
        return 200, {"FailedEntryCount": sum("ErrorCode" in one for one in told), "Entries": told}


class TestEventBridge(Proof):
    preset, vendor, write, limit, idempotent = "aws_eventbridge", EventBridge, "append", 10, False
    connection = AWS
    parameters = {"detail_type": "row", "bus": "b"}
    bad = ("d@x.io", "Dan", 4)
    golden = ("aws_eventbridge_put_events.jsonl", 0, parameters, (Field("a", WHOLE),), [("k", 1)])

    def alike(self, request: dict[str, Any]) -> Any:
        return alike(request, "Entries", "Detail")
