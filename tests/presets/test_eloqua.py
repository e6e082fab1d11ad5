"""Eloqua: a definition, a staging area and a sync; what was rejected is told by its values."""

from __future__ import annotations

import json
from base64 import b64encode
from functools import partial
from typing import Any

from retl.destinations.batch import Field, Kind
from retl.testing import FakeApi
from tests import api as fake
from tests.api import TOKEN, passed
from tests.presets.proof import TEXT, Proof

LOGIN = "Basic " + b64encode(f"Shop\\ann:{TOKEN}".encode()).decode()
FIELDS = {name: f"{{{{Contact.Field({name})}}}}" for name in ("C_EmailAddress", "C_FirstName", "C_Company")}


class Eloqua(FakeApi):
    """A sync is done at the second request for its state. What is staged and not synced is never seen."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.staged: list[list[dict[str, Any]]] = []
        self.syncs: list[dict[str, Any]] = []

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("authorization") != LOGIN:
            return 401, {}
        content = json.loads(body) if body else None
        match path.removeprefix("/api/bulk/2.0/").split("/"):
            case ["contacts", "imports"]:
                if content["fields"] != FIELDS or content["identifierFieldName"] != "C_EmailAddress":
                    return 400, {
                        "failures": [{"field": "fields", "constraint": "Must be a valid statement."}]
                    }
                self.staged.append([])
                return 201, {"name": "retl", "uri": f"/contacts/imports/{len(self.staged) - 1}"}
            case ["contacts", "imports", number, "data"]:
                assert len(content) <= 1000
                self.staged[int(number)] += content
                return 204, None
            case ["syncs"]:
                rows = self.staged[int(content["syncedInstanceUri"].rpartition("/")[2])]
                bad = [row for row in rows if row["C_EmailAddress"] in self.refuse]
                for row in rows:
                    if row not in bad:
                        self.merge(row.pop("C_EmailAddress"), row)
                self.syncs.append({"bad": bad, "asked": 0})
                return 201, {"uri": f"/syncs/{len(self.syncs) - 1}", "status": "pending"}
            case ["syncs", number, "rejects"]:
                told = {"statusCode": "ELQ-00002", "message": "Invalid email addresses."}
                return 200, {
                    "items": [{"fieldValues": one, **told} for one in self.syncs[int(number)]["bad"]]
                }
        sync = self.syncs[int(path.rpartition("/")[2])]
        sync["asked"] += 1
        return 200, {"status": "active" if sync["asked"] < 2 else "warning" if sync["bad"] else "success"}


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
