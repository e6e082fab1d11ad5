"""`retl log` has one line for each row that was sent, as long as `log: {keep}` says, and knows how it ended."""

from __future__ import annotations

import csv
import json
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pytest
from msgspec.structs import replace

from retl.destinations.batch import WRITTEN, Outcome
from retl.engine.change_set import write_delta
from retl.engine.scratch import private_directory
from retl.engine.workspace import Workspace
from retl.ledger import Acknowledgement, RejectChanges, RunEnd, open_ledger
from retl.observe.signals import Stop
from retl.run import writeback
from tests.api import TOKEN, Api, reset
from tests.commands import ROWS, Workshop
from tests.ledgers import batch, start, take
from tests.servers import Database
from tests.test_doubt import APPEND, CONNECTION

TABLE = "{type: postgres, table: crm.users, create: true}"
COLUMNS = list(writeback.COLUMNS)


@pytest.fixture
def workshop(tmp_path: Path, postgres: Database) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.use(postgres=postgres)
    return made


def logged(workshop: Workshop, *words: str, **more: str) -> list[dict[str, Any]]:
    return list(workshop.json("log", *words, **more)["rows"])


def test_a_row_is_logged_each_time_that_it_is_sent_also_after_compaction(workshop: Workshop) -> None:
    workshop.sync("users", destination=TABLE, deletes="delete", batch="{rows: 7}")
    assert logged(workshop) == []
    assert "nothing was sent" in workshop.retl("log").out
    assert (len(COLUMNS), COLUMNS[0], COLUMNS[-1]) == (15, "writeback_id", "batch_id")
    first = workshop.json("sync")["syncs"][0]["run_id"]
    for change in ("UPDATE users SET email = 'e'", "DELETE FROM users WHERE user_id = 3"):
        workshop.warehouse(change)
        workshop.json("sync")
    assert len(list((workshop.folder / ".retl/runs").glob("*.snapshot.parquet"))) == 1
    found = logged(workshop)
    assert [list(row) for row in found] == [COLUMNS] * (2 * ROWS + 1)
    assert [row["operation"] for row in found] == ["insert"] * ROWS + ["update"] * ROWS + ["delete"]
    assert {row["write_status"] for row in found} == {"success"}
    assert len({row["writeback_id"] for row in found}) == len(found)
    assert found == logged(workshop)
    assert [row["write_timestamp"] for row in found] == sorted(row["write_timestamp"] for row in found)
    one = logged(workshop, "--key", "3")
    assert one == [row for row in found if row["record_key"] == "3"]
    assert (len(one), one[0]["fields_written"], one[-1]["fields_written"]) == (3, ["email", "spend"], [])
    assert {row["pipeline_run_id"] for row in logged(workshop, "--run", first)} == {first}
    assert logged(workshop, "--since", "2100-01-01") == []
    assert logged(workshop, "--since", "1h", "--sync", "users") == found
    assert (one[0]["target_entity"].split("/")[1], one[0]["retry_count"]) == ("crm.users", 0)
    assert one[0]["target_system"].startswith("postgres://")
    text = workshop.retl("log").out
    assert "the last 50 of" in text
    assert workshop.retl("log", "verify").code == 0


@pytest.mark.parametrize("ending", ["parquet", "csv", "json"])
def test_the_log_is_exported_with_all_columns(workshop: Workshop, ending: str) -> None:
    workshop.sync("users", destination=TABLE)
    workshop.json("sync")
    out = workshop.folder / f"log.{ending}"
    assert workshop.json("log", "--out", out.name) == {"rows": ROWS, "file": out.name}
    assert out.stat().st_mode & 0o077 == 0
    if ending == "csv":
        with out.open() as file:
            rows: list[Any] = list(csv.DictReader(file))
    else:
        rows = [dict(zip(COLUMNS, row, strict=True)) for row in duckdb.sql(f"FROM '{out}'").fetchall()]
    assert [list(row) for row in rows] == [COLUMNS] * ROWS
    assert [str(row["record_key"]) for row in rows] == [row["record_key"] for row in logged(workshop)]
    fields = rows[0]["fields_written"]
    assert (json.loads(fields) if ending == "csv" else fields) == ["email", "spend"]
    wrong = workshop.retl("log", "--out", "log.xlsx", "--output", "json")
    assert (wrong.code, wrong.document["error"]["code"]) == (2, "EXPORT_FORMAT")


def test_rows_tell_how_they_ended_and_what_of_them_was_written(workshop: Workshop) -> None:
    workshop.sync(
        "users",
        destination=TABLE,
        fields="{email: {column: email, nulls: keep}, spend: spend}",
        batch="{rows: 7}",
    )
    workshop.warehouse("UPDATE users SET email = NULL WHERE user_id = 4")
    workshop.json("sync")
    (row,) = logged(workshop, "--key", "4")
    assert row["fields_written"] == ["spend"]
    (row,) = logged(workshop, "--key", "5")
    assert row["fields_written"] == ["email", "spend"]


def test_a_refused_row_is_logged_as_failed_with_its_reason(workshop: Workshop, postgres: Database) -> None:
    with postgres.connect() as connection:
        connection.execute(
            "CREATE SCHEMA crm; CREATE TABLE crm.users (user_id bigint PRIMARY KEY, email text,"
            " spend numeric(12,2) CONSTRAINT small CHECK (spend <> 9))"
        )
    workshop.sync("users", destination="{type: postgres, table: crm.users}", batch="{rows: 7}")
    workshop.json("sync")
    (bad,) = logged(workshop, "--key", "9")
    assert (bad["write_status"], bad["fields_written"]) == ("failed", [])
    assert bad["error_message"].startswith("23514")
    good = [row for row in logged(workshop) if row["record_key"] != "9"]
    assert {row["write_status"] for row in good} == {"success"}
    assert len(good) == ROWS - 1


def test_sensitive_keys_are_masked_unless_they_are_asked_for(workshop: Workshop) -> None:
    contract = (
        "{user_id: {type: integer, sensitive: true}, email: {type: string},"
        " spend: {type: decimal, max_digits: 12, decimal_places: 2}}"
    )
    workshop.sync("users", destination=TABLE, contract=contract)
    workshop.json("sync")
    assert {row["record_key"] for row in logged(workshop)} == {"***"}
    assert len({row["record_key"] for row in logged(workshop, "--reveal")}) == ROWS


def test_older_runs_than_keep_are_counted_and_still_verify(workshop: Workshop) -> None:
    workshop.sync("users", destination=TABLE, log="{keep: 1ms}")
    workshop.json("sync")
    workshop.warehouse("UPDATE users SET email = 'e' WHERE user_id < 20")
    workshop.json("sync")
    assert len(logged(workshop)) < ROWS
    assert "older than `log: {keep: …}`: their rows are not known any more" in workshop.retl("log").out
    assert workshop.retl("log", "verify").code == 0


def test_a_changed_history_is_named(workshop: Workshop) -> None:
    workshop.sync("users", destination=TABLE)
    runs = [workshop.json("sync")["syncs"][0]["run_id"] for _ in range(3)]
    verified = workshop.json("log", "verify")
    assert (verified["faults"], verified["chains"][0]["runs"]) == ([], 3)
    with closing(sqlite3.connect(workshop.folder / ".retl/ledger.db")) as ledger, ledger:
        ledger.execute("UPDATE retl_runs SET os_user = 'somebody' WHERE run_id = ?", (runs[1],))
    broken = workshop.retl("log", "verify", "--output", "json")
    assert (broken.code, [one["run_id"] for one in broken.document["faults"]]) == (1, [runs[1]])
    assert runs[1] in workshop.retl("log", "verify").out


def test_the_head_of_the_chain_is_in_the_log_of_the_run(workshop: Workshop) -> None:
    workshop.sync("users", destination=TABLE)
    said = workshop.retl("sync", RETL_LOG_FORMAT="json")
    ends = [json.loads(line) for line in said.err.splitlines() if '"run_finished"' in line]
    (chain,) = workshop.json("log", "verify")["chains"]
    assert [one["chain"] for one in ends] == [chain["head"]]
    workshop.json("sync", "--dry-run")
    assert workshop.json("log", "verify")["chains"] == [chain]


def test_a_killed_run_joins_the_chain_with_the_next_one(workshop: Workshop) -> None:
    workshop.sync("users", destination=TABLE, batch="{rows: 5}")
    for event in ("batch_acknowledged:3", "committing:1", "run_finished:1"):
        workshop.warehouse("UPDATE users SET spend = spend + 1")
        assert workshop.process("sync", RETL_CRASH_AT=event).code == -9
        assert workshop.json("log", "verify")["faults"] == []
    assert workshop.json("sync")["syncs"][0]["status"] == "SUCCESS"
    found = workshop.json("log", "verify")
    assert (found["faults"], found["chains"][0]["runs"]) == ([], 4)
    done = {row["record_key"] for row in logged(workshop) if row["write_status"] == "success"}
    assert len(done) == ROWS


def test_a_sync_with_two_chains_says_where_they_come_from(workshop: Workshop) -> None:
    for name in ("users", "people"):
        workshop.sync(name, destination=f"{{type: postgres, table: crm.{name}, create: true}}")
    workshop.json("sync")
    assert "state mv" not in workshop.retl("log", "verify").out
    workshop.json("state", "reset", "people", "--yes")
    workshop.json("state", "mv", "users", "people", "--yes")
    chains = workshop.json("log", "verify")["chains"]
    assert [one["sync"] for one in chains] == ["people", "people"]
    said = workshop.retl("log", "verify").out
    assert "people has a chain for each name that its runs had (`retl state mv`)" in said
    assert all(one["first_run"] in said for one in chains)


def test_a_limit_keeps_the_newest_rows_wherever_they_go(workshop: Workshop) -> None:
    workshop.sync("users", destination=TABLE)
    workshop.json("sync")
    workshop.warehouse("UPDATE users SET email = 'e' WHERE user_id <= 4")
    workshop.json("sync")
    every = logged(workshop)
    assert logged(workshop, "--limit", "3") == every[-3:]
    assert logged(workshop, "--limit", "0") == []
    assert logged(workshop, "--limit", "99") == every
    assert workshop.json("log", "--limit", "5", "--out", "rows.json")["rows"] == 5
    exported = json.loads((workshop.folder / "rows.json").read_text())
    assert {one["writeback_id"] for one in exported} == {one["writeback_id"] for one in every[-5:]}
    table = workshop.retl("log", "--limit", "3").out
    assert f"the last 3 of {ROWS + 4} rows" in table
    assert table.count("success") == 3


def test_an_answer_over_http_has_its_status(tmp_path: Path) -> None:
    with Api() as api:
        workshop = Workshop(tmp_path / "project", {"TOOL_URL": api.url, "TOOL_TOKEN": TOKEN})
        workshop.write("retl.yml", CONNECTION)
        workshop.sync("events", **APPEND, batch="{rows: 5}")
        api.faults.extend([lambda _: False, reset(applied=True)])
        assert workshop.retl("sync").code == 1
        found = logged(workshop)
        status = Counter((row["http_status_code"], row["write_status"]) for row in found)
        assert status == {(200, "success"): ROWS - 5, (None, "retrying"): 5}
        assert found[-1]["error_message"].startswith("no answer")
        assert workshop.retl("resolve", "--delivered", "--yes").code == 0
        assert {row["write_status"] for row in logged(workshop)} == {"success"}


def test_a_row_that_a_rollback_took_back_says_so(tmp_path: Path) -> None:
    ledger = open_ledger("file:.retl", tmp_path, environment=None)
    for number, (run_id, of_run, keys) in enumerate(
        [("run-1", None, "abc"), ("run-2", "run-1", "ab"), ("run-3", "run-2", "b")], 1
    ):
        rows = " UNION ALL ".join(
            f"SELECT {at} AS pos, 'update' AS op, '{key}' AS key, NULL AS hash, true AS owned, NULL AS ref,"
            " NULL AS seen, NULL AS dropped, NULL AS unsent"
            for at, key in enumerate(keys)
        )
        with take(ledger) as lock, private_directory() as folder, Workspace(folder, Stop()) as workspace:
            purpose = "rollback" if of_run else "sync"
            ledger.begin(replace(start(number, run_id), purpose=purpose, of_run=of_run))
            write_delta(workspace, f"({rows})", folder / f"{run_id}.delta.parquet")
            ledger.put_file(f"{run_id}.delta.parquet", folder / f"{run_id}.delta.parquet")
            ledger.record_delta(run_id, lock.epoch, f"{run_id}.delta.parquet", len(keys), {})
            ledger.open_batches(run_id, lock.epoch, [batch()])
            ledger.acknowledge(run_id, lock.epoch, [Acknowledgement("b0", Outcome(WRITTEN))])
            ledger.finish(RunEnd(run_id, lock.epoch, "SUCCESS"), None, RejectChanges())

    def ended(run_id: str, key: str | None = None) -> dict[str, str]:
        with private_directory() as folder, Workspace(folder, Stop()) as workspace:
            writeback.load(ledger, workspace, writeback.Asked(run_id=run_id, key=key), lambda _: False)
            return dict(workspace.run(f"SELECT record_key, write_status FROM {writeback.LOG}"))

    assert ended("run-1") == {"a": "rolled_back", "b": "success", "c": "success"}
    assert ended("run-2") == {"a": "success", "b": "rolled_back"}
    assert ended("run-1", "a") == {"a": "rolled_back"}
    ledger.close()
