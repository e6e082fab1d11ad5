"""runs, show, status, explain, state, rejects: what was, what is believed, and why."""

from __future__ import annotations

import os
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.commands import ROWS, Workshop
from tests.servers import Database, RedisServer

CONTRACT = (
    "{user_id: {type: integer}, email: {type: string, sensitive: true},"
    " spend: {type: decimal, max_digits: 12, decimal_places: 2, le: 29}}"
)


@pytest.fixture
def workshop(tmp_path: Path, redis_server: RedisServer) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.use(redis_server)
    return made


def test_runs_and_show_tell_what_happened(workshop: Workshop) -> None:
    workshop.sync("users", contract=CONTRACT)
    assert "no runs yet" in workshop.retl("runs").out
    workshop.json("sync", RETL_CORRELATION_ID="airflow-7")
    workshop.json("sync", "--key", "1")
    second, first = workshop.json("runs")["runs"]
    assert (first["status"], second["status"]) == ("SUCCESS_WITH_REJECTS", "SUCCESS")
    assert len(workshop.json("runs", "--limit", "1", "--sync", "users")["runs"]) == 1
    shown = workshop.json("show", first["run_id"])
    assert (shown["counts"]["inserted"], shown["counts"]["rejected"]) == (ROWS - 1, 1)
    assert shown["correlation_id"] == "airflow-7"
    assert (first["purpose"], shown["purpose"]) == ("sync", "sync")
    assert shown["source_identity"] == {"type": "duckdb", "path": "data/warehouse.duckdb", "table": "users"}
    assert shown["source_version"]
    assert shown["rejects"][0]["key"] == "30"
    assert {"freeze", "diff", "deliver"} <= shown["phases"].keys()
    assert workshop.json("show")["run_id"] == second["run_id"]
    text = workshop.retl("show", first["run_id"]).out
    assert "phase" in text
    assert "source version" in text
    assert "purpose" in workshop.retl("runs").out
    assert "OUT_OF_RANGE" in text


def test_status_knows_what_is_stale_paused_or_never_ran(workshop: Workshop) -> None:
    workshop.sync("fresh", freshness="1h")
    workshop.sync("stale", freshness="1ms")
    workshop.sync("paused", freshness="1ms", enabled="false")
    never = {one["sync"]: one for one in workshop.json("status")["syncs"]}
    assert [never[name]["stale"] for name in ("fresh", "stale", "paused")] == [True, True, False]
    workshop.json("sync")
    found = {one["sync"]: one for one in workshop.json("status")["syncs"]}
    assert [found[name]["stale"] for name in ("fresh", "stale", "paused")] == [False, True, False]
    assert found["paused"]["status"] == "PAUSED"
    assert found["fresh"]["last_success"].endswith("Z")
    assert workshop.retl("status", "--fail-stale").code == 1
    assert "STALE" in workshop.retl("status").out


def test_explain_follows_a_row_through_the_data_path(workshop: Workshop, redis_server: RedisServer) -> None:
    workshop.sync("users", contract=CONTRACT)
    before = workshop.snapshot()
    (new,) = workshop.json("explain", "users", "--key", "7")["rows"]
    assert new["verdict"] == {"accepted": True}
    assert new["row"] == {"user_id": 7, "email": "***", "spend": "7.00"}
    assert new["fields"] == {"email": "***", "spend": "7.00"}
    assert 'SET users:7 "{\\"email\\":\\"***\\",\\"spend\\":7.00}"' in new["request"]
    assert (new["baseline"], new["reject"]) == (None, None)
    assert new["next"].startswith("insert it")
    assert workshop.snapshot() == before
    run = workshop.json("sync")["syncs"][0]["run_id"]
    workshop.warehouse("UPDATE users SET spend = 8.5 WHERE user_id = 8")
    document = workshop.json("explain", "users", "--key", "7", "--key", "8", "--key", "30", "--read")
    same, changed, refused = sorted(document["rows"], key=lambda row: int(row["key"]))
    assert same["baseline"]["run_id"] == run
    assert same["next"].startswith("nothing")
    assert changed["next"].startswith("update it")
    assert (changed["fields"]["spend"], str(changed["target"]["spend"])) == ("8.50", "8.00")
    assert (refused["verdict"]["code"], refused["reject"]["code"]) == ("OUT_OF_RANGE", "OUT_OF_RANGE")
    assert refused["request"] is None
    (shown,) = workshop.json("explain", "users", "--key", "7", "--reveal")["rows"]
    assert "u7@example.com" in shown["request"]
    text = workshop.retl("explain", "users", "--rows", "2").out
    assert "SET" in text, "a short request is printed as it is"
    assert "u7@example.com" not in text
    assert text.count("next run") == 2


def test_explain_judges_an_unchanged_row_by_the_contract_of_today(workshop: Workshop) -> None:
    for sync in ("users", "edited"):
        workshop.sync(sync, fields="{spend: spend}")
    workshop.json("sync")
    workshop.write(
        "own.py",
        "from decimal import Decimal\nfrom pydantic import BaseModel, Field\n\n\nclass User(BaseModel):\n"
        "    user_id: int\n    spend: Decimal = Field(le=20, max_digits=12, decimal_places=2)\n",
    )
    tight = "{user_id: {type: integer}, spend: {type: decimal, max_digits: 12, decimal_places: 2, le: 20}}"
    workshop.sync("users", fields="{spend: spend}", contract=tight)
    guards = "{max_reject_rate: 1}"  # of a contract that edits, a run judges every row
    own = '{model: "own:User", edits: true}'
    workshop.sync("edited", fields="{spend: spend}", contract=own, guards=guards)
    nothing = "nothing: it is the same as confirmed"
    for sync, next_run in (
        ("users", f"{nothing}, although today's contract rejects it"),
        ("edited", "reject it"),
    ):
        document = workshop.json("explain", sync, "--key", "20", "--key", "21")
        fits, breaks = sorted(document["rows"], key=lambda row: int(row["key"]))
        assert (fits["verdict"], fits["next"]) == ({"accepted": True}, nothing)
        assert (breaks["verdict"]["accepted"], breaks["verdict"]["code"]) == (False, "OUT_OF_RANGE")
        assert breaks["next"].startswith(next_run)
        assert breaks["request"] is None, "`--key` would send none"
    assert "rejected, spend is outside" in workshop.retl("explain", "users", "--key", "21").out
    assert workshop.json("sync", "--sync", "users")["syncs"][0]["unchanged"] == ROWS


def test_explain_asks_nobody_and_needs_no_server(workshop: Workshop) -> None:
    workshop.sync("users")
    workshop.environment["REDIS_PORT"] = "1"
    assert len(workshop.json("explain", "users")["rows"]) == 3
    assert workshop.retl("explain", "users", "--read").code == 1


def test_explain_knows_rows_that_left_or_never_came(workshop: Workshop, postgres: Database) -> None:
    workshop.use(postgres=postgres)
    workshop.sync("users", destination="{type: postgres, table: users, create: true}", deletes="delete")
    workshop.sync("kept")
    workshop.json("sync")
    workshop.warehouse("DELETE FROM users WHERE user_id = 5")
    (gone,) = workshop.json("explain", "users", "--key", "5")["rows"]
    assert gone["next"].startswith("delete it")
    assert "DELETE" in gone["request"]
    assert gone["row"] is None
    (kept,) = workshop.json("explain", "kept", "--key", "5")["rows"]
    assert "kept" in kept["next"]
    for never in ("12345", "no number"):
        said = workshop.retl("explain", "users", "--key", never)
        assert (said.code, "KEY_UNKNOWN" in said.err, "retl log" in said.err) == (2, True, False)
        assert "--key VALUE, a value of user_id; `retl explain users` shows some" in said.err
    workshop.json("sync", "--sync", "users")
    said = workshop.retl("explain", "users", "--key", "5", "--key", "5")
    assert (said.code, "KEY_UNKNOWN" in said.err) == (2, True)
    assert said.err.count("any more, but it was sent before") == 1
    assert "`retl log users --key KEY`" in said.err
    assert workshop.json("log", "users", "--key", "5")["rows"][-1]["operation"] == "delete"
    workshop.sync("hidden", contract="{user_id: {type: integer, sensitive: true}, email: {type: string}}")
    for words in (("explain", "hidden"), ("sync", "hidden")):
        said = workshop.retl(*words, "--key", "12345")
        assert "--key VALUE, a value of user_id" in said.err
        assert "shows some" not in said.err, "there they are masked"


def test_explain_needs_no_secret_of_the_target_and_knows_what_was_delivered(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.use(postgres=postgres)
    workshop.sync("users", destination="{connection: crm, table: users, create: true}")
    workshop.sync(
        "letters", destination="{connection: chat}", write="append", first_run="send", delivery="at_most_once"
    )
    crm = (
        f'{{type: postgres, host: "${{CRM_HOST}}", port: {postgres.port}, dbname: {postgres.dbname},'
        f' user: {postgres.user}, password: "${{CRM_PASSWORD}}"}}'
    )
    chat = '{type: webhook, base_url: "https://chat.example", auth: {type: bearer, token: "${CHAT_TOKEN}"}}'
    workshop.write("retl.yml", f"connections:\n  crm: {crm}\n  chat: {chat}\n")
    host = {"CRM_HOST": postgres.host}
    workshop.json("sync", "--sync", "users", CRM_PASSWORD=postgres.password or "x", **host)
    (row,) = workshop.json("explain", "users", "--key", "7", **host)["rows"]
    assert row["baseline"]["state"] == "confirmed"
    (row,) = workshop.json("explain", "users", "--key", "7", CRM_PASSWORD_COMMAND="false", **host)["rows"]
    assert row["baseline"]["state"] == "confirmed", "no command was run"
    assert "CRM_PASSWORD" in workshop.retl("explain", "users", "--read", **host).err
    said = workshop.retl("explain", "users")
    assert (said.code, "CRM_HOST" in said.err) == (2, True), "what was delivered there depends on the host"


def test_rejects_are_listed_and_dismissed(workshop: Workshop) -> None:
    lenient = "{max_reject_rate: 0.5}"
    workshop.sync("users", contract=CONTRACT, guards=lenient)
    workshop.json("sync")
    (found,) = workshop.json("rejects")["rejects"]
    assert (found["sync"], found["key"], found["code"], found["attempts"]) == (
        "users",
        "30",
        "OUT_OF_RANGE",
        1,
    )
    assert workshop.json("rejects", "list", "--sync", "users")["rejects"] == [found]
    assert workshop.retl("rejects", "dismiss", "--sync", "users").code == 2
    assert workshop.json("rejects", "dismiss", "--sync", "users", "--key", "30")["dismissed"] == 1
    assert workshop.json("rejects")["rejects"] == []
    for words in ((), ("--dry-run",)):
        (again,) = workshop.json("sync", *words)["syncs"]
        assert (again["status"], again["rejected"], again["rejects"]) == ("SUCCESS", 1, [])
        assert "1 rejected row is dismissed, until it changes" in again["notes"]
    assert workshop.json("status")["syncs"][0]["open_rejects"] == 0
    workshop.sync(
        "users",
        contract=CONTRACT.replace("user_id: {type: integer}", "user_id: {type: integer, sensitive: true}"),
        guards=lenient,
    )
    workshop.warehouse("UPDATE users SET spend = 40 WHERE user_id = 29")
    (open_again,) = workshop.json("sync")["syncs"]
    assert (open_again["status"], open_again["rejected"]) == ("SUCCESS_WITH_REJECTS", 2)
    assert {one["key"] for one in workshop.json("rejects")["rejects"]} == {"***"}
    assert "29" in {one["key"] for one in workshop.json("rejects", "--reveal")["rejects"]}


def test_many_rejects_are_shown_by_reason_and_the_first_row_by_row(workshop: Workshop) -> None:
    workshop.sync("users", contract=CONTRACT.replace("le: 29", "le: 3"), guards="{max_reject_rate: 1}")
    workshop.json("sync")
    (reason,) = workshop.json("rejects")["reasons"]
    assert (reason["sync"], reason["code"], reason["rows"]) == ("users", "OUT_OF_RANGE", 27)
    assert len(workshop.json("rejects")["rejects"]) == 27
    assert len(workshop.json("rejects", "--limit", "5")["rejects"]) == 5
    (one,) = workshop.json("rejects", "--key", "7")["rejects"]
    assert one["key"] == "7"
    assert workshop.retl("rejects", "--key", "1").code == 2
    assert "the first 20 of 27" in workshop.retl("rejects").out


def test_dismissing_all_rejects_of_a_sync_waits_for_yes(workshop: Workshop) -> None:
    workshop.sync("users", contract=CONTRACT, guards="{max_reject_rate: 0.5}")
    workshop.json("sync")
    asked = workshop.retl("rejects", "dismiss", "--sync", "users", "--all")
    assert (asked.code, "NEEDS_YES" in asked.err, "1 reject" in asked.err) == (2, True, True)
    assert len(workshop.json("rejects")["rejects"]) == 1
    assert workshop.json("rejects", "dismiss", "--sync", "users", "--all", "--yes")["dismissed"] == 1


def test_a_change_of_state_says_what_follows_and_waits_for_yes(workshop: Workshop) -> None:
    workshop.sync("users")
    assert "nothing was delivered yet" in workshop.retl("state").out
    workshop.json("sync")
    (checkpoint,) = workshop.json("state", "show")["checkpoints"]
    assert (checkpoint["sync"], checkpoint["baseline_rows"]) == ("users", ROWS)
    before = workshop.snapshot()
    for words in (("reset", "users"), ("adopt", "users"), ("mv", "users", "users")):
        said = workshop.retl("state", *words)
        assert said.code == 2
        assert "--yes" in said.err
    assert workshop.snapshot() == before
    assert "sends every row" in workshop.retl("state", "reset", "users", "--yes").out
    assert workshop.json("sync")["syncs"][0]["inserted"] == ROWS


def test_state_counts_what_is_confirmed_and_not_what_its_oldest_file_has(workshop: Workshop) -> None:
    workshop.sync("users", deletes="delete", guards="{max_delete_rate: 1, max_row_drop: 1}")
    workshop.json("sync", "users")
    workshop.warehouse("DELETE FROM users WHERE user_id <= 10")
    workshop.warehouse("INSERT INTO users SELECT i, 'new', 1 FROM range(101, 104) t(i)")
    workshop.json("sync", "users")
    (checkpoint,) = workshop.json("state", "show")["checkpoints"]
    assert (checkpoint["baseline_rows"], checkpoint["read_rows"]) == (ROWS - 7, ROWS - 7)


def test_adopt_takes_the_mart_as_delivered(workshop: Workshop, redis_server: RedisServer) -> None:
    workshop.sync("users")
    (adopted,) = workshop.json("state", "adopt", "users", "--yes")["syncs"]
    assert (adopted["status"], adopted["skipped"]) == ("SUCCESS", ROWS)
    with redis_server.client() as client:
        assert client.keys("users:*") == []


def test_a_renamed_sync_keeps_its_state(workshop: Workshop, postgres: Database) -> None:
    workshop.use(postgres=postgres)
    workshop.sync("users", destination="{type: postgres, table: users, create: true}")
    workshop.json("sync")
    (workshop.folder / "syncs" / "users.yml").rename(workshop.folder / "syncs" / "people.yml")
    assert workshop.retl("state", "mv", "users", "people", "--yes").code == 0
    (carried,) = workshop.json("sync")["syncs"]
    assert (carried["unchanged"], carried["inserted"]) == (ROWS, 0)


def test_unblock_says_whether_there_was_anything_to_unblock(workshop: Workshop) -> None:
    workshop.sync("users")
    assert workshop.retl("state", "unblock", "redis").code == 2
    assert workshop.json("state", "unblock", "redis", "--yes")["was_blocked"] is False


def test_status_says_what_to_do_next(workshop: Workshop) -> None:
    workshop.sync("users", contract=CONTRACT)
    workshop.sync("fresh")
    found = {one["sync"]: one for one in workshop.json("status")["syncs"]}
    assert found["fresh"]["next"] == "`retl sync --sync fresh`: it never ran"
    assert found["fresh"]["lag_seconds"] is None
    workshop.json("sync")
    found = {one["sync"]: one for one in workshop.json("status")["syncs"]}
    assert (found["fresh"]["next"], found["fresh"]["lag_seconds"]) == ("", 0)
    assert found["users"]["next"] == "`retl rejects --sync users`"
    workshop.warehouse("UPDATE users SET spend = 1000")
    changed = (workshop.folder / "data" / "warehouse.duckdb").stat()
    os.utime(workshop.folder / "data" / "warehouse.duckdb", ns=(0, changed.st_mtime_ns + 7200 * 10**9))
    assert workshop.retl("sync", "--sync", "users").code == 3
    found = {one["sync"]: one for one in workshop.json("status")["syncs"]}
    assert found["users"]["next"] == f"`retl show {found['users']['last_run']}`: REJECT_RATE"
    assert 7200 <= found["fresh"]["lag_seconds"] < 7500
    assert found["fresh"]["next"] == "run it: the mart is 2h newer"
    assert "REJECT_RATE" in workshop.retl("status").out


def test_status_speaks_of_an_open_breaker_and_of_a_sync_that_fell_asleep(
    workshop: Workshop, tmp_path: Path
) -> None:
    workshop.sync("users", freshness="1d")
    workshop.json("sync")
    with sqlite3.connect(workshop.folder / ".retl" / "ledger.db") as ledger:
        now = datetime.now(UTC).isoformat()
        ledger.execute("INSERT INTO retl_breakers VALUES ('redis', 500, ?, 'HTTP_UNREACHED')", [now])
    found = workshop.json("status")
    assert found["syncs"][0]["breaker"] == "redis"
    assert "`retl state unblock redis --yes`" in found["syncs"][0]["next"]
    assert found["warnings"] == []
    with sqlite3.connect(workshop.folder / ".retl" / "ledger.db") as ledger:
        ledger.execute("DELETE FROM retl_breakers")
        before = (datetime.now(UTC) - timedelta(days=15)).isoformat()
        ledger.execute("UPDATE retl_checkpoints SET updated_at = ?", [before])
        ledger.execute("UPDATE retl_runs SET finished_at = ?", [before])
    found = workshop.json("status")
    assert found["warnings"] == ["users: nothing was delivered for 15 days. Is it still scheduled?"]
    assert found["syncs"][0]["next"] == "run it: stale since 14d"
    assert "warning: users: nothing was delivered" in workshop.retl("status").out


def test_show_draws_the_way_from_read_to_delivered(workshop: Workshop) -> None:
    workshop.sync("users", contract=CONTRACT)
    workshop.json("sync")
    workshop.warehouse("UPDATE users SET spend = 2 WHERE user_id < 4")
    workshop.json("sync")
    text = workshop.retl("show").out
    rows = [line.split() for line in text.partition("rows ")[2].splitlines()[1:6]]
    assert rows == [
        ["read", str(ROWS), "100.0%"],
        ["-", "unchanged", str(ROWS - 3), "90.0%"],
        ["-", "rejected", "1", "3.3%"],
        ["delivered", "2", "6.7%"],
        ["updated", "2", "6.7%"],
    ]


@pytest.mark.parametrize("number", [20, 48])
def test_many_rejects_of_a_run_are_told_by_their_reason(workshop: Workshop, number: int) -> None:
    workshop.warehouse(f"CREATE TABLE many AS SELECT i AS id, 'x' AS segment FROM range({number}) t(i)")
    workshop.sync(
        "many",
        source="{table: many}",
        key="[id]",
        contract="{id: {type: integer}, segment: {type: string, one_of: [vip]}}",
        destination='{type: redis, key: "many:{id}", value: json, ttl: none}',
    )
    assert workshop.retl("sync", "--sync", "many").code == 3
    shown = workshop.retl("show", "many").out
    assert shown.count("NOT_ONE_OF  segment is not one of") == (20 if number == 20 else 21)
    assert ("the first 20 of 48" in shown) == (number == 48)
    assert len(workshop.json("show", "many")["rejects"]) == number
