"""AWS Signature Version 4 of one request. Pure: it takes the time, and knows no clock and no network.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
"""

from __future__ import annotations

import hmac
import posixpath
from collections.abc import Sequence
from hashlib import sha256
from urllib.parse import quote, unquote

from msgspec import Struct

_SAFE = "-._~"
# proxies may change them, or the client sets them later
_UNSIGNED = (
    "accept",
    "accept-encoding",
    "authorization",
    "connection",
    "content-length",
    "expect",
    "user-agent",
)

Headers = Sequence[tuple[str, str]]


class Scope(Struct, frozen=True):
    """What a signature is valid for: a day (YYYYMMDD), a region and a service."""

    day: str
    region: str
    service: str

    def __str__(self) -> str:
        return f"{self.day}/{self.region}/{self.service}/aws4_request"


def authorization(
    key_id: str, secret: str, scope: Scope, method: str, target: str, headers: Headers, body: bytes
) -> str:
    """The Authorization header of a request with these headers, among them Host and X-Amz-Date."""
    canonical, names = canonical_request(scope.service, method, target, headers, body)
    moment = next(value for name, value in headers if name.lower() == "x-amz-date")
    key = f"AWS4{secret}".encode()
    for part in (scope.day, scope.region, scope.service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, string_to_sign(moment, scope, canonical).encode(), "sha256").hex()
    return f"AWS4-HMAC-SHA256 Credential={key_id}/{scope}, SignedHeaders={names}, Signature={signature}"


def string_to_sign(moment: str, scope: Scope, canonical: str) -> str:
    return f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{sha256(canonical.encode()).hexdigest()}"


def canonical_request(
    service: str, method: str, target: str, headers: Headers, body: bytes
) -> tuple[str, str]:
    """The request as it is signed, and the names of the headers that are."""
    path, _, query = target.partition("?")
    values: dict[str, list[str]] = {}
    for name, value in headers:
        if name.lower() not in _UNSIGNED:
            values.setdefault(name.lower(), []).append(" ".join(value.split()))
    named = sorted(values)
    lines = [f"{name}:{','.join(values[name])}" for name in named]
    names = ";".join(named)
    parts = [method, _path(path, service), _query(query), *lines, "", names, sha256(body).hexdigest()]
    return "\n".join(parts), names


def _path(path: str, service: str) -> str:
    """S3 signs a path encoded once and otherwise as it is; all others without dots, and encoded once more."""
    if service == "s3":
        return quote(unquote(path), safe="/" + _SAFE)
    normal = posixpath.normpath(path).replace("//", "/")
    return quote(
        normal + ("/" if path.endswith(("/", "/.", "/..")) and normal != "/" else ""), safe="/" + _SAFE
    )


def _query(query: str) -> str:
    pairs = (part.partition("=")[::2] for part in query.split("&") if part)
    encoded = sorted(
        (quote(unquote(name), safe=_SAFE), quote(unquote(value), safe=_SAFE)) for name, value in pairs
    )
    return "&".join(f"{name}={value}" for name, value in encoded)
