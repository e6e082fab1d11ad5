"""Objects that have only the target's own id: found by their key, created once, changed and deleted by id."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from pydantic import ValidationError

from retl.destinations.batch import Field, Kind, Outcome, Shape
from retl.destinations.http.adapter import HttpDestination
from retl.destinations.http.options import HttpOptions
from retl.errors import Ambiguous, DefinitionError, Unavailable
from retl.values.types import Type
from tests.api import Api, answer, instead, passed, reset
from tests.commands import Workshop
from tests.destinations.rows import Rows

ROWS = 6


class Crm(Api):
    """A CRM that creates a person each time it is asked to, and knows people by its own ids.

    GET    /persons/search?term=…   all people whose address contains the term, in any case
    POST   /persons                 creates; with `unique`, 409 for an address that somebody has
    PUT    /persons/{id}            changes; 404 where there is none
    DELETE /persons/{id}            deletes; 404 where there is none
    """

    def __init__(self) -> None:
        super().__init__()
        self.numbers = itertools.count(1)
        self.unique = False
        self.blind = 0  # searches that find nothing
        self.ghost: str | None = None  # an address that the search still knows, of an object that is gone

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        content, where = json.loads(body) if body else {}, urlsplit(path)
        name = unquote(where.path.rpartition("/")[2])
        match method:
            case "GET":
                return 200, {
                    "data": [] if self._is_blind() else self.search(parse_qs(where.query)["term"][0])
                }
            case "POST" if self.unique and (known := self.having(content["email"])):
                return 409, {"message": f"a contact already exists with id={known[0]}"}
            case "POST":
                return 201, {"data": {"id": self.create(**content)}}
        if name not in self.objects:
            return 404, {"message": "nobody"}
        if method == "DELETE":
            del self.objects[name]
            return 200, {}
        self.objects[name].update(content)
        return 200, {"data": {"id": name}}

    def _is_blind(self) -> bool:
        self.blind -= 1
        return self.blind >= 0

    def create(self, **fields: Any) -> str:
        name = f"p/{next(self.numbers)}"
        self.objects[name] = fields
        return name

    def search(self, term: str) -> list[dict[str, Any]]:
        found = [*self.objects.items(), *([("gone", {"email": self.ghost})] if self.ghost else [])]
        return [{"item": {"id": n, **one}} for n, one in found if term.lower() in one["email"].lower()]

    def having(self, email: str) -> list[str]:
        return [name for name, one in self.objects.items() if one["email"] == email]

    def asked(self, method: str) -> int:
        return sum(one == method for one, *_ in self.seen)

    def held(self) -> dict[str, Any]:
        """Address → name, if each is there once."""
        assert len({one["email"] for one in self.objects.values()}) == len(self.objects)
        return {one["email"]: one.get("name") for one in self.objects.values()}


DESTINATION = """
  connection: crm
  find: {path: "/persons/search?term=$key", at: data, ref: item.id, match: {at: item.email}}
  insert: {path: /persons, row: $row}
  update: {method: PUT, path: /persons/$ref, row: $fields}
  delete: {method: DELETE, path: /persons/$ref}
  outcome: {ref: data.id, cases: [%s]}
"""
EXISTS = "{status: [409], means: exists, ref: {at: message, pattern: 'id=(\\S+)'}}"


MADE = {"status": [201], "means": "made", "ref": "data.id"}
FIND: dict[str, Any] = {"path": "/persons/search?term=$key", "at": "data", "ref": "item.id"}


def made(base_url: str = "http://127.0.0.1", **given: Any) -> HttpDestination:
    """The destination of the syncs below, on its own."""
    parts = {
        "find": FIND,
        "insert": {"path": "/persons", "row": "$row"},
        "update": {"method": "PUT", "path": "/persons/$ref", "row": "$fields"},
    }
    options = HttpOptions(connection={"base_url": base_url}, **{**parts, **given})
    text = Type("string")
    return HttpDestination(options, Shape("sync", "state", (Field("email", text),), (Field("name", text),)))


class Office(Workshop):
    crm: Crm

    def begin(self, crm: Crm) -> None:
        self.crm = crm
        self.warehouse(
            "CREATE TABLE people AS SELECT 'p' || i || '@x.io' AS email, 'name ' || i AS name"
            f" FROM range({ROWS}) t(i)"
        )
        self.write("retl.yml", f'connections: {{crm: {{type: http, base_url: "{crm.url}"}}}}\n')
        self.people()

    def people(self, cases: str = "", destination: str = DESTINATION, **parts: str) -> None:
        given = {"source": "{table: people}", "key": "[email]", "deletes": "delete"}
        self.sync("people", **{**given, "destination": destination % cases, **parts})

    def run(self, *words: str, code: int = 0) -> dict[str, Any]:
        said = self.retl("sync", *words, "--output", "json")
        assert said.code == code, said.out + said.err
        (found,) = said.document["syncs"]
        return dict(found)

    def wanted(self) -> dict[str, str]:
        return {f"p{n}@x.io": f"name {n}" for n in range(ROWS)}


@pytest.fixture
def crm() -> Iterator[Crm]:
    with Crm() as running:
        yield running


@pytest.fixture
def office(tmp_path: Path, crm: Crm) -> Office:
    made = Office(tmp_path / "project")
    made.begin(crm)
    return made


def test_a_life_of_rows_by_the_target_s_own_ids(office: Office, crm: Crm) -> None:
    there = crm.create(email="p3@x.io", name="old", phone="theirs")
    crm.create(email="P3@X.IO.example", name="somebody else")
    assert office.run()["inserted"] == ROWS
    assert crm.held() == {**office.wanted(), "P3@X.IO.example": "somebody else"}
    assert crm.objects[there] == {"email": "p3@x.io", "name": "name 3", "phone": "theirs"}
    assert (crm.asked("GET"), crm.asked("POST"), crm.asked("PUT")) == (ROWS, ROWS - 1, 1)
    assert office.run()["unchanged"] == ROWS
    office.warehouse("UPDATE people SET name = 'new' WHERE email = 'p1@x.io'")
    assert office.run()["updated"] == 1
    assert (crm.asked("GET"), crm.asked("PUT")) == (ROWS, 2)
    office.warehouse("DELETE FROM people WHERE email = 'p3@x.io'")
    assert office.run()["deleted"] == 1
    assert (crm.asked("GET"), there in crm.objects) == (ROWS, False)


def test_an_object_that_is_gone_is_looked_for_and_made_again(office: Office, crm: Crm) -> None:
    office.run()
    crm.objects.pop(crm.having("p1@x.io")[0])
    moved = crm.objects.pop(crm.having("p2@x.io")[0])
    elsewhere = crm.create(**moved)
    office.warehouse("UPDATE people SET name = 'new' WHERE email IN ('p1@x.io', 'p2@x.io')")
    assert office.run()["updated"] == 2
    assert crm.held() == {**office.wanted(), "p1@x.io": "new", "p2@x.io": "new"}
    office.warehouse("DELETE FROM people WHERE email = 'p2@x.io'")
    assert office.run()["deleted"] == 1
    assert elsewhere not in crm.objects


@pytest.mark.parametrize("applied", [True, False])
def test_a_creation_without_an_answer_is_settled_by_looking(office: Office, crm: Crm, applied: bool) -> None:
    office.warehouse("DELETE FROM people WHERE email <> 'p0@x.io'")
    crm.faults.extend([lambda _: False, reset(applied=applied)])
    assert office.run()["inserted"] == 1
    assert crm.held() == {"p0@x.io": "name 0"}
    assert crm.asked("POST") == (1 if applied else 2)


def test_an_object_that_is_created_by_its_key_gets_its_fields_at_once(office: Office, crm: Crm) -> None:
    insert = f"{{path: /persons, row: {{email: $key}}, outcome: {{cases: [{json.dumps(MADE)}]}}}}"
    destination = DESTINATION.replace("{path: /persons, row: $row}", insert)
    office.people(destination=destination)
    crm.misbehave(passed, reset(applied=True), passed, passed, passed, reset(applied=False))
    assert office.run()["inserted"] == ROWS
    assert (crm.held(), crm.asked("PUT")) == (office.wanted(), ROWS)
    office.people(destination=destination, write="insert_only", deletes="keep")
    assert "has no `update`" in office.retl("sync").err


def test_a_creation_that_broke_with_a_500_is_settled_by_looking(office: Office, crm: Crm) -> None:
    office.warehouse("DELETE FROM people WHERE email <> 'p0@x.io'")
    crm.faults.extend([lambda _: False, instead(500, b"")])
    assert office.run()["inserted"] == 1
    assert (crm.held(), crm.asked("POST")) == ({"p0@x.io": "name 0"}, 1)


def test_a_creation_that_a_search_does_not_see_yet_is_waited_for(crm: Crm) -> None:
    lane = made(find={**FIND, "settles": "30s"}, base_url=crm.url)
    batch = Rows(lane.shape, [("p0@x.io", "name 0")]).batch()
    crm.faults.extend([lambda _: False, reset(applied=True)])
    with pytest.raises(Ambiguous):
        lane.write(batch)
    with pytest.raises(Unavailable) as caught:
        lane.resolve(batch, None)
    assert caught.value.retry_after == 30.0
    lane.close()


def test_a_killed_run_makes_nobody_twice(office: Office, crm: Crm) -> None:
    assert office.process("sync", RETL_CRASH_AT="batch_answered:3").code == -9
    assert len(crm.objects) >= 3
    done = office.run()
    assert done["status"] == "SUCCESS"
    assert crm.held() == office.wanted()


def test_two_objects_with_one_key_are_nobody_s_to_choose(office: Office, crm: Crm) -> None:
    first, second = (crm.create(email="p3@x.io", name="old") for _ in range(2))
    done = office.run()
    assert (done["inserted"], done["rejected"], done["rejects"][0]["code"]) == (ROWS - 1, 1, "AMBIGUOUS")
    assert [crm.objects[one]["name"] for one in (first, second)] == ["old", "old"]
    del crm.objects[second]
    assert (office.run()["inserted"], crm.objects[first]["name"]) == (1, "name 3")


def test_an_object_that_only_the_search_knows_holds_up_no_other_row(office: Office, crm: Crm) -> None:
    crm.ghost = "p3@x.io"
    done = office.run()
    assert (done["inserted"], done["rejected"], done["rejects"][0]["code"]) == (ROWS - 1, 1, "STALE")
    crm.ghost = None
    assert (office.run()["inserted"], crm.held()) == (1, office.wanted())


def test_an_answer_that_says_who_exists_is_as_good_as_a_search(office: Office, crm: Crm) -> None:
    crm.unique = True
    there = crm.create(email="p3@x.io", name="old")
    crm.blind = ROWS
    office.people(cases=EXISTS)
    assert office.run()["inserted"] == ROWS
    assert (crm.held(), crm.objects[there]["name"]) == (office.wanted(), "name 3")


def test_a_refusal_to_create_that_tells_no_id_rejects_the_row(office: Office, crm: Crm) -> None:
    office.people(cases=EXISTS)
    office.warehouse("DELETE FROM people WHERE email > 'p1@x.io'")
    crm.faults.extend([lambda _: False, answer(409, b'{"message": "it exists somewhere"}')])
    done = office.run()
    assert (done["inserted"], done["rejected"], done["rejects"][0]["reason"]) == (1, 1, "it exists somewhere")


def test_a_row_is_only_changed_or_only_created_where_that_is_asked_for(office: Office, crm: Crm) -> None:
    there = crm.create(email="p3@x.io", name="old")
    office.people(write="insert_only", first_run="send")
    done = office.run()
    assert (done["inserted"], done["skipped"], crm.objects[there]["name"]) == (ROWS - 1, 1, "old")
    del crm.objects[crm.having("p1@x.io")[0]]
    office.people(write="update_only", deletes="keep")
    done = office.run()
    assert (done["updated"], done["skipped"]) == (ROWS - 1, 1)
    assert "p1@x.io" not in crm.held()


def test_who_was_adopted_is_found_before_it_is_deleted(office: Office, crm: Crm) -> None:
    for n in range(ROWS):
        crm.create(email=f"p{n}@x.io", name=f"name {n}")
    office.people(first_run="adopt", deletes="{set: {name: gone}}", destination=DESTINATION)
    office.run()
    office.warehouse("UPDATE people SET name = 'new' WHERE email = 'p1@x.io'")
    assert office.run()["updated"] == 1
    assert (crm.held()["p1@x.io"], crm.asked("POST")) == ("new", 0)


def test_a_search_that_fails_creates_nobody(office: Office, crm: Crm) -> None:
    crm.faults.extend([answer(404, b"{}")])
    assert office.run(code=1)["error"]["code"] == "HTTP_404"
    assert crm.objects == {}
    office.warehouse("DELETE FROM people WHERE email <> 'p0@x.io'")
    crm.faults.extend([answer(400, b'{"message": "no such term"}')])
    done = office.run(code=1)
    assert (done["rejected"], done["rejects"][0]["reason"], crm.objects) == (1, "no such term", {})


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"find": {**FIND, "path": "/persons/search?term=all"}}, "HTTP_KEY"),
        ({"insert": None}, "HTTP_OPERATION"),
        ({"upsert": {"path": "/persons"}}, "instead of"),
        ({"insert": {"path": "/persons", "wrap": "rows", "max_rows": 3}}, "one row per request"),
        ({"outcome": {"cases": [{"status": [409], "means": "exists"}]}}, "needs `ref`"),
        ({"read": {"path": "/persons/$ref"}, "outcome": {"cases": [MADE]}}, "and no `read`"),
        ({"delete": {"path": "/gone", "row": "$row", "then": "/gone/$ref"}}, "`then` follows a DELETE"),
        ({"update": {"method": "DELETE", "path": "/persons/$ref", "then": "/gone/$ref"}}, "`update.then`"),
        (
            {"outcome": {"cases": [{"status": [409], "means": "exists", "ref": {"at": "", "pattern": "("}}]}},
            "group",
        ),
    ],
)
def test_what_cannot_find_or_create_is_a_definition_error(given: dict[str, Any], code: str) -> None:
    with pytest.raises((DefinitionError, ValidationError)) as caught:
        made(**given)
    assert code in str(caught.value)


def test_explain_shows_what_would_be_sent(office: Office, crm: Crm) -> None:
    said = office.retl("explain", "people", "--key", "p1@x.io")
    assert said.code == 0, said.err
    assert "GET /persons/search?term=p1%40x.io" in said.out
    assert "POST /persons" in said.out
    assert crm.seen == []


def test_beside_an_upsert_only_deletes_look_for_their_object(crm: Crm) -> None:
    crm.create(email="a@x.io")
    upsert = {"path": "/persons", "wrap": "rows", "max_rows": 5}
    options = HttpOptions(
        connection={"base_url": crm.url},
        upsert=upsert,
        find=FIND,
        delete={"method": "DELETE", "path": "/persons/$ref"},
    )
    shape = Shape("s", "state", (Field("email", Type("string")),), (), deletes="delete")
    destination = HttpDestination(options, shape)
    assert (destination.capabilities.max_rows, destination.capabilities.max_deletes) == (5, 1)
    for key in ("a@x.io", "nobody@x.io"):
        done = destination.write(Rows(shape, [(key,)]).batch("delete"))
        assert isinstance(done, Outcome)
        assert done.result(0).kind is Kind.WRITTEN
    assert crm.objects == {}
    destination.close()
