"""DuckDB passes the suite as a target, and keeps the promises that are its alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from msgspec.structs import replace

from retl.destinations.batch import Field, Kind, Shape, Visit, WriteMode
from retl.destinations.duckdb.adapter import DuckDB, DuckDBDialect, DuckDBOptions
from retl.errors import Mismatch, Systemic, Unavailable
from retl.values.sql import quoted
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
DIALECT = DuckDBDialect()
# DuckDB's own lock, without its import
HOLD = "import fcntl, sys; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB); print(flush=True); sys.stdin.read()"
NOBODY = 65534


class Held(FileFaults):
    """Another process has the file open."""

    holder: subprocess.Popen[bytes] | None = None

    @property
    def connections(self) -> int:  # type: ignore[override]
        """As far as this process has it open: a look at it leaves no trace."""
        files = (Path("/proc/self/fd") / one for one in os.listdir("/proc/self/fd"))
        return sum(one.exists() and one.resolve() == self.file for one in files)

    def refuse(self) -> None:
        self.heal()
        self.holder = subprocess.Popen(
            [sys.executable, "-ISc", HOLD, str(self.file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.holder.stdout is not None
        self.holder.stdout.readline()

    def heal(self) -> None:
        if self.holder is not None:
            self.holder.kill()
            self.holder.communicate()
            self.holder = None


class DuckDBTarget(Target):
    type = "duckdb"
    counts_all = False
    commit = b"COMMIT"

    def __init__(self, folder: Path, write: WriteMode = "upsert") -> None:
        self.folder, self.file, self.write, self.shape = folder, folder / "crm.duckdb", write, SHAPE
        self.proxy: Held = Held(self.file)

    def options(self, **changes: Any) -> DuckDBOptions:
        connection = {"path": str(self.file), "lock_wait": "100ms"} | changes.pop("connection", {})
        return DuckDBOptions.model_validate({"connection": connection, "table": "people"} | changes)

    def make(self, shape: Shape, *, secret: str | None = None, **changes: Any) -> DuckDB:
        """What a wrong secret is to a server, a file of something else is to DuckDB."""
        self.shape = shape
        if secret is not None:
            self.file.write_text(secret * 1000)
        elif self.proxy.holder is None and os.geteuid() != NOBODY and not self._is_garbage():
            columns = [
                f"{quoted(f.name)} {DIALECT.ddl(f.type, key=False)}" for f in (*shape.key, *shape.fields)
            ]
            check = ", CHECK (visits IS NULL OR visits >= 0)" if FIELDS[-1] in shape.fields else ""
            key = ", ".join(quoted(f.name) for f in shape.key)
            self.execute(
                f"CREATE TABLE IF NOT EXISTS people ({', '.join(columns)}, theirs TEXT DEFAULT 'nobody',"
                f" PRIMARY KEY ({key}){check})"
            )
        return DuckDB(self.options(**changes), shape)

    def _is_garbage(self) -> bool:
        return self.file.exists() and self.file.read_bytes()[8:12] != b"DUCK"

    def execute(self, *statements: str) -> list[Row]:
        """As somebody else; the rows of the last. Nobody else can open a file that is held: then a copy."""
        file = self.file
        if self.proxy.holder is not None:
            file = self.folder / "copy.duckdb"
            shutil.copy(self.file, file)
        with duckdb.connect(str(file), read_only=os.geteuid() == NOBODY) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            for statement in statements:
                found = connection.execute(statement).fetchall()
        return found

    def contents(self) -> Contents:
        fields = (*self.shape.key, *self.shape.fields)
        found: Contents = {}
        for row in self.execute(f"SELECT {', '.join(quoted(f.name) for f in fields)} FROM people"):
            pairs = zip(fields[1:], row[1:], strict=True)
            found[(row[0],)] = {f.name: plain(value, f.type) for f, value in pairs}
        return found

    def poison(self, row: Row) -> Row:
        return (*row[:-1], -1)

    def forbid(self) -> None:
        """Another account, which may read the file."""
        self.file.chmod(0o444)
        if os.geteuid() == 0:
            os.seteuid(NOBODY)

    def annotate(self, key: Row) -> Callable[[], bool] | None:
        self.execute(f"UPDATE people SET theirs = 'a note' WHERE id = '{key[0]}'")
        query = f"SELECT theirs = 'a note' FROM people WHERE id = '{key[0]}'"
        return lambda: self.execute(query) == [(True,)]


def target_of(write: WriteMode) -> Iterator[DuckDBTarget]:
    """In a folder that every account may enter."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory(prefix="retl-duckdb-") as folder:
        os.chmod(folder, 0o755)
        made = DuckDBTarget(Path(folder), write)
        with made.proxy:
            yield made
        os.seteuid(user)


class TestUpsert(Suite, TableSuite):
    kind = DuckDB

    @pytest.fixture
    def target(self) -> Iterator[DuckDBTarget]:
        yield from target_of("upsert")


@pytest.fixture
def target() -> Iterator[DuckDBTarget]:
    yield from target_of("upsert")


def ready(target: DuckDBTarget, shape: Shape = SHAPE, visit: Visit = VISIT, **options: Any) -> DuckDB:
    destination = target.make(shape, **options)
    destination.check(visit)
    destination.prepare(visit)
    return destination


def test_a_table_needs_no_key_and_may_be_in_a_schema_of_its_own(target: DuckDBTarget) -> None:
    target.execute(
        "CREATE SCHEMA crm.crm",
        "CREATE TABLE crm.crm.Users (ID TEXT, name TEXT, amount DECIMAL(12,2), visits INTEGER)",
    )
    destination = DuckDB(target.options(table="CRM.users"), SHAPE)
    destination.check(VISIT)
    destination.prepare(VISIT)
    rows = [*sample(2), ("k9", "wide", None, 2**40)]
    found = deliver(destination, Rows(SHAPE, rows).batch())
    assert [one.code for one in found] == [None, None, "22000"]
    destination.close()
    assert target.execute("SELECT id FROM crm.crm.users ORDER BY 1") == [("k0",), ("k1",)]
    made = DuckDB(target.options(table="other.users", create=True), SHAPE)
    made.check(VISIT)
    made.prepare(VISIT)
    assert target.execute("SELECT count(*) FROM crm.other.users") == [(0,)]


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("id TEXT COLLATE NOCASE, name TEXT, amount DECIMAL(12,2)", "COLLATE clause"),
        ("id TEXT, name TEXT, amount DOUBLE", "amount is DOUBLE"),
        ("id TEXT, name TEXT, amount DECIMAL(12,2), due DATE NOT NULL", "due is NOT NULL"),
        ("id TEXT, name TEXT, amount DECIMAL(12,2) GENERATED ALWAYS AS (1.5)", "generates column amount"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_with_the_reason(
    target: DuckDBTarget, column: str, words: str
) -> None:
    target.execute(f"CREATE TABLE people ({column}, visits BIGINT)")
    with pytest.raises(Mismatch, match=words):
        DuckDB(target.options(), SHAPE).check(VISIT)
    target.execute("CREATE VIEW v AS SELECT * FROM people")
    with pytest.raises(Mismatch, match="is a view"):
        DuckDB(target.options(table="v"), SHAPE).check(VISIT)


def test_append_is_exactly_once_and_needs_no_stage(
    target: DuckDBTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rows, "new", True)
    shape = replace(SHAPE, write="append")
    destination = ready(target, shape)
    batch = Rows(shape, sample(3)).batch("append")
    for lane in (destination, destination, DuckDB(target.options(), shape)):
        assert lane.write(batch).default.kind is Kind.WRITTEN
        lane.close()
    assert target.contents() == as_contents(SHAPE, sample(3))


def test_a_refused_row_undoes_nothing_that_came_before_it(target: DuckDBTarget) -> None:
    target.execute(
        "CREATE TABLE people (id TEXT PRIMARY KEY, name TEXT UNIQUE, amount DECIMAL(12,2), visits BIGINT)"
    )
    destination = ready(target)
    deliver(destination, Rows(SHAPE, [("old", "taken", None, 1)]).batch())
    rows = [(f"k{n}", "taken" if n in (0, 3) else f"n{n}", None, n) for n in range(6)]
    found = deliver(destination, Rows(SHAPE, rows).batch(run_id="run-2"))
    assert [one.code for one in found] == ["23505", None, None, "23505", None, None]
    again = destination.write(Rows(SHAPE, rows).batch(run_id="run-2"))
    assert again.result(3).code == "23505"
    kept = [row for n, row in enumerate(rows) if n not in (0, 3)]
    assert target.contents() == as_contents(SHAPE, [("old", "taken", None, 1), *kept])


def test_a_mart_in_the_same_file_is_read_first_and_a_reader_in_our_process_delays_us(
    target: DuckDBTarget,
) -> None:
    destination = ready(target)
    with duckdb.connect() as workspace:
        workspace.execute(f"ATTACH '{target.file}' AS mart (READ_ONLY)")
        assert destination.check(VISIT) is not None
        with pytest.raises(Unavailable, match=r"another run of this process has crm\.duckdb open"):
            destination.write(Rows(SHAPE, sample(1)).batch())
        workspace.execute("DETACH mart")
    assert destination.write(Rows(SHAPE, sample(1)).batch()).default.kind is Kind.WRITTEN


def test_a_locked_file_and_a_wrong_path_are_one_sentence_each(target: DuckDBTarget, tmp_path: Path) -> None:
    destination = ready(target)
    with target.proxy as held:
        held.refuse()
        with pytest.raises(Unavailable, match=rf"process {target.proxy.holder.pid} has crm\.duckdb open"):  # type: ignore[union-attr]
            destination.write(Rows(SHAPE, sample(1)).batch())
    for path, words in (
        (tmp_path / "gone.duckdb", "there is no"),
        (tmp_path / "no" / "x.duckdb", "cannot be"),
    ):
        wrong = target.options(connection={"path": str(path)}, create=path.parent != tmp_path)
        destination = DuckDB(wrong, SHAPE)
        with pytest.raises(Systemic, match=words):
            (destination.prepare if wrong.create else destination.check)(VISIT)


def test_a_full_disk_is_one_sentence_and_nothing_of_the_batch_is_there(
    target: DuckDBTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    destination = ready(target)
    destination.write(Rows(SHAPE, sample(1)).batch())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    rows = Rows(SHAPE, sample(30_000, "x")).batch(run_id="run-2")
    made = rows.parquet()
    room = max(target.file.stat().st_size, made.stat().st_size) + 4096
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))  # for the rows, and not for their log
    try:
        with monkeypatch.context() as patched:
            patched.setattr(Rows, "parquet", lambda *_, **__: made)
            with pytest.raises(Systemic, match=r"no room for crm\.duckdb"):
                destination.write(rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    destination.close()
    assert target.contents() == as_contents(SHAPE, sample(1))
    shape = replace(SHAPE, sync="other")
    assert (
        ready(target, shape).write(Rows(shape, sample(2)).batch(run_id="run-3")).default.kind is Kind.WRITTEN
    )
