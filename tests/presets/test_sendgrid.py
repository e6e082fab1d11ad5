"""SendGrid: a job counts the contacts that it refused, and names none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from retl.destinations.batch import Field, Kind
from retl.values.types import Type
from tests import api as fake
from tests.api import TOKEN, passed
from tests.presets.bulk import SendGrid
from tests.presets.proof import EVIDENCE, TEXT, Proof


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
