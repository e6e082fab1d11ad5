"""Requests that follow a run: which runs, what they say, and that none is lost or sent twice in silence."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from retl.destinations.http import following
from retl.errors import DefinitionError, Poisoned
from retl.net.connection import HttpConnection
from retl.project.then import RUN_VALUES, FollowUp
from tests import forked
from tests.commands import ROWS, Workshop
from tests.watching import watched

SECRET = "s3cr3t-of-the-tests"


class Server:
    """Keeps every request; answers with the next of `answers`, None = hangs up, and 204 when they are used up."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answers: list[tuple[int, str] | None] = []
        server = self

        class Ear(BaseHTTPRequestHandler):
            def _hear(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                server.headers.append(dict(self.headers))
                content = body and "json" in self.headers["Content-Type"]
                server.heard.append((self.command, self.path, json.loads(body) if content else None))
                answer = server.answers.pop(0) if server.answers else (204, "")
                if answer is None:
                    self.close_connection = True
                    return
                self.send_response(answer[0])
                self.send_header("Content-Length", str(len(answer[1])))
                self.end_headers()
                self.wfile.write(answer[1].encode())

            do_POST = do_PURGE = do_PUT = _hear

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Ear)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@contextmanager
def listening() -> Iterator[Server]:
    made = Server()
    threading.Thread(target=made.server.serve_forever, args=[0.02], daemon=True).start()
    try:
        yield made
    finally:
        made.server.shutdown()
        made.server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    with listening() as made:
        yield made


@pytest.fixture
def workshop(tmp_path: Path, server: Server) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.write(
        "retl.yml",
        f"connections:\n  app: {{type: sqlite, path: {tmp_path / 'app.db'}}}\n"
        f"  api: {{type: http, base_url: '{server.url}/v1', auth: {{type: bearer, token: '${{TOKEN}}'}}}}\n",
    )
    made.environment["TOKEN"] = SECRET
    define(made, "{connection: api, if: changed, path: /refresh}")
    return made


def define(workshop: Workshop, then: str, **more: str) -> None:
    parts = {"destination": "{connection: app, table: users, create: true}", "retry": "{attempts: 1}"}
    workshop.sync("users", then=then, **parts, **more)


def run(workshop: Workshop, *words: str, code: int = 0) -> dict[str, Any]:
    said = workshop.retl("sync", *words, "--output", "json")
    assert said.code == code, said.err + said.out
    assert SECRET not in said.out + said.raw
    return dict(said.document["syncs"][0])


def change(workshop: Workshop) -> None:
    workshop.warehouse("UPDATE users SET spend = spend + 1 WHERE user_id < 4")


def test_a_request_follows_a_run_that_changed_something_and_no_other(
    workshop: Workshop, server: Server
) -> None:
    """Its values are the run's, each escaped for its place, and the credential is the connection's."""
    define(
        workshop,
        "[{connection: api, if: changed, path: '/caches/{$run.sync}?run={$run.id}', method: PURGE},"
        " {connection: api, if: success, path: /fn, headers: {Idempotency-Key: '{$run.id}'},"
        " body: {n: $run.changed, say: '{$run.sync} is {$run.status}', none: $run.code, all: [$run.read]}},"
        " {connection: api, if: failed, path: /page, body: {code: $run.code}}]",
    )
    done = run(workshop)
    assert [one["state"] for one in done["then"]] == ["done", "done"]
    purge, call = server.heard
    assert purge == ("PURGE", f"/v1/caches/users?run={done['run_id']}", None)
    body = {"n": ROWS, "say": "users is SUCCESS", "none": None, "all": [ROWS]}
    assert call == ("POST", "/v1/fn", body)
    assert server.headers[1]["Idempotency-Key"] == done["run_id"]
    assert {head["Authorization"] for head in server.headers} == {f"Bearer {SECRET}"}
    assert [one["state"] for one in workshop.json("show")["then"]] == ["done", "done"]
    again = run(workshop)
    assert (again["unchanged"], [path for _, path, _ in server.heard[2:]]) == (ROWS, ["/v1/fn"])
    workshop.warehouse("DELETE FROM users WHERE user_id > 3")
    run(workshop, code=3)
    assert server.heard[3:] == [("POST", "/v1/page", {"code": "ROW_DROP"})]


def test_a_dry_run_says_what_it_would_send_and_sends_nothing(workshop: Workshop, server: Server) -> None:
    notes = run(workshop, "--dry-run")["notes"]
    assert any("it would send changed: POST api/refresh" in note for note in notes), notes
    run(workshop)
    assert "notes" not in run(workshop, "--dry-run")
    assert len(server.heard) == 1


def test_a_refused_request_is_a_note_and_is_not_repeated(workshop: Workshop, server: Server) -> None:
    server.answers = [(400, json.dumps({"error": {"code": "Nope", "message": f"bad {SECRET}"}}))]
    done = run(workshop)
    assert (done["status"], done["exit_code"], done["then"][0]["state"]) == ("SUCCESS", 0, "refused")
    assert "was refused: Nope: bad" in done["notes"][0]
    assert "then" not in run(workshop)
    assert len(server.heard) == 1


def test_a_required_request_that_is_refused_decides_the_exit_code_and_not_the_run(
    workshop: Workshop, server: Server
) -> None:
    define(workshop, "{connection: api, if: changed, path: /refresh, required: true}")
    server.answers = [(403, "")]
    done = run(workshop, code=1)
    assert (done["status"], done["inserted"], done["error"]["code"]) == ("SUCCESS", ROWS, "THEN_FAILED")
    assert workshop.json("runs")["runs"][0]["status"] == "SUCCESS"
    assert run(workshop)["unchanged"] == ROWS


def test_a_request_without_an_answer_is_sent_by_the_next_run_which_says_that_it_may_be_the_second(
    workshop: Workshop, server: Server
) -> None:
    """Equal requests of several runs are one; those with values of their own run are not."""
    server.answers = [None, None]
    first = run(workshop)
    assert first["then"][0]["state"] == "unanswered"
    assert "was sent and has no answer" in first["notes"][0]
    dry = run(workshop, "--dry-run")["notes"]
    assert any("has no answer: a run sends it again" in note for note in dry), dry
    change(workshop)
    assert run(workshop)["then"][0]["state"] == "unanswered"
    third = run(workshop)  # nothing changed: the open ones go all the same
    assert [one["state"] for one in third["then"]] == ["done", "done"]
    assert third["then"][0]["run_id"] == first["run_id"]
    assert any("may have arrived twice" in note for note in third["notes"])
    assert len(server.heard) == 3
    assert "then" not in run(workshop)
    define(workshop, "{connection: api, if: success, path: /fn, body: $run.id}")
    server.answers = [None]
    one, two = run(workshop), run(workshop)
    assert [body for _, _, body in server.heard[3:]] == [one["run_id"], one["run_id"], two["run_id"]]


@pytest.mark.parametrize("way", [["--accept", "STATE_BEHIND"], ["rebuild"]])
def test_after_a_restore_of_the_ledger_a_request_may_be_the_second_and_says_so(
    workshop: Workshop, server: Server, way: list[str]
) -> None:
    server.answers = [(503, "")]
    assert run(workshop)["then"][0]["state"] == "waiting"
    kept = workshop.folder / "kept"
    shutil.copytree(workshop.folder / ".retl", kept)
    change(workshop)
    assert [one["state"] for one in run(workshop)["then"]] == ["done", "done"]
    shutil.rmtree(workshop.folder / ".retl")
    kept.rename(workshop.folder / ".retl")
    assert run(workshop, code=3)["error"]["code"] == "STATE_BEHIND"
    if way == ["rebuild"]:
        told = workshop.retl("state", "rebuild", "users", "--yes")
        assert "they may have sent the requests that follow them (`then`)" in told.out + told.err
        notes = run(workshop)["notes"]
    else:
        planned = run(workshop, *way, "--dry-run")["notes"]
        notes = run(workshop, *way)["notes"]
        for told in (planned, notes):
            assert any("runs that this ledger lost may have sent the requests" in one for one in told), told
    assert any("it may have arrived twice" in one for one in notes), notes
    assert not run(workshop).get("notes")


def test_a_server_that_is_away_or_busy_has_certainly_not_done_it(workshop: Workshop, server: Server) -> None:
    server.answers = [(503, "")]
    waiting = run(workshop)
    assert (waiting["then"][0]["state"], waiting["exit_code"]) == ("waiting", 0)
    done = run(workshop)
    assert done["then"][0]["state"] == "done"
    assert "notes" not in done  # no doubt
    change(workshop)
    server.answers = [(429, ""), (204, "")]
    text = (workshop.folder / "syncs" / "users.yml").read_text()
    workshop.write("syncs/users.yml", text.replace("attempts: 1", "attempts: 3"))
    assert run(workshop)["then"][0]["state"] == "done"


def test_a_request_that_the_sync_lost_is_dropped_and_said(workshop: Workshop, server: Server) -> None:
    server.answers = [None]
    run(workshop)
    define(workshop, "{connection: api, if: failed, path: /page}")
    done = run(workshop)
    assert (done["then"][0]["state"], len(server.heard)) == ("dropped", 1)
    assert "the sync does not have this request any more" in done["notes"][0]


@pytest.mark.parametrize(
    ("point", "heard", "doubt"),
    [
        ("run_finished", 1, False),  # recorded, and not sent
        ("follow_up_intended", 1, True),
        ("follow_up_answered", 2, True),
        ("follow_up_recorded", 1, None),
    ],
)
def test_a_run_killed_at_any_step_loses_no_request_and_repeats_none_in_silence(
    workshop: Workshop, server: Server, tmp_path: Path, point: str, heard: int, doubt: bool | None
) -> None:
    assert killed(workshop, tmp_path, point) == -9
    done = run(workshop)
    assert done["unchanged"] == ROWS
    assert len(server.heard) == heard
    assert [one["state"] for one in done.get("then", ())] == ([] if doubt is None else ["done"])
    assert any("twice" in note for note in done.get("notes", ())) == bool(doubt)
    assert "then" not in run(workshop)


def killed(workshop: Workshop, tmp_path: Path, point: str) -> int | None:
    """The exit code of a run that is killed at an event."""
    environ = {**workshop.environ(), "RETL_CRASH_AT": point, "RETL_LOG_FORMAT": "json"}
    words = ["--project", str(workshop.folder), "sync", "--sync", "users"]
    process = forked.started(words, environ, tmp_path / "out", tmp_path / "err")
    process.join(60)
    return process.exitcode


def test_what_a_killed_run_wrote_is_a_change_for_the_run_that_finds_nothing_left_to_do(
    workshop: Workshop, server: Server, tmp_path: Path
) -> None:
    assert killed(workshop, tmp_path, "committing") == -9
    assert server.heard == []
    done = run(workshop)
    assert (done["unchanged"], done["then"][0]["state"]) == (ROWS, "done")
    assert "then" not in run(workshop)


WRONG = {
    "{connection: apii, if: changed}": "did you mean 'api'?",
    "{connection: app, if: changed}": "[THEN_CONNECTION]",
    "{connection: api, if: changed, path: '/x/{$run.ids}'}": "[THEN_PLACEHOLDER]",
    "{connection: api, if: changed, path: '/x/$run.id'}": "[THEN_PLACEHOLDER]",
    "{connection: api, if: changed, path: '/x/{$key}'}": "[THEN_PLACEHOLDER]",
    "{connection: api, if: changed, body: {a: $row}}": "[THEN_PLACEHOLDER]",
    "{connection: api, if: changed, body: {a: run $run.id}}": "needs braces",
    "[{connection: api, if: failed}, {connection: api, if: changed, headers: {X-A: '{$user_id}'}}]": "[THEN_PLACEHOLDER]",
    "{connection: api, if: changd}": "then.if",
    "{connection: api, if: changed, bdy: 1}": "did you mean 'body'",
    "{connection: api}": "then.if",
}


def test_a_wrong_request_is_an_error_of_the_definition(workshop: Workshop) -> None:
    for then, says in WRONG.items():
        define(workshop, then)
        said = workshop.retl("validate")
        assert (said.code, says in said.err) == (2, True), said.err
        assert "syncs/users.yml:4:" in said.err


def test_validate_needs_no_variable_and_lists_those_that_a_run_needs(workshop: Workshop) -> None:
    del workshop.environment["TOKEN"]
    assert workshop.retl("validate").code == 0
    assert workshop.retl("plan", "--offline", "--sync", "users").code == 0
    said = workshop.retl("sync")
    assert (said.code, "TOKEN" in said.err) == (2, True)


def test_a_value_never_leaves_its_place() -> None:
    http = HttpConnection.model_validate({"base_url": "https://api.example.com/v1"})
    hostile = {"id": 'a/../b?c=d&"e', "status": 'x"}, {"y": "', "code": None, "sync": "s\r\nX: y"}
    asked = {
        "connection": "api",
        "if": "success",
        "path": "/r/{$run.id}?q={$run.id}",
        "body": ["{$run.status}"],
    }
    made = following.request(FollowUp.model_validate(asked), http, hostile)
    assert made.target == "/v1/r/a%2F..%2Fb%3Fc%3Dd%26%22e?q=a%2F..%2Fb%3Fc%3Dd%26%22e"
    assert json.loads(made.body) == [hostile["status"]]
    for wrong in ({"path": "/r/{$run.code}"}, {"headers": {"X-A": "{$run.sync}"}}):
        with pytest.raises(Poisoned):
            following.request(FollowUp.model_validate({**asked, **wrong}), http, hostile)
    for name in RUN_VALUES:
        following.require(FollowUp.model_validate({**asked, "body": f"$run.{name}"}), http)
    whole = HttpConnection.model_validate({"auth": {"type": "url", "url": "https://hooks.example.com/s"}})
    with pytest.raises(DefinitionError, match="leave out `path`"):
        following.require(FollowUp.model_validate(asked), whole)


GUIDE = Path(__file__).parents[1] / "docs" / "guides" / "then.md"


def test_the_requests_of_the_guide_arrive_as_it_says(tmp_path: Path, server: Server) -> None:
    """Its files, against servers here: a refresh with a token, a purge, a function; and the bad end."""
    sync, connections = re.findall(r"```yaml title=.*?\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    made = Workshop(tmp_path / "project")
    lines = [line for line in connections.splitlines() if not line.startswith("  app:")]
    lines.append(f"  app: {{type: sqlite, path: {tmp_path / 'app.db'}}}")
    text = "\n".join(lines).replace(
        "client_id:", f"authority: {server.url}, base_url: {server.url}, client_id:"
    )
    text = text.replace("https://cdn.example.com", server.url)
    made.write("retl.yml", text.replace("https://shop.azurewebsites.net", server.url))
    made.write("syncs/users.yml", sync)
    made.environment |= dict.fromkeys(("CLIENT_ID", "CLIENT_SECRET", "PURGE_TOKEN", "FUNCTION_KEY"), SECRET)
    made.environment["TENANT"] = "tenant"
    token = json.dumps({"access_token": "of-entra", "expires_in": 3600, "token_type": "Bearer"})
    server.answers = [(200, token), (202, "")]
    done = run(made)
    assert [one["state"] for one in done["then"]] == ["done"] * 3
    assert [one["http_status"] for one in done["then"]] == [202, 204, 204]
    assert server.heard[0][:2] == ("POST", "/tenant/oauth2/v2.0/token")
    refresh = "/v1.0/myorg/groups/f089354e/datasets/cfafbeb1/refreshes"
    assert server.heard[1] == ("POST", refresh, {"notifyOption": "NoNotification"})
    assert server.headers[1]["Authorization"] == "Bearer of-entra"
    assert (server.heard[2][:2], server.headers[2]["X-Purge-Token"]) == (("PURGE", "/pages/users"), SECRET)
    body = {"run": done["run_id"], "changed": ROWS, "text": "users: SUCCESS"}
    assert server.heard[3] == ("POST", "/api/segments-ready", body)
    assert server.headers[3]["x-functions-key"] == SECRET
    made.warehouse("DELETE FROM users WHERE user_id > 3")
    refused = run(made, code=3)
    body = {"run": refused["run_id"], "code": "ROW_DROP"}
    assert server.heard[4:] == [("POST", "/api/page-somebody", body)]


@pytest.mark.parametrize("way", ["watch", "apply", "shards"])
def test_the_request_follows_whoever_began_the_run(
    workshop: Workshop, server: Server, request: pytest.FixtureRequest, way: str
) -> None:
    """`retl watch`, `retl apply`, and a run of several processes: one request, with the run's own numbers."""
    then = "{connection: api, if: changed, path: /fn, body: {n: $run.inserted}}"
    if way == "shards":
        workshop.use(redis=request.getfixturevalue("redis_server"))
        workshop.sync("users", shards="2", then=then)
        run(workshop)
    elif way == "watch":
        define(workshop, then, when="[{every: 1h}]")
        with watched(workshop, "users") as seen:
            seen.turn()
        assert seen.done[0].then[0]["state"] == "done"
    else:
        define(workshop, then)
        workshop.json("plan", "--sync", "users", "--out", "users.plan")
        assert workshop.json("apply", "users.plan")["syncs"][0]["then"][0]["state"] == "done"
    assert server.heard == [("POST", "/v1/fn", {"n": ROWS})]
