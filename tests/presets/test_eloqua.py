"""Eloqua: a definition, a staging area and a sync; what was rejected is told by its values."""

from __future__ import annotations

from functools import partial
from typing import Any

from retl.destinations.batch import Field, Kind
from tests import api as fake
from tests.api import TOKEN, passed
from tests.presets.bulk import Eloqua
from tests.presets.proof import TEXT, Proof


class TestEloqua(Proof):
    preset, key = "eloqua", "C_EmailAddress"
    vendor = partial(Eloqua, refuse=["d@x.io"])
    connection = {"username": "Shop\\ann", "password": TOKEN}
    parameters = {"fields": ["C_FirstName", "C_Company"]}
    fields = (Field("C_FirstName", TEXT), Field("C_Company", TEXT))
    rows = (("a@x.io", "Ann", "A"), ("b@x.io", "Bob", "B"), ("c@x.io", None, "C"))
    bad = ("d@x.io", "Dan", "D")
    special = {
        "lost while staging": [passed, fake.reset(applied=True)],
        "lost while starting": [passed, passed, fake.reset(applied=True)],
        "a poll that breaks": [passed, passed, passed, fake.answer(500), fake.reset(applied=False)],
    }

    def sent_as(self, row: Any) -> dict[str, Any]:
        return {name: "" if value is None else value for name, value in super().sent_as(row).items()}

    def test_a_sync_that_failed_says_nothing(self, api: Eloqua) -> None:
        api.faults += [passed, passed, passed, fake.answer(200, b'{"status":"error"}')]
        assert {result.kind for result in self.deliver(api, self.rows)} == {Kind.UNKNOWN}
