"""Random histories of a sync whose fields change while others edit its rows, of kills, repairs, rollbacks, and of a
ledger and a target that are put back. No two writers ever write the same value, so each value says who wrote it:
what a person wrote stays, and what retl wrote follows the mart."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.commands import Workshop
from tests.servers import Database, RedisServer

KEYS, NAMES, COLUMNS = "abcde", "wxyz", "xyz"
STEPS = (
    *(["mart changes"] * 4 + ["somebody edits"] * 3 + ["fields change"] * 4 + ["sync"] * 6 + ["killed"] * 2),
    *("repair", "repair is killed", "rollback", "rollback is killed", "column is dropped"),
    *("backup", "target is put back", "ledger is put back"),
)
# Where a run is killed: before and after its intent, around its writes and answers, and before its end.
POINTS = (
    *("target_prepared", "delta_written", "batches_opened", "batch_sending", "batch_answered"),
    *("batch_answered:2", "batch_acknowledged", "images_kept", "committing"),
)
HISTORIES, LENGTH = (150, 25) if os.environ.get("RETL_TEST_ALL") else (1, 12)
Rows = dict[str, dict[str, str | None]]


class Place(Protocol):
    """The rows at a target, by key and field, as others see and edit them."""

    destination: str

    def use(self, workshop: Workshop) -> None: ...

    def held(self) -> Rows: ...

    def edit(self, key: str, field: str, value: str) -> bool: ...

    def drop(self, field: str) -> bool: ...

    def keep(self) -> Any: ...

    def put_back(self, kept: Any) -> None: ...


class Table:
    """A table of PostgreSQL, to which columns come as they are needed."""

    destination = "{type: postgres, table: people, create: true}"

    def __init__(self, database: Database) -> None:
        self.database = database
        self.do("CREATE TABLE people (id text PRIMARY KEY, note text)")

    def use(self, workshop: Workshop) -> None:
        workshop.use(postgres=self.database)

    def do(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with self.database.connect() as connection:
            done = connection.execute(sql, values)
            return done.fetchall() if done.description else []

    def columns(self) -> list[str]:
        named = "SELECT column_name FROM information_schema.columns WHERE table_name = 'people'"
        return [name for (name,) in self.do(named) if name in NAMES]

    def held(self) -> Rows:
        names = self.columns()
        found = self.do(f"SELECT {', '.join(['id', *names])} FROM people")
        return {key: dict.fromkeys(NAMES) | dict(zip(names, row, strict=True)) for key, *row in found}

    def edit(self, key: str, field: str, value: str) -> bool:
        if field in self.columns():
            self.do(f"UPDATE people SET {field} = %s WHERE id = %s", value, key)
            return True
        return False

    def drop(self, field: str) -> bool:
        self.do(f"ALTER TABLE people DROP COLUMN IF EXISTS {field}")
        return True

    def keep(self) -> Any:
        return self.columns(), {name: self.do(f"SELECT * FROM {name}") for name in ("people", "retl_applied")}

    def put_back(self, kept: Any) -> None:
        columns, tables = kept
        if columns != self.columns():  # then it is another table, which is noticed in another way
            return
        with self.database.connect() as connection:
            for name, rows in tables.items():
                connection.execute(f"DELETE FROM {name}")
                if rows:
                    listed = f"jsonb_populate_record(NULL::{name}, %s)"
                    for row in rows:
                        described = connection.execute(f"SELECT * FROM {name} LIMIT 0").description or ()
                        names = [one.name for one in described]
                        connection.execute(f"INSERT INTO {name} SELECT * FROM {listed}", [_json(names, row)])


def _json(names: list[str], row: tuple[Any, ...]) -> Any:
    from psycopg.types.json import Jsonb

    plain = (
        one.isoformat() if hasattr(one, "isoformat") else str(one) if type(one).__name__ == "UUID" else one
        for one in row
    )
    return Jsonb(dict(zip(names, plain, strict=True)))


class Hashes:
    """Hashes of Redis, which have entries of any name."""

    destination = "{type: redis, key: 'p:{id}', value: hash, ttl: none}"

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.client: Any = server.client()
        self.client.flushdb()

    def use(self, workshop: Workshop) -> None:
        workshop.use(redis=self.server)

    def held(self) -> Rows:
        found: Rows = {}
        for key in self.client.keys("p:*"):
            row = {name.decode(): value.decode() for name, value in self.client.hgetall(key).items()}
            found[key.decode()[2:]] = dict.fromkeys(NAMES) | row
        return found

    def edit(self, key: str, field: str, value: str) -> bool:
        self.client.hset(f"p:{key}", field, value)
        return True

    def drop(self, field: str) -> bool:
        return False

    def keep(self) -> Any:
        return {name: self.client.dump(name) for name in self.client.keys("*")}

    def put_back(self, kept: Any) -> None:
        self.client.flushdb()
        for name, held in kept.items():
            self.client.restore(name, 0, held)


class History:
    """One history. `dealt`: the fields and values of the mart's row that retl last dealt with; `open`: keys of which
    it may not be known what retl left (None: nobody knows which), with the fields that it may have sent; `stuck`:
    fields of keys that may stay as they are, because retl cannot tell its own value from an edit."""

    def __init__(self, seed: int, folder: Path, place: Place) -> None:
        self.random, self.place = random.Random(seed), place
        self.workshop, self.said = Workshop(folder), list[str]()
        place.use(self.workshop)
        self.numbers = 0
        self.mart = {key: {name: self.value("m") for name in COLUMNS} for key in KEYS}
        self.fields = {"x": "x", "y": "y"}
        self.deletes = self.random.choice(["keep", "delete"])
        self.dealt: dict[str, Any] = {}
        self.open: dict[str, set[str]] = {}
        self.stuck: set[tuple[str, str]] = set()
        self.backups: list[tuple[Any, Path, dict[str, Any]]] = []
        self.last: tuple[str, Rows] | None = None
        self.lacking = set[str]()  # columns that somebody dropped
        self.define()
        self.sync()

    def value(self, who: str) -> str:
        self.numbers += 1
        return f"{who}{self.numbers}"

    def wanted(self, key: str) -> dict[str, str]:
        return {name: self.mart[key][column] for name, column in self.fields.items()}

    def define(self) -> None:
        rows = ", ".join(
            f"('{key}', {', '.join(repr(row[name]) for name in COLUMNS)})" for key, row in self.mart.items()
        )
        self.workshop.warehouse(
            f"CREATE OR REPLACE TABLE people AS FROM (VALUES {rows}) t(id, {', '.join(COLUMNS)})"
        )
        self.workshop.sync(
            "people",
            source="{table: people}",
            key="[id]",
            fields="{" + ", ".join(f"{name}: {column}" for name, column in self.fields.items()) + "}",
            destination=self.place.destination,
            deletes=self.deletes,
            conflicts="target_wins",
            rollback="{keep: 30d}",
            batch="{rows: 2}",
        )

    # --- what happens

    def play(self, steps: int) -> None:
        for _ in range(steps):
            name = self.random.choice(STEPS)
            self.said.append(name)
            getattr(self, name.replace(" ", "_"))()
        self.sync()

    def mart_changes(self) -> None:
        for key in self.random.sample(KEYS, self.random.randint(1, 3)):
            self.mart[key][self.random.choice(COLUMNS)] = self.value("m")

    def somebody_edits(self) -> None:
        key, field = self.random.choice(KEYS), self.random.choice([*self.fields, *NAMES])
        value = self.value("h")
        done = self.place.edit(key, field, value)
        self.said[-1] += f" {key}.{field} = {value if done else None}"

    def fields_change(self) -> None:
        """A field comes, goes, has another name, or another place."""
        fields, free = dict(self.fields), [name for name in NAMES if name not in self.fields]
        what = self.random.choice(["comes", "goes", "is renamed", "moves"])
        if what == "comes" and free:
            fields[self.random.choice(free)] = self.random.choice(COLUMNS)
        elif what == "goes" and len(fields) > 1:
            del fields[self.random.choice([*fields])]
        elif what == "is renamed" and free:
            name = self.random.choice([*fields])
            fields[self.random.choice(free)] = fields.pop(name)
        else:
            items = [*fields.items()]
            self.random.shuffle(items)
            fields = dict(items)
        self.fields = fields
        self.said[-1] += f" {fields}"

    def column_is_dropped(self) -> None:
        field = self.random.choice(NAMES)
        if self.place.drop(field):
            self.stuck -= {(key, field) for key in KEYS}
            self.last, self.backups = None, []
            self.lacking.add(field)
            self.said[-1] += f" {field}"

    def backup(self) -> None:
        self.sync()
        folder = self.workshop.folder / f"kept {len(self.said)}"
        shutil.copytree(self.workshop.folder / ".retl", folder)
        self.backups.append((self.place.keep(), folder, dict(self.dealt)))

    def target_is_put_back(self) -> None:
        if self.backups:
            self.sync()
            self.place.put_back(self.random.choice(self.backups)[0])
            self.doubt_all()
            self.sync("--accept", "TARGET_LOST")

    def ledger_is_put_back(self) -> None:
        if self.backups:
            self.sync()
            _, folder, _ = self.random.choice(self.backups)
            shutil.rmtree(self.workshop.folder / ".retl")
            shutil.copytree(folder, self.workshop.folder / ".retl")
            self.doubt_all()
            self.sync("--accept", "STATE_BEHIND")

    def doubt_all(self) -> None:
        self.open, self.last, self.dealt = {key: set(NAMES) for key in KEYS}, None, {}

    def killed(self) -> None:
        self.define()
        before, point = self.place.held(), self.random.choice(POINTS)
        said = self.workshop.process("sync", "people", RETL_CRASH_AT=point)
        self.said[-1] += f" {point} {said.code}"
        assert said.code in (0, -9), said.err
        self._died(before)

    def _died(self, before: Rows) -> None:
        """A run died, perhaps before it knew what became of what it sent."""
        after, self.last = self.place.held(), None
        self.require_edits(before, after)
        for key in KEYS:
            self.open[key] = self.open.get(key, set()) | set(self.fields)

    def repair(self) -> None:
        self.define()
        before = self.place.held()
        said = self.workshop.retl("reconcile", "people", "--repair")
        assert said.code in (0, 1), (self.said, said.err)
        self._repaired(before)

    def repair_is_killed(self) -> None:
        self.define()
        before, point = self.place.held(), self.random.choice(POINTS)
        said = self.workshop.process("reconcile", "people", "--repair", RETL_CRASH_AT=point)
        self.said[-1] += f" {point} {said.code}"
        assert said.code in (0, 1, -9), (self.said, said.err)
        self._repaired(before)
        if said.code == -9:
            self._died(before)

    def _repaired(self, before: Rows) -> None:
        """It fills columns that are not there, and writes nothing else: every edit stays."""
        for key, row in self.place.held().items():
            for name, value in row.items():
                assert value == before[key][name] or before[key][name] is None, (self.said, key, name)

    def rollback(self) -> None:
        self._roll_back(None)

    def rollback_is_killed(self) -> None:
        self._roll_back(self.random.choice(POINTS))

    def _roll_back(self, point: str | None) -> None:
        if self.last is None:
            return
        self.define()
        (run, image), before = self.last, self.place.held()
        words = ("rollback", run, "--no-pause")
        if point is None:
            said = self.workshop.retl(*words)
        else:
            said = self.workshop.process(*words, RETL_CRASH_AT=point)
        self.said[-1] += f" {run} {point} {said.code}"
        assert said.code in (0, 2, -9), (self.said, said.err)
        after = self.place.held()
        self.require_edits(before, after)
        for key, row in after.items():
            for name, value in row.items():
                assert value in (before[key][name], image[key][name]), (self.said, key, name)
        if said.code == -9:
            self._died(before)
            self.stuck |= {(key, name) for key in KEYS for name in NAMES}
        self.last = None

    def sync(self, *words: str) -> None:
        """A run, and before some of them what a dry run says of it."""
        self.define()
        before, told = self.place.held(), None
        if self.random.random() < 0.3 and self.numbers > len(KEYS) * len(COLUMNS):
            dry = self.workshop.retl("sync", "people", "--dry-run", *words, "--output", "json")
            told = _numbers(dry.document["syncs"][0])
        said = self.workshop.retl("sync", "people", *words, "--output", "json")
        (done,) = said.document["syncs"]
        assert (said.code, done["status"]) == (0, "SUCCESS"), (self.said, said.err)
        after = self.place.held()
        assert told in (None, _numbers(done)), (self.said, told, _numbers(done))
        self.last = (
            (done["run_id"], before) if before.keys() == after.keys() and before != after else self.last
        )
        self.said.append(f"  {done['run_id']} {_numbers(done)}")
        self.require_edits(before, after)
        if self.lacking & self.fields.keys():
            self.dealt = {}
        self.lacking -= self.fields.keys()
        for key in KEYS:
            self._require_row(key, before.get(key, dict.fromkeys(NAMES)), after[key])
        self.open = {}

    def require_edits(self, before: Rows, after: Rows) -> None:
        """Nobody's edit is written over, and no field of others is touched."""
        for key, row in before.items():
            for name, value in row.items():
                theirs = (value or "").startswith("h") or name not in self.fields
                assert not theirs or after[key][name] == value, (
                    self.said,
                    key,
                    name,
                    value,
                    after[key][name],
                )

    def _require_row(self, key: str, before: dict[str, str | None], after: dict[str, str | None]) -> None:
        """What retl wrote follows the mart, as soon as its row changed."""
        wanted = self.wanted(key)
        shown = (self.said, self.fields, key, before, after, wanted)
        is_due = self.dealt.get(key) != wanted or key in self.open
        for name in self.open.get(key, set()) - wanted.keys():
            self.stuck.add((key, name))
        for name, value in wanted.items():
            if (before[name] or "").startswith("h"):
                self.stuck.discard((key, name))
                continue
            if key in self.open and before[name] not in (None, value):
                self.stuck.add((key, name))
            if key in self.open and before[name] is None and after[name] is None:
                self.stuck.add((key, name))
            if (key, name) in self.stuck:
                assert after[name] in (before[name], value), shown
            else:
                assert after[name] == (value if is_due else before[name]), shown
            if after[name] == value:
                self.stuck.discard((key, name))
        self.dealt[key] = wanted


def _numbers(run: dict[str, Any]) -> tuple[Any, ...]:
    kinds = ("unchanged", "inserted", "updated", "skipped", "rejected")
    return (*(run[kind] for kind in kinds), *run["conflicts"].values())


@pytest.fixture(params=["postgres", "redis"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    if request.param == "postgres":
        yield Table(request.getfixturevalue("postgres"))
    else:
        yield Hashes(request.getfixturevalue("redis_server"))


@pytest.mark.timeout(7200 if HISTORIES > 1 else 300)
def test_random_histories_lose_no_edit_and_keep_no_value_of_our_own(tmp_path: Path, place: Place) -> None:
    for seed in range(HISTORIES):
        if isinstance(place, Table):
            place.do("DROP TABLE IF EXISTS people, retl_applied")
            place = Table(place.database)
        elif isinstance(place, Hashes):
            place.client.flushdb()
        History(seed, tmp_path / str(seed), place).play(LENGTH)
