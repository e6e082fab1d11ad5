"""One state of a table: a snapshot and the schema in which it is read. Its text is the source's version."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Self

from msgspec import Struct

from retl.errors import SourceError
from retl.project.validation import did_you_mean

if TYPE_CHECKING:
    from pyiceberg.schema import Schema
    from pyiceberg.table.metadata import TableMetadata
    from pyiceberg.table.snapshots import Snapshot

_NAME_MAPPING = "schema.name-mapping.default"


class State(Struct, frozen=True):
    """`snapshot` is None for a table without rows. `mapping`: what names the columns of files without ids."""

    table: str  # the table's own id
    snapshot: int | None
    schema: int
    mapping: str

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """None if this is no state of ours."""
        parts = text.split(":")
        if len(parts) != 5 or parts[0] != "iceberg":
            return None
        return cls(parts[1], int(parts[2]) if parts[2] else None, int(parts[3]), parts[4])

    def __str__(self) -> str:
        snapshot = "" if self.snapshot is None else self.snapshot
        return f"iceberg:{self.table}:{snapshot}:{self.schema}:{self.mapping}"

    def schema_in(self, metadata: TableMetadata) -> Schema | None:
        """The schema in which this state is read, if the table still has it."""
        return next((one for one in metadata.schemas if one.schema_id == self.schema), None)


def pin(metadata: TableMetadata, at: str | None, table: str) -> State:
    """The state that is asked for. SourceError MART_MISSING if there is none."""
    mapping = metadata.properties.get(_NAME_MAPPING, "")
    digest = sha256(mapping.encode()).hexdigest()[:12] if mapping else ""
    ref = metadata.refs.get(at) if at is not None else None
    if at is None:
        snapshot, today = metadata.current_snapshot(), True
    elif ref is not None:
        snapshot, today = metadata.snapshot_by_id(ref.snapshot_id), ref.snapshot_ref_type == "branch"
    else:
        snapshot, today = _found(metadata, at, table), False
    schema = metadata.current_schema_id
    if snapshot is not None and not today and snapshot.schema_id is not None:
        schema = snapshot.schema_id
    return State(str(metadata.table_uuid), None if snapshot is None else snapshot.snapshot_id, schema, digest)


def _found(metadata: TableMetadata, at: str, table: str) -> Snapshot:
    """The snapshot with this id, or the one that was current at this time."""
    if at.isdecimal():
        if (snapshot := metadata.snapshot_by_id(int(at))) is not None:
            return snapshot
        raise _no_state(table, f"no snapshot {at}", "it may have expired")
    try:
        moment = datetime.fromisoformat(at)
    except ValueError:
        hint = did_you_mean(at, metadata.refs) or "give a snapshot's id, a tag, a branch or a time"
        raise _no_state(table, f"no tag or branch {at!r}", hint) from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    before = [one for one in metadata.snapshot_log if one.timestamp_ms <= moment.timestamp() * 1000]
    snapshot = metadata.snapshot_by_id(before[-1].snapshot_id) if before else None
    if snapshot is None:
        raise _no_state(table, f"no snapshot of {at}", "it may have expired, or the table is younger")
    return snapshot


def _no_state(table: str, what: str, hint: str) -> SourceError:
    return SourceError("MART_MISSING", f"{table} has {what}", hint=hint)


def changed(former: State, now: State, metadata: TableMetadata, columns: Iterable[str]) -> str | None:
    """Why the files of two states cannot be compared in these columns; None if they can."""
    if former.table != now.table:
        return "another table has this name now"
    if former.mapping != now.mapping:
        return "the names of columns in files without ids were changed"
    old, new = former.schema_in(metadata), now.schema_in(metadata)
    if old is None or new is None:
        return "the schema of the last run is not known any more"
    before = {field.name: field for field in old.fields}
    after = {field.name: field for field in new.fields}
    for name in columns:
        one, other = before.get(name), after[name]
        same = one is not None and (one.field_id, one.field_type, one.initial_default) == (
            *(other.field_id, other.field_type),
            other.initial_default,
        )
        if not same:
            return f"column {name} was changed"
    if former.snapshot is not None and metadata.snapshot_by_id(former.snapshot) is None:
        return "the snapshot of the last run has expired"
    return None
