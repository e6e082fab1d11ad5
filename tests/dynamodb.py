"""A server that speaks DynamoDB's protocol (moto), with accounts, and with faults that real ones have.

What moto lacks is put before it: errors in DynamoDB's own form, requests that are throttled, items that stay
unprocessed. One request is served at a time, because moto's transactions are not safe from others.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import uuid4

import boto3
from boto3.dynamodb.types import TypeDeserializer
from moto import settings
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

REGION = "eu-central-1"
Account = tuple[str, str]  # the id of an access key, and the secret
READS = ("DescribeTable", "BatchGetItem", "Scan")
_ERRORS = {  # moto's words for what DynamoDB answers
    "AccessDenied": "AccessDeniedException",
    "SignatureDoesNotMatch": "InvalidSignatureException",
    "InvalidClientTokenId": "UnrecognizedClientException",
}


@dataclass
class Aws:
    """Where it is. `heard(operation, answered)` is called before a request is served, and before its answer
    is sent. `faults`: what becomes of the next requests that write, one each: "throttled", "unprocessed" (the
    first item), or an error of this name. `refused`: values of the key `id` that it takes no item of."""

    app: Any
    url: str = ""
    writer: Account = ("", "")
    reader: Account = ("", "")
    faults: list[str] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    bodies: list[bytes] = field(default_factory=list)
    heard: Callable[[str, bool], object] = lambda _operation, _answered: None
    verifies: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://").partition(":")[0]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def client(self, service: str = "dynamodb") -> Any:
        user, secret = self.writer
        keys = {"aws_access_key_id": user or "none", "aws_secret_access_key": secret or "none"}
        return boto3.client(service, region_name=REGION, endpoint_url=self.url, **keys)

    def rows(self, table: str) -> list[dict[str, Any]]:
        """Every item of a table."""
        client, read = self.client(), TypeDeserializer()
        with contextlib.closing(client):
            if table not in client.list_tables()["TableNames"]:
                return []
            pages = client.get_paginator("scan").paginate(TableName=table, ConsistentRead=True)
            found = [item for page in pages for item in page["Items"]]
        return [{name: read.deserialize(one) for name, one in item.items()} for item in found]

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        operation = environ.get("HTTP_X_AMZ_TARGET", "").rpartition(".")[2]
        left: dict[str, Any] = {}
        writes = operation in ("TransactWriteItems", "BatchWriteItem")
        if writes:
            body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            self.bodies.append(body)
            fault = self.faults.pop(0) if self.faults else ""
            if fault == "unprocessed":
                asked = json.loads(body)
                ((table, requests),) = asked["RequestItems"].items()
                left, asked["RequestItems"][table] = {table: requests[:1]}, requests[1:]
                body = json.dumps(asked).encode()
            elif (codes := self._codes(json.loads(body))) is not None:
                fault = (
                    "TransactionCanceledException"
                    if "TransactItems" in json.loads(body)
                    else "ValidationException"
                )
                said = {"CancellationReasons": [{"Code": code} for code in codes]}
                return _answer(start, 400, {"__type": f"com.amazonaws.dynamodb.v20120810#{fault}"} | said)
            elif fault:
                return _answer(start, 400, {"__type": f"com.amazonaws.dynamodb.v20120810#{fault}"})
            environ["wsgi.input"], environ["CONTENT_LENGTH"] = io.BytesIO(body), str(len(body))
        self.heard(operation, False)
        with self.lock, _verified(self.verifies and not left):  # what is left out would not fit the signature
            status, content = self._served(environ)
        self.heard(operation, True)
        if left:
            return _answer(start, status, json.loads(content) | {"UnprocessedItems": left})
        if status == 403:
            code = next((code for word, code in _ERRORS.items() if word in content.decode()), "Unknown")
            return _answer(start, 400, {"__type": f"com.amazon.coral.service#{code}", "message": "no"})
        return _answer(start, status, content)

    def _codes(self, asked: dict[str, Any]) -> list[str] | None:
        """Why each row of a request is refused, if one is."""
        puts = [
            one["PutRequest"]["Item"]
            for some in asked.get("RequestItems", {}).values()
            for one in some
            if "PutRequest" in one
        ]
        keys = [one["Update"]["Key"] for one in asked.get("TransactItems", [])] or puts
        codes = ["ValidationError" if key.get("id", {}).get("S") in self.refused else "None" for key in keys]
        return codes if "ValidationError" in codes else None

    def _served(self, environ: dict[str, Any]) -> tuple[int, bytes]:
        said: list[str] = []
        content = b"".join(self.app(environ, lambda status, _headers, _info=None: said.append(status)))
        return int(said[0].split()[0]), content


def _answer(start: Callable[..., Any], status: int, content: bytes | dict[str, Any]) -> list[bytes]:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    headers = [("Content-Type", "application/x-amz-json-1.0"), ("Content-Length", str(len(body)))]
    start(f"{status} X", headers)
    return [body]


@contextlib.contextmanager
def _verified(verified: bool) -> Iterator[None]:
    """Whether moto verifies accounts from now on."""
    before = settings.INITIAL_NO_AUTH_ACTION_COUNT
    settings.INITIAL_NO_AUTH_ACTION_COUNT = 0 if verified else float("inf")
    try:
        yield
    finally:
        settings.INITIAL_NO_AUTH_ACTION_COUNT = before


def _account(iam: Any, name: str, actions: Any) -> Account:
    name = f"{name}-{uuid4().hex[:8]}"  # moto keeps everything in this process
    iam.create_user(UserName=name)
    allowed = [{"Effect": "Allow", "Action": actions, "Resource": "*"}]
    policy = json.dumps({"Version": "2012-10-17", "Statement": allowed})
    iam.put_user_policy(UserName=name, PolicyName="tests", PolicyDocument=policy)
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return key["AccessKeyId"], key["SecretAccessKey"]


@contextlib.contextmanager
def aws() -> Iterator[Aws]:
    """Running in this process; accounts are verified."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    made = Aws(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, made, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_port}"
    try:
        with contextlib.closing(made.client("iam")) as iam:
            made.reader = _account(iam, "reader", [f"dynamodb:{one}" for one in READS])
            made.writer = _account(iam, "writer", "*")
        made.verifies = True
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def plain(value: Any) -> Any:
    """A value that boto3 read, as its JSON says it."""
    match value:
        case dict():
            return {name: plain(one) for name, one in value.items()}
        case list():
            return [plain(one) for one in value]
        case Decimal() if value == value.to_integral_value():
            return int(value)
        case _:
            return value
