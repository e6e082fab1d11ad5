"""Power BI: rows for a table, as a whole."""

from __future__ import annotations

from typing import Any

from tests.api import TOKEN
from tests.presets.oauth import TokenServer, expire
from tests.presets.proof import Proof
from tests.presets.queues import Queue


class PowerBi(TokenServer, Queue):
    token_path = "/tenant/oauth2/v2.0/token"

    def take(self, method: str, path: str, content: Any) -> tuple[int, Any]:
        assert path == "/v1.0/myorg/groups/w/datasets/m/tables/Events/rows"
        if len(content["rows"]) > 10_000 or any(one["id"] in self.refuse for one in content["rows"]):
            return 400, {"error": {"code": "InvalidRows", "message": "the rows do not fit the table"}}
        for one in content["rows"]:
            self.keep(one)
        return 200, None


class TestPowerBi(Proof):
    preset, vendor, write, idempotent, renews = "power_bi", PowerBi, "append", False, True
    connection = {
        "tenant": "tenant",
        "client_id": "me",
        "client_secret": TOKEN,
        "authority": "https://vendor",
    }
    parameters = {"workspace": "w", "dataset": "m", "table": "Events"}
    bad = ("d@x.io", "Dan", 4)

    def expire(self, api: Any) -> None:
        expire(api)
