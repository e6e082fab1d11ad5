"""`retl contract`: what came, went or changed, and an edit that keeps every comment."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from retl.destinations.batch import Capabilities
from retl.errors import DefinitionError
from retl.project.yamledit import Edit, edited
from retl.run import contract_diff
from tests.commands import Workshop
from tests.servers import Database, RedisServer

SYNC = """\
# our users
source: {table: users}
key: [user_id] # never NULL
contract:
  # the shop's number
  user_id: {type: integer} # whole
  email: {type: string, sensitive: true, nullable: true}
  # money
  spend:
    type: decimal # exact
    max_digits: 12
    decimal_places: 2
destination: {connection: out, table: mart, create: true}
"""
MART = "CREATE OR REPLACE TABLE users AS SELECT i AS user_id, 'a' AS {email}, {spend} AS spend{more} FROM range(3) t(i)"


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    made = Workshop(tmp_path / "shop")
    made.write("retl.yml", "connections: {out: {type: sqlite, path: out.db}}\n")
    made.write("syncs/users.yml", SYNC)
    change(made)
    with sqlite3.connect(made.folder / "out.db") as target:
        target.execute("CREATE TABLE mart (user_id INTEGER PRIMARY KEY, email TEXT, spend TEXT)")
    return made


def change(shop: Workshop, email: str = "email", spend: str = "1.50::DECIMAL(12, 2)", more: str = "") -> None:
    shop.warehouse(MART.format(email=email, spend=spend, more=more))


def differences(shop: Workshop) -> dict[str, Any]:
    said = shop.retl("contract", "diff", "users", "--output", "json")
    (sync,) = said.document["syncs"]
    assert said.code == int(any(one["is_drift"] for one in sync["differences"])), said.err
    assert sync["target"] is None
    return {one["column"]: one for one in sync["differences"]}


def test_nothing_differs_where_nothing_changed(shop: Workshop) -> None:
    assert differences(shop) == {}
    assert "the contract fits the mart" in shop.retl("contract", "update", "users", "--yes").out
    assert (shop.folder / "syncs" / "users.yml").read_text() == SYNC


def test_each_difference_has_an_edit_of_the_contract_and_the_ddl(shop: Workshop) -> None:
    change(shop, "e_mail", "1.5::DOUBLE", ", 7 AS age")
    with sqlite3.connect(shop.folder / "out.db") as target:
        target.execute("ALTER TABLE mart DROP COLUMN spend")
    found = differences(shop)
    assert {name: one["kind"] for name, one in found.items()} == {
        "email": "renamed",
        "age": "added",
        "spend": "missing",
    }
    assert found["email"]["now"] == "e_mail"
    assert found["email"]["ddl"] == 'ALTER TABLE "mart" RENAME COLUMN "email" TO "e_mail"'
    assert found["age"]["edit"] == {"type": "integer", "nullable": True}
    assert found["age"]["ddl"] == 'ALTER TABLE "mart" ADD COLUMN "age" INTEGER'
    assert found["spend"]["ddl"].startswith('ALTER TABLE "mart" ADD COLUMN "spend"')


def test_the_update_is_shown_first_and_keeps_comments_and_the_names_at_the_target(shop: Workshop) -> None:
    change(shop, "e_mail", "'x'", ", 7 AS age")
    before = (shop.folder / "syncs" / "users.yml").read_text()
    said = shop.retl("contract", "update", "users", "--column", "age")
    assert (said.code, "+  e_mail: {type: string" in said.out) == (0, True)
    assert "nothing was written" in said.out
    assert (shop.folder / "syncs" / "users.yml").read_text() == before
    shop.retl("contract", "update", "users", "--column", "age", "--yes")
    assert (shop.folder / "syncs" / "users.yml").read_text() == (
        SYNC.replace("  email:", "  e_mail:")
        .replace(
            "    type: decimal # exact\n    max_digits: 12\n    decimal_places: 2\n",
            "    type: string # exact\n",
        )
        .replace("type: string # exact\n", "type: string # exact\n  age: {type: integer, nullable: true}\n")
        + 'fields: {"*": "*", email: e_mail}\n'
    )
    assert differences(shop).keys() <= {"", "age"}  # the target's own columns are not for us to change


def test_a_column_with_a_new_name_and_the_same_values_is_not_sent_again(shop: Workshop) -> None:
    shop.json("sync")
    change(shop, "e_mail")
    shop.json("contract", "update", "users", "--yes")
    (summary,) = shop.json("sync")["syncs"]
    assert (summary["unchanged"], summary["updated"]) == (3, 0)
    assert not [note for note in summary.get("notes", ()) if "what is sent changed" in note]


def test_a_column_that_left_is_taken_out_and_its_column_at_the_target_is_an_orphan(shop: Workshop) -> None:
    shop.json("sync")
    shop.warehouse("CREATE OR REPLACE TABLE users AS SELECT i AS user_id, 'a' AS email FROM range(3) t(i)")
    (spend,) = differences(shop).values()
    assert (spend["kind"], spend["ddl"]) == ("removed", 'ALTER TABLE "mart" DROP COLUMN "spend"')
    assert "SOURCE_DRIFT" in shop.retl("validate").err
    shop.json("contract", "update", "users", "--yes")
    assert "# money" in (shop.folder / "syncs" / "users.yml").read_text()
    (orphan,) = differences(shop).values()
    assert (orphan["column"], orphan["kind"], orphan["ddl"]) == ("spend", "orphaned", spend["ddl"])
    assert (orphan["is_drift"], orphan["by"], spend["is_drift"], spend["by"]) == (
        *(False, "person"),
        *(True, "person"),
    )
    for command in (("contract", "update", "users"), ("contract", "update", "users", "--yes")):
        said = shop.retl(*command).out
        assert f"no run removes spend at the target; if nobody needs it: {orphan['ddl']}" in said
        assert "the next run does" not in said
    assert "by hand: ALTER TABLE" in shop.retl("contract", "diff", "users", COLUMNS="400").out
    (summary,) = shop.json("sync", "--dry-run")["syncs"]
    assert "no field writes spend now: at the target its values stay as they are" in summary["notes"]


def test_an_orphan_stays_where_a_column_was_renamed_and_the_new_one_named_by_hand(shop: Workshop) -> None:
    shop.json("sync")
    shop.warehouse("ALTER TABLE users RENAME spend TO total")
    shop.write("syncs/users.yml", SYNC.replace("  spend:", "  total:"))
    shop.json("sync")
    said = shop.retl("contract", "update", "users", "--yes").out
    assert "if nobody needs it: ALTER TABLE" in said
    assert "the next run does" not in said
    with closing(sqlite3.connect(shop.folder / "out.db")) as target:
        assert {"spend", "total"} <= {one[1] for one in target.execute("PRAGMA table_info(mart)")}


@pytest.mark.parametrize("value", ["json", "hash"])
def test_a_plan_says_what_becomes_of_a_field_that_is_no_longer_sent(
    shop: Workshop, redis_server: RedisServer, value: str
) -> None:
    """It is gone where a write replaces the whole object."""
    shop.use(redis_server)
    lines = SYNC.splitlines()[:-1]
    redis = f'destination: {{type: redis, key: "u:{{user_id}}", value: {value}, ttl: none}}\n'
    shop.write("syncs/users.yml", "\n".join([*lines, redis]))
    shop.json("sync")
    shop.write("syncs/users.yml", SYNC.split("  # money")[0] + redis)
    notes = shop.json("sync", "--dry-run")["syncs"][0]["notes"]
    shop.json("sync")
    if value == "json":
        end = "a write replaces the whole object at the target, so its values are gone from each row written"
        held = b"spend" in (redis_server.client().get("u:1") or b"")
    else:
        end = "at the target its values stay as they are"
        held = redis_server.client().hexists("u:1", "spend")
    assert f"no field writes spend now: {end}" in notes
    assert held == (value == "hash")


def test_what_is_no_longer_sent_is_said_per_way_to_write() -> None:
    gone = "a write replaces the whole object at the target, so their values are gone"
    for made, write, words in (
        ({"nulls_keep": True}, "upsert", "their values stay as they are"),
        ({"nulls_keep": True, "unsent_varies": True}, "upsert", "up to the target"),
        ({}, "upsert", gone),
        ({}, "replace", gone),
        ({}, "append", "their values stay as they are"),
        ({"whole": True}, "append", gone),
    ):
        capabilities = Capabilities("o", frozenset(), idempotent=True, form="documents", **made)
        said = contract_diff.orphaned('{"a": 1, "b": 1}', "{}", capabilities, write)
        assert words in str(said)


def test_a_contract_that_leaves_columns_out_does_not_drift_and_takes_only_what_is_named(
    shop: Workshop,
) -> None:
    change(shop, more=", 7 AS age, 'x' AS phone, 'y' AS city")
    shop.json("sync")
    assert {name: one["kind"] for name, one in differences(shop).items()} == dict.fromkeys(
        ("age", "phone", "city"), "added"
    )
    said = shop.retl("contract", "diff", "users")
    assert (said.code, "leaves out age, phone, city" in said.out) == (0, True)
    said = shop.retl("contract", "update", "--yes")
    assert "left out: age, phone, city (--column NAME takes one)" in said.out
    assert (shop.folder / "syncs" / "users.yml").read_text() == SYNC
    said = shop.retl("contract", "update", "users", "--column", "phone", "--yes")
    assert "the next run of users also sends: phone" in said.out
    assert "  phone: {type: string" in (shop.folder / "syncs" / "users.yml").read_text()
    assert "  age:" not in (shop.folder / "syncs" / "users.yml").read_text()
    wrong = shop.retl("contract", "update", "users", "--column", "phne")
    assert (wrong.code, "did you mean 'phone'" in wrong.err) == (2, True)
    shop.json("contract", "update", "users", "--column", "*", "--yes")
    assert {one["kind"] for one in differences(shop).values()} == {"missing"}  # until the next run


def test_a_column_that_is_new_since_the_last_run_is_drift_and_taken_only_by_name(shop: Workshop) -> None:
    change(shop, more=", 7 AS age")
    shop.json("sync")
    change(shop, more=", 7 AS age, 'x' AS phone")
    assert {name: one["is_drift"] for name, one in differences(shop).items()} == {"age": False, "phone": True}
    said = shop.retl("contract", "update", "users", "--yes")
    assert "also sends" not in said.out
    assert "left out: age, phone (--column NAME takes one)" in said.out
    assert (shop.folder / "syncs" / "users.yml").read_text() == SYNC
    said = shop.retl("contract", "update", "users", "--column", "phone", "--yes")
    assert "also sends: phone" in said.out
    assert "  phone: {type: string" in (shop.folder / "syncs" / "users.yml").read_text()
    assert "  age:" not in (shop.folder / "syncs" / "users.yml").read_text()


def test_plan_and_validate_say_that_the_mart_has_a_new_column(shop: Workshop) -> None:
    shop.json("sync")
    change(shop, more=", 7 AS age")
    (line,) = shop.json("validate")["syncs"]
    assert "age" in line["note"]
    (summary,) = shop.json("sync", "--dry-run")["syncs"]
    (note,) = [note for note in summary["notes"] if "new column" in note]
    assert "(`retl contract update users --column age` takes it)" in note
    shop.json("sync")
    (summary,) = shop.json("sync", "--dry-run")["syncs"]
    assert not [note for note in summary.get("notes", ()) if "new column" in note]
    change(shop, "e_mail")
    said = shop.retl("validate")
    assert "did you mean 'e_mail'" in said.err
    assert "`retl contract diff` shows the ways out" in said.err


def test_a_contract_that_follows_the_mart_has_no_differences_to_it(shop: Workshop) -> None:
    shop.write(
        "syncs/users.yml", SYNC.split("contract:")[0] + 'contract: {"*": "*"}\n' + SYNC.splitlines()[-1]
    )
    change(shop, more=", 7 AS age")
    assert differences(shop).keys() == {"age"}  # the target does not have it yet
    assert differences(shop)["age"]["kind"] == "missing"


@pytest.mark.parametrize(
    ("fields", "way"),
    [
        ("", "e_mail, sent as email"),
        ("fields: {address: email, spend: spend}\n", "e_mail, sent as address"),
        ("fields: {'*': '*', second: {column: email}}\n", "e_mail, sent as second"),
        ("fields: {spend: spend}\n", "e_mail "),
    ],
)
def test_a_renamed_column_is_shown_with_the_field_that_sends_it(
    shop: Workshop, fields: str, way: str
) -> None:
    shop.write("syncs/users.yml", SYNC + fields)
    change(shop, email="e_mail")
    said = shop.retl("contract", "diff", "users").out
    (line,) = [one for one in said.splitlines() if "the mart calls it e_mail" in one]
    assert way in line.partition("the mart calls it e_mail")[2] + " ", said


def test_a_column_whose_new_name_shares_a_word_is_renamed_in_the_contract_too(shop: Workshop) -> None:
    shop.json("sync")
    change(shop, spend="1.50::DECIMAL(12, 2) AS TotalSpend, 1::DECIMAL(12, 2)")
    shop.warehouse("ALTER TABLE users RENAME spend TO other")
    found = differences(shop)
    assert (found["spend"]["kind"], found["spend"]["now"]) == ("renamed", "TotalSpend")
    assert found["other"]["kind"] == "added"


def test_a_column_with_quite_another_name_is_the_same_if_it_alone_has_its_type(shop: Workshop) -> None:
    shop.write(
        "syncs/users.yml", SYNC.split("contract:")[0] + 'contract: {"*": "*"}\n' + SYNC.splitlines()[-1]
    )
    shop.json("sync")
    shop.warehouse("ALTER TABLE users RENAME spend TO paid")
    (found,) = differences(shop).values()
    assert (found["column"], found["kind"], found["now"]) == ("spend", "renamed", "paid")
    shop.warehouse("ALTER TABLE users ADD COLUMN other DECIMAL(12, 2)")
    kinds = {name: one["kind"] for name, one in differences(shop).items()}
    assert kinds == {"spend": "orphaned", "paid": "missing", "other": "missing"}, "two could be it"


def test_a_column_that_was_renamed_is_one_difference_where_the_contract_follows_the_mart(
    shop: Workshop,
) -> None:
    """Not an orphan and a column that is missing: the DDL keeps its values."""
    shop.write(
        "syncs/users.yml", SYNC.split("contract:")[0] + 'contract: {"*": "*"}\n' + SYNC.splitlines()[-1]
    )
    shop.json("sync")
    change(shop, "e_mail", more=", 7 AS seen")
    found = differences(shop)
    assert {name: one["kind"] for name, one in found.items()} == {"email": "renamed", "seen": "missing"}
    assert found["email"]["now"] == "e_mail"
    assert found["email"]["ddl"] == 'ALTER TABLE "mart" RENAME COLUMN "email" TO "e_mail"'


def test_a_table_that_retl_makes_gets_its_columns_from_the_next_run(shop: Workshop) -> None:
    change(shop, more=", 7 AS age")
    assert (
        "the next run does at the target: ALTER TABLE"
        in shop.retl(*("contract", "update", "users", "--column", "age")).out
    )
    shop.write("syncs/users.yml", SYNC.replace(", create: true", ""))
    assert "the target needs: ALTER TABLE" in shop.retl("contract", "update", "users", "--column", "age").out


def test_an_unreachable_target_leaves_what_the_mart_says(shop: Workshop) -> None:
    shop.write("retl.yml", 'connections: {out: {type: postgres, host: "${NOWHERE}", dbname: x}}\n')
    change(shop, more=", 7 AS age")
    said = shop.retl("contract", "diff", "--output", "json")
    (sync,) = said.document["syncs"]
    assert ([one["column"] for one in sync["differences"]], said.code) == (["age"], 1)
    assert "NOWHERE" in sync["target"]


@pytest.mark.parametrize(
    ("text", "edits", "wanted"),
    [
        ("{a: 1, b: 2} # c\n", [Edit((), "a")], "{b: 2} # c\n"),
        ("{a: 1, b: 2}\n", [Edit((), "b")], "{a: 1}\n"),
        ("{a: 1}\n", [Edit((), "a")], "{}\n"),
        (
            "a: 1 # one\nb: |\n  text\n# end\n",
            [Edit((), "c", "3")],
            "a: 1 # one\nb: |\n  text\nc: 3\n# end\n",
        ),
        ("a:\n  x: {}\n", [Edit(("a", "x"), "y z", "[1, 2]")], 'a:\n  x: {"y z": [1, 2]}\n'),
        ("a:\n  # two\n  b: 1\n  c: 2\n", [Edit(("a",), "b")], "a:\n  # two\n  c: 2\n"),
        ("a: [b, c] # d\n", [Edit(("a",), 1, "x")], "a: [b, x] # d\n"),
        ("a: 'b' # c", [Edit((), "a", name="x"), Edit((), "x", "2")], "x: 2 # c"),
        ("ä: {b: 1}\r\nc: 2\r\n", [Edit(("ä",), "d", "3")], "ä: {b: 1, d: 3}\r\nc: 2\r\n"),
    ],
)
def test_an_edit_changes_only_what_it_must(text: str, edits: list[Edit], wanted: str) -> None:
    assert edited(text, edits, "s.yml") == wanted


@pytest.mark.parametrize(
    "edit", [Edit(("gone",), "a", "1"), Edit((), "gone"), Edit((), "a", name="b"), Edit(("only",), "one")]
)
def test_an_edit_that_would_touch_more_is_refused(edit: Edit) -> None:
    with pytest.raises(DefinitionError) as caught:
        edited("a: 1\nb: 2\nonly:\n  one: 1\n", [edit], "s.yml")
    assert caught.value.code == "EDIT_BY_HAND"


def test_the_ddl_for_postgresql_does_what_it_says(shop: Workshop, postgres: Database) -> None:
    shop.use(postgres=postgres)
    text = SYNC.replace("{connection: out, table: mart, create: true}", "{type: postgres, table: mart}")
    shop.write("syncs/users.yml", text)
    with postgres.connect() as connection:
        connection.execute("CREATE TABLE mart (user_id int PRIMARY KEY, email text, spend boolean)")
        connection.commit()
        (unfit,) = differences(shop).values()
        assert (unfit["kind"], "column spend is boolean" in unfit["what"]) == ("unfit", True)
        connection.execute("ALTER TABLE mart DROP spend, ADD spend numeric(12, 2)")
        connection.commit()
        change(shop, "e_mail", more=", 7 AS age")
        found = differences(shop)
        connection.execute(f"{found['email']['ddl']}; {found['age']['ddl']}")
        columns = connection.execute(
            "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'mart'"
        ).fetchall()
    assert {("e_mail", "text"), ("age", "bigint")} <= set(columns)
