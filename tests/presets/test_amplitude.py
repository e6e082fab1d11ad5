"""Amplitude: refused events are named by lists of indexes, and the others are sent again."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest

from retl.destinations.batch import Field, Kind
from retl.errors import Systemic
from retl.testing import FakeApi
from tests import api as fake
from tests.api import TOKEN
from tests.presets.proof import TEXT, Proof


class Amplitude(FakeApi):
    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        content = json.loads(body)
        assert (method, path) == ("POST", "/2/httpapi")
        if content["api_key"] != TOKEN:
            return 400, {"code": 400, "error": "Invalid API key"}
        events = content["events"]
        if len(body) > 1_000_000 or len(events) > 2000:
            return 413, {"code": 413, "error": "Payload too large"}
        bad = [n for n, one in enumerate(events) if one["user_id"] in self.refuse]
        if bad:
            said = {"code": 400, "error": "Request missing required field"}
            return 400, {**said, "events_with_invalid_fields": {"user_id": bad, "time": bad}}
        for one in events:
            assert one["event_type"] == "$identify"
            self.merge(one["user_id"], one["user_properties"]["$set"])
        return 200, {"code": 200, "events_ingested": len(events)}


class TestAmplitude(Proof):
    preset = "amplitude"
    vendor = partial(Amplitude, refuse=["d@x.io"])
    connection = {"api_key": TOKEN}
    bad = ("d@x.io", "Dan", -1)
    special = {"too large": [fake.answer(413, b'{"code":413,"error":"Payload too large"}')]}
    golden = ("amplitude_identify.jsonl", 0, {}, (Field("tier", TEXT),), [("u1", "gold")])

    def alike(self, request: dict[str, Any]) -> Any:
        """The first event, without what the SDK adds of itself."""
        event = request["body"]["events"][0]
        return request["path"], {one: event[one] for one in ("event_type", "user_id", "user_properties")}

    def test_a_request_has_the_ten_events_that_amplitude_advises(self, api: Amplitude) -> None:
        assert {one.kind for one in self.deliver(api, [(f"user{n}", "x", n) for n in range(25)])} == {
            Kind.WRITTEN
        }
        assert [len(json.loads(body)["events"]) for _, _, _, body in api.seen] == [10, 10, 5]

    def test_a_wrong_key_is_no_fault_of_the_rows(self, api: Amplitude) -> None:
        api.faults.append(fake.answer(400, b'{"code":400,"error":"Invalid API key: 1234"}'))
        with pytest.raises(Systemic):
            self.deliver(api, self.rows)
