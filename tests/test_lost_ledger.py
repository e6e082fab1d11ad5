"""The ledger dies while a run delivers: the summary still has the numbers of the answers that arrived. And it
is lost between two runs: what would arrive twice is not sent without a word."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from retl import destinations
from tests import inprocess
from tests.api import TOKEN, Api
from tests.commands import ROWS, Workshop
from tests.servers import Database
from tests.watching import watched

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
    assert (code, found["status"], found["read"]) == (1, "FAILED", ROWS), found
    assert found["error"]["code"].startswith(("STATE_", "LOCK_")), found["error"]
    there = len(api.events) if write == "append" else len(api.users)
    assert found["inserted"] == there >= 5 * request_number, found
    assert found["inserted"] + found["not_attempted"] + found["in_doubt"] == ROWS


def test_rows_that_would_stay_twice_are_not_sent_again_after_a_lost_state(
    workshop: Workshop, api: Api
) -> None:
    workshop.sync("users", **APPEND, guards="{max_first_run: 10}")
    workshop.sync("others", destination=USERS, fields="{mail: email}")
    planned = workshop.retl("plan", "--sync", "users")
    assert (planned.code, "FIRST_RUN" in planned.err) == (3, True)
    first = workshop.retl("sync", "--sync", "users", "--accept", "FIRST_RUN")
    assert (first.code, len(api.events)) == (0, ROWS)
    assert "after this run write `first_run: adopt`" in first.out
    assert "first_run: adopt" in workshop.retl("status").out
    workshop.warehouse("INSERT INTO users VALUES (31, 'u31@example.com', 1)")
    assert workshop.retl("sync", "--sync", "users").code == 0
    shutil.rmtree(workshop.folder / ".retl")
    for _ in range(2):  # the other sync of the same night is no history, and neither is the refusal
        said = workshop.retl("sync")
        assert (said.code, "[FIRST_RUN]" in said.err) == (3, True), said.err
    assert len(api.events) == ROWS + 1
    workshop.sync("users", **APPEND | {"first_run": "adopt"}, guards="{max_first_run: 10}")
    assert workshop.retl("sync").code == 0
    assert "write `first_run: adopt`" not in workshop.retl("status").out
    assert len(api.events) == ROWS + 1


def test_a_few_rows_that_may_have_been_sent_before_are_sent_with_a_word(workshop: Workshop, api: Api) -> None:
    workshop.sync("users", **APPEND)
    word = "if they were sent before, they arrive twice"
    assert word in workshop.retl("sync").out
    assert (len(api.events), word in workshop.retl("sync").out) == (ROWS, False)


def test_an_append_says_what_a_lost_state_would_do_to_the_table(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.use(postgres=postgres)
    append = {"destination": "{type: postgres, table: users, create: true}", "write": "append"}
    workshop.sync("users", **append, first_run="send")
    assert workshop.retl("sync").code == 0
    shutil.rmtree(workshop.folder / ".retl")
    said = workshop.retl("check")  # says what a run says
    assert said.code == 3
    assert "sends every row of today's mart again (`retl state rebuild users`" in said.out + said.err


def test_a_new_sync_of_a_ledger_with_history_sends_its_first_rows(workshop: Workshop, api: Api) -> None:
    workshop.sync("others", destination=USERS)
    done = workshop.process("sync")
    assert done.code == 0, done.err
    workshop.sync("users", **APPEND, guards="{max_first_run: 10}")
    assert workshop.retl("sync", "--sync", "users").code == 0
    assert len(api.events) == ROWS


@pytest.mark.parametrize("name", destinations.names())
def test_a_target_that_returns_marks_says_so_before_it_is_asked(name: str) -> None:
    kind = destinations.load(name)
    assert kind.keeps_marks == ("Trace" in str(inspect.signature(kind.check).return_annotation))


SEEING = {"destination": "{type: postgres, table: users, create: true}"}


@pytest.mark.parametrize("jobs", ["1", "4"])
@pytest.mark.parametrize("lost", ["older", "gone"])
def test_what_would_stay_twice_is_not_sent_by_a_command_that_found_the_ledger_too_old(
    workshop: Workshop, api: Api, postgres: Database, lost: str, jobs: str
) -> None:
    workshop.use(postgres=postgres)
    workshop.write("retl.yml", CONNECTION)
    workshop.sync("a_blind", **APPEND)
    workshop.sync("b_after", after="[a_blind]", destination="{type: postgres, table: later, create: true}")
    workshop.sync("users", **SEEING)
    state = workshop.folder / ".retl"
    assert workshop.retl("sync").code == 0
    shutil.copytree(state, workshop.folder / "kept")
    workshop.warehouse("INSERT INTO users VALUES (31, 'u31@example.com', 1)")
    assert workshop.retl("sync").code == 0
    shutil.rmtree(state)
    if lost == "older":
        shutil.copytree(workshop.folder / "kept", state)
    guard = "STATE_BEHIND" if lost == "older" else "STATE_LOST"
    for words in (("--dry-run",), ()):
        said = workshop.retl("sync", "--jobs", jobs, *words, "--output", "json")
        ends = {one["sync"]: one["error"] for one in said.document["syncs"]}
        assert said.code == 3
        assert (ends["users"]["code"], ends["a_blind"]["code"]) == (guard, guard)
        assert "as users found" in ends["a_blind"]["message"]
        assert "retl state adopt a_blind" in ends["a_blind"]["hint"]
    assert len(api.events) == ROWS + 1
    assert workshop.retl("state", "adopt", "a_blind", "--yes").code == 0
    workshop.retl("sync", "--jobs", jobs, "--accept", guard)
    assert (workshop.retl("sync").code, len(api.events)) == (0, ROWS + 1)


@pytest.mark.parametrize("jobs", ["1", "4"])
def test_an_upsert_is_not_sent_by_a_command_that_found_that_the_ledger_is_another_one(
    workshop: Workshop, api: Api, postgres: Database, jobs: str
) -> None:
    workshop.use(postgres=postgres)
    workshop.write("retl.yml", CONNECTION)
    workshop.sync("a_tool", destination=USERS)
    workshop.sync("users", **SEEING)
    assert workshop.retl("sync").code == 0
    erased = workshop.retl("erase", "--sync", "users", "--key", "5", "--reason", "4711")
    assert erased.code == 0, erased.err
    shutil.rmtree(workshop.folder / ".retl")
    api.users.clear()
    for words in (("--dry-run",), ()):
        said = workshop.retl("sync", "--jobs", jobs, *words, "--output", "json")
        ends = {one["sync"]: one["error"] for one in said.document["syncs"]}
        assert (said.code, ends["a_tool"]["code"], ends["users"]["code"]) == (3, "STATE_LOST", "STATE_LOST")
        assert "of people who were erased" in ends["a_tool"]["message"]
        assert "must be erased again first" in ends["a_tool"]["hint"]
    assert not api.users
    assert workshop.retl("sync", "--jobs", jobs, "--accept", "STATE_LOST").code == 0
    assert len(api.users) == ROWS


def test_an_upsert_that_the_new_ledger_knows_is_sent_beside_a_target_that_knows_another_one(
    workshop: Workshop, api: Api, postgres: Database
) -> None:
    workshop.use(postgres=postgres)
    workshop.write("retl.yml", CONNECTION)
    workshop.sync("users", **SEEING)
    assert workshop.retl("sync").code == 0
    shutil.rmtree(workshop.folder / ".retl")
    workshop.sync("a_tool", destination=USERS)
    assert workshop.retl("sync", "a_tool").code == 0
    workshop.warehouse("INSERT INTO users VALUES (31, 'u31@example.com', 1)")
    said = workshop.retl("sync", "--output", "json")
    assert [one["status"] for one in said.document["syncs"]] == ["SUCCESS", "REFUSED"]
    assert len(api.users) == ROWS + 1


def test_an_upsert_is_not_sent_from_a_ledger_that_another_sync_found_too_old(
    workshop: Workshop, api: Api, postgres: Database
) -> None:
    workshop.use(postgres=postgres)
    workshop.write("retl.yml", CONNECTION)
    workshop.sync("a_tool", destination=USERS)
    workshop.sync("users", **SEEING)
    state = workshop.folder / ".retl"
    assert workshop.retl("sync").code == 0
    shutil.copytree(state, workshop.folder / "kept")
    workshop.warehouse("INSERT INTO users VALUES (31, 'u31@example.com', 1)")
    assert workshop.retl("sync", "users").code == 0
    shutil.rmtree(state)
    shutil.copytree(workshop.folder / "kept", state)
    said = workshop.retl("sync", "--output", "json")
    ends = {one["sync"]: one["error"]["code"] for one in said.document["syncs"]}
    assert (said.code, ends, len(api.users)) == (
        3,
        {"a_tool": "STATE_BEHIND", "users": "STATE_BEHIND"},
        ROWS,
    )
    assert workshop.retl("sync", "--accept", "STATE_BEHIND").code == 0
    assert len(api.users) == ROWS + 1


def test_a_watch_lets_those_look_first_that_can_tell_a_ledger_that_is_too_old(
    workshop: Workshop, api: Api, postgres: Database
) -> None:
    workshop.use(postgres=postgres)
    workshop.write("retl.yml", CONNECTION)
    workshop.sync("a_blind", **APPEND, when="{every: 1h}")
    workshop.sync("users", **SEEING, when="{every: 1h}")
    state = workshop.folder / ".retl"
    assert workshop.retl("sync").code == 0
    shutil.copytree(state, workshop.folder / "kept")
    workshop.warehouse("INSERT INTO users VALUES (31, 'u31@example.com', 1)")
    assert workshop.retl("sync").code == 0
    shutil.rmtree(state)
    shutil.copytree(workshop.folder / "kept", state)
    with inprocess.own_state(), watched(workshop) as made:
        for name in ("a_blind", "users", "a_blind"):
            made.watch.ask(name)
        made.turn()
        assert made.statuses() == [("users", "REFUSED")]
        made.turn()
        made.watch.ask("a_blind")
        made.turn()
        assert made.statuses()[1:] == [("a_blind", "REFUSED")] * 2
        assert len(api.events) == ROWS + 1
        assert workshop.retl("state", "rebuild", "users", "--yes").code == 0
        assert workshop.retl("state", "adopt", "a_blind", "--yes").code == 0
        for name in ("users", "a_blind"):
            made.watch.ask(name)
        made.turn()
        assert set(made.statuses()[3:]) == {("users", "SUCCESS"), ("a_blind", "SUCCESS")}
    assert len(api.events) == ROWS + 1
