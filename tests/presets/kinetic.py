"""Epicor Kinetic: business objects by their whole key, and rows of an updatable BAQ."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any
from urllib.parse import unquote

from retl.testing import FakeApi
from tests.api import TOKEN

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
