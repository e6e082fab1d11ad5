"""What the marks of batches prove. A mark is a row of a table beside the target, written in the batch's own
transaction, with the batch's outcome; an abort marker keeps an attempt from ever being applied.

Shared by all databases; each has SQL of its own for a mark. It does no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from uuid import uuid4

from retl.destinations.batch import WRITTEN, Batch, Kind, Outcome, RowResult
from retl.errors import Systemic, Unavailable

NOT_APPLIED = RowResult(Kind.RETRY, "VOIDED", "the unanswered batch was not applied and never will be")


class Mark(NamedTuple):
    """What a table of marks has of one attempt. `state`: applied or void."""

    state: str
    author: str
    not_written: list[Any]


class Attempts:
    """The attempts of one lane at batches that have no answer yet. `author` distinguishes the abort markers
    of this lane from those of another run."""

    def __init__(self, target: str) -> None:
        self.author = uuid4().hex
        self._target = target
        self._numbers: dict[str, int] = {}

    def number(self, batch: Batch) -> int:
        """Of the attempt that is under way now."""
        return self._numbers.setdefault(batch.id, 0)

    def answered(self, batch: Batch) -> None:
        self._numbers.pop(batch.id, None)

    def met(self, batch: Batch, mark: Mark | None) -> Outcome:
        """The outcome of a batch that could not be marked, by the mark that is there. Unavailable or Systemic
        VOIDED if there is an abort marker, or none: then a newer run has begun."""
        if mark and mark.state == "applied":
            self.answered(batch)
            return outcome(mark.not_written)
        if mark and mark.author == self.author:  # aborted by our own `resolve`, its answer was lost
            self._numbers[batch.id] = self.number(batch) + 1
            raise Unavailable("VOIDED", "nothing of the batch was applied: it was aborted without an answer")
        raise self.voided()

    def voided(self) -> Systemic:
        return Systemic("VOIDED", f"a newer run delivers to {self._target}: this one may no longer write")

    def resolve(
        self, batch: Batch, void: Callable[[int], bool], marked: Callable[[int], Mark | None]
    ) -> Outcome:
        """The outcome by the mark; without one an abort marker is written (`void`: whether it was), and every
        row is RETRY. Systemic VOIDED if another run has aborted the batch."""
        ours, attempt = batch.id in self._numbers, self._numbers.get(batch.id, 0)
        while not void(attempt):
            mark = marked(attempt)
            if mark and mark.state == "applied":
                self.answered(batch)
                return outcome(mark.not_written)
            if mark and ours and mark.author != self.author:
                raise self.voided()
            attempt += mark is not None  # this attempt was aborted: there may be a later one
        self._numbers[batch.id] = attempt + 1
        return Outcome(NOT_APPLIED)


def peek(marked: Callable[[int], Mark | None]) -> Outcome:
    """The outcome of a batch by its marks, without writing one."""
    attempt = 0
    while mark := marked(attempt):
        if mark.state == "applied":
            return outcome(mark.not_written)
        attempt += 1
    return Outcome(NOT_APPLIED)


def noted(found: Mapping[int, RowResult]) -> list[Any]:
    """Rows with a result of their own, in the form of a mark: equal results share one entry."""
    groups: dict[RowResult, list[int]] = {}
    for row, result in found.items():
        groups.setdefault(result, []).append(row)
    return [[r.kind, r.code, r.reason, r.settled, rows, r.ours] for r, rows in groups.items()]


def outcome(not_written: list[Any]) -> Outcome:
    """The outcome that `noted` wrote down."""
    found = {
        row: RowResult(Kind(kind), code, reason, settled=settled, ours=all(ours))
        for kind, code, reason, settled, rows, *ours in not_written
        for row in rows
    }
    return Outcome(WRITTEN, found)


def rejecting(codes: Mapping[int, str] | Mapping[str, str], reasons: Mapping[str, str]) -> Outcome:
    """The outcome of a batch that was written but for the rows of `codes`: row to the code of its reason.
    Rows are texts where JSON kept them."""
    rejected = {int(row): RowResult(Kind.REJECTED, code, reasons[code]) for row, code in codes.items()}
    return Outcome(WRITTEN, rejected)
