"""What people misread once: purposes, alerts, hints and notes that now say what is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.commands import ROWS, Workshop
from tests.servers import Database
from tests.test_alerts import Listener, listener, tell, webhook  # noqa: F401
from tests.test_reconcile import execute

TABLE = "{type: postgres, table: users, create: true}"


@pytest.fixture
def shop(tmp_path: Path, postgres: Database) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.use(postgres=postgres)
    made.sync("users", destination=TABLE)
    return made


def test_a_look_is_called_reconcile_and_a_repair_repair(shop: Workshop, postgres: Database) -> None:
    shop.json("sync")
    with postgres.connect() as connection:
        connection.execute("UPDATE users SET email = 'theirs' WHERE user_id = 3")
    assert shop.retl("reconcile", "users").code == 1
    assert shop.json("show")["purpose"] == "reconcile"
    assert shop.retl("reconcile", "users", "--repair").code == 0
    assert shop.json("show")["purpose"] == "repair"


def test_an_alert_for_a_refusal_has_all_guards_and_the_deletes_that_wait(
    shop: Workshop,
    listener: Listener,  # noqa: F811
) -> None:
    tell(shop, webhook(listener), "[refusal]")
    shop.sync("users", destination=TABLE, deletes="delete", guards="{max_delete_rows: 2}")
    shop.json("sync")
    shop.warehouse("DELETE FROM users WHERE user_id > 5")
    assert shop.retl("sync").code == 3
    (heard,) = listener.heard
    assert [one["code"] for one in heard["guards"]] == ["ROW_DROP", "DELETE_RATE"]
    assert heard["error"] == heard["guards"][0]
    assert heard["counts"]["deletes_not_attempted"] == ROWS - 5


def test_a_diff_of_a_retyped_column_does_not_hint_at_what_the_contract_says(
    shop: Workshop,
) -> None:
    shop.sync("users", destination=TABLE, contract="{user_id: {type: integer}, spend: {type: integer}}")
    shop.warehouse("ALTER TABLE users ALTER spend TYPE INTEGER")
    shop.json("sync")
    shop.warehouse("ALTER TABLE users ALTER spend TYPE VARCHAR")
    said = shop.retl("contract", "diff", "users")
    assert "cast spend in the source's SQL, back to what the contract says" in " ".join(said.out.split())
    assert "set `spend: {type: integer}`" not in said.out


@pytest.mark.parametrize("way", ["cast", "alter"])
def test_each_way_that_the_hint_about_a_column_names_is_enough(
    shop: Workshop, postgres: Database, way: str
) -> None:
    contract = "{user_id: {type: integer}, email: {type: string}, spend: {type: string}}"
    shop.json("sync", "users")
    shop.warehouse("ALTER TABLE users ALTER spend TYPE VARCHAR")
    shop.sync("users", destination=TABLE, contract=contract)
    said = shop.retl("sync", "users", "--output", "json")
    error = said.document["syncs"][0]["error"]
    assert (said.code, error["code"]) == (3, "TARGET_DRIFT"), said.err
    cast, alter = error["hint"].split("; if the table is yours: ")
    if way == "alter":
        execute(postgres, alter.rstrip(";"))
    else:
        found = re.fullmatch(
            r"cast spend in the source's SQL, and set `(spend: .*)` in the contract, if there is one", cast
        )
        assert found is not None, cast
        written = found[1].replace("max_digits: …, decimal_places: …", "max_digits: 12, decimal_places: 2")
        shop.warehouse("ALTER TABLE users ALTER spend TYPE DECIMAL(12, 2)")
        shop.sync("users", destination=TABLE, contract=contract.replace("spend: {type: string}", written))
    said = shop.retl("sync", "users")
    assert said.code == 0, said.err


def test_types_that_retl_does_not_carry_are_all_named_with_the_cast(
    shop: Workshop, postgres: Database
) -> None:
    shop.warehouse("ALTER TABLE users ADD COLUMN t TIME DEFAULT '09:30:00'")
    shop.warehouse("ALTER TABLE users ADD COLUMN i INTERVAL")
    said = shop.retl("sync")
    assert "t is TIME and i is INTERVAL: retl has no such type" in said.err
    assert "CAST(t AS VARCHAR) AS t, CAST(i AS VARCHAR) AS i" in said.err
    with postgres.connect() as connection:
        connection.execute("CREATE TABLE times (user_id bigint PRIMARY KEY, t time)")
    sql = "SELECT user_id, CAST(t AS VARCHAR) AS t FROM users"
    shop.sync("users", source=f'{{sql: "{sql}"}}', destination="{type: postgres, table: times}")
    assert shop.json("sync")["syncs"][0]["inserted"] == ROWS


def test_infinity_is_named_and_not_called_inexact(shop: Workshop) -> None:
    shop.sync(
        "users",
        source="{sql: \"SELECT user_id, CAST('NaN' AS DOUBLE) AS f FROM users LIMIT 1\"}",
        destination=TABLE,
    )
    said = shop.retl("sync", "--dry-run")
    assert "f has NaN or infinity, which the contract's type float does not take" in said.out + said.err


def test_status_of_a_renamed_sync_names_the_way_that_is_not_refused(shop: Workshop) -> None:
    shop.json("sync")
    (shop.folder / "syncs/users.yml").rename(shop.folder / "syncs/people.yml")
    (found,) = shop.json("status")["syncs"]
    assert found["next"].startswith("`retl state mv users people` if it was renamed")
    assert shop.retl("sync").code == 3
    assert shop.retl("state", "mv", "users", "people", "--yes").code == 0
    assert shop.json("sync")["syncs"][0]["unchanged"] == ROWS


def test_a_retyped_column_at_the_target_is_one_of_the_rewrites_that_are_named(
    shop: Workshop, postgres: Database
) -> None:
    shop.json("sync")
    with postgres.connect() as connection:
        connection.execute("ALTER TABLE users ALTER COLUMN spend TYPE numeric(20,4)")
    assert "ALTER TABLE … TYPE" in shop.retl("sync", "--dry-run").out


def test_a_note_names_no_repair_that_would_not_send_what_others_removed(
    shop: Workshop, postgres: Database
) -> None:
    shop.warehouse("INSERT INTO users SELECT i, 'u' || i || '@example.com', 1 FROM range(31, 200) t(i)")
    shop.sync("users", destination=TABLE, conflicts="target_wins")
    shop.json("sync")
    with postgres.connect() as connection:
        connection.execute("DELETE FROM users WHERE user_id = 7")
    (found,) = shop.json("sync", "--dry-run")["syncs"]
    (note,) = [one for one in found["notes"] if one.startswith("the target lacks 1 of 199")]
    assert note.endswith("and they are not sent: `conflicts` keeps rows that others removed away")
    shop.retl("reconcile", "users", "--repair")
    with postgres.connect() as connection:
        assert connection.execute("SELECT count(*) FROM users").fetchone() == (198,)
