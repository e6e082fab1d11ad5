"""Klaviyo: a job is submitted once, asked after, and its errors point at rows."""

from __future__ import annotations

from functools import partial

from retl.destinations import load
from retl.destinations.batch import Field, Kind, Outcome, Pending
from retl.testing import FakeKlaviyo
from retl.values.types import Type
from tests import api as fake
from tests.api import TOKEN, passed
from tests.destinations.rows import Rows
from tests.presets.proof import TEXT, WHOLE, Proof


class TestKlaviyo(Proof):
    preset, limit, key = "klaviyo", 10_000, "email"
    vendor = partial(FakeKlaviyo, refuse=["d@x.io"])
    connection = {"api_key": TOKEN}
    fields = (Field("first_name", TEXT), Field("visits", WHOLE))
    bad = ("d@x.io", "Dan", -1)
    contract = ("klaviyo/profiles.json", "#/components/schemas/ProfileImportJobCreateQuery")
    sent = (Field("external_id", TEXT), Field("properties", Type("json")))
    golden = ("klaviyo_bulk_import.jsonl", 0, {"list": "ABC"}, sent, [("a@x.io", "1", '{"churn":0.9}')])
    special = {
        "a poll that is throttled": [passed, fake.answer(429, b"{}", Retry_After="0")],
        "a poll that breaks": [passed, fake.answer(500), fake.reset(applied=False)],
    }

    def test_a_job_outlives_the_run_that_submitted_it(self, api: FakeKlaviyo) -> None:
        batch = Rows(self.shape(), [*self.rows, self.bad]).batch()
        first, second = (load(self.preset)(self.options(api.url), self.shape()) for _ in range(2))
        answer = first.write(batch)
        first.close()
        while isinstance(answer, Pending):
            answer = second.resolve(batch, answer.handle)
        second.close()
        assert [answer.result(n).kind for n in range(4)] == [*[Kind.WRITTEN] * 3, Kind.REJECTED]
        assert [method for method, _, _, _ in api.seen].count("POST") == 1
        assert self.contents(api) == self.expected(self.rows)

    def test_errors_are_read_page_by_page(self, api: FakeKlaviyo) -> None:
        api.refuse = frozenset(f"k{n}@x.io" for n in range(1, 10, 2))
        many = [(f"k{n}@x.io", "name", n) for n in range(10)]
        kinds = [result.kind for result in self.deliver(api, many)]
        assert kinds == [Kind.WRITTEN, Kind.REJECTED] * 5

    def test_a_job_that_was_cancelled_or_is_gone_says_nothing(self, api: FakeKlaviyo) -> None:
        batch = Rows(self.shape(), self.rows).batch()
        destination = load(self.preset)(self.options(api.url), self.shape())
        api.faults += [fake.answer(200, b'{"data":{"attributes":{"status":"cancelled"}}}'), fake.answer(404)]
        for told in ("the job failed", None):
            found = destination.resolve(batch, "job-0")
            assert isinstance(found, Outcome)
            assert (found.default.kind, found.default.reason, found.exceptions) == (Kind.UNKNOWN, told, {})
        destination.close()
