"""`retl erase` at each kind of target, and after a backup of target or ledger from before the erasure: a person comes
back by no run without a word."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.commands import ROWS, Workshop
from tests.databases import SHELLS
from tests.exported import named, objects, texts
from tests.servers import Database, Databases, RedisServer
from tests.test_erase import MART, PERSON, erased, remains
from tests.test_plans_and_state import TABLE, run

ALL = "RETL_TEST_ALL" in os.environ
RESTORED = ("postgres", "redis", "sqlite", "duckdb") if ALL else ("sqlite",)


@dataclass
class Kept:
    """A target of the sync `users`: its keys, and a backup of it as somebody else would make one."""

    workshop: Workshop
    held: Callable[[], set[int]]
    keep: Callable[[], Callable[[], object]]


def database_file(kind: str, folder: Path) -> Kept:
    workshop = Workshop(folder)
    shell = SHELLS[kind](folder)
    workshop.write("retl.yml", f"connections: {{sql: {shell.connection}}}\n")
    workshop.sync("users", destination="{connection: sql, table: users, create: true}", deletes="delete")

    def keep() -> Callable[[], object]:
        kept = shell.keep()
        return lambda: shell.restore(kept)

    return Kept(workshop, lambda: {key for (key,) in shell.execute("SELECT user_id FROM users")}, keep)


def table(folder: Path, database: Database) -> Kept:
    workshop = Workshop(folder)
    workshop.use(postgres=database)
    workshop.sync("users", destination=TABLE, deletes="delete")
    names = ("crm.users", "public.retl_applied", "crm.retl_applied")

    def held() -> set[int]:
        with database.connect() as connection:
            return {key for (key,) in connection.execute("SELECT user_id FROM crm.users").fetchall()}

    def keep() -> Callable[[], object]:
        with database.connect() as connection:
            there = [
                one
                for one in names
                if connection.execute("SELECT to_regclass(%s) IS NOT NULL", (one,)).fetchone() == (True,)
            ]
            for number, one in enumerate(there):
                connection.execute(f"CREATE TABLE kept_{number} AS TABLE {one}")

        def restore() -> None:
            with database.connect() as connection:
                for number, one in enumerate(there):
                    connection.execute(f"DELETE FROM {one}; INSERT INTO {one} TABLE kept_{number}")

        return restore

    return Kept(workshop, held, keep)


def cache(folder: Path, server: RedisServer) -> Kept:
    workshop = Workshop(folder)
    workshop.use(redis=server)
    workshop.sync("users", deletes="delete")

    def held() -> set[int]:
        with server.client() as client:
            return {int(key.partition(b":")[2]) for key in client.keys("users:*")}

    def keep() -> Callable[[], object]:
        with server.client() as client:
            kept = {key: client.dump(key) for key in client.keys("*")}

        def restore() -> None:
            with server.client() as client:
                client.flushdb()
                for key, content in kept.items():
                    client.restore(key, 0, content)

        return restore

    return Kept(workshop, held, keep)


@contextmanager
def target_of(kind: str, folder: Path, request: pytest.FixtureRequest) -> Iterator[Kept]:
    """A project whose sync has delivered the person."""
    if kind == "postgres":
        databases: Databases = request.getfixturevalue("postgres_databases")
        with databases.lend() as database:
            yield _begun(table(folder, database))
    elif kind == "redis":
        yield _begun(cache(folder, request.getfixturevalue("redis_server")))
    else:
        yield _begun(database_file(kind, folder))


def _begun(target: Kept) -> Kept:
    target.workshop.warehouse(MART)
    assert run(target.workshop)["inserted"] == ROWS + 1
    return target


def verified(workshop: Workshop) -> None:
    """Nobody who was erased is anywhere, and the history is whole."""
    assert workshop.retl("erase", "verify").code == 0
    for command in ("reconcile users", "log verify") if ALL else ():
        said = workshop.retl(*command.split())
        assert said.code == 0, said.out + said.err


@pytest.mark.parametrize("kind", RESTORED)
def test_a_target_restored_to_before_an_erasure_brings_nobody_back_without_a_word(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with target_of(kind, tmp_path / "project", request) as target:
        workshop, restore = target.workshop, target.keep()
        erased(workshop, "--subject", f"email={PERSON}")
        workshop.warehouse("UPDATE users SET spend = spend + 1 WHERE user_id = 5")
        assert run(workshop)["updated"] == 1
        restore()
        assert 777001300451 in target.held()
        refused = run(workshop)
        assert refused["error"]["code"] == "TARGET_LOST"
        assert "`retl erase --again`" in " ".join(refused["notes"])
        assert workshop.retl("erase", "verify").code == 1
        again = ("--again", "--accept", "TARGET_LOST") if kind == "sqlite" else ("--again",)
        if kind != "sqlite":  # in this order or in the other
            assert "ERASED" in " ".join(run(workshop, "--full")["notes"])
        assert [one["keys"] for one in erased(workshop, *again)["syncs"]] == [1]
        assert target.held() == set(range(1, ROWS + 1))
        after = run(workshop)
        assert (after["status"], after["updated"] > 0) == ("SUCCESS", kind == "sqlite")
        assert [one for one in remains(workshop, PERSON, "777001300451") if not one.startswith("crm.")] == []
        verified(workshop)


@pytest.mark.parametrize("kind", RESTORED)
def test_a_ledger_restored_to_before_an_erasure_sends_nobody_without_a_word(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with target_of(kind, tmp_path / "project", request) as target:
        workshop = target.workshop
        state = workshop.folder / ".retl"
        shutil.copytree(state, tmp_path / "kept")
        erased(workshop, "--subject", f"email={PERSON}")
        shutil.rmtree(state)
        shutil.copytree(tmp_path / "kept", state)
        workshop.warehouse(f"UPDATE users SET spend = spend + 1 WHERE email = '{PERSON}'")
        for words in ((), ("--full",), ("--key", "777001300451"))[: None if ALL else 1]:
            refused = run(workshop, *words)
            assert refused["error"]["code"] == "STATE_BEHIND", words
            assert "must be erased again" in refused["error"]["hint"]
        assert 777001300451 not in target.held()
        erased(workshop, "--subject", f"email={PERSON}", "--accept", "STATE_BEHIND")
        after = run(workshop, "--accept", "STATE_BEHIND")
        assert (after["status"], after["skipped"]) == ("SUCCESS", 1), after["error"]
        assert target.held() == set(range(1, ROWS + 1))
        verified(workshop)


def test_an_erasure_that_is_not_finished_is_said_by_every_command_until_it_is(tmp_path: Path) -> None:
    target = _begun(database_file("sqlite", tmp_path / "project"))
    workshop = target.workshop
    workshop.sync("users", destination="{connection: sql, table: users, create: true}")
    database = workshop.folder / "crm.db"
    database.rename(workshop.folder / "away.db")
    database.mkdir()  # the target cannot be reached
    done = erased(workshop, "--sync", "users", "--key", "5", code=1)
    database.rmdir()
    (workshop.folder / "away.db").rename(database)
    unfinished = f"erasure {done['erasure_id']} is not finished"
    for _ in range(2):
        after = run(workshop)
        assert (after["status"], after["skipped"]) == ("SUCCESS", 1), after["error"]
        assert unfinished in " ".join(after["notes"])
    (state,) = workshop.json("status")["syncs"]
    assert (state["open_erasures"], unfinished in state["next"]) == (1, True)
    said = workshop.retl("erase", "verify")
    assert (said.code, "1 suppressed key is still at the target" in said.out) == (1, True)
    erased(workshop, "--again")
    (state,) = workshop.json("status")["syncs"]
    assert (state["open_erasures"], state["next"]) == (0, "")
    assert "not finished" not in " ".join(run(workshop).get("notes", ()))
    verified(workshop)
    assert target.held() == {777001300451, *range(1, ROWS + 1)} - {5}


def test_a_new_sync_and_a_new_key_are_told_of_erasures_that_they_know_nothing_of(tmp_path: Path) -> None:
    workshop = _begun(database_file("sqlite", tmp_path / "project")).workshop
    workshop.sync("before", destination="{connection: sql, table: before, create: true}")
    assert "notes" not in workshop.json("sync", "--sync", "before")["syncs"][0]
    erased(workshop, "--sync", "users", "--key", "5")
    told = "this sync, which is new, sends who is still in its mart"
    workshop.sync("new", destination="{connection: sql, table: new, create: true}")
    for words in (("--dry-run",), ()):
        (new,) = workshop.json("sync", "--sync", "new", *words)["syncs"]
        assert told in " ".join(new["notes"])
        assert "1 row of these has a key that was erased there" in " ".join(new["notes"])
    workshop.sync("mails", key="[email]", destination="{connection: sql, table: mails, create: true}")
    (mails,) = workshop.json("sync", "--sync", "mails", "--dry-run")["syncs"]
    assert told in " ".join(mails["notes"])
    assert "erased there" not in " ".join(mails["notes"])
    (workshop.folder / "syncs" / "mails.yml").unlink()
    erased(workshop, "--sync", "new", "--key", "5")
    (new,) = workshop.json("sync", "--sync", "new")["syncs"]
    assert (new["skipped"], told in " ".join(new["notes"])) == (1, False)
    assert "notes" not in workshop.json("sync", "--sync", "before")["syncs"][0]
    workshop.sync("new", key="[email]", destination="{connection: sql, table: new, create: true}")
    planned = workshop.retl("sync", "--sync", "new", "--dry-run", "--accept", "IDENTITY_CHANGED")
    assert "2 erasures know a person only by" in planned.out, planned.err
    assert "whose key is another one now" in planned.out


@pytest.mark.parametrize("kind", RESTORED)
def test_an_erasure_that_passes_a_guard_decides_nothing_for_the_syncs(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with target_of(kind, tmp_path / "project", request) as target:
        workshop = target.workshop
        state = workshop.folder / ".retl"
        shutil.copytree(state, tmp_path / "kept")
        workshop.warehouse("UPDATE users SET spend = spend + 1")
        assert run(workshop)["updated"] == ROWS + 1
        for key in ("5", "6"):
            erased(workshop, "--sync", "users", "--key", key)
        shutil.rmtree(state)
        shutil.copytree(tmp_path / "kept", state)
        erased(workshop, "--sync", "users", "--key", "5", "--accept", "STATE_BEHIND")
        for words in ((), ("--full",), ("--dry-run",)):
            assert run(workshop, *words)["error"]["code"] == "STATE_BEHIND", words
        assert not target.held() & {5, 6}
        (refused,) = erased(workshop, "--sync", "users", "--key", "6", code=3)["syncs"]
        assert refused["error"]["code"] == "STATE_BEHIND"
        erased(workshop, "--sync", "users", "--key", "6", "--accept", "STATE_BEHIND")
        after = run(workshop, "--accept", "STATE_BEHIND")
        assert (after["status"], after["skipped"]) == ("SUCCESS", 2), after["error"]
        assert run(workshop)["status"] == "SUCCESS"
        assert target.held() == {777001300451, *range(1, ROWS + 1)} - {5, 6}


@pytest.mark.parametrize("kind", RESTORED)
@pytest.mark.parametrize("remedy", ["sync", "rebuild", "adopt"])
def test_an_erasure_under_a_new_ledger_decides_nothing_for_the_syncs(
    kind: str, remedy: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with target_of(kind, tmp_path / "project", request) as target:
        workshop = target.workshop
        for key in ("5", "6"):
            erased(workshop, "--sync", "users", "--key", key)
        shutil.rmtree(workshop.folder / ".retl")
        for key in ("5", "6"):
            erased(workshop, "--sync", "users", "--key", key, "--accept", "STATE_LOST")
            for words in ((), ("--dry-run",)):
                assert run(workshop, *words)["error"]["code"] == "STATE_LOST", words
        assert not target.held() & {5, 6}
        if remedy != "sync":
            assert workshop.retl("state", remedy, "users", "--yes").code == 0
        after = run(workshop, *(("--accept", "STATE_LOST") if remedy == "sync" else ()))
        assert (after["status"], after["skipped"]) == ("SUCCESS", 2), after["error"]
        assert run(workshop)["status"] == "SUCCESS"
        assert target.held() == {777001300451, *range(1, ROWS + 1)} - {5, 6}


if ALL:

    @pytest.mark.parametrize("kind", ["sqlite", "duckdb"])
    def test_a_person_leaves_a_database_in_a_file(
        kind: str, tmp_path: Path, request: pytest.FixtureRequest
    ) -> None:
        with target_of(kind, tmp_path / "project", request) as target:
            workshop = target.workshop
            (done,) = erased(workshop, "--sync", "users", "--key", "777001300451", "--key", "7")["syncs"]
            assert done["proof"]["target"] == {
                "how": "delete", "keys": 2, "read_back": True, "there": 2, "absent": 0
            }  # fmt: skip
            assert target.held() == set(range(1, ROWS + 1)) - {7}
            assert [
                name for name in remains(workshop, PERSON, "777001300451") if not name.startswith("crm.")
            ] == []
            after = run(workshop, "--full")
            assert (after["status"], after["skipped"], after["updated"]) == ("SUCCESS", 2, ROWS - 1)
            verified(workshop)

    def published(workshop: Workshop) -> set[str | None]:
        """The keys of the set that readers follow."""
        of = objects(workshop.folder / "out" / "users")
        return {row["user_id"] for one in named(of) for row in texts(one["path"], of[one["path"]])}

    def test_files_cannot_forget_and_the_next_snapshot_is_without_the_person(tmp_path: Path) -> None:
        workshop = Workshop(tmp_path / "project")
        workshop.warehouse(MART)
        workshop.write("retl.yml", "connections: {out: {type: files, root: out}}\n")
        destination = "{connection: out, path: users, mode: snapshot, format: parquet, keep: 0}"
        workshop.sync("users", destination=destination, deletes="delete")
        run(workshop)
        done = erased(workshop, "--subject", f"email={PERSON}", code=1)
        assert done["syncs"][0]["status"] == "not_erasable"
        assert done["syncs"][0]["error"]["code"] == "NOT_ERASABLE"
        assert "777001300451" in published(workshop)
        assert [
            name for name in remains(workshop, PERSON, "777001300451") if not name.startswith("out/")
        ] == []
        assert run(workshop)["skipped"] == 1
        assert published(workshop) == {str(key) for key in range(1, ROWS + 1)}
        assert run(workshop)["unchanged"] == ROWS
        assert json.loads((workshop.folder / "out/users/latest.json").read_bytes())["rows"] == ROWS
        assert len(list((workshop.folder / "out/users/sets").iterdir())) == 1

    def test_change_files_are_left_to_a_person(tmp_path: Path) -> None:
        workshop = Workshop(tmp_path / "project")
        workshop.warehouse(MART)
        workshop.write("retl.yml", "connections: {out: {type: files, root: out}}\n")
        workshop.sync("users", destination="{connection: out, path: users, format: ndjson}", deletes="delete")
        run(workshop)
        done = erased(workshop, "--subject", f"email={PERSON}", code=1)
        assert done["syncs"][0]["status"] == "not_erasable"
        before: dict[str, Any] = workshop.snapshot()
        assert run(workshop)["skipped"] == 1
        named_of = {name for name in workshop.snapshot() if name.startswith("out/users/data")}
        assert named_of == {name for name in before if name.startswith("out/users/data")}
