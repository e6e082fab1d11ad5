"""Credentials that sign each request: AWS Signature Version 4, HMAC in a header, Azure's shared access
signature, and a digest over a form.

The signature covers exactly the bytes that are sent, so it is made last, and never stored with a request.
"""

from __future__ import annotations

import hmac
from base64 import b64encode
from datetime import UTC, datetime
from hashlib import md5, sha256
from typing import Annotated, Literal
from urllib.parse import parse_qsl, quote_plus, urlencode

from pydantic import Field, SecretStr, model_validator

from retl.errors import Systemic
from retl.model import Duration
from retl.net import sigv4
from retl.net.auth import Anonymous, HeaderName, Secret, mark

_Part = Literal["method", "target", "timestamp", "body"]


class SigV4(Anonymous):
    """AWS: every request is signed with an access key of `region` and `service` (sqs, sns, events, es, …).
    `session_token` belongs to temporary keys."""

    type: Literal["sigv4"]  # type: ignore[assignment]
    region: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    service: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    access_key_id: Annotated[str, Field(pattern=r"^\w+$")]
    secret_access_key: Secret
    session_token: Secret | None = None

    def signed(self, method: str, target: str, headers: dict[str, str], body: bytes) -> dict[str, str]:
        moment = _now().strftime("%Y%m%dT%H%M%SZ")
        made = {**headers, "X-Amz-Date": moment}
        if self.session_token is not None:
            made["X-Amz-Security-Token"] = self.session_token.get_secret_value()
        if self.service == "s3":
            made["X-Amz-Content-SHA256"] = sha256(body).hexdigest()
        made["Authorization"] = sigv4.authorization(
            self.access_key_id,
            self.secret_access_key.get_secret_value(),
            sigv4.Scope(moment[:8], self.region, self.service),
            method,
            target,
            list(made.items()),
            body,
        )
        return made


class Hmac(Anonymous):
    """A HMAC of the request in a header, as for webhooks: of its parts `over`, joined by `between`. `prefix`
    stands before it; `timestamp` is the header for the seconds since 1970, if the time is signed."""

    type: Literal["hmac"]  # type: ignore[assignment]
    secret: SecretStr
    header: HeaderName
    over: Annotated[tuple[Literal["method", "target", "timestamp", "body"], ...], Field(min_length=1)] = (
        "body",
    )
    between: str = ""
    algorithm: Literal["sha1", "sha256", "sha512"] = "sha256"
    encoding: Literal["hex", "base64"] = "hex"
    prefix: Annotated[str, Field(pattern=r"^[ -~]*$")] = ""
    timestamp: HeaderName | None = None

    @model_validator(mode="after")
    def _fits(self) -> Hmac:
        if ("timestamp" in self.over) != (self.timestamp is not None):
            raise ValueError("`timestamp` is the header of the time, and `over` must have `timestamp`, too")
        return self

    def signed(self, method: str, target: str, headers: dict[str, str], body: bytes) -> dict[str, str]:
        moment = str(int(_now().timestamp()))
        parts = {
            "method": method.encode(),
            "target": target.encode(),
            "timestamp": moment.encode(),
            "body": body,
        }
        message = self.between.encode().join(parts[part] for part in self.over)
        digest = hmac.digest(self.secret.get_secret_value().encode(), message, self.algorithm)
        text = digest.hex() if self.encoding == "hex" else b64encode(digest).decode()
        named = {self.timestamp: moment} if self.timestamp else {}
        return {**headers, **named, self.header: self.prefix + text}

    def mark(self) -> str:
        return mark(self.secret)


class AzureSas(Anonymous):
    """Service Bus and Event Hubs: a shared access signature of the requested address, by the key of a policy.
    It is valid for `life`."""

    type: Literal["azure_sas"]  # type: ignore[assignment]
    key_name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    key: Secret
    life: Duration = 300.0

    def signed(self, method: str, target: str, headers: dict[str, str], body: bytes) -> dict[str, str]:
        resource = quote_plus(f"https://{headers['Host']}{target.partition('?')[0]}")
        ends = int(_now().timestamp() + self.life)
        key = self.key.get_secret_value().encode()
        digest = b64encode(hmac.digest(key, f"{resource}\n{ends}".encode(), "sha256"))
        text = f"sr={resource}&sig={quote_plus(digest)}&se={ends}&skn={self.key_name}"
        return {**headers, "Authorization": f"SharedAccessSignature {text}"}


class FormDigest(Anonymous):
    """A digest of the secret and of all values of the form, in their order, as one more field of it."""

    type: Literal["form_digest"]  # type: ignore[assignment]
    name: Annotated[str, Field(pattern=r"^[A-Za-z_]+$")]
    secret: SecretStr
    algorithm: Literal["md5", "sha256"] = "md5"

    def body(self, body: bytes, content: str) -> bytes:
        if "x-www-form-urlencoded" not in content:
            raise Systemic("HTTP_AUTH", f"`auth` adds {self.name!r} to forms, and this body is none")
        values = sorted(value for _, value in parse_qsl(body.decode(), keep_blank_values=True))
        text = (self.secret.get_secret_value() + "".join(values)).encode()
        made = sha256(text) if self.algorithm == "sha256" else md5(text, usedforsecurity=False)
        return body + (b"&" if body else b"") + urlencode({self.name: made.hexdigest()}).encode()

    def mark(self) -> str:
        return mark(self.secret)


def _now() -> datetime:
    return datetime.now(UTC)
