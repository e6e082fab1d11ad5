"""Queues, streams and topics: they keep messages, and count those that came twice; AWS checks signatures."""

from __future__ import annotations

import json
import re
from typing import Any

from retl.net import sigv4
from retl.testing import TOKEN, FakeApi

AWS = {"region": "eu-west-1", "access_key_id": "AKID", "secret_access_key": TOKEN}


class Queue(FakeApi):
    """`known` are the ids by which messages are known again."""

    def __init__(self, **given: Any) -> None:
        super().__init__(refuse=["d@x.io"], **given)
        self.doubled = 0
        self.known: set[str] = set()

    def keep(self, message: dict[str, Any], name: str | None = None) -> bool:
        """Whether the message is taken."""
        key = message.pop("id")
        if key in self.refuse:
            return False
        if name is None or name not in self.known:
            self.doubled += key in self.objects
            self.objects[key] = message
        self.known |= {name} if name else set()
        return True


class Aws(Queue):
    service: str
    asked: str | None = None  # what `x-amz-target` says

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        names = re.findall("SignedHeaders=([^,]+)", headers["authorization"])[0].split(";")
        scope = sigv4.Scope(headers["x-amz-date"][:8], "eu-west-1", self.service)
        signed = [(name, headers[name]) for name in names]
        if headers["authorization"] != sigv4.authorization("AKID", TOKEN, scope, method, path, signed, body):
            return 403, {"__type": "InvalidSignatureException"}
        assert headers.get("x-amz-target") == self.asked
        return self.take(body)

    def take(self, body: bytes) -> tuple[int, Any]:
        raise NotImplementedError


def alike(request: dict[str, Any], entries: str, text: str) -> Any:
    """A request to AWS, or the client's own, without the texts of messages."""
    body = request["body"] if isinstance(request["body"], dict) else json.loads(request["body"])
    return request["path"], {**body, entries: [{**one, text: "a text"} for one in body[entries]]}
