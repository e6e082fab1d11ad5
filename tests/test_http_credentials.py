"""A credential is sent where the target reads it, in every form of body, or the definition is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

import pytest

from retl.destinations.batch import Field, Shape
from retl.destinations.http.adapter import HttpDestination
from retl.destinations.http.options import HttpOptions
from retl.errors import DefinitionError, Systemic
from retl.testing.server import FakeApi
from retl.values.types import Type
from tests.destinations.rows import Rows

SHAPE = Shape("s", "state", (Field("id", Type("string")),), (Field("name", Type("string")),))
SECRET = 'canary "&=+'


class Echo(FakeApi):
    """Keeps what was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.bodies: list[bytes] = []
        self.heads: list[dict[str, str]] = []

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        self.bodies.append(body)
        self.heads.append(headers)
        return 200, {}


@pytest.fixture
def api() -> Iterator[Echo]:
    with Echo() as api:
        yield api


def destination(
    api: Echo, endpoint: dict[str, Any], auth: dict[str, Any] | None = None, **more: Any
) -> HttpDestination:
    given = auth or {"type": "body", "name": "$token", "value": SECRET}
    options = HttpOptions(
        connection={"base_url": api.url, "auth": given}, upsert={"path": "/r", **endpoint}, **more
    )
    return HttpDestination(options, SHAPE)


def sent(api: Echo, endpoint: dict[str, Any], rows: int = 2) -> str:
    target = destination(api, endpoint)
    batch = Rows(SHAPE, [("a", "Ann"), ("b", "Bob")][:rows]).batch()
    assert b"canary" not in target.preview(batch)
    target.write(batch)
    target.close()
    return api.bodies[-1].decode()


def test_a_secret_of_the_body_is_sent_in_every_form_of_body(api: Echo) -> None:
    whole = sent(api, {"wrap": "rows", "row": "$key"})
    assert json.loads(whole) == {"rows": ["a", "b"], "$token": SECRET}
    assert json.loads(sent(api, {"row": "$row"}, 1)) == {"id": "a", "name": "Ann", "$token": SECRET}
    listed = json.loads(sent(api, {"wrap": "", "row": {"$id": "$key"}}))
    assert listed == [{"$id": "a", "$token": SECRET}, {"$id": "b", "$token": SECRET}]
    lines = sent(api, {"encoding": "ndjson", "row": "$row"}).splitlines()
    assert [json.loads(line)["$token"] for line in lines] == [SECRET] * 2
    form = parse_qsl(sent(api, {"encoding": "form", "row": "$row"}, 1))
    assert form == [("id", "a"), ("name", "Ann"), ("$token", SECRET)]


@pytest.mark.parametrize(
    "endpoint",
    [
        {"encoding": "csv", "row": "$row"},
        {"wrap": "", "row": "$key"},
        {"row": ["$key"]},
        {"row": "$key"},
        {"path": "/r?data=$body"},
        {"path": "/r/{id}", "method": "DELETE"},
        {"row": {"$token": "$key"}},
        {"wrap": "rows", "envelope": {"$token": 1}},
    ],
)
def test_a_body_with_no_place_for_the_secret_is_refused(api: Echo, endpoint: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError) as caught:
        destination(api, endpoint)
    assert caught.value.code == "HTTP_AUTH"


def test_a_request_without_a_body_never_goes_without_its_secret(api: Echo) -> None:
    with pytest.raises(DefinitionError, match="`check`"):
        destination(api, {"row": "$row"}, check={"path": "/me"})
    target = destination(
        api, {"row": {"$merge": ["$fields"]}}, {"type": "body", "name": "name", "value": "s"}
    )
    with pytest.raises(Systemic, match="already has"):
        target.write(Rows(SHAPE, [("a", "Ann")]).batch())
    assert api.bodies == []
    target.close()
