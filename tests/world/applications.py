"""Schemas of applications as targets: a mart into every table, on two days, each day twice.

A sync says as little as possible first: no contract, all columns. Where that is refused, it gets the
contract that the table's own catalog suggests, as a person would write it after reading the refusal. The
oracle lets PostgreSQL itself read the mart's values, and compares with what the table holds.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from tests import duckdb_files, inprocess
from tests.servers import Database

SCHEMAS = Path(__file__).with_name("schemas")
NAMES = tuple(sorted(path.name.removesuffix(".marts.sql") for path in SCHEMAS.glob("*.marts.sql")))
RETL_YML = """
warehouse: {path: mart.duckdb}
connections:
  app: {type: postgres, host: 127.0.0.1, port: "${PG_PORT}", dbname: "${PG_DB}", user: "${PG_USER}", password: "${PG_PASSWORD}"}
"""
_MART = re.compile(r"^-- (?P<table>\w+)(, as (?P<name>\w+))?(: (?P<says>.+))?\n(?P<sql>.+);$", re.MULTILINE)
_COLUMNS = """
SELECT a.attname, format_type(coalesce(nullif(b.typbasetype, 0), nullif(t.typbasetype, 0), t.oid), CASE WHEN t.typtype = 'd'
  THEN t.typtypmod ELSE a.atttypmod END), NOT a.attnotnull,
 (SELECT array_agg(enumlabel ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = t.oid)
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_type b ON b.oid = t.typbasetype
WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"""
_KEY = """
SELECT array_agg(a.attname ORDER BY array_position(i.indkey, a.attnum)) FROM pg_index i
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
WHERE i.indrelid = %s::regclass AND i.indisprimary"""
_UNNAMED = ("BLOB", "TIME", "INTERVAL", "BIT")
_WHOLE = {"smallint": 2**15, "integer": 2**31, "bigint": 2**63}


@dataclass(frozen=True)
class Mart:
    """A sync into one table; `says` is what it says besides source, key, contract and destination."""

    table: str
    name: str
    says: str
    sql: str


@dataclass
class Outcome:
    """What came of one table: the sentences of its refusals in order, and the end."""

    schema: str
    name: str
    sentences: list[str] = field(default_factory=list)
    end: str = "ok"

    @property
    def fine(self) -> bool:
        return self.end == "ok"


def marts(schema: str) -> list[Mart]:
    text = (SCHEMAS / f"{schema}.marts.sql").read_text()
    return [
        Mart(one["table"], one["name"] or one["table"], one["says"] or "deletes: delete", one["sql"])
        for one in _MART.finditer(text)
    ]


class Application:
    """One schema in a database of its own, and a project with a sync for every table."""

    def __init__(self, schema: str, folder: Path, database: Database) -> None:
        self.schema, self.folder, self.database = schema, folder, database
        self.marts = marts(schema)
        self.outcomes = {mart.name: Outcome(schema, mart.name) for mart in self.marts}
        (folder / "syncs").mkdir(parents=True)
        (folder / "retl.yml").write_text(RETL_YML)
        self._execute((SCHEMAS / f"{schema}.sql").read_text())
        for mart in self.marts:
            self._define(mart)

    def play(self) -> list[Outcome]:
        self.fill(1)
        for mart in self.marts:  # a refusal tells what the sync must say
            error = self._sync(mart.name)[mart.name]["error"]
            if error:
                self.outcomes[mart.name].sentences.append(_sentence(error))
                self._define(mart, self.contract(mart))
        self._everything()
        self.fill(2)
        self._everything()
        for mart in self.marts:
            if self.outcomes[mart.name].end == "ok" and (wrong := self.difference(mart)):
                self.outcomes[mart.name].end = wrong
        return list(self.outcomes.values())

    def fill(self, day: int) -> None:
        with duckdb_files.opened(self.folder / "mart.duckdb") as warehouse:
            for mart in self.marts:
                made = mart.sql.replace("$day", str(day))
                warehouse.execute(f"CREATE OR REPLACE TABLE mart_{mart.name} AS {made}")

    def _everything(self) -> None:
        """Every sync in one invocation, and once more: then nothing moves."""
        self._sync("all")
        for name, summary in self._sync("all").items():
            outcome, error = self.outcomes[name], summary["error"]
            moved = sum(summary[count] for count in ("inserted", "updated", "deleted", "refreshed"))
            refused = {f"{reject['code']} {reject['reason']}" for reject in summary["rejects"]}
            if error:
                outcome.end = f"refused {_sentence(error)}"
            elif refused:
                outcome.end = f"rejected {summary['rejected']} rows: {'; '.join(sorted(refused))}"
            elif summary["skipped"]:
                outcome.end = f"skipped {summary['skipped']} rows that are not there"
            elif moved:
                outcome.end = f"NOT IDLE {moved} rows"
            else:
                outcome.end = "ok"

    def difference(self, mart: Mart) -> str:
        """What the table holds against what PostgreSQL makes of the mart's values; empty if they agree."""
        with duckdb_files.opened(self.folder / "mart.duckdb", read_only=True) as warehouse:
            warehouse.execute("SET timezone = 'UTC'")
            described = warehouse.execute(f"DESCRIBE mart_{mart.name}").fetchall()
            shown = ", ".join(_shown(name, kind) for name, kind, *_ in described)
            rows = warehouse.execute(f"SELECT {shown} FROM mart_{mart.name}").fetchall()
        listed = ", ".join(name for name, *_ in described)
        texts = ", ".join(f"{name}::text" for name, *_ in described)
        values = ", ".join(["%s"] * len(described))
        table = f"{self.schema}.{mart.table}"
        with self.database.connect() as connection:
            connection.execute(f"CREATE TEMP TABLE expected AS SELECT {listed} FROM {table} WITH NO DATA")
            with connection.cursor() as cursor:
                cursor.executemany(f"INSERT INTO expected VALUES ({values})", rows)
            found = connection.execute(
                f"SELECT (SELECT count(*) FROM (SELECT {texts} FROM expected EXCEPT ALL SELECT {texts} FROM ONLY_ {table}) a),"
                f" (SELECT count(*) FROM (SELECT {texts} FROM ONLY_ {table} EXCEPT ALL SELECT {texts} FROM expected) b)".replace(
                    "ONLY_", "" if mart.table == "payment" else "ONLY"
                )
            ).fetchall()
        ((absent, surplus),) = found
        return f"LOST {absent} rows, {surplus} others are there" if absent or surplus else ""

    def contract(self, mart: Mart) -> str:
        """What the table's catalog suggests for the columns of the mart."""
        with duckdb_files.opened(self.folder / "mart.duckdb", read_only=True) as warehouse:
            used = [name for name, *_ in warehouse.execute(f"DESCRIBE mart_{mart.name}").fetchall()]
        lines = ["contract:"]
        for name, kind, nullable, labels in self._catalog(_COLUMNS, mart):
            if name in used and (rule := _rule(str(kind), labels)):
                lines.append(f"  {name}: {{{rule}{', nullable: true' if nullable else ''}}}")
        return "\n".join(lines) + "\n"

    def _define(self, mart: Mart, contract: str = "") -> None:
        ((key,),) = self._catalog(_KEY, mart)
        source = {"sql": self._cast(mart)} if contract else {"table": f"mart_{mart.name}"}
        text = f"source: {json.dumps(source)}\nkey: {json.dumps(key)}\n{contract}"
        text += f"destination: {{connection: app, table: {self.schema}.{mart.table}}}\n{mart.says}\n"
        (self.folder / "syncs" / f"{mart.name}.yml").write_text(text)

    def _cast(self, mart: Mart) -> str:
        """The mart with the texts of what no contract can name, as the refusal asks for."""
        with duckdb_files.opened(self.folder / "mart.duckdb", read_only=True) as warehouse:
            described = warehouse.execute(f"DESCRIBE mart_{mart.name}").fetchall()
        casts = [f"{_shown(name, kind)} AS {name}" for name, kind, *_ in described if kind in _UNNAMED]
        replaced = f" REPLACE ({', '.join(casts)})" if casts else ""
        return f"SELECT *{replaced} FROM mart_{mart.name}"

    def _sync(self, name: str) -> dict[str, dict[str, Any]]:
        to = self.database
        environ = {
            "PG_PORT": str(to.port), "PG_DB": to.dbname, "PG_USER": to.user, "PG_PASSWORD": to.password,
            "PATH": os.environ["PATH"], "HOME": str(self.folder), "RETL_LOG_LEVEL": "error",
        }  # fmt: skip
        words = ["--project", str(self.folder), "sync", "--sync", name, "--output", "json"]
        said = inprocess.answer(words, environ, self.folder)
        assert said.out, said.err
        return {one["sync"]: one for one in said.document["syncs"]}

    def _catalog(self, sql: str, mart: Mart) -> list[tuple[Any, ...]]:
        with self.database.connect() as connection:
            return connection.execute(sql, [f"{self.schema}.{mart.table}"]).fetchall()

    def _execute(self, sql: str) -> None:
        with self.database.connect() as connection, connection.cursor() as cursor:
            cursor.execute(sql.encode())


def _shown(name: str, kind: str) -> str:
    if kind == "BLOB":
        return rf"'\x' || hex({name})"
    return name if kind.endswith("[]") else f"{name}::VARCHAR"


def _rule(kind: str, labels: list[str] | None) -> str:
    """A column's contract; empty where no contract type fits."""
    if labels:
        return f"type: string, one_of: {json.dumps(labels)}"
    if (limit := _WHOLE.get(kind)) is not None:
        return f"type: integer, ge: {-limit}, le: {limit - 1}"
    if found := re.fullmatch(r"character(?: varying)?\((\d+)\)", kind):
        return f"type: string, max_length: {found[1]}"
    if found := re.fullmatch(r"numeric\((\d+),(\d+)\)", kind):
        return f"type: decimal, max_digits: {found[1]}, decimal_places: {found[2]}"
    plain = {
        "text": "string", "real": "float", "double precision": "float", "boolean": "boolean", "date": "date",
        "timestamp without time zone": "timestamp", "timestamp with time zone": "timestamptz", "jsonb": "json",
        "uuid": "uuid",
    }  # fmt: skip
    if kind == "text[]":
        return "type: list, items: string"
    return f"type: {plain.get(kind, 'string')}"


def _sentence(error: dict[str, Any]) -> str:
    hint = f" ({error['hint']})" if error.get("hint") else ""
    return f"{error['code']}: {error['message']}{hint}".replace("\n", " ")


def everything(folder: Path, databases: Any) -> Iterator[Outcome]:
    """Every table of every schema."""
    for name in NAMES:
        with databases() as database:
            try:
                yield from Application(name, folder / name, database).play()
            except psycopg.Error as problem:
                yield Outcome(name, "(schema)", end=f"not played: {problem}")


def table(outcomes: list[Outcome]) -> str:
    """Schema and table, what was refused before the sync had a contract, and the end."""
    lines = []
    for one in outcomes:
        lines.append(f"{one.schema}.{one.name:15} {one.end}")
        lines += [f"{'':20} first: {sentence}" for sentence in one.sentences]
    return "\n".join(lines)
