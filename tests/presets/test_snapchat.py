"""Snapchat: a list inside a list, taken or refused as a whole."""

from __future__ import annotations

from typing import Any

from tests.api import TOKEN
from tests.presets.oauth import TokenServer, expire
from tests.presets.proof import Proof


class Snapchat(TokenServer):
    token_path, grant = "/login/oauth2/access_token", "refresh_token"

    def take(self, method: str, path: str, content: Any) -> tuple[int, Any]:
        assert path == "/v1/segments/7/users"
        ((part),) = content["users"]
        assert (part["schema"], set(content), set(part)) == (["EMAIL_SHA256"], {"users"}, {"schema", "data"})
        keys = [key for (key,) in part["data"]]
        if len(keys) > 10_000 or "d@x.io" in keys:
            told = {
                "request_status": "ERROR",
                "error_code": "E1008",
                "display_message": "a hash is malformed",
            }
            return 400, told
        for key in keys:
            if method == "POST":
                self.users[key] = {}
            else:
                assert method == "DELETE"
                self.users.pop(key, None)
        users = [{"sub_request_status": "SUCCESS", "user": {"number_uploaded_users": len(keys)}}]
        return 200, {"request_status": "SUCCESS", "request_id": "1", "users": users}


class TestSnapchat(Proof):
    preset, vendor, limit, key, renews = "snapchat", Snapchat, 10_000, "email_hash", True
    connection = {
        "client_id": "me",
        "client_secret": TOKEN,
        "refresh_token": "again",
        "login": "https://vendor",
    }
    parameters = {"segment": "7"}
    fields = ()
    rows = (("a@x.io",), ("b@x.io",), ("c@x.io",))
    bad = ("d@x.io",)
    deletes = parameters

    def expire(self, api: Any) -> None:
        expire(api)
