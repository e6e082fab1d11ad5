"""HubSpot lists: a body that is a list of ids, and those HubSpot does not know."""

from __future__ import annotations

import json
from functools import partial

from retl.destinations.batch import Kind
from retl.testing import FakeHubSpotLists
from tests.presets.proof import Proof


class TestHubSpotLists(Proof):
    preset, limit = "hubspot_lists", 1000
    vendor = partial(FakeHubSpotLists, refuse=["lost-1"])
    parameters = deletes = {"list": "7"}
    fields = ()
    rows = (("101",), ("102",), ("103",))
    bad = ("lost-1",)

    def test_a_record_that_is_gone_is_no_member_any_more(self, api: FakeHubSpotLists) -> None:
        (gone,) = self.deliver(api, [("lost-1",)], "delete", self.deletes)
        assert gone.kind is Kind.WRITTEN

    def test_ids_are_text_whatever_the_mart_has(self, api: FakeHubSpotLists) -> None:
        self.deliver(api, [(104,)])
        assert json.loads(api.seen[0][3]) == ["104"]
