"""A token against forged requests is fetched once with its cookies, and again when its session is over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from retl.destinations.batch import WRITTEN, Field, Outcome, Shape
from retl.destinations.http.adapter import HttpDestination
from retl.destinations.http.options import HttpOptions
from retl.errors import RetlError, Systemic, Unavailable
from retl.testing import FakeApi
from retl.values.types import Type
from tests.api import Fault, answer, passed, reset
from tests.destinations.rows import Rows

SHAPE = Shape("s", "state", (Field("id", Type("string")),), (Field("n", Type("integer")),))
REQUIRED = answer(403, b"", x_csrf_token="Required")


class Server(FakeApi):
    """Gives out tokens t1, t2 …, and takes writes with the newest and both cookies of its session."""

    given = 0

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if method == "GET":
            assert (path, headers["x-csrf-token"]) == ("/api/token", "Fetch")
            self.given += 1
            cookies = {"Set-Cookie": f"SID=s{self.given}; path=/", "set-cookie": "ctx=a,b; Secure"}
            return 200, (b"{}", {"X-CSRF-Token": f"t{self.given}", **cookies})
        told = headers.get("x-csrf-token"), headers.get("cookie")
        return (200 if told == (f"t{self.given}", f"SID=s{self.given}; ctx=a,b") else 403), {}


@pytest.fixture
def api() -> Iterator[Server]:
    with Server() as api:
        yield api


def lane(api: Server) -> HttpDestination:
    http = {"base_url": f"{api.url}/api", "csrf": {"path": "/token"}}
    return HttpDestination(HttpOptions(connection=http, upsert={"path": "/rows"}), SHAPE)


def test_one_token_serves_all_writes_until_the_server_asks_for_another(api: Server) -> None:
    destination, batch = lane(api), Rows(SHAPE, [("a", 1)]).batch()
    for given, faults in ((1, []), (1, []), (2, [REQUIRED])):
        api.faults += faults
        assert destination.write(batch) == Outcome(WRITTEN)
        assert api.given == given
    api.faults += [REQUIRED, passed, REQUIRED]  # it asks again and again: that is its answer
    with pytest.raises(Systemic):
        destination.write(batch)
    destination.close()


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (answer(200, b"{}"), Systemic),
        (answer(401, b"{}"), Systemic),
        (answer(503), Unavailable),
        (reset(applied=False), Unavailable),
    ],
)
def test_without_a_token_nothing_is_written(api: Server, fault: Fault, error: type[RetlError]) -> None:
    api.faults.append(fault)
    destination = lane(api)
    with pytest.raises(error):
        destination.write(Rows(SHAPE, [("a", 1)]).batch())
    assert [method for method, *_ in api.seen] == ["GET"]
    destination.close()
