"""A sheet: lines of cells, and tags that stay with theirs."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote

import jsonschema

from tests.presets.google import Google
from tests.presets.proof import EVIDENCE

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
