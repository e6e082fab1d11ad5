"""The promises over HTTP: rows in batches, rows by their own address, and rows only added."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from retl.destinations.api import Destination
from retl.destinations.batch import Shape
from retl.destinations.http.adapter import HttpDestination
from retl.destinations.http.options import HttpOptions
from tests.api import TOKEN, Api
from tests.destinations.rows import Row
from tests.destinations.suite import Contents, Suite, Target
from tests.proxy import Proxy

BATCH: dict[str, Any] = {
    "upsert": {
        "path": "/v1/users/batch",
        "wrap": "users",
        "row": {"id": "$id", "attributes": "$fields"},
        "max_rows": 1000,
    },
    "delete": {"method": "DELETE", "path": "/v1/users/{id}"},
    "outcome": {
        "ok": [200],
        "partial": [207],
        "rows": "positional",
        "at": "results",
        "row_ok": {"at": "status", "in": ["updated"]},
        "ref": "id",
    },
    "check": {"path": "/v1/me"},
}
STRICT = {**BATCH, "upsert": {**BATCH["upsert"], "path": "/v1/strict", "max_bytes": 1_000_000}, "outcome": {}}
SINGLE = {
    "upsert": {"method": "PUT", "path": "/v1/users/{id}", "row": "$fields"},
    "delete": {"method": "DELETE", "path": "/v1/users/{id}"},
    "check": {"path": "/v1/me"},
}
EVENTS = {"insert": {"path": "/v1/events", "wrap": "events", "max_rows": 1000}, "check": {"path": "/v1/me"}}


class HttpTarget(Target):
    type = "http"
    commit = b"}"

    def __init__(self, api: Api, proxy: Proxy, options: dict[str, Any]) -> None:
        self.api, self.proxy, self.options = api, proxy, options

    def make(self, shape: Shape, *, secret: str | None = None) -> Destination[Any]:
        connection = {
            "base_url": f"http://127.0.0.1:{self.proxy.port}",
            "auth": {"type": "bearer", "token": secret or TOKEN},
            "timeouts": {"connect": 1, "idle": 1, "total": 2},
        }
        return HttpDestination(HttpOptions(connection=connection, **self.options), shape)

    def contents(self) -> Contents:
        users = self.api.users.items()
        return {(key,): {n: v for n, v in user.items() if n != "theirs"} for key, user in users}

    def poison(self, row: Row) -> Row:
        return (*row[:-1], -1)

    def forbid(self) -> None:
        self.api.forbidden = True

    def annotate(self, key: Row) -> Callable[[], bool] | None:
        user = self.api.users[key[0]]
        user["theirs"] = "kept"
        return lambda: user.get("theirs") == "kept"


class EventsTarget(HttpTarget):
    write = "append"

    def contents(self) -> Contents:
        return {
            (event["id"],): {name: value for name, value in event.items() if name != "id"}
            for event in self.api.events
        }

    def annotate(self, key: Row) -> Callable[[], bool] | None:
        return None


class HttpSuite(Suite):
    options: dict[str, Any]
    kind: type[HttpTarget] = HttpTarget

    @pytest.fixture
    def target(self) -> Iterator[Target]:
        with Api() as api, Proxy("127.0.0.1", api.port) as proxy:
            yield self.kind(api, proxy, self.options)


class TestRowsInBatches(HttpSuite):
    options = BATCH


class TestRowsInBatchesThatAreAllOrNothing(HttpSuite):
    options = STRICT


class TestRowsByTheirOwnAddress(HttpSuite):
    options = SINGLE


class TestRowsOnlyAdded(HttpSuite):
    options = EVENTS
    kind = EventsTarget
