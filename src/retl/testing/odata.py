"""An OData $batch at the server: each part is served as a request of its own, each change set as one.

It reads multipart strictly, and with code of its own: a line ends with CRLF, a question is no part of a
change set, and a write stands in one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from retl.testing.server import written

Serve = Callable[[str, str, dict[str, str], bytes], tuple[int, Any]]
CRLF = b"\r\n"
_BOUNDARY = re.compile(r'multipart/mixed; boundary="([\w-]+)"')
_PART = {"content-type": "application/http", "content-transfer-encoding": "binary"}


def batch(serve: Serve, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
    """The answer to a $batch. A part has the headers of the whole, without those of its content."""
    shared = {name: value for name, value in headers.items() if name not in ("content-type", "accept")}
    try:
        parts = _split(headers["content-type"], body)
        answers = [_answer(serve, shared, part) for part in parts]
    except (KeyError, ValueError) as error:
        return 400, {"error": {"code": "005056A509B1", "message": {"value": f"no $batch: {error}"}}}
    whole = b"".join(b"--answer" + CRLF + one + CRLF for one in answers) + b"--answer--" + CRLF
    return 202, (whole, {"Content-Type": "multipart/mixed; boundary=answer"})


def _answer(serve: Serve, shared: dict[str, str], part: bytes) -> bytes:
    head, _, body = part.partition(CRLF + CRLF)
    kind = _headers(head)
    writes = kind["content-type"] != "application/http"
    if writes:
        (inner,) = _split(kind["content-type"], body)
        head, _, body = inner.partition(CRLF + CRLF)
        kind = _headers(head)
        del kind["content-id"]
    if kind != _PART:
        raise ValueError("a part is not application/http")
    first, content = body.split(CRLF + CRLF, 1)
    line, _, named = first.partition(CRLF)
    method, target, version = line.decode().split(" ")
    if version != "HTTP/1.1" or writes == (method == "GET"):
        raise ValueError("a question is in a change set, or a write in none")
    status, said = serve(method, target, {**shared, **_headers(named)}, content)
    told, more = written(said)
    shown = "\r\n".join([f"HTTP/1.1 {status} Told", *(f"{name}: {value}" for name, value in more.items())])
    inner = b"Content-Type: application/http" + CRLF * 2 + shown.encode() + CRLF * 2 + told
    if not writes or status >= 400:  # a change set that failed has a single answer
        return inner
    head = b"Content-Type: multipart/mixed; boundary=set" + CRLF * 2
    return head + b"--set" + CRLF + inner + CRLF + b"--set--" + CRLF


def _split(kind: str, body: bytes) -> list[bytes]:
    found = _BOUNDARY.fullmatch(kind)
    if found is None or body.count(b"\n") != body.count(CRLF):
        raise ValueError("no boundary, or a line without CRLF")
    line = b"--" + found[1].encode()
    before, *parts = (CRLF + body).split(CRLF + line)
    if before or not parts or parts.pop() not in (b"--", b"--" + CRLF):
        raise ValueError("it does not begin and end with its boundary")
    return [part.removeprefix(CRLF) for part in parts]


def _headers(lines: bytes) -> dict[str, str]:
    pairs = (line.split(": ", 1) for line in lines.decode().split("\r\n") if line)
    return {name.lower(): value for name, value in pairs}
