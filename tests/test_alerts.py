"""Alerts: told once when a sync's state changes, to real listeners, and never to a run's cost."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import retl
from retl.app.alerts import Observation, document, event, row, together
from retl.project.alerts import Alert
from retl.project.definitions import Sync
from tests.commands import ROWS, Workshop
from tests.servers import RedisServer

SECRET = "s3cr3tpath4lerts"
CONTRACT = "{user_id: {type: integer}, email: {type: string}, spend: {type: float, le: %d}}"


class Listener:
    """An HTTP server on a socket that keeps what it is told; it answers with `status`."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.paths: list[str] = []
        self.status = 204
        self.meanwhile: Callable[[], object] = lambda: None  # while an alert is on its way
        listener = self

        class Ear(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if listener.status < 300:
                    listener.heard.append(json.loads(body))
                listener.paths.append(self.path)
                listener.meanwhile()
                self.send_response(listener.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Ear)
        self.address = f"127.0.0.1:{self.server.server_address[1]}"

    def events(self) -> list[str]:
        return [one["event"] for one in self.heard]


@contextmanager
def listening() -> Iterator[Listener]:
    listener = Listener()
    thread = threading.Thread(target=listener.server.serve_forever, args=[0.02], daemon=True)
    thread.start()
    try:
        yield listener
    finally:
        listener.server.shutdown()
        listener.server.server_close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    with listening() as one:
        yield one


@pytest.fixture
def workshop(tmp_path: Path, redis_server: RedisServer) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.use(redis_server)
    made.sync("users", contract=CONTRACT % 29, retry="{attempts: 1}", tags="[crm]")
    return made


def tell(workshop: Workshop, to: str, on: str, **more: str) -> None:
    parts = "".join(f", {name}: {text}" for name, text in more.items())
    workshop.write("retl.yml", f"alerts:\n  - {{to: {to}, on: {on}{parts}}}\n")


def webhook(listener: Listener) -> str:
    return f'{{webhook: "http://{listener.address}/hooks/{SECRET}"}}'


def sync() -> Sync:
    return Sync.model_validate(
        {"name": "users", "source": {"table": "t"}, "key": ["id"], "destination": {"type": "redis"}}
    )


def told(on: list[Any], *seen: tuple[str, int]) -> list[str | None]:
    """What is told of one observation after the other, each a status and rows rejected of 100."""
    alert = Alert.model_validate({"to": "json://here", "on": on})
    before, events = None, []
    for status, rejected in seen:
        counts = {"read": 100, "rejected": rejected} if status != "STALE" else {}
        one, before = event(alert, Observation(sync(), status, counts=counts), before)
        events.append(one)
    return events


GOOD, SOME, BAD, NO, STALE = (
    ("SUCCESS", 0),
    ("SUCCESS_WITH_REJECTS", 2),
    ("FAILED", 0),
    ("REFUSED", 0),
    ("STALE", 0),
)
RATE = {"rejects": {"rate": 0.01}}


@pytest.mark.parametrize(
    ("on", "seen", "wanted"),
    [
        (["failure"], [BAD, BAD, GOOD, BAD], ["failure", None, None, "failure"]),
        (["failure", "recovery"], [GOOD, BAD, BAD, GOOD, GOOD], [None, "failure", None, "recovery", None]),
        (["success"], [GOOD, GOOD, BAD, GOOD], ["success", None, None, "success"]),
        (["success", "recovery"], [BAD, GOOD, GOOD], [None, "recovery", None]),
        (["recovery"], [GOOD, NO, GOOD], [None, None, "recovery"]),
        (["failure", "refusal"], [BAD, NO, BAD], ["failure", "refusal", "failure"]),
        ([RATE, "recovery"], [SOME, SOME, GOOD], ["rejects", None, "recovery"]),
        ([RATE], [("SUCCESS_WITH_REJECTS", 1), SOME], [None, "rejects"]),
        (["failure", RATE, "recovery"], [BAD, SOME, GOOD], ["failure", "rejects", "recovery"]),
        (["failure", "recovery"], [BAD, SOME], ["failure", "recovery"]),
        (["stale", "recovery"], [STALE, STALE, BAD, GOOD], ["stale", None, None, "recovery"]),
        (["stale", "recovery"], [STALE, ("FRESH", 0)], ["stale", "recovery"]),
        (["rejects"], [GOOD, ("SUCCESS_WITH_REJECTS", 1)], [None, "rejects"]),
        (["failure", "recovery"], [BAD, ("INTERRUPTED", 0), BAD], ["failure", None, None]),
    ],
)
def test_a_change_of_state_is_told_once(
    on: list[Any], seen: list[tuple[str, int]], wanted: list[str | None]
) -> None:
    assert told(on, *seen) == wanted


def test_rows_that_failed_a_run_and_are_still_refused_are_no_recovery() -> None:
    """A run with nothing else fails, one with another change succeeds: the problem is the same one."""
    alert = Alert.model_validate({"to": "json://here", "on": ["failure", "recovery"]})
    error = {"code": "ALL_REFUSED", "message": "", "hint": None}
    refused = Observation(sync(), "FAILED", counts={"read": 9, "rejected": 2}, error=error)
    gone = Observation(sync(), "FAILED", counts={"read": 9}, error={**error, "code": "REDIS_UNREACHED"})

    def beside(rejected: int, status: str = "SUCCESS_WITH_REJECTS") -> Observation:
        return Observation(sync(), status, counts={"read": 9, "rejected": rejected})

    for seen, wanted in (
        ([refused, beside(2), refused, beside(3), beside(2)], ["failure", None, None, None, None]),
        ([refused, beside(2), beside(1), refused], ["failure", None, "recovery", "failure"]),
        ([refused, beside(2), beside(0, "SUCCESS")], ["failure", None, "recovery"]),
        ([refused, beside(2, "SUCCESS")], ["failure", "recovery"]),  # dismissed
        ([refused, gone, beside(2)], ["failure", None, "recovery"]),
    ):
        before, events = None, []
        for one in seen:
            said, before = event(alert, one, before)
            events.append(said)
        assert events == wanted


def test_a_mistyped_key_is_nobody_elses_alert(workshop: Workshop, listener: Listener) -> None:
    tell(workshop, webhook(listener), "[failure]")
    assert workshop.retl("sync", "--key", "99999").code == 2
    assert listener.events() == []


def test_failure_and_recovery_are_told_once_and_without_row_values(
    workshop: Workshop, listener: Listener
) -> None:
    tell(workshop, webhook(listener), "[failure, recovery, success]")
    assert workshop.retl("sync", REDIS_PORT="1").code == 1
    assert workshop.retl("sync", REDIS_PORT="1").code == 1
    assert workshop.retl("sync", "--dry-run").code == 0
    assert listener.events() == ["failure"]
    assert workshop.retl("sync").code == 0
    assert workshop.retl("sync").code == 0
    assert listener.events() == ["failure", "recovery"]
    failure, recovery = listener.heard
    assert (failure["sync"], failure["status"]) == ("users", "FAILED")
    assert failure["run_id"]
    assert failure["error"]["code"]
    assert "redis" in failure["error"]["message"].lower()
    assert [one["id"] for one in listener.heard] == [
        f"{failure['run_id']}-failure",
        f"{recovery['run_id']}-recovery",
    ]
    assert (recovery["counts"]["inserted"], recovery["counts"]["rejected"]) == (ROWS - 1, 1)
    assert recovery["error"] is None
    assert "@example.com" not in json.dumps(listener.heard)
    assert listener.paths == [f"/hooks/{SECRET}"] * 2


def test_a_refusal_and_too_many_rejects_are_told(workshop: Workshop, listener: Listener) -> None:
    tell(workshop, webhook(listener), "[refusal, rejects: {rate: 0.02}]", tags="[crm]")
    assert workshop.retl("sync").code == 0
    assert (listener.events(), listener.heard[0]["counts"]["rejected"]) == (["rejects"], 1)
    workshop.warehouse("UPDATE users SET spend = 1000")
    assert workshop.retl("sync").code == 3
    assert listener.events() == ["rejects", "refusal"]
    assert listener.heard[1]["error"]["code"] == "REJECT_RATE"


def test_an_alert_has_an_id_by_which_a_second_one_of_the_same_is_known() -> None:
    failed = document("failure", Observation(sync(), "FAILED", "run-1"))
    stale = document("stale", Observation(sync(), "STALE", "run-1"))
    assert (failed["id"], stale["id"]) == ("run-1-failure", "run-1-stale")
    assert row(failed)["id"] == failed["id"]
    assert together([failed, stale])["id"] == together([failed, stale])["id"]
    assert together([failed, stale])["id"] != together([failed])["id"]
    blocked = [document("failure", Observation(sync(), "FAILED"))["id"] for _ in range(2)]
    assert blocked[0] != blocked[1], "without a run nobody knows that it is the same"
    assert all(one.startswith("users-failure-") for one in blocked)


def test_an_alert_is_for_the_syncs_it_names(workshop: Workshop, listener: Listener) -> None:
    workshop.sync("others")
    tell(workshop, webhook(listener), "[success]", syncs="[others]")
    workshop.json("sync")
    assert [one["sync"] for one in listener.heard] == ["others"]


def test_an_alert_that_cannot_be_sent_costs_nothing_and_is_told_next_time(
    workshop: Workshop, listener: Listener
) -> None:
    tell(workshop, webhook(listener), "[success]")
    listener.status = 500
    said = workshop.retl("sync", "--output", "json")
    assert (said.code, said.document["exit_code"]) == (0, 0)
    (failed,) = [json.loads(line) for line in said.err.splitlines() if "alert_failed" in line]
    assert (failed["sync"], failed["why"], failed["level"]) == ("users", "HTTP_500", "warning")
    assert SECRET not in said.out + said.err
    listener.status = 204
    workshop.json("sync")
    assert listener.events() == ["success"]
    ledger = b"".join(data or b"" for name, data in workshop.snapshot().items() if name.startswith(".retl"))
    assert SECRET.encode() not in ledger


def test_a_listener_that_is_gone_costs_nothing(workshop: Workshop) -> None:
    with listening() as listener:
        to = webhook(listener)
    tell(workshop, to, "[success]")
    said = workshop.retl("sync")
    assert said.code == 0
    assert "HTTP_UNREACHED" in said.err
    assert SECRET not in said.out + said.err


def test_staleness_is_told_once_by_the_command_that_looks_for_it(
    workshop: Workshop, listener: Listener
) -> None:
    workshop.sync("users", freshness="1ms")
    tell(workshop, webhook(listener), "[stale, recovery]")
    workshop.json("sync")
    workshop.json("status")
    assert listener.heard == []
    assert workshop.retl("status", "--fail-stale").code == 1
    assert workshop.retl("status", "--fail-stale").code == 1
    assert listener.events() == ["stale"]
    assert listener.heard[0]["error"]["code"] == "STALE"
    workshop.json("sync")
    assert listener.events() == ["stale", "recovery"]


def test_a_sync_that_succeeds_while_alerts_of_others_are_sent_is_not_called_stale(
    workshop: Workshop, listener: Listener
) -> None:
    tell(workshop, webhook(listener), "[stale]")
    for name in ("first", "second"):
        workshop.sync(name, freshness="1h")
    listener.meanwhile = lambda: workshop.process("sync", "second")
    assert workshop.retl("status", "--fail-stale").code == 1
    assert [one["sync"] for one in listener.heard] == ["first"]


def test_apprise_carries_the_same_in_words(workshop: Workshop, listener: Listener) -> None:
    tell(workshop, "'${ALERTS}'", "[failure, recovery]")
    address = f"json://{listener.address}/{SECRET}"
    said = workshop.retl("sync", REDIS_PORT="1", ALERTS=address)
    assert said.code == 1
    workshop.json("sync", ALERTS=address)
    first, second = listener.heard
    assert (first["title"], first["type"]) == ("retl: failure of users", "failure")
    assert "status FAILED, run 20" in first["message"]
    assert (second["title"], second["type"]) == ("retl: recovery of users", "success")
    assert f"inserted {ROWS - 1}" in second["message"]
    listener.status = 500
    said = workshop.retl("sync", REDIS_PORT="1", ALERTS=address)
    assert said.code == 1
    assert "APPRISE_REFUSED" in said.err
    assert SECRET not in said.err


def test_a_sync_runs_without_the_address_of_an_alert_and_says_so(
    workshop: Workshop, listener: Listener
) -> None:
    workshop.write("retl.yml", 'alerts:\n  - {to: {webhook: "${ALERTS}"}, on: [success]}\n')
    said = workshop.retl("sync")
    assert said.code == 0
    (warned,) = [json.loads(line) for line in said.raw.splitlines() if "alert_unset" in line]
    assert (warned["level"], warned["code"], warned["where"]) == (
        "warning", "VARIABLE_UNSET", "retl.yml:2:20",
    )  # fmt: skip
    assert "ALERTS" in warned["message"]
    said = workshop.retl("sync", ALERTS_COMMAND="false")
    assert (said.code, "alert_unset" in said.raw, "VARIABLE_UNREADABLE" in said.raw) == (0, True, True)
    assert workshop.json("validate")["missing_variables"] == ["ALERTS"]
    assert workshop.json("alerts")["alerts"][0]["to"] == "webhook ? (not set: ALERTS)"
    said = workshop.json("alerts", ALERTS=f"https://hooks.example/{SECRET}")
    assert said["alerts"][0]["to"] == "webhook hooks.example"
    (sent,) = workshop.retl("alerts", "test", "--output", "json").document["alerts"]
    assert (sent["to"], sent["sent"]) == ("webhook ? (not set: ALERTS)", False)
    three = [
        f"{{to: {to}, on: [success]}}"
        for to in ('{webhook: "${ALERTS}"}', '{apprise: "${OTHER}"}', '{webhook: "${THIRD}"}')
    ]
    workshop.write("retl.yml", f"alerts: [{', '.join(three)}]\n")
    said = workshop.json("alerts", ALERTS="https://first.example/x", THIRD="https://third.example/x")
    assert [one["to"] for one in said["alerts"]] == [
        "webhook first.example", "apprise ? (not set: OTHER)", "webhook third.example",
    ]  # fmt: skip


def test_a_missing_apprise_is_said_before_anything_runs(workshop: Workshop, tmp_path: Path) -> None:
    tell(workshop, "'${ALERTS}'", "[failure]")
    assert workshop.retl("validate").code == 0
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "sitecustomize.py").write_text("import sys; sys.modules['apprise'] = None\n")
    path = f"{tmp_path / 'without'}:{Path(retl.__file__).parents[1]}"
    said = workshop.process("sync", ALERTS="json://127.0.0.1", PYTHONPATH=path)
    assert said.code == 2
    assert "APPRISE_MISSING" in said.err
    assert "retl-cli[alerts]" in said.err
    assert not (workshop.folder / ".retl").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{to: {webhook: 'http://example.com/x'}, on: [failure]}", "https, except on this machine"),
        ("{to: {webhook: 'ftp://example.com/x'}, on: [failure]}", "must look like https://host/path"),
        ("{to: {}, on: [failure]}", "`alerts.0.to` must be {connection: NAME}, {webhook: https://…}"),
        ("{to: 'json://x', on: [failed]}", "failure"),
        ("{to: 'json://x', on: []}", "at least 1"),
        ("{to: 'json://x', on: [rejects: {rate: 2}]}", "less than or equal to 1"),
        ("{to: 'json://x', on: [rejects: {max: 2}]}", "{rejects: {rate: 0.01}}"),
        ("{to: 'json://x', on: [failure], syncs: [user]}", "did you mean 'users'?"),
        ("{to: 'json://x', on: [failure], tags: [crn]}", "did you mean 'crm'?"),
        ("{to: 'json://x', on: [failure], when: now}", "there is no key 'when' here"),
    ],
)
def test_a_wrong_alert_is_said_with_its_place(workshop: Workshop, text: str, says: str) -> None:
    workshop.write("retl.yml", f"alerts:\n  - {text}\n")
    said = workshop.retl("validate")
    assert said.code == 2
    assert says in said.err
    assert "retl.yml:2:" in said.err
