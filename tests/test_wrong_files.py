"""A wrong file of one sync: what still works, and what does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import ROWS, Workshop
from tests.servers import RedisServer

WRONG = "source: {table: users}\nkeys: [user_id]\n"
READING = (
    ("status",),
    ("runs",),
    ("runs", "users"),
    ("show", "users"),
    ("report", "users"),
    ("rejects",),
    ("rejects", "users"),
    ("conflicts",),
    ("log", "users"),
    ("log", "verify"),
    ("state", "show"),
    ("state", "prune", "--dry-run"),
)


@pytest.fixture
def workshop(tmp_path: Path, redis_server: RedisServer) -> Workshop:
    """A sync that ran, and the wrong file of another one that ran."""
    made = Workshop(tmp_path / "project")
    made.use(redis_server)
    made.sync("users", contract="{user_id: {type: integer, lt: 30}}")
    made.sync("notify", rejects="{payload: true}", contract="{user_id: {type: integer, lt: 30}}")
    made.json("sync")
    made.write("syncs/notify.yml", WRONG)
    return made


def test_what_is_in_the_ledger_is_shown_although_the_file_of_another_sync_is_wrong(
    workshop: Workshop,
) -> None:
    for words in READING:
        said = workshop.retl(*words)
        assert said.code == 0, (words, said.err)
        (line,) = [json.loads(one) for one in said.err.splitlines() if "syncs/notify.yml" in one]
        broken = ("definitions_broken", "OPTION_MISSING", "syncs/notify.yml:1:1")
        assert (line["event"], line["code"], line["where"]) == broken, words
    assert workshop.json("runs", "notify")["runs"][0]["sync"] == "notify"
    (shown,) = workshop.json("status")["syncs"]
    assert shown["sync"] == "users"
    assert workshop.json("status")["warnings"] == ["notify: its file is wrong; it is not listed here"]
    assert workshop.retl("status", "--fail-stale").code == 1


def test_a_file_that_cannot_be_read_at_all_is_named_once(workshop: Workshop) -> None:
    workshop.write("syncs/notify.yml", "source: {table: [\n")
    said = workshop.retl("status", "--output", "json")
    assert (said.code, said.err.count("syncs/notify.yml")) == (0, 1)
    assert [one["sync"] for one in said.document["syncs"]] == ["users"]
    text = workshop.retl("status", RETL_LOG_FORMAT="console").err
    assert "warning: syncs/notify.yml:2:1: this is not valid YAML" in text
    assert "[YAML_INVALID]" in text


def test_rows_of_a_sync_with_a_wrong_file_stay_masked(workshop: Workshop) -> None:
    (reject,) = workshop.json("rejects", "notify")["rejects"]
    assert (reject["key"], reject["payload"], reject["value"]) == ("***", None, None)
    said = workshop.retl("rejects", "notify", "--values")
    assert (said.code, "the file of sync 'notify' is wrong [SYNC_UNKNOWN]" in said.err) == (2, True)


def test_syncs_are_paused_and_resumed_although_a_file_is_wrong(workshop: Workshop) -> None:
    for name in ("users", "notify"):
        assert workshop.retl("state", "pause", name, "--reason", "the CRM is down").code == 0
        assert workshop.json("state", "resume", name)["was_paused"]["reason"] == "the CRM is down"
    said = workshop.retl("state", "pause", "nobody", "--reason", "x")
    assert (said.code, "SYNC_UNKNOWN" in said.err) == (2, True)


def test_no_sync_runs_while_a_file_is_wrong_and_the_reason_is_said(workshop: Workshop) -> None:
    before = workshop.snapshot()
    for words in (("sync", "users"), ("sync", "users", "--dry-run"), ("plan", "users")):
        said = workshop.retl(*words)
        assert said.code == 2
        assert "only all files together show whether two syncs write the same rows or fields" in said.err
    assert "nothing ran" not in workshop.retl("validate").err
    assert workshop.snapshot() == before
    (workshop.folder / "syncs" / "notify.yml").rename(workshop.folder / "notify.yml")
    assert workshop.json("sync", "users")["syncs"][0]["unchanged"] == ROWS - 1


def test_an_error_outside_of_sync_files_does_not_blame_them(workshop: Workshop) -> None:
    said = workshop.retl("--env", "prod", "sync")
    assert (said.code, "[ENVIRONMENT_UNKNOWN]" in said.err, "syncs/" in said.err) == (2, True, False)
    workshop.write("retl.yml", "conections: {}\n")
    (workshop.folder / "syncs" / "notify.yml").unlink()
    workshop.sync("others")
    said = workshop.retl("sync")
    assert (said.code, "retl.yml:1:1" in said.err, "nothing ran" in said.err) == (2, True, False)


def test_syncs_that_contradict_each_other_do_not_hide_the_ledger(workshop: Workshop) -> None:
    workshop.sync("notify", after="[users]")
    workshop.sync("users", after="[notify]")
    said = workshop.retl("status", "--output", "json")
    assert (said.code, "AFTER_CYCLE" in said.err) == (0, True)
    assert {one["sync"] for one in said.document["syncs"]} == {"users", "notify"}
    assert workshop.retl("sync").code == 2


def test_a_wrong_preset_does_not_hide_the_ledger(workshop: Workshop) -> None:
    workshop.sync("notify")
    workshop.write("presets/own.yml", "name: own\n")
    said = workshop.retl("runs", "--output", "json")
    assert (said.code, "presets/own.yml" in said.err, len(said.document["runs"])) == (0, True, 2)
