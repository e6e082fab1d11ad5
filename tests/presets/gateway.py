"""An OData service of SAP: a token and its session with each write, and an entity at the address of its key."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote

from retl.testing import FakeApi, odata
from tests.api import TOKEN

LOGIN = "Basic " + b64encode(f"RETL:{TOKEN}".encode()).decode()


class Gateway(FakeApi):
    """A token belongs to a session; `session` counts them, and those up to `ended` are over. `keys` are the
    key properties; the ETag counts changes. `busy` keys are throttled once, as part of a $batch."""

    session = ended = doubled = 0
    keys: tuple[str, ...] = ("Product",)

    busy: set[str] = set()
    changes: Mapping[str, int] = MappingProxyType({})

    def __init__(self, *, version: str = "v2", **given: Any) -> None:
        super().__init__(**given)
        self.version = version

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("authorization") != LOGIN:
            return 401, {}
        if method == "GET" and path == "/sap/":
            self.session += 1
            cookies = {
                "Set-Cookie": f"SID=s{self.session}; path=/; HttpOnly",
                "set-cookie": "context=x; path=/",
            }
            return 200, (b'{"d": {}}', {"X-CSRF-Token": f"t{self.session}", **cookies})
        number = headers.get("x-csrf-token", "t0")[1:]
        alive = self.ended < int(number) and headers.get("cookie") == f"SID=s{number}; context=x"
        if method != "GET" and not alive:
            return 403, (b"CSRF token validation failed", {"X-CSRF-Token": "Required"})
        if path == "/sap/$batch":
            return odata.batch(self.entity, headers, body)
        return self.entity(method, path, headers, body)

    def entity(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        place, content = unquote(path.removeprefix("/sap/A_Product")), json.loads(body) if body else None
        key = place.removeprefix("(").removesuffix(")") or self.address(content)
        key = key.removeprefix("'").removesuffix("'").replace("''", "'") if len(self.keys) == 1 else key
        if place and key not in self.objects:
            return 404, {"error": {"code": "005056A509B1", "message": {"value": "not found"}}}
        if key in self.busy:
            self.busy.remove(key)
            return 429, (b"{}", {"Retry-After": "0"})
        if method == "GET":
            return self.shown(key)
        if key in self.refuse:
            return 400, {"error": {"code": "M3/305", "message": {"lang": "en", "value": "Unknown unit"}}}
        if place and headers["if-match"] not in ("*", self.tag(key)):
            return 412, {"error": {"code": "/IWBEP/CM_MGW_RT/102", "message": {"value": "ETag"}}}
        if method == "DELETE":
            del self.objects[key]
            return 204, None
        assert method == ("PATCH" if place else "POST")
        self.doubled += not place and key in self.objects
        self.merge(key, content)
        return (204, (b"", {"ETag": self.tag(key)})) if place else (201, self.shown(key)[1])

    def address(self, content: dict[str, Any]) -> str:
        values = [content.pop(name) for name in self.keys]
        quoted = [str(one) if isinstance(one, int) else "'" + one.replace("'", "''") + "'" for one in values]
        named = ",".join(f"{name}={one}" for name, one in zip(self.keys, quoted, strict=True))
        return named if len(values) > 1 else values[0]

    def shown(self, key: str) -> tuple[int, Any]:
        whole = {self.keys[0]: key, **self.objects[key]}
        shown = json.dumps({"d": whole} if self.version == "v2" else whole).encode()
        return 200, (shown, {"ETag": self.tag(key), "Content-Type": "application/json"})

    def tag(self, key: str) -> str:
        return f"W/\"'{self.changes.get(key, 0)}'\""
