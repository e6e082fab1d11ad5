"""Airtable: ten records, all or nothing, and the bad one has to be found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from retl import destinations
from retl.batch import Field, Kind
from retl.errors import Poisoned, Unavailable
from retl.http.outcome import Reply, Sent, interpret
from tests import api as fake
from tests.api import TOKEN, Api
from tests.presets.proof import WHOLE, Proof, Recorded, lines


class Airtable(Api):
    """Records by the value of their merged field, answered in an order of their own."""

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("authorization") != f"Bearer {TOKEN}":
            return 401, {"error": {"type": "AUTHENTICATION_REQUIRED", "message": "Authentication required"}}
        if method == "DELETE":
            return self.delete([id for _, id in parse_qsl(urlsplit(path).query)])
        content = json.loads(body)
        rows = [one["fields"] for one in content["records"]]
        if len(rows) > 10 or any((row["visits"] or 0) < 0 for row in rows):
            return 422, {"error": {"type": "INVALID_VALUE_FOR_COLUMN", "message": "a field cannot accept it"}}
        (name,) = content["performUpsert"]["fieldsToMergeOn"]
        for row in rows:
            self.users.setdefault(row[name], {}).update({n: v for n, v in row.items() if n != name})
        return 200, {"records": [{"id": f"rec{row[name]}", "fields": row} for row in reversed(rows)]}

    def delete(self, ids: list[str]) -> tuple[int, Any]:
        """All or nothing, and the one that is not there is not named."""
        keys = [one.removeprefix("rec") for one in ids]
        if len(keys) > 10 or not all(one in self.users for one in keys):
            return 404, {"error": {"type": "MODEL_ID_NOT_FOUND", "message": "Record not found"}}
        for key in keys:
            del self.users[key]
        return 200, {"records": [{"id": one, "deleted": True} for one in ids]}


class TestAirtable(Proof):
    preset, vendor, limit, key = "airtable", Airtable, 10, "Email"
    parameters = {"base": "appX", "table": "Tbl", "match": ["Email"]}
    bad = ("d@x.io", "Dan", -1)
    deletes = parameters
    golden = (
        "airtable_batch_upsert.jsonl",
        0,
        {"base": "appX", "table": "Tbl", "match": ["Email"]},
        (Field("Score", WHOLE),),
        [(f"{n}@x", n) for n in range(10)],
    )

    def faults(self) -> dict[str, Any]:
        return {
            **super().faults(),
            "429 and no word of when": [fake.answer(503)],
        }  # its 30 s are tested below

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

    def test_one_bad_row_refuses_its_batch_without_being_named(self) -> None:
        rules = self.options().http.outcome
        for one in lines("recordings/airtable.jsonl"):
            if one["status"] == 422 and len(one["req_body"]["records"]) > 1:
                reply = Reply(422, {}, json.dumps(one["resp_body"]).encode())
                with pytest.raises(Poisoned):
                    interpret(reply, rules, Sent(2, True, lambda to: ["a", "b"], lambda row: []))

    def test_ids_are_told_by_the_field_that_is_merged_on(self, api: Airtable) -> None:
        results = self.deliver(api, self.rows)
        assert [result.ref for result in results] == [f"rec{row[0]}" for row in self.rows]

    def test_one_record_that_is_gone_does_not_keep_the_others(self, api: Airtable) -> None:
        refs = [result.ref for result in self.deliver(api, self.rows)]
        del api.users[self.rows[1][0]]
        gone = self.deliver(api, [row[:1] for row in self.rows], "delete", refs=refs)
        assert [result.kind for result in gone] == [Kind.WRITTEN] * 3
        assert api.users == {}

    def test_records_of_several_merged_fields_tell_no_id(self) -> None:
        kind, options = destinations.load("airtable"), self.options()
        assert kind.learns(options, "upsert", ["Email"])
        assert not kind.learns(options, "upsert", ["Email", "Year"])

    def test_a_429_means_thirty_seconds(self) -> None:
        with pytest.raises(Unavailable) as caught:
            self.read(Recorded({"status": 429, "resp_headers": {}, "resp_body": {}}, ["a"], []))
        assert caught.value.retry_after == 30
