"""Teams: valid adaptive cards, and a 429 that hides in the text of a 200."""

from __future__ import annotations

from typing import Any

import pytest

from retl.destinations import load
from retl.destinations.batch import Field, Shape
from retl.errors import Unavailable
from retl.testing import FakeTeams
from retl.values.types import Type
from tests import api as fake
from tests.destinations.rows import Rows
from tests.presets.proof import TEXT, Proof
from tests.presets.webhooks import PATH

HIDDEN = b"Webhook message delivery failed with error: Microsoft Teams endpoint returned HTTP error 429 with ContextId x"


class TestTeams(Proof):
    preset, vendor, write, idempotent = "teams", FakeTeams, "append", False
    connection = {"url": f"https://vendor{PATH}"}
    fields = (Field("text", TEXT),)
    rows = (("a", "one"), ("b", "two"), ("c", "three"))
    bad = ("d", "x" * 25_000)
    special = {"429 inside a 200": [fake.answer(200, HIDDEN)] * 2}
    contract = ("teams/adaptive-card-1.5.0.json", "")

    def expire(self, api: Any) -> None:
        api.faults.append(fake.answer(404))

    def contents(self, api: Any) -> dict[str, Any]:
        names = {row[1]: row[0] for row in self.rows}
        return {names[text]: {"text": text} for text in api.posted}

    def judged(self, request: Any) -> Any:
        assert request["attachments"][0]["contentType"] == "application/vnd.microsoft.card.adaptive"
        return request["attachments"][0]["content"]

    def test_a_429_inside_a_200_is_a_429(self, api: FakeTeams) -> None:
        api.faults.append(fake.answer(200, HIDDEN))
        destination = load(self.preset)(self.options(api.url), self.shape())
        with pytest.raises(Unavailable):
            destination.write(Rows(self.shape(), self.rows[:1]).batch("append"))
        destination.close()
        assert not api.posted

    def test_a_card_of_one_s_own_takes_the_place_of_the_text(self, api: FakeTeams) -> None:
        shape: Shape = self.shape((Field("card", Type("json")),))
        rows = [("a", '{"type":"AdaptiveCard","body":[{"type":"TextBlock","text":"mine"}]}')]
        sent = self.request({"card": "card"}, shape, rows)["body"]
        assert sent["attachments"][0]["content"]["body"][0]["text"] == "mine"
