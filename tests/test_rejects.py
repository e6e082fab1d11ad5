"""Rejected rows: counted as new once, kept only where the sync asks for it, and forgotten again."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from retl.ledger import open_ledger
from tests.commands import ROWS, Workshop
from tests.servers import Database, RedisServer

CONTRACT = (
    "{user_id: {type: integer}, email: {type: string, sensitive: true},"
    " spend: {type: decimal, max_digits: 12, decimal_places: 2, le: 25}}"
)
LENIENT = "{max_reject_rate: 0.9}"
TABLE = "{type: postgres, table: crm.users, create: true}"
CANARY = "canary-of-the-tests"


@pytest.fixture(params=["sqlite", "postgres"])
def workshop(
    request: pytest.FixtureRequest, tmp_path: Path, redis_server: RedisServer, postgres: Database
) -> Workshop:
    """A project whose ledger is a file, or on a server."""
    made = Workshop(tmp_path / "project")
    made.use(redis=redis_server, postgres=postgres)
    if request.param == "postgres":
        made.environment["RETL_STATE_URL"] = postgres.url
    return made


def run(workshop: Workshop, *words: str) -> dict[str, Any]:
    (found,) = workshop.retl("sync", *words, "--output", "json").document["syncs"]
    return dict(found)


def listed(workshop: Workshop) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = workshop.json("rejects")["rejects"]
    return found


def stored(workshop: Workshop) -> list[str | None]:
    """The payloads of all rejects in any state, as the ledger has them."""
    url = workshop.environment.get("RETL_STATE_URL", "file:.retl")
    ledger = open_ledger(url, workshop.folder, environment=None, create=False)
    try:
        states = ("open", "applied", "withdrawn", "dismissed")
        return [one.payload for state in states for one in ledger.rejects(state=state)]
    finally:
        ledger.close()


# --- the rejected row itself


def test_no_rejected_row_is_kept_unless_the_sync_asks_for_it(workshop: Workshop) -> None:
    workshop.sync("users", contract=CONTRACT, guards=LENIENT)
    assert run(workshop)["rejected"] == 5
    assert {one["payload"] for one in listed(workshop)} == {None}
    assert set(stored(workshop)) == {None}


def test_a_rejected_row_is_kept_with_its_sensitive_and_masked_columns_hidden(workshop: Workshop) -> None:
    workshop.warehouse(f"ALTER TABLE users ADD COLUMN note VARCHAR; UPDATE users SET note = '{CANARY}'")
    contract = CONTRACT.replace("}}", "}, note: {type: string}}")
    workshop.sync("users", contract=contract, guards=LENIENT, rejects="{payload: true, mask: [note]}")
    assert run(workshop)["rejected"] == 5
    (last,) = [one for one in listed(workshop) if one["key"] == "30"]
    assert last["payload"] == {"user_id": 30, "email": "***", "spend": 30.0, "note": "***"}
    (revealed,) = [one for one in workshop.json("rejects", "--reveal")["rejects"] if one["key"] == "30"]
    assert revealed["payload"] == last["payload"]
    said = workshop.retl("rejects")
    assert '"spend": 30.0' in said.out
    (row,) = workshop.json("explain", "users", "--key", "30")["rows"]
    assert row["reject"]["payload"] == last["payload"]
    assert "30.00" in str(stored(workshop))
    assert not {CANARY, "u30@example.com"} & set(str(stored(workshop)).split('"'))


def test_a_column_that_became_sensitive_is_masked_in_what_was_kept_before(workshop: Workshop) -> None:
    workshop.sync("users", contract=CONTRACT, guards=LENIENT, rejects="{payload: true}")
    run(workshop)
    workshop.sync("users", contract=CONTRACT, guards=LENIENT, rejects="{payload: true, mask: [spend]}")
    assert {one["payload"]["spend"] for one in listed(workshop)} == {"***"}


def test_what_is_kept_is_exact(workshop: Workshop) -> None:
    workshop.warehouse(
        "CREATE TABLE odd AS SELECT i AS id, CASE i WHEN 1 THEN 'NaN'::DOUBLE ELSE '-inf'::DOUBLE END AS f,"
        " 12345678901234567890123456.10::DECIMAL(38, 2) AS d, 9007199254740993 AS n,"
        " TIMESTAMP '2026-01-02 03:04:05.000006' AS t, TIMESTAMPTZ '2026-01-02 03:04:05+02' AS z,"
        " ['a\"b', NULL] AS l, '{\"x\": 1.10}'::JSON AS j, 'ü' || chr(10) || chr(0) AS s, NULL::DATE AS nothing,"
        " 1.005::DECIMAL(9, 3) AS finer FROM range(1, 3) r(i)"
    )
    contract = (
        "{id: {type: integer}, f: {type: float}, d: {type: decimal, max_digits: 38, decimal_places: 2},"
        " n: {type: integer}, t: {type: timestamp}, z: {type: timestamptz}, l: {type: list, items: string},"
        " j: {type: json}, s: {type: string}, nothing: {type: date, nullable: true},"
        " finer: {type: decimal, max_digits: 9, decimal_places: 2}}"
    )
    workshop.sync(
        "odd",
        source="{table: odd}",
        key="[id]",
        contract=contract,
        destination='{type: redis, key: "odd:{id}", value: json, ttl: none}',
        guards="{max_reject_rate: 1}",
        rejects="{payload: true}",
    )
    assert run(workshop)["rejected"] == 2
    texts = sorted(filter(None, stored(workshop)))
    first = json.loads(texts[0], parse_float=str)
    assert first == {
        "id": 1,
        "f": "nan",
        "d": "12345678901234567890123456.10",
        "n": 9007199254740993,
        "t": "2026-01-02T03:04:05.000006Z",
        "z": "2026-01-02T01:04:05Z",
        "l": ['a"b', None],
        "j": {"x": "1.10"},
        "s": "ü\n\0",
        "nothing": None,
        "finer": "1.005",
    }
    assert '"d":12345678901234567890123456.10' in texts[0], "a number, not a text"
    assert json.loads(texts[1])["f"] == "-inf"
    assert listed(workshop)[0]["payload"]["d"] == "12345678901234567890123456.10", "no float could hold it"


def test_a_row_the_model_would_have_edited_is_kept_as_the_mart_has_it(workshop: Workshop) -> None:
    workshop.write(
        "own.py",
        "from pydantic import BaseModel, field_validator\n"
        "class User(BaseModel):\n"
        "    user_id: int\n    email: str\n    spend: float\n"
        "    @field_validator('email')\n    @classmethod\n"
        "    def upper(cls, v): return v.upper()\n"
        "    @field_validator('spend')\n    @classmethod\n"
        "    def small(cls, v):\n        assert v < 30\n        return v\n",
    )
    workshop.sync(
        "users",
        source="{sql: \"SELECT user_id, email, CASE user_id WHEN 29 THEN 'inf'::DOUBLE ELSE spend END AS spend FROM users\"}",
        contract='{model: "own:User", edits: true}',
        guards=LENIENT,
        rejects="{payload: true}",
    )
    assert run(workshop)["rejected"] == 2
    kept = {one["code"]: one["payload"] for one in workshop.json("rejects", "--reveal")["rejects"]}
    assert kept["UNREPRESENTABLE"] == {"user_id": 29, "email": "u29@example.com", "spend": "inf"}
    assert kept["MODEL"] == {"user_id": 30, "email": "u30@example.com", "spend": 30.0}


@pytest.mark.parametrize(
    ("contract", "good", "bad"),
    [
        ("{type: uuid, nullable: true}", "NULL::VARCHAR", "'no uuid'"),
        ("{type: decimal, max_digits: 9, decimal_places: 2, nullable: true}", "1.0::DOUBLE", "1.004::DOUBLE"),
    ],
)
def test_a_value_whose_cast_is_what_was_delivered_is_a_reject(
    workshop: Workshop, contract: str, good: str, bad: str
) -> None:
    workshop.sync("users", contract=f"{{user_id: {{type: integer}}, x: {contract}}}", guards=LENIENT)
    workshop.warehouse(f"CREATE OR REPLACE TABLE users AS SELECT 1 AS user_id, {good} AS x")
    assert run(workshop)["inserted"] == 1
    workshop.warehouse(f"UPDATE users SET x = {bad}")
    assert [run(workshop)["rejected"] for _ in range(2)] == [1, 1]
    workshop.warehouse(f"UPDATE users SET x = {good}")
    assert run(workshop)["unchanged"] == 1
    assert listed(workshop) == []


def test_a_row_the_target_refused_is_kept_too(workshop: Workshop, postgres: Database) -> None:
    with postgres.connect() as connection:
        connection.execute("CREATE SCHEMA crm")
        connection.execute(
            "CREATE TABLE crm.users (user_id bigint PRIMARY KEY, email text, spend numeric(12,2) CHECK (spend <> 7))"
        )
    workshop.sync("users", destination=TABLE, rejects="{payload: true}")
    assert run(workshop)["rejected"] == 1
    (one,) = listed(workshop)
    assert (one["stage"], one["payload"]) == (
        "target",
        {"user_id": 7, "email": "u7@example.com", "spend": 7.0},
    )


def test_a_kept_row_is_forgotten_in_time_and_not_kept_again_until_it_changes(workshop: Workshop) -> None:
    workshop.warehouse(f"UPDATE users SET email = '{CANARY}' WHERE user_id = 30")
    contract = CONTRACT.replace(", sensitive: true", "")
    workshop.sync("users", contract=contract, guards=LENIENT, rejects="{payload: true, retain: 2s}")
    run(workshop)
    assert CANARY in str(stored(workshop))
    time.sleep(2.1)
    assert run(workshop)["rejected"] == 5
    assert set(stored(workshop)) == {None}
    assert len(listed(workshop)) == 5, "they are still rejected"
    assert run(workshop)["rejected"] == 5
    assert set(stored(workshop)) == {None}
    state = workshop.folder / ".retl" / "ledger.db"
    assert not state.exists() or CANARY.encode() not in state.read_bytes(), "it is in the file still"
    workshop.warehouse("UPDATE users SET email = 'changed' WHERE user_id = 30")
    run(workshop)
    assert [one["payload"]["email"] for one in listed(workshop) if one["payload"]] == ["changed"]


@pytest.mark.parametrize("end", ["applied", "withdrawn", "dismissed", "no longer asked for", "refused"])
def test_a_kept_row_goes_when_its_reject_is_over(workshop: Workshop, end: str) -> None:
    workshop.sync("users", contract=CONTRACT, guards=LENIENT, rejects="{payload: true}")
    run(workshop)
    assert None not in stored(workshop)
    if end == "applied":
        workshop.warehouse("UPDATE users SET spend = 1")
        assert run(workshop)["rejected"] == 0
    elif end == "withdrawn":
        workshop.warehouse("DELETE FROM users WHERE spend > 25")
        run(workshop)
    elif end == "dismissed":
        workshop.json("rejects", "dismiss", "--sync", "users", "--all", "--yes")
        assert set(stored(workshop)) == {None}
        assert run(workshop)["rejected"] == 5
    else:
        workshop.sync("users", contract=CONTRACT, guards=LENIENT if end != "refused" else "{min_rows: 99}")
        assert run(workshop)["exit_code"] == (3 if end == "refused" else 0)
    assert set(stored(workshop)) == {None}


@pytest.mark.parametrize(
    ("rejects", "says"),
    [
        ("{mask: [email]}", "payload: true"),
        ("{payload: true, mask: [emial]}", "emial"),
        ("{payload: true, retain: soon}", "duration"),
    ],
)
def test_what_cannot_be_meant_is_a_definition_error(workshop: Workshop, rejects: str, says: str) -> None:
    workshop.sync("users", contract=CONTRACT, rejects=rejects)
    said = workshop.retl("validate")
    assert said.code == 2
    assert says in said.err
    assert "syncs/users.yml:" in said.err


# --- what counts as new


def test_rows_without_a_key_are_rejects_of_their_own_and_new_only_once(workshop: Workshop) -> None:
    workshop.warehouse("UPDATE users SET user_id = NULL WHERE user_id <= 3")
    workshop.sync("users", guards="{max_reject_rate: 0.1}", rejects="{payload: true}")
    assert run(workshop)["status"] == "SUCCESS_WITH_REJECTS"
    assert sorted(one["payload"]["email"][:2] for one in listed(workshop)) == ["u1", "u2", "u3"]
    workshop.warehouse("UPDATE users SET user_id = NULL WHERE user_id = 4")
    again = run(workshop)
    assert (again["status"], again["rejected"]) == ("SUCCESS_WITH_REJECTS", 4)
    assert sorted(one["attempts"] for one in listed(workshop)) == [1, 2, 2, 2]
    workshop.warehouse("DELETE FROM users WHERE user_id IS NULL AND email LIKE 'u1@%'")
    assert run(workshop)["rejected"] == 3
    assert len(listed(workshop)) == 3
    workshop.sync("users", guards="{max_reject_rate: 0.04}")
    workshop.warehouse("UPDATE users SET email = 'other' WHERE user_id IS NULL AND email LIKE 'u2@%'")
    assert run(workshop, "--dry-run")["status"] == "SUCCESS_WITH_REJECTS", "1 of 29 is new"
    workshop.warehouse("UPDATE users SET email = 'others' WHERE user_id IS NULL AND email LIKE 'u3@%'")
    assert run(workshop, "--dry-run")["guards"][0]["code"] == "REJECT_RATE"


def test_a_refusal_for_new_rejects_says_how_many_were_known(workshop: Workshop) -> None:
    workshop.warehouse("UPDATE users SET user_id = NULL WHERE user_id <= 3")
    workshop.sync("users", guards="{max_reject_rate: 0.1}")
    assert run(workshop)["status"] == "SUCCESS_WITH_REJECTS", "3 of 30 is the limit"
    workshop.warehouse("UPDATE users SET user_id = NULL WHERE user_id <= 8")
    again = run(workshop)
    assert (again["status"], again["rejected"]) == ("REFUSED", 8)
    assert again["guards"][0]["message"] == (
        "5 of 30 rows newly break the contract or have no usable key, more than max_reject_rate (0.1): KEY_NULL;"
        " 3 more were rejects before and do not count"
    )
    plan = workshop.retl("plan", "--output", "json").document
    assert "5 new of 30" in json.dumps(plan)


def test_rows_of_one_key_are_one_reject_and_new_only_once(workshop: Workshop) -> None:
    workshop.warehouse("UPDATE users SET user_id = 1 WHERE user_id <= 3")
    workshop.sync("users", guards="{max_reject_rate: 0.1}")
    assert run(workshop)["status"] == "SUCCESS_WITH_REJECTS"
    workshop.sync("users", guards="{max_reject_rate: 0.0}")
    again = run(workshop)
    assert (again["status"], again["rejected"]) == ("SUCCESS_WITH_REJECTS", 3)
    (one,) = listed(workshop)
    assert (one["key"], one["code"], one["attempts"]) == ("1", "KEY_DUPLICATE", 2)
    workshop.warehouse("UPDATE users SET email = 'another' WHERE email = 'u2@example.com'")
    assert run(workshop)["guards"][0]["code"] == "REJECT_RATE"


def test_under_a_watermark_a_row_without_a_key_is_owed_until_it_is_mended(workshop: Workshop) -> None:
    workshop.warehouse("ALTER TABLE users ADD COLUMN seen TIMESTAMP")
    workshop.warehouse("UPDATE users SET seen = TIMESTAMP '2026-01-01' + INTERVAL (user_id) HOUR")
    workshop.warehouse(
        "ALTER TABLE users ALTER user_id TYPE VARCHAR; UPDATE users SET user_id = ' ' WHERE user_id = '2'"
    )
    workshop.warehouse("UPDATE users SET user_id = NULL WHERE user_id = '3'")
    workshop.sync("users", changes="{watermark: seen}", guards="{max_reject_rate: 0.1}")
    assert run(workshop)["rejected"] == 2
    workshop.sync("users", changes="{watermark: seen}", guards="{max_reject_rate: 0}")
    again = run(workshop)
    assert (again["rejected"], again["status"], len(listed(workshop))) == (2, "SUCCESS_WITH_REJECTS", 2)
    workshop.warehouse("UPDATE users SET user_id = '3' WHERE user_id IS NULL")
    workshop.warehouse("UPDATE users SET user_id = '2' WHERE user_id = ' '")
    healed = run(workshop)
    assert (healed["inserted"], healed["rejected"], listed(workshop)) == (2, 0, [])


def test_a_row_without_a_key_can_be_dismissed(workshop: Workshop) -> None:
    workshop.warehouse("UPDATE users SET user_id = NULL WHERE user_id <= 2")
    workshop.sync("users", guards=LENIENT)
    run(workshop)
    assert workshop.json("rejects", "dismiss", "--sync", "users", "--key", "")["dismissed"] == 2
    assert run(workshop)["rejected"] == 2
    assert listed(workshop) == []
    assert run(workshop)["read"] == ROWS
