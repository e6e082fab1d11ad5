"""Service Bus: a batch as a whole, and MessageIds that a queue may know again."""

from __future__ import annotations

import json
from typing import Any

from retl.destinations.batch import Kind
from tests import api as fake
from tests.api import TOKEN
from tests.presets.proof import Proof
from tests.presets.queues import Queue


class ServiceBus(Queue):
    detects = False

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if not headers["authorization"].startswith("SharedAccessSignature sr="):
            return 401, None
        assert path == "/orders/messages"
        assert headers["content-type"] == "application/vnd.microsoft.servicebus.json"
        messages = [
            (json.loads(one["Body"]), one["BrokerProperties"]["MessageId"]) for one in json.loads(body)
        ]
        if len(messages) > 100 or any(one["id"] in self.refuse for one, _ in messages):
            return 400, None
        for one, name in messages:
            self.keep(one, name if self.detects else None)
        return 201, None


class TestServiceBus(Proof):
    preset, vendor, write, limit, idempotent = "azure_service_bus", ServiceBus, "append", 100, False
    connection = {"namespace": "shop", "key_name": "send", "key": TOKEN}
    parameters = {"queue": "orders"}
    bad = ("d@x.io", "Dan", 4)

    def test_a_queue_that_detects_duplicates_gets_each_message_once(self, api: ServiceBus) -> None:
        api.detects = True
        api.faults += [fake.reset(applied=True), fake.instead(500)]
        results = self.deliver(api, self.rows, parameters={**self.parameters, "detects": "10m"})
        assert {one.kind for one in results} == {Kind.WRITTEN}
        assert not api.doubled
