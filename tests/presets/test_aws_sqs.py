"""SQS: an answer for each message; a FIFO queue knows a message again for five minutes."""

from __future__ import annotations

import json
from typing import Any

from retl.destinations.batch import Field, Kind
from retl.errors import Systemic
from tests import api as fake
from tests.presets.proof import TEXT, Proof
from tests.presets.queues import AWS, Aws, alike

QUEUE = "https://sqs.eu-west-1.amazonaws.com/123456789012/q.fifo"


class Sqs(Aws):
    service, asked = "sqs", "AmazonSQS.SendMessageBatch"

    def take(self, body: bytes) -> tuple[int, Any]:
        content = json.loads(body)
        assert content["QueueUrl"] == QUEUE
        if len(content["Entries"]) > 10:
            return 400, {"__type": "com.amazonaws.sqs#TooManyEntriesInBatchRequest", "message": "too many"}
        good, bad = [], []
        for one in content["Entries"]:
            if self.keep(json.loads(one["MessageBody"]), one.get("MessageDeduplicationId")):
                good.append({"Id": one["Id"], "MessageId": "m"})
            else:
                bad.append({"Id": one["Id"], "SenderFault": True, "Code": "InvalidMessageContents"})
        return 200, {"Successful": good, "Failed": bad}


class TestSqs(Proof):
    preset, vendor, write, limit, idempotent = "aws_sqs", Sqs, "append", 10, False
    connection = AWS
    parameters = {"queue": QUEUE}
    bad = ("d@x.io", "Dan", 4)
    stops = {"no queue": (fake.answer(400, b'{"__type": "com.amazonaws.sqs#QueueDoesNotExist"}'), Systemic)}
    golden = (
        "aws_sqs_send_batch.jsonl",
        0,
        {"queue": QUEUE, "group": "group"},
        (Field("group", TEXT),),
        [("k1", "g"), ("k2", "g")],
    )

    def alike(self, request: dict[str, Any]) -> Any:
        return alike(request, "Entries", "MessageBody")

    def test_a_fifo_queue_knows_a_message_again(self, api: Sqs) -> None:
        fifo = {**self.parameters, "group": "name"}
        api.faults += [fake.reset(applied=True), fake.instead(500)]
        assert [one.kind for one in self.deliver(api, self.rows, parameters=fifo)][:2] == [Kind.WRITTEN] * 2
        assert not api.doubled
