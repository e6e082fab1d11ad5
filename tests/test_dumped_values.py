"""A target that is read as a whole gives the verdicts of one that is asked row by row, for every type and every ugly
value; and what was delivered is shown with the very text that was sent, so that nothing is asked for."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from retl.destinations.api import Destination
from retl.destinations.batch import Field, Shape
from retl.destinations.duckdb.adapter import DuckDB
from retl.destinations.mysql.adapter import MySQL
from retl.engine import dump
from retl.values import csv_text, storage
from retl.values.types import Type
from tests import duckdb_files
from tests.commands import Workshop
from tests.databases import DuckDBShell, MySQLShell, Shell
from tests.mysql_server import AVAILABLE
from tests.servers import Database
from tests.test_lossless_pairs import VALUES

KINDS = ("duckdb", *(["mysql"] if AVAILABLE else []))
TYPES = {f"v{n}": type for n, type in enumerate(VALUES)}
KEY = Field("id", Type("integer"))


def contract(type: Type) -> str:
    digits = f", max_digits: {type.max_digits}, decimal_places: {type.decimal_places}"
    name = f"list, items: {type.items}" if type.name == "list" else type.name
    return f"{{type: {name}, nullable: true{digits if type.name == 'decimal' else ''}}}"


class Values:
    """A table with a column for each type, of which each row has one value."""

    def __init__(self, kind: str, folder: Path, request: pytest.FixtureRequest) -> None:
        self.kind, self.workshop = kind, Workshop(folder)
        self.shell: Shell = (
            MySQLShell(request.getfixturevalue("mysql")) if kind == "mysql" else DuckDBShell(folder)
        )
        self.types = {
            name: type for name, type in TYPES.items() if not (kind == "mysql" and type.name == "list")
        }
        self.workshop.write("retl.yml", f"connections:\n  sql: {self.shell.connection}\n")
        columns = "".join(f", {name}: {contract(type)}" for name, type in self.types.items())
        self.workshop.sync(
            "pairs",
            source="{table: pairs}",
            key="[id]",
            contract=f"{{id: {{type: integer}}{columns}}}",
            destination="{connection: sql, table: pairs, create: true}",
            guards="{max_reject_rate: 1}",
        )
        rows = [(name, sql) for name, type in self.types.items() for sql in [*VALUES[type], "NULL"]]
        self.ids: dict[str, list[int]] = {name: [] for name in self.types}
        listed = []
        for number, (name, sql) in enumerate(rows):
            self.ids[name].append(number)
            value = f"CAST({sql} AS {storage.storage_type(self.types[name])}) AS {name}"
            listed.append(f"SELECT {number} AS id, {value}")
        self.workshop.warehouse(f"CREATE OR REPLACE TABLE pairs AS {' UNION ALL BY NAME '.join(listed)}")

    def delivered(self) -> int:
        said = self.workshop.retl("sync", "--sync", "pairs", "--output", "json")
        assert said.code in (0, 1), said.err
        (found,) = said.document["syncs"]
        assert found["error"] is None
        return int(found["inserted"])

    def reconciled(self, *words: str) -> dict[str, Any]:
        said = self.workshop.retl("reconcile", "pairs", *words, "--output", "json")
        assert said.code in (0, 1), said.err
        return dict(said.document["reconcile"])

    def move(self) -> None:
        """Every second row gets the value that another row of its type has."""
        for name, ids in self.ids.items():
            for number, other in zip(ids[::2], [*ids[1:], ids[0]][::2], strict=True):
                found = f"SELECT {name} FROM (SELECT * FROM pairs) AS o WHERE o.id = {other}"
                self.shell.execute(f"UPDATE pairs SET {name} = ({found}) WHERE id = {number}")

    def destination(self) -> Destination[Any]:
        shape = Shape("pairs", "state", (KEY,), tuple(Field(name, type) for name, type in self.types.items()))
        target = MySQL if self.kind == "mysql" else DuckDB
        connection = yaml.safe_load(self.shell.connection)
        del connection["type"]
        if "path" in connection:
            connection["path"] = str(self.workshop.folder / connection["path"])
        return target(target.Options.model_validate({"connection": connection, "table": "pairs"}), shape)

    def sent(self) -> set[tuple[str, ...]]:
        """The texts that are sent of each row."""
        texts = ", ".join(
            f"coalesce(CAST({csv_text.csv_sql(type, name)} AS VARCHAR), '')"
            for name, type in self.types.items()
        )
        with duckdb_files.opened(self.workshop.folder / "data" / "warehouse.duckdb") as connection:
            connection.execute("SET TimeZone = 'UTC'")
            return set(connection.execute(f"SELECT CAST(id AS VARCHAR), {texts} FROM pairs").fetchall())


@pytest.fixture(params=KINDS)
def values(request: pytest.FixtureRequest, tmp_path: Path) -> Values:
    return Values(request.param, tmp_path / "project", request)


def test_a_dump_and_look_ups_give_the_same_verdicts(values: Values) -> None:
    delivered = values.delivered()
    assert values.reconciled()["same"] == delivered
    values.move()
    values.shell.execute("DELETE FROM pairs WHERE id = 3")
    whole, looked = values.reconciled(), values.reconciled("--sample", "100000")
    told = ("same", "edited", "missing", "due", "fields")
    assert {name: whole[name] for name in told} == {name: looked[name] for name in told}
    assert set(whole["fields"]) == set(values.types)
    assert (whole["missing"], whole["extra"]) == (1, 0)


def test_a_value_that_is_too_long_for_a_dump_is_looked_up(values: Values) -> None:
    """For MySQL, which needs the square of the time for a text of quotes, and for DuckDB, which reads no line of
    16 MB; where other rows follow it."""
    delivered = values.delivered()
    (name, *_) = (one for one, type in values.types.items() if type.name == "string")
    values.shell.execute(f"UPDATE pairs SET {name} = REPEAT('\"', 9000000) WHERE id = 1")
    found = values.reconciled()
    assert (found["same"], found["edited"], found["fields"]) == (delivered - 1, 1, {name: 1})


def test_what_was_delivered_is_shown_with_the_text_that_was_sent(values: Values) -> None:
    delivered = values.delivered()
    target = values.destination()
    chunks = target.dump(target.shape.fields)
    assert chunks is not None
    csv.field_size_limit(1 << 24)
    shown = {tuple(row) for row in csv.reader(io.StringIO(b"".join(chunks).decode(), newline=""))}
    assert len(shown) == delivered
    odd = {row[0] for row in shown - values.sent()}
    assert len(odd) <= (3 if values.kind == "mysql" else 0), odd


def test_a_key_that_the_target_takes_for_another_is_looked_up(values: Values) -> None:
    """MySQL ignores case and blanks at the end where the collation says so; to DuckDB they are other keys."""
    workshop, shell, folds = values.workshop, values.shell, values.kind == "mysql"
    collated = "VARCHAR(40) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci" if folds else "VARCHAR"
    shell.execute(f"CREATE TABLE people (id {collated} PRIMARY KEY, v BIGINT)")
    destination = "{connection: sql, table: people}"
    workshop.sync("pairs", source="{table: people}", key="[id]", destination=destination, deletes="delete")
    people = "VALUES ('ann', 1), ('bob ', 2), ('Cid', 3), ('dan', 4)"
    workshop.warehouse(f"CREATE TABLE people AS SELECT * FROM ({people}) t(id, v)")
    assert values.delivered() == 4
    names = ("same", "edited", "missing", "extra")
    assert [values.reconciled()[name] for name in names] == [4, 0, 0, 0]
    for change in ("id = 'ANN ' WHERE v = 1", "id = 'bob' WHERE v = 2", "id = 'CID', v = 9 WHERE v = 3"):
        shell.execute(f"UPDATE people SET {change}")
    shell.execute("INSERT INTO people VALUES ('eve', 5)")
    whole, looked = values.reconciled(), values.reconciled("--sample", "100")
    assert [whole[name] for name in names] == ([3, 1, 0, 1] if folds else [1, 0, 3, 4])
    assert [looked[name] for name in names[:3]] == [whole[name] for name in names[:3]]


MANY = 20_000


class Many:
    """A large mart in a table, as a project delivers it."""

    def __init__(self, kind: str, folder: Path, request: pytest.FixtureRequest) -> None:
        self.workshop, self.shell = Workshop(folder), None
        if kind == "postgres":
            self.database: Database = request.getfixturevalue("postgres")
            self.workshop.use(postgres=self.database)
            connection = "type: postgres"
        else:
            self.shell = (
                MySQLShell(request.getfixturevalue("mysql")) if kind == "mysql" else DuckDBShell(folder)
            )
            self.workshop.write("retl.yml", f"connections:\n  sql: {self.shell.connection}\n")
            connection = "connection: sql"
        self.workshop.warehouse(
            f"CREATE TABLE many AS SELECT i AS id, 'name ' || i AS name, i // 7 AS part FROM range({MANY}) t(i)"
        )
        to = f"{{{connection}, table: many, create: true}}"
        self.workshop.sync("many", source="{table: many}", key="[id]", destination=to, deletes="delete")

    def do(self, sql: str) -> None:
        if self.shell is not None:
            self.shell.execute(sql)
            return
        with self.database.connect() as connection:
            connection.execute(sql)

    def drift(self) -> None:
        self.do("UPDATE many SET name = 'theirs' WHERE id % 1000 = 7")
        self.do("DELETE FROM many WHERE id IN (1, 2, 3)")
        self.do("INSERT INTO many (id, name) VALUES (999999, 'extra')")

    def reconciled(self, *words: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """What it found, and its event."""
        said = self.workshop.retl("reconcile", "many", *words, "--output", "json", RETL_LOG_FORMAT="json")
        events = [json.loads(line) for line in said.err.splitlines() if line.startswith("{")]
        (event,) = (one for one in events if one.get("event") == "target_compared")
        found = dict(said.document["reconcile"])
        return {name: found[name] for name in ("same", "edited", "missing", "extra", "fields")}, event


@pytest.mark.parametrize("kind", ["postgres", *KINDS])
def test_a_run_reads_a_large_table_as_a_dump_and_finds_what_look_ups_find(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = Many(kind, tmp_path / "project", request)
    many.workshop.json("sync", "many")
    many.drift()
    whole, event = many.reconciled()
    assert (event["dumped"], event["rows"]) == (True, MANY // 1000 + 3)  # only these are looked up
    with monkeypatch.context() as patch:
        patch.setattr(dump, "_LONGEST", 4)  # bytes: no row is so short, so the dump cannot be read
        looked, event = many.reconciled()
        assert (event["dumped"], event["rows"]) == (False, MANY)
    with monkeypatch.context() as patch:
        patch.setattr(dump, "_PART", 10_000)  # bytes: so the dump has many files
        parted, event = many.reconciled()
        assert (parted, event["dumped"], event["rows"]) == (whole, True, MANY // 1000 + 3)
    assert whole == looked
    assert (whole["edited"], whole["missing"], whole["extra"]) == (MANY // 1000, 3, 1)
    repaired, event = many.reconciled("--repair")
    assert event["dumped"]
    after, _ = many.reconciled()
    assert (after["same"], after["edited"], after["missing"], after["extra"]) == (MANY, 0, 0, 1), repaired


TEXTS = st.text(st.sampled_from('a",\n\r;'), max_size=8)


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=40), st.integers(1, 60), st.integers(1, 30))
def test_parts_of_a_csv_have_whole_rows(rows: list[tuple[str, str]], size: int, at_once: int) -> None:
    written = io.StringIO(newline="")
    csv.writer(written, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows)
    text = written.getvalue().encode()
    chunks = [text[at : at + at_once] for at in range(0, len(text), at_once)]
    parts = [b"".join(part) for part in csv_text.Parts(chunks, size)]
    assert b"".join(parts) == text
    assert [
        tuple(row) for part in parts for row in csv.reader(io.StringIO(part.decode(), newline=""))
    ] == rows
    longest = max((len(a) + len(b) for a, b in rows), default=0) * 2 + 6  # every character may be a quote
    assert all(0 < len(part) <= size + at_once + longest for part in parts)
