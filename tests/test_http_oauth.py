"""Tokens: one for all lanes, renewed once, never shown; and credentials in unusual places."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs

import pytest
from pydantic import ValidationError

from retl.destinations.batch import Field, Kind, Outcome, Shape
from retl.destinations.http.adapter import HttpDestination
from retl.destinations.http.options import HttpOptions
from retl.errors import Systemic, Unavailable
from retl.net.connection import HttpConnection
from retl.net.oauth import OAuth2
from retl.observe import redact
from retl.values.types import Type
from tests import api as fake
from tests.api import TOKEN, Api
from tests.destinations.rows import Rows
from tests.presets.oauth import TokenServer

SHAPE = Shape("sync", "state", (Field("id", Type("string")),), (Field("name", Type("string")),))
BATCH = Rows(SHAPE, [("a", "Ann"), ("b", "Bob")]).batch()


class Server(TokenServer):
    token_path = "/token"

    def take(self, method: str, path: str, content: Any) -> tuple[int, Any]:
        for row in content:
            self.users[row["id"]] = row
        return 200, {}


@pytest.fixture
def api() -> Iterator[Server]:
    redact.forget()
    with Server() as api:
        yield api
    redact.forget()


def options(api: Api, **auth: Any) -> HttpOptions:
    given = {
        "type": "oauth2",
        "token_url": f"{api.url}/token",
        "client_id": "me",
        "client_secret": TOKEN,
        **auth,
    }
    connection = {"base_url": api.url, "auth": given, "timeouts": {"connect": 5, "idle": 1, "total": 2}}
    return HttpOptions(connection=connection, upsert={"path": "/rows", "wrap": ""})


def tokens(api: Api) -> int:
    return [path.partition("?")[0] for _, path, _, _ in api.seen].count("/token")


def test_a_token_is_asked_for_once_and_used_by_every_lane(api: Server) -> None:
    of_all = options(api)
    lanes = [HttpDestination(of_all, SHAPE) for _ in range(3)]
    for lane in [*lanes, *lanes]:
        assert lane.write(BATCH).default.kind is Kind.WRITTEN  # type: ignore[union-attr]
        lane.close()
    assert tokens(api) == 1


def test_lanes_that_meet_an_old_token_together_renew_it_once(api: Server) -> None:
    of_all = options(api)
    lanes = [HttpDestination(of_all, SHAPE) for _ in range(4)]
    lanes[0].write(BATCH)
    auth = of_all.connection.auth
    assert isinstance(auth, OAuth2)
    auth._token = "an-old-one"  # what all of them send next
    found: list[Any] = []
    threads = [threading.Thread(target=lambda lane=lane: found.append(lane.write(BATCH))) for lane in lanes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [outcome.default.kind for outcome in found] == [Kind.WRITTEN] * 4
    assert tokens(api) == 2
    for lane in lanes:
        lane.close()


def test_a_refusal_that_a_new_token_does_not_mend_stops_the_run(api: Server) -> None:
    destination = HttpDestination(options(api), SHAPE)
    api.faults += [lambda exchange: False, fake.answer(401), lambda exchange: False, fake.answer(401)]
    with pytest.raises(Systemic):
        destination.write(BATCH)
    assert tokens(api) == 2
    assert api.users == {}
    destination.close()


@pytest.mark.parametrize(
    "fault",
    [fake.answer(429), fake.answer(503), fake.reset(applied=False), fake.reset(applied=True), fake.cut()],
)
def test_a_token_server_in_trouble_is_asked_again(api: Server, fault: fake.Fault) -> None:
    destination = HttpDestination(options(api), SHAPE)
    api.faults.append(fault)
    with pytest.raises(Unavailable):
        destination.write(BATCH)
    assert destination.write(BATCH) == Outcome(destination.write(BATCH).default)  # type: ignore[union-attr]
    destination.close()


def test_a_token_server_says_when_to_ask_again(api: Server) -> None:
    destination = HttpDestination(options(api), SHAPE)
    api.faults.append(fake.answer(503, Retry_After="400"))
    with pytest.raises(Unavailable, match="answered 503 to a token request") as caught:
        destination.write(BATCH)
    assert caught.value.retry_after == 400
    destination.close()


def test_a_wrong_secret_stops_and_nothing_tells_it(api: Server) -> None:
    destination = HttpDestination(options(api, client_secret="canary-secret"), SHAPE)
    with pytest.raises(Systemic) as caught:
        destination.write(BATCH)
    assert "invalid_client" in caught.value.message
    assert "canary" not in f"{caught.value!r} {caught.value.hint} {destination.options!r}"
    destination.close()


def test_a_token_is_a_secret_from_the_moment_it_is_given(api: Server) -> None:
    destination = HttpDestination(options(api), SHAPE)
    destination.write(BATCH)
    assert redact.redact("it was bearer-1") == "it was ***"
    assert b"bearer" not in destination.preview(BATCH)
    destination.close()


def test_a_refresh_token_is_exchanged(api: Server) -> None:
    destination = HttpDestination(
        options(api, grant="refresh_token", refresh_token="r-1", scope="crm"), SHAPE
    )
    with pytest.raises(Systemic):
        destination.write(BATCH)  # this server knows only the other grant
    form = parse_qs(api.seen[0][3].decode())
    assert (form["grant_type"], form["refresh_token"], form["scope"]) == (["refresh_token"], ["r-1"], ["crm"])
    destination.close()


@pytest.mark.parametrize(
    "auth",
    [
        {"type": "oauth2", "token_url": "http://login.example.com/t", "client_id": "a", "client_secret": "b"},
        {"type": "oauth2", "token_url": "https://login.example.com/t", "client_id": "a"},
        {
            "type": "oauth2",
            "token_url": "https://x/t",
            "client_id": "a",
            "client_secret": "b",
            "grant": "refresh_token",
        },
        {"type": "url", "url": "ftp://x"},
        {"type": "url", "url": "https://user@x/y"},
        {"type": "url", "url": "https://x/y#z"},
        {"type": "body", "name": 'a"b', "value": "x"},
    ],
)
def test_credentials_that_cannot_work_are_refused(auth: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        HttpConnection(base_url="https://api.example.com", auth=auth)


def test_a_webhook_goes_over_https_or_not_at_all() -> None:
    with pytest.raises(ValidationError):
        HttpConnection(auth={"type": "url", "url": "http://hooks.example.com/x"})
    assert HttpConnection(auth={"type": "url", "url": "https://hooks.example.com/x?y"}).base_url == (
        "https://hooks.example.com"
    )
