"""`write: replace`: each row is deleted and inserted, for targets that refuse a second insert of a key."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import duckdb
import pytest

from retl.testing.faults import answer, instead, reset
from retl.testing.server import FakeApi, Fault
from tests.commands import Workshop

ROWS = 40


class Shelf(FakeApi):
    """Things by their numbers, which no request changes.

    POST   /things        409 if there is one of this number, 422 if its name is bad
    DELETE /things/{id}   404 where there is none
    """

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if method == "DELETE":
            return (204, None) if self.objects.pop(unquote(path.split("/")[2]), None) else (404, {})
        thing = json.loads(body)
        if thing["name"] == "bad":
            return 422, {"message": "no such name"}
        if str(thing["id"]) in self.objects:
            return 409, {"message": "there is one"}
        self.objects[str(thing["id"])] = thing
        return 201, {}

    @property
    def names(self) -> dict[str, str]:
        return {key: one["name"] for key, one in self.objects.items()}


DESTINATION = """
  connection: shelf
  insert: {path: /things, row: $row}
  delete: {method: DELETE, path: "/things/{id}"}
"""


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    with Shelf() as api:
        yield api


def begun(folder: Path, destination: str, retl: str = "", **parts: str) -> Workshop:
    workshop = Workshop(folder / "project")
    workshop.write("retl.yml", retl)
    given = {"source": "{table: things}", "key": "[id]", "write": "replace", "destination": destination}
    workshop.sync("things", **given | parts)
    mart(workshop)
    return workshop


def mart(workshop: Workshop, **names: str) -> None:
    """Rows n0, n1 …; `names` are those of single rows."""
    changed = "".join(f" WHEN {key[1:]} THEN '{name}'" for key, name in names.items())
    named = f"CASE i{changed} ELSE 'n' || i END" if changed else "'n' || i"
    workshop.warehouse(
        f"CREATE OR REPLACE TABLE things AS SELECT i AS id, {named} AS name FROM range({ROWS}) t(i)"
    )


def wanted(**names: str) -> dict[str, str]:
    return {str(n): f"n{n}" for n in range(ROWS)} | {key[1:]: name for key, name in names.items()}


def run(workshop: Workshop) -> dict[str, Any]:
    said = workshop.retl("sync", "--sync", "things", "--output", "json")
    assert said.document, said.err
    return dict(said.document["syncs"][0])


def on_shelf(folder: Path, shelf: Shelf, **parts: str) -> Workshop:
    return begun(
        folder, DESTINATION, f'connections: {{shelf: {{type: http, base_url: "{shelf.url}"}}}}\n', **parts
    )


def test_an_object_that_cannot_be_changed_is_deleted_and_made_again(tmp_path: Path, shelf: Shelf) -> None:
    workshop = on_shelf(tmp_path, shelf, deletes="delete")
    assert run(workshop)["inserted"] == ROWS
    mart(workshop, n3="other")
    shelf.seen.clear()
    assert run(workshop)["updated"] == 1
    assert [method for method, *_ in shelf.seen] == ["DELETE", "POST"]
    assert shelf.names == wanted(n3="other")
    workshop.warehouse("DELETE FROM things WHERE id = 5")
    assert run(workshop)["deleted"] == 1
    assert "5" not in shelf.names


@pytest.mark.parametrize("fault", [reset(applied=False), reset(applied=True), instead(502), answer(429)])
def test_a_row_between_its_delete_and_its_insert_is_never_lost(
    tmp_path: Path, shelf: Shelf, fault: Fault
) -> None:
    """The insert gets no answer in any attempt, and the mart then has the old value again."""
    workshop = on_shelf(tmp_path, shelf, retry="{attempts: 2, budget: 5s}")
    run(workshop)
    mart(workshop, n3="other")
    shelf.misbehave(lambda exchange: False, fault, lambda exchange: False, reset(applied=False))
    assert run(workshop)["in_doubt"] == 1
    mart(workshop)
    assert run(workshop)["error"] is None
    assert shelf.names == wanted()


def test_a_version_that_is_refused_after_the_delete_is_no_answer(tmp_path: Path, shelf: Shelf) -> None:
    workshop = on_shelf(tmp_path, shelf)
    run(workshop)
    mart(workshop, n3="bad")
    found = run(workshop)
    assert (found["in_doubt"], found["error"]["code"]) == (1, "IN_DOUBT")
    assert "deleted" in found["error"]["message"]
    assert "3" not in shelf.names
    mart(workshop)  # what was confirmed once is not believed any more
    assert run(workshop)["error"] is None
    assert shelf.names == wanted()


def test_a_new_row_that_is_refused_is_a_reject(tmp_path: Path, shelf: Shelf) -> None:
    workshop = on_shelf(tmp_path, shelf)
    mart(workshop, n3="bad")
    assert (run(workshop)["rejected"], len(shelf.names)) == (1, ROWS - 1)


@pytest.mark.parametrize("point", ["batches_opened", "batch_sending:42", "batch_answered:41"])
def test_a_killed_run_loses_no_row(tmp_path: Path, shelf: Shelf, point: str) -> None:
    workshop = on_shelf(tmp_path, shelf)
    run(workshop)
    mart(workshop, n3="other", n4="another")
    if "sending" in point:  # killed while the insert waits for its answer
        shelf.misbehave(lambda exchange: False, reset(applied=False))
    assert workshop.process("sync", RETL_CRASH_AT=point.split(":")[0], RETL_LOG_LEVEL="debug").code == -9
    mart(workshop)
    assert run(workshop)["error"] is None
    assert shelf.names == wanted()


def of_sqlite(path: Path) -> dict[str, str]:
    with sqlite3.connect(path) as file:
        return {str(key): name for key, name in file.execute("SELECT id, name FROM things")}


def of_duckdb(path: Path) -> dict[str, str]:
    with duckdb.connect(str(path)) as file:
        return {str(key): name for key, name in file.execute("SELECT id, name FROM things").fetchall()}


@pytest.mark.parametrize("kind", ["sqlite", "duckdb"])
def test_a_table_gets_a_new_row_in_the_transaction_that_deletes_the_old_one(
    tmp_path: Path, kind: Literal["sqlite", "duckdb"]
) -> None:
    path, held = tmp_path / "target.db", of_sqlite if kind == "sqlite" else of_duckdb
    workshop = begun(
        tmp_path,
        "{connection: file, table: things, create: true}",
        f'connections: {{file: {{type: {kind}, path: "{path}"}}}}\n',
    )
    assert run(workshop)["inserted"] == ROWS
    mart(workshop, n3="other")
    assert run(workshop)["updated"] == 1
    assert held(path) == wanted(n3="other")
    mart(workshop, n3="third", n4="fourth")
    assert workshop.process("sync", RETL_CRASH_AT="batch_sending", RETL_LOG_LEVEL="debug").code == -9
    mart(workshop)
    assert run(workshop)["error"] is None
    assert held(path) == wanted()


def test_a_row_that_a_table_refuses_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "target.db"
    with sqlite3.connect(path) as file:
        file.execute("CREATE TABLE things (id INTEGER PRIMARY KEY, name TEXT CHECK (name <> 'bad'))")
    workshop = begun(
        tmp_path,
        "{connection: file, table: things}",
        f'connections: {{file: {{type: sqlite, path: "{path}"}}}}\n',
    )
    run(workshop)
    mart(workshop, n3="bad", n4="other")
    found = run(workshop)
    assert (found["updated"], found["rejected"]) == (1, 1)
    assert of_sqlite(path) == wanted(n4="other")
