"""Any webhook: every row once as JSON, also as an upsert and a delete."""

from __future__ import annotations

from typing import Any

from retl.batch import Kind
from tests import api as fake
from tests.api import TOKEN
from tests.presets.proof import Proof
from tests.presets.webhooks import PATH, Channel


class Webhook(Channel):
    """A receiver that keeps the newest of each id."""

    def post(self, content: Any) -> tuple[int, Any]:
        if content.get("deleted"):
            self.users.pop(content["key"], None)
        elif (content["visits"] or 0) < 0:
            return 422, {"message": "no"}
        else:
            self.users[content.pop("id")] = content
        return 200, b"thanks"


class TestWebhook(Proof):
    preset, vendor = "webhook", Webhook
    connection = {"url": f"https://vendor{PATH}", "authorization": f"Bearer {TOKEN}"}
    bad = ("d@x.io", "Dan", -1)
    deletes: Any = {}

    def expire(self, api: Any) -> None:
        api.faults.append(fake.answer(403))

    def test_the_authorization_is_sent_and_may_be_left_out(self, api: Webhook) -> None:
        assert {result.kind for result in self.deliver(api, self.rows)} == {Kind.WRITTEN}
        assert api.seen[0][2]["authorization"] == f"Bearer {TOKEN}"
        assert "headers" not in self.options(api.url).model_fields_set
