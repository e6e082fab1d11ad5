"""What PostgreSQL held after a write, as digests that it made itself: returned with the batch, durable before the
answer, and equal as long as nobody changes the row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from msgspec.structs import replace
from psycopg.errors import FeatureNotSupported

from retl.delivery.answered import Answered
from retl.destinations.batch import WRITTEN, Batch, Field, Kind, Outcome, RowResult, Shape
from retl.destinations.postgres.adapter import Postgres, PostgresOptions
from retl.engine import baseline
from retl.engine.answers import Answers
from retl.engine.baseline import Delta
from retl.engine.change_set import CHANGES
from retl.engine.workspace import Workspace
from retl.ledger import open_ledger
from retl.observe.signals import Stop
from retl.run import journal as journals
from retl.run.journal import RunJournal
from retl.values.types import Type
from tests.destinations.rows import Rows
from tests.destinations.suite import STRING, VISIT
from tests.servers import Database
from tests.target import RUN, Scene, begin
from tests.test_baseline import DAYS, batch, delta, sent

__all__ = ["delta"]
SHAPE = Shape(
    "people", "state-1", (Field("id", STRING),), (Field("name", STRING), Field("score", Type("integer"))),
    digests="row",
)  # fmt: skip


class Returned:
    """What a destination put."""

    def __init__(self) -> None:
        self.lines: dict[int, str] = {}

    def digests(self, batch: Batch, chunks: Iterable[bytes]) -> None:
        for line in b"".join(chunks).decode().splitlines():
            row, digest = line.split(",")
            assert batch.first + int(row) not in self.lines, "a row came twice"
            self.lines[batch.first + int(row)] = digest

    def images(self, batch: Batch, chunks: Iterable[bytes]) -> None:
        raise AssertionError("the shape asks for no images")

    def keep(self, batch: Batch, *, images: bool) -> None:
        """Nothing to keep."""

    def forget(self, batch: Batch) -> None:
        self.lines = {row: one for row, one in self.lines.items() if not batch.first <= row <= batch.last}


def target(database: Database, shape: Shape = SHAPE) -> Postgres:
    server = {"host": database.host, "port": database.port, "user": database.user, "dbname": database.dbname}
    options = {"connection": {**server, "password": database.password or None}, "table": "people"}
    return Postgres(PostgresOptions.model_validate(options), shape)


def write(destination: Postgres, rows: Sequence[tuple[Any, ...]], mode: Any = "upsert") -> Returned:
    found = Returned()
    batch = Rows(destination.shape, rows).batch(mode, run_id=f"run-{uuid4().hex}")
    answer = destination.write(replace(batch, returns=found))
    assert isinstance(answer, Outcome)
    return found


@pytest.fixture
def people(every_postgres: Database) -> Iterator[tuple[Postgres, Any]]:
    with every_postgres.connect() as admin:
        admin.execute("CREATE TABLE people (id text PRIMARY KEY, name text, score bigint, note text)")
        destination = target(every_postgres)
        destination.check(VISIT)
        destination.prepare(VISIT)
        yield destination, admin
        destination.close()


@pytest.mark.parametrize("mode", ["upsert", "insert_only"])
def test_every_written_row_has_a_digest_of_each_field_and_of_the_rest(people: Any, mode: Any) -> None:
    destination, _ = people
    found = write(destination, [("a", "Ada", 1), ("b", None, None), ("c", "Ada", 2)], mode)
    assert sorted(found.lines) == [0, 1, 2]
    assert {len(text) for text in found.lines.values()} == {2 + 3 * 16}
    ada, empty, other = (found.lines[row][2:] for row in range(3))
    assert ada[:16] == other[:16] != empty[:16]
    assert ada[16:32] != other[16:32]
    assert ada[32:] == other[32:] == empty[32:]


@pytest.mark.parametrize("mode", ["upsert", "update_only"])
def test_the_digest_of_a_row_changes_with_the_row_alone(people: Any, mode: Any) -> None:
    destination, admin = people
    row = [("a", "Ada", 1)]
    first = write(destination, row)
    assert (
        write(destination, row, mode).lines == first.lines
    )  # nothing is written, and it is told all the same
    admin.execute("UPDATE people SET note = 'mine'")
    noted = write(destination, row, mode)
    assert noted.lines[0][:34] == first.lines[0][:34]
    assert noted.lines[0][34:] != first.lines[0][34:]
    admin.execute("ALTER TABLE people ADD COLUMN later text")
    again = target_of(destination)
    assert write(again, row, mode).lines[0][34:] != noted.lines[0][34:]
    again.close()


def target_of(destination: Postgres) -> Postgres:
    return Postgres(destination.options, destination.shape)


def test_digests_are_those_of_what_triggers_left(people: Any) -> None:
    destination, admin = people
    plain = write(destination, [("a", "ada", 1), ("b", "ada!", 1)])
    admin.execute(
        "CREATE FUNCTION low() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN new.name := lower(new.name);"
        " RETURN new; END $$;"
        "CREATE FUNCTION mark() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " UPDATE people SET name = new.name || '!' WHERE id = new.id AND name NOT LIKE '%!'; RETURN new; END $$;"
        "CREATE TRIGGER one BEFORE UPDATE ON people FOR EACH ROW EXECUTE FUNCTION low();"
        "CREATE TRIGGER two AFTER UPDATE ON people FOR EACH ROW WHEN (new.id = 'b') EXECUTE FUNCTION mark()"
    )
    again = target_of(destination)
    found = write(again, [("a", "ADA", 1), ("b", "ADA", 1)])
    assert found.lines == plain.lines
    again.close()


def test_rows_that_are_rejected_have_no_digest_and_the_others_keep_their_numbers(people: Any) -> None:
    destination, admin = people
    admin.execute("ALTER TABLE people ADD CHECK (score > 0)")
    rows = [(f"k{n:02}", "x", -1 if n % 7 == 3 else n + 1) for n in range(30)]
    good = [n for n in range(30) if n % 7 != 3]
    found = write(destination, rows)
    assert sorted(found.lines) == good
    assert found.lines == write(destination, rows).lines
    alone = write(destination, [rows[29]])
    assert alone.lines[0] == found.lines[29]


def test_a_collation_that_ignores_case_does_not_hide_an_edit(people: Any) -> None:
    destination, admin = people
    try:
        admin.execute(
            "CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
        )
        admin.execute("ALTER TABLE people ALTER name TYPE text COLLATE ci")
    except FeatureNotSupported:  # a server built without ICU
        admin.execute("CREATE EXTENSION citext; ALTER TABLE people ALTER name TYPE citext")
    again = target_of(destination)
    assert write(again, [("a", "Ada", 1)]).lines != write(again, [("a", "ADA", 1)]).lines
    again.close()


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Scene, Workspace]]:
    monkeypatch.setattr(journals, "GROUP_SECONDS", 3600.0)  # however slow the machine
    ledger = open_ledger("file:.retl", tmp_path, environment=None)
    made = begin(ledger, tmp_path / ".retl")
    folder = tmp_path / "work"
    folder.mkdir()
    with Workspace(folder, Stop()) as workspace:
        yield made, workspace
    made.lock.release()
    ledger.close()


def test_what_was_returned_is_durable_with_the_answer_and_goes_with_the_delta(
    scene: tuple[Scene, Workspace],
) -> None:
    made, workspace = scene
    answers = Answers(workspace, RUN, CHANGES, made.ledger)
    run = RunJournal(made.ledger, made.lock, RUN, every=False, answers=answers)
    first, second, third = made.batches(6, 2)
    run.open([first, second, third])
    answers.digests(first, [b"0,\\x00", b"01\n1,\\x0002\n"])
    answers.digests(first, [b"0,\\x0003\n1,\\x0004\n"])  # another attempt
    answers.digests(second, [])
    answers.digests(third, [b"0,\\x0005\n"])
    run.acknowledge(Answered(first, Outcome(WRITTEN)))
    run.acknowledge(Answered(second, Outcome(WRITTEN)))
    run.flush()
    names = made.ledger.answers([RUN, "another"])
    assert names == {RUN: [f"{RUN}.answers-000001.parquet"]}
    path = made.ledger.get_file(names[RUN][0], workspace.directory)
    assert path.stat().st_mode & 0o777 == 0o600
    rows = workspace.run(f"SELECT row, hex(seen) FROM read_parquet('{path}') ORDER BY row")
    assert rows == [(0, "0003"), (1, "0004")]
    made.ledger.tidy(made.ledger.runs()[0].sync, keep=0.0)
    assert not made.ledger.answers([RUN])  # no delta of this run is recorded


def test_of_two_files_with_a_row_the_later_one_holds(scene: tuple[Scene, Workspace], delta: Any) -> None:
    """By their numbers, of which those of a second attempt at a shard may have more digits."""
    made, workspace = scene
    path = delta("1", sent("a", "b", "c"))
    rows = Rows(SHAPE, [("a", "", 1), ("b", "", 2), ("c", "", 3)])
    numbers = iter((64_000_000, 128_000_000))
    answers, files = Answers(workspace, RUN, CHANGES, made.ledger, files=numbers), []
    for told in (b"0,\\x0a\n1,\\x0b\n", b"0,\\x0e\n2,\\x0c\n"):
        answers.digests(rows.batch(), [told])
        files.append(answers.collect([rows.batch()]))
    known = [one for one in files if one is not None]
    baseline.build(workspace, None, [Delta(path, DAYS[0], [batch(0, 2, Outcome(WRITTEN))], 1, answers=known)])
    held = {"a": b"\x0e", "b": b"\x0b", "c": b"\x0c"}
    assert dict(workspace.run("SELECT key, seen FROM baseline")) == held


def test_seen_joins_the_baseline_with_the_answer_and_survives_a_snapshot(
    scene: tuple[Scene, Workspace], delta: Any, tmp_path: Path
) -> None:
    made, workspace = scene
    answers = Answers(workspace, RUN, CHANGES, made.ledger)
    path = delta("1", sent("a", "b", "c"))
    rows = Rows(SHAPE, [("a", "", 1), ("b", "", 2), ("c", "", 3)])
    answers.digests(rows.batch(first=0, last=1), [b"0,\\x0a\n1,\\x0b\n"])
    answers.digests(rows.batch(first=2, last=2), [b"0,\\x0c\n"])
    file = answers.collect([rows.batch()])
    assert file is not None
    rejected = Outcome(WRITTEN, {1: RowResult(Kind.REJECTED, "23514", "a check says no")})
    done = [batch(0, 1, rejected), batch(2, 2, Outcome(WRITTEN))]
    baseline.build(workspace, None, [Delta(path, DAYS[0], done, 1, answers=[file])])
    held = {"a": b"\x0a", "c": b"\x0c"}
    assert dict(workspace.run("SELECT key, seen FROM baseline")) == held
    baseline.compact(workspace, tmp_path / "work" / "base.parquet")
    baseline.build(workspace, tmp_path / "work" / "base.parquet", [])
    assert dict(workspace.run("SELECT key, seen FROM baseline")) == held
    later = delta("2", sent("a", "b", op="update", owned=True))
    baseline.build(
        workspace,
        tmp_path / "work" / "base.parquet",
        [Delta(later, DAYS[1], [batch(0, 1, Outcome(WRITTEN))], 2)],
    )
    assert dict(workspace.run("SELECT key, seen FROM baseline")) == {"a": None, "b": None, "c": b"\x0c"}
