"""A cluster that takes actions and documents in lines."""

from __future__ import annotations

import json
from typing import Any

from retl.testing import FakeApi

BUSY = {"error": {"type": "es_rejected_execution_exception", "reason": "queue capacity"}, "status": 429}


class Cluster(FakeApi):
    """Merges documents; `busy` ids are refused once."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.busy: set[str] = set()

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("authorization") != f"ApiKey {self.token}":
            return 401, {"error": {"type": "security_exception", "reason": "no"}, "status": 401}
        assert (path, headers["content-type"]) == ("/people/_bulk", "application/x-ndjson")
        assert body.endswith(b"\n")
        sent = iter([json.loads(line) for line in body.splitlines()])
        return 200, {"errors": False, "items": [{next(iter(one)): self.done(one, sent)} for one in sent]}

    def done(self, action: dict[str, Any], sent: Any) -> dict[str, Any]:
        ((verb, about),) = action.items()
        key, content = about["_id"], None if verb == "delete" else next(sent)
        if key in self.busy:
            self.busy.remove(key)
            return BUSY
        if verb == "delete":
            return {"result": "deleted" if self.objects.pop(key, None) is not None else "not_found"}
        if verb == "create" and key in self.objects:
            return {"error": {"type": "version_conflict_engine_exception"}, "status": 409}
        if verb == "update" and key not in self.objects and not content.get("doc_as_upsert"):
            return {"error": {"type": "document_missing_exception"}, "status": 404}
        if key in self.refuse:
            return {
                "error": {"type": "document_parsing_exception", "reason": "failed to parse"},
                "status": 400,
            }
        self.merge(key, content["doc"] if verb == "update" else content)
        return {"result": "created", "status": 201}
