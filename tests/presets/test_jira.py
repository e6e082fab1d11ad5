"""Jira: issues in bulk, the bad ones named by number; changed by key."""

from __future__ import annotations

import json
from typing import Any

from retl.destinations.batch import Field, Kind
from retl.testing.messages import FakeChannel
from tests.api import TOKEN
from tests.presets.proof import TEXT, Proof


class FakeJira(FakeChannel):
    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if method == "PUT":
            known = path.removeprefix("/rest/api/2/issue/") == "PROJ-1"
            return (204, None) if known else (404, {"errorMessages": ["Issue does not exist"], "errors": {}})
        assert path == "/rest/api/2/issue/bulk"
        rows = [one["fields"] for one in json.loads(body)["issueUpdates"]]
        if len(rows) > 50:
            return 400, {"errorMessages": ["at most 50"], "errors": {}}
        errors: list[Any] = []
        for n, row in enumerate(rows):
            assert (row["project"], row["issuetype"]) == ({"key": "K"}, {"name": "Task"})
            if not row.get("summary"):
                why = {"errorMessages": [], "errors": {"summary": "You must specify a summary."}}
                errors.append({"status": 400, "elementErrors": why, "failedElementNumber": n})
                continue
            self.posted[row["summary"]] += 1
        return (400 if len(errors) == len(rows) else 201), {"issues": [], "errors": errors}


class TestJira(Proof):
    preset, vendor, write, idempotent = "jira", FakeJira, "append", False
    connection = {"site": "example", "user": "u", "token": TOKEN}
    parameters = {"project": "K"}
    fields = (Field("summary", TEXT),)
    rows = (("a", "one"), ("b", "two"), ("c", "three"))
    bad = ("d", None)
    contract = ("jira/bulk.json", "")
    golden = ("jira_bulk_create.jsonl", 1, parameters, fields, [("a", "a"), ("b", "")])

    def contents(self, api: Any) -> dict[str, Any]:
        names = {row[1]: row[0] for row in self.rows}
        return {names.get(text, text): {"summary": text} for text in api.posted}

    def test_no_more_than_50_issues_are_created_at_once(self, api: FakeJira) -> None:
        results = self.deliver(api, [(f"k{n}", f"name {n}") for n in range(51)])
        assert {result.kind for result in results} == {Kind.WRITTEN}
        assert [len(json.loads(body)["issueUpdates"]) for *_, body in api.seen if body] == [50, 1]

    def test_an_issue_is_changed_by_its_key(self, api: FakeJira) -> None:
        results = self.deliver(api, [("PROJ-1", "new"), ("PROJ-2", "new")], "update_only")
        assert [result.kind for result in results] == [Kind.WRITTEN, Kind.SKIPPED]
        assert api.seen[0][3] == b'{"fields":{"summary":"new"}}'
