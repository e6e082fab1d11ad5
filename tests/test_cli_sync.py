"""`retl sync` and `retl plan`, as processes against real targets: order, counts, output, exit codes."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from retl.values.keys import key_texts
from tests.commands import ROWS, Workshop
from tests.servers import Database, RedisServer

SUMMARY = [
    *("sync", "run_id", "status", "exit_code", "dry_run", "read", "unchanged", "inserted", "updated"),
    *("refreshed", "deleted", "deletes", "rejected", "skipped", "in_doubt", "not_attempted", "conflicts"),
    "batches",
    *("retries", "bytes", "seconds", "rows_per_second", "phases", "rejects", "guards", "error"),
]
NOT_THERE = "{table: not_built_yet}"
SENSITIVE = "{user_id: {type: integer, sensitive: true}, spend: {type: decimal, max_digits: 12, decimal_places: 2, le: 29}}"


@pytest.fixture
def workshop(tmp_path: Path, redis_server: RedisServer) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.use(redis_server)
    return made


def by_name(document: Any) -> dict[str, Any]:
    return {one["sync"]: one for one in document["syncs"]}


def test_a_sync_delivers_once_and_then_has_nothing_to_do(
    workshop: Workshop, redis_server: RedisServer
) -> None:
    workshop.sync("users")
    first = workshop.json("sync")
    assert list(first) == ["syncs", "exit_code"]
    (summary,) = first["syncs"]
    assert [name for name in summary if name != "notes"] == SUMMARY
    assert (summary["status"], summary["read"], summary["inserted"]) == ("SUCCESS", ROWS, ROWS)
    assert summary["bytes"] > ROWS * len("SET users:1 u1@example.com")
    assert workshop.json("show")["bytes"] == summary["bytes"]
    with redis_server.client() as client:
        assert len(client.keys("users:*")) == ROWS
        assert json.loads(client.get("users:7"))["email"] == "u7@example.com"
    (again,) = workshop.json("sync", "--sync", "all")["syncs"]
    assert (again["unchanged"], again["inserted"], again["updated"], again["bytes"]) == (ROWS, 0, 0, 0)


def test_a_dry_run_and_a_plan_write_nothing_and_predict_the_run(
    workshop: Workshop, redis_server: RedisServer
) -> None:
    workshop.sync("users")
    before = workshop.snapshot()
    (predicted,) = workshop.json("sync", "--dry-run")["syncs"]
    (planned,) = workshop.json("plan", "--sync", "users")["syncs"]
    assert workshop.snapshot() == before
    with redis_server.client() as client:
        assert client.dbsize() == 0
    assert predicted["dry_run"]
    assert predicted["run_id"] is None
    assert planned["samples"][0] == {
        "op": "insert",
        "key": "1",
        "fields": {"email": [None, "u1@example.com"], "spend": [None, "1.00"]},
    }
    (done,) = workshop.json("sync")["syncs"]
    counts = ("read", "inserted", "updated", "deleted", "unchanged", "rejected", "skipped", "not_attempted")
    assert [done[name] for name in counts] == [predicted[name] for name in counts]
    assert [done[name] for name in counts] == [planned[name] for name in counts]


def test_a_plan_shows_what_the_target_has_now(workshop: Workshop, postgres: Database) -> None:
    workshop.use(postgres=postgres)
    workshop.sync("users", destination="{type: postgres, table: users, create: true}", deletes="delete")
    workshop.json("sync")
    workshop.warehouse("UPDATE users SET spend = 99 WHERE user_id = 3; DELETE FROM users WHERE user_id = 4")
    (planned,) = workshop.json("plan", "--sync", "users")["syncs"]
    update, delete = planned["samples"]
    assert update == {"op": "update", "key": "3", "fields": {"spend": ["3.00", "99.00"]}}
    assert (delete["op"], delete["key"]) == ("delete", "4")
    assert delete["fields"]["email"] == ["u4@example.com", None]
    assert "u4@example.com" in workshop.retl("plan", "users").out


def test_a_plan_shows_what_a_soft_delete_sets(workshop: Workshop, postgres: Database) -> None:
    with postgres.connect() as connection:
        connection.execute(
            "CREATE TABLE users (user_id bigint PRIMARY KEY, email text, spend numeric, status text, ended bool)"
        )
    workshop.use(postgres=postgres)
    workshop.sync(
        "users",
        destination="{type: postgres, table: users}",
        fields='{"*": "*", status: {value: active}}',
        deletes="{set: {status: ended, ended: true}, restore: {ended: false}}",
    )
    workshop.json("sync")
    workshop.warehouse("DELETE FROM users WHERE user_id = 4")
    (planned,) = workshop.json("plan", "users")["syncs"]
    (delete,) = planned["samples"]
    assert delete == {
        "op": "delete", "key": "4", "fields": {"status": ["active", "ended"], "ended": [False, True]}
    }  # fmt: skip
    lines = [line.split() for line in workshop.retl("plan", "users").out.splitlines()]
    shown = lines[lines.index(["op", "key", "field", "before", "after"]) + 1 :]
    assert shown[:2] == [["delete", "4", "status", "active", "ended"], ["ended", "false", "true"]]


def test_limit_key_where_and_full_send_what_they_say(workshop: Workshop) -> None:
    workshop.sync("users")
    limited = workshop.json("sync", "--limit", "10")["syncs"][0]
    assert (limited["inserted"], limited["not_attempted"]) == (10, ROWS - 10)
    by_key = workshop.json("sync", "--key", "3", "--key", "5")["syncs"][0]
    assert (by_key["read"], by_key["updated"]) == (2, 2)
    where = workshop.json("sync", "--where", "user_id BETWEEN 1 AND 3")["syncs"][0]
    assert (where["read"], where["updated"]) == (3, 3)
    full = workshop.json("sync", "--full")["syncs"][0]
    assert (full["inserted"], full["updated"]) == (ROWS - 10, 10)


@pytest.mark.parametrize(
    "words", [("--key", "31"), ("--key", "1", "--key", "31"), ("--key", "31", "--dry-run")]
)
def test_a_key_that_no_row_has_is_an_error_and_nothing_is_sent(
    workshop: Workshop, words: tuple[str, ...]
) -> None:
    workshop.sync("users")
    workshop.json("sync")
    said = workshop.retl("sync", *words, "--output", "json")
    (failed,) = said.document["syncs"]
    assert (said.code, failed["status"], failed["error"]["code"]) == (2, "FAILED", "KEY_UNKNOWN")
    assert (failed["updated"], "31" in failed["error"]["message"]) == (0, False)


def test_a_key_is_of_one_sync_and_never_sent_by_all(workshop: Workshop) -> None:
    workshop.sync("users")
    workshop.sync("others")
    for words in (("sync", "--key", "5"), ("plan", "--key", "5"), ("sync", "users", "others", "--key", "5")):
        said = workshop.retl(*words)
        assert (said.code, "`retl sync SYNC --key KEY`" in said.err) == (2, True), said.err
    assert not (workshop.folder / ".retl").exists()
    assert workshop.json("sync", "users", "--key", "5")["syncs"][0]["inserted"] == 1


@pytest.mark.parametrize("words", [("--key", "31"), ("--where", "no_such_column = 1")])
def test_what_somebody_mistyped_is_no_run(workshop: Workshop, words: tuple[str, ...]) -> None:
    workshop.sync("users")
    workshop.json("sync")
    for more in ((), ("--dry-run",)):
        said = workshop.retl("sync", *words, *more, "--output", "json")
        assert (said.code, said.document["syncs"][0]["run_id"]) == (2, None)
    assert workshop.retl("plan", *words).code == 2
    assert [one["status"] for one in workshop.json("runs")["runs"]] == ["SUCCESS"]
    assert workshop.json("status")["syncs"][0]["status"] == "SUCCESS"
    assert workshop.retl("sync", "--failed").out == "nothing to do: no selected sync failed at its last run\n"
    assert workshop.json("sync")["syncs"][0]["unchanged"] == ROWS
    assert workshop.json("log", "verify")["faults"] == []


def test_the_form_of_a_key_of_several_columns_stands_in_the_error_and_in_the_help(workshop: Workshop) -> None:
    workshop.sync(
        "users",
        key="[user_id, email]",
        destination='{type: redis, key: "u:{user_id}:{email}", value: json, ttl: none}',
    )
    said = workshop.retl("sync", "--key", "3|u3@example.com", "--dry-run", "--output", "json")
    assert "--key '[user_id,\"email\"]'" in said.document["syncs"][0]["error"]["hint"]
    assert workshop.json("sync", "--key", '[3,"u3@example.com"]')["syncs"][0]["inserted"] == 1
    assert workshop.retl("explain", "users", "--key", '[ 3, "u3@example.com" ]').code == 0
    said = workshop.retl("explain", "users", "--key", "3")
    assert (said.code, "--key '[user_id,\"email\"]'" in said.err) == (2, True)
    assert key_texts(['["a \\" , b" , 1]', '["a \\" , b",1]'], 2) == ('["a \\" , b",1]',)
    assert key_texts(["[1, 2]"], 1) == ("[1, 2]",)  # one column: the text is the key
    assert "JSON array" in workshop.retl("sync", "--help").out


def test_a_sync_that_failed_blocks_those_after_it_and_no_others(workshop: Workshop) -> None:
    workshop.sync("a_broken", source=NOT_THERE)
    workshop.sync("b_after", after="[a_broken]")
    workshop.sync("c_last", after="[b_after]")
    workshop.sync("d_alone")
    for words in ((), ("--jobs", "3")):
        said = workshop.retl("sync", "--output", "json", *words)
        assert said.code == said.document["exit_code"] == 3
        found = by_name(said.document)
        assert [found[name]["status"] for name in sorted(found)] == [
            *("REFUSED", "BLOCKED", "BLOCKED", "SUCCESS"),
        ]
        assert found["a_broken"]["guards"][0]["code"] == "SOURCE_DRIFT"
        assert found["b_after"]["error"]["code"] == "AFTER_FAILED"
        assert found["b_after"]["run_id"] is None


def test_fail_fast_starts_nothing_more(workshop: Workshop) -> None:
    workshop.sync("a_broken", source=NOT_THERE)
    workshop.sync("b_alone")
    said = workshop.retl("sync", "--fail-fast", "--output", "json")
    assert said.code == 3
    assert by_name(said.document)["b_alone"]["error"]["code"] == "FAIL_FAST"


def test_after_orders_the_syncs_of_one_invocation(workshop: Workshop) -> None:
    workshop.sync("a", after="[z]")
    workshop.sync("z")
    assert [one["sync"] for one in workshop.json("sync")["syncs"]] == ["z", "a"]
    assert [one["sync"] for one in workshop.json("sync", "--sync", "a")["syncs"]] == ["a"]


def test_a_paused_sync_is_not_run_also_not_by_name(workshop: Workshop, redis_server: RedisServer) -> None:
    workshop.sync("paused", enabled="false")
    for selection in (("--sync", "paused"), ()):
        document = workshop.json("sync", *selection)
        assert (document["syncs"][0]["status"], document["exit_code"]) == ("PAUSED", 0)
    workshop.sync("running")
    with redis_server.client() as client:
        assert client.dbsize() == 0
    assert [one["sync"] for one in workshop.json("sync")["syncs"]] == ["running"]


def test_tags_names_and_exclusions_choose(workshop: Workshop) -> None:
    workshop.sync("a", tags="[daily]")
    workshop.sync("b", tags="[daily, crm]")
    workshop.sync("c")
    chosen = lambda *words: {one["sync"] for one in workshop.json("sync", "--dry-run", *words)["syncs"]}  # noqa: E731
    assert chosen("--tag", "daily") == {"a", "b"}
    assert chosen("--tag", "crm", "--sync", "c") == {"b", "c"}
    assert chosen("--all", "--exclude", "b") == {"a", "c"}
    assert chosen() == {"a", "b", "c"}


def test_syncs_of_one_object_take_turns_inside_one_process(workshop: Workshop, postgres: Database) -> None:
    workshop.use(postgres=postgres)
    workshop.sync("a", destination="{type: postgres, table: users, create: true}", fields="{email: email}")
    for name in ("b", "c"):
        workshop.sync(
            name,
            destination="{type: postgres, table: users, create: true}",
            write="update_only",
            fields=f"{{{name}_spend: spend}}",
        )
    said = workshop.retl("sync", "--jobs", "3", "--output", "json")
    assert said.code == 0, said.out
    assert {one["status"] for one in said.document["syncs"]} == {"SUCCESS"}


def test_variables_are_parameters_and_today_is_a_date(workshop: Workshop) -> None:
    workshop.write("retl.yml", "vars: {least: 21, day: today}\n")
    sql = "SELECT *, typeof($day) AS kind FROM users WHERE user_id >= CAST($least AS INT) AND $day > DATE '2001-01-01'"
    workshop.sync("users", source=f'{{sql: "{sql}"}}')
    assert workshop.json("sync", "--dry-run")["syncs"][0]["read"] == ROWS - 20
    assert workshop.json("sync", "--dry-run", "--var", "least=30")["syncs"][0]["read"] == 1
    old = workshop.json("sync", "--dry-run", "--var", "day=2000-01-01", "--accept", "EMPTY_SOURCE")
    assert old["syncs"][0]["read"] == 0


def test_a_value_that_no_type_holds_says_what_such_values_are(workshop: Workshop) -> None:
    workshop.warehouse("UPDATE users SET email = 'a' || chr(0) || 'b' WHERE user_id = 1")
    workshop.sync("users", contract="{user_id: {type: integer}, email: {type: string}}")
    (reject,) = workshop.json("sync", "--dry-run")["syncs"][0]["rejects"]
    assert (reject["code"], reject["reason"]) == (
        "UNREPRESENTABLE",
        "email has a text with a NUL character, which the contract's type string does not take",
    )


def test_full_cannot_go_with_append(workshop: Workshop, postgres: Database) -> None:
    workshop.use(postgres=postgres)
    workshop.sync(
        "users",
        destination="{type: postgres, table: users, create: true}",
        write="append",
        first_run="send",
    )
    said = workshop.retl("sync", "--full")
    assert said.code == 2
    assert "FULL_APPEND" in said.err


def test_rejects_are_shown_and_sensitive_keys_only_when_revealed(workshop: Workshop) -> None:
    workshop.sync("users", contract=SENSITIVE, guards="{max_reject_rate: 0.5}")
    (hidden,) = workshop.json("sync", "--dry-run")["syncs"]
    assert hidden["status"] == "SUCCESS_WITH_REJECTS"
    assert [one["key"] for one in hidden["rejects"]] == ["***"]
    (shown,) = workshop.json("sync", "--dry-run", "--reveal")["syncs"]
    assert [one["key"] for one in shown["rejects"]] == ["30"]
    table = workshop.retl("plan", "--sync", "users").out
    assert re.search(r"^\*\*\* +contract", table, re.MULTILINE)
    assert not re.search(r"^30 +contract", table, re.MULTILINE)


def test_a_guard_says_its_code_its_sentence_and_the_way_out(workshop: Workshop) -> None:
    workshop.sync("users", contract=SENSITIVE.replace("le: 29", "le: 15"))
    said = workshop.retl("sync")
    assert said.code == 3
    assert "[REJECT_RATE]" in said.err
    assert "--accept REJECT_RATE" in said.err
    assert "not attempted" not in said.out, "nothing is, beside a refusal"
    accepted = workshop.json("sync", "--accept", "REJECT_RATE")["syncs"][0]
    assert (accepted["rejected"], accepted["inserted"]) == (15, 15)


def test_stdout_is_for_the_answer_and_stderr_for_the_log(workshop: Workshop) -> None:
    workshop.sync("users")
    said = workshop.retl("sync")
    lines = said.out.splitlines()
    assert lines[0].split()[:3] == ["sync", "status", "read"]
    assert lines[1].split()[:3] == ["users", "SUCCESS", str(ROWS)]
    read = lines[0].index("read") + len("read")
    assert lines[1][:read].endswith(str(ROWS)), "numbers are aligned to the right"
    events = [json.loads(line) for line in said.err.splitlines()]
    assert events[-1]["event"] == "run_finished"
    assert {event.get("sync") for event in events} == {"users"}


@pytest.mark.parametrize("words", [("sync",), ("sync", "--sync", "nobody"), ("no-such-command",), ("list",)])
def test_errors_are_objects_like_all_lines_where_nobody_watches(
    workshop: Workshop, words: tuple[str, ...]
) -> None:
    workshop.sync("users", source=NOT_THERE)
    if words == ("list",):
        workshop.write("syncs/users.yml", "key: [")
    said = workshop.retl(*words)
    assert said.code in (2, 3)
    *_, error = [json.loads(line) for line in said.raw.splitlines()]
    assert (error["event"], error["level"]) == ("error", "error")
    assert error.keys() >= {"code", "message", "timestamp"}
    told = workshop.retl(*words, RETL_LOG_FORMAT="console").err
    assert f"error: {'users: ' if words == ('sync',) else ''}" in told
    assert f"[{error['code']}]" in told


@pytest.mark.parametrize("stdout", ["/dev/full", "closed", "pipe"])
def test_the_exit_code_is_the_run_s_where_nobody_can_read_the_answer(workshop: Workshop, stdout: str) -> None:
    workshop.sync("users")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        options: dict[str, Any] = {"cwd": workshop.folder, "env": workshop.environ(), "text": True}
        if stdout == "closed":
            options["preexec_fn"] = lambda: os.close(1)
            return subprocess.run(workshop.command(*words), stderr=subprocess.PIPE, **options)
        if stdout == "/dev/full":
            with open(stdout, "w") as full:
                return subprocess.run(
                    workshop.command(*words), stdout=full, stderr=subprocess.PIPE, **options
                )
        reader, writer = os.pipe()
        os.close(reader)
        try:
            return subprocess.run(workshop.command(*words), stdout=writer, stderr=subprocess.PIPE, **options)
        finally:
            os.close(writer)

    done = run("sync", "--output", "json")
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert workshop.json("status")["syncs"][0]["status"] == "SUCCESS"
    workshop.sync("users", source=NOT_THERE)
    assert run("sync").returncode == 3
    assert run("runs").returncode == 1


def test_a_closed_stderr_changes_nothing(workshop: Workshop) -> None:
    workshop.sync("users")
    done = subprocess.run(
        workshop.command("sync", "--output", "json"),
        cwd=workshop.folder,
        env=workshop.environ(),
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.close(2),
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)["syncs"][0]["inserted"] == ROWS


def test_a_lock_that_is_held_is_75(workshop: Workshop) -> None:
    workshop.sync("users")
    workshop.json("sync")
    stopped = subprocess.Popen(
        workshop.command("sync", "--full"),
        cwd=workshop.folder,
        env=workshop.environ(),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    assert stopped.stderr
    stopped.stderr.readline()
    stopped.send_signal(signal.SIGSTOP)
    try:
        said = workshop.retl("sync", "--output", "json")
        (blocked,) = said.document["syncs"]
        assert (said.code, blocked["status"]) == (75, "BLOCKED")
        assert str(stopped.pid) in blocked["error"]["message"]
    finally:
        stopped.send_signal(signal.SIGCONT)
        stopped.stderr.read()
        assert stopped.wait(60) == 0


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_the_run_and_the_next_one_carries_on(
    workshop: Workshop, signum: signal.Signals, code: int
) -> None:
    workshop.sync("users", batch="{rows: 1}")
    workshop.sync("wait", after="[users]")
    running = subprocess.Popen(
        workshop.command("sync", "--output", "json"),
        cwd=workshop.folder,
        env=workshop.environ(RETL_LOG_LEVEL="debug"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stderr
    for line in running.stderr:
        if "batch_acknowledged" in line:
            running.send_signal(signum)
            break
    rest = threading.Thread(target=running.stderr.read)
    rest.start()
    assert running.stdout
    document = json.loads(running.stdout.read())
    rest.join()
    assert running.wait(60) == code == document["exit_code"]
    assert [one["status"] for one in document["syncs"]] == ["INTERRUPTED", "BLOCKED"]
    assert workshop.retl("sync").code == 0
    assert workshop.json("sync")["syncs"][0]["unchanged"] == ROWS


def test_a_terminal_gets_a_drawn_table_and_no_log_lines(workshop: Workshop) -> None:
    workshop.sync("users")
    ours, theirs = pty.openpty()
    running = subprocess.Popen(
        workshop.command("sync"),
        cwd=workshop.folder,
        env=workshop.environ(COLUMNS="200", TERM="xterm"),
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    seen = b""
    try:
        while chunk := os.read(ours, 65536):
            seen += chunk
    except OSError:  # the other side is closed
        pass
    finally:
        os.close(ours)
    assert running.wait(60) == 0
    assert re.search("starting|users: ", seen.decode()), "progress was drawn"
    assert "SUCCESS" in seen.decode()
    assert "─" in seen.decode()
    assert "mart_frozen" not in seen.decode()


def test_rejects_of_one_reason_are_one_line_and_the_command_that_lists_them_does(workshop: Workshop) -> None:
    workshop.warehouse("UPDATE users SET spend = -1 WHERE user_id IN (2, 3)")
    contract = (
        "{user_id: {type: integer}, email: {type: string},"
        " spend: {type: decimal, max_digits: 12, decimal_places: 2, ge: 0}}"
    )
    workshop.sync("users", contract=contract)
    refused = workshop.retl("sync", "users")
    assert (refused.code, "retl rejects" in refused.out) == (3, False), refused.out
    said = workshop.retl("sync", "users", "--accept", "REJECT_RATE")
    assert "rejects (2 rows):" in said.out, said.out + said.err
    (line,) = [line for line in said.out.splitlines() if "OUT_OF_RANGE" in line]
    assert line.split()[0] == "2"
    assert "2, 3" in line
    assert "`retl rejects users` lists them" in said.out
    assert len(workshop.json("rejects", "users")["rejects"]) == 2
