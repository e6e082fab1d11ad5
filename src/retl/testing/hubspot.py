"""HubSpot: objects by their id property, members of a list."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from retl.testing.server import TOKEN, FakeApi


class FakeHubSpot(FakeApi):
    """Takes 100 records a request, values as text, and answers in reverse. One record is read, created or
    changed by its id or, with `?idProperty=`, by that property, and shows the properties that are asked for.
    A list of all has pages of `?limit=`, at most 100, and goes on at `?after=`; without `limit` it is whole.
    There is no search.
    `erased` are the contacts that were permanently erased, as (id property, id)."""

    def __init__(self, token: str = TOKEN, refuse: Collection[str] = ()) -> None:
        super().__init__(token, refuse)
        self.erased: list[tuple[str, str]] = []
        self.changes = Counter[str]()

    def merge(self, key: str, fields: dict[str, Any]) -> None:
        super().merge(key, fields)
        self.changes[key] += 1

    def moment(self, key: str) -> str:
        """When a record was changed last: later after each change."""
        changed = datetime(2026, 11, 29, tzinfo=UTC) + timedelta(seconds=self.changes[key])
        return changed.strftime("%Y-%m-%dT%H:%M:%SZ")

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("authorization") != f"Bearer {self.token}":
            return 401, {"category": "INVALID_AUTHENTICATION"}
        where = urlsplit(path)
        if one := re.fullmatch(r"/crm/v3/objects/[^/]+(?:/([^/]+))?", where.path):
            query = {name: values[0] for name, values in parse_qs(where.query).items()}
            if method == "GET" and one[1] is None:
                return self._listed(query)
            if method == "POST" and one[1] == "search":
                return 404, {"category": "OBJECT_NOT_FOUND", "message": "this fake has no search"}
            if one[1] != "gdpr-delete":
                return self._one(method, unquote(one[1] or ""), query, json.loads(body or b"{}"))
        if path.endswith("/batch/read"):
            return 200, self._read(**json.loads(body))
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

    def _listed(self, query: dict[str, str]) -> tuple[int, Any]:
        """One page of all records, and where the next one begins."""
        limit, after = query.get("limit", str(len(self.objects))), query.get("after", "0")
        if not (limit.isdigit() and after.isdigit()) or ("limit" in query and not 1 <= int(limit) <= 100):
            return 400, {"category": "VALIDATION_ERROR", "message": "limit is from 1 to 100"}
        first, end = int(after), int(after) + int(limit)
        held = [
            {"id": f"r-{key}", "properties": fields} for key, fields in [*self.objects.items()][first:end]
        ]
        more = {"paging": {"next": {"after": str(end)}}} if end < len(self.objects) else {}
        return 200, {"results": held, **more}

    def _one(self, method: str, name: str, query: dict[str, str], content: Any) -> tuple[int, Any]:
        """The answer to a request for one record: read it, create it (its key is the property that the
        records of a batch are named by) or change it."""
        match = query.get("idProperty", "hs_object_id" if name else "email")
        fields = dict(content.get("properties", {}))
        key = name.removeprefix("r-") if name else fields.pop(match, "")
        if method == "POST" and key in self.objects:
            return 409, {"category": "CONFLICT", "message": f"Contact already exists. Existing ID: r-{key}"}
        if method != "POST" and key not in self.objects:
            return 404, {"category": "OBJECT_NOT_FOUND"}
        if method != "GET":
            self.merge(key, fields)
        asked = query["properties"].split(",") if "properties" in query else [*fields]
        return (201 if method == "POST" else 200), self._shown(key, match, asked)

    def _read(self, inputs: list[Any], properties: list[str], idProperty: str = "hs_object_id") -> Any:
        """The answer to a batch that reads: the records that are there."""
        keys = [one["id"].removeprefix("r-") for one in inputs]
        found = [self._shown(key, idProperty, properties) for key in keys if key in self.objects]
        return {"status": "COMPLETE", "results": found}

    def _shown(self, key: str, match: str, properties: list[str]) -> dict[str, Any]:
        held = {match: key, **self.objects[key]}
        shown = {name: held.get(name) for name in properties}
        return {"id": f"r-{key}", "properties": shown, "updatedAt": self.moment(key)}

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
