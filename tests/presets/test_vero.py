"""Vero: one user a request; it answers the same whether a user was there or not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from retl.destinations import load
from retl.destinations.batch import Kind
from retl.testing import FakeApi
from tests.api import TOKEN
from tests.destinations.rows import Rows
from tests.presets.proof import Proof, Recorded, lines


class Vero(FakeApi):
    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        content = json.loads(body)
        if content["auth_token"] != TOKEN:
            return 401, {"status": 401, "message": "Your credentials are invalid."}
        if content["id"] in self.refuse:
            return 400, {"status": 400, "message": "Bad request."}
        match (method, path):
            case ("POST", "/api/v2/users/track"):
                self.merge(content["id"], content["data"])
            case ("POST", "/api/v2/users/delete"):
                self.objects.pop(content["id"], None)
            case _:
                return 404, {"status": 404, "message": "Not found."}
        return 200, {"status": 200, "message": "Success."}


class TestVero(Proof):
    preset = "vero"
    vendor = partial(Vero, refuse=["d@x.io"])
    connection = {"auth_token": TOKEN}
    bad, deletes = ("d@x.io", "Dan", -1), {}

    def recorded(self) -> Iterator[Recorded]:
        for one in lines("recordings/vero.jsonl"):
            operation: Any = "delete" if one["path"].endswith("/delete") else "upsert"
            yield Recorded(one, ["somebody"], [Kind.WRITTEN], operation)

    def test_its_requests_are_like_the_recorded_ones(self, api: Vero) -> None:
        theirs = {one["path"]: set(one["req_body"]) for one in lines("recordings/vero.jsonl")}
        self.deliver(api, self.rows)
        self.deliver(api, [row[:1] for row in self.rows], "delete", {})
        assert {path: set(json.loads(body)) for _, path, _, body in api.seen} == theirs

    def test_the_address_has_a_place_of_its_own(self) -> None:
        destination = load(self.preset)(self.options(None, {"email": "name"}), self.shape())
        assert b'"id":"a@x.io","email":"Ann","data":{' in destination.preview(
            Rows(self.shape(), self.rows[:1]).batch()
        )
