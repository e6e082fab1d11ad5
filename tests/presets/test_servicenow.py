"""ServiceNow: answers inside the answer, and what there was no time for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from retl.destinations.batch import Kind
from retl.testing import FakeServiceNow
from tests import api as fake
from tests.api import TOKEN
from tests.presets.proof import Proof


class TestServiceNow(Proof):
    preset, limit = "servicenow", 100
    vendor = partial(FakeServiceNow, refuse=["d@x.io"])
    connection = {"instance": "example.service-now.com", "user": "retl", "password": TOKEN}
    parameters = {"staging": "u_imp_assets"}
    bad = ("d@x.io", "Dan", -1)
    deletes: Mapping[str, Any] = {**parameters, "table": "cmdb_ci"}
    special = {
        "reordered": [
            fake.changed(lambda said: {**said, "serviced_requests": said["serviced_requests"][::-1]})
        ]
    }

    def test_what_there_was_no_time_for_is_sent_again(self, api: FakeServiceNow) -> None:
        api.hurried = True
        results = self.deliver(api, self.rows)
        assert [result.kind for result in results] == [Kind.WRITTEN] * 3
        assert len(api.seen) == 2
        assert self.contents(api) == self.expected(self.rows)

    def test_a_reason_from_inside_tells_no_value(self, api: FakeServiceNow) -> None:
        (result,) = self.deliver(api, [("d@x.io", "Daniela", -1)])
        assert (result.kind, result.code, result.reason) == (Kind.REJECTED, "error", "… is refused")
