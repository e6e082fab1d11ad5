"""Desks whose objects are found by a key of ours."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any
from urllib.parse import SplitResult, parse_qs

from tests.api import TOKEN
from tests.presets.numbered import Numbered

LOGIN = "Basic " + b64encode(f"{TOKEN}:".encode()).decode()


class FakeZendesk(Numbered):
    probe = "/api/v2/users/me"
    refusal = (422, {"error": "RecordInvalid", "description": "Record validation errors"})

    def __init__(self, object: str = "user", **given: Any) -> None:
        super().__init__(**given)
        self.object, self.root = object, f"/api/v2/{object}s"
        self.trash: set[str] = set()

    def allowed(self, headers: dict[str, str]) -> bool:
        return "authorization" in headers

    def asked(self, method: str, where: SplitResult, content: Any) -> str | None:
        return parse_qs(where.query)["external_id"][0] if method == "GET" else None

    def found(self, ids: list[str]) -> Any:
        return {"tickets": [{"id": int(one)} for one in ids]}

    def shown(self, number: str) -> Any:
        return {self.object: {"id": int(number)}}

    def parts(self, content: Any) -> tuple[str | None, dict[str, Any]]:
        row = content[self.object]
        return row.pop("external_id", None), row

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        number = path.rpartition("/")[2]
        if path.startswith("/api/v2/deleted_"):
            assert method == "DELETE"
            there = number in self.trash
            self.trash.discard(number)
            return (200, {"job_status": {}}) if there else (404, {"error": "RecordNotFound"})
        if method == "DELETE" and number in self.ids:
            self.trash.add(number)
        if path.endswith("/create_or_update"):
            key = json.loads(body)[self.object]["external_id"]
            known = [number for number, name in self.ids.items() if name == key]
            path = "/".join([self.root, *known])
        return super().serve(method, path, headers, body)


class FakeClose(Numbered):
    refusal = (
        400,
        {"errors": [], "field-errors": {"name": "This field is required."}, "error": "Bad request"},
    )
    deleted = (200, {})
    probe = "/api/v1/me/"

    def __init__(self, object: str = "lead", **given: Any) -> None:
        super().__init__(**given)
        self.object, self.root = object, f"/api/v1/{object}"

    def allowed(self, headers: dict[str, str]) -> bool:
        return headers.get("authorization") == LOGIN

    def asked(self, method: str, where: SplitResult, content: Any) -> str | None:
        if where.path != "/api/v1/data/search/":
            return None
        kind, condition = content["query"]["queries"]
        assert (kind["object_type"], content["results_limit"]) == (self.object, 2)
        wanted = condition.get("related_query", condition)
        assert wanted["condition"].pop("mode") == "exact_value"
        assert wanted["field"].get("custom_field_id", wanted["field"].get("field_name")) in ("cf_1", "email")
        return str(wanted["condition"]["value"])

    def found(self, ids: list[str]) -> Any:
        return {"data": [{"__object_type": self.object, "id": one} for one in ids], "cursor": None}

    def parts(self, content: Any) -> tuple[str | None, dict[str, Any]]:
        emails = content.pop("emails", [{"email": None}])
        return content.pop("custom.cf_1", emails[0]["email"]), content
