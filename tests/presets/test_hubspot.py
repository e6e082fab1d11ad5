"""HubSpot: rows named by trace id, an order of its own, text values, 100 rows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from retl.destinations.batch import Field, Kind
from retl.errors import DefinitionError, Later, Unavailable
from retl.testing import FakeHubSpot
from tests import api as fake
from tests.presets.proof import TEXT, Proof, Recorded, lines


class TestHubSpot(Proof):
    preset, limit = "hubspot", 100
    vendor = partial(FakeHubSpot, refuse=["d@x.io"])
    bad = ("d@x.io", "Dan", -1)
    deletes = {"match": "email"}
    throttled = (
        b'{"status":"error","category":"RATE_LIMITS","message":"You have reached your secondly limit."}'
    )
    special = {
        "reordered once more": [fake.changed(lambda said: {**said, "results": said["results"][::-1]})],
        "nobody is named": [fake.changed(lambda said: {**said, "results": []})],
    }
    doubtful = frozenset({"nobody is named"})
    golden = ("hubspot_batch_upsert.jsonl", 0, {}, (Field("firstname", TEXT),), [("a@x.io", "A")])

    def sent_as(self, row: Any) -> dict[str, Any]:
        return {"name": row[1] or "", "visits": str(row[2])}

    def alike(self, request: dict[str, Any]) -> Any:
        for one in request["body"]["inputs"]:
            del one["objectWriteTraceId"]  # any text will do
        return request

    def recorded(self) -> Iterator[Recorded]:
        for one in lines("recordings/hubspot.jsonl"):
            if "/batch/" not in one["path"]:
                continue
            given = one["req_body"]["inputs"]
            kinds = [Kind.WRITTEN] * len(given)
            if one["path"].endswith("archive"):
                yield Recorded(one, [row["id"] for row in given], kinds, "delete")
            elif "id" in given[0]:
                ids = [row["id"] for row in given]
                yield Recorded(one, ids, kinds, refs=ids, parameters={"match": "hs_object_id"})
            else:
                match = next(
                    name
                    for name in ("email", "grouparoo_object_property", "name")
                    if name in given[0]["properties"]
                )
                names = [row["properties"][match] for row in given]
                found = {row["properties"][match]: row["id"] for row in one["resp_body"]["results"]}
                yield Recorded(
                    one, names, kinds, refs=[found[name] for name in names], parameters={"match": match}
                )

    def test_results_come_back_in_an_order_of_their_own(self) -> None:
        reordered = [
            one
            for one in self.recorded()
            if one.refs
            and one.operation == "upsert"
            and [row["id"] for row in one.answer["resp_body"]["results"]] != list(one.refs)
        ]
        assert reordered
        for one in reordered:
            outcome = self.read(one)
            assert [outcome.result(n).ref for n in range(len(one.names))] == one.refs

    def test_a_429_without_retry_after_is_passed_on_without_a_time(self) -> None:
        storm = [one for one in lines("recordings/hubspot.jsonl") if one["status"] == 429]
        assert storm
        for one in storm:
            with pytest.raises(Unavailable) as caught:
                self.read(Recorded(one, ["a"], []))
            assert caught.value.retry_after is None
            assert "secondly limit" in caught.value.message

    def test_a_spent_day_ends_the_run(self, api: FakeHubSpot) -> None:
        api.faults.append(fake.answer(429, b'{"category":"RATE_LIMITS","policyName":"DAILY"}'))
        with pytest.raises(Later):
            self.deliver(api, self.rows)

    def test_records_whose_key_is_their_id_are_archived_by_it(self, api: FakeHubSpot) -> None:
        how = {"match": "hs_object_id"}
        self.deliver(api, self.rows, parameters=how)
        self.deliver(api, [row[:1] for row in self.rows[:2]], "delete", how)
        assert self.contents(api) == self.expected(self.rows[2:])

    @pytest.mark.parametrize("match", ["email", "hs_object_id"])
    def test_contacts_are_erased_where_it_is_said_by_name(self, api: FakeHubSpot, match: str) -> None:
        how = {"match": match, "delete": "gdpr"}
        self.deliver(api, self.rows, parameters=how)
        for _ in range(2):
            gone = self.deliver(api, [row[:1] for row in self.rows[:2]], "delete", how)
            assert [result.kind for result in gone] == [Kind.WRITTEN] * 2
            assert self.contents(api) == self.expected(self.rows[2:])
        assert set(api.erased) == {(match, row[0]) for row in self.rows[:2]}

    def test_only_contacts_can_be_erased(self, api: FakeHubSpot) -> None:
        with pytest.raises(DefinitionError) as caught:
            self.deliver(api, [self.rows[0][:1]], "delete", {"object": "deals", "delete": "gdpr"})
        assert "`delete: gdpr`, `object: contacts`, `match: email`" in caught.value.message
        assert not api.seen
