"""Marketo: 200 for everything; success says nothing of rows, and throttling is in the body."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from retl.destinations.batch import Kind
from retl.errors import Later
from tests import api as fake
from tests.api import TOKEN
from tests.presets.crm import Marketo
from tests.presets.oauth import expire
from tests.presets.proof import Proof, Recorded, by_place, lines


def failed(code: str) -> bytes:
    return b'{"success":false,"errors":[{"code":"%s","message":"no"}]}' % code.encode()


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

    stops: ClassVar = {"a spent day": (fake.answer(200, failed("607")), Later)}

    def expire(self, api: Any) -> None:
        expire(api)

    def recorded(self) -> Iterator[Recorded]:
        for one in lines("recordings/marketo.jsonl"):
            result = one["resp_body"].get("result") if one["method"] == "POST" else None
            if one["path"].endswith("/rest/v1/leads.json") and result is not None:
                yield by_place(one, result, lambda item: item["status"] != "skipped")

    def test_one_new_token_is_enough_for_a_run(self, api: Marketo) -> None:
        self.expire(api)
        assert {result.kind for result in self.deliver(api, self.rows)} == {Kind.WRITTEN}
        assert [path for _, path, _, _ in api.seen].count(api.seen[0][1]) == 2
        assert not any(TOKEN.encode() in body for _, _, _, body in api.seen)
