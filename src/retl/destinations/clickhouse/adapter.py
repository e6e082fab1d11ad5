"""A ClickHouse table that an application reads: one row per key, by versions of a ReplacingMergeTree.

ClickHouse changes no rows. A `ReplacingMergeTree(version, is_deleted)` keeps, of the rows with one sorting
key, the one with the highest version, and none if that says that it is deleted: when parts are merged, and at
once for a query with `FINAL`. So `write: upsert` inserts whole rows, and `deletes: delete` inserts rows
of keys that say so. **Readers must use `FINAL`** (in the query, or `final = 1` in the profile of their user).

    connections:
      analytics:
        type: clickhouse
        base_url: https://clickhouse.internal:8443
        user: retl
        password: "${CLICKHOUSE_PASSWORD}"

    destination: {connection: analytics, table: crm.user_segments, create: true}
    key: [user_id]
    deletes: delete
    batch: {rows: 500000}

`create: true` makes the database, the table, and later missing columns. A table of yours fits if its engine
is `ReplacingMergeTree` (also Replicated or Shared) with a version of type UInt64 that retl alone fills, if
its `ORDER BY` has exactly the columns of `key`, its `PARTITION BY` none but those, and if the sync sends
every other column: a new row would empty the ones that it does not send. Deletes need `is_deleted`. All else
is refused (TARGET_DRIFT). Rows go as Parquet; every insert makes a part, so batches should be large.

**What twice means:** nothing. The version is a number of the run: one more than the highest that the table
and the marks have when it begins, whatever the clocks say, also after a restored ledger, in a repair and
after a rollback elsewhere. A batch that is sent again has the same rows with the same version, which are one
row. A row of an older run that arrives late has a lower version, and loses. So nothing depends on
ClickHouse's own deduplication of inserts, which forgets, and which takes parts of a batch for another if its
blocks are cut differently: no `insert_deduplication_token` is sent. Inserts are synchronous (`async_insert =
0`).

**What is not atomic:** a batch is not a transaction. Readers may see some rows of it before others; if it has
rows of several partitions, or if the server dies in it, some may be there and others not until the next
attempt or run sends them again. One row is always whole.

**What it can notice:** each batch leaves a mark in `retl_applied`, a table beside the sync's, after its rows.
By the marks a ledger that was restored is noticed, a table that was made again (by its id), TRUNCATE and a
partition that was replaced (by the oldest insert that the table still has), also during a run; loss of single
rows by a sample of 200 keys. An older run that wakes up late finds a newer one in the marks, and stops.
Another ledger that delivers at the same time is noticed by the next run, not kept out. A TTL that removes
rows looks like a loss.

**Values.** `create` makes String (string, json), UUID, Int64, Decimal(p, s), Float64, Bool, Date32,
DateTime64(6, 'UTC') and Array, all but key and arrays Nullable. Columns of yours may be LowCardinality, not
Nullable, other integers, Date, a DateTime64 of 6 to 9 digits (for a timestamp without a zone in 'UTC'), or
String for a uuid. A value that the column would keep as another makes its row a reject (NOT_EXACT): days
before 1900 or after 2299, a NULL where the column has none (an array never has), an integer that is too
large. A row that a CONSTRAINT of the table refuses is a reject (23514); a row that says that a key is deleted
has the defaults in all other columns, which a CONSTRAINT must allow.

The account needs SELECT and INSERT on the table and on `retl_applied`, ALTER DELETE on the latter (old marks
are removed), SELECT on `system.tables` and `system.columns`, CREATE TABLE for `retl_applied` unless it is
there, and for `create` CREATE DATABASE, CREATE TABLE and ALTER ADD COLUMN. `retl erase` inserts a row that
says that the key is deleted; the older rows and the key stay on disk until a person runs `OPTIMIZE TABLE …
FINAL CLEANUP` or `ALTER TABLE … DELETE`.

**Clusters.** `base_url` is one replica, because a mark must be seen by the next request. Beside a Replicated
table a person makes `retl_applied` on each replica; `retl check` shows the statement. Distributed tables are
refused.

What it cannot do: `write: append`, because ClickHouse can neither say what became of an insert without an
answer nor keep it out; `insert_only` and `update_only`, because it tests no condition; soft deletes, `nulls:
keep`, `conflicts` and rollback. For events use `upsert` with the id of the event as key: a row that is sent
twice is one.

Evidence: the real engine (chdb 26.5, the code of ClickHouse in a process), behind an HTTP face of our tests
that hands queries and rows to it. **It was not run on a ClickHouse server or cluster**: Replicated and Shared
tables, quotas and accounts are built from the documentation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace
from pydantic import field_validator

from retl.destinations.api import Destination
from retl.destinations.batch import (
    WRITTEN,
    Batch,
    Capabilities,
    Field,
    Kind,
    Mode,
    Outcome,
    RowResult,
    Shape,
    Trace,
    Visit,
    WriteMode,
    lacking,
)
from retl.destinations.clickhouse import columns, reading, table
from retl.destinations.clickhouse.connection import ClickHouseConnection, Requests
from retl.destinations.clickhouse.marks import Marks
from retl.destinations.clickhouse.table import Name, Table
from retl.destinations.held import Held, Latest
from retl.errors import Ambiguous, DefinitionError, Mismatch, Systemic, TargetError, Unavailable
from retl.model import Definition
from retl.net.clickhouse import quoted
from retl.net.gate import Gate
from retl.values.sql import literal, split
from retl.values.sql import quoted as duckdb_quoted

if TYPE_CHECKING:
    import duckdb

BATCH_ROWS = 1_000_000
_MODES: frozenset[Mode] = frozenset({"upsert", "delete"})
_PARQUET = "FORMAT parquet, COMPRESSION uncompressed, USE_TMP_FILE false"


class ClickHouseOptions(Definition):
    """The table. `create` makes it, and later missing columns."""

    connection: ClickHouseConnection
    table: str
    create: bool = False

    @field_validator("table")
    @classmethod
    def _one_table(cls, text: str) -> str:
        if len(split(text)) > 2:
            raise ValueError("a table is named `table` or `database.table`")
        return text

    @property
    def name(self) -> Name:
        *database, name = split(self.table)
        return Name(database[0] if database else self.connection.database, name)


class ClickHouse(Destination[ClickHouseOptions]):
    """One table."""

    Connection = ClickHouseConnection
    Options = ClickHouseOptions
    keeps_marks = True

    def __init__(self, options: ClickHouseOptions, shape: Shape, gate: Gate | None = None) -> None:
        super().__init__(options, shape, gate)
        _check(shape)
        self._requests = Requests(options.connection, self.gate)
        self._marks = Marks(self._requests, options.name, shape)
        self._table: Table | None = None
        self._held = Latest[Held | None]()
        self._interrupted = False
        self.capabilities = Capabilities(
            object=self.place(options, shape.write),
            modes=_MODES,
            idempotent=True,
            form="parquet",
            readable=True,
            max_rows=BATCH_ROWS,
            lanes=2,
        )

    @property
    def sent(self) -> int:
        return self._requests.sent

    @classmethod
    def forgets(cls, options: ClickHouseOptions) -> bool:
        return False  # the older row stays on disk until its part is merged

    @classmethod
    def place(cls, options: ClickHouseOptions, write: WriteMode) -> str:
        return f"clickhouse:{options.connection.address.place}/{options.name}"

    # --- check and prepare

    def check(self, visit: Visit) -> Trace | None:
        """Systemic CLICKHOUSE_LOGIN, NOPERM; Mismatch TARGET_DRIFT."""
        found = self._found()
        if found is None:
            if not self.options.create:
                raise Mismatch(
                    "TARGET_DRIFT",
                    f"there is no table {self.options.name}",
                    hint=f"`create: true` makes it, or: {table.statement(self.options.name, self.shape)}",
                )
            return Trace()
        missing = {one.name for one in table.judge(found, self.shape, create=self.options.create)}
        names = [one.name for one in (*self.shape.key, *self.shape.fields) if one.name not in missing]
        listed = ", ".join(map(quoted, names))
        self._requests.do(
            f"INSERT INTO {found.name.sql} ({listed}) SELECT {listed} FROM {found.name.sql} WHERE 0"
        )
        if self._marks.probe():
            return replace(self._marks.trace(found), lacks=lacking(self.shape, found.columns))
        if found.replicated:
            raise Mismatch(
                "TARGET_DRIFT",
                f"{found.name} is replicated, and there is no table {self._marks.table} for marks beside it",
                hint=f"make it on each replica: {self._marks.statement(replicated=True)}",
            )
        return Trace()

    def _found(self) -> Table | None:
        """The table as it is now."""
        self._table = table.found(self._requests, self.options.name)
        return self._table

    def _known(self) -> Table:
        """The table as it was when this lane first looked. Systemic TABLE_MISSING."""
        found = self._table or self._found()
        if found is None:
            raise Systemic("TABLE_MISSING", f"there is no table {self.options.name}", hint="run `retl check`")
        return found

    def prepare(self, visit: Visit) -> None:
        """Makes what `create` and the marks need, takes the run's version, and drops old marks."""
        name, found = self.options.name, self._found()
        if found is None:
            self._requests.do(f"CREATE DATABASE IF NOT EXISTS {quoted(name.database)}")
            self._requests.do(table.statement(name, self.shape))
        elif missing := table.judge(found, self.shape, create=self.options.create):
            self._requests.do(table.addition(name, missing))
        self._requests.do(self._marks.statement())
        self._found()
        self._marks.begin(visit.run_id, visit.epoch, self._known())
        self._marks.prune(visit)

    def columns(self) -> Mapping[str, str] | None:
        found = self._found()
        return None if found is None else {one.name: one.type for one in found.columns.values()}

    def ddl(self, name: str, to: Field | str | None) -> str | None:
        if isinstance(to, Field):
            change = f"ADD COLUMN {columns.declared(to, key=False)}"
        elif to is None:
            change = f"DROP COLUMN {quoted(name)}"
        else:
            change = f"RENAME COLUMN {quoted(name)} TO {quoted(to)}"
        return f"ALTER TABLE {self.options.name.sql} {change}"

    # --- write

    def write(self, batch: Batch) -> Outcome:
        """The rows, and then their mark. A value that its column would keep as another makes a reject."""
        if self._interrupted:
            raise Unavailable("UNAVAILABLE", "the run was asked to stop")
        found = self._known()
        if batch.operation == "delete" and found.deleted is None:
            raise Systemic("TARGET_UNSUPPORTED", f"{found.name} cannot say that a row is deleted")
        began = self._marks.began(batch, found)
        path = batch.parquet()
        try:
            refused = self._refused(path, batch, found)
            if len(refused) < len(batch):
                body = self._fitting(path, refused).read_bytes() if refused else path.read_bytes()
                self._requests.insert(self._insert(batch), body, version=began.version)
        finally:
            path.unlink(missing_ok=True)
        seen = 0 if batch.operation == "delete" else len(batch) - len(refused)
        self._held.close()
        try:
            self._marks.applied(batch, began, seen)
        except TargetError as problem:  # the rows are there
            raise Ambiguous(problem.code, problem.message, hint=problem.hint) from None
        return Outcome(WRITTEN, refused)

    def _fields(self, batch: Batch) -> Sequence[Field]:
        return self.shape.key if batch.operation == "delete" else (*self.shape.key, *self.shape.fields)

    def _insert(self, batch: Batch) -> str:
        """The statement of a batch, behind which stand its rows as Parquet."""
        fields, known = self._fields(batch), self._table
        version, deleted = (known.version, known.deleted) if known else (table.VERSION, table.DELETED)
        into = [quoted(one.name) for one in fields] + [quoted(version)]
        values = [f"v{n}" for n in range(len(fields))] + ["{version:UInt64}"]
        if deleted is not None:
            into.append(quoted(deleted))
            values.append(str(int(batch.operation == "delete")))
        source = "'" + columns.structure(fields).replace("'", "\\'") + "'"
        return (
            f"INSERT INTO {self.options.name.sql} ({', '.join(into)})"
            f" SELECT {', '.join(values)} FROM input({source}) FORMAT Parquet"
        )

    def _refused(self, path: Path, batch: Batch, found: Table) -> dict[int, RowResult]:
        """The rows with a value that its column would keep as another."""
        tests = dict[str, str]()
        for n, one in enumerate(self._fields(batch)):
            column, at = found.columns[one.name].type, f"v{n}"
            test = columns.unfit(one.type, column, at, null=one not in self.shape.key)
            if test is None:  # changed since it was checked
                raise Systemic(
                    "TARGET_DRIFT", f"the column {one.name} is {column} now", hint="run `retl check`"
                )
            if test:
                tests[one.name] = test
        if not tests:
            return {}
        which = " ".join(f"WHEN {test} THEN {literal(name)}" for name, test in tests.items())
        rows = f"read_parquet({literal(str(path))}, file_row_number = true)"
        named = f"SELECT file_row_number AS at, CASE {which} END AS name FROM {rows}"
        bad = self._duckdb.execute(f"FROM ({named}) WHERE name IS NOT NULL").fetchall()
        return {
            number: RowResult(
                Kind.REJECTED,
                "NOT_EXACT",
                f"{name}: a column of type {found.columns[name].type} would keep another value",
            )
            for number, name in bad
        }

    def _fitting(self, path: Path, refused: Mapping[int, RowResult]) -> Path:
        """The file without the rows that are refused, in its place."""
        numbers = ", ".join(map(str, refused))
        rows = f"read_parquet({literal(str(path))}, file_row_number = true)"
        kept = f"SELECT * EXCLUDE (file_row_number) FROM {rows} WHERE file_row_number NOT IN ({numbers})"
        fresh = path.with_suffix(".fitting.parquet")
        fresh.unlink(missing_ok=True)
        fresh.touch(mode=0o600)
        self._duckdb.execute(f"COPY ({kept}) TO {literal(str(fresh))} ({_PARQUET})")
        return fresh.replace(path)

    @cached_property
    def _duckdb(self) -> duckdb.DuckDBPyConnection:
        """What judges files of rows. Times with a zone are in UTC."""
        import duckdb

        connection = duckdb.connect()
        connection.execute("SET TimeZone = 'UTC'")
        return connection

    # --- compare

    def read(self, batch: Batch) -> Iterator[Mapping[str, Any] | None]:
        found = self._found()
        if found is None:
            return iter([None] * len(batch))
        return iter(reading.looked_up(self._requests, found, self.shape, batch))

    def differing(self, batch: Batch) -> Iterator[tuple[str, ...] | None]:
        """Reads the table: for `retl reconcile` and `retl state rebuild`, not for each run."""
        held = self._holding()
        if held is None:
            yield from [None] * len(batch)
            return
        path = batch.parquet()
        try:
            rows = reading.selected(self._fields(batch), path, numbered=True)
            yield from held.compare(rows, keys_only=batch.operation == "delete")
        finally:
            path.unlink(missing_ok=True)

    def scan(self) -> Iterator[tuple[str, ...]]:
        self._held.close()
        held = self._holding()
        return iter(()) if held is None else held.keys()

    def _holding(self) -> Held | None:
        """What is there, as it was when this was first asked since the last write. None without a table."""

        def read() -> Held | None:
            found = self._found()
            return None if found is None else reading.holding(self._requests, found, self.shape)

        return self._held.of(None, read)

    # --- preview, interrupt

    def preview(self, batch: Batch) -> bytes:
        """The statement, and the rows as JSON lines; they are sent as Parquet."""
        path = batch.parquet()
        try:
            listed = ", ".join(
                f"v{n} AS {duckdb_quoted(one.name)}" for n, one in enumerate(self._fields(batch))
            )
            rows = f"SELECT {listed} FROM read_parquet({literal(str(path))})"
            lines = self._duckdb.execute(f"SELECT CAST(to_json(t) AS VARCHAR) FROM ({rows}) t").fetchall()
        finally:
            path.unlink(missing_ok=True)
        return "\n".join([self._insert(batch), *(line for (line,) in lines), ""]).encode()

    def interrupt(self) -> None:
        """The request under way ends; no other batch begins."""
        self._interrupted = True

    def close(self) -> None:
        self._held.close()
        self._requests.close()
        if "_duckdb" in vars(self):
            self._duckdb.close()
            del self._duckdb


def _check(shape: Shape) -> None:
    """DefinitionError for what ClickHouse cannot do exactly, with a way that it can."""
    if shape.write == "upsert":
        return
    hint = {
        "append": "use `write: upsert` with the id of each row as key: a row that is sent twice is one",
        "insert_only": "use `write: upsert`, and leave out known keys in the source's SQL",
        "update_only": "use `write: upsert`, and leave out unknown keys in the source's SQL",
    }
    raise DefinitionError(
        "OPERATION_UNSUPPORTED",
        f"this destination cannot {shape.write} exactly: it has no transactions and tests no condition",
        hint=hint.get(shape.write, "use `write: upsert`"),
        where=f"sync {shape.sync}",
    )
