"""Vendors that take contacts as a job."""

from __future__ import annotations

import csv
import json
from base64 import b64encode
from email import message_from_bytes
from io import StringIO
from typing import Any

from retl.testing import FakeApi
from tests.api import TOKEN
from tests.presets.oauth import TokenServer

LOGIN = "Basic " + b64encode(f"Shop\\ann:{TOKEN}".encode()).decode()


FIELDS = {name: f"{{{{Contact.Field({name})}}}}" for name in ("C_EmailAddress", "C_FirstName", "C_Company")}


class Eloqua(FakeApi):
    """A sync is done at the second request for its state. What is staged and not synced is never seen."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.staged: list[list[dict[str, Any]]] = []
        self.syncs: list[dict[str, Any]] = []

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("authorization") != LOGIN:
            return 401, {}
        content = json.loads(body) if body else None
        match path.removeprefix("/api/bulk/2.0/").split("/"):
            case ["contacts", "imports"]:
                if content["fields"] != FIELDS or content["identifierFieldName"] != "C_EmailAddress":
                    return 400, {
                        "failures": [{"field": "fields", "constraint": "Must be a valid statement."}]
                    }
                self.staged.append([])
                return 201, {"name": "retl", "uri": f"/contacts/imports/{len(self.staged) - 1}"}
            case ["contacts", "imports", number, "data"]:
                assert len(content) <= 1000
                self.staged[int(number)] += content
                return 204, None
            case ["syncs"]:
                rows = self.staged[int(content["syncedInstanceUri"].rpartition("/")[2])]
                bad = [row for row in rows if row["C_EmailAddress"] in self.refuse]
                for row in rows:
                    if row not in bad:
                        self.merge(row.pop("C_EmailAddress"), row)
                self.syncs.append({"bad": bad, "asked": 0})
                return 201, {"uri": f"/syncs/{len(self.syncs) - 1}", "status": "pending"}
            case ["syncs", number, "rejects"]:
                told = {"statusCode": "ELQ-00002", "message": "Invalid email addresses."}
                return 200, {
                    "items": [{"fieldValues": one, **told} for one in self.syncs[int(number)]["bad"]]
                }
        sync = self.syncs[int(path.rpartition("/")[2])]
        sync["asked"] += 1
        return 200, {"status": "active" if sync["asked"] < 2 else "warning" if sync["bad"] else "success"}


class SendGrid(FakeApi):
    """A job is done at the second request for its state."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.jobs: list[dict[str, Any]] = []
        self.ids: dict[str, str] = {}  # id → address

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("authorization") != f"Bearer {self.token}":
            return 401, {"errors": [{"field": None, "message": "authorization required"}]}
        if method == "PUT":
            rows = json.loads(body)["contacts"]
            self.jobs.append({"rows": rows, "asked": 0})
            return 202, {"job_id": f"job-{len(self.jobs) - 1}"}
        if method == "POST":
            (name,) = json.loads(body)["emails"]
            found = next((id for id, one in self.ids.items() if one == name), None)
            if found is None:
                return 404, {"errors": [{"message": "no contacts found for the provided email address(es)"}]}
            return 200, {"result": {name: {"contact": {"id": found, "email": name}}}}
        if method == "DELETE":
            self.objects.pop(self.ids.pop(path.rpartition("=")[2]))
            self.jobs.append({"rows": [], "asked": 0})
            return 202, {"job_id": f"job-{len(self.jobs) - 1}"}
        job = self.jobs[int(path.rpartition("-")[2])]
        job["asked"] += 1
        if job["asked"] < 2:
            return 200, {"status": "pending", "job_type": "upsert"}
        good = [row for row in job["rows"] if row["email"] not in self.refuse]
        for row in good:
            self.ids[f"id-{row['email'][0]}"] = row["email"]
            self.merge(row["email"], {name: value for name, value in row.items() if name != "email"})
        bad = len(job["rows"]) - len(good)
        status = "completed" if not bad else "errored" if good else "failed"
        return 200, {"status": status, "job_type": "upsert", "results": {"errored_count": bad} if bad else {}}


class MarketoImports(TokenServer):
    """A job is done at once; its file of errors names the rows that it refused."""

    token_path = "/identity/oauth/token"

    def __init__(self) -> None:
        super().__init__()
        self.jobs: list[str] = []  # the lines that each refused

    def refused(self) -> tuple[int, Any]:
        return 200, {"success": False, "errors": [{"code": "602", "message": "Access token expired"}]}

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        self.typed = f"Content-Type: {headers.get('content-type')}\r\n\r\n".encode()
        return super().serve(method, path, headers, body)

    def content(self, body: bytes) -> Any:
        return message_from_bytes(self.typed + body).get_payload() if body else None

    def take(self, method: str, path: str, content: Any) -> tuple[int, Any]:
        if method == "POST":
            assert path == "/bulk/v1/leads.json"
            parts = {one.get_param("name", header="content-disposition"): one for one in content}
            asked = {name: one.get_payload() for name, one in parts.items()}
            assert parts["file"].get_filename()
            assert asked | {"file": ""} == {
                "format": "csv",
                "lookupField": "email",
                "listId": "7",
                "file": "",
            }
            file = parts["file"].get_payload(decode=True).decode()
            head, *rows = csv.reader(StringIO(file, newline=""))
            assert head == ["email", "name", "visits"]
            bad = [row for row in rows if row[0] == "d@x.io"]
            good = [row for row in rows if row not in bad]
            self.users.update({key: dict(zip(head[1:], fields, strict=True)) for key, *fields in good})
            told = [
                ",".join(row)
                for row in ([*head, "Import Failure Reason"], *([*b, "Invalid email"] for b in bad))
            ]
            self.jobs.append("\n".join(told))
            return 200, {"success": True, "result": [{"batchId": len(self.jobs), "status": "Queued"}]}
        number, end = path.removeprefix("/bulk/v1/leads/batch/").removesuffix(".json").partition("/")[::2]
        refused = self.jobs[int(number) - 1]
        if end == "failures":
            return 200, refused.encode()
        counted = {"status": "Complete", "numOfRowsFailed": refused.count("\n")}
        return 200, {"success": True, "result": [{"batchId": int(number), **counted}]}


MAILJET_LOGIN = b64encode(f"key:{TOKEN}".encode()).decode()


class Mailjet(FakeApi):
    """One contact a request, or a job that is done at once; its file of errors names nobody."""

    bad = 0  # contacts that the last job refused

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("authorization") != f"Basic {MAILJET_LOGIN}":
            return 401, {"ErrorInfo": "", "ErrorMessage": "API key authentication failed", "StatusCode": 401}
        jobs = "/v3/REST/contactslist/5/managemanycontacts"
        if (method, path) == ("POST", jobs):
            asked = json.loads(body)
            good = [one for one in asked["Contacts"] if one["Email"] not in self.refuse]
            for one in good:
                self.merge(one["Email"], one["Properties"])
            self.bad = len(asked["Contacts"]) - len(good)
            return 201, {"Count": 1, "Data": [{"JobID": 9}], "Total": 1}
        if path == f"{jobs}/9":
            file = "https://api.mailjet.com/v3/DATA/batchjob/9/JSONError/application:json/LAST"
            return 200, {
                "Data": [{"Status": "Completed", "Error": "", "ErrorFile": file if self.bad else ""}]
            }
        if path.startswith("/v3/DATA/batchjob/9/JSONError/"):
            return 200, [{"unsaid": "in the documentation"}] * self.bad
        if (method, path) != ("POST", "/v3/REST/contactslist/5/managecontact"):
            return 404, {"ErrorMessage": "unknown resource", "StatusCode": 404}
        asked = json.loads(body)
        key = asked["Email"]
        if key in self.refuse:
            return 400, {"ErrorInfo": "MJ08", "ErrorMessage": "invalid value", "StatusCode": 400}
        if asked["Action"] == "remove":
            self.objects.pop(key, None)
        else:
            assert asked["Action"] == "addnoforce"
            self.merge(key, asked["Properties"])
        return 201, {"Count": 1, "Data": [{"ContactID": 1, "Email": key}], "Total": 1}
