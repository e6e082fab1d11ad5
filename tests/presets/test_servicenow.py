"""ServiceNow: answers inside the answer, and what there was no time for."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any

from retl.batch import Kind
from tests import api as fake
from tests.api import TOKEN, Api
from tests.presets.proof import Proof

NOT_THERE = b64encode(b'{"error":{"message":"No Record found"},"status":"failure"}').decode()
BASIC = "Basic " + b64encode(f"retl:{TOKEN}".encode()).decode()


class ServiceNow(Api):
    """Answers in reverse, and has no time for the third request of its first batch."""

    hurried = False

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("authorization") != BASIC:
            return 401, {"error": {"message": "User Not Authenticated"}}
        requests = json.loads(body)["rest_requests"]
        if len(requests) > 100:
            return 400, {"error": {"message": "more than 100 requests"}}
        served, unserved = [], []
        for n, one in reversed(list(enumerate(requests))):
            if n == 2 and self.hurried:
                unserved.append(one["id"])
                continue
            if one["method"] == "DELETE":
                sys_id = one["url"].removeprefix("/api/now/table/cmdb_ci/")
                known = self.users.pop(b64decode(sys_id + "==", "-_").decode(), None) is not None
                status, told = (204, "") if known else (404, NOT_THERE)
                served.append({"id": one["id"], "status_code": status, "body": told})
                continue
            assert (one["method"], one["url"]) == ("POST", "/api/now/import/u_imp_assets")
            row = json.loads(b64decode(one["body"]))
            sys_id = b64encode(row["id"].encode(), b"-_").decode().rstrip("=")
            result = {"status": "updated", "sys_id": sys_id}
            if (row["visits"] or 0) < 0:
                result = {"status": "error", "error_message": f"{row['name']} is refused"}
            else:
                self.users.setdefault(row.pop("id"), {}).update(row)
            told = b64encode(json.dumps({"result": [result]}).encode()).decode()
            served.append({"id": one["id"], "status_code": 201, "status_text": "Created", "body": told})
        self.hurried = False
        return 200, {"batch_request_id": "retl", "serviced_requests": served, "unserviced_requests": unserved}


class TestServiceNow(Proof):
    preset, vendor, limit = "servicenow", ServiceNow, 100
    connection = {"instance": "example.service-now.com", "user": "retl", "password": TOKEN}
    parameters = {"staging": "u_imp_assets"}
    bad = ("d@x.io", "Dan", -1)
    deletes: Mapping[str, Any] = {**parameters, "table": "cmdb_ci"}
    special = {
        "reordered": [
            fake.changed(lambda said: {**said, "serviced_requests": said["serviced_requests"][::-1]})
        ]
    }

    def test_what_there_was_no_time_for_is_sent_again(self, api: ServiceNow) -> None:
        api.hurried = True
        results = self.deliver(api, self.rows)
        assert [result.kind for result in results] == [Kind.WRITTEN] * 3
        assert len(api.seen) == 2
        assert self.contents(api) == self.expected(self.rows)

    def test_a_reason_from_inside_tells_no_value(self, api: ServiceNow) -> None:
        (result,) = self.deliver(api, [("d@x.io", "Daniela", -1)])
        assert (result.kind, result.code, result.reason) == (Kind.REJECTED, "error", "… is refused")
