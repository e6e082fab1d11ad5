"""Rows in doubt stay in doubt until somebody knows: whatever compacts, moves or adopts state carries them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api import TOKEN, Api, reset
from tests.commands import ROWS, Workshop
from tests.servers import Database

CONNECTION = 'connections: {tool: {type: http, base_url: "${TOOL_URL}", auth: {type: bearer, token: "${TOOL_TOKEN}"}}}\n'
EVENTS = (
    "{connection: tool, insert: {method: POST, path: /v1/events, wrap: events, max_rows: 100, row: {id: $user_id,"
    " attributes: $fields}}, outcome: {ok: [200], rows: all_or_nothing}}"
)
APPEND = {"destination": EVENTS, "write": "append", "first_run": "send", "delivery": "at_most_once"}
DOUBTFUL = 5  # rows of the batch whose answer was lost


@pytest.fixture(params=["sqlite", "postgres"])
def state(request: pytest.FixtureRequest) -> dict[str, str]:
    """Where the ledger is."""
    if request.param == "sqlite":
        return {}
    database: Database = request.getfixturevalue("postgres")
    where = f"{database.host}:{database.port}/{database.dbname}"
    return {"RETL_STATE_URL": f"postgresql://{database.user}:{database.password}@{where}"}


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as running:
        yield running


@pytest.fixture
def workshop(tmp_path: Path, api: Api) -> Workshop:
    """A project with `events`, which adds rows to a list of the API."""
    made = Workshop(tmp_path / "project", {"TOOL_URL": api.url, "TOOL_TOKEN": TOKEN})
    made.write("retl.yml", CONNECTION)
    made.sync("events", **APPEND, batch="{rows: 5}")
    return made


def run(workshop: Workshop, *words: str, code: int = 0) -> dict[str, Any]:
    said = workshop.retl("sync", *words, "--output", "json")
    assert said.code == code, said.out + said.err
    (found,) = said.document["syncs"]
    return dict(found)


def doubt(workshop: Workshop, api: Api, *, applied: bool) -> None:
    """A run whose second batch of five gets no answer."""
    api.faults.extend([lambda _: False, reset(applied=applied)])
    done = run(workshop, code=1)
    assert (done["in_doubt"], done["error"]["code"]) == (DOUBTFUL, "IN_DOUBT")


def in_doubt(workshop: Workshop, *words: str) -> int:
    found = workshop.json("resolve", *words)["in_doubt"]
    return sum(one["rows"] for one in found)


def ids(api: Api) -> list[int]:
    return sorted(event["id"] for event in api.events)


@pytest.mark.parametrize("applied", [True, False])
def test_a_run_that_compacts_leaves_what_is_in_doubt_to_be_resolved(
    workshop: Workshop, api: Api, state: dict[str, str], applied: bool
) -> None:
    workshop.environment |= state
    doubt(workshop, api, applied=applied)
    new = ", ".join(f"({n}, 'new', 1)" for n in range(1001, 1101))
    workshop.warehouse(f"INSERT INTO users VALUES {new}")
    assert run(workshop, "--where", "user_id > 1000")["inserted"] == 100
    workshop.warehouse("INSERT INTO users VALUES (2000, 'newer', 1)")
    assert run(workshop, "--key", "2000")["inserted"] == 1
    assert in_doubt(workshop) == DOUBTFUL
    assert run(workshop, code=1)["in_doubt"] == DOUBTFUL
    (batch,) = workshop.json("resolve")["in_doubt"]
    assert batch["keys"] == ["6", "7", "8", "9", "10"], "somebody has to look for them in the target"
    answer = "--delivered" if applied else "--not-delivered"
    assert workshop.json("resolve", answer, "--yes")["resolved"] == DOUBTFUL
    assert in_doubt(workshop) == 0
    after = run(workshop)
    assert (after["status"], after["in_doubt"], after["inserted"]) == (
        "SUCCESS",
        0,
        0 if applied else DOUBTFUL,
    )
    assert ids(api) == [*range(1, ROWS + 1), *range(1001, 1101), 2000]
    assert run(workshop)["unchanged"] == ROWS + 101
    decided = next(one for one in workshop.json("runs")["runs"] if one["purpose"] == "resolve")
    assert decided["status"] == "SUCCESS"
    assert workshop.json("log", "verify")["faults"] == []
    assert workshop.json("status")["syncs"][0]["status"] == "SUCCESS"


def test_what_is_in_doubt_outlives_many_runs_and_is_compacted_once_it_is_resolved(
    workshop: Workshop, api: Api
) -> None:
    doubt(workshop, api, applied=True)
    with (workshop.folder / "retl.yml").open("a") as file:  # the history would keep the deltas too
        file.write("defaults: {log: {keep: 1ms}}\n")
    for number in range(1001, 1021):
        workshop.warehouse(f"INSERT INTO users VALUES ({number}, 'new', 1)")
        assert run(workshop, "--key", str(number))["inserted"] == 1
    assert in_doubt(workshop) == DOUBTFUL
    assert len(list((workshop.folder / ".retl/runs").glob("*.delta.parquet"))) == 21
    assert workshop.json("resolve", "--delivered", "--yes")["resolved"] == DOUBTFUL
    workshop.warehouse("INSERT INTO users VALUES (2000, 'newest', 1)")
    assert run(workshop)["inserted"] == 1
    assert len(list((workshop.folder / ".retl/runs").glob("*.delta.parquet"))) <= 1
    assert ids(api) == [*range(1, ROWS + 1), *range(1001, 1021), 2000]
    assert run(workshop)["unchanged"] == ROWS + 21


def test_rows_in_doubt_that_left_the_mart_are_still_in_doubt_when_they_return(
    workshop: Workshop, api: Api
) -> None:
    doubt(workshop, api, applied=True)
    workshop.warehouse("CREATE TABLE away AS FROM users WHERE user_id <= 10")
    workshop.warehouse("DELETE FROM users WHERE user_id <= 10")
    new = ", ".join(f"({n}, 'new', 1)" for n in range(1001, 1101))
    workshop.warehouse(f"INSERT INTO users VALUES {new}")
    assert run(workshop)["inserted"] == 100
    assert in_doubt(workshop) == DOUBTFUL
    workshop.warehouse("INSERT INTO users FROM away")
    assert run(workshop, code=1)["in_doubt"] == DOUBTFUL
    assert workshop.json("resolve", "--delivered", "--yes")["resolved"] == DOUBTFUL
    assert run(workshop)["unchanged"] == ROWS + 100
    assert ids(api) == [*range(1, ROWS + 1), *range(1001, 1101)]


def test_a_renamed_sync_keeps_what_is_in_doubt_and_its_former_name_can_be_resolved(
    workshop: Workshop, api: Api
) -> None:
    doubt(workshop, api, applied=True)
    (workshop.folder / "syncs/events.yml").rename(workshop.folder / "syncs/facts.yml")
    assert in_doubt(workshop, "--sync", "events") == DOUBTFUL
    assert workshop.retl("state", "mv", "events", "facts", "--yes").code == 0
    assert in_doubt(workshop) == DOUBTFUL
    assert workshop.json("resolve", "--sync", "facts", "--delivered", "--yes")["resolved"] == DOUBTFUL
    assert run(workshop)["unchanged"] == ROWS
    assert ids(api) == list(range(1, ROWS + 1))


def test_state_is_not_moved_over_batches_of_the_other_name(workshop: Workshop, api: Api) -> None:
    doubt(workshop, api, applied=True)
    workshop.sync("facts", **APPEND | {"destination": EVENTS.replace("/events", "/events?of=facts")})
    workshop.write("syncs/events.yml", (workshop.folder / "syncs/facts.yml").read_text())
    refused = workshop.retl("state", "mv", "facts", "events", "--yes")
    assert refused.code == 2
    workshop.sync("facts", **APPEND | {"batch": "{rows: 5}"})
    (workshop.folder / "syncs/events.yml").unlink()
    api.faults.append(reset(applied=False))
    assert workshop.retl("sync", "--accept", "ORPHANED_STATE").code == 1
    refused = workshop.retl("state", "mv", "events", "facts", "--yes")
    assert (refused.code, "STATE_EXISTS" in refused.err) == (2, True)


def test_what_is_in_doubt_at_a_former_object_is_reached_however_long_ago_it_was(
    workshop: Workshop, api: Api
) -> None:
    doubt(workshop, api, applied=True)
    workshop.sync("events", **APPEND | {"destination": EVENTS.replace("/events,", "/users/batch,")})
    assert run(workshop, "--limit", "1", code=1)["status"]
    assert DOUBTFUL in {
        one["rows"] for one in workshop.json("resolve")["in_doubt"] if "/events" in one["object"]
    }


@pytest.mark.parametrize("applied", [True, False])
def test_adopting_keeps_rows_in_doubt_in_doubt(workshop: Workshop, api: Api, applied: bool) -> None:
    doubt(workshop, api, applied=applied)
    workshop.warehouse("INSERT INTO users VALUES (1001, 'taken as delivered', 1)")
    adopted = workshop.retl("state", "adopt", "events", "--yes", "--output", "json")
    (found,) = adopted.document["syncs"]
    assert (adopted.code, found["skipped"], found["in_doubt"]) == (1, 1, DOUBTFUL)
    assert in_doubt(workshop) == DOUBTFUL
    answer = "--delivered" if applied else "--not-delivered"
    assert workshop.json("resolve", answer, "--yes")["resolved"] == DOUBTFUL
    assert run(workshop)["in_doubt"] == 0
    assert ids(api) == list(range(1, ROWS + 1))
    assert run(workshop)["unchanged"] == ROWS + 1


def test_adopting_leaves_rejected_rows_due_and_changes_nothing_if_the_mart_cannot_be_read(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.use(postgres=postgres)
    (workshop.folder / "syncs/events.yml").unlink()
    with postgres.connect() as connection:
        connection.execute("CREATE TABLE u (user_id bigint PRIMARY KEY, email text CHECK (email <> 'bad'), spend numeric(12,2))")  # fmt: skip
    workshop.warehouse("UPDATE users SET email = 'bad' WHERE user_id = 7")
    workshop.sync("users", destination="{type: postgres, table: u}")
    assert run(workshop)["rejected"] == 1
    mart = workshop.folder / "data/warehouse.duckdb"
    mart.rename(mart.with_suffix(".away"))
    assert workshop.retl("state", "adopt", "users", "--yes").code == 1
    mart.with_suffix(".away").rename(mart)
    assert workshop.json("state")["checkpoints"][0]["read_rows"] == ROWS
    adopted = workshop.json("state", "adopt", "users", "--yes")["syncs"][0]
    assert (adopted["skipped"], adopted["not_attempted"]) == (ROWS - 1, 1)
    assert [one["key"] for one in workshop.json("rejects")["rejects"]] == ["7"]
    workshop.warehouse("UPDATE users SET email = 'good' WHERE user_id = 7")
    healed = run(workshop)
    assert (healed["inserted"], healed["unchanged"]) == (1, ROWS - 1)
    assert workshop.json("rejects")["rejects"] == []


def test_forgetting_state_says_how_many_rows_are_in_doubt(workshop: Workshop, api: Api) -> None:
    doubt(workshop, api, applied=True)
    asked = workshop.retl("state", "reset", "events")
    assert f"{DOUBTFUL} rows in doubt" in asked.err
