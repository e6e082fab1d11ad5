"""Intercom: contacts are searched for, and a refusal to create one twice names it."""

from __future__ import annotations

import json
from functools import partial
from typing import Any, ClassVar
from urllib.parse import SplitResult

from retl.destinations.batch import Kind
from tests import api as fake
from tests.presets.numbered import Numbered
from tests.presets.proof import Proof


def said(code: str, message: str) -> dict[str, Any]:
    return {"type": "error.list", "errors": [{"code": code, "message": message}]}


class FakeIntercom(Numbered):
    root, probe, blind = "/contacts", "/me", False
    refusal = (400, said("parameter_invalid", "email is invalid"))
    deleted = (200, {"type": "contact", "deleted": True})

    def asked(self, method: str, where: SplitResult, content: Any) -> str | None:
        if where.path != "/contacts/search":
            return None
        return str(content["query"]["value"][1]["value"])

    def found(self, ids: list[str]) -> Any:
        return {"data": [] if self.blind else [{"id": one} for one in ids]}

    def parts(self, content: Any) -> tuple[str | None, dict[str, Any]]:
        content.pop("role", None)
        return super().parts(content)

    def exists(self, key: str) -> tuple[int, Any]:
        (number,) = (one for one, name in self.ids.items() if name == key)
        return 409, said("conflict", f"A contact matching those details already exists with id={number}")


class TestIntercom(Proof):
    preset = "intercom"
    vendor = partial(FakeIntercom, refuse=["d@x.io"])
    rows = (("a@x.io", "Ann", 1), ("b@x.io", "Bob", 2), ("c@x.io", "Cid", 3))
    bad = ("d@x.io", "Dan", -1)
    deletes: ClassVar = {}
    special = {"the answer to a creation is lost": [fake.passed, fake.reset(applied=True)]}

    def test_a_contact_that_no_search_finds_is_changed_by_its_id(self, api: FakeIntercom) -> None:
        self.deliver(api, self.rows)
        api.blind = True
        (result,) = self.deliver(api, [("a@x.io", "Anna", 5)])
        assert (result.kind, result.ref, api.objects["a@x.io"]["name"]) == (Kind.WRITTEN, "1", "Anna")

    def test_an_archived_contact_is_left_to_a_person(self, api: FakeIntercom) -> None:
        gone = "An archived contact matching those details already exists with id=9"
        api.misbehave(fake.passed, fake.answer(409, json.dumps(said("conflict", gone))))
        (result,) = self.deliver(api, self.rows[:1])
        assert (result.kind, result.code, len(api.seen)) == (Kind.REJECTED, "conflict", 2)
