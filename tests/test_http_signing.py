"""Requests are signed as the server checks them: for AWS as Amazon's own test suite says."""

from __future__ import annotations

import hmac
import json
import re
from base64 import b64encode
from collections.abc import Iterator
from hashlib import md5
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote_plus

import pytest
from pydantic import ValidationError

from retl.destinations.batch import Field, Kind, Shape
from retl.destinations.http.adapter import HttpDestination
from retl.destinations.http.options import HttpOptions
from retl.errors import DefinitionError
from retl.net import sigv4
from retl.net.connection import HttpConnection
from retl.testing.server import FakeApi
from retl.values.types import Type
from tests.destinations.rows import Rows
from tests.presets.proof import EVIDENCE

CASES: dict[str, dict[str, str]] = json.loads((EVIDENCE / "sigv4" / "cases.json").read_text())
SCOPE = sigv4.Scope("20150830", "us-east-1", "service")
SHAPE = Shape("s", "state", (Field("id", Type("string")),), (Field("name", Type("string")),))
SECRET = "canary-secret"


def parsed(request: str) -> tuple[str, str, list[tuple[str, str]], bytes]:
    head, _, body = request.partition("\n\n")
    first, *lines = head.split("\n")
    headers: list[tuple[str, str]] = []
    for line in filter(None, lines):
        if line.startswith(" "):  # a header of several lines
            name, value = headers.pop()
            headers.append((name, f"{value} {line}"))
        else:
            name, _, value = line.partition(":")
            headers.append((name, value))
    method, target = first.removesuffix(" HTTP/1.1").split(" ", 1)
    return method, target, headers, body.encode()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_request_of_the_suite_gets_its_signature(case: dict[str, str]) -> None:
    method, target, headers, body = parsed(case["req"])
    if "x-amz-security-token:" in case["creq"] and "Security-Token" not in case["req"]:
        token = re.findall("x-amz-security-token:(.*)", case["creq"])[0]  # of the key, not of the request
        headers.append(("X-Amz-Security-Token", token))
    canonical, _ = sigv4.canonical_request("service", method, target, headers, body)
    assert canonical == case["creq"]
    assert sigv4.string_to_sign("20150830T123600Z", SCOPE, canonical) == case["sts"]
    secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
    found = sigv4.authorization("AKIDEXAMPLE", secret, SCOPE, method, target, headers, body)
    assert found == case["authz"]


class Server(FakeApi):
    """Signs what it received, by another reading of it, and refuses a request with another signature."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        return (200 if getattr(self, self.kind)(method, path, headers, body) else 403), {}

    def sigv4(self, method: str, path: str, headers: dict[str, str], body: bytes) -> bool:
        given = headers["authorization"]
        names = re.findall("SignedHeaders=([^,]+)", given)[0].split(";")
        scope = sigv4.Scope(headers["x-amz-date"][:8], "eu-west-1", "sqs")
        signed = [(name, headers[name]) for name in names]
        assert {"host", "content-type", "x-amz-date", "x-amz-security-token", "x-amz-target"} <= set(names)
        return given == sigv4.authorization("AKID", SECRET, scope, method, path, signed, body)

    def hmac(self, method: str, path: str, headers: dict[str, str], body: bytes) -> bool:
        message = f"{headers['x-time']}:{method}:{path}:".encode() + body
        digest = b64encode(hmac.new(SECRET.encode(), message, "sha512").digest()).decode()
        return headers["x-sig"] == f"v1={digest}"

    def sas(self, method: str, path: str, headers: dict[str, str], body: bytes) -> bool:
        word, _, text = headers["authorization"].partition(" ")
        given = {name: value for name, (value,) in parse_qs(text).items()}
        resource = re.findall("sr=([^&]+)", text)[0]
        digest = hmac.new(SECRET.encode(), f"{resource}\n{given['se']}".encode(), "sha256").digest()
        assert unquote_plus(resource) == f"https://{headers['host']}{path.partition('?')[0]}"
        return (word, given["skn"], given["sig"]) == (
            "SharedAccessSignature",
            "send",
            b64encode(digest).decode(),
        )

    def form(self, method: str, path: str, headers: dict[str, str], body: bytes) -> bool:
        values = dict(parse_qsl(body.decode(), keep_blank_values=True))
        given = values.pop("sig")
        return given == md5((SECRET + "".join(sorted(values.values()))).encode()).hexdigest()


SIGNERS: dict[str, dict[str, Any]] = {
    "sigv4": {
        "type": "sigv4",
        "region": "eu-west-1",
        "service": "sqs",
        "access_key_id": "AKID",
        "secret_access_key": SECRET,
        "session_token": "temporary+/=",
    },
    "hmac": {
        "type": "hmac",
        "secret": SECRET,
        "header": "X-Sig",
        "over": ["timestamp", "method", "target", "body"],
        "between": ":",
        "algorithm": "sha512",
        "encoding": "base64",
        "prefix": "v1=",
        "timestamp": "X-Time",
    },
    "sas": {"type": "azure_sas", "key_name": "send", "key": SECRET},
    "form": {"type": "form_digest", "name": "sig", "secret": SECRET},
}


@pytest.fixture(params=SIGNERS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with Server(request.param) as api:
        yield api


def target(api: Server, secret: str = SECRET) -> HttpDestination:
    auth = {name: secret if value == SECRET else value for name, value in SIGNERS[api.kind].items()}
    encoding = "form" if api.kind == "form" else "json"
    upsert = {"path": "/q/{id}?b=2&a={name}", "row": "$row", "encoding": encoding}
    upsert["headers"] = {"X-Amz-Target": "Sqs  Send"}
    connection = {"base_url": f"{api.url}/v1", "auth": auth}
    return HttpDestination(HttpOptions(connection=connection, upsert=upsert), SHAPE)


def test_the_server_finds_the_signature_that_it_makes_itself(server: Server) -> None:
    for key, name in (("a b/é", "O'Neil & co~*"), ("$x+y%", "")):
        made, batch = target(server), Rows(SHAPE, [(key, name or "é")]).batch()
        assert made.write(batch).default.kind is Kind.WRITTEN  # type: ignore[union-attr]
        assert SECRET.encode() not in b"".join([made.preview(batch), repr(server.seen).encode()])
        assert SECRET not in repr(made.options)
        made.close()


def test_another_secret_makes_another_signature(server: Server) -> None:
    made = target(server, "another")
    with pytest.raises(Exception, match="403"):
        made.write(Rows(SHAPE, [("a", "n")]).batch())
    made.close()


@pytest.mark.parametrize(
    "auth",
    [
        {**SIGNERS["sigv4"], "region": "a/b"},
        {**SIGNERS["sigv4"], "secret_access_key": "two\nlines"},
        {**SIGNERS["hmac"], "timestamp": None},
        {**SIGNERS["hmac"], "over": []},
        {**SIGNERS["sas"], "key_name": "a&b"},
    ],
)
def test_signatures_that_cannot_work_are_refused(auth: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        HttpConnection(base_url="https://api.example.com", auth=auth)


def test_a_digest_of_a_form_needs_a_form() -> None:
    connection = {"base_url": "https://api.example.com", "auth": SIGNERS["form"]}
    with pytest.raises(DefinitionError) as caught:
        HttpDestination(HttpOptions(connection=connection, upsert={"path": "/r", "row": "$row"}), SHAPE)
    assert caught.value.code == "HTTP_AUTH"


def test_s3_signs_the_digest_of_the_body_and_a_path_encoded_once() -> None:
    canonical, names = sigv4.canonical_request("s3", "PUT", "/b/a%20b//c$d", [("Host", "h")], b"")
    assert canonical.split("\n")[1] == "/b/a%20b//c%24d"
    assert names == "host"
