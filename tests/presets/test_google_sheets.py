"""Google Sheets: rows below a table, and rows with tags that stay with them."""

from __future__ import annotations

import json
from functools import partial
from typing import Any, ClassVar
from urllib.parse import unquote

import jsonschema
import pytest

from retl.destinations.batch import Kind
from retl.errors import DefinitionError
from tests import api as fake
from tests.presets.google import KEY, Google
from tests.presets.oauth import expire
from tests.presets.proof import EVIDENCE, Proof

BAD = {"error": {"code": 400, "status": "INVALID_ARGUMENT", "message": "a cell is too long"}}
SCHEMA = json.loads((EVIDENCE / "contracts/google/sheets.json").read_text())
KINDS = {
    "developerMetadata:search": "SearchDeveloperMetadataRequest",
    ":batchUpdate": "BatchUpdateSpreadsheetRequest",
    "values:batchUpdateByDataFilter": "BatchUpdateValuesByDataFilterRequest",
    "values:batchClearByDataFilter": "BatchClearValuesByDataFilterRequest",
}


class FakeSheets(Google):
    """Lines of cells, the first one below the heading first; `tags`: id of a tag → its key and its line."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.lines: list[list[Any]] = []
        self.tags: dict[int, tuple[str, list[Any]]] = {}

    def take(self, method: str, path: str, content: Any) -> tuple[int, Any]:
        verb = unquote(path).removeprefix("/v4/spreadsheets/s").removeprefix("/")
        kind = KINDS.get(verb, "ValueRange")
        jsonschema.Draft202012Validator({**SCHEMA, "$ref": f"#/schemas/{kind}"}).validate(content)
        if kind == "ValueRange":
            assert verb == "values/People!A:C:append?valueInputOption=RAW&insertDataOption=INSERT_ROWS"
            if any(line[0] in self.refuse for line in content["values"]) or len(content["values"]) > 1000:
                return 400, BAD
            self.lines += content["values"]
            return 200, {"spreadsheetId": "s", "updates": {"updatedRows": len(content["values"])}}
        if verb == ":batchUpdate":
            tag = content["requests"][1]["createDeveloperMetadata"]["developerMetadata"]
            number = 100 + max(self.tags, default=0)
            self.lines.insert(0, line := [])
            self.tags[number] = tag["metadataValue"], line
            created = {"developerMetadata": {**tag, "metadataId": number}}
            return 200, {"replies": [{}, {"createDeveloperMetadata": created}]}
        (one,) = content["data"] if "data" in content else content["dataFilters"]
        look = one.get("dataFilter", one)["developerMetadataLookup"]
        if "metadataId" not in look:
            found = [n for n, (key, _) in self.tags.items() if key == look["metadataValue"]]
            return 200, {
                "matchedDeveloperMetadata": [{"developerMetadata": {"metadataId": n}} for n in found]
            }
        key, line = self.tags.get(look["metadataId"], ("", None))
        if key in self.refuse:
            return 400, BAD
        if line is not None:
            line[:] = one["values"][0] if "data" in content else []
        updated = {"totalUpdatedRows": 1} if line is not None else {}
        return 200, {"spreadsheetId": "s", **updated}


class TestGoogleSheets(Proof):
    preset, vendor, renews = "google_sheets", partial(FakeSheets, refuse=["d@x.io"]), True
    connection = {"key": KEY}
    parameters: ClassVar = {"spreadsheet": "s", "columns": ["id", "name", "visits"], "rows": "tagged"}
    bad = ("d@x.io", "Dan", 4)
    deletes: ClassVar = parameters
    appended: ClassVar = {**parameters, "rows": "appended", "range": "People!A:C"}
    contract = ("google/sheets.json", "")
    special = {"the answer to a creation is lost": [fake.passed, fake.passed, fake.reset(applied=True)]}

    def contents(self, api: Any) -> dict[str, Any]:
        return {line[0]: dict(zip(("name", "visits"), line[1:], strict=True)) for line in api.lines if line}

    def sent_as(self, row: Any) -> dict[str, Any]:
        return {name: "" if value is None else value for name, value in super().sent_as(row).items()}

    def expire(self, api: Any) -> None:
        expire(api)

    def test_people_may_sort_and_delete_lines(self, api: FakeSheets) -> None:
        written = self.deliver(api, self.rows)
        api.lines.reverse()
        del api.lines[api.lines.index(api.tags.pop(100)[1])]
        changed = [(key, f"{name}!", visits) for key, name, visits in self.rows]
        self.deliver(api, changed, refs=[one.ref for one in written])
        assert (self.contents(api), len(api.lines)) == (self.expected(changed), 3)

    def test_lines_are_appended_in_blocks_and_halved(self, api: FakeSheets, monkeypatch: Any) -> None:
        monkeypatch.setattr(self, "write", "append", raising=False)
        with pytest.raises(DefinitionError, match="means: made"):
            self.deliver(api, self.rows)
        results = self.deliver(api, [*self.rows, self.bad], parameters=self.appended)
        assert [one.kind for one in results] == [Kind.WRITTEN] * 3 + [Kind.REJECTED]
        assert sorted(self.contents(api)) == ["a@x.io", "b@x.io", "c@x.io"]
