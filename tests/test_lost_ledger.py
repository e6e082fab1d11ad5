"""The ledger dies while a run delivers: the summary still has the numbers of the answers that arrived."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.api import TOKEN, Api
from tests.commands import ROWS, Workshop
from tests.servers import Database

CONNECTION = 'connections: {tool: {type: http, base_url: "${TOOL_URL}", auth: {type: bearer, token: "${TOOL_TOKEN}"}}}\n'
USERS = (
    "{connection: tool, upsert: {method: POST, path: /v1/users/batch, wrap: users, max_rows: 100,"
    " row: {id: $user_id, attributes: $fields}}, outcome: {ok: [200], partial: [207], rows: positional,"
    " at: results, row_ok: {at: status, in: [updated]}}}"
)
EVENTS = (
    "{connection: tool, insert: {method: POST, path: /v1/events, wrap: events, max_rows: 100, row: {id: $user_id,"
    " attributes: $fields}}, outcome: {ok: [200], rows: all_or_nothing}}"
)
APPEND = {"destination": EVENTS, "write": "append", "first_run": "send", "delivery": "at_most_once"}
Deadly = Callable[[], object]


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as running:
        yield running


@pytest.fixture
def workshop(tmp_path: Path, api: Api) -> Workshop:
    made = Workshop(tmp_path / "project", {"TOOL_URL": api.url, "TOOL_TOKEN": TOKEN})
    made.write("retl.yml", CONNECTION)
    return made


def run(workshop: Workshop) -> tuple[int, dict[str, Any]]:
    said = workshop.retl("sync", "--output", "json")
    (found,) = said.document["syncs"]
    assert "Traceback" not in said.err
    return said.code, dict(found)


def _removed(workshop: Workshop) -> Deadly:
    return lambda: (workshop.folder / ".retl").rename(workshop.folder / "away")


def _terminated(database: Database) -> Deadly:
    def terminate() -> None:
        with closing(database.connect()) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

    return terminate


@pytest.fixture(params=["removed", "replaced by a file", "postgres terminated"])
def deadly(request: pytest.FixtureRequest, workshop: Workshop) -> Deadly:
    """What makes the ledger fail."""
    if request.param == "postgres terminated":
        database: Database = request.getfixturevalue("postgres")
        where = f"{database.host}:{database.port}/{database.dbname}"
        workshop.environment["RETL_STATE_URL"] = f"postgresql://{database.user}:{database.password}@{where}"
        return _terminated(database)
    if request.param == "removed":
        return _removed(workshop)

    def replace() -> None:
        _removed(workshop)()
        (workshop.folder / ".retl").touch()

    return replace


@pytest.mark.parametrize("write", ["upsert", "append"])
@pytest.mark.parametrize("request_number", [1, 3, 6])
def test_a_run_whose_ledger_dies_tells_what_was_delivered(
    workshop: Workshop, api: Api, deadly: Deadly, write: str, request_number: int
) -> None:
    parts = APPEND if write == "append" else {"destination": USERS}
    workshop.sync("users", **parts, batch="{rows: 5}")
    api.faults.extend([lambda _: False] * (request_number - 1) + [lambda _: bool(deadly()) and False])
    code, found = run(workshop)
    assert (code, found["status"], found["read"]) == (1, "FAILED", ROWS)
    assert found["error"]["code"].startswith(("STATE_", "LOCK_")), found["error"]
    there = len(api.events) if write == "append" else len(api.users)
    assert found["inserted"] == there >= 5 * request_number, found
    assert found["inserted"] + found["not_attempted"] + found["in_doubt"] == ROWS
