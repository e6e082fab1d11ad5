"""Elasticsearch and OpenSearch: an action and a document on two lines, and an answer for each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pytest
from msgspec.structs import replace

from retl.destinations import load
from retl.destinations.batch import Field, Kind, Shape, WriteMode
from tests.api import TOKEN
from tests.delivered import deliver
from tests.destinations.rows import Row, Rows
from tests.presets.documents import Cluster
from tests.presets.proof import TEXT, Proof


class TestElasticsearch(Proof):
    preset = "elasticsearch"
    vendor = partial(Cluster, refuse=["d@x.io"])
    connection = {"url": "https://vendor", "api_key": TOKEN}
    parameters = {"index": "people"}
    bad = ("d@x.io", "Dan", -1)
    deletes: Mapping[str, Any] = parameters
    golden = ("elasticsearch_bulk.jsonl", 0, parameters, (Field("name", TEXT),), [("4", "Dee")])

    def test_a_busy_document_is_sent_again_and_an_absent_one_is_deleted(self, api: Cluster) -> None:
        api.objects, api.busy = {"a@x.io": {"name": "old"}}, {"b@x.io"}
        assert [one.kind for one in self.deliver(api, self.rows)] == [Kind.WRITTEN] * 3
        assert self.contents(api) == self.expected(self.rows)

    @pytest.mark.parametrize(("write", "others"), [("insert_only", 2), ("update_only", 1)])
    def test_each_mode_leaves_the_other_documents(self, api: Cluster, write: WriteMode, others: int) -> None:
        api.objects = {"a@x.io": {"name": "old"}}
        lane = load(self.preset)(self.options(api.url), replace(self.shape(), write=write))
        results = [one.kind for one in deliver(lane, self.rows, write)]
        assert results.count(Kind.SKIPPED) == len(self.rows) - others
        assert api.objects["a@x.io"]["name"] == ("old" if write == "insert_only" else "Ann")

    def request(self, parameters: Mapping[str, Any], shape: Shape, rows: Sequence[Row]) -> dict[str, Any]:
        made = load(self.preset)(self.options(None, parameters), shape).preview(Rows(shape, rows).batch())
        return {"body": made.partition(b"\r\n\r\n")[2].decode()}

    def alike(self, request: dict[str, Any]) -> Any:
        """The last document of a request; the client names the index in each action, and repeats nothing."""
        *_, action, document = map(json.loads, request["body"].splitlines())
        return action["update"]["_id"], document
