"""HubSpot: objects by their id property, members of a list."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from retl.testing.server import TOKEN, FakeApi


class FakeHubSpot(FakeApi):
    """Takes 100 records a request, values as text, and answers in reverse. `erased` are the contacts that
    were permanently erased, as (id property, id)."""

    def __init__(self, token: str = TOKEN, refuse: Collection[str] = ()) -> None:
        super().__init__(token, refuse)
        self.erased: list[tuple[str, str]] = []

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("authorization") != f"Bearer {self.token}":
            return 401, {"category": "INVALID_AUTHENTICATION"}
        if method == "GET":
            held = [{"id": f"r-{key}", "properties": fields} for key, fields in self.objects.items()]
            return 200, {"results": held}
        if path == "/crm/v3/objects/contacts/gdpr-delete":
            return self._erase(**json.loads(body))
        inputs = json.loads(body)["inputs"]
        if len(inputs) > 100:
            return 400, {"category": "VALIDATION_ERROR", "message": "more than 100 inputs"}
        if path.endswith("/batch/archive"):
            for one in inputs:
                self.objects.pop(one["id"].removeprefix("r-"), None)
            return 204, None
        if not all(isinstance(value, str) for one in inputs for value in one["properties"].values()):
            return 400, {"category": "VALIDATION_ERROR", "message": "a property is no text"}
        results, errors = [], []
        for one in reversed(inputs):
            trace = one["objectWriteTraceId"]
            if one["id"] in self.refuse:
                errors.append({"category": "VALIDATION_ERROR", "context": {"objectWriteTraceId": [trace]}})
            else:
                self.merge(one["id"], one["properties"])
                results.append({"id": f"r-{one['id']}", "objectWriteTraceId": trace})
        return (207 if errors else 200), {"status": "COMPLETE", "results": results, "errors": errors}

    def _erase(self, objectId: str, idProperty: str = "hs_object_id") -> tuple[int, Any]:
        self.erased.append((idProperty, objectId))
        if self.objects.pop(objectId, None) is None and idProperty == "hs_object_id":
            return 404, {"category": "OBJECT_NOT_FOUND"}
        return 204, None


class FakeHubSpotLists(FakeApi):
    """One list, whatever its id; `refuse` are records that HubSpot does not know."""

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("authorization") != f"Bearer {self.token}":
            return 401, {"category": "INVALID_AUTHENTICATION"}
        if method == "GET":
            return 200, {"list": {"processingType": "MANUAL"}}
        ids = json.loads(body)
        if len(ids) > 1000 or not all(isinstance(one, str) for one in ids):
            return 400, {"category": "VALIDATION_ERROR", "message": "at most 1000 ids, as text"}
        missing = [one for one in ids if one in self.refuse]
        added, removed = [], []
        if path.endswith("/memberships/add"):
            added = [one for one in ids if one not in (*missing, *self.objects)]
            self.objects |= {one: {} for one in added}
        elif path.endswith("/memberships/remove"):
            removed = [one for one in ids if self.objects.pop(one, None) is not None]
        else:
            return 404, {"category": "OBJECT_NOT_FOUND"}
        return 200, {"recordIdsMissing": missing, "recordsIdsAdded": added, "recordIdsRemoved": removed}
