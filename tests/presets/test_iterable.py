"""Iterable: those it refused are named by value, and counted."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from retl.destinations.batch import Kind
from retl.testing import FakeIterable
from tests import api as fake
from tests.api import TOKEN
from tests.presets.proof import Proof, Recorded, lines


class TestIterable(Proof):
    preset, limit = "iterable", 1000
    vendor = partial(FakeIterable, refuse=["d@x.io"])
    connection = {"api_key": TOKEN}
    bad = ("d@x.io", "Dan", -1)
    deletes = {"match": "email"}
    special = {"more failures than names": [fake.changed(lambda said: {**said, "failCount": 2})]}

    def recorded(self) -> Iterator[Recorded]:
        for one in lines("recordings/iterable.jsonl"):
            if one["method"] == "DELETE" and one["path"].startswith("/api/users/"):
                yield Recorded(one, ["somebody"], [Kind.WRITTEN], "delete")
            elif one["path"].endswith("subscribe"):  # answers in the same form
                names = [row["email"] for row in one["req_body"]["subscribers"]]
                yield Recorded(one, names, [Kind.WRITTEN] * len(names))

    def test_user_ids_are_named_in_a_list_of_their_own(self) -> None:
        said = {"successCount": 1, "failCount": 1, "invalidEmails": [], "invalidUserIds": ["u2"]}
        one = {"status": 200, "resp_headers": {}, "resp_body": said}
        outcome = self.read(Recorded(one, ["u1", "u2"], [], parameters={"match": "userId"}))
        assert [outcome.result(n).kind for n in range(2)] == [Kind.WRITTEN, Kind.REJECTED]
