"""What the ledger knows of a run that has not ended: the answers that its batches got.

A run records its numbers when it ends. One that is at work, or was killed, has only its batches. They say
what became of rows, and not whether a written row was new.
"""

from __future__ import annotations

from collections import Counter

from retl.destinations.batch import UNKNOWN, Kind, Outcome
from retl.ledger import BatchRow, Ledger, RunRow

_NAMES = {
    Kind.WRITTEN: "written",
    Kind.MERGED: "written",
    Kind.KEPT: "skipped",
    Kind.SKIPPED: "skipped",
    Kind.CONFLICT: "rejected",
    Kind.REJECTED: "rejected",
    Kind.UNKNOWN: "without_answer",
    Kind.RETRY: "not_attempted",
}


def so_far(ledger: Ledger, run: RunRow) -> dict[str, int]:
    """The rows that were due, by what became of them, deletes apart, and the batches that have an answer.
    Empty for a run that ended, or had not begun to send."""
    if run.counts or run.delta_rows is None:
        return {}
    found, answered = Counter[str](), 0
    for batch in ledger.batches(run.run_id):
        if batch.status != "split":
            found += _rows(batch)
            answered += batch.outcome is not None
    names = dict.fromkeys((*_NAMES.values(), "deleted"), 0)
    left = run.delta_rows - sum(found.values())
    found["not_attempted"] += max(left, 0)
    return {"due": run.delta_rows, **names, **found, "batches": answered}


def _rows(batch: BatchRow) -> Counter[str]:
    """The rows of one batch, by what became of them."""
    outcome = batch.outcome or Outcome(UNKNOWN)
    kinds = Counter(one.kind for one in outcome.exceptions.values())
    kinds[outcome.default.kind] += batch.last - batch.first + 1 - len(outcome.exceptions)
    found = Counter[str]()
    for kind, rows in kinds.items():
        name = _NAMES[kind]
        found["deleted" if name == "written" and batch.operation == "delete" else name] += rows
    return found
