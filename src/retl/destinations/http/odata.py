"""OData on the wire: keys in addresses, and many requests as one multipart $batch. Pure.

Lines always end with CRLF, in requests and in answers. An answer that is not complete and correct
multipart, up to the last boundary, is not used: nothing is guessed from a part of it. A change set, which
succeeds or fails as one, has a single request here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import quote

from retl.destinations.http import escape
from retl.errors import Ambiguous, Unavailable
from retl.net.messages import Reply, Request
from retl.net.waits import wait_asked

_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5]\d\d)(?: [^\r\n]*)?")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n]*?)[ \t]*")
_BOUNDARY = re.compile(
    r'multipart/mixed *;(?:.*;)? *boundary=(?:"([^"]{1,70})"|([^\s";]{1,70}))', re.IGNORECASE
)
_PART = b"Content-Type: application/http\r\nContent-Transfer-Encoding: binary\r\n"


def address(collection: str, key: Mapping[str, str], quoted: Mapping[str, bool]) -> str:
    """One object by its key: accounts(number='O%27%27Neil',branch=7), percent-encoded. UnicodeEncodeError
    if UTF-8 cannot encode a value."""
    parts = (
        f"{name}='{quote(escape.odata(value), safe='')}'"
        if quoted[name]
        else f"{name}={quote(escape.bare(value), safe='')}"
        for name, value in key.items()
    )
    return f"{collection}({','.join(parts)})"


def multipart(requests: Sequence[Request], boundary: str, *, sets: bool = False) -> bytes:
    """The body of a $batch. No request may contain the boundary; a body of JSON never does, because it has
    no line breaks. `sets`: each write is a change set."""
    parts = [
        _change_set(one, f"set{n}_{boundary}".encode()) if sets and one.method != "GET" else _part(one)
        for n, one in enumerate(requests)
    ]
    line = b"--" + boundary.encode()
    return b"".join(line + b"\r\n" + part + b"\r\n" for part in parts) + line + b"--\r\n"


def _change_set(request: Request, boundary: bytes) -> bytes:
    head = b'Content-Type: multipart/mixed; boundary="' + boundary + b'"\r\n\r\n'
    return head + b"--" + boundary + b"\r\n" + _part(request, b"1") + b"\r\n--" + boundary + b"--\r\n"


def _part(request: Request, number: bytes = b"") -> bytes:
    head = [
        f"{request.method} {request.target} HTTP/1.1",
        *(f"{name}: {value}" for name, value in request.headers),
    ]
    numbered = b"Content-ID: " + number + b"\r\n" if number else b""
    return _PART + numbered + b"\r\n" + "\r\n".join(head).encode() + b"\r\n\r\n" + request.body


def replies(reply: Reply, *, sets: bool = False) -> list[Reply]:
    """The parts of the answer to a $batch, in their order. Ambiguous if it cannot be read. `sets`: a part may
    be a change set with one answer."""
    if not reply.whole:
        raise Ambiguous("HTTP_CUT_OFF", "the answer to a $batch was cut off, or too long to read")
    try:
        return list(_parsed(reply, sets))
    except ValueError as error:
        raise Ambiguous("HTTP_NO_PARTS", f"the answer to a $batch cannot be read: {error}") from None


def pause(parts: Sequence[Reply]) -> float:
    """The seconds that throttled parts ask for. Unavailable if all parts are throttled."""
    waits = [wait_asked(one.headers) or 0.0 for one in parts if one.status == 429]
    if waits and len(waits) == len(parts):
        code = f"HTTP_{parts[0].status}"
        raise Unavailable(code, "the target throttled every row", retry_after=max(waits))
    return max(waits, default=0.0)


def _parsed(reply: Reply, sets: bool) -> Iterator[Reply]:
    found = _BOUNDARY.fullmatch(reply.headers.get("content-type", "").strip())
    if found is None:
        raise ValueError("it is not multipart/mixed with a boundary")
    delimiter = b"\r\n--" + (found[1] or found[2]).encode()
    before, *parts = (b"\r\n" + reply.body).split(delimiter)
    if not parts or before.strip(b"\r\n") or parts.pop() not in (b"--", b"--\r\n"):
        raise ValueError("it does not begin and end with its boundary")
    for part in parts:
        if not part.startswith(b"\r\n"):
            raise ValueError("a boundary is inside a line")
        outer, inner = _split(part[2:])
        kind = _headers(outer).get("content-type", "")
        if sets and kind.lower().startswith("multipart/"):
            (one,) = _parsed(Reply(reply.status, {"content-type": kind}, inner), False)
            yield one
            continue
        if not kind.lower().startswith("application/http"):
            raise ValueError("a part is not application/http")
        head, body = _split(inner)
        first, *rest = head.split(b"\r\n", 1)
        status = _STATUS.fullmatch(first)
        if status is None:
            raise ValueError("a part does not begin with a status")
        yield Reply(int(status[1]), _headers(*rest), body.removesuffix(b"\r\n"))


def _split(part: bytes) -> tuple[bytes, bytes]:
    """Head and body. A part without a body may end without its own empty line."""
    head, empty, body = part.partition(b"\r\n\r\n")
    if not empty and not head.endswith(b"\r\n"):
        raise ValueError("the headers of a part have no end")
    return (head, body) if empty else (head[:-2], b"")


def _headers(lines: bytes = b"") -> dict[str, str]:
    found: dict[str, str] = {}
    for line in lines.split(b"\r\n") if lines else ():
        header = _HEADER.fullmatch(line)
        if header is None:
            raise ValueError("a header is malformed")
        found[header[1].decode().lower()] = header[2].decode("latin-1")
    return found
