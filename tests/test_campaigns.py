"""The campaign tool of the demo keeps the promises the sample sync relies on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import pytest

from retl_demo.campaigns import MAX_BYTES, MAX_ROWS, Campaigns

TOKEN = "a token of the tests"


@pytest.fixture
def campaigns() -> Iterator[Campaigns]:
    with Campaigns(TOKEN, refuse=[13]) as tool:
        yield tool


@pytest.fixture
def connection(campaigns: Campaigns) -> Iterator[HTTPConnection]:
    connection = HTTPConnection(urlsplit(campaigns.url).netloc, timeout=10)
    yield connection
    connection.close()


def batch(*ids: object, score: float = 0.5) -> bytes:
    return json.dumps({"recipients": [{"id": i, "attributes": {"score": score}} for i in ids]}).encode()


def send(
    connection: HTTPConnection, body: bytes, key: str | None = None, token: str = TOKEN
) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    connection.request(
        "POST", "/v1/recipients/batch", body, headers | ({"Idempotency-Key": key} if key else {})
    )
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_a_recipient_is_created_once_and_then_updated(
    campaigns: Campaigns, connection: HTTPConnection
) -> None:
    assert send(connection, batch(7)) == (200, {"results": [{"id": 7, "status": "created"}]})
    assert send(connection, batch(7, score=0.9)) == (200, {"results": [{"id": 7, "status": "updated"}]})
    assert campaigns.recipients()[7].attributes == {"score": 0.9}
    assert campaigns.recipients()[7].applied == 2


def test_the_same_key_is_applied_once_and_answered_alike(
    campaigns: Campaigns, connection: HTTPConnection
) -> None:
    first = send(connection, batch(1, 2, 13), "key")
    assert send(connection, batch(1, 2, 13), "key") == first
    assert {key: held.applied for key, held in campaigns.recipients().items()} == {1: 1, 2: 1}
    assert (campaigns.requests, campaigns.replayed) == (2, 1)


def test_a_key_under_another_body_is_refused(campaigns: Campaigns, connection: HTTPConnection) -> None:
    send(connection, batch(1), "key")
    status, answer = send(connection, batch(2), "key")
    assert (status, answer["error"]["code"]) == (422, "KEY_REUSED")
    assert list(campaigns.recipients()) == [1]


def test_results_stand_in_the_order_of_the_rows_and_a_bad_row_costs_only_itself(
    campaigns: Campaigns, connection: HTTPConnection
) -> None:
    status, answer = send(connection, batch("b", 13, "", "a"))
    assert status == 207
    assert [row["status"] for row in answer["results"]] == ["created", "rejected", "rejected", "created"]
    assert [row["error"]["code"] for row in answer["results"][1:3]] == ["SUPPRESSED", "INVALID"]
    assert list(campaigns.recipients()) == ["b", "a"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (batch(*range(MAX_ROWS + 1)), 413),
        (b" " * (MAX_BYTES + 1), 413),
        (b"{", 400),
        (b"[]", 400),
        (b'{"recipients": 1}', 400),
    ],
    ids=["too many rows", "too many bytes", "broken", "a list", "no list"],
)
def test_a_refused_batch_changes_nothing_and_may_come_again_under_its_key(
    campaigns: Campaigns, connection: HTTPConnection, body: bytes, status: int
) -> None:
    try:
        assert send(connection, body, "key")[0] == status
    except BrokenPipeError:  # it refused before it had read all of it
        assert len(body) > MAX_BYTES
        connection.close()
    assert campaigns.recipients() == {}
    assert send(connection, batch(1), "key")[0] == 200


def test_a_hundred_rows_are_allowed(campaigns: Campaigns, connection: HTTPConnection) -> None:
    assert send(connection, batch(*range(100, 100 + MAX_ROWS)))[0] == 200
    assert len(campaigns.recipients()) == MAX_ROWS


def test_without_the_token_nothing_is_told_or_taken(campaigns: Campaigns, connection: HTTPConnection) -> None:
    assert send(connection, batch(1), token="guess")[0] == 401
    connection.request("GET", "/v1/recipients")
    answer = connection.getresponse()
    assert (answer.status, b"recipients" in answer.read()) == (401, False)
    assert campaigns.recipients() == {}


def test_what_it_holds_can_be_read_over_http_on_the_same_connection(
    campaigns: Campaigns, connection: HTTPConnection
) -> None:
    send(connection, batch("a"))
    socket = connection.sock
    connection.request("GET", "/v1/recipients", headers={"Authorization": f"Bearer {TOKEN}"})
    held = json.loads(connection.getresponse().read())
    assert held == {"recipients": [{"id": "a", "attributes": {"score": 0.5}, "applied": 1}]}
    assert connection.sock is socket
