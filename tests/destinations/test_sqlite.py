"""SQLite passes the suite in each write mode, and keeps the promises that are its alone."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from msgspec.structs import replace

from retl.destinations.batch import Field, Shape, Visit, WriteMode
from retl.destinations.sqlite.adapter import SQLite, SQLiteDialect, SQLiteOptions
from retl.errors import DefinitionError, Mismatch, Systemic, Unavailable
from retl.values.sql import quoted
from retl.values.types import Type
from tests.destinations.files import FileFaults
from tests.destinations.rows import Row, Rows, plain
from tests.destinations.suite import (
    FIELDS,
    STRING,
    VISIT,
    Contents,
    Suite,
    Target,
    as_contents,
    deliver,
    sample,
)
from tests.destinations.tables import TableSuite

SHAPE = Shape("suite", "state-1", (Field("id", STRING),), FIELDS)
DIALECT = SQLiteDialect()
_opened: list[str] = []
sys.addaudithook(lambda event, args: _opened.append(str(args[0])) if event == "sqlite3.connect" else None)


class Held(FileFaults):
    """Another connection writes to the file."""

    holder: sqlite3.Connection | None = None

    @property
    def connections(self) -> int:  # type: ignore[override]
        return sum(uri.startswith(f"file:{self.file}?") for uri in _opened)

    def refuse(self) -> None:
        self.heal()
        self.holder = sqlite3.connect(self.file, isolation_level=None)
        self.holder.execute("BEGIN IMMEDIATE")

    def heal(self) -> None:
        if self.holder is not None:
            self.holder.close()
            self.holder = None


class SQLiteTarget(Target):
    type = "sqlite"
    counts_all = False
    commit = b"COMMIT"

    def __init__(self, folder: Path, write: WriteMode = "upsert") -> None:
        self.file, self.write, self.shape = folder / "crm.db", write, SHAPE
        self.proxy: Held = Held(self.file)

    def options(self, **changes: Any) -> SQLiteOptions:
        connection = {"path": str(self.file), "lock_wait": "100ms"} | changes.pop("connection", {})
        return SQLiteOptions.model_validate({"connection": connection, "table": "people"} | changes)

    def make(self, shape: Shape, *, secret: str | None = None, **changes: Any) -> SQLite:
        """What a wrong secret is to a server, a file of something else is to SQLite."""
        self.shape = shape
        columns = [f"{quoted(f.name)} {DIALECT.ddl(f.type, key=False)}" for f in (*shape.key, *shape.fields)]
        check = ", CHECK (visits IS NULL OR visits >= 0)" if FIELDS[-1] in shape.fields else ""
        key = ", ".join(quoted(f.name) for f in shape.key)
        with suppress(sqlite3.DatabaseError):
            self.execute(
                f"CREATE TABLE IF NOT EXISTS people ({', '.join(columns)}, theirs TEXT DEFAULT 'nobody',"
                f" PRIMARY KEY ({key}){check})"
            )
        if secret is not None:
            self.file.write_text(secret * 1000)
        return SQLite(self.options(**changes), shape)

    def execute(self, *statements: str) -> list[Row]:
        """As somebody else; the rows of the last."""
        connection = sqlite3.connect(self.file, isolation_level=None)
        try:
            for statement in statements:
                found = connection.execute(statement).fetchall()
        finally:
            connection.close()
        return found

    def contents(self) -> Contents:
        fields = (*self.shape.key, *self.shape.fields)
        found: Contents = {}
        for row in self.execute(f"SELECT {', '.join(quoted(f.name) for f in fields)} FROM people"):
            values = [read(value, f.type) for value, f in zip(row, fields, strict=True)]
            pairs = zip(fields[1:], values[1:], strict=True)
            found[(values[0],)] = {f.name: plain(value, f.type) for f, value in pairs}
        return found

    def poison(self, row: Row) -> Row:
        return (*row[:-1], -1)

    def forbid(self) -> None:
        """A later version of SQLite's format: it can be read, and not written."""
        with self.file.open("r+b") as file:
            file.seek(18)
            file.write(b"\3")

    def annotate(self, key: Row) -> Callable[[], bool] | None:
        self.execute(f"UPDATE people SET theirs = 'a note' WHERE id = '{key[0]}'")
        query = f"SELECT theirs = 'a note' FROM people WHERE id = '{key[0]}'"
        return lambda: self.execute(query) == [(1,)]


def read(value: Any, type_: Type) -> Any:
    """What SQLite holds as the value that it stands for."""
    if value is None or type_.name in ("string", "integer", "float", "json"):
        assert value is None or isinstance(value, {"integer": int, "float": float}.get(type_.name, str))
        return value
    if type_.name == "decimal":
        return Decimal(str(value))
    made: dict[str, Callable[[Any], Any]] = {
        "uuid": UUID,
        "boolean": [False, True].__getitem__,
        "date": date.fromisoformat,
        "timestamp": datetime.fromisoformat,
        "timestamptz": datetime.fromisoformat,
        "list": json.loads,
    }
    return made[type_.name](value)


@pytest.fixture(params=[False, True], ids=["known", "new"])
def new(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a batch says of its rows being new changes nothing but the way they take."""
    monkeypatch.setattr(Rows, "new", request.param)


class TestUpsert(Suite, TableSuite):
    kind = SQLite

    @pytest.fixture
    def target(self, tmp_path: Path) -> Iterator[SQLiteTarget]:
        yield from target_of(tmp_path, "upsert")


class TestAppend(Suite):
    @pytest.fixture
    def target(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SQLiteTarget]:
        monkeypatch.setattr(Rows, "new", True)
        yield from target_of(tmp_path, "append")


def target_of(folder: Path, write: WriteMode) -> Iterator[SQLiteTarget]:
    made = SQLiteTarget(folder, write)
    with made.proxy:
        yield made


@pytest.fixture
def target(tmp_path: Path) -> Iterator[SQLiteTarget]:
    yield from target_of(tmp_path, "upsert")


def ready(target: SQLiteTarget, shape: Shape = SHAPE, visit: Visit = VISIT, **options: Any) -> SQLite:
    destination = target.make(shape, **options)
    destination.check(visit)
    destination.prepare(visit)
    return destination


# modes


# what the table says


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("amount REAL, name INTEGER", "name is INTEGER"),
        ("name TEXT", "amount is missing"),
        ("name TEXT, amount TEXT, due TEXT NOT NULL", "due is NOT NULL"),
        ("name TEXT, amount TEXT GENERATED ALWAYS AS (name)", "generates column amount"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_with_the_reason(
    target: SQLiteTarget, column: str, words: str
) -> None:
    target.execute(f"CREATE TABLE people (id TEXT PRIMARY KEY, visits INTEGER, {column})")
    with pytest.raises(Mismatch, match=words):
        SQLite(target.options(), SHAPE).check(VISIT)


def test_a_view_and_a_table_without_a_key_are_refused(target: SQLiteTarget) -> None:
    target.execute("CREATE TABLE t (id TEXT, name TEXT, amount TEXT, visits INTEGER)")
    with pytest.raises(Mismatch, match="no unique index") as caught:
        SQLite(target.options(table="t"), SHAPE).check(VISIT)
    target.execute(str(caught.value.hint))
    SQLite(target.options(table="T"), SHAPE).check(VISIT)
    target.execute("CREATE VIEW people AS SELECT * FROM t")
    with pytest.raises(Mismatch, match="is a view"):
        SQLite(target.options(), SHAPE).check(VISIT)


def test_deletes_that_would_cascade_need_a_word(target: SQLiteTarget) -> None:
    shape = replace(SHAPE, deletes="delete")
    target.make(shape)
    target.execute("CREATE TABLE orders (p TEXT REFERENCES people ON DELETE SET NULL)")
    with pytest.raises(Mismatch, match=r"orders \(ON DELETE SET NULL\)"):
        SQLite(target.options(), shape).check(VISIT)
    SQLite(target.options(), replace(shape, cascade=True)).check(VISIT)


def test_keys_that_a_column_takes_for_one_collide_and_a_new_spelling_is_a_change(
    target: SQLiteTarget,
) -> None:
    target.execute(
        "CREATE TABLE people (id TEXT COLLATE NOCASE PRIMARY KEY, name TEXT COLLATE NOCASE, amount TEXT, visits INTEGER)"
    )
    destination = ready(target)
    assert destination.folds == (("case",),)
    rows = Rows(SHAPE, [("A", "one", None, 1), ("a", "two", None, 2), ("b", "three", None, 3)])
    codes = [one.code for one in deliver(destination, rows.batch())]
    assert codes == ["KEY_COLLIDES", "KEY_COLLIDES", None]
    assert target.contents()["b",]["name"] == "three"
    deliver(destination, Rows(SHAPE, [("B", "THREE", None, 3)]).batch(run_id="run-2"))
    assert target.contents()["b",]["name"] == "THREE"


@pytest.mark.usefixtures("new")
def test_a_conflict_clause_of_the_table_never_removes_another_row(target: SQLiteTarget) -> None:
    target.execute(
        "CREATE TABLE people (id TEXT PRIMARY KEY ON CONFLICT REPLACE, name TEXT UNIQUE ON CONFLICT REPLACE, amount TEXT, visits INTEGER)"
    )
    destination = ready(target)
    deliver(destination, Rows(SHAPE, [("a", "one", None, 1), ("b", "two", None, 2)]).batch())
    found = deliver(
        destination, Rows(SHAPE, [("c", "one", None, 3), ("b", "one", None, 2)]).batch(run_id="run-2")
    )
    assert [one.code for one in found] == ["23505", "23505"]
    assert set(target.contents()) == {("a",), ("b",)}


def test_a_trigger_that_swallows_or_moves_a_row_is_noticed(target: SQLiteTarget) -> None:
    target.make(SHAPE)
    target.execute(
        "CREATE TRIGGER quiet BEFORE INSERT ON people WHEN NEW.id = 'k1' BEGIN SELECT RAISE(IGNORE); END",
        "CREATE TRIGGER moved AFTER INSERT ON people WHEN NEW.id = 'k2' BEGIN UPDATE people SET id = 'elsewhere' WHERE id = 'k2'; END",
        "CREATE TRIGGER kept BEFORE UPDATE ON people WHEN NEW.id = 'k3' AND NEW.name = 'no' BEGIN SELECT RAISE(IGNORE); END",
    )
    destination = ready(target)
    found = deliver(destination, Rows(SHAPE, sample(5)).batch())
    assert [one.code for one in found] == [None, "SWALLOWED", "KEY_CHANGED", None, None]
    found = deliver(
        destination, Rows(SHAPE, [("k3", "no", None, 1), ("k4", "no", None, 1)]).batch(run_id="run-2")
    )
    assert [one.code for one in found] == ["SWALLOWED", None]
    assert set(target.contents()) == {("k0",), ("k3",), ("k4",)}


def test_rows_that_refer_to_each_other_and_a_deferred_constraint_are_judged(target: SQLiteTarget) -> None:
    target.execute(
        "CREATE TABLE people (id TEXT PRIMARY KEY, name TEXT REFERENCES people DEFERRABLE INITIALLY DEFERRED, amount TEXT, visits INTEGER)"
    )
    destination = ready(target)
    rows = [("a", "b", None, 1), ("b", "a", None, 1), ("c", "nobody", None, 1)]
    found = deliver(destination, Rows(SHAPE, rows).batch())
    assert found[2].code == "23503"
    assert ("c",) not in target.contents()


# marks


def test_a_table_that_was_made_anew_and_a_strange_ledger_are_seen(target: SQLiteTarget) -> None:
    ready(target).write(Rows(SHAPE, sample(1)).batch())
    stranger = target.make(replace(SHAPE, state_id="state-2"))
    assert stranger.check(VISIT).strangers  # type: ignore[union-attr]
    assert not target.make(SHAPE).check(VISIT).strangers  # type: ignore[union-attr]
    assert not target.make(SHAPE).check(VISIT).replaced  # type: ignore[union-attr]
    target.execute("DROP TABLE people")
    trace = target.make(SHAPE).check(VISIT)
    assert trace is not None
    assert trace.replaced == trace.batches != frozenset()


# the file


def test_a_full_disk_a_locked_file_and_a_wrong_path_are_one_sentence_each(
    target: SQLiteTarget, tmp_path: Path
) -> None:
    destination = ready(target)
    destination.write(Rows(SHAPE, sample(1)).batch())
    pages = target.execute("PRAGMA page_count")[0][0]
    assert destination._lane is not None
    destination._lane.rows(f"PRAGMA max_page_count = {pages}")  # as SQLite meets a disk without room
    with pytest.raises(Systemic, match=r"no room for crm\.db"):
        destination.write(Rows(SHAPE, sample(5000, "x" * 50)).batch(run_id="run-2"))
    assert target.contents() == as_contents(SHAPE, sample(1))
    with target.proxy as held:
        held.refuse()
        with pytest.raises(Unavailable, match=r"another process is using crm\.db"):
            destination.write(Rows(SHAPE, sample(1)).batch(run_id="run-3"))
    with pytest.raises(Systemic, match=r"gone\.db cannot be opened"):
        SQLite(target.options(connection={"path": str(tmp_path / "gone.db")}), SHAPE).check(VISIT)
    with pytest.raises(Systemic, match="is a folder"):
        SQLite(target.options(connection={"path": str(tmp_path)}), SHAPE).check(VISIT)


def test_a_text_of_others_that_is_not_utf8_ends_nothing(target: SQLiteTarget) -> None:
    destination = ready(target)
    rows = Rows(SHAPE, sample(3))
    deliver(destination, rows.batch())
    with sqlite3.connect(target.file) as others:
        others.execute("UPDATE people SET name = CAST(x'61ff' AS TEXT) WHERE id = 'k1'")
        others.execute("INSERT INTO people (id) VALUES (CAST(x'ff' AS TEXT))")
    assert [row and row["name"] for row in destination.read(rows.batch())] == ["name 0", "a\udcff", "name 2"]
    assert list(destination.differing(rows.batch())) == [(), ("name",), ()]
    assert sorted(destination.scan()) == [("k0",), ("k1",), ("k2",)]


def test_a_stop_request_ends_the_wait_for_a_lock(target: SQLiteTarget) -> None:
    destination = ready(target, connection={"lock_wait": "1h"})
    destination.write(Rows(SHAPE, sample(1)).batch())
    with target.proxy as held:
        held.refuse()
        destination.interrupt()
        with pytest.raises(Unavailable):
            destination.write(Rows(SHAPE, sample(1)).batch(run_id="run-2"))


@pytest.mark.parametrize("name", ["retl_row", "RETL_x", "", "a\0b"])
def test_names_that_cannot_be_columns_are_refused(target: SQLiteTarget, name: str) -> None:
    with pytest.raises(DefinitionError):
        SQLite(target.options(), replace(SHAPE, fields=(Field(name, STRING),)))


def test_two_fields_of_one_column_are_refused(target: SQLiteTarget) -> None:
    with pytest.raises(DefinitionError, match="ignores the case"):
        SQLite(target.options(), replace(SHAPE, fields=(Field("Name", STRING), Field("name", STRING))))


def test_a_table_is_the_same_however_its_path_is_spelled(target: SQLiteTarget, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    other = target.options(connection={"path": str(tmp_path / "link" / "." / "crm.db")}, table="People")
    assert SQLite.place(other, "upsert") == SQLite.place(target.options(), "upsert")
