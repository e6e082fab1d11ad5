"""A mart as the whole content of a table of PostgreSQL: what readers see, what stays, what is refused."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from tests import duckdb_files
from tests.commands import ROWS, Workshop
from tests.servers import Database

DESTINATION = "{type: postgres, table: crm.users, create: true, mode: snapshot}"
PUBLISHED = {"destination": DESTINATION, "deletes": "delete"}
CHANGE = "UPDATE users SET spend = spend + 1; DELETE FROM users WHERE user_id = 9"
BAD = "CREATE OR REPLACE VIEW seen AS SELECT user_id, email, CASE WHEN user_id = 4 THEN NULL ELSE spend END AS spend"


@pytest.fixture
def workshop(tmp_path: Path, postgres: Database) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.use(postgres=postgres)
    made.sync("users", **PUBLISHED)
    return made


def run(workshop: Workshop, *words: str) -> dict[str, Any]:
    (found,) = workshop.retl("sync", *words, "--output", "json").document["syncs"]
    return dict(found)


def code(done: dict[str, Any]) -> Any:
    return (done["status"], (done["error"] or {}).get("code"))


def rows(database: Database, sql: str = "SELECT user_id, spend FROM crm.users ORDER BY 1") -> list[Any]:
    with database.connect() as connection:
        return connection.execute(sql).fetchall()


def execute(database: Database, *statements: str) -> None:
    with database.connect() as connection:
        for statement in statements:
            connection.execute(statement)


def mart(workshop: Workshop) -> list[Any]:
    with duckdb_files.opened(workshop.folder / "data" / "warehouse.duckdb", read_only=True) as connection:
        return connection.execute("SELECT user_id, spend FROM users ORDER BY 1").fetchall()


def test_the_table_holds_the_mart_and_nothing_else(workshop: Workshop, postgres: Database) -> None:
    first = run(workshop)
    assert (code(first), first["inserted"]) == (("SUCCESS", None), ROWS)
    idle = run(workshop)
    assert (idle["unchanged"], idle["bytes"]) == (ROWS, 0)
    execute(postgres, "INSERT INTO crm.users VALUES (77, 'theirs', 1)")
    workshop.warehouse(CHANGE)
    second = run(workshop)
    assert (code(second), second["updated"], second["deleted"]) == (("SUCCESS", None), ROWS - 1, 1)
    assert rows(postgres) == mart(workshop)
    assert run(workshop)["unchanged"] == ROWS - 1


def test_after_a_restore_of_the_ledger_the_table_holds_the_mart_as_the_hint_says(
    workshop: Workshop, postgres: Database, tmp_path: Path
) -> None:
    run(workshop)
    shutil.copytree(workshop.folder / ".retl", tmp_path / "kept")
    workshop.warehouse("INSERT INTO users VALUES (500, 'of the lost time', 1)")
    run(workshop)
    shutil.rmtree(workshop.folder / ".retl")
    shutil.copytree(tmp_path / "kept", workshop.folder / ".retl")
    workshop.warehouse(f"DELETE FROM users WHERE user_id = 500; {CHANGE}")
    refused = run(workshop)
    assert code(refused) == ("REFUSED", "STATE_BEHIND")
    assert "every row is sent again, and what is not in the mart leaves" in refused["error"]["hint"]
    assert code(run(workshop, "--accept", "STATE_BEHIND")) == ("SUCCESS", None)
    assert rows(postgres) == mart(workshop)
    assert run(workshop)["unchanged"] == ROWS - 1


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ"])
def test_a_reader_waits_for_nothing_and_sees_one_mart(
    tmp_path: Path, every_postgres: Database, isolation: str
) -> None:
    """Also one whose transaction began before and that had not yet looked at the table: after a TRUNCATE, or
    in a new table with the old name, it would see no row at all."""
    workshop = Workshop(tmp_path / "project")
    workshop.use(postgres=every_postgres)
    workshop.sync("users", **PUBLISHED)
    run(workshop)
    before = rows(every_postgres)
    with every_postgres.connect() as reader, every_postgres.connect() as late:
        for one in (reader, late):
            one.execute(f"BEGIN ISOLATION LEVEL {isolation}; SET LOCAL lock_timeout = '1ms'")
            one.execute("SELECT 1")
        first = reader.execute("SELECT user_id, spend FROM crm.users ORDER BY 1").fetchall()
        workshop.warehouse(CHANGE)
        assert code(run(workshop)) == ("SUCCESS", None)
        held = [
            one.execute("SELECT user_id, spend FROM crm.users ORDER BY 1").fetchall()
            for one in (reader, late)
        ]
    after = rows(every_postgres)
    assert (first, after) == (before, mart(workshop))
    assert held == [after if isolation == "READ COMMITTED" else before] * 2


def test_whoever_reads_while_it_is_written_sees_the_old_mart_or_the_new(
    workshop: Workshop, postgres: Database
) -> None:
    run(workshop)
    stop, seen = threading.Event(), set[Any]()

    def read() -> None:
        with postgres.connect() as connection:
            while not stop.is_set():
                found = connection.execute("SELECT count(*), sum(spend) FROM crm.users").fetchall()
                seen.add(found[0])

    reader = threading.Thread(target=read)
    reader.start()
    wanted = {(ROWS, sum(spend for _, spend in mart(workshop)))}
    for number in range(4):
        workshop.warehouse(
            f"UPDATE users SET spend = spend + 1; INSERT INTO users VALUES ({200 + number}, '', 5)"
        )
        assert code(run(workshop)) == ("SUCCESS", None)
        wanted.add((ROWS + number + 1, sum(spend for _, spend in mart(workshop))))
    stop.set()
    reader.join()
    assert seen <= wanted


def test_what_hangs_on_the_table_stays(workshop: Workshop, postgres: Database) -> None:
    execute(
        postgres,
        "CREATE SCHEMA crm; CREATE TABLE crm.users (user_id bigint PRIMARY KEY, email text, spend numeric(12,2)"
        " CHECK (spend >= 0), note text DEFAULT 'new', n int GENERATED ALWAYS AS IDENTITY)",
        "CREATE INDEX by_spend ON crm.users (spend); COMMENT ON TABLE crm.users IS 'ours'",
        "CREATE VIEW crm.rich AS SELECT * FROM crm.users WHERE spend > 20",
        "CREATE TABLE crm.orders (user_id bigint REFERENCES crm.users)",
        "GRANT SELECT ON crm.users TO PUBLIC",
    )
    run(workshop)
    execute(postgres, "UPDATE crm.users SET note = 'kept'; INSERT INTO crm.orders VALUES (5)")
    facts = (
        "SELECT c.oid::text, c.relacl::text, obj_description(c.oid), (SELECT count(*) FROM pg_index WHERE indrelid"
        " = c.oid), (SELECT count(*) FROM pg_constraint WHERE c.oid IN (conrelid, confrelid)),"
        " (SELECT string_agg(note || n, ',' ORDER BY n) FROM crm.users WHERE user_id < 9)"
        " FROM pg_class AS c WHERE relname = 'users'"
    )
    before = rows(postgres, facts)
    workshop.warehouse(CHANGE)
    assert code(run(workshop)) == ("SUCCESS", None)
    assert rows(postgres, facts) == before
    assert rows(postgres, "SELECT count(*) FROM crm.rich") == [
        (len([s for _, s in mart(workshop) if s > 20]),)
    ]


def test_rows_that_nobody_of_ours_delivered_are_not_deleted_unasked(
    workshop: Workshop, postgres: Database
) -> None:
    execute(
        postgres,
        "CREATE SCHEMA crm; CREATE TABLE crm.users (user_id bigint PRIMARY KEY, email text, spend numeric(12,2));"
        "INSERT INTO crm.users VALUES (1, 'theirs', 0), (77, 'theirs', 0)",
    )
    refused = run(workshop)
    assert code(refused) == ("REFUSED", "TARGET_NOT_EMPTY")
    assert "--accept TARGET_NOT_EMPTY" in refused["error"]["hint"]
    assert len(rows(postgres)) == 2
    assert code(run(workshop, "--accept", "TARGET_NOT_EMPTY")) == ("SUCCESS", None)
    assert rows(postgres) == mart(workshop)
    workshop.sync("users", **PUBLISHED | {"destination": DESTINATION.replace(", mode: snapshot", "")})
    assert code(run(workshop)) == ("SUCCESS", None)
    execute(postgres, "INSERT INTO crm.users VALUES (77, 'theirs', 0)")
    workshop.sync("users", **PUBLISHED)  # until now others might write rows
    assert code(run(workshop)) == ("REFUSED", "TARGET_NOT_EMPTY")
    assert (77, 0) in rows(postgres)


def test_a_row_that_the_table_refuses_is_not_in_it_and_goes_again(
    workshop: Workshop, postgres: Database
) -> None:
    run(workshop)
    execute(postgres, "ALTER TABLE crm.users ADD CHECK (spend <> 1000)")
    workshop.warehouse("UPDATE users SET spend = 1000 WHERE user_id = 4")
    done = run(workshop)
    assert (code(done), done["rejected"], done["rejects"][0]["code"]) == (
        ("SUCCESS_WITH_REJECTS", None),
        1,
        "23514",
    )
    assert rows(postgres) == [row for row in mart(workshop) if row[0] != 4]
    workshop.warehouse("UPDATE users SET spend = 4 WHERE user_id = 4")  # as it was when it was delivered
    assert code(run(workshop)) == ("SUCCESS", None)
    assert rows(postgres) == mart(workshop)


def test_a_row_that_the_contract_rejects_refuses_the_run_or_is_not_in_it(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.sync(
        "users",
        **PUBLISHED,
        contract="{user_id: {type: integer}, email: {type: string}, spend: {type: decimal, max_digits: 12, decimal_places: 2, ge: 0}}",
    )
    run(workshop)
    workshop.warehouse(
        "UPDATE users SET spend = -1 WHERE user_id = 4; UPDATE users SET spend = 9 WHERE user_id = 5"
    )
    assert code(run(workshop)) == ("REFUSED", "REJECT_RATE")
    assert code(run(workshop, "--accept", "REJECT_RATE")) == ("SUCCESS_WITH_REJECTS", None)
    assert rows(postgres) == [row for row in mart(workshop) if row[0] != 4]
    workshop.warehouse("UPDATE users SET spend = 4 WHERE user_id = 4")  # as it was when it was delivered
    assert code(run(workshop)) == ("SUCCESS", None)
    assert rows(postgres) == mart(workshop)


def test_a_row_that_a_set_of_files_left_out_is_in_the_next_with_its_former_value(workshop: Workshop) -> None:
    """The baseline must not believe that the set before still counts."""
    workshop.write("retl.yml", "connections:\n  out: {type: files, root: out}\n")
    contract = "{user_id: {type: integer}, email: {type: string}, spend: {type: decimal, max_digits: 12, decimal_places: 2, ge: 0}}"
    files = "{connection: out, path: users, mode: snapshot, format: json, keep: 0}"
    workshop.sync("users", destination=files, deletes="delete", contract=contract)
    run(workshop)
    workshop.warehouse(
        "UPDATE users SET spend = CASE user_id WHEN 4 THEN -1 ELSE 9 END WHERE user_id IN (4, 5)"
    )
    assert code(run(workshop, "--accept", "REJECT_RATE")) == ("SUCCESS_WITH_REJECTS", None)
    workshop.warehouse("UPDATE users SET spend = 4 WHERE user_id = 4")
    assert code(run(workshop)) == ("SUCCESS", None)
    folder = workshop.folder / "out" / "users"
    (newest,) = folder.glob("sets/*/*.json")
    assert 4 in {one["user_id"] for one in json.loads(newest.read_bytes())}
    assert run(workshop)["unchanged"] == ROWS


def test_another_sync_may_update_columns_of_its_own_beside_a_snapshot(
    workshop: Workshop, postgres: Database
) -> None:
    run(workshop)
    execute(postgres, "ALTER TABLE crm.users ADD COLUMN score bigint")
    workshop.sync(
        "scores",
        source='{sql: "SELECT user_id, user_id * 10 AS score FROM users"}',
        destination="{type: postgres, table: crm.users}",
        write="update_only",
    )
    for change in ("SELECT 1", CHANGE):
        workshop.warehouse(change)
        done = workshop.retl("sync", "--output", "json").document["syncs"]
        assert {one["status"] for one in done} == {"SUCCESS"}
    wanted = [(user, spend, 10 * user) for user, spend in mart(workshop)]
    assert rows(postgres, "SELECT user_id, spend, score FROM crm.users ORDER BY 1") == wanted


def test_a_table_that_refuses_too_much_keeps_all_it_has(workshop: Workshop, postgres: Database) -> None:
    workshop.warehouse("INSERT INTO users SELECT 100 + i, '', i FROM range(100) t(i)")
    run(workshop)
    before = rows(postgres)
    execute(postgres, "ALTER TABLE crm.users ADD CHECK (spend < 500)")
    workshop.warehouse("UPDATE users SET spend = spend + 500 WHERE user_id > 170")
    done = run(workshop)
    assert code(done) == ("FAILED", "FAILED_RATE")
    assert rows(postgres) == before
    workshop.warehouse("UPDATE users SET spend = spend + 500 WHERE user_id <= 170")
    assert code(run(workshop)) == ("FAILED", "ALL_REFUSED")
    assert rows(postgres) == before


def test_rows_that_others_refer_to_stop_all_of_it(workshop: Workshop, postgres: Database) -> None:
    run(workshop)
    before = rows(postgres)
    execute(
        postgres,
        "CREATE TABLE crm.orders AS SELECT 9::bigint AS user_id; ALTER TABLE crm.orders ADD FOREIGN KEY (user_id) REFERENCES crm.users",
    )
    workshop.warehouse(CHANGE)
    assert code(run(workshop)) == ("FAILED", "SNAPSHOT_REFUSED")
    assert rows(postgres) == before
    execute(postgres, "TRUNCATE crm.orders")
    assert code(run(workshop)) == ("SUCCESS", None)
    assert rows(postgres) == mart(workshop)


def test_a_trigger_that_keeps_rows_stops_all_of_it(workshop: Workshop, postgres: Database) -> None:
    run(workshop)
    before = rows(postgres)
    execute(
        postgres,
        "CREATE FUNCTION stay() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "CREATE TRIGGER stay BEFORE DELETE ON crm.users FOR EACH ROW EXECUTE FUNCTION stay()",
    )
    workshop.warehouse(CHANGE)
    assert code(run(workshop)) == ("FAILED", "SNAPSHOT_REFUSED")
    assert rows(postgres) == before


def test_unique_values_move_and_rows_that_refer_to_each_other_leave_together(
    workshop: Workshop, postgres: Database
) -> None:
    execute(
        postgres,
        "CREATE SCHEMA crm; CREATE TABLE crm.users (user_id bigint PRIMARY KEY, email text UNIQUE,"
        " spend numeric(12,2), boss bigint REFERENCES crm.users)",
    )
    workshop.warehouse(
        "ALTER TABLE users ADD COLUMN boss BIGINT; UPDATE users SET boss = 9 WHERE user_id IN (3, 9, 10)"
    )
    assert code(run(workshop)) == ("SUCCESS", None)
    # the address of one that leaves goes to another; a boss leaves and its people get another one
    workshop.warehouse(
        "UPDATE users SET email = (SELECT email FROM users WHERE user_id = 11) WHERE user_id = 12;"
        "DELETE FROM users WHERE user_id IN (9, 10, 11); UPDATE users SET boss = 1 WHERE user_id = 3"
    )
    done = run(workshop)
    assert (code(done), done["rejected"]) == (("SUCCESS", None), 0)
    assert rows(postgres) == mart(workshop)


def test_a_run_killed_between_the_set_and_its_deletes_leaves_nothing_behind(
    workshop: Workshop, postgres: Database
) -> None:
    run(workshop)
    workshop.warehouse(CHANGE)
    assert workshop.process("sync", RETL_CRASH_AT="batch_acknowledged").code == -9
    assert rows(postgres) == mart(workshop)
    done = run(workshop)
    assert (code(done), rows(postgres)) == (("SUCCESS", None), mart(workshop))
    left = rows(
        postgres, "SELECT relname FROM pg_class WHERE relnamespace = 'crm'::regnamespace AND relkind = 'r'"
    )
    assert {name for (name,) in left} == {"users", "retl_applied"}


@pytest.mark.parametrize(
    ("parts", "wrong"),
    [
        ({"deletes": "keep"}, "OPERATION_UNSUPPORTED"),
        ({"write": "insert_only"}, "OPERATION_UNSUPPORTED"),
        ({"conflicts": "target_wins"}, "CONFLICTS_UNSUPPORTED"),
        ({"rollback": "{keep: 3d}"}, "ROLLBACK_UNSUPPORTED"),
        ({"shards": "2"}, "SHARDS_UNSUPPORTED"),
    ],
)
def test_what_a_snapshot_cannot_do_is_refused(workshop: Workshop, parts: dict[str, str], wrong: str) -> None:
    workshop.sync("users", **PUBLISHED | parts)
    done = workshop.retl("sync", "--output", "json")
    assert done.code == 2
    assert wrong in done.out + done.err


def test_a_part_of_a_snapshot_is_refused(workshop: Workshop) -> None:
    done = workshop.retl("sync", "--key", "3", "--output", "json")
    assert done.code == 2
    assert "SNAPSHOT_WHOLE" in done.out + done.err


def test_rows_of_others_that_a_snapshot_deletes_are_counted_in_a_note(
    workshop: Workshop, postgres: Database
) -> None:
    run(workshop)
    execute(postgres, "INSERT INTO crm.users (user_id) VALUES (1001), (1002)")
    workshop.warehouse("DELETE FROM users WHERE user_id = 9")
    workshop.warehouse("UPDATE users SET spend = 7 WHERE user_id = 4")
    done = run(workshop)
    assert (done["deleted"], done["updated"], done["refreshed"], done["unchanged"]) == (1, 1, 0, ROWS - 2)
    assert "deleted 2 rows that retl had not delivered" in done["notes"]
    shown = workshop.json("show")
    assert shown["foreign_deleted"] == 2
    assert not any("retl had not delivered" in note for note in run(workshop).get("notes", []))


def test_a_plan_does_not_say_that_missing_rows_are_not_sent(workshop: Workshop, postgres: Database) -> None:
    workshop.warehouse("INSERT INTO users SELECT i, 'u' || i || '@example.com', 1 FROM range(31, 200) t(i)")
    run(workshop)
    execute(postgres, "DELETE FROM crm.users WHERE user_id = 7")
    (planned,) = workshop.json("sync", "--dry-run")["syncs"]
    (lacks,) = [note for note in planned["notes"] if "lacks 1 of 199" in note]
    assert lacks.endswith("not sent: nothing changed; `retl sync --sync users --full` sends every row")
    workshop.warehouse("UPDATE users SET spend = 7 WHERE user_id = 4")
    (planned,) = workshop.json("sync", "--dry-run")["syncs"]
    assert not [note for note in planned.get("notes", []) if "lacks" in note]
    run(workshop)
    assert rows(postgres) == mart(workshop)
