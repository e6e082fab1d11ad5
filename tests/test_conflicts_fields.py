"""Fields that a sync with `conflicts` sends for the first time, or no longer, are nobody's edits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.commands import ROWS, Workshop
from tests.servers import Database, RedisServer

KEEPING = ["target_wins", "manual"]
BOTH, EMAIL, SPEND = "{email: email, spend: spend}", "{email: email}", "{spend: spend}"


@pytest.fixture
def shop(tmp_path: Path, postgres: Database) -> Workshop:
    made = Workshop(tmp_path / "shop")
    made.use(postgres=postgres)
    return made


def sync(shop: Workshop, fields: str, conflicts: str, **parts: str) -> dict[str, Any]:
    given = {
        "fields": fields,
        "destination": "{type: postgres, table: users, create: true}",
        "deletes": "delete",
        "conflicts": conflicts,
    } | parts
    shop.sync("users", **given)
    done: dict[str, Any] = shop.json("sync", "users")["syncs"][0]
    return done


def rows(postgres: Database, columns: str) -> dict[int, tuple[Any, ...]]:
    with postgres.connect() as connection:
        found = connection.execute(f"SELECT user_id, {columns} FROM users").fetchall()
    return {row[0]: row[1:] for row in found}


def change(postgres: Database, *statements: str) -> None:
    with postgres.connect() as connection:
        for one in statements:
            connection.execute(one)


@pytest.mark.parametrize("conflicts", KEEPING)
@pytest.mark.parametrize("made", ["by the run", "before"])
def test_a_new_field_is_filled_where_it_is_empty(
    shop: Workshop, postgres: Database, conflicts: str, made: str
) -> None:
    sync(shop, EMAIL, conflicts)
    change(postgres, "UPDATE users SET email = 'edited' WHERE user_id = 7")
    if made == "before":
        change(
            postgres,
            "ALTER TABLE users ADD spend numeric(12, 2)",
            "UPDATE users SET spend = -1 WHERE user_id = 8",
        )
    done = sync(shop, BOTH, conflicts)
    found = rows(postgres, "email, spend")
    theirs = {8} if made == "before" else set()
    assert {one for one, (_, spend) in found.items() if spend == -1} == theirs
    queued = len(theirs) if conflicts == "manual" else 0
    assert done["updated"] == ROWS - len(theirs), done
    assert (done["conflicts"]["queued"], done["conflicts"]["kept"]) == (queued, len(theirs) - queued)
    assert all(spend is not None for _, spend in found.values())
    assert found[7][0] == "edited"
    again = sync(shop, BOTH, conflicts)
    assert again["unchanged"] == ROWS - queued, again


@pytest.mark.parametrize("conflicts", KEEPING)
def test_after_a_field_is_gone_the_others_follow_the_mart(
    shop: Workshop, postgres: Database, conflicts: str
) -> None:
    sync(shop, BOTH, conflicts)
    change(postgres, "UPDATE users SET spend = -1 WHERE user_id = 8")
    shop.warehouse("UPDATE users SET spend = spend + 1000")
    done = sync(shop, SPEND, conflicts)
    assert done["updated"] == ROWS - 1, done
    assert {one for one, (spend,) in rows(postgres, "spend").items() if spend < 1000} == {8}
    shop.warehouse("UPDATE users SET spend = spend + 1000")
    assert sync(shop, SPEND, conflicts)["updated"] == ROWS - 1


def test_a_field_with_another_name_is_a_new_one(shop: Workshop, postgres: Database) -> None:
    sync(shop, BOTH, "target_wins")
    assert sync(shop, "{mail: email, spend: spend}", "target_wins")["updated"] == ROWS
    assert all(mail == email for mail, email in rows(postgres, "mail, email").values())


def test_a_row_that_was_refused_meanwhile_is_written_later(shop: Workshop, postgres: Database) -> None:
    sync(shop, BOTH, "target_wins")
    change(postgres, "ALTER TABLE users ADD CHECK (email <> 'bad')")
    shop.warehouse("UPDATE users SET email = 'bad' WHERE user_id = 3")
    done = sync(shop, "{email: email, spend: spend, more: email}", "target_wins")
    assert (done["updated"], done["rejected"]) == (ROWS - 1, 1)
    shop.warehouse("UPDATE users SET email = 'good' WHERE user_id = 3")
    done = sync(shop, "{email: email, more: email}", "target_wins")
    assert done["updated"] == ROWS, done
    assert rows(postgres, "email, more")[3] == ("good", "good")


@pytest.mark.parametrize("conflicts", KEEPING)
@pytest.mark.parametrize("first", [False, True])
def test_rows_of_a_run_that_was_killed_are_read_right_after_the_fields_changed_again(
    shop: Workshop, postgres: Database, conflicts: str, first: bool
) -> None:
    if not first:
        sync(shop, EMAIL, conflicts)
    to = "{type: postgres, table: users, create: true}"
    shop.sync("users", fields=BOTH, destination=to, deletes="delete", conflicts=conflicts)
    assert shop.process("sync", "users", RETL_CRASH_AT="committing").code == -9
    change(postgres, "UPDATE users SET email = 'edited' WHERE user_id = 7")
    done = sync(shop, "{email: email, spend: spend, more: email}", conflicts)
    assert (done["updated"], done["conflicts"]["kept"]) == (ROWS, 0), done
    found = rows(postgres, "email, more")
    assert found.pop(7) == ("edited", "u7@example.com")
    assert all(email == more for email, more in found.values())


@pytest.mark.parametrize("why", ["new", "dropped", "back"])
def test_a_dry_run_says_what_becomes_of_rows_whose_column_is_not_there_yet(
    shop: Workshop, postgres: Database, why: str
) -> None:
    sync(shop, EMAIL if why == "new" else BOTH, "target_wins")
    if why == "back":
        sync(shop, EMAIL, "target_wins")
    if why != "new":
        change(postgres, "ALTER TABLE users DROP spend")
    change(
        postgres,
        "UPDATE users SET email = 'edited' WHERE user_id IN (7, 8)",
        "DELETE FROM users WHERE user_id = 9",
    )
    shop.warehouse(
        "UPDATE users SET email = 'mart' WHERE user_id < 8; UPDATE users SET spend = NULL WHERE user_id = 8"
    )
    to = "{type: postgres, table: users, create: true}"
    shop.sync("users", fields=BOTH, destination=to, deletes="delete", conflicts="target_wins")
    dry = shop.json("sync", "users", "--dry-run")["syncs"][0]
    (explained,) = shop.json("explain", "users", "--key", "7", "--read")["rows"]
    told = {name: one["verdict"] for name, one in explained["sides"]["fields"].items()}
    done = shop.json("sync", "users")["syncs"][0]
    assert done["conflicts"] == {"merged": 1, "kept": 2, "queued": 0}, done
    assert dry["conflicts"] == done["conflicts"], dry
    assert (dry["updated"], dry["skipped"]) == (done["updated"], done["skipped"])
    assert told == {"email": "keep", "spend": "write"}


@pytest.mark.parametrize("fields", [(BOTH, SPEND), (SPEND, BOTH)])
@pytest.mark.parametrize("rollback", [False, True])
def test_a_row_that_left_the_mart_as_the_fields_changed_follows_it_again_once_it_is_back(
    shop: Workshop, postgres: Database, fields: tuple[str, str], rollback: bool
) -> None:
    before, after = fields
    kept = {"rollback": "{keep: 30d}"} if rollback else {}
    sync(shop, before, "target_wins", **kept)
    shop.warehouse("CREATE TABLE gone AS FROM users WHERE user_id = 3; DELETE FROM users WHERE user_id = 3")
    done = sync(shop, after, "target_wins", **kept)
    assert done["deletes"]["kept"] == 1, done
    if rollback:
        assert shop.retl("rollback", done["run_id"]).code == 0
        shop.json("state", "resume", "users")
    shop.warehouse("INSERT INTO users SELECT user_id, email, 555 FROM gone")
    done = sync(shop, after, "target_wins", **kept)
    assert done["conflicts"] == {"merged": 0, "kept": 0, "queued": 0}, done
    assert rows(postgres, "spend")[3] == (555,)


@pytest.mark.parametrize("conflicts", KEEPING)
@pytest.mark.parametrize("why", ["no answer", "nobody asked"])
def test_a_new_field_is_filled_in_rows_of_which_it_is_not_known_what_they_hold(
    shop: Workshop, postgres: Database, conflicts: str, why: str
) -> None:
    if why == "no answer":
        sync(shop, SPEND, conflicts)
        shop.warehouse("UPDATE users SET spend = spend + 1000")
        assert shop.process("sync", "users", RETL_CRASH_AT="batch_answered").code == -9
    else:
        sync(shop, SPEND, "warehouse_wins")
    done = sync(shop, BOTH, conflicts)
    assert (done["updated"], done["conflicts"]["kept"]) == (ROWS, 0), done
    assert all(email is not None for (email,) in rows(postgres, "email").values())


def test_a_field_that_changes_its_place_and_a_column_that_is_dropped_are_no_edits(
    shop: Workshop, postgres: Database
) -> None:
    sync(shop, BOTH, "target_wins")
    change(postgres, "ALTER TABLE users DROP spend")
    assert sync(shop, "{a: email, email: email, spend: spend}", "target_wins")["updated"] == ROWS
    found = rows(postgres, "a, email, spend")
    assert all(a == email and spend is not None for a, email, spend in found.values())


@pytest.mark.parametrize("conflicts", KEEPING)
@pytest.mark.parametrize("runs", [0, 1, 20])
def test_a_field_that_comes_back_is_ours_where_nobody_edited_it(
    shop: Workshop, postgres: Database, conflicts: str, runs: int
) -> None:
    sync(shop, BOTH, conflicts)
    for number in range(runs):
        shop.warehouse(f"UPDATE users SET email = 'run {number}' WHERE user_id = 5")
        sync(shop, EMAIL, conflicts)
    change(postgres, "UPDATE users SET spend = -1 WHERE user_id IN (7, 8)")
    shop.warehouse("UPDATE users SET spend = spend + 1000 WHERE user_id <> 8")
    done = sync(shop, BOTH, conflicts)
    assert sum(done["conflicts"].values()) == (2 if runs else 1), done
    found = rows(postgres, "spend")
    assert {one for one, (spend,) in found.items() if spend < 1000} == {7, 8}
    assert {found[7], found[8]} == {(-1,)}
    shop.warehouse("UPDATE users SET spend = spend + 1000 WHERE user_id NOT IN (7, 8)")
    assert sync(shop, BOTH, conflicts)["updated"] == ROWS - 2


@pytest.mark.parametrize("after", ["as before", "with one more", "without it"])
def test_a_column_that_is_made_again_by_a_killed_run_is_filled_whatever_fields_come_next(
    shop: Workshop, postgres: Database, after: str
) -> None:
    sync(shop, BOTH, "target_wins")
    change(postgres, "ALTER TABLE users DROP spend", "UPDATE users SET email = 'edited' WHERE user_id = 7")
    more = "{also: email, email: email, spend: spend}"
    to = "{type: postgres, table: users, create: true}"
    shop.sync("users", fields=more, destination=to, deletes="delete", conflicts="target_wins")
    assert shop.process("sync", "users", RETL_CRASH_AT="target_prepared").code == -9
    if after == "without it":
        sync(shop, EMAIL, "target_wins")
    shop.warehouse("UPDATE users SET email = email || '.test' WHERE user_id <> 7")
    done = sync(shop, more if after == "with one more" else BOTH, "target_wins")
    assert (done["updated"], done["conflicts"]["kept"]) == (ROWS, 0), done
    found = rows(postgres, "email, spend")
    assert found.pop(7) == ("edited", 7)
    assert all(row == (f"u{one}@example.com.test", one) for one, row in found.items())


def test_a_repair_fills_a_column_that_somebody_dropped(shop: Workshop, postgres: Database) -> None:
    sync(shop, BOTH, "target_wins")
    change(postgres, "ALTER TABLE users DROP spend", "UPDATE users SET email = 'edited' WHERE user_id = 7")
    shop.json("reconcile", "users", "--repair")
    found = rows(postgres, "email, spend")
    assert found.pop(7) == ("edited", 7)
    assert all(row == (f"u{one}@example.com", one) for one, row in found.items())
    assert sync(shop, BOTH, "target_wins")["conflicts"]["queued"] == 0
    assert rows(postgres, "email, spend")[7] == ("edited", 7)


@pytest.mark.parametrize("kept", [False, True])
def test_a_dropped_column_changes_nothing_of_rows_that_have_other_fields(
    shop: Workshop, postgres: Database, kept: bool
) -> None:
    sync(shop, BOTH, "target_wins")
    change(postgres, "ALTER TABLE users ADD CHECK (email <> 'bad')")
    shop.warehouse("UPDATE users SET email = 'bad' WHERE user_id = 3")
    more = "{also: email, email: email, spend: spend}"
    assert sync(shop, more, "target_wins")["rejected"] == 1
    if kept:
        change(postgres, "UPDATE users SET email = 'edited' WHERE user_id = 3")
    change(postgres, "ALTER TABLE users DROP spend")
    assert sync(shop, more, "target_wins")["rejected"] == (0 if kept else 1)
    shop.warehouse("UPDATE users SET email = 'good' WHERE user_id = 3")
    done = sync(shop, more, "target_wins")
    assert done["conflicts"]["merged"] == kept, done  # `also` is written
    assert rows(postgres, "email, spend")[3] == ("edited" if kept else "good", 3)


def test_what_a_repair_made_is_known_after_the_fields_changed_again(
    shop: Workshop, postgres: Database
) -> None:
    sync(shop, BOTH, "warehouse_wins", rollback="{keep: 30d}")
    change(postgres, "DELETE FROM users WHERE user_id = 3")
    more = "{email: email, spend: spend, more: email}"
    to = "{type: postgres, table: users, create: true}"
    shop.sync("users", fields=more, destination=to, deletes="delete", rollback="{keep: 30d}")
    assert shop.json("reconcile", "users", "--repair")["sync"]["inserted"] == 1
    change(postgres, "UPDATE users SET email = 'edited' WHERE user_id = 7")
    shop.warehouse("UPDATE users SET email = email || '.test' WHERE user_id IN (3, 7)")
    done = sync(shop, "{email: email, more: email}", "target_wins")
    assert (done["updated"], done["conflicts"]["merged"]) == (ROWS, 1), done
    found = rows(postgres, "email, more")
    assert (found[3], found[7]) == (("u3@example.com.test",) * 2, ("edited", "u7@example.com.test"))
    assert sync(shop, "{email: email, more: email}", "target_wins")["unchanged"] == ROWS


@pytest.mark.parametrize("conflicts", KEEPING)
def test_a_row_that_somebody_removed_from_a_small_table_makes_no_lost_target(
    shop: Workshop, postgres: Database, conflicts: str
) -> None:
    sync(shop, BOTH, conflicts)
    change(postgres, "DELETE FROM users WHERE user_id = 3")
    shop.warehouse("UPDATE users SET spend = spend + 1000 WHERE user_id IN (3, 4)")
    done = sync(shop, BOTH, conflicts)
    left = done["conflicts"]["queued" if conflicts == "manual" else "kept"]
    assert (done["updated"], left) == (1, 1), done
    assert 3 not in rows(postgres, "spend")
    change(postgres, "DELETE FROM users WHERE user_id IN (5, 6, 7)")
    assert shop.retl("sync", "users").code == 3


def test_where_nobodys_removal_counts_a_row_that_is_missing_makes_a_lost_target(
    shop: Workshop, postgres: Database
) -> None:
    kept = {"rollback": "{keep: 30d}"}
    sync(shop, BOTH, "warehouse_wins", **kept)
    change(postgres, "DELETE FROM users WHERE user_id = 3")
    assert shop.retl("sync", "users").code == 3


@pytest.mark.parametrize("value", ["hash", "json"])
def test_redis_fills_new_fields_too(tmp_path: Path, redis_server: RedisServer, value: str) -> None:
    shop = Workshop(tmp_path / "shop")
    shop.use(redis=redis_server)
    client: Any = redis_server.client()
    to = {"destination": f"{{type: redis, key: 'u:{{user_id}}', value: {value}, ttl: none}}"}
    sync(shop, EMAIL, "target_wins", **to)
    theirs = {"spend": "-1"} if value == "hash" else None
    if theirs is not None:
        client.hset("u:8", mapping=theirs)
    else:
        client.set("u:8", json.dumps({"spend": -1}))

    def held(number: int) -> dict[str, Any]:
        if value == "json":
            return dict(json.loads(client.get(f"u:{number}")))
        return dict(client.hgetall(f"u:{number}"))

    done = sync(shop, BOTH, "target_wins", **to)
    assert done["updated"] == ROWS - 1, done
    assert "spend" in map(_text, held(7))
    assert _text(next(v for k, v in held(8).items() if _text(k) == "spend")) == "-1"
    shop.warehouse("UPDATE users SET spend = spend + 1000")
    assert sync(shop, SPEND, "target_wins", **to)["updated"] == ROWS - 1


def test_rows_of_redis_whose_fields_all_have_other_names_are_not_lost(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    shop = Workshop(tmp_path / "shop")
    shop.use(redis=redis_server)
    to = {"destination": "{type: redis, key: 'u:{user_id}', value: hash, ttl: none}"}
    sync(shop, EMAIL, "target_wins", **to)
    redis_server.client().hset("u:8", "mail", "theirs")
    given = to | {"fields": "{mail: email}", "conflicts": "target_wins", "deletes": "delete"}
    shop.sync("users", **given)
    shop.json("reconcile", "users", "--repair")
    done = sync(shop, "{mail: email}", "target_wins", **to)
    assert (done["updated"], done["conflicts"]["kept"]) == (ROWS - 1, 1), done
    assert sync(shop, "{mail: email}", "target_wins", **to)["unchanged"] == ROWS


@pytest.mark.parametrize("former", ["{field: email}", "json"])
def test_redis_knows_what_it_left_in_a_string_that_is_made_of_another_field(
    tmp_path: Path, redis_server: RedisServer, former: str
) -> None:
    shop = Workshop(tmp_path / "shop")
    shop.use(redis=redis_server)
    client: Any = redis_server.client()

    def to(value: str) -> dict[str, str]:
        return {"destination": f"{{type: redis, key: 'u:{{user_id}}', value: {value}, ttl: none}}"}

    sync(shop, EMAIL, "target_wins", **to(former))
    client.set("u:8", "edited")
    shop.warehouse("UPDATE users SET email = email || '.test'")
    done = sync(shop, "{mail: email}", "target_wins", **to("{field: mail}"))
    assert (done["updated"], done["conflicts"]["kept"]) == (ROWS - 1, 1), done
    assert {client.get(f"u:{one}").decode() for one in (7, 8)} == {"u7@example.com.test", "edited"}


def _text(one: Any) -> str:
    return one.decode() if isinstance(one, bytes) else str(one)
