"""Epicor Kinetic: rows of business objects by their whole key, and rows of an updatable BAQ."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from retl.destinations.batch import Kind
from tests.api import TOKEN
from tests.presets.kinetic import Kinetic
from tests.presets.proof import Proof


class TestEpicor(Proof):
    preset, vendor, key = "epicor", partial(Kinetic, refuse=["d@x.io"]), "PartNum"
    connection = {
        "url": "https://vendor/server",
        "username": "manager",
        "password": TOKEN,
        "api_key": "key of the company",
    }
    parameters = {"company": "EPIC06", "service": "Erp.BO.PartSvc", "set": "Parts"}
    rows = (("O'Neil", "Ann", 1), ("b@x.io", "Bob", 2), ("c@x.io", None, 3))
    bad = ("d@x.io", "Dan", -1)
    deletes: ClassVar = parameters

    def test_rows_that_are_there_are_changed(self, api: Kinetic, monkeypatch: Any) -> None:
        self.deliver(api, self.rows[:1])
        monkeypatch.setattr(self, "write", "update_only", raising=False)
        known, new = ("O'Neil", "Zoe", 1), self.rows[1]
        assert [one.kind for one in self.deliver(api, [known, new])] == [Kind.WRITTEN, Kind.SKIPPED]
        self.deliver(api, [("O'Neil", "Amy", 2)], parameters={"company": "EPIC06", "baq": "XX_Parts"})
        assert self.contents(api) == {"O'Neil": {"name": "Amy", "visits": 2}}
