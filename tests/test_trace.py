"""Time goes backwards on one side: a restored ledger or target, a server that forgot, another address.

The oracle is plain SQL at the target. After at most one refusal and what its hint says, target = mart.
"""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests import duckdb_files
from tests.commands import ROWS, Workshop
from tests.exported import held, objects
from tests.proxy import Proxy
from tests.servers import Database, RedisServer

CREATED = "{type: postgres, table: crm.users, create: true}"
MIRROR = {"destination": CREATED, "deletes": "delete"}
APPEND = {"destination": CREATED, "write": "append", "first_run": "send"}
CHANGE = "UPDATE users SET spend = spend + 1 WHERE user_id <= 3; DELETE FROM users WHERE user_id = 9"


@pytest.fixture
def workshop(tmp_path: Path, postgres: Database) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.use(postgres=postgres)
    return made


def run(workshop: Workshop, *words: str) -> dict[str, Any]:
    (found,) = workshop.retl("sync", *words, "--output", "json").document["syncs"]
    return dict(found)


def rows(database: Database, sql: str = "SELECT user_id, spend FROM crm.users ORDER BY 1") -> list[Any]:
    with database.connect() as connection:
        return connection.execute(sql).fetchall()


def mart(workshop: Workshop) -> list[Any]:
    with duckdb_files.opened(workshop.folder / "data" / "warehouse.duckdb", read_only=True) as connection:
        return connection.execute("SELECT user_id, spend FROM users ORDER BY 1").fetchall()


def execute(database: Database, *statements: str) -> None:
    with database.connect() as connection:
        for statement in statements:
            connection.execute(statement)


def code(done: dict[str, Any]) -> Any:
    return (done["status"], (done["error"] or {}).get("code"))


# --- the ledger goes back


def keep_state(workshop: Workshop) -> None:
    shutil.copytree(workshop.folder / ".retl", workshop.folder / "backup")


def restore_state(workshop: Workshop) -> None:
    shutil.rmtree(workshop.folder / ".retl")
    shutil.copytree(workshop.folder / "backup", workshop.folder / ".retl")


def test_a_restored_ledger_believes_nothing_that_it_missed(workshop: Workshop, postgres: Database) -> None:
    workshop.sync("users", **MIRROR)
    run(workshop)
    keep_state(workshop)
    workshop.warehouse(CHANGE)
    assert code(run(workshop)) == ("SUCCESS", None)
    workshop.warehouse("UPDATE users SET spend = 0 WHERE user_id = 5; DELETE FROM users WHERE user_id = 8")
    restore_state(workshop)
    for words in ((), ("--full",), ("--accept", "TARGET_LOST")):
        refused = run(workshop, *words)
        assert code(refused) == ("REFUSED", "STATE_BEHIND")
        assert "state rebuild users" in refused["error"]["hint"]
    done = run(workshop, "--accept", "STATE_BEHIND")
    assert (code(done), done["unchanged"], done["deleted"]) == (("SUCCESS", None), 0, 0)
    assert rows(postgres) == sorted([*mart(workshop), (8, 8)])  # a row that may be somebody's stays
    again = run(workshop)
    assert (code(again), again["unchanged"]) == (("SUCCESS", None), len(mart(workshop)))
    assert workshop.json("log", "verify")["faults"] == []


def test_a_restored_ledger_may_take_the_mart_as_delivered(workshop: Workshop, postgres: Database) -> None:
    workshop.sync("users", **MIRROR)
    run(workshop)
    keep_state(workshop)
    workshop.warehouse(CHANGE)
    run(workshop)
    restore_state(workshop)
    assert workshop.retl("state", "adopt", "users", "--yes").code == 0
    after = run(workshop)
    assert (code(after), after["unchanged"]) == (("SUCCESS", None), len(mart(workshop)))


def test_a_restored_ledger_appends_nothing_twice(workshop: Workshop, postgres: Database) -> None:
    workshop.sync("users", **APPEND)
    run(workshop)
    keep_state(workshop)
    workshop.warehouse("INSERT INTO users SELECT 1000 + i, '', 0 FROM range(5) t(i)")
    run(workshop)
    restore_state(workshop)
    for words in ((), ("--accept", "STATE_BEHIND")):
        assert code(run(workshop, *words)) == ("REFUSED", "STATE_BEHIND")
    assert rows(postgres) == mart(workshop)


def test_a_ledger_restored_to_before_a_run_that_sent_nothing_goes_on(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.sync("users", **MIRROR)
    run(workshop)
    keep_state(workshop)
    run(workshop)
    restore_state(workshop)
    workshop.warehouse(CHANGE)
    assert code(run(workshop)) == ("SUCCESS", None)
    assert rows(postgres) == mart(workshop)


# --- the target goes back


def keep_target(postgres: Database) -> None:
    execute(
        postgres,
        "CREATE SCHEMA kept",
        "CREATE TABLE kept.users AS TABLE crm.users",
        "CREATE TABLE kept.retl_applied AS TABLE crm.retl_applied",
    )


def restore_target(postgres: Database) -> None:
    for table in ("users", "retl_applied"):
        execute(postgres, f"DELETE FROM crm.{table}", f"INSERT INTO crm.{table} TABLE kept.{table}")


@pytest.mark.parametrize("remedy", ["--full", "accept"])
def test_a_restored_target_gets_what_it_lost(workshop: Workshop, postgres: Database, remedy: str) -> None:
    workshop.sync("users", **MIRROR)
    run(workshop)
    keep_target(postgres)
    workshop.warehouse(CHANGE)
    run(workshop)
    restore_target(postgres)
    assert code(run(workshop)) == ("REFUSED", "TARGET_LOST")
    dry = run(workshop, "--dry-run", "--accept", "TARGET_LOST")
    assert (dry["updated"], dry["deleted"], dry["unchanged"]) == (3, 1, ROWS - 4)
    done = run(workshop, *(("--accept", "TARGET_LOST") if remedy == "accept" else ("--full",)))
    assert code(done) == ("SUCCESS", None)
    if remedy == "--full":  # deletes nothing; the next run does
        assert (9, 9) in rows(postgres)
        run(workshop)
    assert rows(postgres) == mart(workshop)
    assert run(workshop)["unchanged"] == ROWS - 1


@pytest.mark.parametrize("words", [("--full", "--limit", "3"), ("--accept", "TARGET_LOST", "--limit", "1")])
def test_what_a_limited_repair_left_out_is_still_owed(
    workshop: Workshop, postgres: Database, words: tuple[str, ...]
) -> None:
    workshop.sync("users", **MIRROR)
    run(workshop)
    keep_target(postgres)
    workshop.warehouse("UPDATE users SET spend = spend + 1")
    run(workshop)
    restore_target(postgres)
    assert code(run(workshop, *words)) == ("SUCCESS", None)
    done = run(workshop)
    assert (code(done), done["updated"] >= ROWS - 3) == (("SUCCESS", None), True)
    assert rows(postgres) == mart(workshop)


def test_a_full_run_that_is_killed_leaves_the_rest_owed(workshop: Workshop, postgres: Database) -> None:
    workshop.sync("users", **MIRROR, batch="{rows: 2}")
    run(workshop)
    keep_target(postgres)
    workshop.warehouse("UPDATE users SET spend = spend + 1")
    run(workshop)
    restore_target(postgres)
    killed = workshop.process("sync", "--full", RETL_CRASH_AT="batch_answered:2")
    assert killed.code == -9
    assert code(run(workshop)) == ("SUCCESS", None)
    assert rows(postgres) == mart(workshop)


def test_a_restored_target_of_an_append_gets_exactly_what_it_lost(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.sync("users", **APPEND)
    run(workshop)
    keep_target(postgres)
    workshop.warehouse("INSERT INTO users SELECT 1000 + i, '', 0 FROM range(5) t(i)")
    run(workshop)
    restore_target(postgres)
    assert code(run(workshop)) == ("REFUSED", "TARGET_LOST")
    done = run(workshop, "--accept", "TARGET_LOST")
    assert (code(done), done["inserted"]) == (("SUCCESS", None), 5)
    assert rows(postgres) == mart(workshop)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "project" / "crm.db"


def torn(workshop: Workshop, file: Path, more: int) -> None:
    """An append whose last run sent `more` rows in batches of two, and whose target, a database that is
    written by one lane, was restored to a moment before the last two batches of it."""
    workshop.write("retl.yml", "connections: {there: {type: sqlite, path: crm.db}}\n")
    destination = "{connection: there, table: users, create: true}"
    workshop.sync("users", **{**APPEND, "destination": destination}, batch="{rows: 2}")
    run(workshop)
    workshop.warehouse(f"INSERT INTO users SELECT 1000 + i, '', 0 FROM range({more}) t(i)")
    done = run(workshop)["run_id"]
    last = f"SELECT rowid FROM retl_applied WHERE run_id = '{done}' ORDER BY rowid DESC LIMIT 2"
    with sqlite3.connect(file) as connection:
        connection.execute("DELETE FROM users WHERE user_id >= ?", [1000 + more - 3])
        connection.execute(f"DELETE FROM retl_applied WHERE rowid IN ({last})")


def users(file: Path) -> list[Any]:
    with sqlite3.connect(file) as connection:
        return [key for (key,) in connection.execute("SELECT user_id FROM users ORDER BY 1")]


def test_an_append_restored_to_the_middle_of_a_run_gets_the_batches_that_it_lacks(
    workshop: Workshop, file: Path
) -> None:
    torn(workshop, file, 5)
    refused = run(workshop)
    assert code(refused) == ("REFUSED", "TARGET_LOST")
    assert refused["error"]["hint"].endswith("--accept TARGET_LOST appends them again")
    workshop.warehouse("INSERT INTO users VALUES (2000, '', 0)")
    planned = run(workshop, "--accept", "TARGET_LOST", "--dry-run")
    done = run(workshop, "--accept", "TARGET_LOST")
    assert (code(done), done["inserted"], planned["inserted"]) == (("SUCCESS", None), 4, 4)
    assert users(file) == [key for key, _ in mart(workshop)]
    again = run(workshop)
    assert (code(again), again["unchanged"]) == (("SUCCESS", None), len(mart(workshop)))
    assert workshop.json("log", "verify")["faults"] == []


def test_where_the_batches_of_a_torn_run_are_no_longer_told_apart_a_rebuild_is_named(
    workshop: Workshop, file: Path
) -> None:
    torn(workshop, file, 7)  # so many that they are compacted
    refused = run(workshop)
    assert (code(refused), "stay in doubt" in refused["error"]["hint"]) == (("REFUSED", "TARGET_LOST"), True)
    assert "`retl state rebuild users`" in refused["error"]["hint"]
    assert workshop.retl("state", "rebuild", "users", "--yes").code == 0
    assert run(workshop)["inserted"] == 3
    assert users(file) == [key for key, _ in mart(workshop)]


def test_a_table_whose_storage_was_replaced_is_sent_again(workshop: Workshop, postgres: Database) -> None:
    workshop.sync("users", **MIRROR)
    run(workshop)
    execute(postgres, "CREATE SCHEMA kept", "CREATE TABLE kept.users AS TABLE crm.users")
    workshop.warehouse("UPDATE users SET spend = spend + 1")
    run(workshop)
    execute(postgres, "TRUNCATE crm.users", "INSERT INTO crm.users TABLE kept.users")
    assert code(run(workshop)) == ("SUCCESS", None)
    assert rows(postgres) == mart(workshop)
    assert run(workshop)["unchanged"] == ROWS


@pytest.mark.parametrize("parts", [MIRROR, APPEND], ids=["mirror", "append"])
@pytest.mark.parametrize(
    "harm",
    ["TRUNCATE crm.users", "DROP TABLE crm.users", "DELETE FROM crm.retl_applied WHERE state = 'applied'"],
)
def test_a_table_that_is_reset_during_a_run_is_noticed(
    workshop: Workshop, postgres: Database, parts: dict[str, str], harm: str
) -> None:
    workshop.sync("users", batch="{rows: 2}", **parts)
    workshop.write("retl.yml", "connections: {postgres: {type: postgres, limits: {concurrency: 1}}}\n")
    with Proxy(postgres.host, postgres.port) as proxy:
        workshop.environment["POSTGRES_PORT"] = str(proxy.port)
        proxy.act(lambda: execute(postgres, harm), *[b"pg_try_advisory_xact_lock_shared"] * 9)
        done = run(workshop)
        assert done["status"] == "FAILED"
        if "DROP" not in harm:
            assert done["error"]["code"] == "TARGET_RESET"
        if parts is MIRROR:
            again = run(workshop, *(("--full",) if "DROP" in harm else ()))
            assert (code(again), rows(postgres)) == (("SUCCESS", None), mart(workshop))


def test_a_delete_that_a_restored_target_lost_is_sent_again_also_where_nothing_can_be_read(
    workshop: Workshop,
) -> None:
    """A log of changes cannot be asked for a key."""
    out, kept = workshop.folder / "out", workshop.folder / "kept"
    workshop.write("retl.yml", "connections: {disk: {type: files, root: out}}\n")
    destination = "{connection: disk, path: users, format: ndjson}"
    workshop.sync("users", destination=destination, deletes="delete")
    run(workshop)
    shutil.copytree(out, kept)
    workshop.warehouse(CHANGE)
    assert run(workshop)["deleted"] == 1
    shutil.rmtree(out)
    shutil.copytree(kept, out)
    assert code(run(workshop)) == ("REFUSED", "TARGET_LOST")
    done = [run(workshop, "--full"), run(workshop)]
    assert [code(one) for one in done] == [("SUCCESS", None)] * 2
    assert sum(one["deleted"] for one in done) == 1
    there = {int(str(row["user_id"])) for row in held(objects(out / "users"), "user_id")}
    assert there == {user for user, _ in mart(workshop)}


# --- another table, another address


def test_another_table_and_back_again(workshop: Workshop, postgres: Database) -> None:
    other = CREATED.replace("crm.users", "crm.others")
    for table in (CREATED, other, CREATED, other, CREATED):
        workshop.sync("users", destination=table, deletes="delete")
        workshop.warehouse("UPDATE users SET spend = spend + 1 WHERE user_id = 1")
        assert code(run(workshop)) == ("SUCCESS", None)
    assert rows(postgres) == mart(workshop)


@pytest.mark.parametrize("parts", [APPEND, MIRROR], ids=["append", "mirror"])
def test_the_same_table_by_another_address_keeps_its_baseline(
    workshop: Workshop, postgres: Database, parts: dict[str, str]
) -> None:
    workshop.sync("users", **parts)
    run(workshop)
    with Proxy(postgres.host, postgres.port) as proxy:
        address, there = workshop.environment["POSTGRES_PORT"], str(proxy.port)
        for port in (there, there, address, there, address):
            workshop.environment["POSTGRES_PORT"] = port
            workshop.warehouse(
                "INSERT INTO users SELECT max(user_id) + 1, '', 0 FROM users;"
                " DELETE FROM users WHERE user_id = (SELECT min(user_id) FROM users)"
                if parts is MIRROR
                else "INSERT INTO users SELECT max(user_id) + 1, '', 0 FROM users"
            )
            dry = run(workshop, "--dry-run")
            done = run(workshop)
            assert (code(done), done["inserted"], dry["inserted"]) == (("SUCCESS", None), 1, 1)
            assert rows(postgres) == mart(workshop)


@pytest.mark.parametrize("way", ["adopt", "rebuild"])
def test_what_was_taken_as_delivered_at_another_address_holds_at_each(
    workshop: Workshop, postgres: Database, way: str
) -> None:
    """Nothing is written there, so no mark of the table tells which address was the last."""
    table = "CREATE TABLE crm.users (user_id bigint NOT NULL, email text, spend numeric(12, 2))"
    execute(postgres, "CREATE SCHEMA crm", table)  # no key keeps a row from coming twice
    workshop.sync("users", **APPEND)
    run(workshop)
    loaded = "(500, 'by hand', 1)"
    workshop.warehouse(f"INSERT INTO users VALUES {loaded}")
    execute(postgres, f"INSERT INTO crm.users VALUES {loaded}")
    with Proxy(postgres.host, postgres.port) as proxy:
        address, there = workshop.environment["POSTGRES_PORT"], str(proxy.port)
        workshop.environment["POSTGRES_PORT"] = there
        assert workshop.retl("state", way, "users", "--yes").code == 0
        for port in (there, address, there):
            workshop.environment["POSTGRES_PORT"] = port
            for _ in range(2):
                done = run(workshop)
                assert (code(done), done["inserted"]) == (("SUCCESS", None), 0)
    assert rows(postgres) == mart(workshop)
    workshop.environment["POSTGRES_PORT"] = address
    workshop.warehouse("INSERT INTO users VALUES (501, 'of the mart', 1)")
    assert run(workshop)["inserted"] == 1
    assert rows(postgres) == mart(workshop)


# --- another owner


def test_a_row_made_anew_gets_the_fields_of_every_sync(workshop: Workshop, postgres: Database) -> None:
    workshop.sync("people", fields="{spend: spend}", **MIRROR)
    run(workshop, "--sync", "people")
    execute(postgres, "ALTER TABLE crm.users ADD email text")
    workshop.sync(
        "emails",
        fields="{email: email}",
        write="update_only",
        destination="{type: postgres, table: crm.users}",
    )
    email = "SELECT user_id, email FROM crm.users ORDER BY 1"
    assert run(workshop, "--sync", "emails")["rejected"] == 0
    for _ in range(3):
        workshop.warehouse("CREATE OR REPLACE TABLE gone AS FROM users WHERE user_id = 4")
        workshop.warehouse("DELETE FROM users WHERE user_id = 4")
        run(workshop, "--sync", "people")
        workshop.warehouse("INSERT INTO users FROM gone")
        run(workshop, "--sync", "people")
        done = run(workshop, "--sync", "emails")
        assert (code(done), done["unchanged"]) == (("SUCCESS", None), ROWS - 1)
        assert dict(rows(postgres, email))[4] == "u4@example.com"
    again = run(workshop, "--sync", "emails")
    assert again["unchanged"] == ROWS


# --- a server that forgets


REDIS = {ttl: f'{{type: redis, key: "users:{{user_id}}", value: json, ttl: {ttl}}}' for ttl in ("none", "1h")}


def stored(server: RedisServer) -> int:
    with server.client() as client:
        return len(client.keys("users:*"))


def flush(server: RedisServer) -> None:
    with server.client() as client:
        client.flushdb()


def test_a_flushed_redis_is_refused_and_a_limited_repair_owes_the_rest(
    workshop: Workshop, redis_server: RedisServer
) -> None:
    workshop.use(redis=redis_server)
    workshop.sync("users", destination=REDIS["none"])
    run(workshop)
    flush(redis_server)
    assert code(run(workshop)) == ("REFUSED", "TARGET_LOST")
    assert code(run(workshop, "--full", "--limit", "2")) == ("SUCCESS", None)
    done = run(workshop)
    assert (code(done), stored(redis_server)) == (("SUCCESS", None), ROWS)
    assert run(workshop)["unchanged"] == ROWS


def test_a_refill_that_is_stopped_owes_the_rest(workshop: Workshop, redis_server: RedisServer) -> None:
    workshop.use(redis=redis_server)
    workshop.sync("users", destination=REDIS["1h"], batch="{rows: 2}")
    run(workshop)
    flush(redis_server)
    assert workshop.process("sync", RETL_CRASH_AT="batch_answered:14").code == -9
    assert 0 < stored(redis_server) < ROWS
    assert code(run(workshop)) == ("SUCCESS", None)
    assert stored(redis_server) == ROWS


@pytest.mark.parametrize("ttl", REDIS)
@pytest.mark.parametrize("at", [b"SET", b"HINCRBY"])
def test_a_redis_that_forgets_during_a_run_is_noticed(
    workshop: Workshop, redis_server: RedisServer, ttl: str, at: bytes
) -> None:
    workshop.use(redis=redis_server)
    workshop.sync("users", destination=REDIS[ttl], batch="{rows: 2}")
    with Proxy(redis_server.host, redis_server.port) as proxy:
        workshop.environment["REDIS_PORT"] = str(proxy.port)
        workshop.environment["REDIS_HOST"] = proxy.host
        proxy.act(lambda: flush(redis_server), *[at] * 15)
        assert code(run(workshop)) == ("FAILED", "TARGET_RESET")
        assert code(run(workshop)) == ("SUCCESS", None)
    assert stored(redis_server) == ROWS


# --- rows that are gone, and every trace is there


def test_a_few_rows_that_a_person_removed_are_said_and_mended_on_demand(
    workshop: Workshop, postgres: Database
) -> None:
    """Two percent of 200 keys are four. In a small table one row is more: it may have been restored."""
    workshop.sync("users", **MIRROR)
    run(workshop)
    execute(postgres, "DELETE FROM crm.users WHERE user_id = 3")
    assert code(run(workshop)) == ("REFUSED", "TARGET_LOST")
    workshop.retl("reconcile", "users", "--repair")
    assert rows(postgres) == mart(workshop)
    workshop.warehouse(f"INSERT INTO users SELECT i, 'new', 1 FROM range({ROWS + 1}, 201) t(i)")
    run(workshop)
    execute(postgres, "DELETE FROM crm.users WHERE user_id IN (3, 50, 120)")
    after = run(workshop)
    assert code(after) == ("SUCCESS", None)
    assert "`retl reconcile users --repair` sends what is missing" in " ".join(after["notes"])
    workshop.retl("reconcile", "users", "--repair")
    assert rows(postgres) == mart(workshop)
    assert "lacks" not in str(run(workshop).get("notes"))


def test_a_loss_that_was_seen_is_seen_by_every_later_run_until_it_is_mended(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.sync("users", **MIRROR)
    workshop.warehouse("INSERT INTO users SELECT i, 'new', 1 FROM range(10000, 12000) t(i)")
    run(workshop)
    execute(postgres, "DELETE FROM crm.users WHERE user_id >= 10000 AND user_id % 33 = 0")  # 3 %: by luck
    lost = ("REFUSED", "TARGET_LOST")
    found = next((one for one in (code(run(workshop)) for _ in range(12)) if one == lost), None)
    assert found == lost, "twelve samples saw nothing"
    assert {code(run(workshop)) for _ in range(4)} == {lost}
    run(workshop, "--full")
    assert code(run(workshop)) == ("SUCCESS", None)
    assert rows(postgres) == mart(workshop)
