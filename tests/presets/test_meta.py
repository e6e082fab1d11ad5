"""Meta: an audience is a set, and an answer counts the bad entries without naming them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

from retl.destinations import load
from retl.destinations.batch import Field, Kind
from tests import api as fake
from tests.api import TOKEN, Api
from tests.destinations.rows import Rows
from tests.presets.proof import TEXT, Proof, Recorded, lines

PEOPLE = [
    ("ba67a97f9167ef676d5d6a62d228b8e22b30b63bba8481f40f8564ecd1a07023",),
    ("42299879eed2c1095691685b9af8693c6e60c4950a73e6da5bf1e46e27147af8",),
]


def payload(request: dict[str, Any]) -> dict[str, Any]:
    """What a request says, wherever it says it. The SDK sends one unnamed field as a bare text per row, and
    its schema for that is a word of its own; we send lists under a schema."""
    body = request["body"] or urlsplit(request["path"]).query
    said = body["payload"] if isinstance(body, dict) else json.loads(parse_qs(body)["payload"][0])
    rows = [row[0] if isinstance(row, list) else row for row in said["data"]]
    return {"data": rows, "is_raw": said["is_raw"], "said": sorted(said)}


class Meta(Api):
    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        query = parse_qs(urlsplit(path).query)
        if query.pop("access_token", None) != [TOKEN]:
            return 400, {"error": {"code": 190, "message": "Error validating access token"}}
        payload = json.loads(query["payload"][0]) if method == "DELETE" else json.loads(body)["payload"]
        assert payload["is_raw"] is False
        if len(payload["data"]) > 10_000:
            return 400, {"error": {"code": 100, "message": "more than 10000 entries"}}
        bad = 0
        for row in payload["data"]:
            fields = dict(zip(payload["schema"], row, strict=True))
            name = fields.pop("EXTERN_ID")
            if method == "DELETE":
                self.users.pop(name, None)
            elif fields["EMAIL"] == "x":
                bad += 1
            else:
                self.users[name] = fields
        return 200, {"audience_id": "1", "num_received": len(payload["data"]), "num_invalid_entries": bad}


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

    def test_counts_without_rows_are_unknown(self) -> None:
        counted = [one for one in self.recorded() if one.answer["resp_body"]["num_invalid_entries"]]
        assert counted
        for one in counted:
            outcome = self.read(one)
            assert (outcome.default.kind, outcome.divides, outcome.exceptions) == (Kind.UNKNOWN, True, {})

    def test_people_are_removed_in_the_query_as_the_sdk_does(self) -> None:
        theirs = lines("golden/meta_custom_audience_users.jsonl")[1]
        destination = load(self.preset)(self.options(), self.shape(deletes="delete"))
        sent = destination.preview(Rows(self.shape(), PEOPLE[1:]).batch("delete"))
        method, path = sent.split(b"\r\n")[0].decode().split(" ")
        assert self.alike({"method": method, "path": path, "body": ""}) == self.alike(theirs)
