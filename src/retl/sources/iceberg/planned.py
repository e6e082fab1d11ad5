"""The files of one snapshot, and what of them cannot be read exactly.

A file with the delete files that apply to it is the unit of reading and of comparing: two snapshots that have
it in common have its rows in common. What the reader does not know is refused here, before a row is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from pyiceberg import types as iceberg
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat, ManifestContent
from pyiceberg.schema import Schema
from pyiceberg.table import DataScan, FileScanTask

from retl.sources.api import unsupported

if TYPE_CHECKING:
    from pyiceberg.io import FileIO
    from pyiceberg.table.metadata import TableMetadata

_COMPACT = "rewrite the table's files with the engine that writes it (compaction), then run again"
_NESTED = (iceberg.StructType, iceberg.ListType, iceberg.MapType)
_EXACT = (
    *(iceberg.BooleanType, iceberg.IntegerType, iceberg.LongType, iceberg.FloatType, iceberg.DoubleType),
    *(
        iceberg.DecimalType,
        iceberg.DateType,
        iceberg.TimeType,
        iceberg.TimestampType,
        iceberg.TimestamptzType,
    ),
    *(iceberg.StringType, iceberg.UUIDType, iceberg.FixedType, iceberg.BinaryType, iceberg.TimestampNanoType),
)

Part = tuple[str, ...]  # the path of a data file, then those of its delete files


def plan(metadata: TableMetadata, io: FileIO, snapshot_id: int | None, table: str) -> list[FileScanTask]:
    """The data files of a snapshot, each with its delete files. SourceError SOURCE_UNSUPPORTED."""
    if snapshot_id is None:
        return []
    snapshot = metadata.snapshot_by_id(snapshot_id)
    assert snapshot is not None, "a snapshot that is planned is in the metadata"
    for manifest in snapshot.manifests(io):
        if manifest.content == ManifestContent.DELETES:
            for entry in manifest.fetch_manifest_entry(io, discard_deleted=True):
                _require_known_deletes(entry.data_file, table)
    tasks = list(DataScan(metadata, io, snapshot_id=snapshot_id).plan_files())
    for task in tasks:
        if task.file.file_format != FileFormat.PARQUET:
            raise unsupported(table, f"data files in {task.file.file_format.value} format", _COMPACT)
        _require_plain(task.file, table)
    return tasks


def part(task: FileScanTask) -> Part:
    """What tells the rows of a file from those of others, and from its rows before more were deleted."""
    return (task.file.file_path, *sorted(one.file_path for one in task.delete_files))


def require_exact(schema: Schema, table: str) -> None:
    """SourceError SOURCE_UNSUPPORTED for the first column of a type that does not reach DuckDB unchanged."""
    for number in sorted(schema.field_ids):
        field = schema.find_field(number)
        if not isinstance(field.field_type, _EXACT + _NESTED):
            name = schema.find_column_name(number)
            hint = "leave the column out: name the others in the contract"
            raise unsupported(table, f"a column of type {field.field_type} ({name})", hint)


def _require_known_deletes(file: DataFile, table: str) -> None:
    if file.content == DataFileContent.EQUALITY_DELETES:
        raise unsupported(table, "equality deletes", _COMPACT)
    if file.file_format == FileFormat.PUFFIN:
        raise unsupported(table, "deletion vectors", _COMPACT)
    if file.file_format != FileFormat.PARQUET:
        raise unsupported(table, f"position deletes in {file.file_format.value} format", _COMPACT)
    _require_plain(file, table)


def _require_plain(file: DataFile, table: str) -> None:
    if file.key_metadata is not None:
        raise unsupported(table, "encrypted files", "read it with an engine that has its keys")


class Deleted:
    """The positions of deleted rows; each delete file is read once."""

    def __init__(self, io: FileIO) -> None:
        self._io = io
        self._read: dict[str, dict[str, Any]] = {}

    def positions(self, task: FileScanTask) -> Any:
        """The positions that are deleted in a data file, each once, as an Arrow array of int64."""
        found = [self._of(file.file_path).get(task.file.file_path) for file in task.delete_files]
        arrays = [array for array in found if array is not None]
        return pc.unique(pa.chunked_array(arrays, pa.int64()))

    def left(self, tasks: Sequence[FileScanTask]) -> int:
        """The number of rows in these files that are not deleted."""
        return sum(task.file.record_count - self._within(task) for task in tasks)

    def _within(self, task: FileScanTask) -> int:
        if not task.delete_files:
            return 0
        positions = self.positions(task)
        return len(pc.drop_null(positions.filter(pc.less(positions, task.file.record_count))))

    def _of(self, path: str) -> dict[str, Any]:
        """Data file → positions, as one delete file has them."""
        if path not in self._read:
            with self._io.new_input(path).open() as file:
                table = pq.read_table(file, columns=["file_path", "pos"])
            table = table.set_column(0, "file_path", table["file_path"].cast(pa.large_string()))
            table = table.sort_by("file_path").combine_chunks()
            found, start = dict[str, Any](), 0
            for one in pc.value_counts(table["file_path"]).to_pylist():
                found[one["values"]] = table["pos"].slice(start, one["counts"]).combine_chunks()
                start += one["counts"]
            self._read[path] = found
        return self._read[path]
