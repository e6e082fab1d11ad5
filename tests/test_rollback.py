"""A run that is taken back from the rows as they were before it: `rollback` of a sync and `retl rollback`."""

from __future__ import annotations

import os
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pytest
from msgspec.structs import replace

from retl.ledger import open_ledger
from tests.commands import ROWS, Workshop
from tests.proxy import Proxy
from tests.servers import Database
from tests.test_ambiguity import COMMITTING
from tests.test_plans_and_state import TABLE, column, only, run
from tests.test_reconcile import execute, reconciled, verdicts

KEEP = {"destination": TABLE, "deletes": "delete", "rollback": "{keep: 30d}"}
BAD = (
    "UPDATE users SET email = 'bad', spend = 0 WHERE user_id < 6; DELETE FROM users WHERE user_id IN (10, 11);"
    "INSERT INTO users VALUES (100, 'x', 1), (101, 'y', 2)"
)


@pytest.fixture
def workshop(tmp_path: Path, postgres: Database) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.use(postgres=postgres)
    return made


def rows(postgres: Database, but: str = "false") -> list[Any]:
    return column(postgres, f"SELECT t::text FROM crm.users AS t WHERE NOT ({but}) ORDER BY user_id")


def begun(workshop: Workshop, postgres: Database, **more: str) -> list[Any]:
    """A table of an application that a sync has filled; returns its rows."""
    workshop.sync("users", **{**KEEP, **more})
    execute(
        postgres,
        "CREATE SCHEMA crm; CREATE TABLE crm.users (user_id bigint PRIMARY KEY, email text, spend numeric(12,2),"
        " notes text, born timestamptz DEFAULT '2026-01-01', tags text[] DEFAULT '{a,\"b,c\"}',"
        " raw bytea DEFAULT '\\xff00', doc jsonb DEFAULT '{\"a\": 1.10}',"
        " number bigint GENERATED ALWAYS AS IDENTITY, twice numeric GENERATED ALWAYS AS (spend * 2) STORED)",
    )
    assert run(workshop)["status"] == "SUCCESS"
    execute(postgres, "UPDATE crm.users SET notes = 'note, \"' || user_id || E'\\n'")
    return rows(postgres)


def bad_run(workshop: Workshop) -> str:
    workshop.warehouse(BAD)
    done = run(workshop)
    assert (done["updated"], done["inserted"], done["deleted"]) == (5, 2, 2)
    return str(done["run_id"])


def test_a_run_is_named_from_the_end_or_by_its_sync(workshop: Workshop, postgres: Database) -> None:
    begun(workshop, postgres)
    bad = bad_run(workshop)
    for words in ("-1", "users", bad[-6:]):
        said = workshop.retl("rollback", words, "--dry-run", "--output", "json")
        assert only(said.document)["deletes"]["planned"] == 2, words
    assert run(workshop)["status"] == "SUCCESS"
    workshop.json("reconcile", "users")
    preview = workshop.json("rollback", "users", "--dry-run")["syncs"][0]
    assert preview["deletes"]["planned"] == 2, "the runs since then wrote nothing"
    shown = workshop.json("show", bad)
    began = shown["started_at"][:19].replace("T", " ")
    assert preview["notes"][0] == (
        f"this takes back run {bad}, a sync that began at {began}Z and wrote 2 inserted, 5 updated and 2 deleted"
        " rows"
    )
    assert rolled_back(workshop, "-3")["status"] == "SUCCESS"
    assert workshop.json("log", "--run", "-1")["rows"], "the rollback is a run"
    said = workshop.retl("rollback", "-x")
    assert (said.code, "no such option: -x" in said.err) == (2, True)


def rolled_back(workshop: Workshop, *words: str) -> dict[str, Any]:
    said = workshop.retl("rollback", *words, "--output", "json")
    assert said.code == 0, said.err
    return dict(said.document["syncs"][0])


def test_a_rollback_restores_every_row_and_no_run_undoes_it(workshop: Workshop, postgres: Database) -> None:
    before = begun(workshop, postgres)
    bad = bad_run(workshop)
    files = list((workshop.folder / ".retl" / "runs").glob(f"{bad}.images-*"))
    assert {oct(one.stat().st_mode & 0o777) for one in files} == {"0o600"}
    planned = rolled_back(workshop, bad, "--dry-run")
    assert rows(postgres) != before
    done = rolled_back(workshop, bad)
    for one in (planned, done):
        assert (one["updated"], one["inserted"], one["deleted"]) == (5, 2, 2)
    assert rows(postgres) == before
    assert "9 rows restored, 0 touched since" in done["notes"][1]
    assert f"`retl state resume {done['sync']}`" in done["notes"][1]
    assert run(workshop)["status"] == "PAUSED"
    assert workshop.json("show", done["run_id"])["purpose"] == "rollback"
    workshop.json("state", "resume", "users")
    for _ in range(3):
        after = run(workshop)
        assert (after["status"], after["unchanged"], after["deletes"]["planned"]) == ("SUCCESS", ROWS, 0)
    assert rows(postgres) == before
    found = reconciled(workshop)
    assert (verdicts(found), found["held"]) == ({"same": ROWS - 7}, 9)
    workshop.warehouse("UPDATE users SET email = 'good' WHERE user_id = 1")
    assert run(workshop)["updated"] == 1
    workshop.warehouse("UPDATE users SET email = 'u2@example.com', spend = 2 WHERE user_id = 2")
    run(workshop)
    assert rows(postgres, "user_id = 1") == [one for one in before if not one.startswith("(1,")]


def test_what_somebody_touched_since_stays_and_is_counted(workshop: Workshop, postgres: Database) -> None:
    before = begun(workshop, postgres)
    bad = bad_run(workshop)
    execute(
        postgres,
        "UPDATE crm.users SET email = 'human' WHERE user_id = 1;"
        "UPDATE crm.users SET email = 'human', spend = 9 WHERE user_id = 2;"
        "UPDATE crm.users SET notes = 'theirs' WHERE user_id = 3;"
        "DELETE FROM crm.users WHERE user_id = 4;"
        "UPDATE crm.users SET notes = 'ours now' WHERE user_id = 100;"
        "INSERT INTO crm.users (user_id, email) VALUES (10, 'again')",
    )
    done = rolled_back(workshop, bad)
    assert "5 rows restored, 4 touched since and left alone, 1 of the restored ones only in part" in str(
        done["notes"]
    )
    now = dict(zip(column(postgres, "SELECT user_id FROM crm.users ORDER BY 1"), rows(postgres), strict=True))
    old = {int(one[1:].partition(",")[0]): one for one in before}
    assert [now[n] for n in (5, 11, 20)] == [old[n] for n in (5, 11, 20)]
    assert (now[1].split(",")[1:3], now[2].split(",")[1:3]) == (["human", "1.00"], ["human", "9.00"])
    assert now[3] == old[3].replace('"note, ""3\n"', "theirs").replace(now[3].split(",")[3], "theirs")
    assert "ours now" in now[100]
    assert "again" in now[10]
    assert (4 in now, 101 in now) == (False, False)


def test_a_rollback_can_be_taken_back_and_twice_is_once(workshop: Workshop, postgres: Database) -> None:
    before = begun(workshop, postgres)
    bad = bad_run(workshop)
    after = rows(postgres)
    undone = rolled_back(workshop, bad)
    again = rolled_back(workshop, bad)
    assert (again["unchanged"], again["updated"], again["inserted"], again["deleted"]) == (9, 0, 0, 0)
    rolled_back(workshop, undone["run_id"])
    assert rows(postgres) == after
    workshop.json("state", "resume", "users")
    assert run(workshop)["unchanged"] == ROWS
    assert verdicts(reconciled(workshop))["same"] == ROWS
    workshop.warehouse("UPDATE users SET email = 'newer' WHERE user_id = 1")
    newest = run(workshop)["run_id"]
    refused = workshop.json("rollback", bad, "--dry-run")["syncs"][0]
    assert "take back the newest run first" in str(refused["notes"])
    rolled_back(workshop, newest)
    assert column(postgres, "SELECT email FROM crm.users WHERE user_id = 1") == ["bad"]
    assert before != after


def test_the_rows_before_are_shown_in_a_file(workshop: Workshop, postgres: Database) -> None:
    begun(workshop, postgres)
    bad = bad_run(workshop)
    rolled_back(workshop, bad, "--key", "2")
    path = workshop.folder / "before.parquet"
    assert workshop.json("show", bad, "--images", str(path))["images"] == 9
    assert oct(path.stat().st_mode & 0o777) == "0o600"
    with duckdb.connect() as connection:
        found = connection.execute(
            "SELECT record_key, pre_write_values->>'email', target_system, target_entity, rollback_executed"
            f" FROM '{path}' WHERE pipeline_run_id = '{bad}' AND snapshot_timestamp > '2026-01-01'"
            " ORDER BY CAST(record_key AS INTEGER)"
        ).fetchall()
    ours = ("postgres", "crm.users")
    assert found[:2] == [("1", "u1@example.com", *ours, False), ("2", "u2@example.com", *ours, True)]
    assert [one[:2] for one in found[5:]] == [
        ("10", "u10@example.com"),
        ("11", "u11@example.com"),
        ("100", None),
        ("101", None),
    ]


def test_one_key_of_a_run_is_taken_back_alone(workshop: Workshop, postgres: Database) -> None:
    begun(workshop, postgres)
    bad = bad_run(workshop)
    done = rolled_back(workshop, bad, "--key", "2", "--key", "100", "--no-pause")
    assert (done["updated"], done["deleted"], done["read"]) == (1, 1, 1)
    assert column(postgres, "SELECT count(*) FROM crm.users WHERE email = 'bad'") == [4]
    assert run(workshop)["status"] == "SUCCESS"
    rest = rolled_back(workshop, bad)
    assert (rest["updated"], rest["inserted"], rest["deleted"]) == (4, 2, 1)


def test_a_rollback_by_the_name_of_a_sync_never_takes_a_rollback_back(
    workshop: Workshop, postgres: Database
) -> None:
    before = begun(workshop, postgres)
    bad = bad_run(workshop)
    undone = rolled_back(workshop, "users")
    assert rows(postgres) == before
    again = rolled_back(workshop, "users")
    assert (again["unchanged"], again["updated"], rows(postgres)) == (9, 0, before)
    assert (
        f"run {bad} was taken back by run {undone['run_id']} already: `retl rollback {undone['run_id']}` would"
        " bring its rows again"
    ) in again["notes"]
    assert f"this takes back run {undone['run_id']}, a rollback" in str(
        workshop.json("rollback", undone["run_id"], "--dry-run")["syncs"][0]["notes"]
    )


def test_a_sync_of_which_no_run_wrote_anything_has_nothing_to_take_back(workshop: Workshop) -> None:
    workshop.warehouse("DELETE FROM users")
    workshop.sync("users", **KEEP | {"destination": "{type: postgres, table: crm.users, create: true}"})
    assert run(workshop)["read"] == 0
    said = workshop.retl("rollback", "users", "--dry-run")
    assert (said.code, "no run of users wrote a row [RUN_UNKNOWN]" in said.err) == (2, True)
    assert "`retl runs users` lists its runs" in said.err


def test_a_key_that_the_run_did_not_write_is_refused(workshop: Workshop, postgres: Database) -> None:
    begun(workshop, postgres)
    bad = bad_run(workshop)
    before, runs = rows(postgres), len(workshop.json("runs")["runs"])
    for words in (["--key", "50"], ["--key", "2", "--key", "nosuch"]):
        for more in (["--dry-run"], []):
            said = workshop.retl("rollback", bad, *words, *more)
            assert said.code == 2, said.out
            assert "KEY_UNKNOWN" in said.err
            assert f"`retl log --run {bad}` lists the rows of the run" in said.err
    assert f"run {bad} wrote no row with 1 of these 2 keys" in said.err
    assert rows(postgres) == before
    assert len(workshop.json("runs")["runs"]) == runs, "an attempt that cannot be is no run"
    assert run(workshop)["status"] == "SUCCESS", "and it pauses nothing"


def test_a_key_of_several_columns_may_be_written_with_blanks(workshop: Workshop, postgres: Database) -> None:
    workshop.warehouse("CREATE TABLE pairs AS SELECT 'eu' AS a, i AS b, i AS v FROM range(100) t(i)")
    pairs = {"destination": "{type: postgres, table: crm.pairs, create: true}", "rollback": "{keep: 30d}"}
    pairs |= {"source": "{table: pairs}", "key": "[a, b]", "conflicts": "manual"}
    pairs |= {"contract": "{a: {type: string}, b: {type: integer}, v: {type: integer, ge: 0}}"}
    workshop.sync("pairs", **pairs)
    workshop.json("sync", "pairs")
    execute(postgres, "UPDATE crm.pairs SET v = 7 WHERE b = 3")
    workshop.warehouse("UPDATE pairs SET v = 1000 WHERE b IN (3, 4); UPDATE pairs SET v = -1 WHERE b = 5")
    done = workshop.json("sync", "pairs")["syncs"][0]["run_id"]
    assert len(workshop.json("log", "--sync", "pairs", "--key", '["eu", 4]')["rows"]) == 2
    assert len(workshop.json("conflicts", "--key", ' ["eu" , 3]')["conflicts"]) == 1
    assert len(workshop.json("rejects", "pairs", "--key", '["eu", 5]')["rejects"]) == 1
    assert workshop.json("rejects", "dismiss", "--sync", "pairs", "--key", '["eu", 5]')["dismissed"] == 1
    assert rolled_back(workshop, done, "--key", '["eu", 4]')["updated"] == 1


def test_a_soft_rollback_marks_the_rows_and_changes_nothing_else(
    workshop: Workshop, postgres: Database
) -> None:
    begun(workshop, postgres, rollback="{keep: 30d, soft: {set: {notes: rolled back}}}")
    bad = bad_run(workshop)
    done = rolled_back(workshop, bad)
    assert (done["updated"], done["inserted"], done["deleted"]) == (7, 0, 0)
    marked = column(postgres, "SELECT user_id FROM crm.users WHERE notes = 'rolled back' ORDER BY 1")
    assert marked == [1, 2, 3, 4, 5, 100, 101]
    assert column(postgres, "SELECT count(*) FROM crm.users WHERE email = 'bad'") == [5]


def test_the_column_of_a_soft_rollback_is_there_before_it_is_needed(
    workshop: Workshop, postgres: Database
) -> None:
    soft = "{keep: 30d, soft: {set: {is_rolled_back: true}}}"
    workshop.sync("users", destination="{type: postgres, table: crm.new, create: true}", rollback=soft)
    made = run(workshop)["run_id"]
    assert rolled_back(workshop, made)["updated"] == ROWS
    assert column(postgres, "SELECT count(*) FROM crm.new WHERE is_rolled_back") == [ROWS]
    execute(postgres, "CREATE TABLE crm.mine (user_id bigint PRIMARY KEY, email text, spend numeric(12,2))")
    workshop.sync("users", destination="{type: postgres, table: crm.mine}", rollback=soft)
    said = workshop.retl("check", "users")
    assert (said.code, "TARGET_DRIFT" in said.out + said.err) == (3, True), said.out
    assert 'ADD COLUMN "is_rolled_back" boolean' in said.out + said.err


@pytest.mark.parametrize("conflicts", ["target_wins", "manual"])
def test_rolled_back_inserts_are_neither_lost_nor_sent_again_before_their_mart_rows_change(
    workshop: Workshop, postgres: Database, conflicts: str
) -> None:
    workshop.sync("users", destination=TABLE, rollback="{keep: 30d}", conflicts=conflicts)
    first = run(workshop)["run_id"]
    refused = workshop.retl("rollback", first)
    assert (refused.code, "DELETE_RATE" in refused.err) == (3, True)
    assert workshop.json("status")["syncs"][0]["status"] == "REFUSED"
    rolled_back(workshop, first, "--allow-deletes", str(ROWS), "--no-pause")
    assert column(postgres, "SELECT count(*) FROM crm.users") == [0]
    after = run(workshop)
    assert (after["status"], after["unchanged"]) == ("SUCCESS", ROWS)
    workshop.warehouse("UPDATE users SET email = 'good' WHERE user_id = 7")
    assert run(workshop)["updated"] == 1  # its key is known
    assert column(postgres, "SELECT email FROM crm.users") == ["good"]


@pytest.mark.parametrize(
    "point", ["delta_written", "batches_opened", "images_kept:2", "batch_answered:2", "committing"]
)
def test_killed_anywhere_the_rows_before_are_known_and_restored(
    workshop: Workshop, postgres: Database, point: str
) -> None:
    before = begun(workshop, postgres, batch="{rows: 2}")
    workshop.warehouse(BAD)
    assert workshop.process("sync", RETL_CRASH_AT=point).code == -9
    killed = workshop.json("runs")["runs"][0]["run_id"]
    run(workshop)
    last = workshop.json("runs")["runs"][0]["run_id"]
    assert workshop.process("rollback", last, RETL_CRASH_AT=point).code in (-9, 2)
    for one in (last, killed):
        said = workshop.retl("rollback", one)
        assert said.code == 0 or "NOT_REVERSIBLE" in said.err, said.err
    assert rows(postgres) == before
    workshop.json("state", "resume", "users")
    assert run(workshop)["unchanged"] == ROWS


HISTORY = """
CREATE TABLE crm.history (at bigint GENERATED ALWAYS AS IDENTITY, user_id bigint, old text, new text, by text);
CREATE FUNCTION crm.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO crm.history (user_id, old, new, by)
  VALUES (NEW.user_id, OLD.email, NEW.email, current_setting('application_name'));
  RETURN NULL;
END $$;
CREATE TRIGGER note AFTER UPDATE ON crm.users FOR EACH ROW WHEN (OLD.email IS DISTINCT FROM NEW.email)
EXECUTE FUNCTION crm.note()"""


def test_under_three_editors_no_edit_is_lost_and_every_image_is_exact(
    workshop: Workshop, postgres: Database
) -> None:
    begun(workshop, postgres)
    execute(postgres, HISTORY)
    stop = threading.Event()

    def edit(editor: int) -> None:
        with postgres.connect() as connection:
            connection.execute("SET application_name = 'editor'")
            for number in range(100_000):
                if stop.wait(0.002):
                    return
                user = 1 + (number * 7 + editor * 11) % 20  # the others are surely restored
                connection.execute(
                    f"UPDATE crm.users SET email = 'edit {editor}/{number}' WHERE user_id = {user}"
                )

    editors = [threading.Thread(target=edit, args=(number,)) for number in range(3)]
    for one in editors:
        one.start()
    try:
        for number in range(3):
            workshop.warehouse(f"UPDATE users SET email = 'mart {number}'")
            rolled_back(workshop, run(workshop)["run_id"], "--no-pause")
    finally:
        stop.set()
        for one in editors:
            one.join()
    restored = 0
    with postgres.connect() as connection:
        found = connection.execute("SELECT user_id, old, new, by FROM crm.history ORDER BY at").fetchall()
    before: dict[int, tuple[str, str]] = {}  # the last write of retl to each row, as (old, new)
    for user, old, new, by in found:
        if by != "editor":
            if not new.startswith("mart"):
                restored += 1
                assert (new, old) == before[user], "it undid an edit, or put back another value"
            before[user] = (old, new)
    assert restored
    assert len(found) > restored * 2


def test_no_later_run_brings_a_restored_row_back_before_it_is_asked_for(
    workshop: Workshop, postgres: Database
) -> None:
    before = begun(workshop, postgres)
    bad = bad_run(workshop)
    emails = "SELECT email FROM crm.users ORDER BY user_id"
    after = column(postgres, emails)
    rolled_back(workshop, bad, "--no-pause")
    for _ in range(10 if os.environ.get("RETL_TEST_ALL") else 3):
        assert (run(workshop)["unchanged"], run(workshop)["read"]) == (ROWS, ROWS)
    assert rows(postgres) == before
    full = run(workshop, "--full")
    assert (full["updated"], full["deletes"]["planned"]) == (ROWS, 0)
    now = column(postgres, emails)
    assert [one for one in now if one not in ("u10@example.com", "u11@example.com")] == after
    assert len(now) == len(after) + 2, "what it had deleted is nobody's to delete again"


def test_another_field_sends_restored_rows_too_and_the_plan_counts_them(
    workshop: Workshop, postgres: Database
) -> None:
    begun(workshop, postgres)
    rolled_back(workshop, bad_run(workshop), "--no-pause")
    workshop.sync("users", **KEEP, fields="{email: email}")
    (planned,) = workshop.json("plan", "--sync", "users")["syncs"]
    done = run(workshop)
    assert planned["updated"] == done["updated"] == ROWS
    assert column(postgres, "SELECT count(*) FROM crm.users WHERE email IN ('bad', 'x', 'y')") == [7]


def test_a_watermark_does_not_bring_a_restored_row_back(workshop: Workshop, postgres: Database) -> None:
    moved = "UPDATE users SET moved = TIMESTAMP '2026-01-01' + INTERVAL (user_id) HOUR"
    workshop.warehouse(f"ALTER TABLE users ADD COLUMN moved TIMESTAMP; {moved}")
    more = {"changes": "{watermark: moved, lookback: 400d}", "deletes": "keep"}
    workshop.sync("users", **KEEP | more, fields="{email: email}")
    run(workshop)
    workshop.warehouse("UPDATE users SET email = 'bad', moved = TIMESTAMP '2026-02-01' WHERE user_id < 6")
    bad = run(workshop)
    assert bad["updated"] == 5
    rolled_back(workshop, bad["run_id"], "--no-pause")
    for _ in range(2):
        again = run(workshop)
        assert (again["updated"], again["inserted"]) == (0, 0)
    assert column(postgres, "SELECT count(*) FROM crm.users WHERE email = 'bad'") == [0]
    workshop.warehouse("UPDATE users SET email = 'good', moved = TIMESTAMP '2026-02-02' WHERE user_id = 1")
    assert run(workshop)["updated"] == 1
    assert column(postgres, "SELECT user_id FROM crm.users WHERE email = 'good'") == [1]


STOP = """
CREATE FUNCTION crm.no_room() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no room' USING ERRCODE = '53100'; END $$;
CREATE TRIGGER no_room BEFORE UPDATE ON crm.users FOR EACH ROW WHEN (NEW.email = 'poison') EXECUTE FUNCTION crm.no_room()"""


@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_with_rejects_or_one_that_stopped_is_taken_back(
    workshop: Workshop, postgres: Database, stopped: bool
) -> None:
    """`stopped`: the server has no room for some rows, so the run fails after others were written."""
    before = begun(workshop, postgres, batch="{rows: 2}", guards="{max_reject_rate: 1, max_failed_rate: 1}")
    execute(postgres, STOP if stopped else "ALTER TABLE crm.users ADD CHECK (email <> 'poison')")
    workshop.warehouse(f"{BAD}; UPDATE users SET email = 'poison' WHERE user_id IN (12, 17, 19)")
    done = run(workshop)
    assert done["status"] == ("FAILED" if stopped else "SUCCESS_WITH_REJECTS"), done["error"]
    assert done["rejected"] == (0 if stopped else 3)
    assert rows(postgres) != before
    undone = rolled_back(workshop, done["run_id"], "--no-pause")
    restored = undone["updated"] + undone["inserted"] + undone["deleted"]
    assert restored == done["updated"] + done["inserted"] + done["deleted"] > 0
    assert rows(postgres) == before


def test_a_run_in_doubt_is_settled_before_it_is_taken_back(workshop: Workshop, postgres: Database) -> None:
    with Proxy(postgres.host, postgres.port) as proxy:
        workshop.use(postgres=replace(postgres, host=proxy.host, port=proxy.port))
        before = begun(workshop, postgres, retry="{attempts: 2}")
        workshop.warehouse("UPDATE users SET email = 'bad' WHERE user_id < 6")
        proxy.drop_reply(*COMMITTING, refuse=True)
        doubtful = run(workshop)
        assert (doubtful["in_doubt"], doubtful["updated"]) == (5, 0)
        proxy.heal()
        assert rows(postgres) != before, "it was committed, the answer did not arrive"
        planned = rolled_back(workshop, doubtful["run_id"], "--dry-run")
        assert (planned["updated"], "5 rows of that run have no answer" in str(planned["notes"])) == (0, True)
        undone = rolled_back(workshop, doubtful["run_id"])
        assert (undone["updated"], undone["skipped"]) == (5, 0)
        assert rows(postgres) == before
        assert workshop.retl("log", "verify").code == 0


def test_what_cannot_be_taken_back_says_why_and_what_to_do(workshop: Workshop, postgres: Database) -> None:
    workshop.sync("users", destination=TABLE)
    plain = run(workshop)["run_id"]
    said = workshop.retl("rollback", plain)
    assert (said.code, "NOT_REVERSIBLE" in said.err) == (2, True)
    assert "put the mart back as it was" in said.err
    assert workshop.retl("rollback", "nobody").code == 2
    workshop.sync(
        "users", destination="{type: postgres, table: log, create: true}", write="append", first_run="send"
    )
    appended = run(workshop)["run_id"]
    said = workshop.retl("rollback", appended)
    assert "NOT_REVERSIBLE" in said.err
    assert "can only be corrected" in said.err
    workshop.sync("users", **KEEP)
    workshop.warehouse("UPDATE users SET email = 'new' WHERE user_id = 1")
    changed = run(workshop)["run_id"]
    workshop.sync("users", **KEEP, fields="{email: email}")
    said = workshop.retl("rollback", changed)
    assert "NOT_REVERSIBLE" in said.err
    assert "are others now" in said.err


def test_images_are_removed_when_their_time_is_over(workshop: Workshop, postgres: Database) -> None:
    begun(workshop, postgres, rollback="{keep: 1s}")
    workshop.sync("users", **{**KEEP, "rollback": "none"})
    run(workshop)
    assert not list((workshop.folder / ".retl" / "runs").glob("*.images-*"))


def test_files_of_a_run_are_in_the_order_of_their_numbers(workshop: Workshop, postgres: Database) -> None:
    """A second attempt at a shard has a number with more digits, and its image of a row counts."""
    begun(workshop, postgres)
    bad = bad_run(workshop)
    folder = workshop.folder / ".retl" / "runs"
    with closing(open_ledger("file:.retl", workshop.folder, environment=None, create=False)) as ledger:
        first, _ = own = ledger.images(bad)
        numbers = (64_000_000, 128_000_000, 10**18)
        for number in numbers:
            (folder / f"{bad}.images-{number}.parquet").write_bytes((folder / first).read_bytes())
            (folder / f"{bad}.answers-{number}.parquet").write_bytes(b"")
        images, answers = ledger.images(bad), ledger.answers([bad])[bad]
    assert images == [*own, *(f"{bad}.images-{number}.parquet" for number in numbers)]
    assert answers[1:] == [f"{bad}.answers-{number}.parquet" for number in numbers]


def test_an_erasure_leaves_the_images_of_other_rows(workshop: Workshop, postgres: Database) -> None:
    before = begun(workshop, postgres)
    bad = bad_run(workshop)
    workshop.json("erase", "--sync", "users", "--key", "2", "--reason", "ticket 4711")
    done = rolled_back(workshop, bad)
    assert (done["updated"], done["inserted"], done["deleted"]) == (4, 2, 2)
    assert rows(postgres) == [one for one in before if not one.startswith("(2,")]


def test_a_target_that_cannot_keep_images_is_refused(workshop: Workshop) -> None:
    workshop.write("retl.yml", "connections:\n  hook: {type: webhook, url: 'http://127.0.0.1:9/x'}\n")
    workshop.sync("users", destination="{connection: hook}", delivery="at_least_once", rollback="{keep: 30d}")
    said = workshop.retl("validate")
    assert (said.code, "ROLLBACK_UNSUPPORTED" in said.err) == (2, True), said.err


STRANGE = "E'say \"so\",\\n then\\\\ \\r not'"


@pytest.mark.parametrize("conflicts", ["warehouse_wins", "target_wins"])
def test_a_row_that_somebody_changes_while_it_is_updated_is_kept_as_it_was_then(
    tmp_path: Path, every_postgres: Database, conflicts: str
) -> None:
    """The update waits for them. What it returns of the row before is not what it was when it began, but what
    they made of it; with every kind of text."""
    workshop = Workshop(tmp_path / "project")
    workshop.use(postgres=every_postgres)
    begun(workshop, every_postgres, deletes="keep", conflicts=conflicts)
    execute(
        every_postgres,
        f"UPDATE crm.users SET email = NULL WHERE user_id = 2; UPDATE crm.users SET email = '' WHERE user_id = 3;"
        f" UPDATE crm.users SET email = {STRANGE} WHERE user_id = 4",
    )
    workshop.warehouse("UPDATE users SET email = 'bad', spend = spend + 100")
    with every_postgres.connect() as other:
        other.autocommit = False
        other.execute("UPDATE crm.users SET email = 'theirs', spend = 55 WHERE user_id = 7")
        done: list[dict[str, Any]] = []
        runs = threading.Thread(target=lambda: done.append(run(workshop)))
        runs.start()
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        while not column(every_postgres, waiting)[0]:
            assert runs.is_alive()
            time.sleep(0.01)
        other.commit()
        held = "SELECT user_id || coalesce(email, 'NULL') || spend FROM crm.users ORDER BY user_id"
        runs.join()
    (summary,) = done
    wins = conflicts == "target_wins"
    assert summary["updated"] == ROWS - wins, "theirs is a row of conflicts that nothing is written of"
    assert rolled_back(workshop, "-1")["updated"] == ROWS - wins
    before = {str(n): f"u{n}@example.com{n}.00" for n in range(1, ROWS + 1)}
    before |= {"2": "NULL2.00", "3": "3.00", "4": 'say "so",\n then\\ \r not4.00', "7": "theirs55.00"}
    assert column(every_postgres, held) == [n + text for n, text in before.items()]


@pytest.mark.parametrize("conflicts", ["warehouse_wins", "target_wins"])
def test_what_a_newer_transaction_wrote_is_not_taken_for_a_write_of_the_run(
    tmp_path: Path, every_postgres: Database, conflicts: str
) -> None:
    """The update waits for row 1. Meanwhile a transaction that began after the run's own changes rows 7 and 20,
    which the update then finds other than they were."""
    workshop = Workshop(tmp_path / "project")
    workshop.use(postgres=every_postgres)
    begun(workshop, every_postgres, deletes="keep", conflicts=conflicts)
    workshop.warehouse("UPDATE users SET email = 'm' || user_id, spend = spend + 1000")
    execute(every_postgres, "UPDATE crm.users SET email = 'm3', spend = 1003 WHERE user_id = 3")
    with every_postgres.connect() as first:
        first.autocommit = False
        first.execute("SELECT FROM crm.users WHERE user_id = 1 FOR UPDATE")
        runs = threading.Thread(target=run, args=(workshop,))
        runs.start()
        while not column(every_postgres, "SELECT count(*) FROM pg_locks WHERE NOT granted")[0]:
            assert runs.is_alive()
            time.sleep(0.01)
        execute(every_postgres, "UPDATE crm.users SET email = 'theirs' WHERE user_id IN (7, 20)")
        first.rollback()
        runs.join()
    assert column(every_postgres, "SELECT user_id FROM crm.users WHERE spend < 1000") == []
    theirs = column(every_postgres, "SELECT user_id FROM crm.users WHERE email = 'theirs' ORDER BY 1")
    assert theirs == ([7, 20] if conflicts == "target_wins" else [])


def test_a_deleted_row_comes_back_with_the_defaults_of_columns_that_are_new_since(
    workshop: Workshop, postgres: Database
) -> None:
    begun(workshop, postgres)
    bad = bad_run(workshop)
    execute(postgres, "ALTER TABLE crm.users ADD status text NOT NULL DEFAULT 'x', ADD more text DEFAULT 'y'")
    done = rolled_back(workshop, bad, "--key", "10", "--key", "11")
    assert (done["inserted"], done["rejected"]) == (2, 0)
    found = column(
        postgres, "SELECT email || status || more FROM crm.users WHERE user_id IN (10, 11) ORDER BY 1"
    )
    assert found == ["u10@example.comxy", "u11@example.comxy"]


def test_a_deleted_row_whose_unique_value_another_row_has_now_costs_only_itself(
    workshop: Workshop, postgres: Database
) -> None:
    before = begun(workshop, postgres, guards="{max_failed_rate: 1}")
    execute(postgres, "CREATE UNIQUE INDEX ON crm.users (email) WHERE email LIKE '%@example.com'")
    bad = bad_run(workshop)
    execute(postgres, "INSERT INTO crm.users (user_id, email) VALUES (500, 'u10@example.com')")
    done = rolled_back(workshop, bad)
    assert (done["updated"], done["inserted"], done["deleted"]) == (5, 1, 2)
    assert [(one["key"], one["code"]) for one in done["rejects"]] == [("10", "23505")]
    assert rows(postgres, "user_id = 500") == [one for one in before if not one.startswith("(10,")]


@pytest.mark.parametrize("keep", [{}, {"rollback": "{keep: 30d}"}])
def test_rows_are_not_counted_for_others_where_the_table_has_a_key_twice(
    workshop: Workshop, postgres: Database, keep: dict[str, str]
) -> None:
    """Each key twice, so that there are more rows than keys although some rows were touched."""
    execute(
        postgres,
        "CREATE SCHEMA crm; CREATE TABLE crm.users (user_id bigint, email text, spend numeric(12,2));"
        f"INSERT INTO crm.users SELECT i, 'u' || i || '@example.com', i"
        f" FROM generate_series(1, {ROWS}) i, generate_series(1, 2)",
    )
    table = "{type: postgres, table: crm.users}"
    workshop.sync("users", destination=table, write="update_only", conflicts="target_wins", **keep)
    assert run(workshop)["updated"] == ROWS
    execute(postgres, "UPDATE crm.users SET email = 'theirs' WHERE user_id IN (5, 6)")
    workshop.warehouse("UPDATE users SET spend = spend + 1000, email = 'm' || user_id")
    done = run(workshop)
    assert (done["updated"], done["conflicts"]["merged"]) == (ROWS, 2)
    assert column(postgres, "SELECT user_id FROM crm.users WHERE spend < 1000") == []
    assert column(postgres, "SELECT count(*) FROM crm.users WHERE email = 'theirs'") == [4]
