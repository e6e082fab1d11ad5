"""LinkedIn: an answer for each person of a segment, in order."""

from __future__ import annotations

from typing import Any

from tests.api import TOKEN
from tests.presets.oauth import TokenServer, expire
from tests.presets.proof import Proof

HEADERS = {
    "linkedin-version": "202604",
    "x-restli-protocol-version": "2.0.0",
    "x-restli-method": "BATCH_CREATE",
}


class LinkedIn(TokenServer):
    token_path, grant = "/oauth/v2/accessToken", "refresh_token"

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if path != self.token_path and {name: headers.get(name) for name in HEADERS} != HEADERS:
            return 426, {"status": 426, "code": "NONEXISTENT_VERSION", "message": "no such version"}
        return super().serve(method, path, headers, body)

    def take(self, method: str, path: str, content: Any) -> tuple[int, Any]:
        assert path == "/rest/dmpSegments/7/users"
        if len(content["elements"]) > 5000:
            return 400, {"status": 400, "code": "BATCH_SIZE", "message": "more than 5000 elements"}
        answers = []
        for n, one in enumerate(content["elements"]):
            ((kind, key),) = ((user["idType"], user["idValue"]) for user in one["userIds"])
            assert kind == "SHA256_EMAIL"
            if key == "d@x.io":
                answers.append({"status": 400, "batchIndex": n, "message": "idValue is no hash"})
                continue
            if one["action"] == "ADD":
                self.users[key] = {}
            else:
                self.users.pop(key, None)
            answers.append({"status": 201})
        return 200, {"elements": answers}


class TestLinkedIn(Proof):
    preset, vendor, limit, key, renews = "linkedin", LinkedIn, 5000, "email_hash", True
    connection = {
        "client_id": "me",
        "client_secret": TOKEN,
        "refresh_token": "again",
        "login": "https://vendor",
    }
    parameters = {"segment": 7}
    fields = ()
    rows = (("a@x.io",), ("b@x.io",), ("c@x.io",))
    bad = ("d@x.io",)
    deletes = parameters

    def expire(self, api: Any) -> None:
        expire(api)
