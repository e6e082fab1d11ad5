"""PagerDuty: one alert per key however often it is triggered, resolved when the row is gone."""

from __future__ import annotations

import json
from typing import Any

from retl.destinations import load
from retl.destinations.batch import Field
from retl.testing import FakePagerDuty
from tests import api as fake
from tests.api import TOKEN
from tests.destinations.rows import Rows
from tests.presets.proof import TEXT, WHOLE, Proof


class TestPagerDuty(Proof):
    preset, vendor = "pagerduty", FakePagerDuty
    connection = {"routing_key": TOKEN}
    fields = (Field("summary", TEXT), Field("visits", WHOLE))
    rows = (("a", "feed a is late", 1), ("b", "feed b is late", 2), ("c", "feed c is late", 3))
    bad = ("d", "", -1)
    deletes = {"severity": "error"}

    def expire(self, api: Any) -> None:
        api.faults.append(fake.answer(403, b'{"status":"forbidden"}'))

    def test_the_routing_key_is_in_what_is_sent_and_in_nothing_that_is_shown(
        self, api: FakePagerDuty
    ) -> None:
        destination = load(self.preset)(self.options(api.url), self.shape())
        batch = Rows(self.shape(), self.rows[:1]).batch()
        assert TOKEN.encode() not in destination.preview(batch)
        destination.write(batch)
        destination.close()
        assert json.loads(api.seen[0][3])["routing_key"] == TOKEN
        assert TOKEN not in f"{destination.capabilities} {destination.options!r}"
