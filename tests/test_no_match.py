"""Words that name nothing: a key, a code, a batch, a sync, a person. A typo must not look like success."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from retl.cli.codes import codes
from tests.api import TOKEN, Api
from tests.commands import ROWS, Workshop
from tests.servers import Database
from tests.test_doubt import APPEND, CONNECTION, DOUBTFUL
from tests.test_doubt import doubt as leave_in_doubt

TABLE = "{type: postgres, table: crm.users, create: true}"


@pytest.fixture
def shop(tmp_path: Path, postgres: Database) -> Workshop:
    """`users` was delivered with one reject; `orders` goes to the same server and never ran."""
    made = Workshop(tmp_path / "project")
    made.use(postgres=postgres)
    made.warehouse("UPDATE users SET spend = -1 WHERE user_id = 3")
    contract = "{user_id: {type: integer}, email: {type: string}, spend: {type: decimal, max_digits: 12, decimal_places: 2, ge: 0}}"
    made.sync("users", destination=TABLE, contract=contract, tags="[crm]")
    made.sync("orders", destination=TABLE.replace("users", "orders"), tags="[crm]")
    assert made.json("sync", "users")["syncs"][0]["rejected"] == 1
    return made


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("sync users --key 999", "KEY_UNKNOWN"),
        ("plan users --key 999", "KEY_UNKNOWN"),
        ("explain users --key 999", "KEY_UNKNOWN"),
        ("log --key 999", "KEY_UNKNOWN"),
        ("log users --key 999 --since 1d", "KEY_UNKNOWN"),
        ("log --key 999 --out log.csv", "KEY_UNKNOWN"),
        ("rejects --key 999", "REJECT_UNKNOWN"),
        ("rejects users --code NOSUCH", "REJECT_UNKNOWN"),
        ("rejects dismiss --sync users --key 999", "REJECT_UNKNOWN"),
        ("retry users --key 999", "REJECT_UNKNOWN"),
        ("retry users --code NOSUCH", "REJECT_UNKNOWN"),
        ("conflicts --key 999", "CONFLICT_UNKNOWN"),
        ("conflicts users --key 3", "CONFLICT_UNKNOWN"),
        ("conflicts take mart --sync nosuch", "SYNC_UNKNOWN"),
        ("resolve --batch nosuch", "DOUBT_UNKNOWN"),
        ("resolve users --batch nosuch --delivered --yes", "DOUBT_UNKNOWN"),
        ("erase --subject email=nobody@example.com --dry-run", "SUBJECT_UNKNOWN"),
        ("erase --subject email=nobody@example.com --reason x", "SUBJECT_UNKNOWN"),
        ("erase --subject emial=u1@example.com --reason x", "SUBJECT_UNKNOWN"),
        ("erase --sync users --key 7 --lift --reason x", "KEY_UNKNOWN"),
        ("show nosuch", "RUN_UNKNOWN"),
        ("show 19700101", "RUN_UNKNOWN"),
        ("report nosuch --out r.html", "RUN_UNKNOWN"),
        ("rollback nosuch", "RUN_UNKNOWN"),
        ("state unblock nosuch --yes", "CONNECTION_UNKNOWN"),
        ("state reset nosuch --yes", "STATE_UNKNOWN"),
        ("state mv nosuch users --yes", "STATE_UNKNOWN"),
        *((f"{command} usres", "SYNC_UNKNOWN") for command in (
            "runs", "rejects", "log", "log show", "log verify", "conflicts", "conflicts list", "state show",
            "state prune", "resolve", "erase list", "erase verify", "status",
        )),
        *((f"{command} tag:crn", "TAG_UNKNOWN") for command in (
            "runs", "rejects", "log", "log verify", "conflicts", "state show", "state prune", "resolve",
            "erase list", "erase verify",
        )),
        *((f"{command} --sync x*", "NOTHING_SELECTED") for command in ("log", "conflicts list", "state show")),
    ],
)  # fmt: skip
def test_words_that_name_nothing_are_said_and_exit_2(shop: Workshop, words: str, code: str) -> None:
    before = shop.snapshot()
    said = shop.retl(*words.split(), "--output", "json")
    assert said.code == 2, said.out + said.err
    text = json.dumps(said.document)
    assert code in text
    assert '"hint": null' not in text
    changed = {path for path, bytes in shop.snapshot().items() if before.get(path) != bytes}
    assert not {path for path in changed if not path.startswith(".retl")}


def test_a_run_that_is_nearly_named_is_asked_about(shop: Workshop) -> None:
    run_id = shop.json("runs")["runs"][0]["run_id"]
    wrong = run_id[:-1] + ("0" if run_id[-1] != "0" else "1")
    end = wrong.rsplit("-", 1)[-1]
    for words, near in (("usres", "users"), (wrong, run_id), (end, run_id)):
        said = shop.retl("show", words)
        assert (said.code, f"there is no run {words!r}" in said.err) == (2, True), said.err
        assert f"did you mean {near!r}?" in said.err
        assert "`retl runs` lists them" in said.err
    said = shop.retl("show", "zzz")
    assert (said.code, "did you mean" in said.err) == (2, False)
    assert "`retl runs` lists them" in said.err


def test_a_person_whom_no_mart_has_is_unknown_also_beside_a_sync_that_is_gone(shop: Workshop) -> None:
    (shop.folder / "syncs" / "users.yml").unlink()
    gone = "not searched, because no file defines them, though the ledger has their keys: users"
    for subject, message, hint in (
        ("emial=u1@example.com", "no mart has a column 'emial'", f"did you mean 'email'?; {gone}"),
        ("email=nobody@example.com", "no mart has a row with this text in column 'email'", gone),
    ):
        said = shop.retl("erase", "--subject", subject, "--reason", "x", "--output", "json")
        error = said.document["error"]
        assert (said.code, error["code"]) == (2, "SUBJECT_UNKNOWN"), said.out + said.err
        assert (message in error["message"], hint in error["hint"]) == (True, True), error
    shop.sync("orders", destination=TABLE.replace("users", "orders"), source="{table: nobody}")
    said = shop.retl("erase", "--subject", "email=nobody@example.com", "--reason", "x")
    assert (said.code, "no sync that could be searched has the person" in said.out) == (1, True), said.out


def test_a_filter_of_time_may_leave_nothing_and_says_so(shop: Workshop) -> None:
    for words, said in (
        ("rejects --since 2999-01-01", "no open reject was first seen since 2999-01-01 00:00:00Z"),
        ("log --key 1 --since 2999-01-01", "nothing was sent"),
        ("resolve", "nothing is in doubt"),
        ("resolve --not-delivered", "nothing is in doubt"),
    ):
        answer = shop.retl(*words.split())
        assert (answer.code, said in answer.out) == (0, True), answer.out + answer.err


@pytest.mark.parametrize("words", ["users", "tag:crm,users", "us*", "--sync users", "--tag crm --exclude orders", "to:postgres"])  # fmt: skip
def test_the_commands_that_read_the_ledger_choose_like_the_others(shop: Workshop, words: str) -> None:
    shop.json("conflicts", *words.split())
    assert {one["record_key"] for one in shop.json("log", *words.split())["rows"]} >= {"1", "2"}
    assert [one["sync"] for one in shop.json("log", "verify", *words.split())["chains"]] == ["users"]
    assert [one["sync"] for one in shop.json("state", "show", *words.split())["checkpoints"]] == ["users"]
    assert "users" in [
        one["sync"] for one in shop.json("state", "prune", "--dry-run", *words.split())["pruned"]
    ]
    assert shop.json("erase", "list", *words.split())["erasures"] == []
    assert shop.json("resolve", *words.split())["in_doubt"] == []
    assert len(shop.json("log", "--exclude", "users")["rows"]) == 0
    assert shop.json("state", "orders")["checkpoints"] == []
    assert shop.json("log", "--failed")["rows"] == []


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as running:
        yield running


def test_a_batch_in_doubt_is_named_exactly(tmp_path: Path, api: Api) -> None:
    shop = Workshop(tmp_path / "project", {"TOOL_URL": api.url, "TOOL_TOKEN": TOKEN})
    shop.write("retl.yml", CONNECTION)
    shop.sync("events", **APPEND, batch="{rows: 5}")
    leave_in_doubt(shop, api, applied=False)
    (batch,) = (one["batch"] for one in shop.json("resolve", "events")["in_doubt"])
    said = shop.retl("resolve", "--batch", batch, "--batch", "nosuch", "--not-delivered", "--yes")
    assert (said.code, "no batch in doubt has the id nosuch [DOUBT_UNKNOWN]" in said.err) == (2, True)
    assert shop.json("resolve", "--batch", batch, "--not-delivered", "--yes")["resolved"] == DOUBTFUL
    assert ROWS > DOUBTFUL


def test_an_error_without_a_hint_of_its_own_names_the_page_about_its_code(shop: Workshop) -> None:
    said = shop.retl("sync", "users", "--where", "nosuch = 1", RETL_LOG_FORMAT="console")
    assert said.code == 2
    assert "[WHERE_INVALID]\n  hint: `retl help WHERE_INVALID` says what to do" in said.err
    said = shop.retl("log", "--since", "noon", "--output", "json")
    assert said.document["error"]["hint"] == "`retl help SINCE_INVALID` says what to do"
    shop.write("config.env", "NOT A LINE\n")
    said = shop.retl("list", RETL_LOG_FORMAT="console")
    assert "fix the one in the message" in codes()["CONFIG_INVALID"].text, "the page does not know more"
    assert (said.code, "hint" in said.err) == (2, False)


def test_a_wrong_use_names_the_help_of_its_command(shop: Workshop) -> None:
    said = shop.retl("reconcile", "users", "--dry-run", RETL_LOG_FORMAT="console")
    assert said.err.splitlines()[-1] == "  hint: retl reconcile --help"
    said = shop.retl("sync", "--var", "day", RETL_LOG_FORMAT="console")
    assert "hint: such as --var run_date=2026-11-20" in said.err
