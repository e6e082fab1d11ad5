"""Google's APIs behind a service account: a token for a signed claim, which ends when the test says so."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs

from tests.presets.oauth import TokenServer
from tests.test_http_rs256 import PEM

KEY = json.dumps(
    {
        "client_email": "retl@p.iam.gserviceaccount.com",
        "private_key": PEM,
        "private_key_id": "k",
        "token_uri": "https://vendor/token",
    }
)


class Google(TokenServer):
    token_path = "/token"

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if path == self.token_path:
            assert parse_qs(body.decode())["assertion"]
            self.given += 1
            return 200, {"access_token": f"bearer-{self.given}", "expires_in": 3599}
        if headers.get("authorization") != f"Bearer bearer-{self.given}":
            return 401, {"error": {"code": 401, "status": "UNAUTHENTICATED"}}
        return self.take(method, path, json.loads(body) if body else None)
