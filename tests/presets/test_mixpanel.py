"""Mixpanel: profiles as a list of updates; refused ones are named if it is asked to be strict."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import parse_qs

from retl.destinations import load
from retl.destinations.batch import Field, Kind
from retl.testing import FakeApi
from tests import api as fake
from tests.api import TOKEN
from tests.destinations.rows import Rows
from tests.presets.proof import TEXT, Proof, Recorded, lines


class Mixpanel(FakeApi):
    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        assert (method, path) == ("POST", "/engage?ip=0&strict=1&verbose=1")
        rows = json.loads(body)
        if len(rows) > 2000:
            return 413, {"code": 413, "error": "too many updates", "status": "Request Entity Too Large"}
        failed = []
        for n, row in enumerate(rows):
            assert row["$token"] == TOKEN
            if row["$distinct_id"] in self.refuse:
                failed.append({"index": n, "field": "$distinct_id", "message": "is invalid"})
            elif "$delete" in row:
                self.objects.pop(row["$distinct_id"], None)
            else:
                self.merge(row["$distinct_id"], row["$set"])
        said = {"code": 400, "status": "Bad Request", "failed_records": failed}
        return (400, said) if failed else (200, {"status": 1, "error": None})


class TestMixpanel(Proof):
    preset, limit = "mixpanel", 2000
    vendor = partial(Mixpanel, refuse=["d@x.io"])
    bad, deletes = ("d@x.io", "Dan", -1), {}
    special = {"nothing was valid, it says": [fake.answer(200, b'{"status":0,"error":"odd"}')]}
    contract = ("mixpanel/ingestion.json", "#/paths/~1engage%23profile-set/post/requestBody/content/application~1json/schema")  # fmt: skip
    golden = ("mixpanel_people.jsonl", 0, {}, (Field("name", TEXT),), [("1", "Ann")])

    def alike(self, request: dict[str, Any]) -> Any:
        """The first update, without the token and what the SDK says of the time; it sends a form."""
        body = request["body"]
        rows = json.loads(parse_qs(body)["data"][0]) if isinstance(body, str) else body
        return request["path"].partition("?")[0], {name: rows[0][name] for name in ("$distinct_id", "$set")}

    def recorded(self) -> Iterator[Recorded]:
        for one in lines("recordings/mixpanel.jsonl"):
            yield Recorded(one, ["a"], [Kind.WRITTEN], "delete" if "$delete" in one["req_body"] else "upsert")

    def test_a_delete_does_not_follow_an_alias(self) -> None:
        destination = load(self.preset)(self.options(), self.shape(deletes="delete"))
        assert b'"$ignore_alias":true' in destination.preview(Rows(self.shape(), [("a",)]).batch("delete"))
