"""Zendesk: users and organizations by their external id, tickets found by it."""

from __future__ import annotations

import json
from functools import partial
from typing import Any
from urllib.parse import SplitResult, parse_qs

import pytest

from retl.destinations.batch import Kind
from tests.api import TOKEN, answer, passed, reset
from tests.presets.numbered import Numbered
from tests.presets.proof import Proof


class FakeZendesk(Numbered):
    probe = "/api/v2/users/me"
    refusal = (422, {"error": "RecordInvalid", "description": "Record validation errors"})

    def __init__(self, object: str = "user", **given: Any) -> None:
        super().__init__(**given)
        self.object, self.root = object, f"/api/v2/{object}s"
        self.trash: set[str] = set()

    def allowed(self, headers: dict[str, str]) -> bool:
        return "authorization" in headers

    def asked(self, method: str, where: SplitResult, content: Any) -> str | None:
        return parse_qs(where.query)["external_id"][0] if method == "GET" else None

    def found(self, ids: list[str]) -> Any:
        return {"tickets": [{"id": int(one)} for one in ids]}

    def shown(self, number: str) -> Any:
        return {self.object: {"id": int(number)}}

    def parts(self, content: Any) -> tuple[str | None, dict[str, Any]]:
        row = content[self.object]
        return row.pop("external_id", None), row

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        number = path.rpartition("/")[2]
        if path.startswith("/api/v2/deleted_"):
            assert method == "DELETE"
            there = number in self.trash
            self.trash.discard(number)
            return (200, {"job_status": {}}) if there else (404, {"error": "RecordNotFound"})
        if method == "DELETE" and number in self.ids:
            self.trash.add(number)
        if path.endswith("/create_or_update"):
            key = json.loads(body)[self.object]["external_id"]
            known = [number for number, name in self.ids.items() if name == key]
            path = "/".join([self.root, *known])
        return super().serve(method, path, headers, body)


class TestZendesk(Proof):
    preset = "zendesk"
    vendor = partial(FakeZendesk, refuse=["d@x.io"])
    connection = {"domain": "example", "user": "a@x.io/token", "token": TOKEN}
    bad, deletes = ("d@x.io", "Dan", -1), dict[str, Any]()
    special = {"two writes at once": [passed, answer(409, b'{"error": "DatabaseConflict"}')]}
    throttled = b"Number of allowed updates for a single user exceeded"

    @pytest.mark.parametrize("kind", ["user", "ticket"])
    def test_a_permanent_delete_has_two_steps_and_is_made_again_after_a_break(self, kind: str) -> None:
        with FakeZendesk(kind) as api:
            given = {"object": kind, "delete": "permanent"}
            refs = [one.ref for one in self.deliver(api, self.rows, parameters=given)]
            api.misbehave(passed, reset(applied=False), passed, passed, passed, reset(applied=True))
            gone = self.deliver(api, [row[:1] for row in self.rows[:2]], "delete", given, refs[:2])
            assert {one.kind for one in gone} == {Kind.WRITTEN}
            assert (api.trash, sorted(api.objects)) == (set(), ["c@x.io"])
            self.deliver(api, [self.rows[2][:1]], "delete", {"object": kind}, refs[2:])
            assert len(api.trash) == 1

    def test_a_ticket_is_looked_for_before_it_is_created(self) -> None:
        with FakeZendesk("ticket") as api:
            api.misbehave(passed, reset(applied=True))
            given = {"object": "ticket"}
            results = [one for _ in range(2) for one in self.deliver(api, self.rows[:2], parameters=given)]
            assert {result.kind for result in results} == {Kind.WRITTEN}
            assert (api.doubled, api.objects) == (0, self.expected(self.rows[:2]))
