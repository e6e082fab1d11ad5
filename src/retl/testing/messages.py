"""Channels with a secret address, and PagerDuty's alerts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from typing import Any

from retl.testing.server import TOKEN, FakeApi

_SEVERITIES = ("critical", "error", "warning", "info")
_BROKEN = (
    b"Webhook message delivery failed with error: Microsoft Teams endpoint returned HTTP error 400 with"
    b" ContextId x"
)


class FakeChannel(FakeApi):
    """`posted` are the texts of messages, by how often they came; `refuse` are texts it refuses."""

    def __init__(self, token: str = TOKEN, refuse: Collection[str] = ()) -> None:
        super().__init__(token, refuse)
        self.path = f"/hooks/{token}?sig={token}"
        self.posted: Counter[str] = Counter()

    @property
    def webhook(self) -> str:
        """The value for a connection's `url`."""
        return self.url + self.path

    @property
    def doubled(self) -> int:
        return sum(count - 1 for count in self.posted.values())

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if path != self.path:
            return 404, b"no_service"
        return (
            (200, {"posted": list(self.posted.elements())})
            if method == "GET"
            else self.post(json.loads(body))
        )

    def post(self, content: Any) -> tuple[int, Any]:
        raise NotImplementedError


class FakeSlack(FakeChannel):
    def post(self, content: Any) -> tuple[int, Any]:
        if not content.get("text") or content["text"] in self.refuse:
            return 400, b"no_text"
        self.posted[content["text"]] += 1
        return 200, b"ok"


class FakeTeams(FakeChannel):
    """Reports a card that is too long in the text of a 200."""

    def post(self, content: Any) -> tuple[int, Any]:
        (attachment,) = content["attachments"]
        text = attachment["content"]["body"][0]["text"]
        if len(text) > 20_000 or text in self.refuse:
            return 200, _BROKEN
        self.posted[text] += 1
        return 202, None


class FakeWebhook(FakeChannel):
    """A receiver that keeps the newest object of each `id`."""

    def post(self, content: Any) -> tuple[int, Any]:
        if content.get("deleted"):
            self.objects.pop(content["key"], None)
        elif content["id"] in self.refuse:
            return 422, {"message": "no"}
        else:
            self.objects[content.pop("id")] = content
        return 200, b"thanks"


class FakePagerDuty(FakeApi):
    """Open alerts are `objects`, by their deduplication key; a resolved one is removed."""

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        event = json.loads(body)
        if event.pop("routing_key", None) != self.token:
            return self._invalid("bad key")
        key = event["dedup_key"]
        if event["event_action"] == "resolve":
            self.objects.pop(key, None)
            return 202, {"status": "success", "dedup_key": key}
        payload = event["payload"]
        if not payload["summary"] or payload["severity"] not in _SEVERITIES or key in self.refuse:
            return self._invalid("no summary")
        self.objects[key] = payload["custom_details"]
        return 202, {"status": "success", "message": "Event processed", "dedup_key": key}

    def _invalid(self, why: str) -> tuple[int, Any]:
        return 400, {"status": "invalid event", "message": "Event object is invalid", "errors": [why]}
