"""An audience of Meta: a set, of which an answer only counts."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.api import TOKEN, Api


class Meta(Api):
    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        query = parse_qs(urlsplit(path).query)
        if query.pop("access_token", None) != [TOKEN]:
            return 400, {"error": {"code": 190, "message": "Error validating access token"}}
        payload = json.loads(query["payload"][0]) if method == "DELETE" else json.loads(body)["payload"]
        assert payload["is_raw"] is False
        if len(payload["data"]) > 10_000:
            return 400, {"error": {"code": 100, "message": "more than 10000 entries"}}
        bad = 0
        for row in payload["data"]:
            fields = dict(zip(payload["schema"], row, strict=True))
            name = fields.pop("EXTERN_ID")
            if method == "DELETE":
                self.users.pop(name, None)
            elif fields["EMAIL"] == "x":
                bad += 1
            else:
                self.users[name] = fields
        return 200, {"audience_id": "1", "num_received": len(payload["data"]), "num_invalid_entries": bad}


def payload(request: dict[str, Any]) -> dict[str, Any]:
    """What a request says, wherever it says it. The SDK sends one unnamed field as a bare text per row, and
    its schema for that is a word of its own; we send lists under a schema."""
    body = request["body"] or urlsplit(request["path"]).query
    said = body["payload"] if isinstance(body, dict) else json.loads(parse_qs(body)["payload"][0])
    rows = [row[0] if isinstance(row, list) else row for row in said["data"]]
    return {"data": rows, "is_raw": said["is_raw"], "said": sorted(said)}
