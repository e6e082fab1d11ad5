"""ServiceNow: an import set behind the Batch API."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode, urlsafe_b64decode, urlsafe_b64encode
from typing import Any

from retl.testing.server import FakeApi

_NOT_THERE = b64encode(b'{"error":{"message":"No Record found"},"status":"failure"}').decode()


class FakeServiceNow(FakeApi):
    """Coalesces on the column `key`, takes 100 requests a batch and answers in reverse. Where it is
    `hurried` it has no time for the third request of a batch, once. The user may be any, `token` is the
    password."""

    hurried = False
    key = "id"

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        kind, _, pair = headers.get("authorization", "").partition(" ")
        if kind != "Basic" or b64decode(pair).decode().partition(":")[2] != self.token:
            return 401, {"error": {"message": "User Not Authenticated"}}
        requests = json.loads(body)["rest_requests"]
        if len(requests) > 100:
            return 400, {"error": {"message": "more than 100 requests"}}
        served, unserved = [], []
        for n, one in reversed(list(enumerate(requests))):
            if n == 2 and self.hurried:
                unserved.append(one["id"])
            elif one["method"] == "DELETE":
                served.append({"id": one["id"], **self._delete(one["url"].rpartition("/")[2])})
            elif one["method"] != "POST" or not one["url"].startswith("/api/now/import/"):
                served.append({"id": one["id"], "status_code": 404, "status_text": "Not Found", "body": ""})
            else:
                answer = json.dumps({"result": [self._import(json.loads(b64decode(one["body"])))]})
                body_of = b64encode(answer.encode()).decode()
                served.append(
                    {"id": one["id"], "status_code": 201, "status_text": "Created", "body": body_of}
                )
        self.hurried = False
        return 200, {"batch_request_id": "retl", "serviced_requests": served, "unserviced_requests": unserved}

    def _import(self, row: dict[str, Any]) -> dict[str, str]:
        key = row.pop(self.key)
        if key in self.refuse:
            return {"status": "error", "error_message": f"{row.get('name')} is refused"}
        self.merge(key, row)
        return {"status": "updated", "sys_id": urlsafe_b64encode(key.encode()).decode().rstrip("=")}

    def _delete(self, sys_id: str) -> dict[str, Any]:
        key = urlsafe_b64decode(f"{sys_id}==").decode()
        known = self.objects.pop(key, None) is not None
        return {"status_code": 204 if known else 404, "body": "" if known else _NOT_THERE}
