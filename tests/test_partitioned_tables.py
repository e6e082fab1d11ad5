"""Runs into a partitioned table do to the letter what runs into an ordinary one do."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.commands import Workshop
from tests.servers import Database
from tests.test_table_snapshots import code, execute, mart, rows, run

COLUMNS = "user_id bigint, email text, spend numeric(12,2), note text DEFAULT 'theirs'"
ORDINARY = f"CREATE TABLE crm.users ({COLUMNS}, PRIMARY KEY ({{key}}))"
PARTITIONED = f"""
CREATE TABLE crm.users ({COLUMNS}, PRIMARY KEY ({{key}})) PARTITION BY RANGE ({{by}});
CREATE TABLE crm.low PARTITION OF crm.users FOR VALUES FROM (0) TO (10);
CREATE TABLE crm.middle (note text DEFAULT 'other order', spend numeric(12,2), gone text, email text, user_id bigint NOT NULL);
ALTER TABLE crm.middle DROP COLUMN gone;
ALTER TABLE crm.middle ALTER COLUMN {{by}} SET NOT NULL;
ALTER TABLE crm.users ATTACH PARTITION crm.middle FOR VALUES FROM (10) TO (20);
CREATE TABLE crm.high PARTITION OF crm.users DEFAULT"""
COUNTS = ("inserted", "updated", "deleted", "unchanged", "skipped", "rejected", "conflicts")
CHANGES = (
    "UPDATE users SET spend = spend + 7 WHERE user_id % 2 = 0; DELETE FROM users WHERE user_id = 9;"
    "INSERT INTO users VALUES (15, 'again', 1), (50, 'new', 5)",
    "UPDATE users SET spend = spend - 3 WHERE user_id % 3 = 0; INSERT INTO users VALUES (9, 'back', 25)",
)
THEIRS = "UPDATE crm.users SET spend = spend + 0.5, note = 'a note' WHERE user_id IN (3, 4, 18)"


def told(workshop: Workshop, database: Database, *, back: bool) -> list[Any]:
    """What three runs with edits by others between them count and leave, and what a rollback makes of it."""
    found: list[Any] = []
    workshop.warehouse("DELETE FROM users WHERE user_id = 15")
    for change in ("SELECT 1", *CHANGES):
        workshop.warehouse(change)
        done = run(workshop)
        found.append((code(done), *(done[name] for name in COUNTS)))
        found.append(
            rows(
                database,
                "SELECT user_id, email, spend, coalesce(note, '') <> 'a note' FROM crm.users ORDER BY 1",
            )
        )
        execute(database, THEIRS)
    if back:
        undone = workshop.retl("rollback", done["run_id"], "--output", "json")
        assert undone.code == 0, undone.err
        found.append(rows(database))
    found.append(workshop.retl("reconcile", "users", "--output", "json").code)
    return found


# The first two ways are enough where time is short: what the others do, these do too.
WAYS: dict[str, tuple[dict[str, str], str]] = {
    "conflicts and images": (
        {"deletes": "delete", "conflicts": "target_wins", "rollback": "{keep: 3d}"},
        "user_id",
    ),
    "moving, images": ({"write": "update_only", "rollback": "{keep: 3d}"}, "spend"),
    "mirror": ({"deletes": "delete"}, "user_id"),
    "append": ({"write": "append", "first_run": "send"}, "user_id"),
    "insert_only": ({"write": "insert_only"}, "user_id"),
    "moving, conflicts": ({"write": "update_only", "conflicts": "manual"}, "spend"),
    "moving": ({"write": "update_only"}, "spend"),
}


@pytest.mark.parametrize("way", list(WAYS) if os.environ.get("RETL_TEST_ALL") else list(WAYS)[:2])
def test_a_partitioned_table_is_written_as_an_ordinary_one(
    tmp_path: Path, every_postgres: Database, way: str
) -> None:
    """Partitions have their columns in another order. Rows that move have their partition's key changed."""
    parts, by = WAYS[way]
    key, results = "user_id" if by == "user_id" else "user_id, spend", []
    for made in (ORDINARY, PARTITIONED):
        execute(
            every_postgres,
            f"DROP SCHEMA IF EXISTS crm CASCADE; CREATE SCHEMA crm; {made.format(key=key, by=by)}",
        )
        if parts.get("write") == "update_only":
            execute(every_postgres, "INSERT INTO crm.users SELECT i, '', i FROM generate_series(1, 40) i")
        workshop = Workshop(tmp_path / f"project{len(results)}")
        workshop.use(postgres=every_postgres)
        guards = "{max_delete_rate: 1, max_reject_rate: 1, max_failed_rate: 1}"
        workshop.sync("users", destination="{type: postgres, table: crm.users}", guards=guards, **parts)
        results.append(told(workshop, every_postgres, back="rollback" in parts))
    ordinary, partitioned = results
    assert partitioned == ordinary
    assert len(mart(workshop)) == 31


def test_rows_that_others_move_meanwhile_are_not_lost(tmp_path: Path, every_postgres: Database) -> None:
    """An update of a row that another transaction moves to another partition fails at PostgreSQL, and goes again."""
    workshop = Workshop(tmp_path / "project")
    workshop.use(postgres=every_postgres)
    execute(every_postgres, f"CREATE SCHEMA crm; {PARTITIONED.format(key='user_id, spend', by='spend')}")
    execute(every_postgres, "INSERT INTO crm.users SELECT i, '', i FROM generate_series(1, 30) i")
    workshop.sync("users", destination="{type: postgres, table: crm.users}", write="update_only")
    run(workshop)
    workshop.warehouse("UPDATE users SET email = 'new'")
    with every_postgres.connect() as other, every_postgres.connect() as watch:
        other.execute("BEGIN; UPDATE crm.users SET spend = 99 WHERE user_id = 3")
        done: list[Any] = []
        runner = Thread(target=lambda: done.append(run(workshop)))
        runner.start()
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        while not watch.execute(waiting).fetchall()[0][0]:
            assert runner.is_alive()
        other.execute("COMMIT")
        runner.join()
    assert code(done[0]) == ("SUCCESS", None)
    assert rows(every_postgres, "SELECT DISTINCT email FROM crm.users") == [("new",)]
    assert rows(every_postgres) == mart(workshop)
