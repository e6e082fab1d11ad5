"""SNS: forms, one message each, and answers in XML that are not read."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs

from retl.destinations.batch import Kind
from tests import api as fake
from tests.presets.proof import Proof
from tests.presets.queues import AWS, Aws

TOPIC = "arn:aws:sns:eu-west-1:123456789012:t"


class Sns(Aws):
    service = "sns"

    def take(self, body: bytes) -> tuple[int, Any]:
        form = {name: value for name, (value,) in parse_qs(body.decode()).items()}
        assert (form["Action"], form["TopicArn"]) == ("Publish", TOPIC)
        if self.keep(json.loads(form["Message"]), form.get("MessageDeduplicationId")):
            return 200, b"<PublishResponse><MessageId>1</MessageId></PublishResponse>"
        return 400, b"<ErrorResponse><Code>InvalidParameter</Code></ErrorResponse>"


class TestSns(Proof):
    preset, vendor, write, idempotent = "aws_sns", Sns, "append", False
    connection = AWS
    parameters = {"topic": TOPIC}
    bad = ("d@x.io", "Dan", 4)

    def test_a_fifo_topic_knows_a_message_again(self, api: Sns) -> None:
        api.faults += [fake.reset(applied=True), fake.instead(500)]
        results = self.deliver(api, self.rows[:2], parameters={**self.parameters, "group": "name"})
        assert {one.kind for one in results} == {Kind.WRITTEN}
        assert not api.doubled
