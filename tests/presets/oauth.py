"""A vendor that gives out tokens and lets them end."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.api import TOKEN, Api, passed


class TokenServer(Api):
    """Any token but the newest is refused; `given` counts them."""

    given = 0
    token_path: str  # of the token endpoint
    scheme, grant = "Bearer", "client_credentials"

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        parts = urlsplit(path)
        if parts.path == self.token_path:
            form = parse_qs(parts.query or body.decode())
            if form["client_secret"] != [TOKEN] or form["grant_type"] != [self.grant]:
                return 400, {"error": "invalid_client"}
            self.given += 1
            return 200, {"access_token": f"bearer-{self.given}", "expires_in": 3599, "token_type": "bearer"}
        if headers.get("authorization") != f"{self.scheme} bearer-{self.given}":
            return self.refused()
        return self.take(method, path, self.content(body))

    def content(self, body: bytes) -> Any:
        return json.loads(body) if body else None

    def refused(self) -> tuple[int, Any]:
        return 401, {}

    def take(self, method: str, path: str, content: Any) -> tuple[int, Any]:
        raise NotImplementedError


def expire(api: Any) -> None:
    """From the next request on the token that was given out last is worthless."""

    def fault(exchange: Any) -> bool:
        api.given += 1
        return False

    api.faults += [passed, fault]  # the first token request, and the write
