"""What a definition says of an HTTP server, for targets and for sources. It opens nothing."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from retl.model import Definition, needs_tls
from retl.net.auth import Anonymous, HeaderName, Secret, WholeUrl
from retl.net.client import Address, Timeouts
from retl.net.csrf import Csrf
from retl.net.oauth import Auth
from retl.net.proxy import Setting


class HttpConnection(Definition):
    """A server and our credential for it. `headers` count as secrets: they are sent and never shown."""

    type: str = "http"
    base_url: str
    auth: Auth = Anonymous()
    headers: dict[HeaderName, Secret] = Field(default={})
    csrf: Csrf | None = None  # a token that every write needs
    proxy: Setting = None
    timeouts: Timeouts = Timeouts()
    allow_plaintext: bool = False

    @model_validator(mode="before")
    @classmethod
    def _whole_url(cls, given: Any) -> Any:
        """If the whole address is the secret, its origin becomes the base_url."""
        auth = given.get("auth") if isinstance(given, dict) else None
        if isinstance(auth, dict) and auth.get("type") == "url" and not given.get("base_url"):
            return {**given, "base_url": WholeUrl.model_validate(auth).origin}
        return given

    @model_validator(mode="after")
    def _fits(self) -> HttpConnection:
        address = Address.parse(self.base_url)
        if address.scheme == "http" and needs_tls(address.host, allow_plaintext=self.allow_plaintext):
            raise ValueError("base_url must be https, or set `allow_plaintext: true`")
        return self
