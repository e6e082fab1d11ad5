"""A body of multipart/form-data (RFC 7578): form fields, and rows as a file.

The boundary is made from the content, so the same rows make the same bytes, and it never occurs inside a
part. It knows no rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

from retl.destinations.http import escape

_END = b"\r\n"


def write(fields: Mapping[str, str], name: str, file: bytes, content_type: str) -> bytes:
    """The body: a part for each field, then the file under this name."""
    parts = [_head(field) + _END * 2 + value.encode() for field, value in fields.items()]
    filename = f'; filename="{escape.disposition(name)}.csv"'.encode()
    parts.append(_head(name) + filename + _END + f"Content-Type: {content_type}".encode() + _END * 2 + file)
    boundary = sha256(_END.join(parts)).hexdigest().encode()
    while any(boundary in part for part in parts):
        boundary = sha256(boundary).hexdigest().encode()
    line = b"--" + boundary
    return b"".join(line + _END + part + _END for part in parts) + line + b"--" + _END


def content_type(body: bytes) -> str:
    """The header Content-Type of a body that `write` made."""
    return f"multipart/form-data; boundary={body[2 : body.index(_END)].decode()}"


def read(body: bytes) -> bytes:
    """The file in a body that `write` made."""
    boundary = body[: body.index(_END)]
    last = body.removesuffix(_END + boundary + b"--" + _END).rpartition(boundary + _END)[2]
    return last.partition(_END * 2)[2]


def _head(name: str) -> bytes:
    return f'Content-Disposition: form-data; name="{escape.disposition(name)}"'.encode()
