"""Braze, Mailchimp, Klaviyo, Segment and Airtable: how many rows each takes, and how it reports bad rows."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Collection
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from retl.testing.server import TOKEN, FakeApi


class FakeBraze(FakeApi):
    """75 users a request, by `external_id`; bad ones are reported by index."""

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("authorization") != f"Bearer {self.token}":
            return 401, {"message": "Invalid API key"}
        content = json.loads(body)
        if path == "/users/delete":
            gone = [self.objects.pop(name, None) for name in content["external_ids"]]
            return 201, {"deleted": len(gone), "message": "success"}
        rows, errors = content["attributes"], []
        if len(rows) > 75:
            return 400, {"message": "more than 75 objects"}
        for index, row in enumerate(rows):
            name = row.pop("external_id")
            if name in self.refuse:
                errors.append({"type": "it is invalid", "input_array": "attributes", "index": index})
            else:
                self.merge(name, row)
        if len(errors) == len(rows):
            return 400, {"message": "Valid data must be provided", "errors": errors}
        failed = {"errors": errors} if errors else {}
        return 201, {"message": "success", "attributes_processed": len(rows), **failed}


class FakeMailchimp(FakeApi):
    """500 members a request, by address; refused ones are named and counted. An archived member cannot be
    archived again. Any user name is accepted; `token` is the password."""

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if _password(headers) != self.token:
            return 401, {"title": "API Key Invalid"}
        if method == "GET":
            return 200, {}
        if method == "DELETE":
            known = self.objects.pop(unquote(path.rpartition("/")[2]), None)
            return (204, None) if known is not None else (405, {"title": "Method Not Allowed"})
        members, errors = json.loads(body)["members"], []
        if len(members) > 500:
            return 400, {"title": "Bad Request", "detail": "more than 500 members"}
        for one in members:
            name = one["email_address"]
            if name in self.refuse:
                errors.append({"email_address": name, "error": "not a number", "error_code": "ERROR_GENERIC"})
            else:
                self.merge(name, one["merge_fields"])
        created = len(members) - len(errors)
        return 200, {"errors": errors, "error_count": len(errors), "total_created": created}


class FakeKlaviyo(FakeApi):
    """10,000 profiles a job, by email. A job is done at the second request for its state; its errors have
    two per page."""

    def __init__(self, token: str = TOKEN, refuse: Collection[str] = ()) -> None:
        super().__init__(token, refuse)
        self.jobs: dict[str, dict[str, Any]] = {}

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        known = headers.get("authorization") == f"Klaviyo-API-Key {self.token}"
        if not known or headers.get("revision") != "2026-07-15":
            return 401, {"errors": [{"code": "not_authenticated", "detail": "missing or invalid"}]}
        if method == "GET":
            name, _, query = path.partition("?")
            job = self.jobs.get(name.split("/")[3]) if name.count("/") > 2 else None
            if job is None:
                return 200, {"data": []}
            return self._errors(job, name, query) if name.endswith("/import-errors") else self._described(job)
        rows = json.loads(body)["data"]["attributes"]["profiles"]["data"]
        if len(rows) > 10_000:
            return 400, {"errors": [{"code": "invalid", "detail": "more than 10000 profiles"}]}
        job = {"asked": 0, "rows": [one["attributes"] for one in rows]}
        self.jobs[f"job-{len(self.jobs)}"] = job
        return 202, {"data": {"type": "profile-bulk-import-job", "id": f"job-{len(self.jobs) - 1}"}}

    def _bad(self, job: dict[str, Any]) -> list[int]:
        return [n for n, row in enumerate(job["rows"]) if row["email"] in self.refuse]

    def _errors(self, job: dict[str, Any], path: str, query: str) -> tuple[int, Any]:
        bad, start = self._bad(job), int(query.partition("=")[2] or 0)
        errors = [
            {"code": "invalid", "title": "Invalid", "source": {"pointer": _POINTER.format(n)}}
            for n in bad[start : start + 2]
        ]
        more = f"https://a.klaviyo.com{path}?at={start + 2}" if len(bad) > start + 2 else None
        return 200, {"data": [{"attributes": error} for error in errors], "links": {"next": more}}

    def _described(self, job: dict[str, Any]) -> tuple[int, Any]:
        job["asked"] += 1
        if job["asked"] < 2:
            return 200, {"data": {"attributes": {"status": "processing"}}}
        bad = self._bad(job)
        for n, row in enumerate(job["rows"]):
            if n not in bad:
                self.merge(row["email"], {name: value for name, value in row.items() if name != "email"})
        return 200, {"data": {"attributes": {"status": "complete", "failed_count": len(bad)}}}


class FakeSegment(FakeApi):
    """Answers 200 to everything that is not too large, and silently drops all calls except identify."""

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if _user(headers) != self.token:
            return 401, {"message": "invalid write key"}
        events = json.loads(body)["batch"]
        if len(body) > 500_000 or len(events) > 2500 or any(len(json.dumps(one)) > 32_768 for one in events):
            return 400, {"success": False, "message": "payload too large"}
        for one in events:
            if one["type"] == "identify" and one["userId"]:
                self.merge(one["userId"], one["traits"])
        return 200, {"success": True}


class FakeAirtable(FakeApi):
    """10 records a request, all or nothing, by one merge field; bad records are not named."""

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("authorization") != f"Bearer {self.token}":
            return 401, {"error": {"type": "AUTHENTICATION_REQUIRED", "message": "Authentication required"}}
        if method == "GET":
            return 200, {"records": []}
        if method == "DELETE":
            return self._delete([key for _, key in parse_qsl(urlsplit(path).query)])
        content = json.loads(body)
        rows = [one["fields"] for one in content["records"]]
        (name,) = content["performUpsert"]["fieldsToMergeOn"]
        if len(rows) > 10 or any(row[name] in self.refuse for row in rows):
            return 422, {"error": {"type": "INVALID_VALUE_FOR_COLUMN", "message": "a field cannot accept it"}}
        for row in rows:
            self.merge(row[name], {field: value for field, value in row.items() if field != name})
        return 200, {"records": [{"id": f"rec{row[name]}", "fields": row} for row in reversed(rows)]}

    def _delete(self, ids: list[str]) -> tuple[int, Any]:
        """All or nothing; a missing record is not named."""
        keys = [one.removeprefix("rec") for one in ids]
        if len(keys) > 10 or not all(key in self.objects for key in keys):
            return 404, {"error": {"type": "MODEL_ID_NOT_FOUND", "message": "Record not found"}}
        for key in keys:
            del self.objects[key]
        return 200, {"records": [{"id": one, "deleted": True} for one in ids]}


_POINTER = "/data/attributes/profiles/data/{}/attributes/visits"


def _basic(headers: dict[str, str]) -> list[str]:
    kind, _, pair = headers.get("authorization", "").partition(" ")
    return b64decode(pair).decode().split(":", 1) if kind == "Basic" else ["", ""]


def _user(headers: dict[str, str]) -> str:
    return _basic(headers)[0]


def _password(headers: dict[str, str]) -> str:
    return _basic(headers)[1]
