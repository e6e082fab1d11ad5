"""ActiveCampaign: one contact a request; deletes need the id that an upsert told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import unquote

from retl.destinations.batch import Field
from retl.testing import FakeApi
from tests.api import TOKEN
from tests.presets.proof import TEXT, WHOLE, Proof


class ActiveCampaign(FakeApi):
    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("api-token") != self.token:
            return 403, {"message": "You do not have permission to perform this action"}
        if method == "DELETE":
            key = unquote(path.removeprefix("/api/3/contacts/")).removeprefix("id-")
            gone = self.objects.pop(key, None) is None
            return (404, {"message": "No Result found for Subscriber"}) if gone else (200, {})
        assert path == "/api/3/contact/sync"
        contact = json.loads(body)["contact"]
        key = contact.pop("email")
        if key in self.refuse:
            return 422, {
                "errors": [{"title": "Contact Email Address is not valid.", "code": "email_invalid"}]
            }
        contact |= {one["field"]: one["value"] for one in contact.pop("fieldValues", [])}
        created = key not in self.objects
        self.merge(key, contact)
        return (201 if created else 200), {"fieldValues": [], "contact": {"email": key, "id": f"id-{key}"}}


class TestActiveCampaign(Proof):
    preset, key = "activecampaign", "email"
    vendor = partial(ActiveCampaign, refuse=["d@x.io"])
    connection = {"url": "https://vendor", "api_key": TOKEN}
    fields = (Field("firstName", TEXT), Field("7", WHOLE))  # 7 is a custom field
    bad = ("d@x.io", "Dan", -1)
    deletes: Mapping[str, Any] = {}
