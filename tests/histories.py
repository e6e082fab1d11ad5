"""Random histories of what a source reads: rows come, change and go, files are compacted, columns come and go, and
the source is what it was before.

Each history keeps a model of its own, in Python or by the engine that wrote it, and never asks the code under test.
"""

from __future__ import annotations

import itertools
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import deltalake
import duckdb
import psycopg
from deltalake.exceptions import TableNotFoundError

import retl
from retl.observe.summary import Summary
from tests import test_delta_histories as delta
from tests import test_iceberg_feed as iceberg
from tests.commands import Workshop
from tests.dropped import Drop, written
from tests.lake import Shop
from tests.servers import Database, ObjectStore

Rows = list[tuple[str | None, ...]]
KEPT = 8  # former states to which a history may return
TARGET = "crm.users"
CENT = Decimal("0.01")


def texts(rows: Any) -> Rows:
    """Rows as texts, in order."""
    return sorted((tuple(None if one is None else str(one) for one in row) for row in rows), key=repr)


class History(ABC):
    """A project that keeps a table of PostgreSQL equal to a source, and what happens to the source.

    `steps` are the names of what may happen, as often as it shall."""

    steps: Sequence[str]
    sync: ClassVar[dict[str, str]]

    def __init__(self, seed: int, folder: Path, target: psycopg.Connection[Any], database: Database) -> None:
        self.random, self.target = random.Random(seed), target
        self.workshop, self.session = Workshop(folder), ExitStack()
        names = ("host", "port", "dbname", "user", "password")
        self.place = {"type": "postgres"} | {name: getattr(database, name) for name in names}

    @property
    @abstractmethod
    def source(self) -> str:
        """The source of the sync, as it is now."""

    @abstractmethod
    def wanted(self) -> Rows:
        """What the target must hold."""

    def held(self) -> Rows:
        """What it holds."""
        return texts(self.target.execute(f"SELECT {', '.join(self.columns)} FROM {TARGET}").fetchall())

    @property
    def columns(self) -> Sequence[str]:
        return ("user_id", "segment", "searches", "lifetime_value")

    def project(self, entry: str) -> None:
        """Write the project, with the source as YAML."""
        connections = json.dumps({"crm": self.place})
        self.workshop.write("retl.yml", f"connections: {connections}\nsources: {{lake: {entry}}}\n")

    def define(self) -> None:
        """Write the sync, and open the project again."""
        self.session.close()
        destination = f"{{connection: crm, table: {TARGET}, create: true}}"
        parts = {"deletes": "delete", "guards": "{max_delete_rate: 1, max_row_drop: 1, max_reject_rate: 1}"}
        self.workshop.sync(
            "users", **{**parts, **self.sync, "source": self.source, "destination": destination}
        )
        self.opened = self.session.enter_context(retl.open(self.workshop.folder))

    def step(self) -> str:
        """Something happens."""
        name = self.random.choice(self.steps)
        getattr(self, name)()
        return name

    def run(self) -> Summary:
        """One run. In a history every row may go, or be another one than before."""
        return self.opened.sync("users", accept=["EMPTY_SOURCE", "IDENTITY_CHANGED"])

    def play(self, number: int) -> dict[str, int]:
        """So many steps, each with a run and a full comparison; what was written in all. AssertionError at the
        first difference."""
        counts = dict.fromkeys(("inserted", "updated", "deleted", "read"), 0)
        for at in range(number):
            name = self.step()
            found = self.run()
            assert found.status == "SUCCESS", (at, name, found)
            held, wanted = self.held(), self.wanted()
            differs = [*(set(held) - set(wanted)), *(set(wanted) - set(held))]
            assert held == wanted, (at, name, differs[:4], len(held), len(wanted))
            counts = {key: value + getattr(found.counts, key) for key, value in counts.items()}
        return counts


Row = tuple[str, str | None, int | None, Decimal | None]


class Files(History):
    """Files of one format with rows of their own."""

    steps = (
        *("add", "add", "replace", "replace", "replace", "reshape", "widen"),
        *("remove", "compact", "split", "go_back"),
    )
    format: ClassVar[str]
    sync = {
        "key": "[user_id]",
        "contract": "{user_id: {type: string}, segment: {type: string, nullable: true},"
        " searches: {type: integer, nullable: true},"
        " lifetime_value: {type: decimal, max_digits: 14, decimal_places: 2, nullable: true}}",
    }
    server: ObjectStore | None = None

    def __init__(self, seed: int, folder: Path, target: psycopg.Connection[Any], database: Database) -> None:
        super().__init__(seed, folder, target, database)
        self.drop = Drop(folder / "drop", self.server)
        self.drop.clear()
        self.project(self.drop.definition.partition("drop: ")[2].strip())
        self.files: dict[str, tuple[Row, ...]] = {}
        self.bytes: dict[str, bytes] = {}
        self.kept: list[tuple[dict[str, tuple[Row, ...]], dict[str, bytes]]] = []
        self.numbers = itertools.count()
        self.writer = duckdb.connect()
        self.define()

    @property
    def source(self) -> str:
        return (
            f"{{from: lake, path: 'day=*/*.{self.format}', format: {self.format},"
            " optional: [segment, searches, lifetime_value]}"
        )

    def wanted(self) -> Rows:
        return texts(row for rows in self.files.values() for row in rows)

    def step(self) -> str:
        """At least one file stays, with a row."""
        self.kept = [*self.kept, (dict(self.files), dict(self.bytes))][-KEPT:]
        if len(self.files) < 2:
            self.add()
            return "add"
        if len(self.files) > 12:
            self.compact()
        return super().step()

    def add(self) -> None:
        self.put(
            self.name(), [self.row(f"u {next(self.numbers):06}") for _ in range(self.random.randint(1, 6))]
        )

    def replace(self) -> None:
        """Some rows of a file change and some go; its name stays."""
        name = self.one()
        kept = [row for row in self.files[name] if self.random.random() < 0.8] or self.files[name]
        self.put(name, [self.row(row[0]) if self.random.random() < 0.5 else row for row in kept])

    def reshape(self) -> None:
        """A file comes without a column."""
        name, column = self.one(), self.random.randint(1, 3)
        rows = [
            tuple(None if at == column else value for at, value in enumerate(row)) for row in self.files[name]
        ]
        self.put(name, rows, without=column)  # type: ignore[arg-type]

    def widen(self) -> None:
        """A file comes with a column more, which nobody asked for."""
        name = self.one()
        self.put(name, self.files[name], more=True)

    def remove(self) -> None:
        self.forget(self.one())

    def compact(self) -> None:
        """Two files become one; no row changes."""
        first, second = self.random.sample(list(self.files), 2)
        rows = self.files[first] + self.files[second]
        self.forget(first)
        self.forget(second)
        self.put(self.name(), rows)

    def split(self) -> None:
        """A row moves to another file."""
        first, second = self.random.sample(list(self.files), 2)
        *rest, moved = self.files[first]
        if rest:
            self.put(first, rest)
            self.put(second, [*self.files[second], moved])

    def go_back(self) -> None:
        """The folder is what it was, as from a backup."""
        files, content = self.random.choice([one for one in self.kept if one[0]])
        for name in set(self.files) - set(files):
            self.forget(name)
        for name in files:
            if self.bytes.get(name) != content[name]:
                self.drop.put(name, content[name])
        self.files, self.bytes = dict(files), dict(content)

    def one(self) -> str:
        return self.random.choice(list(self.files))

    def name(self) -> str:
        return f"day={self.random.randint(1, 3)}/{next(self.numbers):06}.{self.format}"

    def row(self, key: str) -> Row:
        pick = self.random
        segment = pick.choice([None, "power", 'a "b"', "1.10", "ünï,cödé", "line\nbreak"])
        cents = pick.choice([None, pick.randint(-(10**12), 10**12)])
        value = None if cents is None else Decimal(cents).scaleb(-2)
        return key, segment, pick.choice([None, pick.randint(-(2**63), 2**63 - 1)]), value

    def forget(self, name: str) -> None:
        del self.files[name], self.bytes[name]
        self.drop.remove(name)

    def put(self, name: str, rows: Sequence[Row], without: int | None = None, more: bool = False) -> None:
        columns = ["user_id VARCHAR", "segment VARCHAR", "searches BIGINT", "lifetime_value DECIMAL(14,2)"]
        kept = [column.split()[0] for at, column in enumerate(columns) if at != without]
        self.random.shuffle(kept)
        self.files[name] = tuple(rows)
        self.writer.execute(f"CREATE OR REPLACE TABLE t ({', '.join(columns)})")
        self.writer.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", rows)
        sql = f"SELECT {', '.join(kept)}{', 7 AS more' if more else ''} FROM t"
        if self.format == "ndjson":  # DuckDB writes decimals by way of a double
            found = self.writer.execute(sql)
            names = [one[0] for one in found.description]
            self.bytes[name] = "".join(_line(names, one) for one in found.fetchall()).encode()
        else:
            self.bytes[name] = written(self.writer, sql, self.format, self.workshop.folder)
        self.drop.put(name, self.bytes[name])


def _line(names: Sequence[str], values: Sequence[Any]) -> str:
    found = (f"{v:f}" if isinstance(v, Decimal) else json.dumps(v) for v in values)
    return "{" + ", ".join(f'"{n}": {t}' for n, t in zip(names, found, strict=True)) + "}\n"


class PostgresRows(History):
    """A table of the same server; a new column has a new name, as a target keeps the old ones."""

    steps = (
        *(["insert"] * 5 + ["update"] * 5 + ["delete"] * 3 + ["change_key"]),
        *("add_column", "drop_column", "rename_other", "empty", "rewrite", "go_back", "keep", "keep"),
    )
    sync = {"key": "[id]"}
    kinds: ClassVar[dict[str, str]] = {
        "text": "'{t}'",
        "numeric(14,3)": "{n}.5::numeric / 8",
        "bigint": "{n}",
        "timestamptz": "'2026-01-01Z'::timestamptz + interval '{n} ms'",
        "double precision": "{n} / 7.0::float8",
        "boolean": "{n} > 0",
        "int[]": "ARRAY[{n}, NULL]",
        "jsonb": "'{{\"n\": {n}.10}}'",
    }

    def __init__(self, seed: int, folder: Path, target: psycopg.Connection[Any], database: Database) -> None:
        super().__init__(seed, folder, target, database)
        self.project(json.dumps(self.place))
        self.made = 0
        self.kept: list[tuple[str, dict[str, str]]] = []
        self.fields = {"c0": "text"}
        self.ask("CREATE TABLE people (id int PRIMARY KEY, c0 text); INSERT INTO people VALUES (1, 'one')")
        self.define()

    def ask(self, sql: str) -> None:
        self.target.execute(sql)

    @property
    def source(self) -> str:
        return "{from: lake, table: people}"

    @property
    def columns(self) -> Sequence[str]:
        return ("id", *self.fields)

    def wanted(self) -> Rows:
        return texts(self.target.execute(f"SELECT {', '.join(self.columns)} FROM people").fetchall())

    def value(self, kind: str) -> str:
        if self.random.random() < 0.1:
            return "NULL"
        number = self.random.randint(-(10**9), 10**9)
        text = self.random.choice(["", "é", "\n", ",", '"', "NULL"]) + str(number % 5)
        return self.kinds[kind].format(n=number, t=text)

    def insert(self) -> None:
        values = ", ".join(self.value(kind) for kind in self.fields.values())
        first = self.random.randint(1, 60)
        names = ", ".join(self.columns)
        rows = f"SELECT i, {values} FROM generate_series({first}, {first + 9}) i"
        self.ask(f"INSERT INTO people ({names}) {rows} ON CONFLICT DO NOTHING")

    def update(self) -> None:
        name, kind = self.random.choice(list(self.fields.items()))
        self.ask(f"UPDATE people SET {name} = {self.value(kind)} WHERE id % 7 = {self.random.randint(0, 6)}")

    def delete(self) -> None:
        self.ask(f"DELETE FROM people WHERE id > 1 AND id % 5 = {self.random.randint(0, 4)}")

    def change_key(self) -> None:
        self.ask("UPDATE people SET id = id + 1000 WHERE id = (SELECT max(id) FROM people WHERE id < 1000)")
        self.ask(
            "DELETE FROM people WHERE id > 2000; INSERT INTO people (id) VALUES (1) ON CONFLICT DO NOTHING"
        )

    def empty(self) -> None:
        self.ask("TRUNCATE people; INSERT INTO people (id) VALUES (1)")

    def add_column(self) -> None:
        if len(self.fields) > 5:
            self.drop_column()
            return
        self.made += 1
        name, kind = f"c{self.made}", self.random.choice(list(self.kinds))
        self.fields[name] = kind
        self.ask(f"ALTER TABLE people ADD COLUMN {name} {kind} DEFAULT {self.value(kind)}")

    def drop_column(self) -> None:
        if len(self.fields) > 1:
            name = self.random.choice(list(self.fields))
            del self.fields[name]
            self.ask(f"ALTER TABLE people DROP COLUMN {name}")

    def rename_other(self) -> None:
        """Another name for a column is another column."""
        name = self.random.choice(list(self.fields))
        self.made += 1
        self.fields[f"c{self.made}"] = self.fields.pop(name)
        self.ask(f"ALTER TABLE people RENAME COLUMN {name} TO c{self.made}")

    def rewrite(self) -> None:
        """All rows get another place, and none changes: what is left of old ones goes."""
        self.ask("VACUUM FULL people")

    def keep(self) -> None:
        """A backup."""
        name = f"kept_{self.made}_{len(self.kept)}_{self.random.randint(0, 10**9)}"
        self.ask(f"CREATE TABLE {name} AS SELECT * FROM people")
        self.kept.append((name, dict(self.fields)))
        if len(self.kept) > KEPT:
            self.ask(f"DROP TABLE {self.kept.pop(0)[0]}")

    def go_back(self) -> None:
        """The table is what it was, from a backup, with the columns of then."""
        if self.kept:
            name, fields = self.random.choice(self.kept)
            self.ask(f"DROP TABLE people; CREATE TABLE people AS SELECT * FROM {name}")
            self.ask("ALTER TABLE people ADD PRIMARY KEY (id)")
            self.fields = dict(fields)


class Followed(iceberg.History):
    """An Iceberg table whose changes a sync follows: nothing is compared inside."""

    def note(self) -> None:
        pass


class IcebergTable(History):
    """An Iceberg table, written by PyIceberg and with position deletes, whose feed the sync follows. Its partitions
    stay: after many changes of them PyIceberg cannot write its own manifests."""

    steps = (*iceberg.ROWS, *iceberg.ROWS, "expire", "add_column", "drop_column", "look_back")
    sync = {
        "key": "[id]",
        "contract": "{id: {type: integer}, name: {type: string, nullable: true},"
        " amount: {type: decimal, max_digits: 12, decimal_places: 2, nullable: true}}",
        "changes": "cdf",
    }

    def __init__(self, seed: int, folder: Path, target: psycopg.Connection[Any], database: Database) -> None:
        super().__init__(seed, folder, target, database)
        self.project("{type: iceberg, catalog: {type: sql, path: lake/catalog.db, name: lake}}")
        self.history = Followed(Shop(folder / "lake"))
        self.history.append(set(range(40)))
        self.history.remember()
        self.at: iceberg.State | None = None
        self.define()

    columns = ("id", "name", "amount")

    @property
    def source(self) -> str:
        at = "" if self.at is None else f", at: {self.at.snapshot}"
        return f"{{from: lake, table: shop.customers{at}}}"

    def wanted(self) -> Rows:
        rows = self.history.rows if self.at is None else self.at.rows
        return texts((one["id"], one["name"], one["amount"].quantize(CENT)) for one in rows.values())

    def step(self) -> str:
        """What happens to the table, or the sync reads a former state of it."""
        name = self.random.choice(self.steps)
        if name == "look_back":
            self.look_back()
        else:
            ids = set(self.random.sample(range(60), self.random.randint(1, 15)))
            getattr(self.history, name)(ids)
            self.history.remember()
            self.at = None
        self.define()
        return name

    def look_back(self) -> None:
        known = {one.snapshot_id for one in self.history.table.metadata.snapshots}
        former = [one for one in self.history.states[-60:] if one.snapshot in known]
        self.at = self.random.choice(former) if former else None


class Versions(delta.History):
    """A Delta table that returns only to versions which can still be read: from `readable` on."""

    readable = 0

    def _restore(self) -> None:
        kept = range(max(self.readable, 1), len(self.versions))
        former = [at for at in kept[:-1] if self.operations[at] != "retype" and self.versions[at]]
        if (number := self.chosen(former)) is not None:
            self.table.restore(number)
            self.rows = dict(self.versions[number])
            self.columns = len(next(iter(self.rows.values()))) + 1

    def chosen(self, versions: Sequence[int]) -> int | None:
        """One of these that the log still tells of: the writer removes what is older than a checkpoint."""
        for number in self.random.sample(versions, len(versions)):
            with suppress(TableNotFoundError):
                deltalake.DeltaTable(str(self.folder), number)
                return number
        return None


class DeltaTable(History):
    """A Delta table, written by delta-rs, whose feed the sync follows."""

    steps = ("happens",) * 12 + ("look_back",)
    sync = {
        "key": "[id]",
        "contract": "{id: {type: integer}, part: {type: string, nullable: true}, name: {type: string, nullable: true},"
        " amount: {type: decimal, max_digits: 12, decimal_places: 2, nullable: true}}",
        "changes": "cdf",
    }
    columns = ("id", "part", "name", "amount")

    def __init__(self, seed: int, folder: Path, target: psycopg.Connection[Any], database: Database) -> None:
        super().__init__(seed, folder, target, database)
        self.project("{type: delta, root: lake}")
        (folder / "lake").mkdir()
        self.history = Versions(folder / "lake/t", seed)
        self.at: int | None = None
        self.define()

    @property
    def source(self) -> str:
        return f"{{from: lake, table: t{'' if self.at is None else f', at: {self.at}'}}}"

    def wanted(self) -> Rows:
        found = self.history.rows if self.at is None else self.history.versions[self.at]
        return texts((one, row[0], row[1], row[2].quantize(CENT)) for one, row in found.items())

    def happens(self) -> None:
        self.at = None
        self.history.step()
        version = self.history.table.version()
        if self.history.lost:  # files and commits of versions before may be gone
            self.history.readable, self.history.lost = version, False
        elif (
            version // 100 > (version - 4) // 100
        ):  # the writer has made a checkpoint, and removed what is older
            self.history.readable = version

    def look_back(self) -> None:
        """The sync reads a former version."""
        newest = len(self.history.versions)
        versions = range(max(self.history.readable, newest - 60), newest)
        chosen = [at for at in versions if self.history.versions[at].keys() != {-1}]
        self.at = self.history.chosen(chosen)

    def step(self) -> str:
        name = super().step()
        self.define()
        return name if name == "look_back" else self.history.operations[-1]


def of_files(format: str, server: ObjectStore | None = None) -> type[Files]:
    return type("Files", (Files,), {"format": format, "server": server})
