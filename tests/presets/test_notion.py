"""Notion: pages of a data source, found by the text of a property."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar
from urllib.parse import SplitResult

from retl.destinations.batch import Field
from retl.values.types import Type
from tests import api as fake
from tests.presets.numbered import Numbered
from tests.presets.proof import Proof


class FakeNotion(Numbered):
    root = "/v1/pages"
    refusal = (400, {"object": "error", "status": 400, "code": "validation_error", "message": "no"})

    def asked(self, method: str, where: SplitResult, content: Any) -> str | None:
        if where.path != "/v1/data_sources/ds/query":
            return None
        assert content["filter"]["property"] == "Name"
        return str(content["filter"]["title"]["equals"])

    def found(self, ids: list[str]) -> Any:
        return {"object": "list", "results": [{"id": one} for one in ids], "has_more": False}

    def parts(self, content: Any) -> tuple[str | None, dict[str, Any]]:
        properties = content["properties"]
        name = properties.pop("Name", None)
        return name and name["title"][0]["text"]["content"], properties

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        assert headers["notion-version"] == "2025-09-03"
        trashed = body == b'{"in_trash":true}'
        status, content = super().serve("DELETE" if trashed else method, path, headers, body)
        return (200, {"id": path.split("/")[-1]}) if trashed and status == 204 else (status, content)


class TestNotion(Proof):
    preset, key = "notion", "name"
    vendor = partial(FakeNotion, refuse=["d"])
    parameters = {"data_source": "ds", "match": "Name"}
    fields = (Field("Visits", Type("json")),)
    rows = (("a", '{"number": 1}'), ("b", '{"number": 2}'), ("c", '{"number": null}'))
    bad = ("d", '{"number": -1}')
    deletes: ClassVar = parameters
    special = {
        "the answer to a creation is lost": [fake.passed, fake.reset(applied=True)],
        "529": [fake.answer(529, b"{}")],
    }
