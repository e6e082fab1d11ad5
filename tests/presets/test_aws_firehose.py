"""Firehose: records in base64, an answer for each, in order."""

from __future__ import annotations

import json
from base64 import b64decode
from typing import Any

from retl.destinations.batch import Field
from tests.presets.proof import WHOLE, Proof
from tests.presets.queues import AWS, Aws, alike


class Firehose(Aws):
    service, asked = "firehose", "Firehose_20150804.PutRecordBatch"

    def take(self, body: bytes) -> tuple[int, Any]:
        content = json.loads(body)
        assert content["DeliveryStreamName"] == "s"
        if len(content["Records"]) > 500:
            return 400, {"__type": "InvalidArgumentException", "message": "more than 500 records"}
        told = [
            {"RecordId": "r"}
            if self.keep(json.loads(b64decode(one["Data"])))
            else {"ErrorCode": "InvalidRecord"}
            for one in content["Records"]
        ]
        return 200, {"FailedPutCount": sum("ErrorCode" in one for one in told), "RequestResponses": told}


class TestFirehose(Proof):
    preset, vendor, write, limit, idempotent = "aws_firehose", Firehose, "append", 500, False
    connection = AWS
    parameters = {"stream": "s"}
    bad = ("d@x.io", "Dan", 4)
    golden = (
        "aws_firehose_put_record_batch.jsonl",
        0,
        parameters,
        (Field("a", WHOLE),),
        [("k", 1), ("l", 2)],
    )

    def alike(self, request: dict[str, Any]) -> Any:
        return alike(request, "Records", "Data")
