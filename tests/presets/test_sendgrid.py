"""SendGrid: a job counts the contacts that it refused, and names none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from retl.destinations.batch import Field, Kind
from retl.testing import FakeApi
from retl.values.types import Type
from tests import api as fake
from tests.api import TOKEN, passed
from tests.presets.proof import EVIDENCE, TEXT, Proof


class SendGrid(FakeApi):
    """A job is done at the second request for its state."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.jobs: list[dict[str, Any]] = []
        self.ids: dict[str, str] = {}  # id → address

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("authorization") != f"Bearer {self.token}":
            return 401, {"errors": [{"field": None, "message": "authorization required"}]}
        if method == "PUT":
            rows = json.loads(body)["contacts"]
            self.jobs.append({"rows": rows, "asked": 0})
            return 202, {"job_id": f"job-{len(self.jobs) - 1}"}
        if method == "POST":
            (name,) = json.loads(body)["emails"]
            found = next((id for id, one in self.ids.items() if one == name), None)
            if found is None:
                return 404, {"errors": [{"message": "no contacts found for the provided email address(es)"}]}
            return 200, {"result": {name: {"contact": {"id": found, "email": name}}}}
        if method == "DELETE":
            self.objects.pop(self.ids.pop(path.rpartition("=")[2]))
            self.jobs.append({"rows": [], "asked": 0})
            return 202, {"job_id": f"job-{len(self.jobs) - 1}"}
        job = self.jobs[int(path.rpartition("-")[2])]
        job["asked"] += 1
        if job["asked"] < 2:
            return 200, {"status": "pending", "job_type": "upsert"}
        good = [row for row in job["rows"] if row["email"] not in self.refuse]
        for row in good:
            self.ids[f"id-{row['email'][0]}"] = row["email"]
            self.merge(row["email"], {name: value for name, value in row.items() if name != "email"})
        bad = len(job["rows"]) - len(good)
        status = "completed" if not bad else "errored" if good else "failed"
        return 200, {"status": status, "job_type": "upsert", "results": {"errored_count": bad} if bad else {}}


class TestSendGrid(Proof):
    preset, key = "sendgrid", "email"
    vendor = partial(SendGrid, refuse=["d@x.io"])
    connection = {"api_key": TOKEN}
    fields = (Field("first_name", TEXT), Field("custom_fields", Type("json")))
    rows = (("a@x.io", "Ann", '{"e1_N":1}'), ("b@x.io", "Bob", '{"e1_N":2}'), ("c@x.io", None, '{"e1_N":3}'))
    bad = ("d@x.io", "Dan", "{}")
    deletes: Mapping[str, Any] = {}
    special = {"a poll that breaks": [passed, fake.answer(500), fake.reset(applied=False)]}
    contract = ("sendgrid/contacts.json", "#/paths/~1marketing~1contacts/put/parameters/0/schema")
    golden = ("sendgrid_contacts.jsonl", 0, {"lists": ["l"]}, fields, [("a@x.io", "Ann", '{"e1_T":"x"}')])

    def sent_as(self, row: Any) -> dict[str, Any]:
        return {name: value for name, value in super().sent_as(row).items() if value is not None}

    def test_a_job_holds_as_many_contacts_as_the_vendor_s_schema_allows(self) -> None:
        document = json.loads((EVIDENCE / "contracts/sendgrid/contacts.json").read_text())
        (body,) = document["paths"]["/marketing/contacts"]["put"]["parameters"]
        most = self.options().http.upsert.max_rows
        assert most == body["schema"]["properties"]["contacts"]["maxItems"] == 30_000

    def test_a_job_that_failed_and_counts_nothing_says_nothing(self, api: SendGrid) -> None:
        api.faults += [passed, fake.answer(200, b'{"status":"failed","job_type":"upsert"}')]
        assert {result.kind for result in self.deliver(api, self.rows)} == {Kind.UNKNOWN}
