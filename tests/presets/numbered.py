"""A vendor that gives each object an id of its own, and creates one more each time it is asked to."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from retl.testing import FakeApi


class Numbered(FakeApi):
    """Objects at `root`, created by POST and changed or deleted at `root`/id. A subclass says how this vendor
    is asked for a key, where a body has the key and the fields, and how answers look. `doubled` counts
    creations of a key that was there."""

    root: str
    probe: str | None = None  # what `check` asks for
    refusal: tuple[int, Any] = (400, {})
    deleted: tuple[int, Any] = (204, None)

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.ids: dict[str, str] = {}
        self.made = self.doubled = 0

    def allowed(self, headers: dict[str, str]) -> bool:
        return headers.get("authorization") == f"Bearer {self.token}"

    def asked(self, method: str, where: SplitResult, content: Any) -> str | None:
        """The key that this request asks for, if it is a question; "" if it is one about no key."""
        return parse_qs(where.query).get("email", [""])[0] if method == "GET" else None

    def found(self, ids: list[str]) -> Any:
        raise NotImplementedError

    def parts(self, content: Any) -> tuple[str | None, dict[str, Any]]:
        """The key in a body, and its fields."""
        return content.pop("email", None), content

    def shown(self, number: str) -> Any:
        return {"id": number}

    def exists(self, key: str) -> tuple[int, Any] | None:
        """The answer to the creation of a key that is there; None: it is created once more."""
        return None

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if not self.allowed(headers):
            return 401, {}
        where, content = urlsplit(path), json.loads(body) if body else {}
        if where.path == self.probe:
            return 200, {}
        if (asked := self.asked(method, where, content)) is not None:
            return 200, self.found([n for n, key in self.ids.items() if key.lower() == asked.lower()])
        number = unquote(where.path.removeprefix(self.root).strip("/"))
        if number and number not in self.ids:
            return 404, {}
        if method == "DELETE":
            del self.objects[self.ids.pop(number)]
            return self.deleted
        key, fields = self.parts(content)
        if key in self.refuse:
            return self.refusal
        if not number:
            assert key is not None
            if key in self.objects:
                if answer := self.exists(key):
                    return answer
                self.doubled += 1
            self.made += 1
            number = str(self.made)
            self.ids[number] = key
        self.merge(self.ids[number], fields)
        return 200, self.shown(number)
