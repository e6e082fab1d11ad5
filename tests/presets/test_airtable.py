"""Airtable: ten records, all or nothing, and the bad one has to be found."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from retl import destinations
from retl.destinations.batch import Field, Kind
from retl.testing import FakeAirtable
from tests import api as fake
from tests.presets.proof import WHOLE, Proof, Recorded, lines


class TestAirtable(Proof):
    preset, limit, key = "airtable", 10, "Email"
    vendor = partial(FakeAirtable, refuse=["d@x.io"])
    parameters = {"base": "appX", "table": "Tbl", "match": ["Email"]}
    bad = ("d@x.io", "Dan", -1)
    deletes = parameters
    ten = [(f"{n}@x", n) for n in range(10)]
    golden = ("airtable_batch_upsert.jsonl", 0, parameters, (Field("Score", WHOLE),), ten)

    def faults(self) -> dict[str, Any]:
        own = {"429 and no word of when": [fake.answer(503)]}  # Airtable's 30 s are in test_recordings
        return {**super().faults(), **own}

    def alike(self, request: dict[str, Any]) -> Any:
        request["body"].pop("returnFieldsByFieldId", None)  # the SDK spells out the default
        return request

    def recorded(self) -> Iterator[Recorded]:
        for one in lines("recordings/airtable.jsonl"):
            if one["method"] == "DELETE":
                ids = one["query"]["records%5B%5D"]
                kinds = [Kind.WRITTEN if one["status"] == 200 else Kind.REJECTED] * len(ids)
                yield Recorded(one, ids, kinds, "delete")
            elif one["method"] in ("POST", "PATCH"):
                rows = one["req_body"]["records"]
                kind = Kind.WRITTEN if one["status"] == 200 else Kind.REJECTED
                yield Recorded(one, [str(n) for n in range(len(rows))], [kind] * len(rows))

    def test_ids_are_told_by_the_field_that_is_merged_on(self, api: FakeAirtable) -> None:
        results = self.deliver(api, self.rows)
        assert [result.ref for result in results] == [f"rec{row[0]}" for row in self.rows]

    def test_one_record_that_is_gone_does_not_keep_the_others(self, api: FakeAirtable) -> None:
        refs = [result.ref for result in self.deliver(api, self.rows)]
        del api.objects[self.rows[1][0]]
        gone = self.deliver(api, [row[:1] for row in self.rows], "delete", refs=refs)
        assert [result.kind for result in gone] == [Kind.WRITTEN] * 3
        assert api.objects == {}

    def test_records_of_several_merged_fields_tell_no_id(self) -> None:
        kind, options = destinations.load("airtable"), self.options()
        assert kind.learns(options, "upsert", ["Email"])
        assert not kind.learns(options, "upsert", ["Email", "Year"])
