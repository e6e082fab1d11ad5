"""A Delta table in a folder of this machine, in S3, in Google Cloud Storage or in Azure: a batch is a commit.

`root` is a folder of the project, an absolute path, `s3://bucket/folder`, `gs://bucket/folder`,
`az://container/folder` or `abfss://container@account.dfs.core.windows.net/folder`; `path` is the table's own
folder below it. It needs the extra `lake`. Readers such as Spark, DuckDB, Trino and Fabric see each commit as
a whole or not at all.

`write: upsert` merges by key: rows that are there get the fields of the sync, others are added, and columns
that are not the sync's keep their values (in a new row they are empty). `deletes: delete` merges too. `write:
append` adds rows, each key once, ever. Every merge reads the table and writes files with changed rows again,
so batches should be large: `batch: {rows: 1000000}`. OPTIMIZE, VACUUM and the log's clean-up are yours.

Types: string, uuid and json are `string`, integer `long`, decimal `decimal(p,s)`, float `double`, boolean,
date, timestamp `timestamp_ntz`, timestamptz `timestamp` (UTC), a list `array`. A column of another type is
refused (TARGET_DRIFT). `create: true` makes the table, and later missing columns. A row that a CHECK or a NOT
NULL of the table refuses is a reject. Of rows with the same key in one batch the last one counts.

**Exactly once**: a commit has the data, a mark of its batch (`retl` in the commit's info), and the next
application transaction of the sync (`txn`, `retl/LEDGER/SYNC`). Of two commits that began at the same state
of the log, only one is let through; so each attempt first reads the log, and never adds a batch that is in
it. If a commit got no answer, the next attempt or run reads the log; if it says nothing, an empty commit
(`void`) is written, and then the batch can never be applied. Each run begins with a commit without rows, by
which an older run that wakes up late finds that it is over. Others may write to the table meanwhile: a
conflict with them is tried again, as `retry` says. Another ledger that delivers at the same time is noticed
by the next run, not kept out.

**What it can notice**: a table that was made again, RESTORE, and an overwrite by others, by the marks, as
long as the log has the commits of the last run, and loss of rows by a sample of 200 keys, for which a run
reads the columns of the sync. If the log no longer
has the commits since a batch began, that batch stays in doubt. Rows that others changed are found by
`retl reconcile` and `retl state rebuild`, which read the table once. `retl erase` deletes rows; older
versions keep them until VACUUM, which a person must run.

    connections:
      lake: {type: delta, root: "s3://company-lake/crm"}

    destination: {connection: lake, path: segments, create: true}
    key: [user_id]
    deletes: delete
    batch: {rows: 1000000}

The store must support conditional writes (If-None-Match): S3, Google Cloud Storage and Azure do; one that
ignores them is refused. The account needs to read, write and list below `path`, and to delete there for the
client's checkpoints. Without keys under `storage`, those of the environment are used, or of the machine's
role.

What it cannot do: `insert_only`, `update_only`, soft deletes, `conflicts` and rollback. Tables with features
that the client does not know are refused.

Evidence: delta-rs on folders of this machine and on a real S3 server (SeaweedFS), with runs that were killed
and writers that raced. Google Cloud Storage and Azure go through the same client and were not run, nor were
Spark or Databricks as other writers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from math import inf
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace
from pydantic import Field, field_validator

from retl.destinations.api import Destination
from retl.destinations.batch import (
    UNKNOWN,
    WRITTEN,
    Batch,
    Capabilities,
    Layout,
    Mode,
    Outcome,
    Shape,
    Trace,
    Visit,
    WriteMode,
)
from retl.destinations.delta import columns
from retl.destinations.delta.marks import Mark, Marks
from retl.destinations.delta.reading import Holding, looked_up
from retl.destinations.delta.table import DeltaConnection, Missing, Opening, is_clients, refused
from retl.destinations.held import Latest
from retl.destinations.marks import NOT_APPLIED
from retl.errors import Ambiguous, DefinitionError, Mismatch, Poisoned, Systemic, TargetError, Unavailable
from retl.model import Definition
from retl.net.gate import Gate
from retl.values.sql import literal, quoted

if TYPE_CHECKING:
    import duckdb
    from deltalake import CommitProperties, DeltaTable

_APPEND: frozenset[Mode] = frozenset({"append"})
_MERGE: frozenset[Mode] = frozenset({"upsert", "delete"})
_ROW = "retl row"  # the number of a row in its file


class DeltaOptions(Definition):
    """The table of the sync."""

    connection: DeltaConnection
    path: str = Field(description="The table's own folder below `root`.")
    create: bool = Field(False, description="Make the table, and later missing columns.")

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        parts = path.split("/")
        if any(part in ("", ".", "..") or part.startswith("_") or set(part) & {"\\", "%"} for part in parts):
            raise ValueError(
                "`path` is a folder such as crm/segments: no part is empty or `..`, begins with _ or has a %"
            )
        return path


class Delta(Destination[DeltaOptions]):
    """One table."""

    Connection = DeltaConnection
    Options = DeltaOptions
    keeps_marks = True

    def __init__(self, options: DeltaOptions, shape: Shape, gate: Gate | None = None) -> None:
        super().__init__(options, shape, gate)
        _check(shape)
        self._opening = Opening(options.connection, options.path)
        self._marks = Marks(shape)
        self._attempts: dict[str, int] = {}  # of batches written here and not yet answered
        self._held = Latest[Holding]()
        self._interrupted = False
        append = shape.write == "append"
        self.capabilities = Capabilities(
            object=self.place(options, shape.write),
            modes=_APPEND if append else _MERGE,
            idempotent=not append,
            form="file",
            repeats=True,
            readable=True,
            nulls_keep=not append,
            resolves=True,
        )

    @classmethod
    def forgets(cls, options: DeltaOptions) -> bool:
        return False  # older versions still have the row

    @classmethod
    def place(cls, options: DeltaOptions, write: WriteMode) -> str:
        return f"delta:{options.connection.identity}/{options.path}"

    # --- check and prepare

    def check(self, visit: Visit) -> Trace | None:
        """Reads schema and log, and asks for a write under a condition that cannot hold.
        Systemic BUCKET_REFUSED, NOPERM, CONDITIONS_IGNORED; Mismatch TARGET_DRIFT."""
        table = self._there()
        self._opening.place.probe()
        if table is None:
            return Trace()
        lacks = frozenset(one["name"] for one in self._lacking(table))
        self._look(table)
        covered = self._marks.covers(self._opening.place, inf)
        return replace(self._marks.trace(), lacks=lacks) if covered else None

    def _there(self) -> DeltaTable | None:
        """The table; None if it is missing and `create` makes it."""
        try:
            return self._opening.newest()
        except Missing:
            if self.options.create:
                return None
            raise Mismatch(
                "TARGET_DRIFT",
                f"there is no Delta table {self.options.path}",
                hint="`create: true` makes it; or fix `root` or `path`",
            ) from None

    def _lacking(self, table: DeltaTable) -> list[columns.Column]:
        """The columns that `create` adds. Mismatch TARGET_DRIFT."""
        theirs = json.loads(table.schema().to_json())["fields"]
        found = columns.judge(theirs, self.shape, self.options.path, create=self.options.create)
        return [columns.column(one) for one in found]

    def _look(self, table: DeltaTable) -> None:
        self._marks.read(table, self._opening.place)

    def columns(self) -> Mapping[str, str] | None:
        try:
            theirs = json.loads(self._opening.newest().schema().to_json())["fields"]
        except Missing:
            return None
        return {one["name"]: columns.shown(one["type"]) for one in theirs}

    def prepare(self, visit: Visit) -> None:
        """Makes what `create` asks for, and fences off older runs."""
        table = self._there()
        if table is None:
            self._opening.create(columns.schema((*self.shape.key, *self.shape.fields)))
        elif missing := self._lacking(table):
            self._opening.add([dict(one) for one in missing])
        self._begin(visit)

    def _begin(self, visit: Visit) -> None:
        """A commit without rows: older runs can no longer write, and marks that nobody needs are dropped."""

        def began() -> CommitProperties:
            self._marks.fence(visit.epoch)
            return self._marks.begin(visit)

        while not self._said(began):
            pass  # somebody else was first: read again

    # --- write

    def write(self, batch: Batch) -> Outcome:
        """One commit. If the log has the batch, it is not written again."""
        if self._interrupted:
            raise Unavailable("UNAVAILABLE", "the run was asked to stop")
        attempt = self._attempts.setdefault(batch.id, 0)
        table = self._opening.newest()
        self._look(table)
        found = self._marks.fate(batch, attempt)
        if found is None:
            self._marks.fence(batch.epoch)
            found = self._commit(table, batch, attempt)
        if found["state"] == "void":
            if found["author"] != self._marks.author:
                raise Systemic("VOIDED", "another run has aborted this batch: this one may no longer write")
            self._attempts[batch.id] = attempt + 1  # aborted by our own `resolve`, its answer was lost
            raise Unavailable("VOIDED", "nothing of the batch was applied: it was aborted without an answer")
        del self._attempts[batch.id]
        return Outcome(WRITTEN)

    def _commit(self, table: DeltaTable, batch: Batch, attempt: int) -> Mark:
        """The mark of the batch, which is in the log then. An error of the commit is no proof of anything, so
        the log is read again."""
        properties = self._marks.mark(batch, attempt, "applied")
        try:
            self._apply(table, batch, properties)
        except Exception as problem:
            self._opening.close()
            if not is_clients(problem):
                raise
            if (bad := refused(problem)) is not None:
                raise bad from None
            if (found := self._after(batch, attempt)) is not None:
                return found
            raise self._failed(problem) from None
        self._look(table)
        found = self._marks.fate(batch, attempt)
        if found is None:  # nothing changed, so the client made no commit
            found = self._say(batch, attempt, "applied")
        return found

    def _after(self, batch: Batch, attempt: int) -> Mark | None:
        """What the log says now. Ambiguous if it cannot be read."""
        try:
            self._look(self._opening.newest())
        except TargetError:
            raise self._unanswered() from None
        return self._marks.fate(batch, attempt)

    def _failed(self, problem: Exception) -> TargetError:
        """A commit that is not in the log. One that lost against another will never be."""
        from deltalake.exceptions import CommitFailedError

        if isinstance(problem, CommitFailedError):
            return Unavailable("CONCURRENT_WRITE", f"somebody else wrote to {self.options.path} meanwhile")
        meant = self._opening.meant(problem)
        return meant if isinstance(meant, Systemic) else self._unanswered()

    def _unanswered(self) -> Ambiguous:
        return Ambiguous("NO_ANSWER", f"the store did not answer to a commit of {self.options.path}")

    def _apply(self, table: DeltaTable, batch: Batch, properties: CommitProperties) -> None:
        from deltalake import PostCommitHookProperties, write_deltalake

        try:
            path = batch.file(Layout("parquet"))
        except UnicodeEncodeError:
            raise Poisoned("NOT_UNICODE", "a text is not valid Unicode") from None
        said: dict[str, Any] = {
            "commit_properties": properties,
            "post_commithook_properties": PostCommitHookProperties(cleanup_expired_logs=False),
        }
        try:
            rows = self._duckdb.sql(self._rows(batch, str(path)))
            if batch.operation == "append":
                write_deltalake(table, rows, mode="append", schema_mode="merge", **said)
            else:
                self._merge(table, batch, rows, said)
            self._bytes += path.stat().st_size
        finally:
            path.unlink()

    @cached_property
    def _duckdb(self) -> duckdb.DuckDBPyConnection:
        """What reads files of rows. Times with a zone are in UTC."""
        import duckdb

        connection = duckdb.connect()
        connection.execute("SET TimeZone = 'UTC'")
        return connection

    def _rows(self, batch: Batch, path: str) -> str:
        """SQL of the rows of a file as the table has them; to merge, each key once."""
        fields = () if batch.operation == "delete" else self.shape.fields
        listed, file = columns.selected([*self.shape.key, *fields]), f"read_parquet({literal(path)})"
        if batch.operation == "append":
            return f"SELECT {listed} FROM {file}"
        keys = ", ".join(quoted(one.name) for one in self.shape.key)
        rows = f"SELECT row_number() OVER () AS {quoted(_ROW)}, {listed} FROM {file}"
        last = f"row_number() OVER (PARTITION BY {keys} ORDER BY {quoted(_ROW)} DESC) = 1"
        return f"SELECT * EXCLUDE ({quoted(_ROW)}) FROM ({rows}) QUALIFY {last}"

    def _merge(self, table: DeltaTable, batch: Batch, rows: Any, said: dict[str, Any]) -> None:
        same = " AND ".join(f"t.{quoted(one.name)} = s.{quoted(one.name)}" for one in self.shape.key)
        merge = table.merge(rows, predicate=same, source_alias="s", target_alias="t", **said)
        if batch.operation == "delete":
            merge.when_matched_delete().execute()
            return
        names = [(one, quoted(one.name)) for one in self.shape.fields]
        sets = {
            name: f"coalesce(s.{name}, t.{name})" if one.nulls == "keep" else f"s.{name}"
            for one, name in names
        }
        keys = {quoted(one.name): f"s.{quoted(one.name)}" for one in self.shape.key}
        if sets:
            merge = merge.when_matched_update(sets)
        merge.when_not_matched_insert(keys | {name: f"s.{name}" for _, name in names}).execute()

    def _say(self, batch: Batch, attempt: int, state: str) -> Mark:
        """A commit without rows that only says what became of a batch. Returns what the log then has."""
        while True:
            self._look(self._opening.newest())
            if (found := self._marks.fate(batch, attempt)) is not None:
                return found
            self._said(lambda: self._marks.mark(batch, attempt, state))

    def _said(self, properties: Callable[[], CommitProperties]) -> bool:
        """Make a commit without rows. False if another was first."""
        from deltalake.exceptions import CommitFailedError

        table = self._opening.newest()
        self._look(table)
        with self._opening.translated():
            try:
                table.create_write_transaction(
                    actions=[], mode="append", schema=table.schema(), commit_properties=properties()
                )
            except CommitFailedError:
                self._opening.close()
                return False
        return True

    # --- resolve

    def resolve(self, batch: Batch, handle: str | None, *, act: bool = True) -> Outcome:
        """What the log says of the batch. If it says nothing: write a void commit, so it is never applied.
        Without `act` the log is only read."""
        ours, attempt = batch.id in self._attempts, self._attempts.get(batch.id, 0)
        try:
            table = self._opening.newest()
        except Missing:
            return Outcome(UNKNOWN)
        self._look(table)
        while True:
            found = self._marks.fate(batch, attempt)
            if found is None and not self._marks.covers(self._opening.place, batch.epoch):
                return Outcome(UNKNOWN)
            if found is None and not act:
                return Outcome(NOT_APPLIED)
            found = found or self._say(batch, attempt, "void")
            if found["state"] == "applied":
                self._attempts.pop(batch.id, None)
                return Outcome(WRITTEN)
            if act and found["author"] == self._marks.author:
                self._attempts[batch.id] = attempt + 1
                return Outcome(NOT_APPLIED)
            if ours and act:
                raise Systemic("VOIDED", "another run has aborted this batch: this one may no longer write")
            attempt += 1

    # --- compare

    def differing(self, batch: Batch) -> Iterator[tuple[str, ...] | None]:
        """Reads the table: for `retl reconcile` and `retl state rebuild`, not for each run."""
        held = self._holding()
        return iter([None] * len(batch)) if held is None else held.differing(batch)

    def read(self, batch: Batch) -> Iterator[Mapping[str, Any] | None]:
        """Reads the columns of the sync."""
        try:
            table = self._opening.newest()
        except Missing:
            return iter([None] * len(batch))
        with self._opening.translated():
            return iter(looked_up(self.shape, table, batch))

    def scan(self) -> Iterator[tuple[str, ...]]:
        held = self._holding()
        return iter(()) if held is None else held.keys()

    def _holding(self) -> Holding | None:
        """What is there now; it is read again if the table has another version. None without a table."""
        try:
            table = self._opening.newest()
        except Missing:
            return None
        with self._opening.translated():
            return self._held.of(table.version(), lambda: Holding(self.shape, table))

    # --- preview, interrupt

    def preview(self, batch: Batch) -> bytes:
        """What is done, and the rows as JSON lines."""
        path = batch.file(Layout("ndjson"))
        try:
            return f"{batch.operation} {self.options.path}\n".encode() + path.read_bytes()
        finally:
            path.unlink()

    def interrupt(self) -> None:
        """End before the next commit: nothing of its batch is applied."""
        self._interrupted = True

    def close(self) -> None:
        self._held.close()
        self._opening.close()
        if "_duckdb" in vars(self):
            self._duckdb.close()
            del self._duckdb


def _check(shape: Shape) -> None:
    """DefinitionError for names that Delta takes for one."""
    names = [one.name for one in (*shape.key, *shape.fields)]
    if len({name.lower() for name in names}) < len(names):
        raise DefinitionError(
            "IDENTIFIER",
            f"names of columns must differ in more than their case: {', '.join(sorted(names))}",
            where=f"sync {shape.sync}",
        )
