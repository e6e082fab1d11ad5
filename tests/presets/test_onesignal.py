"""OneSignal: a user is looked for by the External ID, then created, changed or deleted by OneSignal's own id."""

from __future__ import annotations

import json
from functools import partial
from typing import Any
from urllib.parse import unquote

import pytest

from retl.destinations.batch import Kind
from retl.errors import Systemic
from retl.testing import FakeApi
from tests import api as fake
from tests.api import TOKEN, passed
from tests.presets.proof import Proof


class OneSignal(FakeApi):
    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("authorization") != f"Key {TOKEN}":
            return 401, {"errors": ["the key is not valid"]}
        users = path.removeprefix("/apps/app/users")
        content = json.loads(body) if body else {}
        if (method, users) == ("POST", ""):
            return self.write(201, content["identity"]["external_id"], content)
        name = unquote(users.rpartition("/")[2]).removeprefix("os-")
        if name not in self.objects:
            return 404, {"errors": [{"code": "user-2", "title": "User not found"}]}
        if method == "GET":
            return 200, {"identity": {"external_id": name, "onesignal_id": f"os-{name}"}}
        if method == "PATCH":
            return self.write(202, name, content)
        del self.objects[name]
        return 202, {}

    def write(self, status: int, name: str, content: Any) -> tuple[int, Any]:
        if name in self.refuse:
            return 400, {"errors": [{"code": "tags-1", "title": "a tag is not valid"}]}
        self.merge(name, content["properties"]["tags"])
        return status, {"identity": {"onesignal_id": f"os-{name}"}}


class TestOneSignal(Proof):
    preset, vendor = "onesignal", partial(OneSignal, refuse=["d@x.io"])
    connection, parameters = {"api_key": TOKEN}, {"app": "app"}
    bad, deletes = ("d@x.io", "Dan", -1), parameters

    def sent_as(self, row: Any) -> dict[str, Any]:
        return {"name": row[1] or "", "visits": row[2]}

    def test_a_user_that_is_there_is_changed_and_no_second_one_made(self, api: OneSignal) -> None:
        assert {one.kind for _ in range(2) for one in self.deliver(api, self.rows)} == {Kind.WRITTEN}
        assert [method for method, _, _, _ in api.seen] == ["GET", "POST"] * 3 + ["GET", "PATCH"] * 3

    def test_an_app_that_does_not_exist_is_no_user_that_is_gone(self, api: OneSignal) -> None:
        api.faults += [passed, fake.answer(404, b'{"errors":["app not found"]}')]
        with pytest.raises(Systemic):
            self.deliver(api, self.rows)
