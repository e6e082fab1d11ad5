"""A column that somebody drops at the target is made again and filled, in every row that was delivered."""

from __future__ import annotations

from pathlib import Path

import pytest
from deltalake import DeltaTable, write_deltalake

from tests.commands import ROWS, Workshop
from tests.crashes import until
from tests.databases import ClickHouseShell, MySQLShell, Shell, shell_of
from tests.mysql_server import AVAILABLE
from tests.servers import Database


@pytest.fixture
def shop(tmp_path: Path, postgres: Database) -> Workshop:
    made = Workshop(tmp_path / "shop")
    made.use(postgres=postgres)
    return made


def sync(shop: Workshop, more: str = "", create: str = "true") -> None:
    shop.sync("users", destination=f"{{type: postgres, table: users, create: {create}}}\n{more}")


def held(postgres: Database) -> tuple[int, int]:
    with postgres.connect() as connection:
        row = connection.execute("SELECT count(*), count(spend) FROM users").fetchone()
    assert row is not None
    return row[0], row[1]


def drop(postgres: Database, column: str = "spend") -> None:
    with postgres.connect() as connection:
        connection.execute(f"ALTER TABLE users DROP COLUMN {column}")


@pytest.mark.parametrize(
    "more",
    [
        "",
        "deletes: delete\n",
        "conflicts: target_wins\n",
        "rollback: {keep: 1d}\n",
        "conflicts: target_wins\nrollback: {keep: 1d}\ndeletes: delete\n",
        "write: update_only\n",
    ],
)
def test_every_row_is_sent_and_the_run_says_why(shop: Workshop, postgres: Database, more: str) -> None:
    sync(shop, more.replace("write: update_only\n", ""))
    shop.json("sync", "users")
    sync(shop, more)
    shop.json("sync", "users")
    drop(postgres)
    planned = shop.json("sync", "users", "--dry-run")["syncs"][0]
    assert "no column spend any more" in str(planned["notes"])
    done = shop.json("sync", "users")["syncs"][0]
    assert (done["updated"], done["unchanged"]) == (ROWS, 0), done
    assert planned["updated"] == ROWS
    assert "no column spend any more" in str(done["notes"])
    assert held(postgres) == (ROWS, ROWS)
    again = shop.json("sync", "users")["syncs"][0]
    assert (again["unchanged"], again.get("notes")) == (ROWS, None)


def test_what_people_edited_in_other_columns_stays(shop: Workshop, postgres: Database) -> None:
    sync(shop, "conflicts: target_wins\n")
    shop.json("sync", "users")
    with postgres.connect() as connection:
        connection.execute("UPDATE users SET email = 'edited' WHERE user_id = 7")
    drop(postgres)
    done = shop.json("sync", "users")["syncs"][0]
    assert done["conflicts"]["merged"] == 1
    assert held(postgres) == (ROWS, ROWS)
    with postgres.connect() as connection:
        assert connection.execute("SELECT email FROM users WHERE user_id = 7").fetchone() == ("edited",)


def test_a_run_of_few_keys_leaves_the_others_due(shop: Workshop, postgres: Database) -> None:
    sync(shop)
    shop.json("sync", "users")
    drop(postgres)
    shop.json("sync", "users", "--key", "7")
    assert held(postgres) == (ROWS, 1)
    shop.json("sync", "users")
    assert held(postgres) == (ROWS, ROWS)


def test_after_a_kill_behind_the_new_column_the_next_run_fills_it(shop: Workshop, postgres: Database) -> None:
    sync(shop)
    shop.json("sync", "users")
    drop(postgres)
    shop.process("sync", "users", RETL_CRASH_AT="target_prepared:1")
    assert held(postgres) == (ROWS, 0)
    shop.json("sync", "users")
    assert held(postgres) == (ROWS, ROWS)


def test_a_field_that_is_new_in_the_sync_is_an_ordinary_update(shop: Workshop, postgres: Database) -> None:
    sync(shop, "fields: {email: email}\n")
    shop.json("sync", "users")
    sync(shop)
    done = shop.json("sync", "users")["syncs"][0]
    assert (done["updated"], done["refreshed"]) == (ROWS, 0)
    assert "any more" not in str(done.get("notes"))


@pytest.mark.parametrize("more", ["write: append\nfirst_run: send\n", "write: insert_only\n"])
def test_a_sync_that_changes_no_row_sends_none_again_and_names_no_way_to_fill_it(
    shop: Workshop, postgres: Database, more: str
) -> None:
    sync(shop, more)
    shop.json("sync", "users")
    drop(postgres)
    sync(shop, more, create="false")
    said = shop.retl("sync", "users")
    assert (said.code, "--full" in said.err) == (3, False)
    assert "rows that are there already stay empty in it" in said.err
    sync(shop, more)
    shop.warehouse("INSERT INTO users VALUES (1000, 'new', 1)")
    done = shop.json("sync", "users")["syncs"][0]
    assert (done["inserted"], done["unchanged"], done.get("notes")) == (1, ROWS, None)
    assert held(postgres) == (ROWS + 1, 1)


def test_where_people_make_the_column_the_hint_says_how_it_is_filled(
    shop: Workshop, postgres: Database
) -> None:
    sync(shop)
    shop.json("sync", "users")
    sync(shop, create="false")
    drop(postgres)
    said = shop.retl("sync", "users")
    assert said.code == 3
    assert 'ADD COLUMN "spend" numeric(12,2)' in said.err
    assert "`retl sync --full` fills it in all rows" in said.err
    with postgres.connect() as connection:
        connection.execute('ALTER TABLE users ADD COLUMN "spend" numeric(12,2)')
    shop.json("sync", "users", "--full")
    assert held(postgres) == (ROWS, ROWS)


class Lake:
    """A Delta table in a folder, without the words of SQL."""

    connection = "{type: delta, root: lake}"

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lake" / "users"

    def drop(self) -> None:
        table = DeltaTable(self.path).to_pyarrow_table().drop_columns(["spend"])
        write_deltalake(self.path, table, mode="overwrite", schema_mode="overwrite")

    def spent(self) -> int:
        spend = DeltaTable(self.path).to_pyarrow_table(columns=["spend"]).column("spend")
        return len(spend) - int(spend.null_count)


class Named:
    """A table of a database."""

    def __init__(self, shell: Shell) -> None:
        self.shell, self.connection = shell, shell.connection

    def drop(self) -> None:
        self.shell.execute("ALTER TABLE users DROP COLUMN spend")

    def spent(self) -> int:
        return int(self.shell.execute("SELECT count(spend) FROM users")[0][0])


def made(kind: str, folder: Path, request: pytest.FixtureRequest) -> Lake | Named:
    if kind == "delta":
        return Lake(folder)
    if kind == "clickhouse":
        shell = ClickHouseShell(request.getfixturevalue("clickhouse"))
        shell.clear()
        return Named(shell)
    return Named(shell_of(kind, folder, request.getfixturevalue("mysql") if kind == "mysql" else None))


KINDS = ("sqlite", "duckdb", "clickhouse", "delta", *(["mysql"] if AVAILABLE else []))


@pytest.fixture(params=KINDS)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Lake | Named:
    return made(request.param, tmp_path / "shop", request)


def delivering(folder: Path, target: Lake | Named, more: str = "") -> Workshop:
    """A project that delivers there."""
    shop = Workshop(folder)
    shop.write("retl.yml", f"connections:\n  there: {target.connection}\n")
    define(shop, target, more)
    return shop


def define(shop: Workshop, target: Lake | Named, more: str = "") -> None:
    named = "path" if isinstance(target, Lake) else "table"
    to = f"{{connection: there, {named}: users, create: true}}\n{more}"
    shop.sync("users", destination=to, deletes="delete")


def test_every_target_that_can_make_columns_fills_them(tmp_path: Path, target: Lake | Named) -> None:
    shop = delivering(tmp_path / "shop", target)
    shop.json("sync", "users")
    target.drop()
    planned = shop.json("sync", "users", "--dry-run")["syncs"][0]
    done = shop.json("sync", "users")["syncs"][0]
    for one in (planned, done):
        assert (one["updated"], one["unchanged"]) == (ROWS, 0), one
        assert "no column spend any more" in str(one["notes"])
        assert "ignore" not in str(one["notes"])  # it would never be sent again
    assert target.spent() == ROWS
    again = shop.json("sync", "users")["syncs"][0]
    assert (again["unchanged"], again.get("notes")) == (ROWS, None)
    target.drop()
    shop.process("sync", "users", RETL_CRASH_AT="target_prepared:1")
    assert target.spent() == 0
    shop.json("sync", "users")
    assert target.spent() == ROWS


def test_every_target_that_can_make_columns_makes_that_of_a_new_field(
    tmp_path: Path, target: Lake | Named
) -> None:
    shop = delivering(tmp_path / "shop", target, "fields: {email: email}\n")
    shop.json("sync", "users")
    if isinstance(target, Named) and isinstance(target.shell, MySQLShell):  # it knows the second of a change
        made = "SELECT NOW() > create_time FROM information_schema.tables WHERE table_name = 'users'"
        until(lambda: target.shell.execute(made)[-1] == (1,))
    define(shop, target)
    done = shop.json("sync", "users")["syncs"][0]
    assert (done["status"], done["updated"]) == ("SUCCESS", ROWS)
    assert target.spent() == ROWS
    again = shop.json("sync", "users")["syncs"][0]
    assert (again["unchanged"], again.get("notes")) == (ROWS, None)
