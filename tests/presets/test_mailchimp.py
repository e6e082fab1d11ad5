"""Mailchimp: errors named by address and counted; an archived member cannot be archived again."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from retl.destinations.batch import Field, Kind
from retl.testing import FakeMailchimp
from tests import api as fake
from tests.api import TOKEN
from tests.presets.proof import WHOLE, Proof, Recorded, lines


class TestMailchimp(Proof):
    preset, limit = "mailchimp", 500
    vendor = partial(FakeMailchimp, refuse=["d@x.io"])
    connection = {"api_key": TOKEN, "server": "us1"}
    parameters = {"list": "LIST"}
    bad = ("d@x.io", "Dan", -1)
    deletes = {"list": "LIST"}
    special = {
        "a bare 403": [fake.answer(403)],
        "more errors than names": [fake.changed(lambda said: {**said, "error_count": 1})],
    }
    golden = (
        "mailchimp_batch_list_members.jsonl",
        0,
        {"list": "LIST"},
        (Field("LTV", WHOLE),),
        [("a@x.io", 5)],
    )

    def sent_as(self, row: Any) -> dict[str, Any]:
        return {"name": row[1] or "", "visits": row[2]}

    def alike(self, request: dict[str, Any]) -> Any:
        for one in request["body"]["members"]:
            one.pop("email_type", None)  # the default
        return request

    def recorded(self) -> Iterator[Recorded]:
        for one in lines("recordings/mailchimp.jsonl"):
            if one["method"] == "DELETE":
                yield Recorded(one, ["somebody"], [Kind.WRITTEN], "delete")

    def test_a_count_without_names_leaves_all_in_doubt(self) -> None:
        one = {"status": 200, "resp_headers": {}, "resp_body": {"errors": [], "error_count": 1}}
        outcome = self.read(Recorded(one, ["a", "b"], []))
        assert (outcome.default.kind, outcome.divides, outcome.exceptions) == (Kind.UNKNOWN, True, {})
