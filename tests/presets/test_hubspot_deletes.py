"""How HubSpot's records are archived, and contacts erased for good."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from retl.destinations.batch import Kind
from retl.errors import DefinitionError
from retl.testing import FakeHubSpot
from tests.presets import test_hubspot

PROOF = test_hubspot.TestHubSpot()
ROWS = PROOF.rows


@pytest.fixture
def api() -> Iterator[FakeHubSpot]:
    with FakeHubSpot() as api:
        yield api


def test_records_whose_key_is_their_id_are_archived_by_it(api: FakeHubSpot) -> None:
    how = {"match": "hs_object_id"}
    PROOF.deliver(api, ROWS, parameters=how)
    PROOF.deliver(api, [row[:1] for row in ROWS[:2]], "delete", how)
    assert PROOF.contents(api) == PROOF.expected(ROWS[2:])


@pytest.mark.parametrize("match", ["email", "hs_object_id"])
def test_contacts_are_erased_where_it_is_said_by_name(api: FakeHubSpot, match: str) -> None:
    how = {"match": match, "delete": "gdpr"}
    PROOF.deliver(api, ROWS, parameters=how)
    for _ in range(2):
        gone = PROOF.deliver(api, [row[:1] for row in ROWS[:2]], "delete", how)
        assert [result.kind for result in gone] == [Kind.WRITTEN] * 2
        assert PROOF.contents(api) == PROOF.expected(ROWS[2:])
    assert set(api.erased) == {(match, row[0]) for row in ROWS[:2]}


def test_only_contacts_can_be_erased(api: FakeHubSpot) -> None:
    with pytest.raises(DefinitionError) as caught:
        PROOF.deliver(api, [ROWS[0][:1]], "delete", {"object": "deals", "delete": "gdpr"})
    assert "`delete: gdpr`, `object: contacts`, `match: email`" in caught.value.message
    assert not api.seen
