"""OData on the wire: keys in addresses, and many requests as one multipart $batch. Pure.

Lines always end with CRLF, in requests and in answers. An answer that is not complete and correct
multipart, up to the last boundary, is not used: nothing is guessed from a part of it. Change sets, which
succeed or fail as one, are not made and not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import quote

from retl.destinations.http import escape
from retl.errors import Ambiguous
from retl.net.messages import Reply, Request

_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5]\d\d)(?: [^\r\n]*)?")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n]*?)[ \t]*")
_BOUNDARY = re.compile(
    r'multipart/mixed *;(?:.*;)? *boundary=(?:"([^"]{1,70})"|([^\s";]{1,70}))', re.IGNORECASE
)
_PART = b"Content-Type: application/http\r\nContent-Transfer-Encoding: binary\r\n\r\n"


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


def multipart(requests: Sequence[Request], boundary: str) -> bytes:
    """The body of a $batch. No request may contain the boundary; a body of JSON never does, because it has
    no line breaks."""
    pieces = [b"--" + boundary.encode() + b"\r\n" + _PART + _dumped(one) + b"\r\n" for one in requests]
    return b"".join(pieces) + b"--" + boundary.encode() + b"--\r\n"


def _dumped(request: Request) -> bytes:
    head = [
        f"{request.method} {request.target} HTTP/1.1",
        *(f"{name}: {value}" for name, value in request.headers),
    ]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + request.body


def replies(reply: Reply) -> list[Reply]:
    """The parts of the answer to a $batch, in their order. Ambiguous if it cannot be read."""
    if not reply.whole:
        raise Ambiguous("HTTP_CUT_OFF", "the answer to a $batch was cut off, or too long to read")
    try:
        return list(_parsed(reply))
    except ValueError as error:
        raise Ambiguous("HTTP_NO_PARTS", f"the answer to a $batch cannot be read: {error}") from None


def _parsed(reply: Reply) -> Iterator[Reply]:
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
        if not _headers(outer).get("content-type", "").lower().startswith("application/http"):
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
