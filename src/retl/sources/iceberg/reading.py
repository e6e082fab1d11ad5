"""The rows of planned files as one Arrow stream, in the columns of a schema of the table.

Files are read one after another and a row group at a time, so memory does not grow with the table or its
files. PyIceberg maps
fields by id, follows renames and widens types; where it loses a NULL, this puts it back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from msgspec import Struct
from pyiceberg.io.pyarrow import (
    ArrowAccessor,
    ArrowProjectionVisitor,
    pyarrow_to_schema,
    schema_to_pyarrow,
)
from pyiceberg.schema import Schema, prune_columns, visit_with_partner
from pyiceberg.table import FileScanTask
from pyiceberg.transforms import IdentityTransform
from pyiceberg.types import ListType, MapType, TimestampNanoType

from retl.errors import SourceError
from retl.sources.api import unsupported
from retl.sources.iceberg.planned import Deleted

if TYPE_CHECKING:
    from pyiceberg.io import FileIO
    from pyiceberg.table.metadata import TableMetadata

_ROWS = 65_536  # of a batch


class Files(Struct, frozen=True):
    """Files of one table and the columns that are wanted of them."""

    table: str  # for messages
    metadata: TableMetadata
    io: FileIO
    tasks: Sequence[FileScanTask]
    schema: Schema

    def batches(self) -> Iterator[Any]:
        """The rows that are not deleted, as record batches of one Arrow schema."""
        deleted = Deleted(self.io)
        for task in self.tasks:
            with self.io.new_input(task.file.file_path).open() as opened:
                yield from self._of(task, opened, deleted)

    def _of(self, task: FileScanTask, opened: Any, deleted: Deleted) -> Iterator[Any]:
        file = pq.ParquetFile(opened, pre_buffer=True, coerce_int96_timestamp_unit="us")
        if file.metadata.num_rows != task.file.record_count:
            message = f"{self.table}: a data file has not the number of rows that the table says it has"
            raise SourceError(
                "MART_UNREADABLE", message, hint="the table is damaged: repair it where it is written"
            )
        project = self._projection(task, file.schema_arrow)
        positions = deleted.positions(task) if task.delete_files else None
        first = 0
        for group in range(file.num_row_groups):
            for batch in file.iter_batches(_ROWS, row_groups=[group], columns=project.read):
                here, first = first, first + batch.num_rows
                if positions is not None:
                    batch = _without(batch, positions, here)
                if batch.num_rows:
                    yield project(batch)

    def _projection(self, task: FileScanTask, physical: Any) -> Projection:
        mapping = self.metadata.name_mapping()
        if mapping is None and not _has_ids(physical):
            hint = "set the table's property schema.name-mapping.default"
            raise unsupported(self.table, "files without field ids and no name mapping", hint)
        held = pyarrow_to_schema(physical, mapping, True, self.metadata.format_version)
        leaves = {
            number
            for number in self.schema.field_ids
            if not isinstance(self.schema.find_type(number), ListType | MapType)
        }
        held = prune_columns(held, leaves, select_full_types=False)
        self._require_exact_times(physical, held)
        spec = self.metadata.specs().get(task.file.spec_id)
        missing = {
            field.source_id: value
            for at, field in enumerate(spec.fields if spec else ())
            if isinstance(field.transform, IdentityTransform)
            and field.source_id not in held.field_ids
            and (value := task.file.partition[at]) is not None
        }
        return Projection(self.schema, held, missing)

    def _require_exact_times(self, physical: Any, held: Schema) -> None:
        """Nanoseconds in a file are cut off where the table has microseconds."""
        nano = any(
            isinstance(self.schema.find_type(number), TimestampNanoType) for number in self.schema.field_ids
        )
        for field in held.fields:
            if not nano and "timestamp[ns" in str(physical.field(field.name).type):
                hint = "write the files with microseconds, or leave the column out of the contract"
                raise unsupported(self.table, f"files with nanoseconds in column {field.name}", hint)


class Projection:
    """Batches of a file in the columns of the table."""

    def __init__(self, schema: Schema, held: Schema, missing: dict[int, Any]) -> None:
        """`missing`: fields that are not in the file → the value of its partition."""
        self.read = [field.name for field in held.fields]
        self._schema = schema
        self._arrow = arrow_schema(schema)
        self._accessor = ArrowAccessor(held)
        self._visitor = _Exact(held, projected_missing_fields=missing, allow_timestamp_tz_mismatch=True)

    def __call__(self, batch: Any) -> Any:
        rows = visit_with_partner(self._schema, batch, self._visitor, self._accessor)
        return pa.RecordBatch.from_struct_array(rows).cast(self._arrow)


class _Exact(ArrowProjectionVisitor):
    """PyIceberg makes an empty list or map of a NULL one if its values are structs; here it stays NULL."""

    def list(self, list_type: Any, list_array: Any, value_array: Any) -> Any:
        return _nulls(list_array, super().list(list_type, list_array, value_array))

    def map(self, map_type: Any, map_array: Any, key_result: Any, value_result: Any) -> Any:
        return _nulls(map_array, super().map(map_type, map_array, key_result, value_result))


def _nulls(before: Any, after: Any) -> Any:
    if after is None or not before.null_count:
        return after
    return pc.if_else(before.is_valid(), after, pa.scalar(None, after.type))


def arrow_schema(schema: Schema) -> Any:
    """The types in which rows reach DuckDB."""
    return schema_to_pyarrow(schema, include_field_ids=False)


def _has_ids(physical: Any) -> bool:
    return any(b"PARQUET:field_id" in (field.metadata or {}) for field in physical)


def _without(batch: Any, positions: Any, first: int) -> Any:
    """The batch, whose first row has this position in its file, without the rows at `positions`."""
    inside = pc.and_(pc.greater_equal(positions, first), pc.less(positions, first + batch.num_rows))
    gone = pc.subtract(positions.filter(inside), first)
    if not len(gone):
        return batch
    rows = pa.array(range(batch.num_rows), pa.int64())
    return batch.filter(pc.invert(pc.is_in(rows, value_set=gone)))
