"""Iterable lists: members named by value, and counted."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from retl.destinations.batch import Field, Kind
from retl.testing import FakeIterableLists
from tests import api as fake
from tests.api import TOKEN
from tests.presets.proof import TEXT, Proof, Recorded, lines


class TestIterableLists(Proof):
    preset, limit = "iterable_lists", 1000
    vendor = partial(FakeIterableLists, refuse=["nobody"])
    connection = {"api_key": TOKEN}
    parameters = deletes = {"list": 7}
    fields = ()
    rows = (("a@x.io",), ("b@x.io",), ("c@x.io",))
    bad = ("nobody",)
    special = {"more failures than names": [fake.changed(lambda said: {**said, "failCount": 2})]}

    def recorded(self) -> Iterator[Recorded]:
        for one in lines("recordings/iterable.jsonl"):
            _, _, verb = one["path"].rpartition("/")
            if verb in ("subscribe", "unsubscribe"):
                names = [row["email"] for row in one["req_body"]["subscribers"]]
                operation = "upsert" if verb == "subscribe" else "delete"
                yield Recorded(one, names, [Kind.WRITTEN] * len(names), operation)

    def test_those_that_failed_for_another_reason_are_named_too(self) -> None:
        failed = {"successCount": 1, "failCount": 1, "failedUpdates": {"failedEmails": ["b"]}}
        outcome = self.read(
            Recorded({"status": 200, "resp_headers": {}, "resp_body": failed}, ["a", "b"], [])
        )
        assert [outcome.result(n).kind for n in range(2)] == [Kind.WRITTEN, Kind.REJECTED]

    def test_fields_go_along_as_data_fields(self) -> None:
        shape = self.shape((Field("tier", TEXT),))
        assert self.request(self.parameters, shape, [("a@x.io", "gold")])["body"] == {
            "listId": 7,
            "subscribers": [{"email": "a@x.io", "dataFields": {"tier": "gold"}}],
        }
