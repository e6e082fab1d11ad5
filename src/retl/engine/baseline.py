"""What the target holds as far as it confirmed: base ⊕ parts, computed on reading.

Every run leaves a part (its candidates) and acknowledgements (what became of them). The baseline is
the base overlaid by every run's part under that run's acknowledgements, newest wins. Commit and
recovery are therefore the same reading, and nobody ever edits a baseline; `compact` only writes the
same relation as a new base.

It says three things of a key: confirmed (a hash), unknown (hash NULL: intended and never
acknowledged, or an answer that never came), or nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from retl.destinations.batch import UNKNOWN, Kind, Mode, Outcome, RowResult
from retl.engine.workspace import RUN_FILE, Workspace
from retl.values.sql import literal

COMPACT_PAST = 0.2  # of the base's rows standing in parts
COMPACT_LAYERS = 16  # or so many parts, whatever their size


UNANSWERED = Outcome(UNKNOWN)


class Acknowledged(Protocol):
    """A batch as the ledger remembers it: `outcome` is None while no answer is known."""

    @property
    def operation(self) -> Mode: ...
    @property
    def first(self) -> int: ...
    @property
    def last(self) -> int: ...
    @property
    def status(self) -> str: ...
    @property
    def outcome(self) -> Outcome | None: ...


@dataclass(frozen=True)
class Layer:
    """One run's part and what is known of its batches; `at` is when the run began."""

    path: Path
    at: datetime
    batches: Sequence[Acknowledged]


def lay(workspace: Workspace, base: Path | None, layers: Sequence[Layer]) -> int:
    """Make the workspace view `baseline` (key, hash, owned, ref, confirmed_at) and return its number of rows.

    A batch without an answer makes its rows unknown; rows no batch covers were never attempted and
    change nothing; a refused row leaves what was there. A first part whose answers are all alike is read
    where it lies, as a base is.
    """
    workspace.run(
        "CREATE OR REPLACE TABLE overlay (key VARCHAR, gone BOOLEAN, hash BLOB, owned BOOLEAN,"
        " ref VARCHAR, confirmed_at TIMESTAMPTZ)"
    )
    bottom = f"read_parquet({literal(str(base))})" if base is not None else None
    for layer in layers:
        part = f"read_parquet({literal(str(layer.path))})"
        effects = _effects(answered(workspace, part, layer.batches), layer.at.isoformat())
        if bottom is None and layer is layers[0] and alike(layer.batches):
            bottom = f"({effects}) WHERE NOT gone"
            continue
        workspace.run(f"CREATE OR REPLACE TABLE layer AS {effects}")
        workspace.run("DELETE FROM overlay WHERE key IN (SELECT key FROM layer)")
        workspace.run("INSERT INTO overlay SELECT * FROM layer")
    present = "SELECT key, hash, owned, ref, confirmed_at FROM overlay WHERE NOT gone"
    if bottom is not None:
        present += (
            f" UNION ALL SELECT * FROM (SELECT key, hash, owned, ref, confirmed_at FROM {bottom})"
            " WHERE key NOT IN (SELECT key FROM overlay)"
        )
    workspace.run(f"CREATE OR REPLACE VIEW baseline AS {present}")
    count: int = workspace.one("SELECT count(*) FROM baseline")[0]
    return count


def _effects(answers: str, at: str) -> str:
    """What a run's answers say of each key: gone, or present with a hash (NULL = unknown)."""
    return (
        "SELECT key, op = 'delete' AND kind = 'written' AS gone,"
        " CASE kind WHEN 'unknown' THEN NULL ELSE hash END AS hash,"
        " owned OR (ours AND op <> 'delete') AS owned,"
        f" coalesce(new_ref, ref) AS ref, {literal(at)}::TIMESTAMPTZ AS confirmed_at FROM ({answers})"
        " WHERE kind IN ('written', 'unknown') OR (kind = 'skipped' AND settled)"
    )


def answered(workspace: Workspace, rows: str, batches: Sequence[Acknowledged]) -> str:
    """SQL of the rows (a relation with the position in `row`) that a batch covers, each with its answer:
    kind, settled, ours, code, reason, new_ref. Good until the next call; for ever if answers are `alike`."""
    result = {"kind": "VARCHAR", "settled": "BOOLEAN", "ours": "BOOLEAN", "code": "VARCHAR"}
    result |= {"reason": "VARCHAR"}
    if alike(batches):
        ((first, last, *told),) = _spans(batches)
        same = ", ".join(
            f"CAST({'NULL' if value is None else literal(str(value))} AS {kind}) AS {name}"
            for value, (name, kind) in zip(told, result.items(), strict=True)
        )
        return (
            f"SELECT p.*, {same}, CAST(NULL AS VARCHAR) AS new_ref FROM {rows} p"
            f" WHERE p.row BETWEEN {first} AND {last}"
        )
    workspace.load("spans", {"first": "BIGINT", "last": "BIGINT", **result}, _spans(batches))
    workspace.load("singles", {"at_row": "BIGINT", **result, "new_ref": "VARCHAR"}, _singles(batches))
    chosen = ", ".join(
        f"CASE WHEN x.at_row IS NULL THEN s.{name} ELSE x.{name} END AS {name}" for name in result
    )
    return (
        f"SELECT p.*, {chosen}, x.new_ref FROM {rows} p JOIN spans s ON p.row BETWEEN s.first AND s.last"
        " LEFT JOIN singles x ON x.at_row = p.row"
    )


def alike(batches: Sequence[Acknowledged]) -> bool:
    """Did every row of these batches, without a gap, meet the same end?"""
    return not any(_singles(batches)) and len(list(_spans(batches))) == 1


def compact(workspace: Workspace, path: Path) -> None:
    """Write the relation `baseline` as a new base, a file for us alone."""
    path.touch(mode=0o600)
    workspace.run(f"COPY (SELECT * FROM baseline) TO {literal(str(path))} ({RUN_FILE})")


def due(base_rows: int, part_rows: Sequence[int]) -> bool:
    """Is it time to compact? `base_rows` are those of the base, or of the first part while that stands
    for one."""
    return sum(part_rows) > COMPACT_PAST * base_rows or len(part_rows) > COMPACT_LAYERS


def _told(result: RowResult, operation: Mode) -> tuple[object, ...]:
    """An answer as a row. Ours is what we wrote; without an answer what we meant to write, but for a key
    that may have been there before and was then left alone."""
    unkept = result.kind is Kind.UNKNOWN and operation != "insert_only"
    ours = result.kind is Kind.WRITTEN or unkept
    return (result.kind.value, result.settled, ours, result.code, result.reason)


def _spans(batches: Iterable[Acknowledged]) -> Iterable[tuple[object, ...]]:
    """Neighbouring batches with the same answer as one span each: usually one in all."""
    span: tuple[object, ...] | None = None
    for batch in sorted((b for b in batches if b.status != "split"), key=lambda b: b.first):
        told = _told((batch.outcome or UNANSWERED).default, batch.operation)
        if span is not None and span[1] == batch.first - 1 and span[2:] == told:
            span = (span[0], batch.last, *told)
        else:
            if span is not None:
                yield span
            span = (batch.first, batch.last, *told)
    if span is not None:
        yield span


def _singles(batches: Iterable[Acknowledged]) -> Iterable[tuple[object, ...]]:
    for batch in batches:
        if batch.status != "split" and batch.outcome is not None:
            for row, result in batch.outcome.exceptions.items():
                yield (batch.first + row, *_told(result, batch.operation), result.ref)
