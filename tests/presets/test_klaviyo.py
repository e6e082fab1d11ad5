"""Klaviyo: a job is submitted once, asked after, and its errors point at rows."""

from __future__ import annotations

import json
from typing import Any

from retl.batch import UNKNOWN as NOBODY_KNOWS
from retl.batch import Field, Kind, Outcome, Pending
from retl.destinations import load
from retl.values import Type
from tests import api as fake
from tests.api import TOKEN, Api, passed
from tests.destinations.rows import Rows
from tests.presets.proof import Proof


class Klaviyo(Api):
    """Each job is done when it is asked after the second time; errors come two to a page."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[str, dict[str, Any]] = {}

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if (
            headers.get("authorization") != f"Klaviyo-API-Key {TOKEN}"
            or headers.get("revision") != "2026-07-15"
        ):
            return 401, {"errors": [{"code": "not_authenticated", "detail": "missing or invalid"}]}
        if method == "GET":
            return self.told(*path.partition("?")[::2])
        rows = json.loads(body)["data"]["attributes"]["profiles"]["data"]
        if len(rows) > 10_000:
            return 400, {"errors": [{"code": "invalid", "detail": "more than 10000 profiles"}]}
        job = {"asked": 0, "rows": [one["attributes"] for one in rows]}
        self.jobs[f"job-{len(self.jobs)}"] = job
        return 202, {"data": {"type": "profile-bulk-import-job", "id": f"job-{len(self.jobs) - 1}"}}

    def told(self, path: str, query: str) -> tuple[int, Any]:
        job = self.jobs[path.split("/")[3]]
        bad = [n for n, row in enumerate(job["rows"]) if (row["visits"] or 0) < 0]
        if path.endswith("/import-errors"):
            start = int(query.partition("=")[2] or 0)
            errors = [
                {
                    "attributes": {
                        "code": "invalid",
                        "title": "Invalid",
                        "source": {"pointer": f"/data/attributes/profiles/data/{n}/attributes/visits"},
                    }
                }
                for n in bad
            ]
            more = f"https://a.klaviyo.com{path}?at={start + 2}" if len(bad) > start + 2 else None
            return 200, {"data": errors[start : start + 2], "links": {"next": more}}
        job["asked"] += 1
        if job["asked"] < 2:
            return 200, {"data": {"attributes": {"status": "processing"}}}
        for n, row in enumerate(job["rows"]):
            if n not in bad:
                fields = {name: value for name, value in row.items() if name != "email"}
                self.users.setdefault(row["email"], {}).update(fields)
        return 200, {"data": {"attributes": {"status": "complete", "failed_count": len(bad)}}}


class TestKlaviyo(Proof):
    preset, vendor, limit, key = "klaviyo", Klaviyo, 10_000, "email"
    connection = {"api_key": TOKEN}
    fields = (Field("first_name", Type("string")), Field("visits", Type("integer")))
    bad = ("d@x.io", "Dan", -1)
    contract = ("klaviyo/profiles.json", "#/components/schemas/ProfileImportJobCreateQuery")
    golden = (
        "klaviyo_bulk_import.jsonl",
        0,
        {"list": "ABC"},
        (Field("external_id", Type("string")), Field("properties", Type("json"))),
        [("a@x.io", "1", '{"churn":0.9}')],
    )
    special = {
        "a poll that is throttled": [passed, fake.answer(429, b"{}", Retry_After="0")],
        "a poll that breaks": [passed, fake.answer(500), fake.reset(applied=False)],
    }

    def test_a_job_outlives_the_run_that_submitted_it(self, api: Klaviyo) -> None:
        batch = Rows(self.shape(), [*self.rows, self.bad]).batch()
        first, second = (load(self.preset)(self.options(api.url), self.shape()) for _ in range(2))
        answer = first.write(batch)
        first.close()
        while isinstance(answer, Pending):
            answer = second.settle(batch, answer.handle)
        second.close()
        assert [answer.result(n).kind for n in range(4)] == [*[Kind.WRITTEN] * 3, Kind.REJECTED]
        assert [method for method, _, _, _ in api.seen].count("POST") == 1
        assert self.contents(api) == self.expected(self.rows)

    def test_errors_are_read_page_by_page(self, api: Klaviyo) -> None:
        many = [(f"k{n}@x.io", "name", -1 if n % 2 else 1) for n in range(10)]
        kinds = [result.kind for result in self.deliver(api, many)]
        assert kinds == [Kind.WRITTEN, Kind.REJECTED] * 5

    def test_a_job_that_was_cancelled_or_is_gone_says_nothing(self, api: Klaviyo) -> None:
        batch = Rows(self.shape(), self.rows).batch()
        destination = load(self.preset)(self.options(api.url), self.shape())
        api.faults += [fake.answer(200, b'{"data":{"attributes":{"status":"cancelled"}}}'), fake.answer(404)]
        for _ in range(2):
            assert destination.settle(batch, "job-0") == Outcome(NOBODY_KNOWS)
        destination.close()
