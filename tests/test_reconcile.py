"""The target against mart and baseline, key by key, and its repair: `retl reconcile`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.clock import ahead
from tests.commands import ROWS, Workshop
from tests.servers import Database, RedisServer
from tests.test_plans_and_state import TABLE, column, run

MIRROR = {"destination": TABLE, "deletes": "delete"}
CODES = {True: 1, False: 0}


@pytest.fixture
def workshop(tmp_path: Path, postgres: Database) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.use(postgres=postgres)
    return made


def execute(postgres: Database, sql: str) -> None:
    with postgres.connect() as connection:
        connection.execute(sql)


def reconciled(workshop: Workshop, *words: str, code: int | None = None, **more: str) -> dict[str, Any]:
    said = workshop.retl("reconcile", "users", "--output", "json", *words, **more)
    found = dict(said.document["reconcile"])
    assert said.code == (CODES[found["drift"] > 0] if code is None else code), said.err
    return found


def verdicts(found: dict[str, Any]) -> dict[str, int]:
    names = ("same", "due", "edited", "missing", "back", "kept", "extra", "duplicate")
    return {name: found[name] for name in names if found[name]}


def users(postgres: Database) -> list[Any]:
    return column(postgres, "SELECT user_id FROM crm.users ORDER BY 1")


def test_every_key_has_one_verdict_and_the_fields_that_differ_are_named(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.warehouse("ALTER TABLE users ADD COLUMN gone BOOLEAN DEFAULT false")
    workshop.sync("users", **MIRROR, source='{sql: "SELECT user_id, email, spend FROM users WHERE NOT gone"}')
    run(workshop)
    assert verdicts(reconciled(workshop)) == {"same": ROWS}
    workshop.warehouse("UPDATE users SET gone = true WHERE user_id = 1")
    run(workshop)
    workshop.warehouse("UPDATE users SET email = 'moved@on' WHERE user_id IN (2, 3)")
    workshop.warehouse("UPDATE users SET gone = true WHERE user_id = 4")
    workshop.warehouse("INSERT INTO users VALUES (100, 'new', 1, false)")
    execute(
        postgres,
        "UPDATE crm.users SET email = 'theirs' WHERE user_id IN (3, 5, 6);"
        "UPDATE crm.users SET spend = -1 WHERE user_id IN (6, 7);"
        "DELETE FROM crm.users WHERE user_id IN (2, 8, 9);"
        "INSERT INTO crm.users VALUES (1, 'again', 1), (900, 'theirs', 1)",
    )
    found = reconciled(workshop)
    assert verdicts(found) == {
        "same": ROWS - 9,
        "due": 3,  # 3 moved on, 4 left the mart, 100 is new
        "edited": 3,
        "missing": 3,
        "back": 1,
        "extra": 1,
    }
    assert found["fields"] == {"email": 2, "spend": 2}
    named = {one["key"]: (one["verdict"], one["fields"]) for one in found["examples"]}
    assert named == {
        "5": ("edited", ["email"]),
        "6": ("edited", ["email", "spend"]),
        "7": ("edited", ["spend"]),
        "2": ("missing", []),
        "8": ("missing", []),
        "9": ("missing", []),
        "1": ("back", []),
        "900": ("extra", []),
    }
    said = workshop.retl("reconcile", "users")
    assert (said.code, "theirs" in said.out) == (1, False)
    assert all(word in said.out for word in ("edited", "email, spend", "somebody removed it"))


def test_rows_of_one_bucket_are_told_apart(workshop: Workshop, postgres: Database) -> None:
    """Keys are compared in buckets first: values that moved to another key of the bucket, one key in the place
    of another, and a row with a fault must not look like the rows that were there."""
    bucket = (
        "SELECT list(i ORDER BY i) FROM range(300_000) t(i) GROUP BY hash(CAST(i AS VARCHAR)) % 65536"
        " HAVING count(*) > 6 LIMIT 1"
    )
    ((found,),) = duckdb.sql(bucket).fetchall()
    one, two, three, four, new, *_ = map(int, found)
    listed = ", ".join(f"({n}, '{n}@x', {n})" for n in (one, two, three, four))
    workshop.warehouse(
        f"CREATE OR REPLACE TABLE users AS SELECT * FROM (VALUES {listed}) t(user_id, email, spend)"
    )
    workshop.sync("users", **MIRROR)
    run(workshop)
    assert verdicts(reconciled(workshop)) == {"same": 4}
    execute(
        postgres,
        f"UPDATE crm.users SET email = CASE user_id WHEN {one} THEN '{two}@x' ELSE '{one}@x' END"
        f" WHERE user_id IN ({one}, {two}); UPDATE crm.users SET user_id = {new} WHERE user_id = {three}",
    )
    assert verdicts(reconciled(workshop)) == {"same": 1, "edited": 2, "missing": 1, "extra": 1}
    execute(postgres, f"DELETE FROM crm.users WHERE user_id = {new}")
    assert reconciled(workshop, "--repair", code=0)["edited"] == 2
    assert verdicts(reconciled(workshop)) == {"same": 4}
    workshop.warehouse(f"INSERT INTO users VALUES ({four}, 'again', 1)")
    assert verdicts(reconciled(workshop)) == {"same": 3, "due": 1}


NASTY = """CREATE OR REPLACE TABLE users AS SELECT i AS user_id, t AS email, s AS score, seen_at, flag, doc FROM (VALUES
    (1, '', 0.1::DOUBLE, TIMESTAMP '2026-01-02 03:04:05', true, '{"a": 1}'),
    (2, NULL, 1e20, TIMESTAMP '1999-12-31 23:59:59.120000', NULL, '[1,  2]'),
    (3, 'say "so", or ' || chr(10) || chr(13) || 'not', -0.0, NULL, false, NULL),
    (4, '\\.', NULL, TIMESTAMP '0001-01-01', true, '"x"'),
    (5, 'NULL', 1e-320, TIMESTAMP '9999-12-31', true, '{}'),
    (6, 'Zürich 🌍', -1.5, TIMESTAMP '2026-01-02', false, 'null')) v(i, t, s, seen_at, flag, doc)"""


def test_texts_that_look_alike_are_told_apart_and_texts_of_one_value_are_not(
    workshop: Workshop, postgres: Database
) -> None:
    """The table is read at once, as text: an empty text is not NULL, and one value has several texts."""
    workshop.warehouse(NASTY)
    workshop.sync("users", destination=TABLE)
    assert run(workshop)["inserted"] == 6
    assert verdicts(reconciled(workshop)) == {"same": 6}
    execute(
        postgres,
        "UPDATE crm.users SET email = NULL WHERE user_id = 1; UPDATE crm.users SET email = '' WHERE user_id = 2;"
        "UPDATE crm.users SET email = replace(email, chr(13), '') WHERE user_id = 3;"
        "UPDATE crm.users SET email = '\\\\.' WHERE user_id = 4",
    )
    found = reconciled(workshop)
    assert verdicts(found) == {"same": 2, "edited": 4}
    assert found["fields"] == {"email": 4}


def test_a_table_that_keeps_other_texts_is_compared_by_value(workshop: Workshop, postgres: Database) -> None:
    """Places that the mart lacks, a padded text, a key in another case, and a row longer than a reader
    takes: these are looked up row by row."""
    execute(
        postgres,
        "CREATE SCHEMA crm; CREATE EXTENSION IF NOT EXISTS citext; CREATE TABLE crm.users"
        " (user_id citext PRIMARY KEY, email char(40), spend numeric(20, 6))",
    )
    workshop.warehouse("ALTER TABLE users ALTER user_id TYPE VARCHAR USING 'u' || user_id")
    workshop.sync("users", destination=TABLE)
    run(workshop)
    execute(postgres, "UPDATE crm.users SET user_id = 'U7' WHERE user_id = 'u7'")
    assert verdicts(reconciled(workshop)) == {"same": ROWS}
    execute(postgres, "UPDATE crm.users SET spend = spend + 0.000001 WHERE user_id = 'u8'")
    assert verdicts(reconciled(workshop)) == {"same": ROWS - 1, "edited": 1}


def test_a_value_that_is_too_long_for_a_dump_is_looked_up(workshop: Workshop, postgres: Database) -> None:
    workshop.warehouse("UPDATE users SET email = repeat('long', 5_000_000) WHERE user_id = 1")
    workshop.sync("users", destination=TABLE, deletes="delete")
    run(workshop)
    execute(postgres, "DELETE FROM crm.users WHERE user_id = 2; INSERT INTO crm.users VALUES (900, 'new', 1)")
    assert verdicts(reconciled(workshop)) == {"same": ROWS - 1, "missing": 1, "extra": 1}


def test_a_key_that_the_table_has_twice_is_a_duplicate(workshop: Workshop, postgres: Database) -> None:
    execute(
        postgres,
        "CREATE SCHEMA crm; CREATE TABLE crm.users (user_id bigint, email text, spend numeric(12, 2))",
    )
    workshop.sync("users", destination="{type: postgres, table: crm.users}", write="append", first_run="send")
    run(workshop)
    execute(postgres, "INSERT INTO crm.users VALUES (3, 'other', 1), (4, 'u4@example.com', 4.00)")
    assert verdicts(reconciled(workshop)) == {"same": ROWS - 1, "kept": 1, "duplicate": 2}


def test_a_repair_sends_what_drifted_and_nothing_else(workshop: Workshop, postgres: Database) -> None:
    workshop.sync("users", **MIRROR)
    run(workshop)
    workshop.warehouse("UPDATE users SET email = 'moved@on' WHERE user_id = 2")
    workshop.warehouse("DELETE FROM users WHERE user_id = 4")
    execute(
        postgres,
        "UPDATE crm.users SET email = 'theirs' WHERE user_id = 3; DELETE FROM crm.users WHERE user_id = 8;"
        "INSERT INTO crm.users VALUES (900, 'theirs', 1)",
    )
    planned = workshop.retl("reconcile", "users", "--repair", "--dry-run", "--output", "json").document[
        "sync"
    ]
    assert column(postgres, "SELECT email FROM crm.users WHERE user_id = 3") == ["theirs"]
    said = workshop.retl("reconcile", "users", "--repair", "--output", "json")
    done = said.document["sync"]
    assert (said.code, done["status"]) == (0, "SUCCESS")
    counts = ("read", "updated", "inserted", "not_attempted", "unchanged", "deleted")
    assert [done[name] for name in counts] == [ROWS - 1, 1, 1, 1, ROWS - 4, 0]
    assert [planned[name] for name in counts] == [done[name] for name in counts]
    assert users(postgres) == [*range(1, ROWS + 1), 900]
    assert column(postgres, "SELECT email FROM crm.users WHERE user_id IN (2, 3) ORDER BY user_id") == [
        "u2@example.com",
        "u3@example.com",
    ]
    assert verdicts(reconciled(workshop)) == {"same": ROWS - 2, "due": 2, "extra": 1}
    after = run(workshop)
    assert (after["updated"], after["deleted"], after["unchanged"]) == (1, 1, ROWS - 2)


@pytest.mark.parametrize(
    "point", ["target_compared", "delta_written", "batches_opened", "batch_answered", "committing"]
)
def test_a_repair_that_is_killed_is_run_again(workshop: Workshop, postgres: Database, point: str) -> None:
    workshop.sync("users", **MIRROR, batch="{rows: 4}")
    run(workshop)
    execute(
        postgres,
        "UPDATE crm.users SET email = 'theirs' WHERE user_id < 8; DELETE FROM crm.users WHERE user_id > 25",
    )
    assert workshop.process("reconcile", "users", "--repair", RETL_CRASH_AT=point).code == -9
    workshop.json("reconcile", "users", "--repair")
    run(workshop)
    assert verdicts(reconciled(workshop)) == {"same": ROWS}


def test_a_look_is_a_run_that_changes_nothing_that_is_sent(workshop: Workshop, postgres: Database) -> None:
    workshop.sync("users", destination=TABLE, freshness="1h")
    run(workshop)
    (before,) = workshop.json("status")["syncs"]
    execute(postgres, "UPDATE crm.users SET email = 'theirs' WHERE user_id = 3")
    execute(postgres, "CREATE TABLE before AS SELECT xmin::text AS version, * FROM crm.users")
    reconciled(workshop)
    shown = workshop.json("show")
    assert (shown["purpose"], shown["status"], shown["reconcile"]["edited"]) == ("reconcile", "SUCCESS", 1)
    assert shown["drifted"] is True
    assert "SUCCESS, and exit code 1, because the target drifted" in workshop.retl("show").out
    (after,) = workshop.json("status")["syncs"]
    assert (after["last_success"], after["drift"]) == (before["last_success"], 1)
    assert "retl reconcile users" in after["next"]
    assert run(workshop)["unchanged"] == ROWS
    assert not column(postgres, "SELECT xmin::text FROM crm.users EXCEPT SELECT version FROM before")


def test_a_look_after_a_failed_run_does_not_hide_the_failure(workshop: Workshop, postgres: Database) -> None:
    workshop.sync("users", destination=TABLE)
    run(workshop)
    workshop.sync("users", destination=TABLE, checks='["SELECT 1"]')
    assert run(workshop)["status"] == "REFUSED"
    workshop.sync("users", destination=TABLE)
    reconciled(workshop)
    (state,) = workshop.json("status")["syncs"]
    assert state["status"] == "REFUSED"


def test_a_sample_compares_so_many_rows_and_looks_for_no_other_key(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.sync("users", destination=TABLE)
    run(workshop)
    execute(postgres, "UPDATE crm.users SET spend = -1; INSERT INTO crm.users VALUES (900, 'theirs', 1)")
    found = reconciled(workshop, "--sample", "7")
    assert (found["edited"], found["sampled"], found["extra"], found["same"]) == (7, 7, None, 0)
    assert "of 7 rows drawn at random:" in workshop.retl("show").out
    assert "each row of the mart, one by one:" in workshop.retl("reconcile", "users", "--sample", "999").out
    workshop.retl("reconcile", "users", "--sample", "7", "--repair")
    assert column(postgres, "SELECT count(*) FROM crm.users WHERE spend = -1") == [ROWS - 7]


def test_owned_keys_are_deleted_by_the_next_run_under_the_guards(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.sync("users", **MIRROR)
    run(workshop)
    workshop.warehouse("DELETE FROM users WHERE user_id = 1")
    run(workshop)
    execute(postgres, "INSERT INTO crm.users VALUES (1, 'again', 1), (900, 'theirs', 1)")
    assert verdicts(reconciled(workshop, "--take-ownership")) == {"same": ROWS - 1, "back": 1, "extra": 1}
    after = run(workshop)
    assert (after["deleted"], after["unchanged"]) == (2, ROWS - 1)
    assert users(postgres) == list(range(2, ROWS + 1))


def test_adopted_rows_that_differ_are_edited_and_may_become_ours(
    workshop: Workshop, postgres: Database
) -> None:
    execute(postgres, "CREATE SCHEMA crm")
    execute(postgres, "CREATE TABLE crm.users (user_id bigint PRIMARY KEY, email text, spend numeric(12,2))")
    execute(postgres, f"INSERT INTO crm.users SELECT i, 'u', i FROM generate_series(1, {ROWS}) AS i")
    workshop.sync("users", **MIRROR, first_run="adopt")
    run(workshop)
    assert verdicts(reconciled(workshop)) == {"edited": ROWS}
    workshop.warehouse("DELETE FROM users WHERE user_id = 1")
    assert verdicts(reconciled(workshop)) == {"edited": ROWS - 1, "kept": 1}
    reconciled(workshop, "--take-ownership")
    assert run(workshop)["deleted"] == 1


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        ("insert_only", {"same": ROWS - 2, "kept": 1, "missing": 1}),
        ("update_only", {"same": ROWS - 2, "edited": 1, "missing": 1}),
        ("append", {"same": ROWS - 2, "kept": 1, "missing": 1, "duplicate": 1}),
    ],
)
def test_a_write_mode_that_never_changes_a_row_has_no_edited_one(
    workshop: Workshop, postgres: Database, write: str, expected: dict[str, int]
) -> None:
    workshop.sync("users", destination=TABLE, write=write, first_run="send")
    if write == "update_only":
        workshop.sync("users", destination=TABLE)
        run(workshop)
        workshop.sync("users", destination=TABLE, write=write)
    run(workshop)
    execute(postgres, "UPDATE crm.users SET email = 'edited' WHERE user_id = 2")
    execute(postgres, "DELETE FROM crm.users WHERE user_id = 3")
    if write == "append":
        execute(postgres, "ALTER TABLE crm.users DROP CONSTRAINT users_pkey")
        execute(postgres, "INSERT INTO crm.users SELECT * FROM crm.users WHERE user_id = 4")
    assert verdicts(reconciled(workshop)) == expected
    said = workshop.retl("reconcile", "users", "--repair")
    assert (said.code, "NOTHING_TO_REPAIR" in said.err) == (
        (2, True) if write != "update_only" else (1, False)
    )


def test_a_row_that_the_contract_refuses_now_is_not_drift(workshop: Workshop, postgres: Database) -> None:
    workshop.sync(
        "users",
        destination=TABLE,
        contract="{user_id: {type: integer}, email: {type: string, pattern: '.*@.*'}, spend: {type: decimal,"
        " max_digits: 12, decimal_places: 2}}",
        guards="{max_reject_rate: 1}",
    )
    run(workshop)
    workshop.warehouse("UPDATE users SET email = 'broken' WHERE user_id IN (1, 2)")
    assert run(workshop)["rejected"] == 2
    execute(
        postgres, "DELETE FROM crm.users WHERE user_id = 2; UPDATE crm.users SET spend = 0 WHERE user_id = 3"
    )
    assert verdicts(reconciled(workshop)) == {"same": ROWS - 3, "due": 1, "missing": 1, "edited": 1}
    said = workshop.retl("reconcile", "users", "--repair", "--output", "json")
    assert (said.code, said.document["sync"]["updated"]) == (1, 1), "the missing row cannot be sent"
    assert len(workshop.json("rejects")["rejects"]) == 2, "they stay open"


def test_sensitive_keys_are_masked(workshop: Workshop, postgres: Database) -> None:
    workshop.sync(
        "users",
        destination=TABLE,
        contract="{user_id: {type: integer, sensitive: true}, email: {type: string}}",
    )
    run(workshop)
    execute(postgres, "DELETE FROM crm.users WHERE user_id = 17")
    (example,) = reconciled(workshop)["examples"]
    assert example["key"] == "***"
    assert reconciled(workshop, "--reveal")["examples"][0]["key"] == "17"
    assert workshop.json("show")["reconcile"]["examples"][0]["key"] == "***"


def test_a_mart_that_is_not_whole_is_not_compared(workshop: Workshop, postgres: Database) -> None:
    workshop.sync("users", **MIRROR)
    run(workshop)
    workshop.warehouse("DELETE FROM users")
    refused = workshop.retl("reconcile", "users")
    assert (refused.code, "EMPTY_SOURCE" in refused.err) == (3, True)


def test_options_that_would_have_no_effect_are_refused(workshop: Workshop) -> None:
    workshop.write("retl.yml", "connections:\n  hook: {type: webhook, url: 'http://127.0.0.1:9/x'}\n")
    workshop.sync(
        "users",
        destination="{connection: hook}",
        write="append",
        first_run="send",
        delivery="at_least_once",
    )
    assert "RECONCILE_UNSUPPORTED" in workshop.retl("reconcile", "users").err
    workshop.sync("users", destination=TABLE)
    assert "NOTHING_TO_OWN" in workshop.retl("reconcile", "users", "--take-ownership").err
    assert "USAGE" in workshop.retl("reconcile", "users", "--dry-run").err
    assert not (workshop.folder / ".retl").exists()


def test_redis_is_compared_by_key_and_field_and_repaired(tmp_path: Path, redis_server: RedisServer) -> None:
    workshop = Workshop(tmp_path / "project")
    workshop.use(redis=redis_server)
    workshop.sync("users", deletes="delete")
    run(workshop)
    workshop.warehouse("DELETE FROM users WHERE user_id = 1")
    run(workshop)
    with redis_server.client() as client:
        client.delete("users:7")
        client.set("users:8", '{"email":"theirs","spend":8.00}')
        client.set("users:900", "{}")
        client.set("users:1", "{}")
    found = reconciled(workshop)
    assert verdicts(found) == {"same": ROWS - 3, "edited": 1, "missing": 1, "back": 1, "extra": 1}
    assert found["fields"] == {"email": 1}
    workshop.retl("reconcile", "users", "--repair")
    assert verdicts(reconciled(workshop)) == {"same": ROWS - 1, "back": 1, "extra": 1}


def test_a_repair_of_a_restored_target_is_refused(workshop: Workshop, postgres: Database) -> None:
    """Its marks are older than the ledger: `--full` and a rebuild are for that. A table that was only emptied
    has its marks, and every row is one that somebody removed."""
    workshop.sync("users", **MIRROR)
    run(workshop)
    execute(postgres, "TRUNCATE crm.users")
    said = workshop.retl("reconcile", "users", "--repair", "--output", "json")
    assert (said.code, said.document["sync"]["inserted"]) == (0, ROWS)
    execute(postgres, "TRUNCATE crm.users; DELETE FROM crm.retl_applied")
    said = workshop.retl("reconcile", "users", "--repair", "--output", "json")
    assert (said.code, said.document["sync"]["error"]["code"]) == (3, "TARGET_LOST")
    assert users(postgres) == []
    run(workshop, "--full")
    assert users(postgres) == [*range(1, ROWS + 1)]


def test_a_sync_that_asks_for_it_is_compared_after_a_good_run(workshop: Workshop, postgres: Database) -> None:
    """Drift is a note of the run, and `retl status` shows it until the next look; within `every` there is no
    other."""
    workshop.sync("users", **MIRROR, reconcile="{every: 7d}")
    assert "drift" not in str(run(workshop).get("notes"))
    workshop.sync("users", **MIRROR, reconcile="{every: 1s}")
    execute(postgres, "UPDATE crm.users SET email = 'theirs' WHERE user_id = 3")
    time.sleep(1.1)
    assert "drifted" in str(run(workshop)["notes"])
    workshop.sync("users", **MIRROR, reconcile="{every: 7d}")
    assert "drifted" not in str(run(workshop).get("notes"))
    ahead(workshop)
    assert "drifted" in str(run(workshop)["notes"]), "a look of a time to come was made by a wrong clock"
    (line,) = workshop.json("status")["syncs"]
    assert (line["drift"], "`retl reconcile users`" in line["next"]) == (1, True)


@pytest.mark.parametrize("strategy", ["target_wins", "manual"])
def test_edits_that_a_strategy_keeps_ask_for_nothing(
    workshop: Workshop, postgres: Database, strategy: str
) -> None:
    workshop.sync("users", **MIRROR, conflicts=strategy, reconcile="{every: 1s}")
    run(workshop)
    execute(postgres, "UPDATE crm.users SET email = 'theirs' WHERE user_id = 3")
    time.sleep(1.1)
    notes = str(run(workshop)["notes"])
    assert ("drifted" in notes, "(1 edited), and `conflicts` keeps that" in notes) == (False, True)
    (line,) = workshop.json("status")["syncs"]
    assert (line["drift"], line["next"]) == (1, "")
