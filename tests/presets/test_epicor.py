"""Epicor Kinetic: rows of business objects by their whole key, and rows of an updatable BAQ."""

from __future__ import annotations

import json
from base64 import b64encode
from functools import partial
from typing import Any, ClassVar
from urllib.parse import unquote

from retl.destinations.batch import Kind
from retl.testing import FakeApi
from tests.api import TOKEN
from tests.presets.proof import Proof

LOGIN = "Basic " + b64encode(f"manager:{TOKEN}".encode()).decode()
PARTS = "/server/api/v2/odata/EPIC06/Erp.BO.PartSvc/Parts"
BAQ = "/server/api/v2/odata/EPIC06/BaqSvc/XX_Parts/Data"
BAD = {"HttpStatus": 400, "ErrorType": "Ice.BLException", "ErrorMessage": "Part class is invalid."}


class Kinetic(FakeApi):
    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if (headers.get("authorization"), headers.get("x-api-key")) != (LOGIN, "key of the company"):
            return 401, {"HttpStatus": 401, "ErrorMessage": "Invalid API key."}
        content = json.loads(body) if body else {}
        where = unquote(path)
        key = content.pop("PartNum", None) or where.removeprefix(f"{PARTS}('").removesuffix("')")
        key = key.replace("''", "'")
        if where == BAQ:
            assert (method, content.pop("RowMod")) == ("PATCH", "U")
        else:
            assert where == PARTS if method == "POST" else where.startswith(f"{PARTS}('")
        if key in self.refuse:
            return 500, {**BAD, "HttpStatus": 500}
        if method != "POST" and key not in self.objects:
            return 404, {"HttpStatus": 404, "ErrorMessage": "Record not found."}
        if method == "DELETE":
            del self.objects[key]
            return 204, None
        self.merge(key, content)
        return (201 if method == "POST" else 204), None


class TestEpicor(Proof):
    preset, vendor, key = "epicor", partial(Kinetic, refuse=["d@x.io"]), "PartNum"
    connection = {
        "url": "https://vendor/server",
        "username": "manager",
        "password": TOKEN,
        "api_key": "key of the company",
    }
    parameters = {"company": "EPIC06", "service": "Erp.BO.PartSvc", "set": "Parts"}
    rows = (("O'Neil", "Ann", 1), ("b@x.io", "Bob", 2), ("c@x.io", None, 3))
    bad = ("d@x.io", "Dan", -1)
    deletes: ClassVar = parameters

    def test_rows_that_are_there_are_changed(self, api: Kinetic, monkeypatch: Any) -> None:
        self.deliver(api, self.rows[:1])
        monkeypatch.setattr(self, "write", "update_only", raising=False)
        known, new = ("O'Neil", "Zoe", 1), self.rows[1]
        assert [one.kind for one in self.deliver(api, [known, new])] == [Kind.WRITTEN, Kind.SKIPPED]
        self.deliver(api, [("O'Neil", "Amy", 2)], parameters={"company": "EPIC06", "baq": "XX_Parts"})
        assert self.contents(api) == {"O'Neil": {"name": "Amy", "visits": 2}}
