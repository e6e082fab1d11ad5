"""HubSpot lists: a body that is a list of ids, and those HubSpot does not know."""

from __future__ import annotations

import json
from typing import Any

from retl.batch import Kind
from tests.api import TOKEN, Api
from tests.presets.proof import Proof


class HubSpotLists(Api):
    """One list; a record whose id begins with `lost` does not exist."""

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("authorization") != f"Bearer {TOKEN}":
            return 401, {"category": "INVALID_AUTHENTICATION"}
        ids = json.loads(body)
        if len(ids) > 1000 or not all(isinstance(one, str) for one in ids):
            return 400, {"category": "VALIDATION_ERROR", "message": "at most 1000 ids, as text"}
        missing = [one for one in ids if one.startswith("lost")]
        told: dict[str, list[str]] = {
            "recordIdsMissing": missing,
            "recordsIdsAdded": [],
            "recordIdsRemoved": [],
        }
        match (method, path.removeprefix("/crm/v3/lists/7/memberships/")):
            case ("PUT", "add"):
                told["recordsIdsAdded"] = [one for one in ids if one not in (*missing, *self.users)]
                self.users |= {one: {} for one in told["recordsIdsAdded"]}
            case ("PUT", "remove"):
                told["recordIdsRemoved"] = [one for one in ids if self.users.pop(one, None) is not None]
            case _:
                return 404, {"category": "OBJECT_NOT_FOUND"}
        return 200, told


class TestHubSpotLists(Proof):
    preset, vendor, limit = "hubspot_lists", HubSpotLists, 1000
    parameters = deletes = {"list": "7"}
    fields = ()
    rows = (("101",), ("102",), ("103",))
    bad = ("lost-1",)

    def test_a_record_that_is_gone_is_no_member_any_more(self, api: HubSpotLists) -> None:
        (gone,) = self.deliver(api, [("lost-1",)], "delete", self.deletes)
        assert gone.kind is Kind.WRITTEN

    def test_ids_are_text_whatever_the_mart_has(self, api: HubSpotLists) -> None:
        self.deliver(api, [(104,)])
        assert json.loads(api.seen[0][3]) == ["104"]
