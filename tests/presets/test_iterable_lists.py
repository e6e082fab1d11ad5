"""Iterable lists: members named by value, and counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from retl.batch import Field, Kind
from tests import api as fake
from tests.api import TOKEN, Api
from tests.presets.proof import TEXT, Proof, Recorded, lines


class IterableLists(Api):
    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("api-key") != TOKEN:
            return 401, {"code": "BadApiKey", "msg": "Invalid API key"}
        content = json.loads(body)
        members = content["subscribers"]
        if content["listId"] != 7 or len(members) > 1000:
            return 400, {"code": "BadParams", "msg": "no such list, or more than 1000 subscribers"}
        bad = [one["email"] for one in members if "@" not in one["email"]]
        for one in members:
            if path == "/api/lists/unsubscribe":
                self.users.pop(one["email"], None)
            elif one["email"] not in bad:
                self.users.setdefault(one["email"], {}).update(one["dataFields"])
        counts = {"successCount": len(members) - len(bad), "failCount": len(bad)}
        return 200, {**counts, "invalidEmails": bad, "invalidUserIds": []}


class TestIterableLists(Proof):
    preset, vendor, limit = "iterable_lists", IterableLists, 1000
    connection = {"api_key": TOKEN}
    parameters = deletes = {"list": 7}
    fields = ()
    rows = (("a@x.io",), ("b@x.io",), ("c@x.io",))
    bad = ("nobody",)
    special = {"more failures than names": [fake.changed(lambda said: {**said, "failCount": 2})]}
    doubtful = frozenset({"more failures than names"})

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
