"""A channel behind an address that is the secret: it counts what was posted, and what was posted twice."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from tests.api import TOKEN, Api

PATH = f"/hooks/{TOKEN}?sig={TOKEN}"


class Channel(Api):
    """`posted` holds the bodies, as JSON, by how often they came."""

    def __init__(self) -> None:
        super().__init__()
        self.posted: Counter[str] = Counter()

    @property
    def doubled(self) -> int:
        return sum(count - 1 for count in self.posted.values())

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if path != PATH:
            return 404, b"no_service"
        return self.post(json.loads(body))

    def post(self, content: Any) -> tuple[int, Any]:
        raise NotImplementedError
