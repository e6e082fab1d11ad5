"""Teams by Graph: a message per row, by a user whose token is renewed."""

from __future__ import annotations

from collections import Counter
from typing import Any

from retl.destinations.batch import Field
from tests.api import TOKEN
from tests.presets import oauth
from tests.presets.proof import TEXT, Proof


class FakeGraph(oauth.TokenServer):
    token_path, grant = "/tenant/oauth2/v2.0/token", "refresh_token"

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.posted: Counter[str] = Counter()

    @property
    def doubled(self) -> int:
        return sum(count - 1 for count in self.posted.values())

    def take(self, method: str, path: str, content: Any) -> tuple[int, Any]:
        assert (method, path) == ("POST", "/v1.0/teams/t/channels/19%3Ac/messages")
        assert content["body"]["contentType"] == "text"
        text = content["body"]["content"]
        if not text:
            return 400, {"error": {"code": "BadRequest", "message": "Missing body content"}}
        self.posted[text] += 1
        return 201, {"id": str(len(self.posted))}


class TestTeamsGraph(Proof):
    preset, vendor, write, idempotent, renews = "teams_graph", FakeGraph, "append", False, True
    connection = {
        "tenant": "tenant",
        "client_id": "c",
        "client_secret": TOKEN,
        "refresh_token": TOKEN,
        "login": "https://vendor",
    }
    parameters = {"team": "t", "channel": "19:c"}
    fields = (Field("text", TEXT),)
    rows = (("a", "one"), ("b", "two"), ("c", "three"))
    bad = ("d", None)

    def expire(self, api: Any) -> None:
        oauth.expire(api)

    def contents(self, api: Any) -> dict[str, Any]:
        names = {row[1]: row[0] for row in self.rows}
        return {names[text]: {"text": text} for text in api.posted}
