"""What people meet on their first day: one sentence for one mistake, and a way on in each."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from retl.cli.output import Table
from retl.cli.running import summary_pieces
from retl.ledger.breakers import BreakerRow
from retl.observe.mask import MASK
from retl.observe.summary import Counts, Summary
from tests.commands import Workshop
from tests.servers import RedisServer


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.sync("users")
    made.sync("others")
    return made


@pytest.mark.parametrize(
    ("on", "said"),
    [
        ("[failur]", "did you mean 'failure'?"),
        ("[{reject: {rate: 0.1}}]", "did you mean 'rejects'?"),
        ("[]", "at least 1 item"),
    ],
)
def test_a_wrong_event_of_an_alert_is_one_error(workshop: Workshop, on: str, said: str) -> None:
    workshop.write("retl.yml", f"alerts: [{{to: {{webhook: 'https://example.com/x'}}, on: {on}}}]\n")
    found = workshop.retl("validate")
    assert (found.code, found.err.count("error:")) == (2, 1), found.err
    assert said in found.err


def test_a_number_of_deletes_is_for_one_sync(workshop: Workshop) -> None:
    """Any other sync would be refused for not deleting that many."""
    for command in ("sync", "plan"):
        said = workshop.retl(command, "--allow-deletes", "3")
        assert (said.code, "name it: `retl sync SYNC --allow-deletes 3`" in said.err) == (2, True)


def test_a_plan_that_is_not_there_is_no_wrong_plan(workshop: Workshop) -> None:
    said = workshop.retl("apply", "plan.json")
    assert (said.code, "there is no file plan.json" in said.err) == (2, True)
    said = workshop.retl("plan", "--out", "plan.json")
    assert (said.code, "name it: `retl plan SYNC --out FILE`" in said.err) == (2, True)


def test_an_address_of_the_state_with_a_variable_in_it_is_explained(workshop: Workshop) -> None:
    said = workshop.retl("status", RETL_STATE_URL="${NEW_STATE_URL}")
    assert (said.code, "`state: {url: …}` in retl.yml, which fills in variables" in said.err) == (2, True)


def test_each_reason_of_rejects_is_one_line_with_its_number_and_first_keys() -> None:
    null = {"key": None, "stage": "key", "code": "KEY_NULL", "reason": "a key column is NULL"}
    high = {"stage": "contract", "code": "RANGE", "reason": "spend is below 0"}
    other = {"key": "7", "stage": "contract", "code": "NULL_VALUE", "reason": "amount is NULL"}
    rejects: list[dict[str, Any]] = [null, null, *({"key": str(n), **high} for n in range(11, 16)), other]
    run = Summary("u", "r", "SUCCESS_WITH_REJECTS", 3, counts=Counts(read=90, rejected=30), rejects=rejects)
    document = run.document()
    pieces = summary_pieces([document])
    (table,) = [one for one in pieces if isinstance(one, Table) and "reason" in one.headers]
    assert table.headers == ("rows", "stage", "code", "reason", "first keys")
    assert table.rows == [
        (5, "contract", "RANGE", "spend is below 0", "11, 12, 13, …"),
        (2, "key", "KEY_NULL", "a key column is NULL", ""),
        (1, "contract", "NULL_VALUE", "amount is NULL", "7"),
    ]
    assert table.title == "rejects (8 of 30 rows):"
    assert "`retl rejects u` lists them" in pieces
    assert [one["key"] for one in document["rejects"]] == [one["key"] for one in rejects]


def test_keys_of_rejects_that_are_hidden_are_said_once() -> None:
    alike = {"key": MASK, "stage": "contract", "code": "RANGE", "reason": "spend is below 0"}
    run = Summary("u", "r", "SUCCESS_WITH_REJECTS", 3, counts=Counts(rejected=3), rejects=[alike] * 3)
    (table,) = [
        one for one in summary_pieces([run.document()]) if isinstance(one, Table) and "reason" in one.headers
    ]
    assert table.rows == [(3, "contract", "RANGE", "spend is below 0", MASK)]


def test_one_row_that_waits_is_one_row() -> None:
    said = summary_pieces([Summary("u", "r", "FAILED", 1, counts=Counts(read=1, not_attempted=1)).document()])
    assert "1 row was not attempted" in said


@pytest.mark.parametrize(("failures", "pause"), [(4, 0), (5, 10), (10, 20), (29, 50), (30, 60), (500, 60)])
def test_a_connection_that_failed_once_is_used_again_soon(failures: int, pause: float) -> None:
    """Who has just corrected an address waits ten seconds; a dead target is asked once a minute."""
    now = datetime.now(UTC)
    breaker = BreakerRow("hook", failures, now, "HTTP_UNREACHED")
    assert breaker.closes(now) == pause
    assert breaker.closes(now + timedelta(seconds=pause)) == 0
    assert breaker.closes(now - timedelta(seconds=5)) == (pause + 5 if pause else 0), (
        "hosts differ by seconds"
    )
    assert breaker.closes(now - timedelta(days=2)) == 0, (
        "a clock that was set back makes nobody wait for days"
    )


def test_the_log_of_all_syncs_says_to_which_object_a_row_went(
    workshop: Workshop, redis_server: RedisServer
) -> None:
    workshop.use(redis=redis_server)
    workshop.json("sync")
    said = workshop.retl("log", "--key", "7").out
    assert ("users:{user_id}" in said, "others:{user_id}" in said) == (True, True)


@pytest.mark.parametrize("kind", ["sqlite", "duckdb"])
@pytest.mark.parametrize("create", ["true", "false"])
def test_a_folder_that_is_not_there_is_found_before_the_first_run(
    workshop: Workshop, kind: str, create: str
) -> None:
    workshop.write("retl.yml", f"connections: {{crm: {{type: {kind}, path: out/of/crm.db}}}}\n")
    workshop.sync("users", destination=f"{{connection: crm, table: users, create: {create}}}")
    folder = workshop.folder / "out" / "of"
    for command in ("check", "plan", "sync"):
        said = workshop.retl(command, "--sync", "users", RETL_LOG_FORMAT="console")
        assert said.code == 1, said.out + said.err
        assert f"there is no folder {folder}" in said.out + said.err, said.out + said.err
        assert f"`mkdir -p {folder}`" in said.out + said.err
    if create == "true":  # what the hint says is enough
        folder.mkdir(parents=True)
        assert workshop.retl("check", "--sync", "users").code == 0
        assert workshop.retl("sync", "--sync", "users").code == 0


def test_a_warehouse_beside_the_project_is_shown_where_it_is(workshop: Workshop) -> None:
    said = workshop.retl("sync", "--dry-run", DUCKDB_PATH="../elsewhere/w.duckdb")
    assert ".." not in said.err
    assert str(workshop.folder.parent / "elsewhere" / "w.duckdb") in said.err


@pytest.mark.parametrize(
    ("part", "written", "code", "column"),
    [
        ("destination", '{type: redis, key: "users:{id}", value: json, ttl: none}', "KEY_TEMPLATE", 33),
        ("destination", "{type: redis, key: s, value: stream, ttl: none}", "STREAM_APPENDS", 43),
        ("deletes", "{delete: true, within: nosuch = 1}", "SCOPE_INVALID", 10),
    ],
)
def test_an_error_points_to_the_line_with_the_mistake(
    workshop: Workshop, part: str, written: str, code: str, column: int
) -> None:
    workshop.sync("users", **{"description": "of the mart", part: written})
    said = workshop.retl("validate", RETL_LOG_FORMAT="console")
    text = (workshop.folder / "syncs" / "users.yml").read_text().splitlines()
    line = next(at for at, one in enumerate(text, 1) if one.startswith(part))
    assert (said.code, code in said.err) == (2, True), said.err
    assert f"syncs/users.yml:{line}:{column}:" in said.err
