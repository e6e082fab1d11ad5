"""Somebody else edits what a sync writes over HTTP: the table of docs/guides/conflicts.md under each strategy, for an
API that takes conditions and for one that can only be read first."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import pytest

from retl.testing.faults import instead, reset
from retl.testing.server import FakeApi, Fault
from tests.api import TOKEN
from tests.commands import Workshop
from tests.dataverse import Environment
from tests.test_conflict_history import KEEPING, agree
from tests.test_conflict_race import RACE, raced
from tests.test_conflicts import (
    CELLS,
    COUNTS,
    STRATEGIES,
    Held,
    Played,
    listed,
    mart,
    numbers,
    rows,
    run,
    take,
)
from tests.truth_table import PROPERTY, shown

Kind = Literal["atomic", "window"]
RACED = 100
SECONDS = 30.0 if os.environ.get("RETL_TEST_ALL") else 1.0


class Registry(FakeApi):
    """People by their ids. An ETag is the digest of a person, so that a person who is edited back has the old one.

    GET    /people/{id}   404 where there is none
    POST   /people/{id}   makes or merges
    PUT    /people/{id}   makes; with If-None-Match: * 412 if there is one
    PATCH  /people/{id}   merges; with If-Match 412 if it has another version; 404 where there is none
    DELETE /people/{id}   deletes, under the same conditions
    """

    tells = True  # whether answers to writes show the person

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        name, content = unquote(path.split("/")[2]), json.loads(body) if body else {}
        there = self.objects.get(name)
        if method == "PUT" and there is not None and headers.get("if-none-match") == "*":
            return 412, {"message": "there is one"}
        if method in ("GET", "PATCH", "DELETE") and there is None:
            return 404, {"message": "nobody"}
        if "if-match" in headers and headers["if-match"] != tag(there):
            return 412, {"message": "somebody was faster"}
        if method == "DELETE":
            del self.objects[name]
            return 204, None
        if method != "GET":
            self.objects[name] = {**(there or {}), **content}
        return self.shown(name) if method == "GET" or self.tells else (204, None)

    def shown(self, name: str) -> tuple[int, Any]:
        person = self.objects[name]
        content = json.dumps({"id": name, "person": person, "rev": tag(person)}).encode()
        return 200, (content, {"ETag": tag(person), "Content-Type": "application/json"})


def tag(person: dict[str, Any] | None) -> str:
    content = {name: value for name, value in (person or {}).items() if value is not None}
    return f'"{sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]}"'


class People:
    """The people of a registry, as others see and edit them."""

    versioned, reversible, points = True, False, ("delta_written", "batches_opened", "committing")
    strategies = KEEPING

    def __init__(self, api: Registry, kind: Kind = "atomic") -> None:
        self.api, self.kind = api, kind

    @property
    def objects(self) -> dict[str, dict[str, Any]]:
        return self.api.objects

    @property
    def lock(self) -> threading.Lock:
        return self.api.lock

    def project(self, folder: Path, conflicts: str, **parts: str) -> Workshop:
        workshop = Workshop(folder)
        workshop.write("retl.yml", f'connections: {{crm: {{type: http, base_url: "{self.api.url}"}}}}\n')
        given = {
            "source": "{table: people}",
            "key": "[id]",
            "fields": "{phone: phone, score: score}",
            "destination": DESTINATIONS[self.kind],
            "deletes": "delete",
            "conflicts": accepted(conflicts) if self.kind == "window" else conflicts,
        } | parts
        workshop.sync("people", **given)
        return workshop

    def edit(self, key: str, what: str, *, timed: bool = True) -> None:
        found: dict[str, Any] = {"edited": "2026-01-02T00:00:00Z"} if timed else {}
        with self.lock:
            match what.split(" ", 1):
                case ["DELETE"]:
                    del self.objects[key]
                    return
                case ["INSERT", values]:
                    phone, score = values.strip("()").replace("'", "").split(", ")
                    found |= {"phone": phone, "score": int(score)}
                case _:
                    for part in what.removeprefix("SET ").split(", "):
                        name, _, text = part.partition(" = ")
                        found[name] = None if text == "NULL" else json.loads(text.replace("'", '"'))
                        found[name] = int(found[name]) if name == "score" else found[name]
            self.objects.setdefault(key, {}).update(found)

    def held(self) -> dict[str, Held]:
        return {
            key: (one.get("phone"), one.get("score"), one.get("note")) for key, one in self.objects.items()
        }

    def some(self) -> dict[str, Held]:
        return {key: one for key, one in self.held().items() if key in "abc"}


DESTINATIONS = {
    "atomic": """
  connection: crm
  read: {path: "/people/{id}", fields: person}
  version: {header: ETag}
  upsert: {path: "/people/{id}", row: $fields}
  insert: {method: PUT, path: "/people/{id}", row: $fields, headers: {If-None-Match: "*"}}
  update: {method: PATCH, path: "/people/{id}", row: $fields, headers: {If-Match: $version}}
  delete: {method: DELETE, path: "/people/{id}", headers: {If-Match: $version}}
""",
    "window": """
  connection: crm
  read: {path: "/people/{id}", fields: person}
  version: {at: rev}
  upsert: {path: "/people/{id}", row: $fields}
  insert: {method: PUT, path: "/people/{id}", row: $fields}
  update: {method: PATCH, path: "/people/{id}", row: $fields}
  delete: {method: DELETE, path: "/people/{id}"}
""",
}


def accepted(conflicts: str) -> str:
    return "{target_wins: {window: accepted}}" if conflicts == "target_wins" else conflicts


def begun(folder: Path, people: People, conflicts: str, **parts: str) -> Workshop:
    """A project that has delivered a, b and c."""
    workshop = people.project(folder / "project", conflicts, **parts)
    workshop.warehouse(rows(a=("p", 1), b=("p", 1), c=("p", 1)))
    assert run(workshop)["inserted"] == 103
    return workshop


@pytest.fixture
def people() -> Iterator[People]:
    with Registry() as api:
        yield People(api)


class Accounts(People):
    """The same people as rows of Dataverse."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment

    def project(self, folder: Path, conflicts: str, **parts: str) -> Workshop:
        workshop = Workshop(folder)
        url = self.environment.url
        login = f'org: example.crm4.dynamics.com, tenant: contoso, client_id: me, client_secret: "{TOKEN}"'
        workshop.write(
            "retl.yml",
            f'connections: {{crm: {{type: dataverse, {login}, login: "{url}", base_url: "{url}"}}}}\n',
        )
        given = {
            "source": "{table: people}",
            "key": "[id]",
            "fields": "{phone: phone, score: score}",
            "destination": "{connection: crm, table: accounts}",
            "deletes": "delete",
            "conflicts": conflicts,
        } | parts
        workshop.sync("people", **given)
        return workshop

    @property
    def objects(self) -> dict[str, dict[str, Any]]:
        return self.environment.rows

    @property
    def lock(self) -> threading.Lock:
        return self.environment.lock


@contextmanager
def peopled(kind: str) -> Iterator[People]:
    if kind == "dataverse":
        with Environment("id", {"phone", "score", "note", "edited"}) as environment:
            yield Accounts(environment)
    else:
        with Registry() as api:
            yield People(api, "window" if kind == "window" else "atomic")


SHOWN = {"atomic": "HTTP, If-Match", "window": "HTTP, read first", "dataverse": "Dataverse"}
PLAYED = [("atomic", one) for one in STRATEGIES] + [("window", "target_wins")]
PLAYED += [("dataverse", one) for one in STRATEGIES if one != "warehouse_wins"]


@pytest.fixture(scope="module", params=[pytest.param(one, id="-".join(one)) for one in PLAYED])
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    kind, strategy = request.param
    with peopled(kind) as people:
        workshop = people.project(tmp_path_factory.mktemp("cells") / "project", STRATEGIES[strategy])
        workshop.warehouse(
            mart({name: (cell.before, "2026-01-01 00:00:00+00") for name, cell in CELLS.items()})
        )
        assert run(workshop)["status"] == "SUCCESS"
        for name, cell in CELLS.items():
            if cell.edit is not None:
                people.edit(name, cell.edit, timed="agree" not in name)
        workshop.warehouse(mart({name: (cell.after, cell.changed) for name, cell in CELLS.items()}))
        predicted = run(workshop, "--dry-run")
        summary = run(workshop)
        if strategy != "warehouse_wins":
            assert numbers(predicted) == numbers(summary)
        yield Played(strategy, summary, people.held())


@pytest.mark.parametrize("name", list(CELLS))
def test_each_cell_of_the_table(
    request: pytest.FixtureRequest,
    played: Played,
    name: str,
    record_property: Callable[[str, object], None],
) -> None:
    target = SHOWN[request.node.callspec.params["played"][0]]
    record_property(PROPERTY, (target, played.strategy, name, shown(played.held.get(name))))
    wanted = CELLS[name].ends[list(STRATEGIES).index(played.strategy)]
    assert played.held.get(name) == wanted


def test_the_numbers_say_what_was_kept(played: Played) -> None:
    assert played.summary["error"] is None
    assert numbers(played.summary) == COUNTS[played.strategy]


def test_what_is_kept_stays_kept_until_both_agree(tmp_path: Path, people: People) -> None:
    workshop = begun(tmp_path, people, "target_wins")
    people.edit("a", "SET phone = 'h'")
    for phone in ("q", "r"):
        workshop.warehouse(rows(a=(phone, 1), b=("p", 1), c=("p", 1)))
        assert run(workshop)["conflicts"] == {"merged": 0, "kept": 1, "queued": 0}
        assert run(workshop)["unchanged"] == 103
    workshop.warehouse(rows(a=("h", 1), b=("p", 1), c=("p", 1)))
    assert run(workshop)["updated"] == 1  # they agree: it is ours again
    workshop.warehouse(rows(a=("t", 1), b=("p", 1), c=("p", 1)))
    assert run(workshop)["updated"] == 1
    assert people.held()["a"] == ("t", 1, None)


@pytest.mark.parametrize("tells", [True, False])
def test_a_row_as_we_left_it_is_written_by_one_request(tmp_path: Path, people: People, tells: bool) -> None:
    people.api.tells = tells  # else the version is not known, and the row is looked at
    workshop = begun(tmp_path, people, "target_wins")
    people.api.seen.clear()
    workshop.warehouse(rows(a=("q", 1), b=("p", 1), c=("p", 1)))
    assert run(workshop)["updated"] == 1
    assert [method for method, *_ in people.api.seen] == (["PATCH"] if tells else ["GET", "PATCH"])
    workshop.warehouse(rows(b=("p", 1), c=("p", 1)))
    found = run(workshop)
    assert (found["deleted"], found["deletes"]["kept"]) == ((1, 0) if tells else (0, 1))


def test_a_person_decides_what_waits_and_a_later_edit_refuses(tmp_path: Path, people: People) -> None:
    workshop = begun(tmp_path, people, "manual")
    people.edit("a", "SET phone = 'h'")
    people.edit("b", "DELETE")
    people.edit("c", "SET note = 'n'")
    workshop.warehouse(rows(a=("q", 2), b=("q", 2)))
    assert run(workshop)["conflicts"] == {"merged": 0, "kept": 0, "queued": 2}
    waiting = listed(workshop)
    assert [one[:2] for one in waiting] == [("a", "CONFLICT"), ("b", "GONE"), ("c", "DELETE_CONFLICT")]
    people.edit("a", "SET phone = 'i'")
    assert take(workshop, "mart", "--key", "a", "--expect", waiting[0][2]) == 1  # edited since it was shown
    assert people.held()["a"] == ("i", 1, None)
    assert take(workshop, "target", "--key", "c") == 0
    assert take(workshop, "mart") == 0
    assert listed(workshop) == []
    assert people.some() == {"a": ("q", 2, None), "b": ("q", 2, None), "c": ("p", 1, "n")}


def test_a_plan_and_an_explanation_say_what_becomes_of_edits(tmp_path: Path, people: People) -> None:
    workshop = begun(tmp_path, people, "target_wins")
    people.edit("a", "SET phone = 'h'")
    people.edit("b", "DELETE")
    people.edit("c", "SET note = 'n'")
    workshop.warehouse(rows(a=("q", 2), b=("q", 2)))
    before = people.held()
    (planned,) = workshop.json("plan", "--sync", "people")["syncs"]
    (row,) = workshop.json("explain", "people", "--key", "a", "--read")["rows"]
    assert {name: (one["target"], one["mart"], one["verdict"]) for name, one in row["sides"]["fields"].items()} == {
        "phone": ("h", "q", "keep"), "score": (1, 2, "write")
    }  # fmt: skip
    assert "If-Match" in row["request"]
    assert {one["key"]: one["verdict"] for one in planned["samples"]} == {
        "a": "merged",
        "b": "kept",
        "c": "kept",
    }
    assert people.held() == before


@pytest.mark.parametrize("fault", [reset(applied=False), reset(applied=True), instead(502)])
def test_a_write_without_an_answer_is_made_once_and_overwrites_nobody(
    tmp_path: Path, people: People, fault: Fault
) -> None:
    """Between the lost answer and the next attempt somebody edits one of the rows."""
    workshop = begun(tmp_path, people, "target_wins", retry="{attempts: 3}", deletes="keep")

    def and_edited(exchange: Any) -> bool:
        gone = fault(exchange)
        people.edit(unquote(exchange.path.split("/")[2]), "SET score = 9")
        return gone

    workshop.warehouse(rows(a=("q", 1), b=("p", 1), c=("p", 1), new=("q", 1)))
    people.api.misbehave(fault, and_edited)
    found = run(workshop)
    assert (found["error"], found["rejected"], found["in_doubt"]) == (None, 0, 0)
    held = people.held()
    assert [held[key][0] for key in ("a", "new") if held.get(key)] == ["q", "q"]
    edited = [key for key in ("a", "new") if held[key] != ("q", 1, None)]
    assert [held[key] for key in edited] == [("q", 9, None)] * len(edited)
    assert run(workshop)["unchanged"] == 104


def test_what_a_killed_run_left_is_not_known_and_stays_if_the_mart_changes_again(
    tmp_path: Path, people: People
) -> None:
    workshop = begun(tmp_path, people, "target_wins", deletes="keep")
    workshop.warehouse(rows(a=("q", 1), b=("q", 1), c=("p", 1)))
    assert workshop.process("sync", RETL_CRASH_AT="batch_answered").code == -9
    assert people.held()["a"] == ("q", 1, None)
    workshop.warehouse(rows(a=("r", 1), b=("q", 1), c=("p", 1)))
    found = run(workshop)
    assert (found["error"], found["conflicts"]["kept"]) == (None, 1)
    held = people.held()
    assert (held["a"], held["b"]) == (("q", 1, None), ("q", 1, None))


def test_reconcile_reads_rows_one_by_one_and_repairs_what_was_edited(tmp_path: Path, people: People) -> None:
    workshop = begun(tmp_path, people, "warehouse_wins", deletes="keep")
    people.edit("a", "SET phone = 'h'")
    people.edit("b", "DELETE")
    said = workshop.retl("reconcile", "people", "--output", "json")
    (found,) = [said.document["reconcile"]]
    assert (said.code, found["edited"], found["missing"], found["sampled"]) == (1, 1, 1, 103)
    assert workshop.retl("reconcile", "people", "--repair").code == 0
    assert people.some() == dict.fromkeys("abc", ("p", 1, None))
    assert workshop.retl("reconcile", "people").code == 0


@pytest.mark.parametrize(
    ("kind", "conflicts", "without", "code"),
    [
        ("window", "target_wins", "", "CONFLICTS_WINDOW"),
        ("window", "{target_wins: {window: accepted}}", "  version: {at: rev}\n", "CONFLICTS_UNSUPPORTED"),
        ("window", "target_wins", '  read: {path: "/people/{id}", fields: person}\n', "`version` needs"),
        ("atomic", "{target_wins: {window: accepted}}", "", "OPTION_UNUSED"),
        ("atomic", "target_wins", 'headers: {If-None-Match: "*"}', "CONFLICTS_WINDOW"),
    ],
)
def test_what_a_target_cannot_do_is_a_definition_error(
    tmp_path: Path, people: People, kind: Kind, conflicts: str, without: str, code: str
) -> None:
    destination = DESTINATIONS[kind].replace(without, "")
    workshop = people.project(tmp_path / "project", conflicts, destination=destination)
    workshop.warehouse(rows(a=("p", 1)))
    said = workshop.retl("sync", "--sync", "people")
    assert (said.code, code in said.err) == (2, True), said.err
    assert people.api.seen == []


@pytest.mark.parametrize("kind", ["atomic", "dataverse"] if os.environ.get("RETL_TEST_ALL") else ["atomic"])
def test_random_histories_agree_with_an_oracle_that_knows_all_values(tmp_path: Path, kind: str) -> None:
    agree(partial(peopled, kind), tmp_path)


def editing(people: People, stop: threading.Event, seed: int, met: list[tuple[str, str]]) -> None:
    """Logs (key, the phone met) of each edit."""
    chance, number = random.Random(seed), 0
    while not stop.wait(chance.random() * 0.002):
        number += 1
        key = f"k{chance.randrange(RACED // 2)}"  # others stay for the sync
        with people.lock:
            met.append((key, people.objects[key]["phone"]))
            people.objects[key] |= {"phone": f"h{seed}-{number}", "edited": "2026-01-02T00:00:00Z"}


def everything(generation: int) -> str:
    return (
        f"CREATE OR REPLACE TABLE people AS SELECT 'k' || i AS id, 'w{generation}' AS phone, i AS score,"
        f" TIMESTAMPTZ '2026-01-01 00:00:00+00' AS changed FROM range({RACED}) t(i)"
    )


RACES = [("atomic", one) for one in ("target_wins", "newest_wins", "manual")] + [("dataverse", "target_wins")]
if os.environ.get("RETL_TEST_ALL"):
    RACES += [("dataverse", "newest_wins"), ("dataverse", "manual")]


@pytest.mark.parametrize(("kind", "strategy"), RACES)
def test_no_edit_is_overwritten_while_syncs_run(
    tmp_path: Path, kind: str, strategy: str, record_property: Callable[[str, object], None]
) -> None:
    """Nobody may ever meet a value of retl's where somebody edited before: neither the next editor nor whoever
    looks at the end."""
    parts = {"deletes": "keep", "guards": "{max_conflict_rate: 1}"}
    met: list[tuple[str, str]] = []
    runs, written, stop = 0, 0, threading.Event()
    with ExitStack() as stack:
        people = stack.enter_context(peopled(kind))
        workshop = people.project(tmp_path / "project", STRATEGIES[strategy], **parts)
        workshop.warehouse(everything(0))
        assert run(workshop)["inserted"] == RACED
        editors = [threading.Thread(target=editing, args=(people, stop, n, met)) for n in range(3)]
        stack.callback(lambda: [one.join() for one in editors])
        stack.callback(stop.set)
        for one in editors:
            one.start()
        until = time.monotonic() + SECONDS
        while time.monotonic() < until or runs < 2:
            runs += 1
            workshop.warehouse(everything(runs))
            found = run(workshop)
            assert found["error"] is None, found["error"]
            written += found["updated"]
    edited = {key for key, _ in met}
    ours = Counter(key for key, was in met if was.startswith("w"))  # met by the first editor of a key alone
    assert {key: number for key, number in ours.items() if number > 1} == {}, "edits were overwritten"
    ends = {key: one["phone"] for key, one in people.objects.items()}
    assert [key for key in edited if not ends[key].startswith("h")] == []
    record_property(RACE, raced(runs, written, len(met), len(edited)))
    assert written > 0
    assert edited
    assert all(ends[key] == f"w{runs}" for key in ends.keys() - edited)
