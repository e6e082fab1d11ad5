"""Iceberg: tables of a lakehouse, from a catalog (REST, SQL, Glue, Hive; Nessie by its REST endpoint).

A run reads one snapshot and keeps to it, also if others commit meanwhile. Files are read one after another,
piece by piece, so memory does not grow with the table. Rows that position deletes removed are not read.
Renamed, added, dropped and widened columns, changed partitions, and files without field ids (with a name
mapping) are read as the table's schema says.

`at` reads another state: a snapshot's id, a tag, a branch, or a time (UTC unless it says otherwise). A branch
is read in the table's schema of today, every other state in the schema of its snapshot.

`changes: cdf` reads only files that came, went or lost rows since the last run, whatever did that: append,
upsert, overwrite, delete, compaction, rollback, or a branch that was moved. A run reads everything if the
snapshot of the last run has expired, if another table has the name now, or if columns of the sync were
changed.

Refused by name before a row is read: equality deletes, deletion vectors, files that are not Parquet,
encrypted files, and columns of types that DuckDB cannot hold exactly (variant, geometry, nanoseconds with a
time zone).

Not tried against a real server: Glue, Hive, Nessie and other REST catalogs than that of SeaweedFS, and
storage in Google Cloud or Azure. Glue needs `pyiceberg[glue]`, Hive `pyiceberg[hive]`, beside the extra.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from datetime import date
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Annotated

import duckdb
from pydantic import BeforeValidator, Field, field_validator

from retl.engine.sql_text import Query
from retl.engine.sql_text import columns as described
from retl.engine.workspace import NAME, Workspace
from retl.errors import SourceError
from retl.model import Definition
from retl.net.waiting import within
from retl.observe import redact
from retl.observe.signals import Stop
from retl.sources.api import Description, Feed, Since, Snapshot, Source, needs, unsupported
from retl.sources.iceberg.calls import Gone, explained, failure
from retl.sources.iceberg.catalogs import Lake
from retl.sources.iceberg.state import State, changed, pin
from retl.values.sql import quoted, split

if TYPE_CHECKING:
    from pyiceberg.io import FileIO
    from pyiceberg.schema import Schema
    from pyiceberg.table import FileScanTask
    from pyiceberg.table import Table as IcebergTable
    from pyiceberg.table.metadata import TableMetadata

    from retl.sources.streams import Stream

_CATALOG = 120.0  # seconds for all that is asked of a catalog
_PLANNING = 1800.0  # seconds to read the lists of files
_SECRET = re.compile(r"(key|token|secret|password|credential)", re.IGNORECASE)
_numbers = count(1)  # of relations: a run may read several tables


def _text(at: object) -> object:
    """A snapshot's id is a number in YAML, and a time may be one of its dates."""
    if isinstance(at, date):
        return at.isoformat()
    return str(at) if isinstance(at, int) and not isinstance(at, bool) else at


class Table(Definition):
    """A table of the catalog, such as `analytics.customers`."""

    table: str = Field(description="Namespace and name, such as `analytics.customers`.")
    at: Annotated[str, BeforeValidator(_text, json_schema_input_type=str | int)] | None = Field(
        None, description="A snapshot's id, a tag, a branch or a time; default: the table as it is now."
    )

    @field_validator("table")
    @classmethod
    def _named(cls, table: str) -> str:
        if len(split(table)) < 2:
            raise ValueError("a table is named with its namespace, such as analytics.customers")
        return table


class Iceberg(Source[Table]):
    """A table of an Iceberg catalog."""

    Connection = Lake
    Options = Table
    changes = frozenset({"all", "cdf", "hash", "watermark"})
    tells = True
    evidence = (
        "random histories, every pair of versions; the REST catalog and S3 of SeaweedFS; SQL catalogs in"
        " SQLite and PostgreSQL; tables by PyIceberg and by DuckDB 1.5 (position deletes, updates, merges)"
    )

    @property
    def label(self) -> str:
        return self.options.table

    @property
    def identity(self) -> dict[str, str]:
        named = self.options.model_dump(include={"table", "at"}, exclude_none=True)
        return {"type": "iceberg", "catalog": self.connection.catalog.place, **named}

    def open(self, workspace: Workspace, *, wait: bool = True) -> Snapshot:
        with needs("lake"):
            import pyarrow  # type: ignore[import-untyped]  # noqa: F401
            import pyiceberg.io.pyarrow  # noqa: F401
        with explained(f"table {self.options.table}"):
            table = within(workspace.stop, _CATALOG, self._load)
            self._trust(table.io)
            state = pin(table.metadata, self.options.at, f"table {self.options.table}")
            return Pinned(f"table {self.options.table}", table.metadata, table.io, state, workspace)

    def version(self, stop: Stop) -> str:
        name = f"table {self.options.table}"
        with needs("lake"), explained(name):
            return str(pin(within(stop, _CATALOG, self._load).metadata, self.options.at, name))

    def _load(self) -> IcebergTable:
        catalog = self.connection.open(self.invocation.folder)
        table: IcebergTable = catalog.load_table(tuple(split(self.options.table)))
        return table

    def _trust(self, io: FileIO) -> None:
        """The catalog names the storage and hands out its keys. SourceError if it is not encrypted."""
        redact.register_brief(*(str(text) for name, text in io.properties.items() if _SECRET.search(name)))
        try:
            self.connection.require_encryption(str(io.properties.get("s3.endpoint") or "https://"))
        except ValueError as problem:
            raise SourceError("MART_UNREADABLE", f"the catalog names a storage: {problem}") from None


class Pinned(Snapshot):
    """One state of a table; commits of others do not change it."""

    def __init__(
        self, table: str, metadata: TableMetadata, io: FileIO, state: State, workspace: Workspace
    ) -> None:
        self._table, self._metadata, self._io = table, metadata, io
        self._state, self._workspace = state, workspace
        self._streams: dict[str, Stream] = {}
        self._tables: list[str] = []
        schema = state.schema_in(metadata)
        assert schema is not None, "a snapshot's schema is in the metadata"
        self._schema = schema
        self._tasks = self._planned(state)
        self.description = Description(self._columns(), str(state))

    def _planned(self, state: State) -> list[FileScanTask]:
        from retl.sources.iceberg.planned import plan

        def call() -> list[FileScanTask]:
            return plan(self._metadata, self._io, state.snapshot, self._table)

        return within(self._workspace.stop, _PLANNING, call)

    def _columns(self) -> dict[str, str]:
        """The columns and their DuckDB types."""
        names = [field.name for field in self._schema.fields]
        folded = Counter(name.lower() for name in names)
        if alike := [name for name in names if folded[name.lower()] > 1]:
            feature = f"columns that differ only in upper and lower case ({', '.join(alike)})"
            raise unsupported(self._table, feature, "rename one of them")
        relation = self._stream([], names)
        try:
            return described(self._workspace, Query(f"FROM {quoted(relation)}", {}, self._table))
        finally:
            self._end(relation)

    def rows(self, columns: Sequence[str], since: Since | None = None) -> Query:
        relation = self._stream(self._tasks, columns)
        return Query(f"SELECT {_listed(columns)} FROM {quoted(relation)}", {}, self._table)

    def feed(self, columns: Sequence[str], key: Sequence[str], after: str) -> Feed | str:
        from retl.sources.iceberg.planned import part

        former = State.parse(after)
        if former is None:
            return "the last run read another source"
        if why := changed(former, self._state, self._metadata, [*columns, *key]):
            return why
        try:
            with explained(self._table):
                old = self._planned(former)
            before, now = Counter(map(part, old)), Counter(map(part, self._tasks))
            left = self._copied([one for one in old if now[part(one)] != before[part(one)]], key)
        except SourceError as problem:
            if problem.code == "SOURCE_UNSUPPORTED" or isinstance(problem, Gone):
                return f"the state of the last run cannot be read any more: {problem.message}"
            raise
        came = [one for one in self._tasks if now[part(one)] != before[part(one)]]
        return Feed(self._copied(came, columns), left, self._total())

    def _total(self) -> int:
        """The number of rows; only delete files are read."""
        from retl.sources.iceberg.planned import Deleted

        with explained(self._table, may_quote=True):
            return within(self._workspace.stop, _PLANNING, lambda: Deleted(self._io).left(self._tasks))

    def _only(self, columns: Sequence[str]) -> Schema:
        """The schema of these columns, in their order."""
        from pyiceberg.schema import Schema

        fields = {field.name: field for field in self._schema.fields}
        return Schema(*(fields[name] for name in dict.fromkeys(columns)))

    def _stream(self, tasks: Sequence[FileScanTask], columns: Sequence[str]) -> str:
        """The name of a relation with the rows of these files, which can be read once."""
        from retl.sources.iceberg.planned import require_exact
        from retl.sources.iceberg.reading import Files, arrow_schema
        from retl.sources.streams import Stream

        files = Files(self._table, self._metadata, self._io, tasks, self._only(columns))
        if tasks:
            require_exact(files.schema, self._table)
        failed = partial(failure, table=self._table, may_quote=True)
        stream = Stream(arrow_schema(files.schema), files.batches, self._workspace.stop, failed)
        relation = f"retl iceberg {next(_numbers)}"
        self._streams[relation] = stream
        self._workspace.register(relation, stream.reader)
        return relation

    def _end(self, relation: str) -> Stream:
        stream = self._streams.pop(relation)
        stream.close()
        self._workspace.con.unregister(relation)
        return stream

    def _copied(self, tasks: Sequence[FileScanTask], columns: Sequence[str]) -> Query:
        """The rows of these files, read now into a table of the workspace."""
        relation = self._stream(tasks, columns)
        table = f"{NAME}.main.{quoted(f'{relation} rows')}"
        self._tables.append(table)
        try:
            self._workspace.run(f"CREATE TABLE {table} AS SELECT {_listed(columns)} FROM {quoted(relation)}")
        except duckdb.Error as problem:
            raise self._streams[relation].problem or failure(problem, self._table, may_quote=True) from None
        finally:
            self._end(relation)
        return Query(f"SELECT {_listed(columns)} FROM {table}", {}, self._table)

    def close(self) -> None:
        problems = [stream.problem for stream in map(self._end, list(self._streams)) if stream.problem]
        for table in self._tables:
            self._workspace.run(f"DROP TABLE IF EXISTS {table}")
        self._tables = []
        if problems:  # DuckDB passed on only that there was one
            raise problems[0]


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(map(quoted, columns))
