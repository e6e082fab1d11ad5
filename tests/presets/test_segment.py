"""Segment: 200 for everything, so sizes are judged before anything is sent."""

from __future__ import annotations

from typing import Any

from retl.destinations.batch import Field, Kind
from retl.testing import FakeSegment
from retl.values.types import Type
from tests.api import TOKEN
from tests.presets.proof import Proof


class TestSegment(Proof):
    preset, limit = "segment", 2500
    vendor = FakeSegment
    connection = {"write_key": TOKEN}
    golden = ("segment_identify_batch.jsonl", 0, {}, (Field("churn_risk", Type("float")),), [("u1", 0.9)])

    def alike(self, request: dict[str, Any]) -> Any:
        """Without what the SDK adds of itself; the write key is in the header of both."""
        body = request["body"]
        rows = [{name: row[name] for name in ("type", "userId", "traits")} for row in body["batch"]]
        return {**request, "body": {"batch": rows}}

    def test_a_row_that_segment_would_lose_is_rejected_here(self, api: FakeSegment) -> None:
        results = self.deliver(api, [self.rows[0], ("big@x.io", "x" * 33_000, 1), self.rows[1]])
        assert [result.kind for result in results] == [Kind.WRITTEN, Kind.REJECTED, Kind.WRITTEN]
        assert results[1].code == "TOO_LARGE"
        assert self.contents(api) == self.expected(self.rows[:2])

    def test_200_for_everything_is_taken_for_what_it_says(self, api: FakeSegment) -> None:
        assert {result.kind for result in self.deliver(api, self.rows)} == {Kind.WRITTEN}
        assert b'"messageId"' not in api.seen[-1][3]  # a repeated id would make Segment drop a newer value
