"""Alerts through the connections that are there: as rows, together, and as a test."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Workshop
from tests.test_alerts import Listener, listening

LOST = {"source": "{table: nowhere}"}
SECRET = "s3cr3tt0ken4ops"


@pytest.fixture
def listener() -> Iterator[Listener]:
    with listening() as one:
        yield one


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.environment["REDIS_HOST"] = "127.0.0.1"
    made.sync("users", **LOST)
    return made


def alerts(workshop: Workshop, listener: Listener, *texts: str) -> None:
    workshop.write(
        "retl.yml",
        f"connections:\n  ops: {{type: webhook, url: 'http://{listener.address}/{SECRET}'}}\n"
        f"  api: {{type: http, base_url: 'http://{listener.address}'}}\n"
        "  table: {type: postgres, host: localhost, dbname: x}\n"
        "alerts:\n" + "".join(f"  - {text}\n" for text in texts),
    )


def test_an_alert_is_a_row_of_a_connection(workshop: Workshop, listener: Listener) -> None:
    alerts(
        workshop,
        listener,
        "{to: {connection: ops}, on: [refusal], link: 'https://reports.example.com/{sync}/{run_id}'}",
        "{to: {connection: api, insert: {path: /say, row: {msg: $text, about: $sync}}}, on: [refusal]}",
    )
    assert workshop.retl("sync").code == 3
    (run,) = workshop.json("runs")["runs"]
    row, message = listener.heard
    assert listener.paths == [f"/{SECRET}", "/say"]
    assert (row["event"], row["sync"], row["run_id"]) == ("refusal", "users", run["run_id"])
    assert row["link"] == f"https://reports.example.com/users/{run['run_id']}"
    assert row["link"] in row["text"]
    assert message["about"] == "users"
    assert message["msg"].startswith("retl: refusal of users")
    assert workshop.retl("sync").code == 3  # the same problem is not told twice
    assert len(listener.heard) == 2


def test_a_digest_is_one_alert_for_all_syncs_of_a_command(workshop: Workshop, listener: Listener) -> None:
    workshop.sync("others", **LOST)
    hook = f"{{webhook: 'http://{listener.address}/{SECRET}'}}"
    alerts(workshop, listener, f"{{to: {hook}, on: [refusal], digest: true}}")
    listener.status = 500
    assert workshop.retl("sync").code == 3
    assert listener.heard == []
    listener.status = 204
    assert workshop.retl("sync").code == 3  # what did not arrive is told next time
    (heard,) = listener.heard
    assert heard["event"] == "digest"
    assert [(one["event"], one["sync"]) for one in heard["alerts"]] == [
        ("refusal", "others"),
        ("refusal", "users"),
    ]
    workshop.sync("third", **LOST)
    assert workshop.retl("sync").code == 3
    assert (listener.events(), listener.heard[1]["sync"]) == (["digest", "refusal"], "third")


def test_a_test_alert_reaches_every_recipient_or_says_why_not(workshop: Workshop, listener: Listener) -> None:
    hook = f"{{webhook: 'http://{listener.address}/{SECRET}'}}"
    alerts(workshop, listener, f"{{to: {hook}, on: [failure]}}", "{to: {connection: ops}, on: [stale]}")
    assert workshop.json("alerts")["alerts"][1] == {
        "to": "ops", "on": ["stale"], "syncs": ["all"], "digest": False,
    }  # fmt: skip
    assert [one["sent"] for one in workshop.json("alerts", "test")["alerts"]] == [True, True]
    assert [one["event"] for one in listener.heard] == ["test", "test"]
    listener.status = 400
    said = workshop.retl("alerts", "test")
    assert (said.code, said.out.count("HTTP_400")) == (1, 2)
    assert SECRET not in said.out + said.raw
    alerts(workshop, listener, "{to: {webhook: '${HOOK}'}, on: [failure]}")
    said = workshop.retl("alerts", "test")
    assert (said.code, "VARIABLE_UNSET" in said.out, "HOOK" in said.err) == (1, True, True)
    assert not (workshop.folder / ".retl").exists()


@pytest.mark.parametrize(
    ("to", "says"),
    [
        ("{connection: opps}", "did you mean 'ops'?"),
        ("{connection: ops, kee: 1}", "[OPTION_UNKNOWN]"),
        ("{connection: table, table: t}", "[ALERT_CONNECTION]"),
        ("{connection: ops, webhook: 'https://x.example.com'}", "`alerts.0.to` must be"),
        ("{chanel: '#ops'}", "`alerts.0.to` must be"),
    ],
)
def test_a_wrong_recipient_is_an_error_of_the_definition(
    workshop: Workshop, listener: Listener, to: str, says: str
) -> None:
    alerts(workshop, listener, f"{{to: {to}, on: [failure]}}")
    said = workshop.retl("validate")
    assert (said.code, says in said.err) == (2, True), said.err
    assert "retl.yml:" in said.err


class Slack(BaseHTTPRequestHandler):
    heard: list[Any]

    def do_POST(self) -> None:
        self.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_chat_gets_the_text(workshop: Workshop) -> None:
    ear = type("Ear", (Slack,), {"heard": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), ear)
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    try:
        workshop.write(
            "retl.yml",
            f"connections: {{chat: {{type: slack, url: 'http://127.0.0.1:{server.server_address[1]}/x'}}}}\n"
            "alerts: [{to: {connection: chat}, on: [failure]}]\n",
        )
        assert workshop.json("alerts", "test")["exit_code"] == 0
    finally:
        server.shutdown()
        server.server_close()
    (said,) = ear.heard
    assert said["text"].startswith("retl: test of test")


def test_alerts_share_the_limits_of_their_connection(
    workshop: Workshop, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request an hour is one message an hour, whoever sends it: the second one waits, gives up, and is
    told by a later run."""
    monkeypatch.setattr("retl.app.alerts.TIMEOUT", 0.5)
    workshop.sync("others", **LOST)
    alerts(workshop, listener, "{to: {connection: ops}, on: [refusal]}")
    text = (workshop.folder / "retl.yml").read_text()
    limited = f"/{SECRET}', limits: {{requests: 1, per: 1h, share: 1}}}}"
    workshop.write("retl.yml", text.replace(f"/{SECRET}'}}", limited, 1))
    said = workshop.retl("sync")
    assert (said.code, len(listener.heard)) == (3, 1)
    (failed,) = [json.loads(line) for line in said.err.splitlines() if "alert_failed" in line]
    assert (failed["to"], failed["why"]) == ("ops", "HELD_OFF")


def test_a_list_of_alerts_says_who_gets_them_and_keeps_the_secret(
    workshop: Workshop, listener: Listener
) -> None:
    hook = f"{{webhook: 'https://hooks.example.com/{SECRET}'}}"
    alerts(workshop, listener, f"{{to: {hook}, on: [failure]}}", "{to: {connection: ops}, on: [failure]}")
    said = workshop.retl("alerts").out
    assert ("webhook hooks.example.com" in said, "ops" in said, SECRET in said) == (True, True, False)
