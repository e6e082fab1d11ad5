"""What is in doubt: rows that were sent and never answered, at targets where twice is not once.

A run settles what it can by evidence. What is left, only somebody who looked into the target can say;
this records their word, and the next run goes on from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from retl.destinations.batch import UNKNOWN, WRITTEN, Kind, Outcome, RowResult
from retl.ledger import Acknowledgement, BatchRow, Ledger

NOT_DELIVERED = RowResult(Kind.RETRY)


@dataclass(frozen=True)
class Doubt:
    """A batch of which some rows got no answer."""

    sync: str
    object: str
    run_id: str
    began: datetime
    batch: BatchRow
    rows: int


def doubts(ledger: Ledger, sync: str) -> list[Doubt]:
    """The batches in doubt of a sync, oldest first, over all objects it delivered to."""
    objects = {one.object for one in ledger.checkpoints(sync)} | {
        one.object for one in ledger.runs(sync, limit=1000)
    }
    deltas = [(name, one) for name in sorted(objects) for one in ledger.deltas(sync, name)]
    return [
        Doubt(sync, name, delta.run_id, delta.started_at, batch, rows)
        for name, delta in deltas
        for batch in ledger.batches(delta.run_id)
        if (rows := _doubtful(batch))
    ]


def resolve(ledger: Ledger, epoch: int, doubtful: Sequence[Doubt], *, delivered: bool) -> int:
    """Record that these rows did arrive, or did not; returns how many rows that were. `epoch` is that of
    the sync's lock, which the caller holds."""
    for one in doubtful:
        known = WRITTEN if delivered else NOT_DELIVERED
        outcome = one.batch.outcome or Outcome(UNKNOWN)
        settled = replace(
            outcome,
            default=_settled(outcome.default, known),
            exceptions={row: _settled(result, known) for row, result in outcome.exceptions.items()},
        )
        answer = Acknowledgement(one.batch.batch_id, settled, one.batch.attempts)
        ledger.acknowledge(one.run_id, epoch, [answer])
    return sum(one.rows for one in doubtful)


def _settled(result: RowResult, known: RowResult) -> RowResult:
    return known if result.kind is Kind.UNKNOWN else result


def _doubtful(batch: BatchRow) -> int:
    """How many rows of the batch got no answer."""
    if batch.status == "split":
        return 0
    outcome = batch.outcome or Outcome(UNKNOWN)
    size = batch.last - batch.first + 1
    by_default = size - len(outcome.exceptions) if outcome.default.kind is Kind.UNKNOWN else 0
    return by_default + sum(result.kind is Kind.UNKNOWN for result in outcome.exceptions.values())
