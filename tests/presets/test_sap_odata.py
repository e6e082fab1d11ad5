"""SAP OData: a token and its session with each write, and each row a change set of its own in a $batch."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import pytest

from retl.destinations.batch import Kind
from retl.errors import Systemic
from retl.testing.faults import answer, passed
from tests.api import TOKEN
from tests.presets.gateway import Gateway
from tests.presets.proof import Proof


class TestSap(Proof):
    preset, key = "sap_odata", "Product"
    vendor = partial(Gateway, refuse=["d@x.io"])
    connection = {"url": "https://vendor/sap", "username": "RETL", "password": TOKEN}
    parameters: ClassVar[dict[str, Any]] = {"set": "A_Product", "match": "Product"}
    rows = (("O'Neil", "Ann", 1), ("b@x.io", "Bob", 2), ("c@x.io", "Cid", 3))
    bad = ("d@x.io", "Dan", -1)
    deletes: ClassVar = parameters

    def faults(self) -> dict[str, Any]:
        """Each at the token, at the questions, and at the writes."""
        given = super().faults().items()
        return {f"{name} ({n})": [passed] * n + [*faults] for n in range(3) for name, faults in given}

    def test_a_session_that_ended_is_renewed_and_a_refusal_stops_the_run(self, api: Gateway) -> None:
        def ended(exchange: Any) -> bool:
            api.ended = api.session
            return False

        api.faults += [passed, passed, ended]  # the token, the questions, and the writes
        assert {one.kind for one in self.deliver(api, self.rows)} == {Kind.WRITTEN}
        assert (self.contents(api), api.doubled) == (self.expected(self.rows), 0)
        api.faults += [answer(403, b"no role")]
        with pytest.raises(Systemic, match="answered 403"):
            self.deliver(api, self.rows)
