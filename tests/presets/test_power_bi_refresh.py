"""Power BI: a refresh for each row, one at a time."""

from __future__ import annotations

import json
from typing import Any

from retl.destinations.batch import Kind
from tests import api as fake
from tests.api import TOKEN
from tests.presets.oauth import TokenServer, expire
from tests.presets.proof import Proof

RUNNING = {"error": {"code": "BadRequest", "message": "Another refresh request is already executing"}}


class Refreshes(TokenServer):
    token_path = "/tenant/oauth2/v2.0/token"
    started = 0

    def take(self, method: str, path: str, content: Any) -> tuple[int, Any]:
        assert (method, path) == ("POST", "/v1.0/myorg/groups/w/datasets/m/refreshes")
        assert content in ({"notifyOption": "NoNotification"}, {"type": "full"})
        self.started += 1
        return 202, None


class TestPowerBiRefresh(Proof):
    preset, vendor, write, idempotent, renews = "power_bi_refresh", Refreshes, "append", False, True
    connection = {
        "tenant": "tenant",
        "client_id": "me",
        "client_secret": TOKEN,
        "authority": "https://vendor",
    }
    parameters = {"workspace": "w", "dataset": "m"}
    key, fields = "as_of", ()
    rows = (("2026-11-27",), ("2026-11-28",), ("2026-11-29",))
    special = {
        "one is running": [fake.passed, fake.answer(400, json.dumps(RUNNING))],
        "an enhanced one is running": [fake.passed, fake.answer(409, b"{}")],
    }

    def contents(self, api: Any) -> dict[str, Any]:
        """A refresh does not say which row it is for; how many there were is counted below."""
        return self.expected(self.rows) if api.started else {}

    def expire(self, api: Any) -> None:
        expire(api)

    def test_each_row_starts_one_refresh(self, api: Refreshes) -> None:
        for parameters in (self.parameters, {**self.parameters, "type": "full"}):
            results = self.deliver(api, self.rows, parameters=parameters)
            assert {one.kind for one in results} == {Kind.WRITTEN}
        assert api.started == 2 * len(self.rows)
