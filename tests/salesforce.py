"""A Salesforce org on a real socket, as far as Bulk API 2.0 goes: records of one object, jobs, SOQL look-ups.

It enforces what the vendor says: a job takes one file, while it is open; a file is CSV with known columns;
a finished job stays finished. A job advances by one state whenever somebody asks after it. Nothing of a
job is applied before its upload is complete. `uploads` counts the files each job was given.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.presets.oauth import TokenServer

NEXT = {"UploadComplete": "InProgress", "InProgress": "JobComplete"}
FILES = ("successfulResults", "failedResults", "unprocessedrecords")


@dataclass
class Work:
    """One job, and the rows of its file by their fate."""

    about: dict[str, Any]
    file: bytes | None = None
    results: dict[str, list[list[str]]] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)


class Org(TokenServer):
    """`dies_after` rows the next job fails; rows of `locked` are refused once as locked."""

    token_path = "/services/oauth2/token"

    def __init__(self, match: str, fields: set[str], largest: int = 1_000_000) -> None:
        super().__init__()
        self.match, self.fields, self.largest = match, fields, largest
        self.records: dict[str, dict[str, Any]] = {}  # by Id
        self.jobs: dict[str, Work] = {}
        self.uploads: Counter[str] = Counter()
        self.applied: Counter[tuple[str, str]] = Counter()  # operation and key
        self.locked: set[str] = set()
        self.dies_after: int | None = None
        self.numbers = count()

    def content(self, body: bytes) -> bytes:
        return body

    def refused(self) -> tuple[int, Any]:
        return 401, [{"errorCode": "INVALID_SESSION_ID", "message": "Session expired or invalid"}]

    def take(self, method: str, path: str, content: bytes) -> tuple[int, Any]:
        if self.forbidden:
            return _error(403, "INSUFFICIENT_ACCESS")
        parts = urlsplit(path)
        version, *way = parts.path.removeprefix("/services/data/").split("/")
        assert re.fullmatch(r"v\d\d\.0", version)
        match (method, *way):
            case ("GET", "sobjects", "Contact", "describe"):
                fields = [{"name": name, "externalId": name == self.match} for name in self.fields]
                return 200, {"name": "Contact", "fields": [{"name": "Id", "externalId": False}, *fields]}
            case ("GET", "query"):
                return self.query(parse_qs(parts.query)["q"][0])
            case ("POST", "jobs", "ingest"):
                return self.create(json.loads(content))
            case (_, "jobs", "ingest", job, *rest) if unquote(job) in self.jobs:
                return self.work(method, unquote(job), rest, content)
        return _error(404, "NOT_FOUND")

    def create(self, about: dict[str, Any]) -> tuple[int, Any]:
        known = about["operation"] in ("insert", "upsert", "delete") and about["contentType"] == "CSV"
        known = known and (about["lineEnding"], about["columnDelimiter"]) == ("LF", "COMMA")
        named = about.get("externalIdFieldName") == (self.match if about["operation"] == "upsert" else None)
        if about["object"] != "Contact" or not known or not named:
            return _error(400, "INVALIDJOB")
        name = self.named(len(self.jobs))
        self.jobs[name] = Work({**about, "id": name, "state": "Open"})
        return 200, self.jobs[name].about

    @staticmethod
    def named(number: int) -> str:
        return f"750{number:012}"

    def work(self, method: str, name: str, rest: list[str], content: bytes) -> tuple[int, Any]:
        job = self.jobs[name]
        state = job.about["state"]
        match (method, *rest):
            case ("PUT", "batches") if state == "Open":
                if len(content) > self.largest:
                    return _error(400, "FileSizeLimitExceeded")
                self.uploads[name] += 1
                job.file = content
                return 201, None
            case ("PATCH",):
                return self.move(name, json.loads(content)["state"])
            case ("GET",):
                self.advance(job)
                return 200, job.about
            case ("GET", file) if file in FILES and state in ("JobComplete", "Failed", "Aborted"):
                return 200, self.result(job, file)
        return _error(400, "INVALIDJOBSTATE")

    def move(self, name: str, state: str) -> tuple[int, Any]:
        job = self.jobs[name]
        released = state == "UploadComplete" and job.about["state"] == "Open" and self.uploads[name] == 1
        if released or (state == "Aborted" and job.about["state"] in ("Open", *NEXT)):
            job.about |= {"state": state, "numberRecordsProcessed": 0, "numberRecordsFailed": 0}
        else:
            return _error(400, "INVALIDJOBSTATE")
        return 200, job.about

    def advance(self, job: Work) -> None:
        state = job.about["state"]
        if state not in NEXT:
            return
        job.about["state"] = NEXT[state]
        if NEXT[state] == "JobComplete":
            self.run(job)

    def run(self, job: Work) -> None:
        """Apply the file's rows, one after the other."""
        assert job.file is not None
        job.columns, *rows = csv.reader(io.StringIO(job.file.decode(), newline=""), strict=True)
        job.results = {file: [] for file in FILES}
        unknown = [name for name in job.columns if name not in {"Id", *self.fields}]
        if unknown:
            job.about |= {
                "state": "Failed",
                "errorMessage": f"InvalidBatch : Field name not found : {unknown[0]}",
            }
            job.results["unprocessedrecords"] = rows
            return
        most, self.dies_after = self.dies_after, None
        seen: set[str] = set()
        for number, row in enumerate(rows):
            if most is not None and number >= most:
                job.results["unprocessedrecords"].append(row)
                continue
            given = dict(zip(job.columns, row, strict=True))
            id, error = self.apply(job.about["operation"], given, seen)
            file = "failedResults" if error else "successfulResults"
            job.results[file].append([id, error or "true", *row])
        failed = len(job.results["failedResults"])
        job.about |= {"numberRecordsProcessed": len(rows) - len(job.results["unprocessedrecords"])}
        job.about |= {"numberRecordsFailed": failed, "state": "JobComplete" if most is None else "Failed"}
        job.about |= {"errorMessage": "InternalServerError : gave up"} if most is not None else {}
        for result in job.results.values():
            result.reverse()  # no order is promised

    def apply(self, operation: str, row: dict[str, str], seen: set[str]) -> tuple[str, str | None]:
        if operation == "delete":
            self.applied[operation, row["Id"]] += 1
            gone = self.records.pop(row["Id"], None) is None
            return row["Id"], "ENTITY_IS_DELETED:entity is deleted:--" if gone else None
        key = row[self.match]
        if key in self.locked:
            self.locked.discard(key)
            return "", "UNABLE_TO_LOCK_ROW:unable to obtain exclusive access to this record:--"
        if key in seen:
            return "", f"DUPLICATE_VALUE:Duplicate external id specified: {key}:{self.match} --"
        seen.add(key)
        if row.get("visits", "0").startswith("-") and len(row["visits"]) < 4:
            return "", f"FIELD_CUSTOM_VALIDATION_EXCEPTION:user {row['name']} has visits below zero:visits --"
        if any(len(cell) > 32_000 for cell in row.values()):
            return "", "STRING_TOO_LONG:data value too large:--"
        self.applied[operation, key] += 1
        found = [id for id, held in self.records.items() if held[self.match] == key]
        id = found[0] if found and operation == "upsert" else f"003{next(self.numbers):012}"
        held = self.records.setdefault(id, {})
        held |= {name: None if cell == "#N/A" else cell for name, cell in row.items() if cell}
        return id, None

    def result(self, job: Work, file: str) -> bytes:
        out = io.StringIO()
        lines = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n")
        first = {"successfulResults": ["sf__Id", "sf__Created"], "failedResults": ["sf__Id", "sf__Error"]}
        lines.writerow([*first.get(file, []), *job.columns])
        lines.writerows(job.results.get(file, []))
        return out.getvalue().encode()

    def query(self, soql: str) -> tuple[int, Any]:
        found = re.fullmatch(r"SELECT Id, (\w+) FROM Contact WHERE (\w+) IN \((.*)\)", soql, re.DOTALL)
        if found is None or found[1] != found[2]:
            return _error(400, "MALFORMED_QUERY")
        literals = re.findall(r"'((?:[^'\\\n]|\\.)*)'(?:,|$)", found[3])
        escapes = {"n": "\n", "r": "\r"}
        names = {re.sub(r"\\(.)", lambda e: escapes.get(e[1], e[1]), one).casefold() for one in literals}
        assert 0 < len(literals) <= 100
        rows = [
            {"Id": id, found[1]: held[self.match]}
            for id, held in self.records.items()
            if held[self.match].casefold() in names
        ]
        return 200, {"done": True, "totalSize": len(rows), "records": rows}


def _error(status: int, code: str) -> tuple[int, Any]:
    return status, [{"errorCode": code, "message": f"{code}, says the org"}]
