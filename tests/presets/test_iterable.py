"""Iterable: those it refused are named by value, and counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from retl.batch import Kind
from tests import api as fake
from tests.api import TOKEN, Api
from tests.presets.proof import Proof, Recorded, lines


class Iterable(Api):
    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("api-key") != TOKEN:
            return 401, {"code": "BadApiKey", "msg": "Invalid API key"}
        if method == "DELETE":
            self.users.pop(unquote(path.rpartition("/")[2]), None)
            return 200, {"msg": "", "code": "Success", "params": None}
        rows = json.loads(body)["users"]
        if len(rows) > 1000:
            return 400, {"code": "RequestFieldsTypesMismatch", "msg": "more than 1000 users"}
        bad = [row["email"] for row in rows if (row["dataFields"]["visits"] or 0) < 0]
        for row in rows:
            if row["email"] not in bad:
                self.users.setdefault(row["email"], {}).update(row["dataFields"])
        counts = {"successCount": len(rows) - len(bad), "failCount": len(bad)}
        return 200, {**counts, "invalidEmails": bad, "invalidUserIds": []}


class TestIterable(Proof):
    preset, vendor, limit = "iterable", Iterable, 1000
    connection = {"api_key": TOKEN}
    bad = ("d@x.io", "Dan", -1)
    deletes = {"match": "email"}
    special = {"more failures than names": [fake.changed(lambda said: {**said, "failCount": 2})]}
    doubtful = frozenset({"more failures than names"})

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
