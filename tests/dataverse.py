"""A Dataverse environment on a real socket: one table, reached row by row or through multipart $batch.

It reads a batch as strictly as the vendor: CRLF at every line's end, at most 1,000 requests, none of the
characters in keys that it cannot take; with continue-on-error each part has an answer of its own. It reads
multipart by its own lights, not with retl's.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import NAMESPACE_OID, uuid5

import msgspec

from tests.presets.oauth import TokenServer

CRLF = b"\r\n"
EXACT = msgspec.json.Encoder(decimal_format="number")
PHRASES = {
    200: "OK",
    204: "No Content",
    400: "Bad Request",
    404: "Not Found",
    412: "Precondition Failed",
    429: "Too Many",
}


class Environment(TokenServer):
    """`columns` are the table's; a row in `busy` is throttled once, one in `secured` refused always."""

    token_path = "/contoso/oauth2/v2.0/token"

    def __init__(self, key: str, columns: set[str]) -> None:
        super().__init__()
        self.key, self.columns = key, columns
        self.rows: dict[str, dict[str, Any]] = {}
        self.busy: dict[str, int] = {}  # key → seconds
        self.secured: set[str] = set()
        self.largest = 0

    def content(self, body: bytes) -> bytes:
        return body

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        self.headers = headers
        return super().serve(method, path, headers, body)

    def take(self, method: str, path: str, content: bytes) -> tuple[int, Any]:
        if self.forbidden:
            return 403, {"error": {"code": "0x80040220", "message": "principal user is missing privileges"}}
        parts = urlsplit(path)
        if (method, parts.path) == ("GET", "/api/data/v9.2/accounts"):
            asked = parse_qs(parts.query)["$select"][0].split(",")
            unknown = [name for name in asked if name not in {self.key, *self.columns}]
            if unknown:
                return _error(400, "0x80060888", f"Could not find a property named '{unknown[0]}'")
            return 200, {"value": [{self.key: key, **row} for key, row in list(self.rows.items())[:1]]}
        if (method, parts.path) == ("POST", "/api/data/v9.2/$batch"):
            return self.batch(content)
        return _error(404, "0x80060888", "Resource not found for the segment")

    def batch(self, body: bytes) -> tuple[int, Any]:
        kind = re.fullmatch(r'multipart/mixed; boundary="([^"]+)"', self.headers["content-type"])
        assert kind
        assert self.headers["prefer"] == "odata.continue-on-error"
        assert self.headers["odata-version"] == "4.0"
        delimiter = b"--" + kind[1].encode()
        if body.count(b"\n") != body.count(CRLF) or not body.endswith(CRLF + delimiter + b"--" + CRLF):
            return _error(400, "0x80048d19", "Error identified in Payload provided by the user for Entity")
        parts = body.removesuffix(delimiter + b"--" + CRLF).split(delimiter + CRLF)[1:]
        self.largest = max(self.largest, len(parts))
        if len(parts) > 1000:
            return _error(400, "0x80060888", "The maximum number of requests has been exceeded")
        answers = [self.part(one.removesuffix(CRLF)) for one in parts]
        made = b"".join(b"--batchresponse_1\r\n" + answer + b"\r\n" for answer in answers)
        return 200, (made + b"--batchresponse_1--\r\n", "multipart/mixed; boundary=batchresponse_1")

    def part(self, part: bytes) -> bytes:
        outer, head, body = part.split(CRLF + CRLF, 2)
        assert outer.split(CRLF) == [b"Content-Type: application/http", b"Content-Transfer-Encoding: binary"]
        first, *lines = head.decode().split("\r\n")
        method, target, version = first.split(" ")
        assert version == "HTTP/1.1"
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        status, more, said = self.one(method, target, headers, body)
        told = b"" if said is None else EXACT.encode(said)
        shown = [f"HTTP/1.1 {status} {PHRASES.get(status, 'Told')}", *(f"{n}: {v}" for n, v in more.items())]
        shown += ["Content-Type: application/json; odata.metadata=minimal"] if told else []
        return (
            b"Content-Type: application/http\r\nContent-Transfer-Encoding: binary\r\n\r\n"
            + ("\r\n".join([*shown, "OData-Version: 4.0"])).encode()
            + b"\r\n\r\n"
            + told
        )

    def one(
        self, method: str, target: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], Any]:
        found = re.fullmatch(
            rf"/api/data/v9\.2/accounts\({self.key}='([^()?]*)'\)(?:\?\$select=([\w,]+))?", target
        )
        if found is None:
            return 400, {}, _said("0x80060888", "Error in query syntax")
        key = unquote(found[1], errors="strict")
        if len(key.replace("''", "")) != len(key) - 2 * key.count("''") or re.search(r"[<>*%&:/\\?+]", key):
            return 400, {}, _said("0x80060888", "Bad Request - Error in query syntax")
        if "'" in key.replace("''", ""):
            return 400, {}, _said("0x80060888", "Syntax error in the key")
        key = key.replace("''", "'")
        status, more, said = self.apply(method, key, headers, body)
        if status == 204 and method != "DELETE" and headers.get("prefer") == "return=representation":
            return 200, more, self.shown(key, found[2])
        return (
            (200, more, self.shown(key, found[2]))
            if method == "GET" and status == 204
            else (status, more, said)
        )

    def shown(self, key: str, select: str) -> dict[str, Any]:
        row = {self.key: key, **self.rows[key]}
        return {"@odata.etag": self.etag(key), **{name: row.get(name) for name in select.split(",")}}

    def etag(self, key: str) -> str:
        """A weak ETag, as the vendor's: the digest of the row."""
        row = json.dumps(self.rows[key], sort_keys=True, default=str)
        return f'W/"{uuid5(NAMESPACE_OID, row).int % 10**8}"'

    def apply(
        self, method: str, key: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], Any]:
        if key in self.busy:
            return (
                429,
                {"Retry-After": str(self.busy.pop(key))},
                _said("0x80072322", "Number of requests exceeded"),
            )
        if key in self.secured:
            return 403, {}, _said("0x80048306", f"no privilege on {key}")
        if key not in self.rows and headers.get("if-match") == "*":
            return 404, {}, _said("0x80060891", "A record with the specified key values does not exist")
        if key in self.rows and headers.get("if-none-match") == "*":
            return 412, {}, _said("0x80060882", "A record with matching key values already exists.")
        if key not in self.rows and (method == "GET" or "if-match" in headers):
            return 404, {}, _said("0x80060891", "A record with the specified key values does not exist")
        if method == "GET":
            return 204, {}, None
        if headers.get("if-match", "*") not in ("*", self.etag(key) if key in self.rows else ""):
            return 412, {}, _said("0x80060882", "The version of the existing record doesn't match")
        if method == "DELETE":
            del self.rows[key]
            return 204, {}, None
        assert method == "PATCH"
        assert headers["content-type"] == "application/json; type=entry"
        row = json.loads(body, parse_float=Decimal)
        if (row.get("visits") or 0) == -1:
            return 400, {}, _said("0x80040203", f"account {row['name']} has visits below zero")
        if unknown := [name for name in row if name not in self.columns]:
            return 400, {}, _said("0x80048d19", f"Invalid property '{unknown[0]}' was found")
        self.rows.setdefault(key, {}).update(row)
        id = uuid5(NAMESPACE_OID, key)
        return 204, {"OData-EntityId": f"{self.url}/api/data/v9.2/accounts({id})"}, None


def _said(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


def _error(status: int, code: str, message: str) -> tuple[int, Any]:
    return status, _said(code, message)
