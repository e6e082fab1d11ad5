"""The fake HubSpot answers a list of all contacts page by page, as the vendor does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from retl.testing import FakeHubSpot
from retl.testing.server import TOKEN

CONTACTS = "/crm/v3/objects/contacts"


@pytest.fixture
def hubspot() -> Iterator[FakeHubSpot]:
    with FakeHubSpot() as running:
        running.objects |= {f"u{number}@example.com": {"firstname": "x"} for number in range(5)}
        yield running


def answer(hubspot: FakeHubSpot, path: str, body: bytes | None = None) -> tuple[int, Any]:
    request = Request(hubspot.url + path, body, {"Authorization": f"Bearer {TOKEN}"})
    try:
        with urlopen(request, timeout=10) as response:
            return response.status, json.loads(response.read())
    except HTTPError as problem:
        return problem.code, json.loads(problem.read())


def test_a_list_has_as_many_contacts_as_were_asked_for(hubspot: FakeHubSpot) -> None:
    seen, path = [], f"{CONTACTS}?limit=2"
    while path:
        status, page = answer(hubspot, path)
        assert (status, len(page["results"]) <= 2) == (200, True)
        seen += [one["id"] for one in page["results"]]
        after = page.get("paging", {}).get("next", {}).get("after")
        path = f"{CONTACTS}?limit=2&after={after}" if after else ""
    assert seen == [f"r-u{number}@example.com" for number in range(5)]
    assert len(answer(hubspot, CONTACTS)[1]["results"]) == 5


@pytest.mark.parametrize("limit", ["0", "101", "x"])
def test_a_limit_that_the_vendor_refuses_is_refused(hubspot: FakeHubSpot, limit: str) -> None:
    assert answer(hubspot, f"{CONTACTS}?limit={limit}")[0] == 400


def test_a_search_makes_no_contact(hubspot: FakeHubSpot) -> None:
    assert answer(hubspot, f"{CONTACTS}/search", b'{"filterGroups": []}')[0] == 404
    assert len(hubspot.objects) == 5
