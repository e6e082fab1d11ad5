"""CRMs that answer for each row at its place, behind a token."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.presets.oauth import TokenServer

INVALID = {
    "code": "INVALID_DATA",
    "details": {},
    "message": "the id given seems to be invalid",
    "status": "error",
}


class Salesforce(TokenServer):
    token_path = "/services/oauth2/token"

    def take(self, method: str, path: str, content: Any) -> tuple[int, Any]:
        if method == "DELETE":
            ids = [unquote(one) for one in urlsplit(path).query.split("&")[0].removeprefix("ids=").split(",")]
            keys = [one.removeprefix("003") for one in ids]
            gone = [self.users.pop(one, None) is not None for one in keys]
            missing = {"success": False, "errors": [{"statusCode": "ENTITY_IS_DELETED", "message": "gone"}]}
            return 200, [
                {"id": one, "success": True, "errors": []} if was else missing
                for one, was in zip(ids, gone, strict=True)
            ]
        rows, result = content["records"], []
        if len(rows) > 200 or content["allOrNone"] is not False:
            return 400, [{"errorCode": "EXCEEDED_ID_LIMIT", "message": "record limit reached"}]
        for row in rows:
            assert row.pop("attributes") == {"type": "Contact"}
            if (row["visits"] or 0) < 0:
                result.append(
                    {"success": False, "errors": [{"statusCode": "INVALID", "message": "below zero"}]}
                )
            else:
                key = row.pop(path.rpartition("/")[2])
                self.users.setdefault(key, {}).update(row)
                result.append({"id": f"003{key}", "success": True, "errors": []})
        return 200, result


SKIPPED = {"status": "skipped", "reasons": [{"code": "1003", "message": "visits must not be below zero"}]}


class Marketo(TokenServer):
    token_path = "/identity/oauth/token"

    def __init__(self) -> None:
        super().__init__()
        self.ids: dict[int, str] = {}

    def refused(self) -> tuple[int, Any]:
        return 200, {"success": False, "errors": [{"code": "602", "message": "Access token expired"}]}

    def take(self, method: str, path: str, content: Any) -> tuple[int, Any]:
        rows, result = content["input"], []
        if len(rows) > 300:
            return 200, {"success": False, "errors": [{"code": "1080", "message": "more than 300 leads"}]}
        for row in rows:
            if path.endswith("delete.json"):
                assert type(row["id"]) is int
                known = self.users.pop(self.ids.get(row["id"], ""), None) is not None
                gone = {"status": "skipped", "reasons": [{"code": "1004", "message": "Lead not found"}]}
                result.append({"status": "deleted"} if known else gone)
            elif (row["visits"] or 0) < 0:
                result.append(SKIPPED)
            else:
                key = row.pop(content["lookupField"])
                self.users.setdefault(key, {}).update(row)
                number = 7000 + sum(key.encode())
                self.ids[number] = key
                result.append({"id": number, "status": "updated"})
        return 200, {"success": True, "result": result}


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
