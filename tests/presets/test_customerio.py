"""Customer.io: people and their deletes in one kind of batch; refused rows are named by their index."""

from __future__ import annotations

import json
from base64 import b64encode
from functools import partial
from typing import Any

from retl.destinations import load
from retl.destinations.batch import Kind
from retl.testing import FakeApi
from tests.api import TOKEN
from tests.presets.proof import Proof

LOGIN = b64encode(f"site:{TOKEN}".encode()).decode()


class CustomerIo(FakeApi):
    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("authorization") != f"Basic {LOGIN}":
            return 401, {"errors": [{"reason": "unauthorized", "message": "unauthorized"}]}
        assert (method, path) == ("POST", "/api/v2/batch")
        if len(body) > 500_000:
            return 413, {"errors": [{"reason": "size", "message": "the request is too large"}]}
        errors = []
        for n, row in enumerate(json.loads(body)["batch"]):
            assert row["type"] == "person"
            (name,) = row["identifiers"].values()
            if name in self.refuse:
                errors.append({"batch_index": n, "reason": "invalid", "field": "name", "message": "no name"})
            elif row["action"] == "identify":
                self.merge(name, row["attributes"])
            else:
                assert row["action"] in ("delete", "suppress")
                self.objects.pop(name, None)
        return (207, {"errors": errors}) if errors else (200, {})


class TestCustomerIo(Proof):
    preset = "customerio"
    vendor = partial(CustomerIo, refuse=["d@x.io"])
    connection = {"site_id": "site", "api_key": TOKEN}
    bad = ("d@x.io", "Dan", -1)
    deletes = {"on_delete": "suppress"}

    def test_a_batch_has_at_most_500_kb(self, api: CustomerIo) -> None:
        many = [(f"k{n}", "x" * 20_000, n) for n in range(60)]
        assert {result.kind for result in self.deliver(api, many)} == {Kind.WRITTEN}
        assert len(api.objects) == 60

    def test_an_address_is_one_person_in_any_case_and_an_id_is_not(self) -> None:
        for match, folded in (("email", (("case",),)), ("id", ())):
            destination = load(self.preset)(self.options(None, {"match": match}), self.shape())
            assert destination.folds == folded

    def test_only_suppression_counts_as_erasing(self) -> None:
        assert load(self.preset).erasing(self.options()) == {"on_delete": "suppress"}
