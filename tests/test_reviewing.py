"""A plan as people read it before it is delivered: Markdown, exit codes, how long it takes, and the workflow."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from retl.cli.markdown import _code, _text
from retl.model import Limits
from retl.observe.summary import duration
from retl.pace.limiter import Pace
from tests.cli_words import assert_known, in_shell
from tests.commands import ROWS, Workshop
from tests.servers import RedisServer

GUIDE = Path(__file__).parents[1] / "docs" / "guides" / "reviewing"
CONTRACT = "{user_id: {type: integer}, email: {type: string, sensitive: true}, spend: {type: decimal, max_digits: 12, decimal_places: 2, le: 1000}}"
TABLE = "{connection: app, table: users, create: true}"
SLOW = """
connections:
  chat:
    type: http
    base_url: "http://127.0.0.1:{port}"
    auth: {{type: none}}
    limits: {{requests: 1, per: 1s, share: 0.5}}
"""


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    """A sync that has delivered once, and a mart that moved since."""
    made = Workshop(tmp_path / "project")
    made.write("retl.yml", f"connections: {{app: {{type: sqlite, path: {tmp_path / 'app.db'}}}}}\n")
    made.sync("users", destination=TABLE, deletes="delete", contract=CONTRACT)
    made.json("sync")
    made.warehouse(
        "UPDATE users SET spend = 99 WHERE user_id = 3; UPDATE users SET email = 'x|y`@team' WHERE user_id IN (5, 6);"
        " DELETE FROM users WHERE user_id = 4; INSERT INTO users VALUES (98, 'n@example.com', 5), (99, 'z', 5000)"
    )
    return made


def lines(text: str, heading: str) -> list[str]:
    """The rows of the table under a heading."""
    part = text.split(f"#### {heading}\n\n")[1].split("\n\n")[0]
    return part.splitlines()[2:]


def test_a_plan_in_markdown_shows_what_changes_and_masks_what_is_sensitive(workshop: Workshop) -> None:
    before = workshop.snapshot()
    said = workshop.retl("plan", "--sync", "users", "--output", "markdown")
    assert said.code == 0
    assert "5 rows would be sent.\n\n| read | unchanged |" in said.out
    assert f"| {ROWS + 1} | 26 | 1 | 3 | 0 | 1 | 1 | 0 |" in said.out
    assert lines(said.out, "Changes by field") == ["| `email` | 1 | 2 |", "| `spend` | 1 | 1 |"]
    assert lines(said.out, "First changes") == [
        "| update | `3` | `spend` | `3` | `99.00` |",
        "| update | `5` | `email` | `***` | `***` |",
        "| update | `6` | `email` | `***` | `***` |",
        "| insert | `98` | `email` |  | `***` |",
        "|  |  | `spend` |  | `5.00` |",
        "| delete | `4` | `email` | `***` |  |",
        "|  |  | `spend` | `4` |  |",
    ]
    assert "| `99` | contract | OUT_OF_RANGE |" in said.out
    assert "| DELETE_RATE | 1 of 30 | 0.1 | passes |" in lines(said.out, "Guards")
    assert "INSERT INTO" in said.out
    assert "example.com" not in said.out
    few = workshop.retl("plan", "--sync", "users", "--key", "3", "--output", "markdown")
    assert "\n1 row would be sent.\n" in few.out
    assert workshop.snapshot() == before


def test_a_revealed_value_cannot_leave_its_cell(workshop: Workshop) -> None:
    said = workshop.retl("plan", "--sync", "users", "--output", "markdown", "--reveal")
    assert "| update | `5` | `email` | `u5@example.com` | ``x\\|y`@team`` |" in said.out


def test_a_refused_plan_says_which_guard_refuses_and_what_the_others_found(workshop: Workshop) -> None:
    workshop.warehouse("DELETE FROM users WHERE user_id BETWEEN 10 AND 20 OR user_id = 99")
    said = workshop.retl("plan", "--sync", "users", "--output", "markdown", "--detailed-exitcode")
    assert said.code == 3
    assert "**REFUSED** 12 deletes are planned" in said.out
    assert "| DELETE_RATE | 12 of 30 | 0.1 | **REFUSES** |" in said.out
    accepted = workshop.json("plan", "--sync", "users", "--accept", "DELETE_RATE")["syncs"][0]["review"]
    verdicts = {one["code"]: one["verdict"] for one in accepted["verdicts"]}
    assert (verdicts["DELETE_RATE"], verdicts["REJECT_RATE"]) == ("accepted", "passes")


def test_the_detailed_exit_code_tells_changes_from_none_and_from_errors(workshop: Workshop) -> None:
    detailed = ("plan", "--sync", "users", "--detailed-exitcode")
    assert workshop.retl(*detailed).code == 2
    assert workshop.retl(*detailed, "--output", "json").document["exit_code"] == 2
    assert workshop.retl("plan", "--sync", "users").code == 0
    workshop.json("sync")
    assert workshop.retl(*detailed).code == 0
    unknown = workshop.retl("plan", "--sync", "nobody", "--detailed-exitcode", "--output", "json")
    assert (unknown.code, unknown.document["exit_code"]) == (1, 1)
    assert workshop.retl(*detailed, "--key", "4711").code == 1  # no row has this key
    assert workshop.retl("plan", "--sync", "users", "--deatiled").code == 2
    assert workshop.retl(*detailed, "--typo").code == 1


def test_a_format_that_a_command_does_not_have_is_a_usage_error(workshop: Workshop) -> None:
    assert "USAGE" in workshop.retl("runs", "--output", "markdown").err


def test_changes_of_a_target_that_cannot_compare_are_counted_by_reading_it(
    workshop: Workshop, redis_server: RedisServer
) -> None:
    """And one that cannot be read shows that nobody knows."""
    workshop.use(redis_server)
    workshop.sync("cache")
    workshop.json("sync", "--sync", "cache")
    workshop.warehouse("UPDATE users SET spend = 1 WHERE user_id BETWEEN 10 AND 19")
    found = workshop.json("plan", "--sync", "cache")["syncs"][0]["review"]
    assert [(one["name"], one["updated"]) for one in found["columns"]] == [("email", 0), ("spend", 10)]


def test_a_plan_says_how_long_the_limits_make_it(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path / "project")
    with socket.create_server(("127.0.0.1", 0)) as server:
        workshop.write("retl.yml", SLOW.format(port=server.getsockname()[1]))
        workshop.sync(
            "messages",
            source='{sql: "SELECT user_id, email FROM users LIMIT 22"}',
            destination="{connection: chat, insert: {method: POST, path: /messages, row: $fields}}",
            write="append",
            first_run="send",
            delivery="at_most_once",
        )
        planned = workshop.json("plan", "--sync", "messages")["syncs"][0]
        assert planned["estimate"] == {
            "requests": 22, "seconds": 44.0, "allowed": "1 per 2 s", "word": "messages", "days": 0,
            "text": "22 messages ≈ 44 s at the allowed pace (1 per 2 s)",
        }  # fmt: skip
        sentence = "estimated: 22 messages ≈ 44 s at the allowed pace (1 per 2 s)"
        assert sentence in workshop.retl("plan", "--sync", "messages").out
        assert (
            sentence.capitalize() in workshop.retl("plan", "--sync", "messages", "--output", "markdown").out
        )


def test_an_estimate_knows_that_a_check_is_a_request_too(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path / "project")
    workshop.write("retl.yml", SLOW.format(port=9))
    chat = "{connection: chat, insert: {method: POST, path: /messages, row: $fields}%s}"
    more = {
        "source": '{sql: "SELECT user_id, email FROM users LIMIT 1"}',
        "write": "append",
        "first_run": "send",
    }
    workshop.sync("bare", destination=chat % "", delivery="at_most_once", **more)
    workshop.sync("checked", destination=chat % ", check: {path: /}", delivery="at_most_once", **more)
    found = {one["sync"]: one["estimate"] for one in workshop.json("plan", "--offline")["syncs"]}
    assert [(one["requests"], one["seconds"]) for one in found.values()] == [(1, 0.0), (1, 4.0)]
    assert found["checked"]["text"] == "1 message ≈ 4 s at the allowed pace (1 per 2 s)"


def test_an_estimate_counts_windows_and_days() -> None:
    terms = Pace(Limits(requests=100, per=10, per_day=1000)).terms
    assert terms is not None
    assert [terms.seconds(n) for n in (1, 100, 150)] == [0, 0, 15]
    assert str(terms) == "100 per 10 s, 1,000 a day"
    assert Pace(Limits()).terms is None
    assert [duration(n) for n in (44, 200, 7500, 90_000)] == ["44 s", "3 min 20 s", "2 h 5 min", "1 d 1 h"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a`b", "``a`b``"),
        ("``", "``` `` ```"),
        ("a\nb", "`a\\nb`"),
        ("x" * 200, f"`{'x' * 120}…`"),
        (None, ""),
    ],
)
def test_a_value_is_code_whatever_it_holds(value: str | None, shown: str) -> None:
    assert _code(value) == shown


def test_a_sentence_keeps_its_code_and_loses_its_markup() -> None:
    said = _text("`retl sync` of <b> @all: *x* | [y](z)")
    assert said == "`retl sync` of &lt;b> &#64;all: \\*x\\* \\| \\[y\\](z)"


# --- the workflow


def steps() -> dict[str, Any]:
    workflow: dict[Any, Any] = yaml.safe_load((GUIDE / "pull-request.yml").read_text(encoding="utf-8"))
    return {one.get("name", one.get("run")): one for one in workflow["jobs"]["plan"]["steps"]}


def test_the_workflow_knows_the_commands_and_asks_for_no_more_rights_than_it_needs() -> None:
    workflow: dict[Any, Any] = yaml.safe_load((GUIDE / "pull-request.yml").read_text(encoding="utf-8"))
    assert workflow[True].keys() == {"pull_request"}  # YAML 1.1 reads `on`
    assert workflow["permissions"] == {"contents": "read", "pull-requests": "write"}
    (words,) = (words for one in steps().values() for words in in_shell(one.get("run", "")))
    assert words[0] == "plan"
    assert_known(words)


def test_the_workflow_plans_what_the_branch_changed_and_comments(workshop: Workshop, tmp_path: Path) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in {
        "retl": f'exec "{sys.executable}" -m retl "$@"',
        "gh": 'echo "$@" > gh.called',
    }.items():
        (commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands / name).chmod(0o755)
    identity = {
        f"GIT_{who}_{what}": "x@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    environment = workshop.environ(
        PATH=f"{commands}:{os.environ['PATH']}", BASE="origin/main", PULL_REQUEST="7", **identity
    )

    def bash(text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-e", "-c", text], cwd=workshop.folder, env=environment, capture_output=True, text=True
        )

    begin = "git init -q -b main && git add syncs && git commit -qm a && git update-ref refs/remotes/origin/main HEAD"
    assert bash(begin).returncode == 0
    workshop.sync("users", destination=TABLE, contract=CONTRACT, tags="[crm]")
    assert bash("git add syncs && git commit -qm b").returncode == 0
    planned = bash(steps()["Plan the syncs that this pull request changes"]["run"])
    assert planned.returncode == 0, planned.stderr
    assert (workshop.folder / "plan.md").read_text(encoding="utf-8").startswith("### retl plan: `users` → ")
    assert bash(steps()["Comment"]["run"]).returncode == 0
    called = (workshop.folder / "gh.called").read_text()
    assert called == "pr comment 7 --edit-last --create-if-none --body-file plan.md\n"
