"""Meta: an audience is a set, and an answer counts the bad entries without naming them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from retl.destinations.batch import Field, Kind
from tests import api as fake
from tests.api import TOKEN
from tests.presets.audiences import Meta, payload
from tests.presets.proof import TEXT, Proof, Recorded, lines

PEOPLE = [
    ("ba67a97f9167ef676d5d6a62d228b8e22b30b63bba8481f40f8564ecd1a07023",),
    ("42299879eed2c1095691685b9af8693c6e60c4950a73e6da5bf1e46e27147af8",),
]


class TestMeta(Proof):
    preset, vendor, limit, key = "meta", Meta, 10_000, "EXTERN_ID"
    connection = {"token": TOKEN}
    parameters = {"audience": "1234", "identifiers": ["EXTERN_ID", "EMAIL"]}
    fields = (Field("EMAIL", TEXT),)
    rows = (("a", "a" * 64), ("b", "b" * 64), ("c", None))
    bad = ("d", "x")
    deletes = parameters
    special = {
        "a limit inside a 400": [fake.answer(400, b'{"error":{"code":80003,"message":"too many calls"}}')],
        "one entry is bad": [fake.changed(lambda said: {**said, "num_invalid_entries": 1})],
    }
    golden = (
        "meta_custom_audience_users.jsonl",
        0,
        {"audience": "1234", "identifiers": ["EXTERN_ID"]},
        (),
        PEOPLE,
    )
    golden_delete = ("meta_custom_audience_users.jsonl", 1, PEOPLE[1:])

    def sent_as(self, row: Any) -> dict[str, Any]:
        return {"EMAIL": row[1] or ""}

    def expire(self, api: Any) -> None:
        api.faults.append(fake.answer(400, b'{"error":{"code":190,"message":"Session has expired"}}'))

    def alike(self, request: dict[str, Any]) -> Any:
        return {"method": request["method"], "path": request["path"].partition("?")[0], **payload(request)}

    def recorded(self) -> Iterator[Recorded]:
        for one in lines("recordings/facebook.jsonl"):
            if one["path"].partition("?")[0].endswith("/users"):
                said = one["resp_body"]
                kind = Kind.UNKNOWN if said["num_invalid_entries"] else Kind.WRITTEN
                operation: Any = "delete" if one["method"] == "DELETE" else "upsert"
                count = said["num_received"]
                yield Recorded(one, [str(n) for n in range(count)], [kind] * count, operation)
