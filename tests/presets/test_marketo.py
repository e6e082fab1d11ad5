"""Marketo: 200 for everything; success says nothing of rows, and throttling is in the body."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from retl.destinations.batch import Kind
from retl.errors import Spent, Unavailable
from tests import api as fake
from tests.api import TOKEN
from tests.presets.oauth import TokenServer, expire
from tests.presets.proof import Proof, Recorded, lines

SKIPPED = {"status": "skipped", "reasons": [{"code": "1003", "message": "visits must not be below zero"}]}


def failed(code: str) -> bytes:
    return b'{"success":false,"errors":[{"code":"%s","message":"no"}]}' % code.encode()


class Marketo(TokenServer):
    token_path = "/identity/oauth/token"

    def __init__(self) -> None:
        super().__init__()
        self.ids: dict[int, str] = {}

    def refused(self) -> tuple[int, Any]:
        return 200, {"success": False, "errors": [{"code": "602", "message": "Access token expired"}]}

    def take(self, method: str, path: str, content: Any) -> tuple[int, Any]:
        rows, result = content["input"], []
        if len(rows) > 300:
            return 200, {"success": False, "errors": [{"code": "1080", "message": "more than 300 leads"}]}
        for row in rows:
            if path.endswith("delete.json"):
                assert type(row["id"]) is int
                known = self.users.pop(self.ids.get(row["id"], ""), None) is not None
                gone = {"status": "skipped", "reasons": [{"code": "1004", "message": "Lead not found"}]}
                result.append({"status": "deleted"} if known else gone)
            elif (row["visits"] or 0) < 0:
                result.append(SKIPPED)
            else:
                key = row.pop(content["lookupField"])
                self.users.setdefault(key, {}).update(row)
                number = 7000 + sum(key.encode())
                self.ids[number] = key
                result.append({"id": number, "status": "updated"})
        return 200, {"success": True, "result": result}


class TestMarketo(Proof):
    preset, vendor, limit, key, renews = "marketo", Marketo, 300, "email", True
    connection = {"client_id": "me", "client_secret": TOKEN, "munchkin": "123-ABC-456"}
    bad = ("d@x.io", "Dan", -1)
    deletes: Mapping[str, Any] = {}
    contract = ("marketo/swagger-mapi.json", "#/definitions/SyncLeadRequest")
    special = {
        **{f"{code} in a 200": [fake.answer(200, failed(code))] * 2 for code in ("606", "615", "608")},
        "602 in a 200": [fake.answer(200, failed("602"))],
    }

    def expire(self, api: Any) -> None:
        expire(api)

    def recorded(self) -> Iterator[Recorded]:
        for one in lines("recordings/marketo.jsonl"):
            if one["method"] == "POST" and one["path"].endswith("/rest/v1/leads.json"):
                result = one["resp_body"].get("result")
                if result is None:
                    continue
                bad = [item["status"] == "skipped" for item in result]
                kinds = [Kind.REJECTED if skipped else Kind.WRITTEN for skipped in bad]
                names = [str(n) for n in range(len(result))]
                yield Recorded(
                    one,
                    names,
                    kinds,
                    refs=[str(i["id"]) if i["status"] != "skipped" else None for i in result],
                )

    def test_success_true_says_nothing_of_skipped_rows(self) -> None:
        assert any(
            Kind.REJECTED in one.kinds and one.answer["resp_body"]["success"] for one in self.recorded()
        )

    @pytest.mark.parametrize(("code", "error"), [("606", Unavailable), ("615", Unavailable), ("607", Spent)])
    def test_throttling_is_in_the_body(self, code: str, error: type[Exception]) -> None:
        said = {"success": False, "errors": [{"code": code, "message": "Max rate limit exceeded"}]}
        with pytest.raises(error):
            self.read(Recorded({"status": 200, "resp_headers": {}, "resp_body": said}, ["a"], []))

    def test_one_new_token_is_enough_for_a_run(self, api: Marketo) -> None:
        self.expire(api)
        assert {result.kind for result in self.deliver(api, self.rows)} == {Kind.WRITTEN}
        assert [path for _, path, _, _ in api.seen].count(api.seen[0][1]) == 2
        assert not any(TOKEN.encode() in body for _, _, _, body in api.seen)
