"""What PostgreSQL held of a value is known by its digest, whatever the type: a value that nobody touched is never taken
for edited, and one that somebody touched always is, by the next run and by `retl reconcile`.

The values are those of docs/values.md, and the types that a table of an application has besides.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection, sql

from retl.values.sql import literal, quoted
from tests import duckdb_files, servers
from tests.commands import Workshop
from tests.test_conflicts import numbers
from tests.value_cases import APPLIED, cases

# What an application's columns are besides those of APPLIED. Each value may be followed by one that is equal to it
# for an operator of PostgreSQL, and yet another.
EXTENSIONS = """
CREATE EXTENSION citext; CREATE TYPE mood AS ENUM ('ok', 'sad'); CREATE DOMAIN short AS varchar(5) CHECK (VALUE <> 'bad');
CREATE TYPE pair AS (a int, b text)
"""
OTHERS: dict[tuple[str, str], list[tuple[str, str | None]]] = {
    ("citext", "VARCHAR"): [("'Ab'", "ab"), ("'x'", None)],
    ("mood", "VARCHAR"): [("'ok'", None), ("'sad'", None)],
    ("short", "VARCHAR"): [("'ab'", None), ("'ab '", None)],
    ("pair", "VARCHAR"): [("'(1,x)'", None), ("'(1,)'", '(1,"")')],
    ("numeric", "DECIMAL(38,10)"): [("1.5", "1.5"), ("0", "0.00")],
    ("numeric(12,4)", "DECIMAL(12,4)"): [("1.5000", None), ("-0.0001", None)],
    ("double precision", "DOUBLE"): [("0.1", "0.10000000000000002"), ("'-0.0'::DOUBLE", "0")],
    ("real", "FLOAT"): [("0.1", "0.10000001"), ("16777216", None)],
    ("interval", "VARCHAR"): [("'1 day'", "24:00:00"), ("'1 mon'", "30 days"), ("'-1 years -2 mons'", None)],
    ("timestamptz(3)", "TIMESTAMPTZ"): [("'2026-01-01 00:00:00.123+00'", None)],
    ("jsonb", "JSON"): [("'{\"n\": 1.0}'", '{"n": 1.00}'), ("'[1, null]'", None)],
    ("json", "JSON"): [("'{\"a\": 1}'", '{"a":1}'), ("'[1]'", None)],
    ("bytea", "VARCHAR"): [("'\\x00ff'", None), ("'\\x'", None)],
    ("numrange", "VARCHAR"): [("'[1.0,2.0)'", "[1,2)"), ("'empty'", None)],
    ("tstzrange", "VARCHAR"): [("'[\"2026-01-01 00:00:00+00\",)'", None), ("'empty'", None)],
    ("char(5)", "VARCHAR"): [("'ab'", None), ("''", None)],
    ("bit(3)", "VARCHAR"): [("'101'", None)],
    ("tsvector", "VARCHAR"): [("'''a'' ''b'':2'", None)],
    ("point", "VARCHAR"): [("'(1,2)'", None)],
    ("text[]", "VARCHAR[]"): [("['NULL', NULL, '']", '{NULL,NULL,""}'), ("[]::VARCHAR[]", "{NULL}")],
    ("numeric(6,1)[]", "DOUBLE[]"): [("[1.5, NULL]", None)],
    ("mood[]", "VARCHAR[]"): [("['ok', NULL]", None)],
}  # fmt: skip
# Each changes the text of some value in a session that does not set it itself.
SETTINGS = {
    "extra_float_digits": "-15",
    "intervalstyle": "iso_8601",
    "bytea_output": "escape",
    "datestyle": "German",
    "timezone": "Asia/Kathmandu",
    "lc_monetary": "C",
    "array_nulls": "off",
}


@dataclass(frozen=True)
class Mart:
    """A mart with one value in each row and, besides `label`, NULL in every other column. `columns`: by the id of a
    row, the column of its value; `subtle`: a text that is another one although an operator takes it for equal."""

    columns: Mapping[str, str]
    fills: list[str]
    contract: str = ""
    table: str = ""
    subtle: Mapping[str, str] | None = None


def _of_the_page(name: str) -> Mart:
    found = [case for case in cases() if case.mart == name]
    types = {case.column: case for case in found}
    listed = ", ".join(f"{quoted(column)} {case.type}" for column, case in types.items())
    fills = [f"CREATE TABLE mart (id VARCHAR, label VARCHAR DEFAULT 'first', {listed})"]
    fills += [
        f"INSERT INTO mart (id, {quoted(case.column)}) SELECT {literal(case.id)}, {case.sql}"
        for case in found
    ]
    judged = ", ".join(
        f'"{column}": {case.contract[:-1]}, nullable: true}}'
        for column, case in types.items()
        if case.contract
    )
    contract = f"{{id: {{type: string}}, label: {{type: string}}, {judged}}}" if judged else ""
    return Mart({case.id: case.column for case in found}, fills, contract)


def _of_applications() -> Mart:
    values = [(*one, [(text, None) for text in texts]) for one, texts in APPLIED.items()]
    values += [(*one, texts) for one, texts in OTHERS.items()]
    held = ", ".join(f"c{n} {column}" for n, (column, _, _) in enumerate(values))
    sent = ", ".join(f"c{n} {type}" for n, (_, type, _) in enumerate(values))
    fills = [f"CREATE TABLE mart (id VARCHAR, label VARCHAR DEFAULT 'first', {sent})"]
    columns, subtle = {}, {}
    for n, (_, _, texts) in enumerate(values):
        for text, other in texts:
            columns[f"{n} {text}"] = f"c{n}"
            fills.append(f"INSERT INTO mart (id, c{n}) SELECT {literal(f'{n} {text}')}, {text}")
            if other is not None:
                subtle[f"{n} {text}"] = other
    return Mart(columns, fills, table=f"id text PRIMARY KEY, label text, {held}", subtle=subtle)


MARTS = {"own": _of_the_page("own"), "judged": _of_the_page("judged"), "applied": _of_applications()}


@dataclass(frozen=True)
class Scene:
    workshop: Workshop
    mart: Mart
    admin: Connection[Any]

    def run(self, label: str) -> dict[str, Any]:
        """Change the label of every row in the mart, and run: each row is compared with what it left."""
        self.workshop.warehouse(f"UPDATE mart SET label = '{label}'")
        found: dict[str, Any] = self.workshop.json("sync", "values")["syncs"][0]
        assert found["error"] is None, found["error"]
        return found

    def reconciled(self) -> dict[str, Any]:
        said = self.workshop.retl("reconcile", "values", "--output", "json")
        return dict(said.document["reconcile"])

    def held(self) -> dict[str, str | None]:
        """The text of each row's value."""
        texts: dict[str, str | None] = {}
        for column in set(self.mart.columns.values()):
            of = [id for id, one in self.mart.columns.items() if one == column]
            query = sql.SQL("SELECT id, {}::text FROM landed WHERE id = ANY(%s)").format(
                sql.Identifier(column)
            )
            texts |= dict(self.admin.execute(query, [of]).fetchall())
        return texts

    def touch(self) -> dict[str, str | None]:
        """Somebody gives each row's value another text: that of another row's value of the column, or what is equal
        to it for an operator. Returns the texts after it; it leaves alone what has no other value."""
        before = self.held()
        texts: dict[str, list[str | None]] = defaultdict(lambda: [None])
        for id, text in before.items():
            texts[self.mart.columns[id]].append(text)
        with self.admin.transaction():
            self._touch(before, texts)
        return self.held()

    def _touch(self, before: Mapping[str, str | None], texts: Mapping[str, list[str | None]]) -> None:
        for id, text in before.items():
            column = self.mart.columns[id]
            others = [one for one in texts[column] if one != text]
            if not others:  # a NULL whose column took no value
                continue
            other = (self.mart.subtle or {}).get(id, others[-1])
            query = sql.SQL("UPDATE landed SET {} = %s WHERE id = %s").format(sql.Identifier(column))
            self.admin.execute(query, [other, id])


VERSIONS = servers.postgres_versions()
PLAYED = [(mart, version) for mart in MARTS for version in VERSIONS]
if not os.environ.get("RETL_TEST_ALL"):  # what has most types, and one of either kind of mart
    PLAYED = [("judged", "default"), ("applied", list(VERSIONS)[-1])]


@pytest.fixture(params=PLAYED, ids="-".join)
def scene(
    request: pytest.FixtureRequest, tmp_path: Path, databases_of: Callable[[Path | None], servers.Databases]
) -> Iterator[Scene]:
    mart, version = request.param
    with databases_of(VERSIONS[version]).lend() as database:
        yield from _begun(MARTS[mart], Workshop(tmp_path / "project"), database)


def _begun(mart: Mart, workshop: Workshop, database: servers.Database) -> Iterator[Scene]:
    workshop.use(postgres=database)
    with duckdb_files.opened(workshop.folder / "data" / "warehouse.duckdb") as con:
        con.execute("SET timezone = 'UTC'; BEGIN")
        for one in mart.fills:
            con.execute(one)
        con.execute("COMMIT")
    parts = {"contract": mart.contract} if mart.contract else {}
    workshop.sync(
        "values",
        source="{table: mart}",
        key="[id]",
        destination=f"{{type: postgres, table: public.landed, create: {str(not mart.table).lower()}}}",
        conflicts="target_wins",
        guards="{max_reject_rate: 1, max_failed_rate: 1, max_conflict_rate: 1}",
        **parts,
    )
    with database.connect() as admin:
        if mart.table:
            admin.execute(f"{EXTENSIONS}; CREATE TABLE landed ({mart.table})")  # type: ignore[arg-type]
        yield Scene(workshop, mart, admin)


def test_a_value_is_called_edited_exactly_if_somebody_touched_it(scene: Scene) -> None:
    first = scene.run("first")
    delivered = first["inserted"]
    before = scene.held()
    assert delivered == len(before) > len(scene.mart.columns) / 3
    for name, value in SETTINGS.items():  # of others, and of the owner of the database
        scene.admin.execute(
            f"DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET {name} = ''{value}''', current_database()); END $$"
        )
    untouched = scene.run("second")
    assert numbers(untouched)[:2] == ((0, 0, delivered, 0, first["rejected"]), (0, 0, 0))
    assert scene.held() == before
    assert scene.reconciled()["edited"] == 0
    touched = scene.touch()
    edited = [id for id in before if touched[id] != before[id]]
    assert all(before[id] is None for id in before.keys() - set(edited))
    assert scene.reconciled()["edited"] == len(edited) > delivered - 5
    kept = scene.run("third")
    assert numbers(kept)[:2] == ((0, 0, delivered, 0, first["rejected"]), (len(edited), 0, 0))
    assert scene.held() == touched, "an edit was overwritten"
