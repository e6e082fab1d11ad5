"""HubSpot: rows named by trace id, an order of its own, text values, 100 rows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from retl.destinations.batch import Field, Kind
from retl.errors import Later
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
    stops = {"a spent day": (fake.answer(429, b'{"policyName":"DAILY"}'), Later)}
    golden = ("hubspot_batch_upsert.jsonl", 0, {}, (Field("firstname", TEXT),), [("a@x.io", "A")])

    def sent_as(self, row: Any) -> dict[str, Any]:
        return {"name": row[1] or "", "visits": str(row[2])}

    def alike(self, request: dict[str, Any]) -> Any:
        for one in request["body"]["inputs"]:
            del one["objectWriteTraceId"]  # any text will do
        return request

    def recorded(self) -> Iterator[Recorded]:
        for one in lines("recordings/hubspot.jsonl"):
            given = one["req_body"]["inputs"] if "/batch/" in one["path"] else []
            kinds, ids = [Kind.WRITTEN] * len(given), [row.get("id") for row in given]
            if one["path"].endswith("archive"):
                yield Recorded(one, ids, kinds, "delete")
            elif any(ids):
                yield Recorded(one, ids, kinds, refs=ids, parameters={"match": "hs_object_id"})
            elif given:
                known = ("email", "grouparoo_object_property", "name")
                match = next(name for name in known if name in given[0]["properties"])
                found = {row["properties"][match]: row["id"] for row in one["resp_body"]["results"]}
                names = [row["properties"][match] for row in given]
                refs = [found[name] for name in names]
                yield Recorded(one, names, kinds, refs=refs, parameters={"match": match})
