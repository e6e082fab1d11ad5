"""The command line before any work: start, help, wrong words, words kept for later."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import retl
from retl.errors import DefinitionError, Later, Mismatch, Stopped, Systemic
from tests.commands import Workshop
from tests.servers import RedisServer

COMMANDS = {
    "sources",
    "docs",
    "serve",
    *(
        "init",
        "demo",
        "list",
        "log",
        "validate",
        "check",
        "explain",
        "sync",
        "plan",
        "runs",
        "show",
        "status",
    ),
    *(
        "rejects",
        "state",
        "schema",
        "destinations",
        "apply",
        "resolve",
        "retry",
        "test",
        "report",
        "conflicts",
        "reconcile",
        "rollback",
        "erase",
        "watch",
        "help",
        "dbt",
        "contract",
        "presets",
        "alerts",
    ),
}
OBSERVERS = {"opentelemetry", "openlineage", "requests"}
DRIVERS = {
    "duckdb",
    "psycopg",
    "redis",
    "hiredis",
    "jinja2",
    "httpx2",
    "structlog",
    "yaml",
    "rich",
    "cryptography",
} | OBSERVERS


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path / "project")


def loaded(words: list[str], environ: Mapping[str, str] | None = None) -> set[str]:
    """The modules that a command line loads."""
    code = (
        f"import sys, json; from retl.cli import main; main({words!r});"
        " print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ
    )
    return {name.partition(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}


def test_the_commands_have_one_order_whatever_was_imported_before(workshop: Workshop) -> None:
    def listed(first: str) -> str:
        code = f"{first}; from retl.cli import main; main(['--help'])"
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert listed("import retl.cli.history") == listed("import retl")


def test_help_names_every_command_and_loads_no_driver(workshop: Workshop) -> None:
    said = workshop.retl("--help")
    assert said.code == 0
    listed = {
        line.split()[0] for line in said.out.splitlines() if line.startswith("  ") and line[2].islower()
    }
    assert listed == COMMANDS
    assert loaded(["--help"]) & {*DRIVERS, "pydantic"} == set()
    assert loaded(["sync", "--help"]) & DRIVERS == set()


def test_a_run_loads_observers_only_where_they_are_asked_for(
    workshop: Workshop, redis_server: RedisServer
) -> None:
    workshop.sync("users")
    workshop.use(redis_server)
    words = ["--project", str(workshop.folder), "sync"]
    modules = loaded(words, workshop.environ(RETL_METRICS_FILE="retl.prom"))
    assert "redis" in workshop.json("show")["object"]  # it did run
    assert modules & {*OBSERVERS, "cryptography"} == set()
    asked = workshop.environ(OTEL_TRACES_EXPORTER="console", OPENLINEAGE_URL="http://127.0.0.1:9")
    assert loaded(words, asked) >= OBSERVERS


def test_the_version_needs_nothing_at_all(workshop: Workshop) -> None:
    assert workshop.retl("--version").out == f"retl {retl.__version__}\n"
    assert "typer" not in loaded(["--version"])


@pytest.mark.parametrize(
    "words",
    [
        ("sync", "--limit", "0"),
        ("sync", "--limit", "-1"),
        ("sync", "--limit", "many"),
        ("sync", "--jobs", "0"),
        ("sync", "--allow-deletes", "-1"),
        ("sync", "--accept", "NO_SUCH_GUARD"),
        ("sync", "--var", "no_value"),
        ("sync", "--sync", "nobody"),
        ("sync", "--exclude", "nobody"),
        ("sync", "--tag", "nothing"),
        ("sync", "--sync", "users", "--exclude", "users"),
        ("sync", "--output", "yaml"),
        ("sync", "--no-such-option"),
        ("plan", "nobody"),
        ("sync", "tga:daily"),
        ("explain",),
        ("explain", "nobody"),
        ("show", "no-such-run"),
        ("runs", "--limit", "0"),
        ("runs", "--sync", "nobody"),
        ("rejects", "--sync", "nobody"),
        ("rejects", "dismiss"),
        ("state", "reset", "nobody"),
        ("state", "unblock", "nobody"),
        ("destinations", "nothing"),
        ("no-such-command",),
        ("list", "--env", "nowhere"),
    ],
)
def test_a_wrong_command_line_is_2_and_leaves_nothing_behind(
    workshop: Workshop, words: tuple[str, ...]
) -> None:
    workshop.sync("users", tags="[daily]")
    workshop.environment["REDIS_HOST"] = "127.0.0.1"
    before = workshop.snapshot()
    said = workshop.retl(*words)
    assert said.code == 2, said.err
    assert said.err.startswith("error: ")
    assert "Traceback" not in said.err
    assert said.out == ""
    assert workshop.snapshot() == before


def test_the_shared_options_stand_before_or_after_the_command(workshop: Workshop, tmp_path: Path) -> None:
    workshop.sync("users")
    elsewhere = Workshop(tmp_path / "elsewhere", workshop.environment)
    folder = str(workshop.folder)
    for words in (
        ("--project", folder, "--output", "json", "list"),
        ("list", "--project", folder, "--output", "json"),
    ):
        assert [sync["sync"] for sync in elsewhere.retl(*words).document["syncs"]] == ["users"]
    by_variable = elsewhere.retl("list", "--output", "json", RETL_PROJECT=folder)
    assert [sync["sync"] for sync in by_variable.document["syncs"]] == ["users"]


def test_an_error_says_where_and_what_to_do_and_json_has_all_of_them(workshop: Workshop) -> None:
    workshop.sync("users", wirte="upsert", destinaton="{}")
    said = workshop.retl("list")
    assert said.code == 2
    assert "syncs/users.yml:" in said.err
    assert "did you mean 'write'?" in said.err
    assert "did you mean 'destination'?" in said.err
    document = workshop.retl("list", "--output", "json").document
    assert document["exit_code"] == 2
    assert [error["code"] for error in document["errors"]] == ["OPTION_UNKNOWN", "OPTION_UNKNOWN"]
    assert document["error"] == document["errors"][0]


def test_outside_of_a_project_the_error_names_the_way_in(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path / "project")
    (workshop.folder / "syncs").rmdir()
    said = workshop.retl("list")
    assert said.code == 2
    assert "retl init" in said.err


def test_a_traceback_comes_only_when_asked_for(workshop: Workshop) -> None:
    assert "Traceback" not in workshop.retl("explain", "nobody").err
    assert "Traceback" in workshop.retl("explain", "nobody", "--debug").err


def test_every_kind_of_error_has_its_exit_code() -> None:
    kinds = [DefinitionError("A", ""), Mismatch("A", ""), Later("A", ""), Systemic("A", ""), Stopped(15)]
    assert [problem.exit_code for problem in kinds] == [2, 3, 75, 1, 143]


def test_a_sync_may_follow_a_command_that_has_commands_of_its_own(workshop: Workshop) -> None:
    workshop.sync("users")
    for words in (("rejects",), ("log",), ("conflicts",)):
        assert workshop.retl(*words, "users").code == 0, words
        error = workshop.retl(*words, "nobody").err
        assert "there is no sync 'nobody'" in error
        assert "`retl list` shows the syncs" in error
    assert "Did you mean 'dismiss'?" in workshop.retl("rejects", "dismis").err
