"""Iterable: users, and members of a list, by email."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote

from retl.testing.server import FakeApi


class FakeIterable(FakeApi):
    """Takes 1000 users a request; those it refuses are named, and counted."""

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("api-key") != self.token:
            return 401, {"code": "BadApiKey", "msg": "Invalid API key"}
        if method == "DELETE":
            self.objects.pop(unquote(path.rpartition("/")[2]), None)
            return 200, {"msg": "", "code": "Success", "params": None}
        return self.take(path, json.loads(body)["users"])

    def take(self, path: str, rows: list[dict[str, Any]]) -> tuple[int, Any]:
        if len(rows) > 1000:
            return 400, {"code": "RequestFieldsTypesMismatch", "msg": "more than 1000 users"}
        bad = [row["email"] for row in rows if row["email"] in self.refuse]
        for row in rows:
            if path == "/api/lists/unsubscribe":
                self.objects.pop(row["email"], None)
            elif row["email"] not in bad:
                self.merge(row["email"], row["dataFields"])
        counts = {"successCount": len(rows) - len(bad), "failCount": len(bad)}
        return 200, {**counts, "invalidEmails": bad, "invalidUserIds": []}


class FakeIterableLists(FakeIterable):
    """One list, whatever its number."""

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("api-key") != self.token:
            return 401, {"code": "BadApiKey", "msg": "Invalid API key"}
        content = json.loads(body)
        if not isinstance(content["listId"], int):
            return 400, {"code": "BadParams", "msg": "listId is no number"}
        return self.take(path, content["subscribers"])
