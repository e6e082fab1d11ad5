"""BigQuery: good rows of a request are taken, bad ones are named by their index."""

from __future__ import annotations

from typing import Any

from tests.presets.google import KEY, Google
from tests.presets.oauth import expire
from tests.presets.proof import Proof
from tests.presets.queues import Queue


class BigQuery(Google, Queue):
    def take(self, method: str, path: str, content: Any) -> tuple[int, Any]:
        assert path == "/bigquery/v2/projects/p/datasets/d/tables/t/insertAll"
        assert len(content["rows"]) <= 500
        assert content["skipInvalidRows"] is True
        assert all(one["insertId"] == one["json"]["id"] for one in content["rows"])
        bad = [n for n, one in enumerate(content["rows"]) if not self.keep(one["json"])]
        errors = [{"index": n, "errors": [{"reason": "invalid", "message": "no such field"}]} for n in bad]
        return 200, {"insertErrors": errors} if errors else {}


class TestBigQuery(Proof):
    preset, vendor, write, idempotent, renews = "bigquery_insert_all", BigQuery, "append", False, True
    connection = {"key": KEY}
    parameters = {"project": "p", "dataset": "d", "table": "t"}
    bad = ("d@x.io", "Dan", 4)
    contract = ("google/bigquery.json", "#/schemas/TableDataInsertAllRequest")

    def expire(self, api: Any) -> None:
        expire(api)
