"""A baseline made anew from what the target holds: `retl state rebuild`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.commands import ROWS, Workshop
from tests.servers import Database, RedisServer
from tests.test_plans_and_state import TABLE, column, run


@pytest.fixture
def workshop(tmp_path: Path, postgres: Database) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.use(postgres=postgres)
    return made


def rebuilt(workshop: Workshop, *words: str, **more: str) -> dict[str, Any]:
    return dict(workshop.json("state", "rebuild", "users", "--yes", *words, **more))


def lose_state(workshop: Workshop) -> None:
    shutil.rmtree(workshop.folder / ".retl")


def execute(postgres: Database, sql: str) -> None:
    with postgres.connect() as connection:
        connection.execute(sql)


@pytest.mark.parametrize("kind", ["postgres", "redis"])
def test_a_ledger_says_that_another_one_delivered_since(
    kind: str, workshop: Workshop, redis_server: RedisServer
) -> None:
    workshop.use(redis=redis_server)
    workshop.sync("users", **({"destination": TABLE} if kind == "postgres" else {}))
    state, said = workshop.folder / ".retl", "another ledger has delivered here since"
    run(workshop)
    state.rename(workshop.folder / "first")
    after = run(workshop, "--accept", "STATE_LOST")
    assert (after["status"], said in str(after.get("notes"))) == ("SUCCESS", False)
    workshop.warehouse("UPDATE users SET spend = spend + 1")
    for mine, theirs in (("first", "second"), ("second", "first")):
        state.rename(workshop.folder / theirs)
        (workshop.folder / mine).rename(state)
        workshop.warehouse("UPDATE users SET spend = spend + 1")
        after = run(workshop)
        assert (after["status"], said in str(after.get("notes"))) == ("SUCCESS", True)
        assert said not in str(run(workshop).get("notes"))


def test_under_conflicts_a_rebuild_counts_the_equal_rows_that_are_sent_once(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.sync("users", destination=TABLE, conflicts="manual")
    run(workshop)
    execute(postgres, "DELETE FROM crm.users WHERE user_id = 3")
    found = rebuilt(workshop)
    assert (found["same"], found["absent"], found["again"]) == (ROWS - 1, 1, ROWS - 1)
    assert f"sends {ROWS} rows ({ROWS - 1} that are the same too" in found["next_run"]
    after = run(workshop)
    assert after["updated"] + after["inserted"] == ROWS


@pytest.mark.parametrize("shards", ["1", "2"])
def test_switching_conflicts_on_says_why_unchanged_rows_are_sent_once(
    workshop: Workshop, postgres: Database, shards: str
) -> None:
    said = "unchanged rows are sent once, because `conflicts` has to learn"
    workshop.sync("users", destination=TABLE)
    assert said not in str(run(workshop).get("notes"))
    workshop.sync("users", destination=TABLE, conflicts="manual", shards=shards)
    dry = workshop.json("sync", "users", "--dry-run")["syncs"][0]
    done = run(workshop)
    assert done["updated"] == ROWS
    for one in (dry, done):
        assert f"{ROWS} {said}" in str(one.get("notes"))
    again = run(workshop)
    assert (again["updated"], said in str(again.get("notes"))) == (0, False)


def test_an_erased_row_is_in_the_sum_of_a_rebuild(workshop: Workshop, postgres: Database) -> None:
    workshop.sync("users", destination=TABLE)
    run(workshop)
    workshop.retl("erase", "--sync", "users", "--key", "3", "--reason", "asked")
    found = rebuilt(workshop)
    assert (found["read"], found["same"], found["erased"], found["rejected"]) == (ROWS, ROWS - 1, 1, 0)
    assert "0 cannot be sent; 1 is erased" in found["next_run"]


def test_after_a_lost_ledger_only_different_rows_are_sent(workshop: Workshop, postgres: Database) -> None:
    workshop.sync("users", destination=TABLE)
    assert run(workshop)["inserted"] == ROWS
    lose_state(workshop)
    execute(postgres, "UPDATE crm.users SET email = 'edited' WHERE user_id = 2")
    execute(postgres, "DELETE FROM crm.users WHERE user_id = 3")
    assert run(workshop)["guards"][0]["code"] == "STATE_LOST"
    found = rebuilt(workshop)
    assert (found["same"], found["different"], found["absent"]) == (ROWS - 2, 1, 1)
    assert "sends 2 rows" in found["next_run"]
    planned = run(workshop, "--dry-run")
    after = run(workshop)
    assert (after["status"], after["unchanged"], after["updated"], after["inserted"]) == (
        "SUCCESS",
        ROWS - 2,
        1,
        1,
    )
    assert [planned[name] for name in ("updated", "inserted", "deleted")] == [1, 1, 0]
    assert run(workshop)["unchanged"] == ROWS
    assert workshop.json("log", "verify")["faults"] == []


APPEND = {"destination": TABLE, "write": "append", "first_run": "send"}


def test_append_takes_keys_that_are_there_as_delivered_and_owes_the_others(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.sync("users", **APPEND)
    assert run(workshop)["inserted"] == ROWS
    lose_state(workshop)
    execute(postgres, "UPDATE crm.users SET email = 'edited' WHERE user_id = 2")
    execute(postgres, "DELETE FROM crm.users WHERE user_id IN (3, 4)")
    assert "appends 2 rows" in rebuilt(workshop)["next_run"]
    after = run(workshop)
    assert (after["inserted"], after["skipped"], after["unchanged"]) == (2, 0, ROWS - 2)
    assert column(postgres, "SELECT user_id FROM crm.users ORDER BY 1") == list(range(1, ROWS + 1))


def test_an_append_killed_before_its_answer_is_rebuilt_without_a_double(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.sync("users", **APPEND, batch="{rows: 5}")
    assert workshop.process("sync", RETL_CRASH_AT="batch_answered:2").code == -9
    there = len(column(postgres, "SELECT user_id FROM crm.users"))
    assert rebuilt(workshop)["same"] == there > 0
    assert run(workshop)["inserted"] == ROWS - there
    assert column(postgres, "SELECT user_id FROM crm.users ORDER BY 1") == list(range(1, ROWS + 1))
    assert workshop.json("resolve")["in_doubt"] == []


MIRROR = {"destination": TABLE, "deletes": "delete"}


def test_what_only_the_target_has_is_never_deleted_unless_it_is_taken(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.sync("users", **MIRROR)
    assert run(workshop)["inserted"] == ROWS
    lose_state(workshop)
    execute(postgres, "INSERT INTO crm.users VALUES (1001, 'theirs', 1), (1002, 'theirs', 2)")
    assert rebuilt(workshop)["taken"] == 0
    after = run(workshop)
    assert (after["unchanged"], after["deletes"]["planned"]) == (ROWS, 0)
    looked = workshop.json("state", "rebuild", "users", "--take-ownership", "--dry-run")
    assert (looked["taken"], looked["same"]) == (2, ROWS)
    assert run(workshop)["deletes"]["planned"] == 0
    assert "deletes 2 that only the target has" in rebuilt(workshop, "--take-ownership")["next_run"]
    assert run(workshop, "--dry-run")["deletes"]["planned"] == 2
    assert run(workshop)["deleted"] == 2
    assert column(postgres, "SELECT user_id FROM crm.users ORDER BY 1") == list(range(1, ROWS + 1))


def test_taken_keys_pass_the_guards_like_any_other(workshop: Workshop, postgres: Database) -> None:
    workshop.sync("users", **MIRROR)
    assert run(workshop)["inserted"] == ROWS
    execute(postgres, "INSERT INTO crm.users SELECT 1000 + i, 'theirs', 1 FROM generate_series(1, 11) AS i")
    assert rebuilt(workshop, "--take-ownership")["taken"] == 11
    assert [guard["code"] for guard in run(workshop)["guards"]] == ["DELETE_RATE"]
    assert run(workshop, "--allow-deletes", "11")["deleted"] == 11


def test_a_delivered_key_that_left_the_mart_is_named_and_not_deleted(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.sync("users", **MIRROR)
    run(workshop)
    workshop.warehouse("DELETE FROM users WHERE user_id = 1")
    found = rebuilt(workshop)
    assert found["forgotten"] == 1
    assert "left the mart and are no longer known as ours: 1 (" in found["next_run"]
    assert run(workshop)["deletes"]["planned"] == 0
    assert rebuilt(workshop, "--take-ownership")["taken"] == 1
    assert run(workshop)["deleted"] == 1


def test_rows_that_were_adopted_stay_somebody_elses(workshop: Workshop, postgres: Database) -> None:
    workshop.sync("users", **MIRROR, first_run="adopt")
    execute(postgres, "CREATE SCHEMA crm")
    execute(postgres, "CREATE TABLE crm.users (user_id bigint PRIMARY KEY, email text, spend numeric(12,2))")
    execute(postgres, f"INSERT INTO crm.users SELECT i, 'u', i FROM generate_series(1, {ROWS}) AS i")
    assert run(workshop)["skipped"] == ROWS
    assert rebuilt(workshop)["different"] == ROWS
    lose_state(workshop)
    assert rebuilt(workshop)["different"] == ROWS
    workshop.warehouse("DELETE FROM users WHERE user_id = 1")
    gone = run(workshop)
    assert (gone["updated"], gone["deletes"]["planned"]) == (ROWS - 1, 0)


def test_a_rejected_row_that_is_at_the_target_is_neither_foreign_nor_confirmed(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.sync(
        "users",
        **MIRROR,
        contract="{user_id: {type: integer}, email: {type: string, pattern: '.*@.*'}, spend: {type: decimal,"
        " max_digits: 12, decimal_places: 2}}",
        guards="{max_reject_rate: 1}",
    )
    assert run(workshop)["inserted"] == ROWS
    workshop.warehouse("UPDATE users SET email = 'broken' WHERE user_id IN (1, 2)")
    workshop.warehouse("INSERT INTO users SELECT * FROM users WHERE user_id = 3")
    execute(postgres, "DELETE FROM crm.users WHERE user_id = 2")
    lose_state(workshop)
    found = rebuilt(workshop, "--take-ownership")
    assert (found["same"], found["rejected"], found["taken"]) == (ROWS - 3, 4, 0)
    after = run(workshop)
    assert (after["rejected"], after["deletes"]["planned"], after["unchanged"]) == (4, 0, ROWS - 3)
    workshop.warehouse("DELETE FROM users WHERE user_id = 1")
    assert run(workshop)["deleted"] == 1, "it was ours, although its row was refused"


def test_an_append_row_that_is_refused_now_is_not_appended_again_later(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.sync(
        "users",
        **APPEND,
        contract="{user_id: {type: integer}, email: {type: string, pattern: '.*@.*'}}",
        guards="{max_reject_rate: 1}",
    )
    run(workshop)
    lose_state(workshop)
    workshop.warehouse("UPDATE users SET email = 'broken' WHERE user_id = 1")
    rebuilt(workshop)
    workshop.warehouse("UPDATE users SET email = 'whole@again' WHERE user_id = 1")
    assert (run(workshop)["inserted"], run(workshop)["status"]) == (0, "SUCCESS")
    assert column(postgres, "SELECT user_id FROM crm.users ORDER BY 1") == list(range(1, ROWS + 1))


def test_a_mart_without_rows_forgets_nothing_unless_that_is_accepted(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.sync("users", **MIRROR)
    run(workshop)
    workshop.warehouse("CREATE TABLE kept AS FROM users; DELETE FROM users")
    for words in (("--yes",), ("--dry-run",)):
        refused = workshop.retl("state", "rebuild", "users", *words)
        assert (refused.code, "EMPTY_SOURCE" in refused.err) == (3, True)
    workshop.warehouse("INSERT INTO users SELECT * FROM kept LIMIT 5")
    assert "ROW_DROP" in workshop.retl("state", "rebuild", "users", "--yes").err
    workshop.warehouse(
        "INSERT INTO users SELECT * FROM kept WHERE user_id NOT IN (SELECT user_id FROM users)"
    )
    assert run(workshop)["unchanged"] == ROWS, "the former baseline stands"
    workshop.warehouse("DELETE FROM users WHERE user_id > 5")
    assert rebuilt(workshop, "--accept", "ROW_DROP")["forgotten"] == ROWS - 5


def test_it_says_what_it_would_do_and_does_nothing_without_yes(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.sync("users", destination=TABLE)
    run(workshop)
    before = workshop.snapshot()
    execute(postgres, "UPDATE crm.users SET email = 'edited' WHERE user_id = 2")
    asked = workshop.retl("state", "rebuild", "users")
    assert (asked.code, "NEEDS_YES" in asked.err) == (2, True)
    looked = workshop.json("state", "rebuild", "users", "--dry-run")
    assert (looked["different"], looked["run_id"]) == (1, None)
    assert looked["next_run"].startswith("a rebuild now would find")
    assert workshop.retl("state", "rebuild", "users", "--dry-run", "--yes").code == 2
    assert workshop.snapshot() == before
    assert run(workshop)["updated"] == 0


def test_what_cannot_be_compared_or_owned_is_refused_with_another_way(workshop: Workshop) -> None:
    workshop.write("retl.yml", "connections:\n  hook: {type: webhook, url: 'http://127.0.0.1:9/x'}\n")
    workshop.sync(
        "users",
        destination="{connection: hook}",
        write="append",
        first_run="send",
        delivery="at_least_once",
    )
    refused = workshop.retl("state", "rebuild", "users", "--yes")
    assert (refused.code, "REBUILD_UNSUPPORTED" in refused.err) == (2, True)
    assert "retl state adopt users" in refused.err
    workshop.sync("users", destination=TABLE)
    refused = workshop.retl("state", "rebuild", "users", "--take-ownership", "--yes")
    assert (refused.code, "NOTHING_TO_OWN" in refused.err) == (2, True)
    assert not (workshop.folder / ".retl").exists()


@pytest.mark.parametrize("point", ["mart_frozen", "target_compared", "delta_written", "target_prepared"])
def test_a_kill_leaves_the_old_or_the_new_baseline(
    workshop: Workshop, postgres: Database, point: str
) -> None:
    workshop.sync("users", **APPEND)
    run(workshop)
    lose_state(workshop)
    execute(postgres, "DELETE FROM crm.users WHERE user_id = 3")
    assert workshop.process("state", "rebuild", "users", "--yes", RETL_CRASH_AT=point).code == -9
    if (after := run(workshop))["status"] == "REFUSED":
        assert after["guards"][0]["code"] == "STATE_LOST"
        rebuilt(workshop)
        after = run(workshop)
    assert (after["status"], after["inserted"]) == ("SUCCESS", 1)
    assert column(postgres, "SELECT user_id FROM crm.users ORDER BY 1") == list(range(1, ROWS + 1))


@pytest.mark.parametrize("point", ["target_compared", "delta_written"])
def test_a_kill_beside_a_healthy_ledger_changes_nothing_that_is_sent(
    workshop: Workshop, postgres: Database, point: str
) -> None:
    workshop.sync("users", **MIRROR)
    run(workshop)
    execute(postgres, "UPDATE crm.users SET email = 'edited' WHERE user_id = 2")
    assert workshop.process("state", "rebuild", "users", "--yes", RETL_CRASH_AT=point).code == -9
    rebuilt_already = point == "delta_written"
    assert run(workshop)["updated"] == int(rebuilt_already)
    assert {one["status"] for one in workshop.json("runs")["runs"]} == {"SUCCESS", "ABANDONED"}


@pytest.mark.parametrize(
    ("write", "confirmed", "after"),
    [
        ("insert_only", "inserts 1 row", {"inserted": 1, "updated": 0, "skipped": 0}),
        ("update_only", "updates 1 and looks again for 1 row", {"updated": 1, "skipped": 1}),
    ],
)
def test_a_key_that_is_there_settles_what_the_write_mode_settles(
    workshop: Workshop, postgres: Database, write: str, confirmed: str, after: dict[str, int]
) -> None:
    workshop.sync("users", destination=TABLE)
    run(workshop)
    lose_state(workshop)
    execute(postgres, "UPDATE crm.users SET email = 'edited' WHERE user_id = 2")
    execute(postgres, "DELETE FROM crm.users WHERE user_id = 3")
    workshop.sync("users", destination=TABLE, write=write)
    assert confirmed in rebuilt(workshop)["next_run"]
    done = run(workshop)
    assert {name: done[name] for name in after} == after
    assert done["unchanged"] == (ROWS - 1 if write == "insert_only" else ROWS - 2)


def test_only_what_a_write_would_change_is_a_difference(workshop: Workshop, postgres: Database) -> None:
    workshop.warehouse(
        "ALTER TABLE users ADD COLUMN nick VARCHAR; ALTER TABLE users ADD COLUMN phone VARCHAR"
    )
    fields = (
        "{email: email, nick: {column: nick, only_if_empty: true}, phone: {column: phone, nulls: keep},"
        " synced_at: $run_started_at, seen_by: $run_id}"
    )
    workshop.sync("users", destination=TABLE, fields=fields)
    run(workshop)
    execute(postgres, "UPDATE crm.users SET nick = 'their own', phone = '+49' WHERE user_id = 2")
    workshop.warehouse("UPDATE users SET nick = 'ours' WHERE user_id IN (2, 3)")
    found = rebuilt(workshop)
    assert (found["same"], found["different"]) == (ROWS - 1, 1), "row 3, whose nick is empty"


def test_after_a_rebuild_a_watermark_reads_the_whole_mart_once(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.warehouse("ALTER TABLE users ADD COLUMN seen TIMESTAMP")
    workshop.warehouse("UPDATE users SET seen = TIMESTAMP '2026-01-01' + INTERVAL (user_id) HOUR")
    workshop.sync("users", destination=TABLE, changes="{watermark: seen}")
    run(workshop)
    execute(postgres, "DELETE FROM crm.users WHERE user_id = 1")
    rebuilt(workshop)
    owed = run(workshop)
    assert (owed["read"], owed["inserted"], owed["unchanged"]) == (ROWS, 1, ROWS - 1)
    assert run(workshop)["read"] == 1


def test_a_policy_that_hides_rows_is_not_taken_for_missing_rows(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.sync("users", **APPEND)
    run(workshop)
    execute(postgres, "DROP ROLE IF EXISTS half_blind; CREATE ROLE half_blind LOGIN PASSWORD 'x'")
    execute(
        postgres,
        "GRANT ALL ON SCHEMA crm TO half_blind; GRANT ALL ON ALL TABLES IN SCHEMA crm TO half_blind;"
        " ALTER TABLE crm.users ENABLE ROW LEVEL SECURITY;"
        " CREATE POLICY partly ON crm.users USING (user_id > 5) WITH CHECK (true)",
    )
    account = {"POSTGRES_USER": "half_blind", "POSTGRES_PASSWORD": "x"}
    refused = workshop.retl("state", "rebuild", "users", "--yes", **account)
    assert (refused.code, "row-level security" in refused.err) == (1, True)
    execute(postgres, "DROP OWNED BY half_blind; DROP ROLE half_blind")
    assert run(workshop)["unchanged"] == ROWS


def test_a_table_that_is_not_there_yet_gives_an_empty_baseline(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.sync("users", **MIRROR)
    assert rebuilt(workshop, "--take-ownership")["absent"] == ROWS
    assert run(workshop)["inserted"] == ROWS
    workshop.sync("users", **MIRROR, fields='{"*": "*", origin: {value: warehouse}}')
    assert rebuilt(workshop)["different"] == ROWS, "the column is not there yet"
    assert run(workshop)["updated"] == ROWS


def test_a_rebuild_is_a_run_of_its_own_and_no_delivery(workshop: Workshop, postgres: Database) -> None:
    workshop.sync("users", destination=TABLE, freshness="1h")
    run(workshop)
    (before,) = workshop.json("status")["syncs"]
    found = rebuilt(workshop)
    shown = workshop.json("show")
    assert (shown["run_id"], shown["purpose"], shown["status"]) == (found["run_id"], "repair", "SUCCESS")
    (after,) = workshop.json("status")["syncs"]
    assert after["last_success"] == before["last_success"]
    assert workshop.json("state", "show", "--sync", "users")["checkpoints"][0]["baseline_rows"] == ROWS


def test_while_a_run_holds_the_lock_nothing_is_rebuilt(workshop: Workshop, postgres: Database) -> None:
    from retl.ledger import open_ledger

    workshop.sync("users", destination=TABLE)
    run(workshop)
    ledger = open_ledger("file:.retl", workshop.folder, environment=None)
    with ledger.lock(["users"], sync="users", host="elsewhere", pid=1):
        refused = workshop.retl("state", "rebuild", "users", "--yes")
    ledger.close()
    assert (refused.code, "LOCK_HELD" in refused.err) == (75, True)


@pytest.mark.parametrize("parts", [APPEND, MIRROR], ids=["append", "mirror"])
def test_a_ledger_of_yesterday_is_made_good(
    workshop: Workshop, postgres: Database, parts: dict[str, str]
) -> None:
    workshop.sync("users", **parts)
    run(workshop)
    shutil.copytree(workshop.folder / ".retl", workshop.folder / "yesterday")
    workshop.warehouse("INSERT INTO users SELECT 100 + i, 'new', 1 FROM range(5) t(i)")
    assert run(workshop)["inserted"] == 5
    workshop.warehouse("INSERT INTO users VALUES (200, 'newer', 1)")
    run(workshop)
    lose_state(workshop)
    (workshop.folder / "yesterday").rename(workshop.folder / ".retl")
    assert run(workshop)["guards"][0]["code"] == "STATE_BEHIND"
    assert rebuilt(workshop)["same"] == ROWS + 6
    workshop.warehouse("INSERT INTO users VALUES (300, 'newest', 1)")
    after = run(workshop)
    assert (after["status"], after["inserted"], after["unchanged"]) == ("SUCCESS", 1, ROWS + 6)
    assert column(postgres, "SELECT count(*) FROM crm.users") == [ROWS + 7]
