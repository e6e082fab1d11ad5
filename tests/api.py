"""An HTTP API of nobody's, on a real socket: it remembers objects and enforces its own rules.

    POST   /v1/users/batch  {"users": [{"id", "attributes"}]}  merges; one result per row, 207 if one is bad
    PUT    /v1/users/{id}   attributes                         merges; 422 for a bad row
    PATCH  /v1/users/{id}   attributes                         merges; 404 where there is none
    DELETE /v1/users/{id}                                      204, or 404 where there is none
    GET    /v1/users/{id}                                      200, or 404 where there is none
    POST   /v1/strict       as batch, all or nothing           422 for the whole batch, naming no row
    POST   /v1/events       {"events": [row]}                  adds; known again by Idempotency-Key
    GET    /v1/me                                              who am I

A row is bad if its `visits` is below zero; the answer repeats its `name`, as careless vendors do.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from retl.testing.faults import answer, changed, cut, dripping, instead, passed, reset
from retl.testing.server import TOKEN, FakeApi, Fault

__all__ = [
    "TOKEN",
    "Api",
    "Fault",
    "answer",
    "changed",
    "cut",
    "dripping",
    "instead",
    "passed",
    "reset",
]


class Api(FakeApi):
    """`forbidden` takes the right to write away."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.users = self.objects
        self.events: list[dict[str, Any]] = []
        self.answers: dict[str, tuple[int, Any]] = {}
        self.forbidden = False

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("authorization") != f"Bearer {TOKEN}":
            return 401, {"error": {"code": "bad_token", "message": f"who is {headers.get('authorization')}?"}}
        if self.forbidden:
            return 403, {"error": {"code": "forbidden", "message": "not with this scope"}}
        content: Any = json.loads(body, parse_float=Decimal) if body else None
        match (method, path.split("/")[2:]):
            case ("GET", ["me"]):
                return 200, {"id": "me"}
            case ("POST", ["users", "batch"]):
                results = [self.put(row["id"], row["attributes"]) for row in content["users"]]
                return (207 if any("error" in one for one in results) else 200), {"results": results}
            case ("POST", ["strict"]):
                if any(_bad(row["attributes"]) for row in content["users"]):
                    return 422, {"error": {"code": "invalid", "message": "visits must not be below zero"}}
                return 200, [self.put(row["id"], row["attributes"]) for row in content["users"]]
            case ("PUT", ["users", name]):
                result = self.put(unquote(name), content)
                return (422 if "error" in result else 200), result
            case ("PATCH", ["users", name]):
                if unquote(name) not in self.users:
                    return 404, {"error": {"code": "absent"}}
                return 200, self.put(unquote(name), content)
            case ("DELETE", ["users", name]):
                return (204, None) if self.users.pop(unquote(name), None) is not None else (404, {})
            case ("GET", ["users", name]):
                found = self.users.get(unquote(name))
                return (404, {"error": {"code": "absent"}}) if found is None else (200, found)
            case ("POST", ["events"]):
                return self.add(content["events"], headers.get("idempotency-key"))
        return 404, {"error": {"code": "no_route"}}

    def put(self, key: str, attributes: dict[str, Any]) -> dict[str, Any]:
        if (bad := _bad(attributes)) is not None:
            return bad
        self.users.setdefault(key, {}).update(attributes)
        return {"status": "updated", "id": f"u-{key}"}

    def add(self, events: list[dict[str, Any]], key: str | None) -> tuple[int, Any]:
        if key is not None and key in self.answers:
            return self.answers[key]
        bad = next((found for event in events if (found := _bad(event)) is not None), None)
        if bad is None:
            self.events.extend(events)
        answer = (200, {"taken": len(events)}) if bad is None else (422, bad)
        if key is not None:
            self.answers[key] = answer
        return answer


def _bad(attributes: dict[str, Any]) -> dict[str, Any] | None:
    if (attributes.get("visits") or 0) >= 0:
        return None
    message = f"user {attributes['name']} has visits below zero"
    return {"status": "error", "error": {"code": "invalid", "message": message}}
