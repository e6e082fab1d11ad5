"""Credentials only where they are used, and plans without network."""

from __future__ import annotations

from pathlib import Path

import pytest

from retl.app.resolve import open_project
from retl.app.session import Session, options
from retl.errors import DefinitionError
from retl.project.validation import each
from tests.commands import ROWS, Workshop

CRM = 'crm: {type: postgres, host: db.invalid, dbname: crm, user: retl, password: "${CRM_PASSWORD}"}'
SHOP = 'shop: {type: rest, base_url: "${SHOP_URL}", auth: {type: bearer, token: "${SHOP_TOKEN}"}}'


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.write(
        "retl.yml",
        f'connections:\n  {CRM}\n  other: {{type: http, base_url: "${{OTHER_URL}}"}}\n'
        f'sources:\n  {SHOP}\nalerts:\n  - {{to: {{webhook: "${{HOOK}}"}}, on: [failure]}}\n',
    )
    made.sync("people", destination="{connection: crm, table: people}")
    return made


def test_a_plan_offline_asks_nobody_and_says_what_it_does_not_know(workshop: Workshop) -> None:
    (planned,) = workshop.json("plan", "people", "--offline")["syncs"]
    assert (planned["inserted"], planned["exit_code"]) == (ROWS, 0)
    assert planned["samples"][0]["op"] == "insert"
    assert any("the target was not asked" in note for note in planned["notes"])
    workshop.sync("people", destination="{connection: crm, table: people}", write="update_only")
    (planned,) = workshop.json("plan", "people", "--offline")["syncs"]
    assert any("at most" in note for note in planned["notes"])
    for conflicts in ("target_wins", "manual"):
        workshop.sync("people", destination="{connection: crm, table: people}", conflicts=conflicts)
        assert workshop.json("plan", "people", "--offline")["syncs"][0]["inserted"] == ROWS
    assert not (workshop.folder / ".retl").exists()


def test_what_cannot_be_read_offline_is_refused(workshop: Workshop) -> None:
    workshop.sync("orders", source="{from: shop, path: /o, items: d}", contract="{user_id: {type: integer}}")
    said = workshop.retl("plan", "orders", "--offline", REDIS_HOST="127.0.0.1")
    assert (said.code, "[OFFLINE]" in said.err) == (2, True)
    said = workshop.retl("plan", "people", "--offline", RETL_STATE_URL="postgresql://u@db.invalid/l")
    assert (said.code, "[OFFLINE]" in said.err) == (2, True)
    assert "[USAGE]" in workshop.retl("plan", "people", "--offline", "--out", "f").err
    with pytest.raises(DefinitionError, match="only a dry run"):
        options(offline=True)


def test_explain_and_test_need_no_credentials(workshop: Workshop) -> None:
    workshop.sync(
        "orders",
        source="{from: shop, path: /o, items: d}",
        contract="{user_id: {type: integer}}",
        destination="{connection: crm, table: orders}",
        tests="[{given: {user_id: 1}, expect: {}}]",
    )
    assert workshop.json("test")["passed"] == 1
    assert (
        workshop.json("explain", "people", "--key", "1")["object"]
        == workshop.json("explain", "people", "--key", "1", CRM_PASSWORD_COMMAND="false")["object"]
    )


def test_a_host_that_a_file_names_is_read_where_it_decides_the_object(workshop: Workshop) -> None:
    text = (workshop.folder / "retl.yml").read_text().replace("db.invalid", '"${CRM_HOST}"')
    workshop.write("retl.yml", text)
    workshop.write("host", "db.invalid")
    found = workshop.json("explain", "people", CRM_HOST_FILE="host", CRM_PASSWORD="x")
    assert "db.invalid" in found["object"]
    said = workshop.retl("explain", "people")
    assert (said.code, "CRM_HOST" in said.err) == (2, True)


def test_a_sync_needs_its_own_variables_only(workshop: Workshop) -> None:
    workshop.sync("letters", destination='{type: redis, key: "l:{user_id}", value: json, ttl: none}')
    environ = {"REDIS_HOST": "127.0.0.1"}
    with Session(open_project(workshop.folder, environ=environ)) as session:
        session.require([session.definition("letters")], options())
        with pytest.raises(DefinitionError) as caught:
            session.require([session.definition("people")], options())
    assert [one.message.split()[2] for one in each(caught.value)] == ["CRM_PASSWORD"]


def test_the_sync_behind_a_ref_lends_its_object_and_not_its_secret(workshop: Workshop) -> None:
    workshop.write(
        "retl.yml",
        'connections:\n  api: {type: http, base_url: "https://api.example.com", auth: {type: bearer, token: "${T}"}}\n',
    )
    rows = "max_rows: 10, row: $row}"
    outcome = "outcome: {rows: positional, at: r, row_ok: {at: s, in: [ok]}, ref: id}"
    upsert = f"upsert: {{method: POST, path: /a, wrap: rows, {rows}"
    workshop.sync("people", destination=f"{{connection: api, {upsert}, {outcome}}}")
    workshop.sync(
        "deals",
        destination='{type: redis, key: "d:{user_id}", value: json, ttl: none}',
        fields="{owner: {ref: people, by: user_id}}",
    )
    with Session(open_project(workshop.folder, environ={"REDIS_HOST": "127.0.0.1"})) as session:
        session.require([session.definition("deals")], options())


def test_validate_lists_what_is_unset_and_strict_wants_all_of_it(workshop: Workshop) -> None:
    assert set(workshop.json("validate")["missing_variables"]) == {"CRM_PASSWORD", "HOOK"}
    said = workshop.retl("validate", "--strict")
    names = ("CRM_PASSWORD", "HOOK", "OTHER_URL", "SHOP_URL", "SHOP_TOKEN")
    assert said.code == 2
    assert [name for name in names if name in said.err] == list(names)
    said = workshop.retl("validate", "people", "--strict")
    assert [name for name in names if name in said.err] == ["CRM_PASSWORD", "HOOK"]
    given = dict.fromkeys(names, "https://x.example.com")
    assert workshop.json("validate", "--strict", **given)["exit_code"] == 0
    said = workshop.retl("validate", "--strict", **{**given, "SHOP_TOKEN": "", "SHOP_TOKEN_COMMAND": "false"})
    assert (said.code, "VARIABLE_UNREADABLE" in said.err) == (2, True)
