"""Close: leads and contacts have ids, and are searched for by a custom field or an address."""

from __future__ import annotations

import json
from base64 import b64encode
from functools import partial
from typing import Any, ClassVar
from urllib.parse import SplitResult

from retl.destinations.batch import Kind
from tests import api as fake
from tests.api import TOKEN
from tests.presets.numbered import Numbered
from tests.presets.proof import Proof

LOGIN = "Basic " + b64encode(f"{TOKEN}:".encode()).decode()


class FakeClose(Numbered):
    refusal = (
        400,
        {"errors": [], "field-errors": {"name": "This field is required."}, "error": "Bad request"},
    )
    deleted = (200, {})
    probe = "/api/v1/me/"

    def __init__(self, object: str = "lead", **given: Any) -> None:
        super().__init__(**given)
        self.object, self.root = object, f"/api/v1/{object}"

    def allowed(self, headers: dict[str, str]) -> bool:
        return headers.get("authorization") == LOGIN

    def asked(self, method: str, where: SplitResult, content: Any) -> str | None:
        if where.path != "/api/v1/data/search/":
            return None
        kind, condition = content["query"]["queries"]
        assert (kind["object_type"], content["results_limit"]) == (self.object, 2)
        wanted = condition.get("related_query", condition)
        assert wanted["condition"].pop("mode") == "exact_value"
        assert wanted["field"].get("custom_field_id", wanted["field"].get("field_name")) in ("cf_1", "email")
        return str(wanted["condition"]["value"])

    def found(self, ids: list[str]) -> Any:
        return {"data": [{"__object_type": self.object, "id": one} for one in ids], "cursor": None}

    def parts(self, content: Any) -> tuple[str | None, dict[str, Any]]:
        emails = content.pop("emails", [{"email": None}])
        return content.pop("custom.cf_1", emails[0]["email"]), content


class TestClose(Proof):
    preset, vendor = "close", partial(FakeClose, refuse=["d@x.io"])
    connection = {"api_key": TOKEN}
    parameters = {"object": "lead", "match": "cf_1"}
    rows = (("a@x.io", "Ann", 1), ("b@x.io", "Bob", 2), ("c@x.io", "Cid", 3))
    bad = ("d@x.io", "Dan", -1)
    deletes: ClassVar = parameters
    throttled = json.dumps({"error": {"rate_reset": 0.01, "message": "API call count exceeded"}}).encode()
    special = {"the answer to a creation is lost": [fake.passed, fake.reset(applied=True)]}

    def test_a_contact_is_found_by_its_address(self) -> None:
        with FakeClose("contact") as api:
            given = {"object": "contact"}
            results = [one for _ in range(2) for one in self.deliver(api, self.rows[:2], parameters=given)]
            assert {result.kind for result in results} == {Kind.WRITTEN}
            assert (api.doubled, api.objects) == (0, self.expected(self.rows[:2]))
