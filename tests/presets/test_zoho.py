"""Zoho CRM: an answer for each record, in order; a refused token is renewed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.api import TOKEN
from tests.presets.crm import Zoho
from tests.presets.oauth import expire
from tests.presets.proof import Proof


class TestZoho(Proof):
    preset, vendor, limit, key, renews = "zoho", Zoho, 100, "Email", True
    connection = {
        "client_id": "me",
        "client_secret": TOKEN,
        "refresh_token": "again",
        "accounts": "https://vendor",
    }
    parameters = {"module": "Leads"}
    bad = ("d@x.io", "Dan", -1)
    deletes: Mapping[str, Any] = parameters

    def expire(self, api: Any) -> None:
        expire(api)
