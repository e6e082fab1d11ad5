"""The rows of the ledger as frozen structs, and their form in a table.

The fields of a struct are the columns: `columns`, `packed` and `unpacked` are the whole mapping, the same
for SQLite and PostgreSQL. Nothing here does I/O.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, lru_cache
from typing import Any, Literal, TypeVar, cast, get_type_hints

from msgspec import Struct, field

from retl.destinations.batch import Kind, Mode, Outcome, RowResult

BatchStatus = Literal["open", "done", "split", "failed"]
Purpose = Literal["sync", "apply", "rollback", "reconcile", "repair", "erase", "resolve"]
Cell = str | int | float | bytes | None
R = TypeVar("R", bound=Struct)

ROWS_WRITTEN = ("inserted", "updated", "refreshed", "deleted")  # numbers of rows that a run wrote
_COLUMN = {"number": "batch_no", "first": "first_row", "last": "last_row", "user": "os_user"}


class RunStart(Struct, frozen=True):
    """What is known about a run before it reads anything."""

    run_id: str
    sync: str
    object: str
    purpose: Purpose
    environment: str | None
    correlation_id: str | None
    epoch: int
    started_at: datetime
    vars: Mapping[str, Any]
    fingerprint: Mapping[str, Any]
    source_identity: Mapping[str, Any]
    host: str
    pid: int
    user: str
    version: str
    options: Mapping[str, Any] = field(default_factory=dict)
    of_run: str | None = None
    approved_by: str | None = None


class RunRow(RunStart, frozen=True):
    """A whole run. `delta` is the file of its candidates, durable before its first write; `fields` are the
    target's fields that it writes, by operation."""

    status: str = "RUNNING"
    heartbeat_at: datetime | None = None
    finished_at: datetime | None = None
    counts: Mapping[str, Any] = field(default_factory=dict)
    phases: Mapping[str, Any] = field(default_factory=dict)
    guards: Sequence[Mapping[str, Any]] = ()
    error: Mapping[str, Any] | None = None
    source_version: str | None = None
    statistics: Mapping[str, Any] | None = None
    delta: str | None = None
    delta_rows: int | None = None
    distrusts: Mapping[str, Any] | None = None
    fields: Mapping[str, Sequence[str]] | None = None
    forgotten_at: datetime | None = None
    amends: Mapping[str, Sequence[str]] | None = None
    digest: str | None = None
    chain_id: str | None = None
    chain_no: int | None = None
    chain: str | None = None

    @property
    def seconds(self) -> float | None:
        """How long it took, by the clock of its phases: with the start of the process, as its summary says.
        None while it runs."""
        if self.finished_at is None:
            return None
        return sum(self.phases.values()) or (self.finished_at - self.started_at).total_seconds()

    @property
    def written(self) -> dict[str, int]:
        """How many rows it wrote, by what became of them; nothing is known of a run that died."""
        return {name: int(self.counts[name]) for name in ROWS_WRITTEN if self.counts.get(name)}

    @property
    def is_look(self) -> bool:
        """Whether it only compared."""
        return self.options.get("reconcile") in ("look", "sample")

    @property
    def drift(self) -> int:
        """What a reconcile found and did not repair, in keys."""
        written = sum(int(self.counts.get(name, 0)) for name in ("inserted", "updated"))
        return int(self.counts.get("reconcile", {}).get("drift", 0)) - written

    @property
    def edits(self) -> int:
        """How many keys of that drift others edited or removed: a strategy of `conflicts` keeps these."""
        found = self.counts.get("reconcile", {})
        return min(self.drift, sum(int(found.get(name) or 0) for name in ("edited", "missing")))


class RunEnd(Struct, frozen=True):
    """How a run ended; `error` and `guards` contain no row values."""

    run_id: str
    epoch: int
    status: str
    counts: Mapping[str, Any] = field(default_factory=dict)
    phases: Mapping[str, Any] = field(default_factory=dict)
    guards: Sequence[Mapping[str, Any]] = ()
    error: Mapping[str, Any] | None = None
    source_version: str | None = None
    statistics: Mapping[str, Any] | None = None  # by column, where `drift` is judged


class DeltaRow(Struct, frozen=True):
    """A run that is newer than the baseline's snapshot and changed the baseline: by its delta, or because it
    found that older entries no longer hold (`distrusts`: the fields of a Distrust)."""

    run_id: str
    epoch: int
    started_at: datetime
    status: str
    delta: str | None
    delta_rows: int | None
    fingerprint: Mapping[str, Any]
    distrusts: Mapping[str, Any] | None = None


class Delivered(Struct, frozen=True):
    """A run that has a delta, as `retl log` sees it. `fields`: those that it writes, by operation."""

    run_id: str
    sync: str
    object: str
    of_run: str | None
    started_at: datetime
    delta: str
    fields: Mapping[str, Sequence[str]] | None


class Pause(Struct, frozen=True):
    """A sync that does not run until somebody resumes it. `run_id`: the run that paused it."""

    sync: str
    since: datetime
    by: str
    reason: str
    run_id: str | None = None


class ErasureRow(Struct, frozen=True):
    """What was erased for one sync, on whose request and why; it has no key. `status`: open until it is
    finished, then erased, not_erasable (only here, and at the target by hand), continued (by a later one), or
    lifted. `proof`: what was done and found; while it is open, `pending` has the new digests of files that
    are replaced."""

    erasure_id: str
    sync: str
    object: str
    run_id: str | None
    requested_at: datetime
    requested_by: str
    reason: str
    status: str
    proof: Mapping[str, Any]
    finished_at: datetime | None = None


class RunKey(Struct, frozen=True):
    """Which run it is: its sync, its object and its place in their order."""

    run_id: str
    sync: str
    object: str
    epoch: int


class BatchRow(Struct, frozen=True):
    """Rows `first` to `last` (included, positions in the change set) under one operation. `intent`: the
    moment before the first send, if the batch has an idempotency key."""

    batch_id: str
    number: int
    operation: Mode
    first: int
    last: int
    status: BatchStatus = "open"
    outcome: Outcome | None = None
    handle: str | None = None
    idempotency_key: str | None = None
    intent: Mapping[str, Any] | None = None
    attempts: int = 0
    duration_ms: int | None = None
    error: str | None = None
    answered_at: datetime | None = None
    http_status: int | None = None


class Acknowledgement(Struct, frozen=True):
    """The outcome of one batch; with an `error` (a CODE, no row values) it is recorded as failed. Without
    `answered_at` the target answered just now, by the ledger's clock."""

    batch_id: str
    outcome: Outcome
    attempts: int = 1
    duration_ms: int | None = None
    error: str | None = None
    answered_at: datetime | None = None
    http_status: int | None = None


class Checkpoint(Struct, frozen=True):
    """What the next run of this sync on this object starts from.

    `snapshot` is the file of the compacted baseline, with every delta up to `snapshot_epoch`. `read_rows` are
    those of the last successful run. `newest` is the newest applied batch as (run id, batch id). `others`:
    other syncs that write the same object, and the epoch of the last run of each that this sync knows.
    `scope`: the condition under which a key that left the mart was deleted; None: all were.
    """

    sync: str
    object: str
    run_id: str
    epoch: int
    snapshot: str | None = None
    snapshot_epoch: int = 0
    baseline_rows: int = 0
    read_rows: int = 0
    watermark: str | None = None
    fingerprints: Mapping[str, Any] = field(default_factory=dict)
    newest: tuple[str, str] | None = None
    source_version: str | None = None
    others: Mapping[str, int] = field(default_factory=dict)
    updated_at: datetime | None = None  # set from the ledger's clock when it is recorded
    scope: str | None = None


class RejectRow(Struct, frozen=True):
    """One reject. `attempts`: runs that reported it since it was opened. `payload`: the mart's row as
    JSON, if the sync keeps it. `kept_since`: when this unchanged row was first kept."""

    sync: str
    key: str
    row_id: str
    hash: str | None
    stage: str
    code: str
    reason: str | None
    run_id: str | None
    first_seen: datetime
    last_seen: datetime
    attempts: int
    state: str  # open | applied | withdrawn | dismissed
    payload: str | None = None
    kept_since: datetime | None = None


class Reject(Struct, frozen=True):
    """A row rejected now; `hash` in hex. Without a usable key, `key` is '' and `row_id` names the row."""

    key: str
    hash: str | None
    stage: str
    code: str
    reason: str | None = None
    row_id: str = ""
    payload: str | None = None


class RejectChanges(Struct, frozen=True):
    """Rejects of a run, and closed rejects: (key, row_id, `applied` or `withdrawn`). Payloads older than
    `retain` seconds are deleted; None: all of them, since the sync keeps none."""

    opened: Sequence[Reject] = ()
    closed: Sequence[tuple[str, str, str]] = ()
    retain: float | None = None


class FollowUpRow(Struct, frozen=True):
    """A request that follows a run. `facts`: the run's values that it may have. `doubts`: how often it was
    sent without a known answer. `tried_by`: the run that sent it last."""

    run_id: str
    request: str
    sync: str
    facts: Mapping[str, Any]
    due_at: datetime
    state: str = "open"  # open | done | refused | dropped
    doubts: int = 0
    attempts: int = 0
    tried_by: str | None = None
    tried_at: datetime | None = None
    http_status: int | None = None
    error: str | None = None


def columns(kind: type[Struct]) -> tuple[str, ...]:
    """The columns of a row type, in the order of its fields."""
    return tuple(_COLUMN.get(name, name) for name in kind.__struct_fields__)


def packed(row: Any) -> tuple[Cell, ...]:
    """A row's values as cells: times and structures become text that sorts and reads back exactly."""
    return tuple(cell(getattr(row, name)) for name in row.__struct_fields__)


def unpacked(kind: type[R], cells: Sequence[Any]) -> R:
    """The inverse of `packed`."""
    readers: tuple[Any, ...] = _readers(cast(Any, kind))
    return kind(*(None if c is None else read(c) for read, c in zip(readers, cells, strict=True)))


def cell(value: Any) -> Cell:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds")
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Outcome):
        return _outcome_cell(value) if value.exceptions else _uniform(value.default)
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    return value  # type: ignore[no-any-return]


@cache
def _uniform(default: RowResult) -> Cell:
    """Cached: most batches have one of very few outcomes."""
    return _outcome_cell(Outcome(default))


def _outcome_cell(value: Outcome) -> Cell:
    exceptions = {str(row): _compact(result) for row, result in value.exceptions.items()}
    return cell({"default": _compact(value.default), "exceptions": exceptions})


def outcome(text: str) -> Outcome:
    """`{"default": {"kind": …}, "exceptions": {"3": {"kind": …, "code": …}}}` → Outcome."""
    return _short_outcome(text) if len(text) < 100 else _outcome(text)


@lru_cache(1000)
def _short_outcome(text: str) -> Outcome:
    """Cached: a run may have ten thousand batches with the same text."""
    return _outcome(text)


def _outcome(text: str) -> Outcome:
    value = json.loads(text)
    exceptions = {int(row): _result(result) for row, result in value["exceptions"].items()}
    return Outcome(_result(value["default"]), exceptions)


def _compact(result: RowResult) -> dict[str, Any]:
    """Without the default values: with many exceptions they would be most of the text."""
    known = {"kind": result.kind.value, "code": result.code, "reason": result.reason, "ref": result.ref}
    unusual = {name: False for name in ("settled", "ours") if not getattr(result, name)}
    return {k: v for k, v in known.items() if v is not None} | unusual


def _result(value: dict[str, Any]) -> RowResult:
    return RowResult(**{**value, "kind": Kind(value["kind"])})


@cache
def _readers(kind: Any) -> tuple[Any, ...]:
    """Per field, the function from a cell (not NULL) to its value."""
    hints = get_type_hints(kind)
    return tuple(_reader(str(hints[name])) for name in kind.__struct_fields__)


def _reader(hint: str) -> Any:
    if "tuple[" in hint:
        return lambda text: tuple(json.loads(text))
    if "Mapping[" in hint or "Sequence[" in hint:
        return json.loads
    if "datetime" in hint:
        return datetime.fromisoformat
    return outcome if "Outcome" in hint else (lambda value: value)
