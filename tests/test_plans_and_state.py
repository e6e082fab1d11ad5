"""What retl believes, and who may change it: plans as artifacts, watermarks, lost targets and states, doubt."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest

from retl.errors import DefinitionError
from retl.run import plan_file
from tests.clock import ahead
from tests.commands import ROWS, Workshop
from tests.servers import Database, RedisServer

TABLE = "{type: postgres, table: crm.users, create: true}"


@pytest.fixture
def workshop(tmp_path: Path, postgres: Database) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.use(postgres=postgres)
    return made


def only(said: Any) -> dict[str, Any]:
    (found,) = said["syncs"]
    return dict(found)


def run(workshop: Workshop, *words: str, **more: str) -> dict[str, Any]:
    """One sync's summary, whatever its exit code."""
    return only(workshop.retl("sync", *words, "--output", "json", **more).document)


def column(postgres: Database, sql: str) -> list[Any]:
    with postgres.connect() as connection:
        return [row[0] for row in connection.execute(sql).fetchall()]


# --- plan and apply


def test_a_plan_is_applied_exactly_and_once(workshop: Workshop, postgres: Database) -> None:
    workshop.sync("users", destination=TABLE)
    assert workshop.retl("plan", "--sync", "users", "--out", "first.plan").code == 0
    assert (workshop.folder / "first.plan").stat().st_mode & 0o077 == 0
    assert b"example.com" not in (workshop.folder / "first.plan").read_bytes()
    done = only(workshop.json("apply", "first.plan"))
    assert (done["status"], done["inserted"]) == ("SUCCESS", ROWS)
    assert workshop.json("show")["purpose"] == "apply"
    again = workshop.retl("apply", "first.plan", "--output", "json")
    assert again.code == 3
    assert only(again.document)["error"]["code"] == "PLAN_MOVED"
    spent = only(again.document)["error"]
    assert f"applied already, by run {done['run_id']}, which ended as SUCCESS" in spent["message"]
    assert "`retl sync users` sends it" in spent["hint"]
    assert "--out" not in spent["hint"]


def test_a_plan_is_refused_when_another_run_came_first(workshop: Workshop, postgres: Database) -> None:
    workshop.sync("users", destination=TABLE)
    workshop.retl("plan", "--sync", "users", "--out", "first.plan")
    workshop.json("sync", "users", "--limit", "1")
    error = only(workshop.retl("apply", "first.plan", "--output", "json").document)["error"]
    assert "a run has started since then" in error["message"]
    assert "`retl plan users --out FILE`" in error["hint"]


def test_a_plan_is_refused_when_the_mart_moved(workshop: Workshop, postgres: Database) -> None:
    workshop.sync("users", destination=TABLE)
    workshop.retl("plan", "--sync", "users", "--out", "first.plan")
    workshop.warehouse("UPDATE users SET email = 'new' WHERE user_id = 3")
    refused = workshop.retl("apply", "first.plan", "--output", "json")
    assert refused.code == 3
    assert "the mart changed" in only(refused.document)["error"]["message"]
    assert column(postgres, "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'crm'") == [
        0
    ]


def test_a_plan_killed_half_way_is_spent_and_the_next_sync_carries_on(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.sync("users", destination=TABLE, batch="{rows: 5}")
    workshop.retl("plan", "--sync", "users", "--out", "first.plan")
    assert workshop.process("apply", "first.plan", RETL_CRASH_AT="batch_acknowledged:3").code == -9
    assert workshop.retl("apply", "first.plan").code == 3
    assert run(workshop)["status"] == "SUCCESS"
    assert column(postgres, "SELECT user_id FROM crm.users ORDER BY 1") == list(range(1, ROWS + 1))


NO_PLANS: dict[str, Any] = {
    "nothing": b"",
    "an empty object": b"{}",
    "no JSON": b"not a plan",
    "another kind of JSON": b"[1, 2]",
    "binary": bytes(range(256)),
    "another encoding": '{"sync": "\u00fc"}'.encode("utf-16"),
    "much nested": b'{"counts": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
    "more after it": lambda plan: json.dumps(plan).encode() + b" {}",
    "cut": lambda plan: json.dumps(plan).encode()[:-20],
    "an unknown part": lambda plan: {**plan, "more": 1},
    "a missing part": lambda plan: {name: value for name, value in plan.items() if name != "digest"},
    "another format": lambda plan: {**plan, "format": 99},
    "a list as the sync": lambda plan: {**plan, "sync": ["users"]},
    "an unknown selection": lambda plan: {**plan, "selection": {"rows": 3}},
    "a selection of another type": lambda plan: {**plan, "selection": {"limit": "three"}},
    "a limit of nothing": lambda plan: {**plan, "selection": {"limit": 0}},
    "keys that are no texts": lambda plan: {**plan, "selection": {"keys": [{"a": 1}]}},
    "keys that are one text": lambda plan: {**plan, "selection": {"keys": "users"}},
    "a key with NUL": lambda plan: {**plan, "selection": {"keys": ["a\x00b"]}},
    "fingerprints of another type": lambda plan: {**plan, "fingerprints": {"what": 1}},
    "a nested variable": lambda plan: {**plan, "variables": {"day": {"a": [1]}}},
    "deletes below zero": lambda plan: {**plan, "allow_deletes": -1},
}


@pytest.mark.parametrize("kind", NO_PLANS)
def test_what_is_no_plan_is_a_usage_error(tmp_path: Path, kind: str) -> None:
    plan = plan_file.Artifact(
        format=plan_file.FORMAT, version="0", sync="users", environment=None, state_id="", object="redis://",
        fingerprints={}, how="", baseline=[], digest="", counts={}, selection=plan_file.Chosen(), accept=[],
        allow_deletes=None, variables={}, created_at="",
    )  # fmt: skip
    path = tmp_path / "a.plan"
    plan_file.write(plan, path)
    assert plan_file.read(path) == plan
    change = NO_PLANS[kind]
    made = change(json.loads(path.read_bytes())) if callable(change) else change
    path.write_bytes(made if isinstance(made, bytes) else json.dumps(made).encode())
    with pytest.raises(DefinitionError) as caught:
        plan_file.read(path)
    assert caught.value.code == "PLAN_UNREADABLE"


@pytest.mark.parametrize("path", [".", "gone.plan", "/dev/zero"])
def test_a_path_without_a_plan_is_a_usage_error(workshop: Workshop, path: str) -> None:
    workshop.sync("users", destination=TABLE)
    said = workshop.retl("apply", path)
    assert (said.code, "PLAN_UNREADABLE" in said.err) == (2, True), said.err


def test_a_plan_keeps_the_rows_that_it_selects(workshop: Workshop, postgres: Database) -> None:
    workshop.sync("users", destination=TABLE)
    assert workshop.retl("plan", "--sync", "users", "--key", "3", "--key", "5", "--out", "two.plan").code == 0
    assert only(workshop.json("apply", "two.plan"))["inserted"] == 2
    assert column(postgres, "SELECT user_id FROM crm.users ORDER BY 1") == [3, 5]


# --- watermarks


def test_a_watermark_reads_from_the_mark_and_knows_the_boundary_rows(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.warehouse("ALTER TABLE users ADD COLUMN seen TIMESTAMP")
    workshop.warehouse("UPDATE users SET seen = TIMESTAMP '2026-01-01' + INTERVAL (user_id) HOUR")
    workshop.sync("users", destination=TABLE, changes="{watermark: seen}")
    assert run(workshop)["inserted"] == ROWS
    nothing = run(workshop)
    assert (nothing["read"], nothing["unchanged"], nothing["updated"]) == (1, 1, 0)
    # a late row that shares the mark's value is found; an old one, changed behind the mark, is not
    workshop.warehouse(f"INSERT INTO users SELECT 100, 'late', 1, seen FROM users WHERE user_id = {ROWS}")
    workshop.warehouse("UPDATE users SET email = 'behind' WHERE user_id = 1")
    late = run(workshop)
    assert (late["read"], late["inserted"], late["updated"]) == (2, 1, 0)
    assert column(postgres, "SELECT email FROM crm.users WHERE user_id = 1") == ["u1@example.com"]
    # --full looks at everything
    assert run(workshop, "--full")["read"] == ROWS + 1
    assert column(postgres, "SELECT email FROM crm.users WHERE user_id = 1") == ["behind"]


def test_a_watermark_delivers_rows_without_a_cursor_and_looks_back(workshop: Workshop) -> None:
    workshop.warehouse("ALTER TABLE users ADD COLUMN seen TIMESTAMP")
    workshop.warehouse("UPDATE users SET seen = TIMESTAMP '2026-01-01' + INTERVAL (user_id) HOUR")
    workshop.warehouse("UPDATE users SET seen = NULL WHERE user_id = 2")
    workshop.sync("users", destination=TABLE, changes="{watermark: seen, lookback: 3h}")
    assert run(workshop)["inserted"] == ROWS
    workshop.warehouse(f"UPDATE users SET email = 'x' WHERE user_id IN (2, {ROWS - 2})")
    again = run(workshop)
    assert (again["read"], again["updated"]) == (5, 2)


def test_a_row_from_the_future_does_not_hide_tomorrows(workshop: Workshop, postgres: Database) -> None:
    workshop.warehouse("ALTER TABLE users ADD COLUMN seen TIMESTAMP")
    workshop.warehouse("UPDATE users SET seen = TIMESTAMP '2026-01-01' + INTERVAL (user_id) HOUR")
    workshop.warehouse("UPDATE users SET seen = TIMESTAMP '2999-01-01' WHERE user_id = 1")
    workshop.sync("users", destination=TABLE, changes="{watermark: seen}")
    assert run(workshop)["inserted"] == ROWS
    workshop.warehouse("INSERT INTO users VALUES (100, 'tomorrow', 1, TIMESTAMP '2026-06-01')")
    assert run(workshop)["inserted"] == 1


def test_a_refused_row_behind_the_mark_is_still_owed(workshop: Workshop, postgres: Database) -> None:
    workshop.warehouse("ALTER TABLE users ADD COLUMN seen TIMESTAMP")
    workshop.warehouse("UPDATE users SET seen = TIMESTAMP '2026-01-01' + INTERVAL (user_id) HOUR")
    workshop.warehouse("UPDATE users SET spend = -1 WHERE user_id = 1")
    workshop.sync(
        "users",
        destination=TABLE,
        changes="{watermark: seen}",
        contract="{user_id: {type: integer}, email: {type: string}, spend: {type: decimal, max_digits: 12, decimal_places: 2, ge: 0}}",
    )
    assert run(workshop)["rejected"] == 1
    assert run(workshop)["rejected"] == 1
    workshop.warehouse("UPDATE users SET spend = 5 WHERE user_id = 1")
    healed = run(workshop)
    assert (healed["inserted"], healed["rejected"]) == (1, 0)
    assert workshop.json("rejects")["rejects"] == []


def test_rows_that_expire_are_renewed_although_the_watermark_has_passed_them(
    workshop: Workshop, redis_server: RedisServer
) -> None:
    workshop.use(redis=redis_server)
    workshop.warehouse("ALTER TABLE users ADD COLUMN seen TIMESTAMP")
    workshop.warehouse("UPDATE users SET seen = TIMESTAMP '2026-01-01' + INTERVAL (user_id) HOUR")
    workshop.sync(
        "users",
        destination='{type: redis, key: "users:{user_id}", value: json, ttl: 20s}',
        changes="{watermark: seen}",
    )
    assert run(workshop)["inserted"] == ROWS
    assert run(workshop)["unchanged"] == ROWS
    time.sleep(10)
    renewed = run(workshop)
    assert (renewed["refreshed"], renewed["unchanged"], renewed["updated"]) == (ROWS, 0, 0)
    with redis_server.client() as client:
        assert min(client.ttl(key) for key in client.keys("users:*")) > 10


def test_rows_that_a_wrong_clock_confirmed_are_renewed(workshop: Workshop, redis_server: RedisServer) -> None:
    """It was a day ahead and was set back: Redis counts their time from when they were written."""
    workshop.use(redis=redis_server)
    workshop.sync("users", destination='{type: redis, key: "users:{user_id}", value: json, ttl: 1h}')
    assert run(workshop)["inserted"] == ROWS
    ahead(workshop)
    assert run(workshop)["refreshed"] == ROWS
    assert run(workshop)["unchanged"] == ROWS


def test_another_key_accepted_under_a_watermark_sends_what_the_mark_has_passed(
    workshop: Workshop, postgres: Database
) -> None:
    with postgres.connect() as connection:
        connection.execute("CREATE SCHEMA crm")
        connection.execute(
            "CREATE TABLE crm.users (user_id bigint UNIQUE, email text UNIQUE, spend numeric(12,2), seen timestamp)"
        )
    workshop.warehouse("ALTER TABLE users ADD COLUMN seen TIMESTAMP")
    workshop.warehouse("UPDATE users SET seen = TIMESTAMP '2026-01-01' + INTERVAL (user_id) HOUR")
    parts = {"destination": "{type: postgres, table: crm.users}", "changes": "{watermark: seen}"}
    workshop.sync("users", **parts)
    assert run(workshop)["inserted"] == ROWS
    workshop.warehouse("UPDATE users SET spend = 99 WHERE user_id = 1")  # behind the mark
    workshop.sync("users", **parts, key="[email]")
    assert "IDENTITY_CHANGED" in [guard["code"] for guard in run(workshop)["guards"]]
    accepted = run(workshop, "--accept", "IDENTITY_CHANGED")
    assert (accepted["read"], accepted["inserted"], accepted["status"]) == (ROWS, ROWS, "SUCCESS")
    assert column(postgres, "SELECT spend FROM crm.users WHERE user_id = 1") == [99]
    assert run(workshop)["read"] == 1, "the mark is where it was"


def test_a_lookback_reaches_behind_the_mark_and_no_further_than_it_says(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.warehouse("ALTER TABLE users ADD COLUMN seen DATE")
    workshop.warehouse("UPDATE users SET seen = DATE '2026-01-01' + user_id::INTEGER")
    workshop.sync("users", destination=TABLE, changes="{watermark: seen, lookback: 2d}")
    assert run(workshop)["inserted"] == ROWS
    workshop.warehouse(f"UPDATE users SET email = 'late' WHERE user_id IN ({ROWS - 2}, {ROWS - 3})")
    assert run(workshop)["updated"] == 1
    assert column(postgres, "SELECT user_id FROM crm.users WHERE email = 'late'") == [ROWS - 2]


def test_a_far_future_row_is_read_by_every_run_and_sent_when_it_changes(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.warehouse("ALTER TABLE users ADD COLUMN seen TIMESTAMPTZ")
    workshop.warehouse(
        "UPDATE users SET seen = TIMESTAMPTZ '2026-01-01 00:00:00+00' + INTERVAL (user_id) HOUR"
    )
    workshop.warehouse("UPDATE users SET seen = TIMESTAMPTZ '2999-01-01 00:00:00+00' WHERE user_id = 1")
    workshop.sync("users", destination=TABLE, changes="{watermark: seen}")
    assert run(workshop)["inserted"] == ROWS
    assert (run(workshop)["read"], run(workshop)["unchanged"]) == (2, 2)
    workshop.warehouse("UPDATE users SET email = 'changed' WHERE user_id = 1")
    assert run(workshop)["updated"] == 1


def test_a_row_that_lost_its_cursor_is_still_sent_when_it_changes(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.warehouse("ALTER TABLE users ADD COLUMN seen BIGINT; UPDATE users SET seen = user_id")
    workshop.sync("users", destination=TABLE, changes="{watermark: seen}")
    assert run(workshop)["inserted"] == ROWS
    workshop.warehouse("UPDATE users SET seen = NULL, email = 'lost' WHERE user_id = 3")
    lost = run(workshop)
    assert (lost["read"], lost["updated"]) == (2, 1)
    workshop.warehouse("UPDATE users SET seen = NULL")
    assert run(workshop)["updated"] == ROWS - 1
    workshop.warehouse("UPDATE users SET email = 'all without' WHERE user_id = 9")
    assert run(workshop)["updated"] == 1


# --- lost targets, lost state, renamed syncs


@pytest.mark.parametrize("fate", ["TRUNCATE crm.users", "DROP TABLE crm.users"])
def test_an_emptied_target_is_refused_and_full_is_the_answer(
    workshop: Workshop, postgres: Database, fate: str
) -> None:
    workshop.sync("users", destination=TABLE)
    assert run(workshop)["inserted"] == ROWS
    with postgres.connect() as connection:
        connection.execute(fate)
    refused = run(workshop)
    assert (refused["status"], refused["exit_code"]) == ("REFUSED", 3)
    assert refused["guards"][0]["code"] == "TARGET_LOST"
    assert run(workshop, "--full")["status"] == "SUCCESS"
    assert column(postgres, "SELECT count(*) FROM crm.users") == [ROWS]
    assert run(workshop)["unchanged"] == ROWS


def test_a_lost_state_is_refused_once_and_remembered_when_accepted(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.sync("users", destination=TABLE, deletes="delete")
    assert run(workshop)["inserted"] == ROWS
    (workshop.folder / ".retl").rename(workshop.folder / "lost")
    refused = run(workshop)
    assert refused["guards"][0]["code"] == "STATE_LOST"
    workshop.warehouse("DELETE FROM users WHERE user_id = 1")
    accepted = run(workshop, "--accept", "STATE_LOST")
    assert (accepted["status"], accepted["deleted"]) == ("SUCCESS", 0)
    assert run(workshop)["status"] == "SUCCESS"


def test_a_renamed_sync_is_told_how_to_carry_its_state_on(workshop: Workshop, postgres: Database) -> None:
    workshop.sync("users", destination=TABLE)
    assert run(workshop)["inserted"] == ROWS
    (workshop.folder / "syncs/users.yml").rename(workshop.folder / "syncs/people.yml")
    refused = run(workshop)
    assert "ORPHANED_STATE" in [guard["code"] for guard in refused["guards"]]
    assert "retl state mv users people" in json.dumps(refused["guards"])
    assert workshop.retl("state", "mv", "users", "people", "--yes").code == 0
    assert run(workshop)["unchanged"] == ROWS


def test_another_key_is_refused_unless_accepted_and_then_deletes_nothing(
    workshop: Workshop, postgres: Database
) -> None:
    with postgres.connect() as connection:
        connection.execute("CREATE SCHEMA crm")
        connection.execute(
            "CREATE TABLE crm.users (user_id bigint UNIQUE, email text UNIQUE, spend numeric(12,2))"
        )
    table = "{type: postgres, table: crm.users}"
    workshop.sync("users", destination=table, deletes="delete")
    assert run(workshop)["inserted"] == ROWS
    workshop.sync("users", destination=table, deletes="delete", key="[email]")
    refused = run(workshop)
    assert "IDENTITY_CHANGED" in [guard["code"] for guard in refused["guards"]]
    accepted = run(workshop, "--accept", "IDENTITY_CHANGED")
    assert (accepted["status"], accepted["deleted"]) == ("SUCCESS", 0)
    assert column(postgres, "SELECT count(*) FROM crm.users") == [ROWS]


def test_another_table_is_another_baseline_and_deletes_nothing(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.sync("users", destination=TABLE, deletes="delete")
    assert run(workshop)["inserted"] == ROWS
    workshop.sync("users", destination="{type: postgres, table: crm.people, create: true}", deletes="delete")
    workshop.warehouse("DELETE FROM users WHERE user_id < 4")
    moved = run(workshop)
    assert (moved["inserted"], moved["deleted"]) == (ROWS - 3, 0)
    assert any("crm.users: what was delivered there stays" in note for note in moved["notes"])
    assert not [note for note in run(workshop).get("notes", ()) if "another object" in note]
    assert column(postgres, "SELECT count(*) FROM crm.users") == [ROWS]


def test_another_field_sends_every_row_once_and_the_plan_says_why(workshop: Workshop) -> None:
    workshop.sync("users", destination=TABLE)
    assert run(workshop)["inserted"] == ROWS
    workshop.sync("users", destination=TABLE, fields='{"*": "*", origin: {value: warehouse}}')
    planned = only(workshop.json("plan", "--sync", "users"))
    assert planned["updated"] == ROWS
    assert planned["notes"][0] == "what is sent changed (origin: new → string): every row is sent once"
    assert run(workshop)["updated"] == ROWS
    assert run(workshop)["unchanged"] == ROWS


def test_an_option_or_a_transform_that_changes_what_is_sent_is_named(
    workshop: Workshop, redis_server: RedisServer
) -> None:
    workshop.use(redis_server)
    target = '{{type: redis, key: "users:{{user_id}}", value: json, ttl: {ttl}}}'
    workshop.sync("users", destination=target.format(ttl="2d"))
    assert run(workshop)["inserted"] == ROWS
    fields = '{"*": "*", email: {column: email, transform: [lower]}}'
    for changed, parts in (
        ("destination.ttl", {"destination": target.format(ttl="1d")}),
        ("how email is made, destination.ttl", {"destination": target.format(ttl="3d"), "fields": fields}),
    ):
        workshop.sync("users", **parts)
        planned = only(workshop.json("plan", "--sync", "users"))
        assert planned["notes"][0] == f"what is sent changed ({changed}): every row is sent once"
        assert run(workshop)["updated"] == ROWS


def test_another_scale_sends_every_row_once_and_the_plan_names_the_field(
    workshop: Workshop, redis_server: RedisServer
) -> None:
    workshop.use(redis=redis_server)
    workshop.sync("users")
    assert run(workshop)["inserted"] == ROWS
    workshop.warehouse("ALTER TABLE users ALTER spend TYPE DECIMAL(14, 4)")
    planned = only(workshop.json("plan", "--sync", "users"))
    assert planned["updated"] == ROWS
    assert "spend: decimal(12,2) → decimal(14,4)" in planned["notes"][0]


def test_a_tighter_contract_resends_nothing(workshop: Workshop) -> None:
    loose = "{user_id: {type: integer}, email: {type: string}}"
    workshop.sync("users", destination=TABLE, contract=loose)
    assert run(workshop)["inserted"] == ROWS
    workshop.sync("users", destination=TABLE, contract=loose.replace("string", "string, max_length: 40"))
    assert run(workshop)["unchanged"] == ROWS


def test_adopting_takes_the_mart_as_delivered(workshop: Workshop, postgres: Database) -> None:
    with postgres.connect() as connection:
        connection.execute("CREATE SCHEMA crm")
        connection.execute(
            "CREATE TABLE crm.users (user_id bigint PRIMARY KEY, email text, spend numeric(12,2))"
        )
        connection.execute(f"INSERT INTO crm.users SELECT n, 'there', 1 FROM generate_series(1, {ROWS}) AS n")
    workshop.sync(
        "users", destination="{type: postgres, table: crm.users}", first_run="adopt", deletes="delete"
    )
    adopted = run(workshop)
    assert (adopted["status"], adopted["skipped"], adopted["inserted"]) == ("SUCCESS", ROWS, 0)
    workshop.warehouse(
        "UPDATE users SET email = 'new' WHERE user_id = 2; DELETE FROM users WHERE user_id = 9"
    )
    changed = run(workshop)
    assert (changed["updated"], changed["deleted"]) == (1, 0)
    assert column(postgres, "SELECT email FROM crm.users WHERE user_id IN (2, 3) ORDER BY user_id") == [
        "new",
        "there",
    ]


def test_the_way_out_of_a_former_format_delivers_nothing_twice(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.sync("users", destination=TABLE, deletes="delete")
    assert run(workshop)["inserted"] == ROWS
    state = workshop.folder / ".retl"
    with closing(sqlite3.connect(state / "ledger.db")) as ledger, ledger:
        ledger.execute("UPDATE retl_meta SET name = 'schema', value = '3' WHERE name = 'format'")
    for words in (("sync",), ("status",), ("state", "adopt", "users", "--yes")):
        refused = workshop.retl(*words)
        assert (refused.code, "STATE_FORMAT" in refused.err) == (1, True)
        assert "retl state adopt SYNC" in refused.err
    state.rename(workshop.folder / "former state")
    adopted = only(workshop.json("state", "adopt", "users", "--yes"))
    assert (adopted["status"], adopted["skipped"], adopted["inserted"]) == ("SUCCESS", ROWS, 0)
    workshop.warehouse("DELETE FROM users WHERE user_id = 9")
    after = run(workshop)
    assert (after["unchanged"], after["updated"], after["deleted"]) == (ROWS - 1, 0, 0)


def test_a_run_file_of_another_format_stops_the_sync(workshop: Workshop, postgres: Database) -> None:
    workshop.sync("users", destination=TABLE)
    assert run(workshop)["inserted"] == ROWS
    (delta,) = (workshop.folder / ".retl" / "runs").glob("*.delta.parquet")
    copy = f"COPY (FROM read_parquet('{delta}')) TO '{delta}.new' (FORMAT parquet)"
    duckdb.execute(copy)
    Path(f"{delta}.new").replace(delta)
    stopped = run(workshop)
    assert (stopped["status"], stopped["error"]["code"]) == ("FAILED", "STATE_FORMAT")


# --- deletes


def test_a_row_without_a_usable_key_holds_all_deletes_back(workshop: Workshop, postgres: Database) -> None:
    workshop.sync("users", destination=TABLE, deletes="delete")
    assert run(workshop)["inserted"] == ROWS
    workshop.warehouse("UPDATE users SET user_id = NULL WHERE user_id = 4")
    held = run(workshop)
    assert (held["rejected"], held["deleted"], held["deletes"]["not_attempted"]) == (1, 0, 1)
    assert column(postgres, "SELECT count(*) FROM crm.users") == [ROWS]


def test_too_many_deletes_refuse_the_whole_run_until_their_number_is_said(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.sync("users", destination=TABLE, deletes="delete")
    assert run(workshop)["inserted"] == ROWS
    workshop.warehouse(
        "DELETE FROM users WHERE user_id <= 11; UPDATE users SET email = 'new' WHERE user_id = 20"
    )
    refused = run(workshop)
    assert (refused["status"], refused["guards"][0]["code"]) == ("REFUSED", "DELETE_RATE")
    assert column(postgres, "SELECT count(*) FROM crm.users WHERE email = 'new'") == [0]
    assert run(workshop, "--allow-deletes", "10")["status"] == "REFUSED"
    allowed = run(workshop, "--allow-deletes", "11")
    assert (allowed["deleted"], allowed["updated"]) == (11, 1)


def test_a_soft_delete_marks_and_a_returning_row_is_restored(workshop: Workshop, postgres: Database) -> None:
    workshop.sync("users", destination=TABLE, deletes="{set: {status: deleted}, restore: {status: active}}")
    assert run(workshop)["inserted"] == ROWS
    workshop.warehouse("CREATE TABLE kept AS FROM users; DELETE FROM users WHERE user_id = 5")
    assert run(workshop)["deleted"] == 1
    assert column(postgres, "SELECT status FROM crm.users WHERE user_id IN (4, 5) ORDER BY user_id") == [
        "active",
        "deleted",
    ]
    workshop.warehouse("INSERT INTO users FROM kept WHERE user_id = 5")
    assert run(workshop)["inserted"] == 1
    assert column(postgres, "SELECT status FROM crm.users WHERE user_id = 5") == ["active"]


def test_an_empty_mart_is_refused_only_while_something_could_be_deleted(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.warehouse("CREATE TABLE kept AS FROM users; DELETE FROM users")
    workshop.sync("users", destination=TABLE, deletes="delete")
    for words in ((), ("--dry-run",), ("--full",), ()):
        empty = run(workshop, *words)
        assert (empty["status"], empty["read"], empty["exit_code"]) == ("SUCCESS", 0, 0)
    workshop.warehouse("INSERT INTO users FROM kept LIMIT 3")
    assert run(workshop)["inserted"] == 3
    workshop.warehouse("DELETE FROM users")
    refused = run(workshop)
    assert (refused["exit_code"], refused["guards"][0]["code"]) == (3, "EMPTY_SOURCE")
    assert run(workshop, "--accept", "EMPTY_SOURCE")["deleted"] == 3
    assert run(workshop)["status"] == "SUCCESS"


# --- dead targets and doubt


def test_a_dead_connection_is_left_alone_until_it_is_unblocked(
    workshop: Workshop, postgres: Database, redis_server: RedisServer
) -> None:
    workshop.sync("users", destination=TABLE, retry="{attempts: 50, budget: 20s}")
    dead = {"POSTGRES_PORT": "1"}
    first = run(workshop, **dead)
    assert (first["status"], first["exit_code"], first["retries"]) == ("FAILED", 1, 0)
    blocked = workshop.retl("sync", "--output", "json", **dead)
    assert blocked.code == 75
    assert only(blocked.document)["error"]["code"] == "BREAKER_OPEN"
    assert workshop.retl("sync").code == 75
    (one,) = workshop.json("status")["syncs"]
    assert re.match(r"wait [1-6]?[0-9] s, or fix postgres", one["next"])
    unblocked = workshop.json("state", "unblock", "postgres", "--yes")
    assert unblocked["was_blocked"] is True
    assert run(workshop)["status"] == "SUCCESS"


def test_nothing_is_in_doubt_where_evidence_settles_it(workshop: Workshop, postgres: Database) -> None:
    workshop.sync("users", destination=TABLE, write="append", first_run="send", batch="{rows: 5}")
    crashed = workshop.process("sync", RETL_CRASH_AT="batch_intended:3")
    assert crashed.code == -9
    assert workshop.json("resolve")["in_doubt"]
    assert run(workshop)["status"] == "SUCCESS"
    assert workshop.json("resolve")["in_doubt"] == []
    assert column(postgres, "SELECT user_id FROM crm.users ORDER BY 1") == list(range(1, ROWS + 1))


def test_the_ledger_in_postgresql_lets_an_empty_machine_carry_on(
    workshop: Workshop, postgres: Database, tmp_path: Path
) -> None:
    workshop.sync("users", destination=TABLE)
    url = psycopg.conninfo.make_conninfo  # the URL form keeps the password out of the files
    del url
    state = (
        f"postgresql://{postgres.user}:{postgres.password}@{postgres.host}:{postgres.port}/{postgres.dbname}"
    )
    assert run(workshop, RETL_STATE_URL=state)["inserted"] == ROWS
    elsewhere = Workshop(tmp_path / "elsewhere")
    elsewhere.use(postgres=postgres)
    elsewhere.sync("users", destination=TABLE)
    assert run(elsewhere, RETL_STATE_URL=state)["unchanged"] == ROWS
    assert not (elsewhere.folder / ".retl").exists()


# --- what a user's SQL may do


@pytest.mark.parametrize(
    "where",
    [
        "true); COPY (SELECT 1) TO '.retl/runs/x.parquet' (FORMAT parquet); SELECT (1",
        "true); DROP TABLE mart; SELECT (1",
        "no_such_column = 1",
        "user_id =",
    ],
)
def test_a_predicate_is_a_predicate_and_nothing_else(workshop: Workshop, where: str) -> None:
    workshop.sync("users", destination=TABLE)
    said = workshop.retl("sync", "--where", where, "--output", "json")
    assert said.code == 2
    assert only(said.document)["error"]["code"] in ("SQL_NOT_ONE_SELECT", "SQL_SYNTAX", "WHERE_INVALID")
    assert list((workshop.folder / ".retl").rglob("*.parquet")) == []


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM users; DROP TABLE users",
        "COPY users TO 'out.csv'",
        "ATTACH 'other.duckdb'",
        "INSTALL httpfs",
        "CREATE TABLE evil AS SELECT 1",
    ],
)
def test_a_source_is_one_select(workshop: Workshop, sql: str) -> None:
    workshop.sync("users", destination=TABLE, source=json.dumps({"sql": sql}))
    said = workshop.retl("sync")
    assert said.code == 2
    assert "must be exactly one SELECT" in said.err


@pytest.mark.parametrize(
    "end", [";", ";;; ", "; -- a comment; or two", ";\n/* one\n; */ ; -- two\n", " -- 'a", " /* a */"]
)
def test_a_select_may_end_with_semicolons_and_comments(
    workshop: Workshop, postgres: Database, end: str
) -> None:
    sql = f"-- ü; 🦆\nSELECT user_id, email || ';ü' AS email /* ; */ FROM users{end}"
    workshop.write("marts/users.sql", sql)
    workshop.sync("users", destination=TABLE, source="{file: marts/users.sql}", checks=json.dumps([f"FROM source LIMIT 0{end}"]))  # fmt: skip
    assert run(workshop)["inserted"] == ROWS
    assert column(postgres, "SELECT email FROM crm.users WHERE user_id = 1") == ["u1@example.com;ü"]


def test_a_table_with_a_dot_in_its_name_is_quoted(workshop: Workshop, postgres: Database) -> None:
    workshop.warehouse(
        'CREATE SCHEMA "a.b"; CREATE TABLE "a.b"."my ""own"".table" AS FROM users; CREATE TABLE "my.table" AS FROM users LIMIT 2'
    )
    for name, rows in (('"my.table"', 2), ('main."my.table"', 2), ('"a.b"."my ""own"".table"', ROWS)):
        workshop.sync("users", destination=TABLE, source=json.dumps({"table": name}), deletes="delete")
        assert run(workshop, "--dry-run", "--full")["read"] == rows, name
    workshop.sync("users", destination=TABLE, source=json.dumps({"table": '"my.table'}))
    refused = workshop.retl("sync")
    assert (refused.code, "put a part with a dot in double quotes" in refused.err) == (2, True)


@pytest.mark.parametrize("path", ["/etc/passwd", "retl.yml", "../other.csv"])
def test_a_source_reads_no_other_file(workshop: Workshop, path: str) -> None:
    workshop.write("retl.yml", "vars: {}\n")
    workshop.sync(
        "users",
        destination=TABLE,
        source=json.dumps(
            {
                "sql": f"SELECT 1 AS user_id, content AS email, 1.0::DECIMAL(3,2) AS spend FROM read_text('{path}')"
            }
        ),
    )
    said = workshop.retl("sync")
    assert said.code in (1, 3)
    assert "root:" not in said.out + said.err


# --- what must not be lost, doubled or deleted in combinations


def test_a_part_of_the_mart_is_never_adopted(workshop: Workshop, postgres: Database) -> None:
    workshop.sync("users", destination=TABLE, write="append", first_run="adopt")
    for words in (["--limit", "3"], ["--key", "5"], ["--where", "user_id < 9"]):
        refused = workshop.retl("sync", *words)
        assert refused.code == 2
        assert "ADOPT_WHOLE" in refused.err
    assert run(workshop)["skipped"] == ROWS
    assert run(workshop)["unchanged"] == ROWS


@pytest.mark.parametrize("change", ["mapping", "cursor"])
def test_rows_behind_the_mark_are_read_when_they_are_due(
    workshop: Workshop, postgres: Database, change: str
) -> None:
    workshop.warehouse(
        "ALTER TABLE users ADD COLUMN seen TIMESTAMP; ALTER TABLE users ADD COLUMN made TIMESTAMP"
    )
    workshop.warehouse(
        "UPDATE users SET seen = TIMESTAMP '2026-01-01' + INTERVAL (user_id) HOUR, made = seen"
    )
    contract = "{user_id: {type: integer}, email: {type: string}}"
    workshop.sync("users", destination=TABLE, changes="{watermark: seen}", contract=contract)
    assert run(workshop)["inserted"] == ROWS
    if change == "mapping":
        fields = '{"*": "*", origin: {value: warehouse}}'
        workshop.sync(
            "users", destination=TABLE, changes="{watermark: seen}", contract=contract, fields=fields
        )
        assert run(workshop)["updated"] == ROWS
    else:
        workshop.warehouse("INSERT INTO users VALUES (100, 'new', 1, '2020-01-01', '2020-01-01')")
        workshop.sync("users", destination=TABLE, changes="{watermark: made}", contract=contract)
        assert run(workshop)["inserted"] == 1


def test_update_only_under_a_watermark_tries_missing_keys_again(
    workshop: Workshop, postgres: Database
) -> None:
    with postgres.connect() as connection:
        connection.execute("CREATE SCHEMA crm")
        connection.execute(
            "CREATE TABLE crm.users (user_id bigint PRIMARY KEY, email text, spend numeric(12,2))"
        )
    workshop.warehouse("ALTER TABLE users ADD COLUMN seen TIMESTAMP")
    workshop.warehouse("UPDATE users SET seen = TIMESTAMP '2026-01-01' + INTERVAL (user_id) HOUR")
    contract = "{user_id: {type: integer}, email: {type: string}}"
    table = "{type: postgres, table: crm.users}"
    workshop.sync(
        "users", destination=table, changes="{watermark: seen}", write="update_only", contract=contract
    )
    assert run(workshop)["skipped"] == ROWS
    with postgres.connect() as connection:
        connection.execute("INSERT INTO crm.users VALUES (4, 'old', 0)")
    healed = run(workshop)
    assert (healed["inserted"], healed["updated"]) == (0, 1)
    assert column(postgres, "SELECT email FROM crm.users") == ["u4@example.com"]


def test_a_run_stopped_by_its_rejects_knows_what_it_did_not_touch(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.warehouse(
        "CREATE OR REPLACE TABLE users AS SELECT i AS user_id, 'e' || i AS email, i::DECIMAL(12,2) AS spend FROM range(1, 1001) t(i)"
    )
    with postgres.connect() as connection:
        connection.execute("CREATE SCHEMA crm")
        connection.execute(
            "CREATE TABLE crm.users (user_id bigint PRIMARY KEY, email text, spend numeric(12,2) CHECK (spend < 101 OR spend > 800))"
        )
        connection.execute("INSERT INTO crm.users VALUES (900, 'not ours', 900)")
    workshop.sync(
        "users", destination="{type: postgres, table: crm.users}", deletes="delete", batch="{rows: 100}"
    )
    failed = run(workshop)
    assert (failed["status"], failed["error"]["code"]) == ("FAILED", "FAILED_RATE")
    workshop.warehouse("DELETE FROM users WHERE user_id BETWEEN 101 AND 950")
    healed = run(workshop)
    assert healed["status"] == "SUCCESS"
    assert column(postgres, "SELECT email FROM crm.users WHERE user_id = 900") == ["not ours"]


def test_a_crash_makes_nobody_elses_row_ours_to_delete(workshop: Workshop, postgres: Database) -> None:
    with postgres.connect() as connection:
        connection.execute("CREATE SCHEMA crm")
        connection.execute(
            "CREATE TABLE crm.users (user_id bigint PRIMARY KEY, email text, spend numeric(12,2))"
        )
        connection.execute("INSERT INTO crm.users VALUES (7, 'not ours', 7)")
    workshop.sync(
        "users",
        destination="{type: postgres, table: crm.users}",
        write="insert_only",
        deletes="delete",
        batch="{rows: 5}",
    )
    assert workshop.process("sync", RETL_CRASH_AT="batch_answered:3").code == -9
    assert run(workshop)["status"] == "SUCCESS"
    workshop.warehouse("DELETE FROM users WHERE user_id IN (7, 8)")
    assert run(workshop)["deleted"] == 1
    assert column(postgres, "SELECT email FROM crm.users WHERE user_id IN (7, 8)") == ["not ours"]


def test_leaving_insert_only_believes_nothing_it_left_alone(workshop: Workshop, postgres: Database) -> None:
    with postgres.connect() as connection:
        connection.execute("CREATE SCHEMA crm")
        connection.execute(
            "CREATE TABLE crm.users (user_id bigint PRIMARY KEY, email text, spend numeric(12,2))"
        )
        connection.execute("INSERT INTO crm.users VALUES (3, 'curated', 3)")
    table = "{type: postgres, table: crm.users}"
    workshop.sync("users", destination=table, write="insert_only")
    assert (run(workshop)["skipped"], run(workshop)["unchanged"]) == (1, ROWS)
    workshop.sync("users", destination=table)
    assert run(workshop)["updated"] == ROWS
    assert column(postgres, "SELECT email FROM crm.users WHERE user_id = 3") == ["u3@example.com"]


def test_keys_are_told_apart_whatever_the_marts_collation(workshop: Workshop, postgres: Database) -> None:
    workshop.warehouse(
        "CREATE TABLE people (name VARCHAR COLLATE NOCASE, n INTEGER); INSERT INTO people VALUES ('k3', 1), ('k4', 2), ('K4', 3)"
    )
    workshop.sync(
        "people",
        source="{table: people}",
        key="[name]",
        destination="{type: postgres, table: crm.people, create: true}",
        deletes="delete",
    )
    assert run(workshop)["inserted"] == 3
    workshop.warehouse("UPDATE people SET name = 'K3' WHERE name = 'k3'")
    moved = run(workshop)
    assert (moved["inserted"], moved["deleted"]) == (1, 1)


def test_duplicates_are_looked_for_in_the_whole_mart(workshop: Workshop) -> None:
    workshop.warehouse("INSERT INTO users VALUES (5, 'twice', 1)")
    workshop.sync("users", destination=TABLE)
    chosen = run(workshop, "--where", "email = 'twice'", "--accept", "REJECT_RATE")
    assert (chosen["inserted"], chosen["rejected"], chosen["rejects"][0]["code"]) == (0, 1, "KEY_DUPLICATE")


def test_a_column_with_a_name_of_retls_is_refused(workshop: Workshop) -> None:
    workshop.warehouse('ALTER TABLE users ADD COLUMN "retl row" INTEGER')
    workshop.sync("users", destination=TABLE)
    said = workshop.retl("sync")
    assert said.code == 2
    assert "COLUMN_NAME" in said.err


@pytest.mark.parametrize("part", [{"deletes": "delete"}, {"write": "insert_only"}, {"first_run": "adopt"}])
def test_a_plan_is_refused_when_the_definition_moved(workshop: Workshop, part: dict[str, str]) -> None:
    workshop.sync("users", destination=TABLE)
    workshop.retl("plan", "--sync", "users", "--out", "first.plan")
    workshop.sync("users", destination=TABLE, **part)
    refused = workshop.retl("apply", "first.plan", "--output", "json")
    assert (refused.code, only(refused.document)["error"]["code"]) == (3, "PLAN_MOVED")


def test_what_a_recovery_settled_is_the_trace_the_next_run_asks_for(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.sync("users", destination=TABLE, batch="{rows: 10}")
    killed = workshop.process("sync", RETL_CRASH_AT="batch_answered:3")
    assert killed.code == -9  # all there, nothing recorded
    assert run(workshop)["status"] == "SUCCESS"
    assert run(workshop)["unchanged"] == ROWS
    assert run(workshop)["unchanged"] == ROWS


def test_a_delete_follows_foreign_keys_only_where_the_sync_says_so(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.sync("users", destination=TABLE, deletes="delete")
    assert run(workshop)["inserted"] == ROWS
    with postgres.connect() as connection:
        connection.execute(
            "CREATE TABLE crm.notes (n int, user_id bigint CONSTRAINT of_whom REFERENCES crm.users ON DELETE CASCADE)"
        )
        connection.execute("INSERT INTO crm.notes VALUES (1, 4), (2, 5)")
    workshop.warehouse(
        "DELETE FROM users WHERE user_id = 5; UPDATE users SET email = 'new' WHERE user_id = 4"
    )
    refused = run(workshop)
    assert (refused["exit_code"], refused["guards"][0]["code"]) == (3, "CASCADE")
    assert "crm.notes (of_whom" in refused["guards"][0]["message"]
    assert column(postgres, "SELECT n FROM crm.notes ORDER BY n") == [1, 2]
    assert column(postgres, "SELECT count(*) FROM crm.users WHERE email = 'new'") == [0]
    workshop.sync("users", destination=TABLE, deletes="delete", cascade="true")
    allowed = run(workshop)
    assert (allowed["status"], allowed["deleted"], allowed["updated"]) == ("SUCCESS", 1, 1)
    assert column(postgres, "SELECT n FROM crm.notes ORDER BY n") == [1]


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ({"destination": TABLE, "cascade": "true"}, "DEFINITION_INVALID"),
        ({"cascade": "true", "deletes": "delete"}, "CASCADE_UNSUPPORTED"),
        ({"destination": TABLE, "deletes": "{set: {status: gone}, cascade: true}"}, "OPTION_UNKNOWN"),
    ],
)
def test_a_cascade_that_means_nothing_is_a_definition_error(
    workshop: Workshop, parts: dict[str, str], code: str
) -> None:
    workshop.sync("users", **parts)
    said = workshop.retl("sync")
    assert (said.code, code in said.err) == (2, True), said.err


@pytest.mark.parametrize("point", ["batch_intended:3", "batch_answered:3", "batch_acknowledged:3"])
@pytest.mark.parametrize("write", ["append", "upsert"])
def test_a_dry_run_after_a_kill_tells_what_the_run_will_find(
    workshop: Workshop, postgres: Database, write: str, point: str
) -> None:
    if write == "upsert":
        point = point.replace("intended", "sending")
    workshop.sync("users", destination=TABLE, write=write, first_run="send", batch="{rows: 5}")
    assert workshop.process("sync", RETL_CRASH_AT=point).code == -9
    counted = ("status", "read", "unchanged", "inserted", "updated", "in_doubt", "skipped", "not_attempted")
    before = column(postgres, "SELECT count(*) FROM crm.retl_applied"), workshop.snapshot()
    predicted = run(workshop, "--dry-run")
    assert (column(postgres, "SELECT count(*) FROM crm.retl_applied"), workshop.snapshot()) == before
    assert predicted["in_doubt"] == 0
    assert "may change" not in str(predicted.get("notes"))
    done = run(workshop)
    assert done.get("notes") == predicted.get("notes"), "what became of the rows without an answer"
    assert {name: done[name] for name in counted} == {name: predicted[name] for name in counted}
    assert column(postgres, "SELECT user_id FROM crm.users ORDER BY 1") == list(range(1, ROWS + 1))
