"""Pardot: one prospect a request; a used-up day is a code in the body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import pytest

from retl.errors import Spent
from tests.api import TOKEN
from tests.presets.oauth import TokenServer, expire
from tests.presets.proof import Proof, Recorded


class Pardot(TokenServer):
    token_path = "/services/oauth2/token"

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if path != self.token_path and headers.get("pardot-business-unit-id") != "0Uv1":
            return 400, {"code": 181, "message": "The business unit is missing"}
        return super().serve(method, path, headers, body)

    def refused(self) -> tuple[int, Any]:
        return 401, {"code": 184, "message": "access_token is invalid, unknown, or malformed"}

    def take(self, method: str, path: str, content: Any) -> tuple[int, Any]:
        if method == "DELETE":
            key = unquote(path.rpartition("/")[2]).removeprefix("7-")
            return (204, None) if self.users.pop(key, None) is not None else (404, {"code": 109})
        assert path == "/api/v5/objects/prospects/do/upsertLatestByEmail"
        prospect = content["prospect"]
        if (prospect["visits"] or 0) < 0:
            return 400, {"code": 61, "message": "invalid value for visits"}
        assert prospect.pop("email") == content["matchEmail"]
        self.users.setdefault(content["matchEmail"], {}).update(prospect)
        return 200, {"id": f"7-{content['matchEmail']}"}


class TestPardot(Proof):
    preset, vendor, key, renews = "pardot", Pardot, "email", True
    connection = {
        "client_id": "me",
        "client_secret": TOKEN,
        "login": "https://vendor",
        "business_unit": "0Uv1",
    }
    bad = ("d@x.io", "Dan", -1)
    deletes: Mapping[str, Any] = {}

    def expire(self, api: Any) -> None:
        expire(api)

    def test_a_used_up_day_ends_the_run(self) -> None:
        said = {"code": 122, "message": "daily limit"}
        with pytest.raises(Spent):
            self.read(Recorded({"status": 403, "resp_headers": {}, "resp_body": said}, ["a"], []))
