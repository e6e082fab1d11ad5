"""Mailjet: one contact of a list a request, in the vendor's own words, or a job of many."""

from __future__ import annotations

from functools import partial
from typing import Any

from retl.destinations.batch import Field, Kind
from tests import api as fake
from tests.api import TOKEN, passed
from tests.presets.bulk import Mailjet
from tests.presets.proof import WHOLE, Proof


class TestMailjet(Proof):
    preset, key = "mailjet", "email"
    vendor = partial(Mailjet, refuse=["d@x.io"])
    connection = {"api_key": "key", "secret_key": TOKEN}
    parameters = {"list": 5}
    bad = ("d@x.io", "Dan", -1)
    deletes = parameters
    golden = ("mailjet_managecontact.jsonl", 0, parameters, (Field("n", WHOLE),), [("a@x.io", 1)])

    def sent_as(self, row: Any) -> dict[str, Any]:
        return {name: value for name, value in super().sent_as(row).items() if value is not None}


class TestMailjetJobs(TestMailjet):
    parameters = {"list": 5, "bulk": True}
    special = {"a poll that breaks": [passed, fake.answer(500), fake.reset(applied=False)]}

    def test_a_job_is_halved_until_the_bad_contact_is_alone(self, api: Mailjet) -> None:
        results = self.deliver(api, [*self.rows, ("d@x.io", "Dan", -1)])
        assert [one.kind for one in results] == [*[Kind.WRITTEN] * 3, Kind.REJECTED]
        assert [method for method, _, _, _ in api.seen].count("POST") < 6

    def test_a_job_that_failed_says_nothing(self, api: Mailjet) -> None:
        api.faults += [passed, fake.answer(200, b'{"Data":[{"Status":"Error","Error":"x"}]}')]
        assert {one.kind for one in self.deliver(api, self.rows)} == {Kind.UNKNOWN}
