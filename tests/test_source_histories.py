"""Files as a source of whole runs: histories and kills, into PostgreSQL."""

from __future__ import annotations

import os
import random
from decimal import Decimal
from pathlib import Path

import duckdb
import pytest

from tests.crash_sweep import FailureRate, sweep_events
from tests.crashes import Append, Deletes, PostgresScene, Project, Scene
from tests.dropped import Drop, from_files, written
from tests.servers import Database, ObjectStore

ALL = bool(os.environ.get("RETL_TEST_ALL"))
STEPS = 1000 if ALL else 12
KILLS = 10 if ALL else 1  # of each kind
SCENES: dict[str, tuple[type[PostgresScene], str, bool]] = {
    "append from parquet in a bucket": (Append, "parquet", True),
    "deletes from csv": (Deletes, "csv", False),
}
SYNC = """
destination: {connection: db, table: crm.users, create: true}
deletes: delete
guards: {max_delete_rate: 1, max_row_drop: 1}
"""

Row = tuple[str, str | None, int | None, Decimal | None]


@pytest.mark.parametrize("name", SCENES)
def test_a_run_that_reads_files_and_is_killed_is_made_good(
    name: str, tmp_path: Path, postgres: Database, objectstore: ObjectStore
) -> None:
    kind, format, in_bucket = SCENES[name]
    scene: Scene = kind(tmp_path / "project", postgres)
    scene.made = from_files(format, objectstore if in_bucket else None)
    scene.begin()
    failure_rate = FailureRate()
    sweep_events(scene, failure_rate, KILLS, turn=list(SCENES).index(name))
    assert failure_rate.problems == []
    assert failure_rate.kills == KILLS


class History:
    """Files with rows of their own, as random writers leave them."""

    def __init__(self, seed: str, drop: Drop, format: str, scratch: Path) -> None:
        self.random = random.Random(seed)
        self.drop, self.format, self.scratch = drop, format, scratch
        self.files: dict[str, tuple[Row, ...]] = {}
        self.numbers = iter(range(10**6))

    def step(self) -> str:
        """Something happens to the files; at least one stays, with a row."""
        deeds = [self.add, self.replace, self.reshape]
        deeds += [self.remove, self.compact, self.split] if len(self.files) > 1 else []
        deed = self.random.choice(deeds) if self.files else self.add
        deed()
        return deed.__name__

    def rows(self) -> list[tuple[str | None, ...]]:
        """What the target must hold."""
        every = [row for rows in self.files.values() for row in rows]
        return sorted(tuple(None if v is None else str(v) for v in row) for row in every)

    def add(self) -> None:
        self.put(
            self.name(), [self.row(f"u {next(self.numbers):06}") for _ in range(self.random.randint(1, 6))]
        )

    def replace(self) -> None:
        name = self.random.choice(list(self.files))
        kept = [row for row in self.files[name] if self.random.random() < 0.8] or self.files[name]
        self.put(name, [self.row(row[0]) if self.random.random() < 0.5 else row for row in kept])

    def reshape(self) -> None:
        """A file comes without a column."""
        name, column = self.random.choice(list(self.files)), self.random.randint(1, 3)
        rows = [
            tuple(None if at == column else value for at, value in enumerate(row)) for row in self.files[name]
        ]
        self.put(name, rows, without=column)  # type: ignore[arg-type]

    def remove(self) -> None:
        name = self.random.choice(list(self.files))
        del self.files[name]
        self.drop.remove(name)

    def compact(self) -> None:
        """Two files become one; no row changes."""
        first, second = self.random.sample(list(self.files), 2)
        rows = self.files[first] + self.files[second]
        for name in (first, second):
            del self.files[name]
            self.drop.remove(name)
        self.put(self.name(), rows)

    def split(self) -> None:
        """A row moves to another file."""
        first, second = self.random.sample(list(self.files), 2)
        *rest, moved = self.files[first]
        if rest:
            self.put(first, rest)
            self.put(second, [*self.files[second], moved])

    def name(self) -> str:
        return f"day={self.random.randint(1, 3)}/{next(self.numbers):06}.{self.format}"

    def row(self, key: str) -> Row:
        pick = self.random
        segment = pick.choice([None, "power", 'a "b"', "1.10", "ünï,cödé", "line\nbreak"])
        cents = pick.choice([None, pick.randint(-(10**12), 10**12)])
        value = None if cents is None else Decimal(cents).scaleb(-2)
        return key, segment, pick.choice([None, pick.randint(-(2**63), 2**63 - 1)]), value

    def put(self, name: str, rows: list[Row] | tuple[Row, ...], without: int | None = None) -> None:
        columns = ["user_id VARCHAR", "segment VARCHAR", "searches BIGINT", "lifetime_value DECIMAL(14,2)"]
        self.files[name] = tuple(rows)
        with duckdb.connect() as connection:
            connection.execute(f"CREATE TABLE t ({', '.join(columns)})")
            connection.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", rows)
            kept = [name.split()[0] for at, name in enumerate(columns) if at != without]
            self.random.shuffle(kept)
            sql = f"SELECT {', '.join(kept)} FROM t"
            if self.format == "ndjson":  # DuckDB writes decimals by way of a double
                lines = connection.execute(f"SELECT {', '.join(kept)} FROM t").fetchall()
                content = "".join(self.line(kept, line) for line in lines).encode()
            else:
                content = written(connection, sql, self.format, self.scratch)
        self.drop.put(name, content)

    @staticmethod
    def line(names: list[str], values: tuple[object, ...]) -> str:
        import json

        text = (f"{v:f}" if isinstance(v, Decimal) else json.dumps(v) for v in values)
        return "{" + ", ".join(f'"{n}": {t}' for n, t in zip(names, text, strict=True)) + "}\n"


HISTORIES = {"parquet": ("parquet", False), "csv": ("csv", False), "ndjson, bucket": ("ndjson", True)}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", HISTORIES)
def test_after_every_step_of_a_history_the_target_is_what_the_files_say(
    name: str, tmp_path: Path, postgres: Database, objectstore: ObjectStore
) -> None:
    format, in_bucket = HISTORIES[name]
    scene = PostgresScene(tmp_path / "project", postgres)
    drop = Drop(tmp_path / "drop", objectstore if in_bucket else None)
    scene.made = type("Plain", (Project,), {"define": lambda self, sync: None})
    scene.connections = drop.definition
    scene.empty()
    scene.start_over()
    nullable = "nullable: true"
    (tmp_path / "project/syncs/users.yml").write_text(
        f"source: {{from: drop, path: 'day=*/*.{format}', format: {format},"
        " optional: [segment, searches, lifetime_value]}\n"
        f"key: [user_id]\ncontract:\n  user_id: {{type: string}}\n  segment: {{type: string, {nullable}}}\n"
        f"  searches: {{type: integer, {nullable}}}\n"
        f"  lifetime_value: {{type: decimal, max_digits: 14, decimal_places: 2, {nullable}}}\n{SYNC}"
    )
    history = History(name, drop, format, tmp_path)
    for number in range(STEPS // len(HISTORIES)):
        deed = history.step()
        done = scene.project.sync()
        assert done.code == 0, (number, deed, done.stderr[-2000:])
        assert scene.content() == history.rows(), (number, deed)
