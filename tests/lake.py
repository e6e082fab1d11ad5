"""Iceberg tables for the tests: a catalog in a folder, written by PyIceberg."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat, ManifestContent, ManifestWriterV2
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Operation
from pyiceberg.table.update.snapshot import _FastAppendFiles
from pyiceberg.typedef import Record

from retl.engine.workspace import Workspace
from retl.observe.signals import Stop
from retl.sources.api import Feed, Invocation, Snapshot
from retl.sources.iceberg import Iceberg, Lake
from retl.sources.iceberg import Table as Options

COLUMNS = {"id": pa.int64(), "name": pa.string(), "amount": pa.decimal128(12, 2)}


class Shop:
    """A SQL catalog with the namespace `shop` in a folder, and the source that reads it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.catalog = SqlCatalog(
            "lake", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/files"
        )
        self.catalog.create_namespace_if_not_exists("shop")

    @property
    def connection(self) -> dict[str, Any]:
        return {"catalog": {"type": "sql", "path": "catalog.db", "name": "lake"}}

    def table(self, name: str = "customers", schema: Any = None, **options: Any) -> Table:
        chosen = pa.schema(list(COLUMNS.items())) if schema is None else schema
        return self.catalog.create_table(f"shop.{name}", chosen, **options)

    def source(self, name: str = "customers", at: Any = None, **connection: Any) -> Iceberg:
        options = Options.model_validate({"table": f"shop.{name}"} | ({} if at is None else {"at": at}))
        return Iceberg(
            Lake.model_validate(self.connection | connection), options, Invocation(self.folder, {})
        )

    @contextmanager
    def opened(self, name: str = "customers", at: Any = None) -> Iterator[tuple[Workspace, Snapshot]]:
        run = self.folder / "run"
        run.mkdir(exist_ok=True)
        with Workspace(run, Stop()) as workspace, self.source(name, at).open(workspace) as snapshot:
            workspace.harden([])
            yield workspace, snapshot

    def read(
        self, name: str = "customers", at: Any = None, columns: Sequence[str] = ()
    ) -> list[tuple[Any, ...]]:
        """All rows, as DuckDB gives them, sorted by the first column."""
        with self.opened(name, at) as (workspace, snapshot):
            wanted = list(columns or snapshot.description.columns)
            return workspace.run(f"{snapshot.rows(wanted).sql} ORDER BY 1")

    def version(self, name: str = "customers", at: Any = None) -> str:
        with self.opened(name, at) as (_, snapshot):
            return snapshot.description.version

    def feed(self, after: str, name: str = "customers", key: Sequence[str] = ("id",)) -> Changes | str:
        with self.opened(name) as (workspace, snapshot):
            found = snapshot.feed(list(snapshot.description.columns), list(key), after)
            return Changes(workspace, found, len(key)) if isinstance(found, Feed) else found


class Changes:
    """What a feed said."""

    def __init__(self, workspace: Workspace, feed: Feed, key: int) -> None:
        self.rows = {row[:key]: row for row in workspace.run(feed.rows.sql)}
        self.read = len(workspace.run(feed.rows.sql))
        self.gone = set(workspace.run(feed.left.sql)) - self.rows.keys()
        self.total = feed.total


def rows(*made: tuple[Any, ...], schema: Any = None) -> pa.Table:
    chosen = pa.schema(list(COLUMNS.items())) if schema is None else schema
    names = chosen.names
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in made], schema=chosen)


def in_duckdb(table: pa.Table) -> list[tuple[Any, ...]]:
    return duckdb.from_arrow(table).order("1").fetchall()


_FILE_PATH = 2147483546  # the field of a delete file with the path of the data file


class _DeleteManifest(ManifestWriterV2):
    def content(self) -> ManifestContent:
        return ManifestContent.DELETES

    @property
    def _meta(self) -> dict[str, str]:
        return {**super()._meta, "content": "deletes"}


class _AddDeletes(_FastAppendFiles):
    """A commit that adds delete files, which PyIceberg itself does not write."""

    def new_manifest_writer(self, spec: Any) -> ManifestWriterV2:
        schema = self._transaction.table_metadata.schema()
        output = self.new_manifest_output()
        return _DeleteManifest(spec, schema, output, self._snapshot_id, self._compression)


def append_exactly(table: Table, made: pa.Table) -> None:
    """Append rows in a file that PyArrow wrote: PyIceberg writes NULL lists and maps of structs as empty ones."""
    before = {task.file.file_path for task in table.scan().plan_files()}
    table.append(made)
    (path,) = {task.file.file_path for task in table.scan().plan_files()} - before
    rewrite(path, made)


def rewrite(path: str, made: pa.Table, **options: Any) -> None:
    """Replace a data file behind the table's back."""
    pq.write_table(made, path.removeprefix("file://"), **options)


def the_file(table: Table) -> str:
    """The one data file of a table."""
    (task,) = table.scan().plan_files()
    return str(task.file.file_path)


def add_file(table: Table, path: str, records: int, like: DataFile | None = None, **arguments: Any) -> None:
    """Commit a file that is already written; by default one with deleted positions, in Parquet."""
    given: dict[str, Any] = {
        "content": DataFileContent.POSITION_DELETES,
        "file_format": FileFormat.PARQUET,
        "partition": Record() if like is None else like.partition,
        "file_size_in_bytes": 1000,
        "spec_id": 0 if like is None else like.spec_id,
        "key_metadata": None,
        "equality_ids": None,
    }
    with table.transaction() as transaction:
        file = DataFile.from_args(file_path=path, record_count=records, **given | arguments)
        file.spec_id = 0 if like is None else like.spec_id
        kind = _FastAppendFiles if file.content == DataFileContent.DATA else _AddDeletes
        kind(Operation.DELETE, transaction, table.io).append_data_file(file).commit()


def delete_positions(
    table: Table, positions: Mapping[str, Sequence[int]], like: DataFile | None = None
) -> None:
    """Delete rows of data files by their positions, as engines that merge on reading do."""
    path = f"{table.location()}/data/{secrets.token_hex(8)}-deletes.parquet"
    listed = sorted((file, at) for file, ats in positions.items() for at in ats)
    with table.io.new_output(path).create() as output:
        pq.write_table(pa.table({"file_path": [f for f, _ in listed], "pos": [p for _, p in listed]}), output)
    named = {_FILE_PATH: min(positions).encode()}, {_FILE_PATH: max(positions).encode()}
    add_file(table, path, len(listed), like, lower_bounds=named[0], upper_bounds=named[1])
