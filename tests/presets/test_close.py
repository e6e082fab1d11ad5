"""Close: leads and contacts have ids, and are searched for by a custom field or an address."""

from __future__ import annotations

import json
from functools import partial
from typing import ClassVar

from retl.destinations.batch import Kind
from tests import api as fake
from tests.api import TOKEN
from tests.presets.desks import FakeClose
from tests.presets.proof import Proof


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
