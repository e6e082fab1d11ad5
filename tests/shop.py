"""An API of nobody's that gives its rows page by page, in every way that APIs do it, on a real socket.

    GET /v1/number?page=1          and {"total", "has_more"} beside the rows
    GET /v1/offset?offset=0
    GET /v1/cursor?cursor=…        {"meta": {"next": …}}
    GET /v1/next                   {"@odata.nextLink": "http://…"}
    GET /v1/link                   Link: <…>; rel="next"
    GET /v1/all                    everything at once, as the whole body

Each takes `limit` (of at most `most` rows) and `since`, and needs a Bearer token or `?key=`.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

from retl.testing.server import TOKEN, FakeApi

KINDS = {
    "number": "{number: page, size: 4, size_param: limit}",
    "offset": "{offset: offset, size: 4, size_param: limit, total: total}",
    "cursor": "{cursor: meta.next, size: 4, size_param: limit}",
    "next": "{next: '@odata.nextLink', size: 4, size_param: limit, has_more: has_more}",
    "link": "{link: next, size: 4, size_param: limit}",
}


class Shop(FakeApi):
    """`rows` are what it has; `most` caps a page, whatever is asked for; `moves` adds a row to the total with
    each answer."""

    def __init__(self, rows: list[Any] | None = None, most: int = 100) -> None:
        super().__init__()
        self.rows: list[Any] = list(range(10)) if rows is None else rows
        self.most = most
        self.moves = False

    @property
    def asked(self) -> list[str]:
        """Paths and queries of all requests."""
        return [path for _, path, _, _ in self.seen]

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        parts = urlsplit(path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        if headers.get("authorization") != f"Bearer {TOKEN}" and query.get("key") != TOKEN:
            return 401, {"message": f"who is {headers.get('authorization')}?"}
        rows = [row for row in self.rows if "since" not in query or row["at"] >= query["since"]]
        size = min(int(query.get("limit", self.most)), self.most)
        kind = parts.path.removeprefix("/v1/")
        if kind == "all":
            return 200, rows
        start = (
            (int(query["page"]) - 1) * size
            if "page" in query
            else int(query.get("offset", query.get("cursor", "0 ")[:-1] or 0))
        )
        page, after = rows[start : start + size], start + size
        more = after < len(rows)
        self.moved = getattr(self, "moved", 0) + self.moves
        content: dict[str, Any] = {"data": page, "total": len(rows) + self.moved, "has_more": more}
        onward = f"{parts.path}?limit={size}&offset={after}"
        if kind == "cursor":
            content["meta"] = {"next": f"{after}=" if more else None}
        if kind == "next" and more:
            content["@odata.nextLink"] = f"{self.url}{onward}"
        if kind == "link" and more:
            link = f'<{self.url}/v1/link>; rel="first", <{onward}>; rel=next; title="a, b"'
            return 200, (json.dumps(content).encode(), {"Link": link})
        return 200, content
