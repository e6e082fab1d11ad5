"""Zendesk: users and organizations by their external id, tickets found by it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from retl.destinations.batch import Kind
from tests.api import TOKEN, answer, passed, reset
from tests.presets.desks import FakeZendesk
from tests.presets.proof import Proof


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
