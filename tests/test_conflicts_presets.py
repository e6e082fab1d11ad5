"""What other people edited at a vendor stays, by every way in which vendors tell a version: an ETag under If-Match, a
version in the body, a header with a date, and, where a vendor takes no condition, a look before each write.

Without RETL_TEST_ALL one vendor stands for those that are looked at.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from retl.destinations import preset_names, presets
from retl.destinations.batch import Field, Shape
from retl.destinations.http.cells import Cast
from retl.destinations.http.objects import Object, Read, Version
from retl.errors import Poisoned
from retl.net.messages import Reply
from retl.testing import FakeHubSpot
from retl.testing.server import Exchange
from retl.values.types import Type
from tests.api import TOKEN
from tests.commands import Workshop
from tests.presets import edited

WINDOW = {"target_wins": {"window": "accepted"}}


class Vendor(NamedTuple):
    preset: str
    fake: Any
    connection: dict[str, Any]
    parameters: dict[str, Any]
    upserts: Any = WINDOW  # the strategy of an upsert


KEY = {"token": TOKEN}
VENDORS = {
    "If-Match": Vendor(
        "sap_odata",
        edited.OrderItems,
        {"url": "https://vendor/sap", "username": "RETL", "password": TOKEN},
        {"set": "A_Product", "match": "SalesOrder"},
    ),
    "in the body": Vendor(
        "zendesk",
        lambda: edited.Tickets("ticket"),
        {"domain": "example", "user": "a@x.io/token", **KEY},
        {"object": "ticket"},
    ),
    "a date in a header": Vendor(
        "salesforce",
        edited.Records,
        {"client_id": "me", "client_secret": TOKEN, "domain": "example.my.salesforce.com"},
        {"object": "Contact", "match": "Ext__c"},
        "target_wins",
    ),
    "a look": Vendor("hubspot", edited.HubSpotContacts, KEY, {}),
    "numbers in an action": Vendor(
        "elasticsearch",
        edited.Documents,
        {"url": "https://vendor", "api_key": TOKEN},
        {"index": "people"},
        "target_wins",
    ),
    "pipedrive": Vendor("pipedrive", edited.Persons, {"company": "example", **KEY}, {}),
    "freshdesk": Vendor("freshdesk", edited.Contacts, {"domain": "example", "api_key": TOKEN}, {}),
    "intercom": Vendor("intercom", edited.Users, KEY, {}),
    "close": Vendor("close", edited.Leads, {"api_key": TOKEN}, {"object": "lead", "match": "cf_1"}),
}
ALL = bool(os.environ.get("RETL_TEST_ALL"))
WAYS = list(VENDORS) if ALL else list(VENDORS)[:4]


class Desk:
    """A project that writes three rows to a vendor, whose people edit them."""

    def __init__(self, folder: Path, vendor: Vendor, api: Any) -> None:
        self.vendor, self.api, self.workshop = vendor, api, Workshop(folder)
        connection = {
            name: value.replace("https://vendor", api.url) for name, value in vendor.connection.items()
        }
        limits = {"share": 1, "requests": 10**6}
        given = {
            "type": vendor.preset,
            "base_url": connection.get("url", api.url),
            **connection,
            "limits": limits,
        }
        self.workshop.write("retl.yml", json.dumps({"connections": {"vendor": given}}))
        self.keys = {"sap_odata": ["SalesOrder", "SalesOrderItem"], "salesforce": ["Ext__c"]}.get(
            vendor.preset, ["email"]
        )
        self.write("upsert", vendor.upserts)
        self.mart(a=("Ann", 1), b=("Bob", 2), c=("Cid", 3))

    def write(self, write: str, conflicts: Any, **parts: Any) -> None:
        sync = {
            "source": {"table": "mart"},
            "key": self.keys,
            "destination": {"connection": "vendor", **self.vendor.parameters},
            "write": write,
            "conflicts": conflicts,
            **parts,
        }
        self.workshop.write("syncs/people.yml", json.dumps(sync))

    def mart(self, **people: tuple[str, int]) -> None:
        two = len(self.keys) > 1
        key = "'{0}''s' AS SalesOrder, 10 AS SalesOrderItem" if two else f"'{{0}}@x.io' AS {self.keys[0]}"
        rows = (
            f"SELECT {key.format(name)}, '{one}' AS name, {n} AS visits" for name, (one, n) in people.items()
        )
        self.workshop.warehouse("CREATE OR REPLACE TABLE mart AS " + " UNION ALL ".join(rows))

    def run(self) -> dict[str, Any]:
        said = self.workshop.retl("sync", "--output", "json")
        (found,) = said.document["syncs"]
        assert (said.code, found["error"], found["rejects"]) == (0, None, [])
        return dict(found)

    def key(self, name: str) -> str:
        return f"SalesOrder='{name}''s',SalesOrderItem=10" if len(self.keys) > 1 else f"{name}@x.io"

    def held(self) -> dict[str, tuple[str, int]]:
        found = {name: self.api.objects.get(self.key(name)) for name in "abc"}
        return {name: (one["name"], int(one["visits"])) for name, one in found.items() if one}


@pytest.mark.parametrize("name", WAYS)
def test_what_a_person_edited_stays_and_the_rest_is_written(tmp_path: Path, name: str) -> None:
    vendor = VENDORS[name]
    with vendor.fake() as api:
        desk = Desk(tmp_path / "project", vendor, api)
        assert desk.run()["inserted"] == 3
        api.edit(desk.key("a"), name="theirs")
        desk.mart(a=("ours", 9), b=("ours", 2), c=("Cid", 3), d=("Dan", 4))
        found = desk.run()
        assert found["conflicts"] == {"merged": 1, "kept": 0, "queued": 0}
        assert desk.held() == {"a": ("theirs", 9), "b": ("ours", 2), "c": ("Cid", 3)}
        assert desk.run()["unchanged"] == 4


@pytest.mark.parametrize("name", ["If-Match", "in the body", "a date in a header", "numbers in an action"])
def test_an_edit_between_look_and_write_is_not_overwritten(tmp_path: Path, name: str) -> None:
    """The vendor refuses a write under an old version; what stands there is read again."""
    vendor = VENDORS[name]
    with vendor.fake() as api:
        desk = Desk(tmp_path / "project", vendor, api)
        desk.run()
        desk.write("update_only", "target_wins")
        desk.run()
        desk.mart(a=("ours", 9), b=("Bob", 2), c=("Cid", 3))
        edits = []

        def edited_first(exchange: Exchange) -> bool:
            body = exchange.content
            changes = exchange.command in ("PUT", "PATCH") or b"\r\nIf-Match" in body or b"if_seq_no" in body
            if changes and not edits:
                edits.append(api.edit(desk.key("a"), name="theirs"))
            return False

        api.faults += [edited_first] * 9
        assert desk.run()["conflicts"]["merged"] == 1
        assert (len(edits), desk.held()["a"]) == (1, ("theirs", 9))


@pytest.mark.parametrize(
    "name", ["in the body", "a date in a header", "numbers in an action"][: 3 if ALL else 2]
)
def test_without_conflicts_nothing_is_asked_of_a_version(tmp_path: Path, name: str) -> None:
    vendor = VENDORS[name]
    with vendor.fake() as api:
        desk = Desk(tmp_path / "project", vendor, api)
        desk.write("upsert", "warehouse_wins")
        desk.run()
        api.edit(desk.key("a"), name="theirs")
        desk.mart(a=("Ann", 9), b=("Bob", 2), c=("Cid", 3))
        desk.run()
        assert desk.held()["a"] == ("Ann", 9)
        assert {headers.get("if-match", "*") for _, _, headers, _ in api.seen} == {"*"}
        assert not any("if-unmodified-since" in headers for _, _, headers, _ in api.seen)
        assert not any(b"safe_update" in body or b"if_seq_no" in body for *_, body in api.seen)


def test_an_issue_of_jira_is_only_changed(tmp_path: Path) -> None:
    vendor = Vendor("jira", edited.Issues, {"site": "example", "user": "u", "token": TOKEN}, {})
    with vendor.fake() as api:
        desk = Desk(tmp_path / "project", vendor, api)
        desk.write("update_only", "warehouse_wins", first_run="send")
        desk.run()
        desk.write("update_only", WINDOW)
        desk.run()
        assert desk.held() == {"a": ("Ann", 1), "b": ("Bob", 2), "c": ("Cid", 3)}
        api.edit(desk.key("a"), name="theirs")
        desk.mart(a=("ours", 9), b=("ours", 2), c=("Cid", 3))
        assert desk.run()["conflicts"]["merged"] == 1
        assert desk.held() == {"a": ("theirs", 9), "b": ("ours", 2), "c": ("Cid", 3)}
        assert desk.run()["unchanged"] == 3


def test_a_sync_that_deletes_keeps_what_was_touched(tmp_path: Path) -> None:
    """HubSpot names records by the ids that it returned."""
    vendor = VENDORS["a look"]
    with vendor.fake() as api:
        desk = Desk(tmp_path / "project", vendor, api)
        desk.write("upsert", WINDOW, deletes="delete", guards={"max_delete_rate": 1, "max_row_drop": 1})
        desk.run()
        api.edit(desk.key("b"), note="called")
        desk.mart(a=("Ann", 1))
        found = desk.run()
        assert (found["deleted"], found["deletes"]["kept"]) == (1, 1)
        assert sorted(api.objects) == ["a@x.io", "b@x.io"]


def hubspot(folder: Path, api: Any) -> Workshop:
    shop = Workshop(folder, {"HUBSPOT_URL": api.url, "HUBSPOT_TOKEN": TOKEN})
    shop.write(
        "retl.yml",
        'connections:\n  hub: {type: hubspot, token: "${HUBSPOT_TOKEN}", base_url: "${HUBSPOT_URL}"}\n',
    )
    shop.sync("people", key="[email]", destination="{connection: hub, object: contacts}")
    assert shop.retl("sync").code == 0
    return shop


def test_the_fake_hubspot_shows_one_record_as_it_is(tmp_path: Path) -> None:
    with FakeHubSpot() as api:
        shop = hubspot(tmp_path / "project", api)
        said = shop.json("explain", "people", "--key", "u3@example.com", "--read", "--reveal")
        assert said["rows"][0]["target"] == {"user_id": "3", "spend": "3.00"}
        assert shop.retl("reconcile", "people").code == 0
        asked = {
            "idProperty": "email",
            "properties": ["spend"],
            "inputs": [{"id": "u3@example.com"}, {"id": "no"}],
        }
        head = {"authorization": f"Bearer {TOKEN}"}
        path = "/crm/v3/objects/contacts/batch/read"
        status, found = api.serve("POST", path, head, json.dumps(asked).encode())
        assert (status, [one["properties"] for one in found["results"]]) == (200, [{"spend": "3.00"}])
        api.merge("u3@example.com", {"spend": "9"})
        del api.objects["u4@example.com"]
        found = shop.retl("reconcile", "people", "--output", "json").document["reconcile"]
        assert (found["edited"], found["missing"], found["fields"]) == (1, 1, {"spend": 1})


class Listing(FakeHubSpot):
    """Answers each question for one record with a list, as a server that does not know the question."""

    def _one(self, method: str, name: str, query: dict[str, str], content: Any) -> tuple[int, Any]:
        return 200, {"results": [{"id": "r-1", "properties": {}}]}


def test_an_answer_without_the_fields_is_an_error_and_no_row_of_nulls(tmp_path: Path) -> None:
    with Listing() as api:
        shop = hubspot(tmp_path / "project", api)
        said = shop.retl("explain", "people", "--key", "u3@example.com", "--read")
        assert (said.code, "HTTP_NO_FIELDS" in said.out + said.err) == (1, True), said.out
        said = shop.retl("reconcile", "people")
        assert (said.code, "edited" in said.out) == (1, False)
        assert "no object at `properties` [HTTP_NO_FIELDS]" in said.err


SHAPE = Shape("people", "state", (Field("email", Type("string")),), (Field("name", Type("string")),))
READ = {name: one for name in preset_names() if (one := presets.read(name)).read}


@pytest.mark.parametrize("name", READ)
def test_no_preset_takes_an_answer_without_the_fields_for_an_object(name: str) -> None:
    (version, *_), reads = READ[name].version, READ[name].read
    at = {word: version[word] for word in ("at", "header") if word in version}
    body = json.dumps({"type": "list", "results": [{"name": "Ann"}], "total": 1}).encode()
    for read in reads:
        where = {word: read[word] for word in ("at", "fields") if word in read}
        held = Object(SHAPE, Read(path="/", **where), Version(**at), Cast())
        for ask in (held.values, held.held):
            with pytest.raises(Poisoned, match="HTTP_NO_FIELDS"):
                ask(Reply(200, {}, body))
