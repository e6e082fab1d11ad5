"""Vendors whose objects other people edit: each change, ours or theirs, gives an object a later version."""

from __future__ import annotations

import json
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from retl.testing import FakeApi, FakeHubSpot
from tests.presets.crm import Salesforce
from tests.presets.desks import FakeClose, FakeZendesk
from tests.presets.documents import Cluster
from tests.presets.gateway import Gateway
from tests.presets.numbered import Numbered
from tests.presets.test_freshdesk import FakeFreshdesk
from tests.presets.test_intercom import FakeIntercom
from tests.presets.test_jira import FakeJira
from tests.presets.test_pipedrive import FakePipedrive


class Edited(FakeApi):
    """`edit` is what somebody else does."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.changes = Counter[str]()

    def merge(self, key: str, fields: dict[str, Any]) -> None:
        super().merge(key, fields)
        self.changes[key] += 1

    def edit(self, key: str, **fields: Any) -> None:
        with self.lock:
            self.merge(key, fields)

    def changed(self, key: str) -> datetime:
        return datetime(2026, 11, 29, tzinfo=UTC) + timedelta(seconds=self.changes[key])

    def moment(self, key: str) -> str:
        return self.changed(key).strftime("%Y-%m-%dT%H:%M:%SZ")


class Shown(Edited, Numbered):
    """Objects by their ids, which answers show as a whole."""

    stamp = "updated_at"

    def wrapped(self, whole: dict[str, Any]) -> Any:
        return whole

    def shown(self, number: str) -> Any:
        key = self.ids[number]
        return self.wrapped({"id": number, self.stamp: self.moment(key), **self.objects[key]})

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        number = path.removeprefix(self.root).strip("/")
        if method == "GET" and number in self.ids:
            return 200, self.shown(number)
        return super().serve(method, path, headers, body)


class Persons(Shown, FakePipedrive):
    stamp = "update_time"

    def wrapped(self, whole: dict[str, Any]) -> Any:
        return {"success": True, "data": whole}


class Contacts(Shown, FakeFreshdesk):
    pass


class Leads(Shown, FakeClose):
    stamp = "date_updated"


class Tickets(Shown, FakeZendesk):
    """A safe update has both of its members, or none."""

    def wrapped(self, whole: dict[str, Any]) -> Any:
        return {"ticket": whole}

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if method == "PUT":
            ticket = json.loads(body)["ticket"]
            safe, stamp = ticket.pop("safe_update", None), ticket.pop("updated_stamp", None)
            assert (safe is True) == (stamp is not None)
            if stamp is not None and stamp != self.moment(self.ids[path.rpartition("/")[2]]):
                return 409, {"error": "UpdateConflict", "description": "outdated ticket data"}
            body = json.dumps({"ticket": ticket}).encode()
        return super().serve(method, path, headers, body)


class Users(Shown, FakeIntercom):
    pass


class Issues(Edited, FakeJira):
    """Issues that are there, by their keys, with the fields that are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.objects = {f"{name}@x.io": {"name": "old", "visits": 0} for name in "abc"}

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        where = urlsplit(path)
        key = unquote(where.path.removeprefix("/rest/api/2/issue/"))
        if key not in self.objects:
            return (200, {}) if key.endswith("/myself") else (404, {"errorMessages": ["no issue"]})
        if method == "PUT":
            self.merge(key, json.loads(body)["fields"])
            return 204, None
        asked = parse_qs(where.query)["fields"][0].split(",")
        fields = {**self.objects[key], "updated": self.moment(key), "labels": []}
        return 200, {"key": key, "fields": {name: fields[name] for name in asked if name in fields}}


class Documents(Edited, Cluster):
    """Documents with a number of their last change, which an action may name."""

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if method == "POST":
            return super().serve(method, path, headers, body)
        key = unquote(path.removeprefix("/people/_doc/"))
        if key not in self.objects:
            return 404, {"_id": key, "found": False}
        return 200, {"_id": key, **self.numbers(key), "found": True, "_source": self.objects[key]}

    def numbers(self, key: str) -> dict[str, int]:
        return {"_seq_no": self.changes[key], "_primary_term": 1}

    def done(self, action: dict[str, Any], sent: Any) -> dict[str, Any]:
        ((verb, about),) = action.items()
        given = {name: about[name] for name in ("if_seq_no", "if_primary_term") if name in about}
        assert not (given and "retry_on_conflict" in about)
        if given and list(given.values()) != list(self.numbers(about["_id"]).values()):
            if verb != "delete":
                next(sent)
            return {"error": {"type": "version_conflict_engine_exception"}, "status": 409}
        return {"_id": about["_id"], **super().done(action, sent), **self.numbers(about["_id"])}


class OrderItems(Edited, Gateway):
    keys = ("SalesOrder", "SalesOrderItem")


class Records(Edited, Salesforce):
    """Single records by an external id, under a condition of time."""

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        found = re.fullmatch(r"/services/data/v62.0/sobjects/Contact(?:/Ext__c/([^?]+))?(\?.*)?", path)
        if found is None:
            return (200, {}) if path.endswith("/limits") else super().serve(method, path, headers, body)
        content = json.loads(body) if body else {}
        key = unquote(found[1] or "") or content.pop("Ext__c")
        if method == "POST" and key in self.objects:
            return 400, [{"errorCode": "DUPLICATE_VALUE", "message": "duplicate value found"}]
        if method != "POST" and key not in self.objects:
            return 404, [{"errorCode": "NOT_FOUND", "message": "Provided external ID field does not exist"}]
        told = {"Last-Modified": self.changed(key).strftime("%a, %d %b %Y %H:%M:%S GMT")}
        if method == "GET":
            return 200, (json.dumps({"Ext__c": key, **self.objects[key]}).encode(), told)
        assert method == "POST" or found[2] == "?updateOnly=true"
        if headers.get("if-unmodified-since", told["Last-Modified"]) != told["Last-Modified"]:
            return 412, [{"errorCode": "PRECONDITION_FAILED", "message": "modified since"}]
        self.merge(key, content)
        return (201, {"id": f"003{key}", "success": True}) if method == "POST" else (204, None)


class HubSpotContacts(Edited, FakeHubSpot):
    """Contacts by address."""
