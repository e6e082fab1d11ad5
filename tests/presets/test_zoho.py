"""Zoho CRM: an answer for each record, in order; a refused token is renewed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.api import TOKEN
from tests.presets.oauth import TokenServer, expire
from tests.presets.proof import Proof

INVALID = {
    "code": "INVALID_DATA",
    "details": {},
    "message": "the id given seems to be invalid",
    "status": "error",
}


class Zoho(TokenServer):
    token_path, scheme, grant = "/oauth/v2/token", "Zoho-oauthtoken", "refresh_token"

    def refused(self) -> tuple[int, Any]:
        return 401, {"code": "INVALID_TOKEN", "message": "invalid oauth token", "status": "error"}

    def take(self, method: str, path: str, content: Any) -> tuple[int, Any]:
        if method == "DELETE":
            ids = unquote(parse_qs(urlsplit(path).query)["ids"][0]).split(",")
            gone = [self.users.pop(one.removeprefix("55"), None) is not None for one in ids]
            data = [
                done(one, "record deleted") if was else INVALID for one, was in zip(ids, gone, strict=True)
            ]
            return (200 if all(gone) else 207 if any(gone) else 400), {"data": data}
        if len(content["data"]) > 100 or content["duplicate_check_fields"] != ["Email"]:
            return 400, {"code": "LIMIT_EXCEEDED", "message": "more than 100 records", "status": "error"}
        data = []
        for row in content["data"]:
            if (row["visits"] or 0) < 0:
                data.append({**INVALID, "details": {"api_name": "visits"}, "message": "invalid data"})
            else:
                self.users.setdefault(row["Email"], {}).update({k: v for k, v in row.items() if k != "Email"})
                data.append(done(f"55{row['Email']}", "record updated"))
        bad = sum(one["status"] == "error" for one in data)
        return (200 if not bad else 207 if bad < len(data) else 400), {"data": data}


def done(name: str, message: str) -> dict[str, Any]:
    return {"code": "SUCCESS", "details": {"id": name}, "message": message, "status": "success"}


class TestZoho(Proof):
    preset, vendor, limit, key, renews = "zoho", Zoho, 100, "Email", True
    connection = {
        "client_id": "me",
        "client_secret": TOKEN,
        "refresh_token": "again",
        "accounts": "https://vendor",
    }
    parameters = {"module": "Leads"}
    bad = ("d@x.io", "Dan", -1)
    deletes: Mapping[str, Any] = parameters

    def expire(self, api: Any) -> None:
        expire(api)
