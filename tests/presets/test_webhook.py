"""Any webhook: every row once as JSON, also as an upsert and a delete."""

from __future__ import annotations

from functools import partial
from typing import Any

from retl.destinations.batch import Kind
from retl.testing import FakeWebhook
from tests import api as fake
from tests.api import TOKEN
from tests.presets.proof import Proof
from tests.presets.webhooks import PATH


class TestWebhook(Proof):
    preset = "webhook"
    vendor = partial(FakeWebhook, refuse=["d@x.io"])
    connection = {"url": f"https://vendor{PATH}", "authorization": f"Bearer {TOKEN}"}
    bad = ("d@x.io", "Dan", -1)
    deletes: Any = {}

    def expire(self, api: Any) -> None:
        api.faults.append(fake.answer(403))

    def test_the_authorization_is_sent_and_may_be_left_out(self, api: FakeWebhook) -> None:
        assert {result.kind for result in self.deliver(api, self.rows)} == {Kind.WRITTEN}
        assert api.seen[0][2]["authorization"] == f"Bearer {TOKEN}"
        assert "headers" not in self.options(api.url).model_fields_set
