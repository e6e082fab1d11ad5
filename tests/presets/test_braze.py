"""Braze: 201 is the success, and what was refused is told by its index."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from retl.destinations.batch import Kind
from retl.testing import FakeBraze
from tests import api as fake
from tests.api import TOKEN
from tests.presets.proof import Proof, Recorded, lines


class TestBraze(Proof):
    preset, limit, key = "braze", 75, "external_id"
    vendor = partial(FakeBraze, refuse=["d@x.io"])
    connection = {"api_key": TOKEN, "instance": "rest.iad-01.braze.com"}
    bad = ("d@x.io", "Dan", -1)
    deletes = {"erase": True}
    contract = (
        "braze/openapi.json",
        "#/paths/~1users~1track/post/requestBody/content/application~1json/schema",
    )
    special = {
        "429 and its own header": [fake.answer(429, b"{}", X_RateLimit_Retry_After="0")],
        "an error that names nobody": [
            fake.changed(lambda said: {**said, "errors": [{"type": "x", "index": 9}]})
        ],
    }

    def recorded(self) -> Iterator[Recorded]:
        for one in lines("recordings/braze.jsonl"):
            if one["path"] == "/users/track":
                rows = one["req_body"]["attributes"]
                assert one["resp_body"]["attributes_processed"] == len(rows)
                yield Recorded(one, [row["external_id"] for row in rows], [Kind.WRITTEN] * len(rows))
            elif one["path"] == "/users/delete":
                names = one["req_body"]["external_ids"]
                yield Recorded(one, names, [Kind.WRITTEN] * len(names), "delete")

    def test_201_with_errors_by_index_refuses_those_rows_alone(self) -> None:
        said = {"message": "success", "attributes_processed": 2, "errors": [{"type": "bad", "index": 1}]}
        one = {"status": 201, "resp_headers": {}, "resp_body": said}
        outcome = self.read(Recorded(one, ["a", "b", "c"], []))
        assert [outcome.result(n).kind for n in range(3)] == [Kind.WRITTEN, Kind.REJECTED, Kind.WRITTEN]
