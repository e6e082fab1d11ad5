"""Rows in doubt: sent without an answer, to targets that are not idempotent.

A run resolves what it can by evidence. For the rest, a person looks into the target and decides; this records
the decision, and the next run uses it. Compaction never covers a run with such rows, so the decision
still changes the baseline.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Sequence
from datetime import datetime

from msgspec import Struct
from msgspec.structs import replace

from retl import __version__
from retl.destinations.batch import UNKNOWN, WRITTEN, Kind, Outcome, RowResult
from retl.engine.mapping import Run
from retl.ledger import (
    Acknowledgement,
    BatchRow,
    DeltaRow,
    Ledger,
    Lock,
    RejectChanges,
    RunEnd,
    RunStart,
)
from retl.project.definitions import Sync

NOT_DELIVERED = RowResult(Kind.RETRY)


class Doubt(Struct, frozen=True):
    """A batch that has rows without an answer."""

    sync: str
    object: str
    run_id: str
    began: datetime
    batch: BatchRow
    rows: int


def waits(sync: Sync, *, idempotent: bool) -> bool:
    """Whether a row without an answer waits for evidence or a decision. Elsewhere it is sent again."""
    return sync.delivery != "at_least_once" and (sync.write == "append" or not idempotent)


def is_asked(sync: Sync) -> bool:
    """Whether rows without an answer may wait for a decision, as far as the definition tells."""
    return sync.first_run is not None and waits(sync, idempotent=False)


def sends_first(sync: Sync) -> bool:
    """Whether the first run, or the one after a lost state, sends rows that would stay twice."""
    return sync.first_run == "send" and (sync.write == "append" or sync.delivery is not None)


def doubts(ledger: Ledger, sync: str) -> list[Doubt]:
    """The batches in doubt of a sync, oldest first, for all objects it delivered to."""
    deltas = [(name, one) for name in ledger.objects(sync) for one in ledger.deltas(sync, name)]
    return [
        Doubt(sync, name, delta.run_id, delta.started_at, batch, rows)
        for name, delta in deltas
        for batch in ledger.batches(delta.run_id)
        if (rows := _doubtful(batch))
    ]


def has_doubt(ledger: Ledger, delta: DeltaRow) -> bool:
    """Whether a row of this run has no answer yet."""
    return any(map(_doubtful, ledger.batches(delta.run_id)))


def unanswered(ledger: Ledger, run_id: str) -> int:
    """How many rows of this run have no answer yet."""
    return sum(map(_doubtful, ledger.batches(run_id)))


def resolve(
    ledger: Ledger, lock: Lock, doubtful: Sequence[Doubt], *, delivered: bool, environment: str | None = None
) -> int:
    """Record that these rows arrived, or did not, as a run for each object; returns the number of rows. The
    caller holds the lock of their sync."""
    for dead in ledger.dead_runs(doubtful[0].sync) if doubtful else ():
        ledger.abandon(dead.run_id, lock.epoch)  # first: what it changed of ended runs is its own
    by_object: dict[str, list[Doubt]] = {}
    for one in doubtful:
        by_object.setdefault(one.object, []).append(one)
    for found in by_object.values():
        _resolve(ledger, lock, found, delivered=delivered, environment=environment)
    return sum(one.rows for one in doubtful)


def _resolve(
    ledger: Ledger,
    lock: Lock,
    doubtful: Sequence[Doubt],
    *,
    delivered: bool,
    environment: str | None,
) -> None:
    run = Run.at(ledger.now())
    ledger.begin(
        RunStart(
            run_id=run.run_id,
            sync=doubtful[0].sync,
            object=doubtful[0].object,
            purpose="resolve",
            environment=environment,
            correlation_id=None,
            epoch=lock.epoch,
            started_at=run.started_at,
            vars={},
            fingerprint={},
            source_identity={},
            host=socket.gethostname(),
            pid=os.getpid(),
            user=getpass.getuser(),
            version=__version__,
            options={"delivered": delivered},
        )
    )
    for one in doubtful:
        known = WRITTEN if delivered else NOT_DELIVERED
        outcome = one.batch.outcome or Outcome(UNKNOWN)
        resolved = replace(
            outcome,
            default=_resolved(outcome.default, known),
            exceptions={row: _resolved(result, known) for row, result in outcome.exceptions.items()},
        )
        answer = Acknowledgement(one.batch.batch_id, resolved, one.batch.attempts)
        ledger.acknowledge(one.run_id, lock.epoch, [answer])
    ledger.finish(RunEnd(run.run_id, lock.epoch, "SUCCESS"), None, RejectChanges())


def _resolved(result: RowResult, known: RowResult) -> RowResult:
    return known if result.kind is Kind.UNKNOWN else result


def _doubtful(batch: BatchRow) -> int:
    """How many rows of the batch have no answer."""
    if batch.status == "split":
        return 0
    outcome = batch.outcome or Outcome(UNKNOWN)
    size = batch.last - batch.first + 1
    by_default = size - len(outcome.exceptions) if outcome.default.kind is Kind.UNKNOWN else 0
    return by_default + sum(result.kind is Kind.UNKNOWN for result in outcome.exceptions.values())
