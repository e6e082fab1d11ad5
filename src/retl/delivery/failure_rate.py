"""Counts accepted and refused rows during delivery, and stops the run if too many are refused.

Without it, a wrong mapping would end as thousands of rejects. Rows that wait for another row of the run are
not counted before the end. It never decides about a single row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

from msgspec import Struct, field

from retl.destinations.batch import SETTLED, Batch, Kind, Outcome
from retl.errors import Failure, Systemic

SAME_CODE_ROWS = 100  # refused with the same code, none accepted
SAME_CODE_BATCHES = 2  # or this many whole batches of more than one row
FAILED_RATE_FROM = 100  # attempted rows before the rate counts


Waiting = Callable[[Batch, Outcome], Mapping[str, int]]


class FailureRate(Struct):
    """Not thread-safe. `waiting` returns how many of the refused rows of an answer another row of the run may
    still help, by code."""

    max_failed_rate: float
    waiting: Waiting = lambda _batch, _outcome: {}
    max_conflict_rate: float = 1.0
    edited: int = 0  # rows of which somebody else's edit was kept, or waits for a decision
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    whole: Counter[str] = field(default_factory=Counter)  # batches with all rows refused, by code

    def add(self, batch: Batch, outcome: Outcome) -> None:
        """Add an answer during delivery. Systemic ALL_REFUSED, Failure FAILED_RATE."""
        self._count(len(batch), outcome, self.waiting(batch, outcome))
        self._judge()

    def add_all(self, answers: Iterable[tuple[Batch, Outcome]], waiting: Mapping[str, int]) -> None:
        """Add all answers of a run, except `waiting` rows by code. Raises as `add`."""
        for batch, outcome in answers:
            self._count(len(batch), outcome, {})
        self.refused -= Counter(waiting)
        self.whole = Counter({code: n for code, n in self.whole.items() if code not in waiting})
        self._judge()

    def _count(self, size: int, outcome: Outcome, waiting: Mapping[str, int]) -> None:
        codes = Counter(
            one.code or "REJECTED" for one in outcome.exceptions.values() if one.kind is Kind.REJECTED
        )
        if outcome.default.kind is Kind.REJECTED:
            codes[outcome.default.code or "REJECTED"] += size - len(outcome.exceptions)
        codes -= Counter(waiting)
        self.refused += codes
        self.accepted += _rows(size, outcome, SETTLED | {Kind.CONFLICT})
        self.edited += _rows(size, outcome, {Kind.KEPT, Kind.CONFLICT})
        if size > 1:
            self.whole.update(code for code, rows in codes.items() if rows == size)

    def _judge(self) -> None:
        for code, rows in self.refused.items() if not self.accepted else ():
            if rows >= SAME_CODE_ROWS or self.whole[code] >= SAME_CODE_BATCHES:
                raise Systemic(
                    "ALL_REFUSED",
                    f"the target refused all of the first {rows} rows with {code}",
                    hint="the rows are probably not the reason: check the target's rules and the mapping",
                )
        refused = self.refused.total()
        attempted = self.accepted + refused
        if attempted >= FAILED_RATE_FROM and refused > self.max_failed_rate * attempted:
            raise Failure(
                "FAILED_RATE",
                f"the target refused {refused} of {attempted} rows, more than"
                f" max_failed_rate ({self.max_failed_rate:g})",
                hint="see `retl rejects`; this run deletes nothing",
            )
        if attempted >= FAILED_RATE_FROM and self.edited > self.max_conflict_rate * attempted:
            raise Failure(
                "CONFLICT_RATE",
                f"{self.edited} of {attempted} rows are not as this sync left them, more than"
                f" max_conflict_rate ({self.max_conflict_rate:g}): a restore, another tool, or a trigger that"
                " edits what is written",
                hint="what others wrote is kept, and this run deletes nothing; if that is meant, raise"
                " max_conflict_rate",
            )


def _rows(size: int, outcome: Outcome, kinds: Collection[Kind]) -> int:
    """How many rows of an answer are of these kinds."""
    by_default = size - len(outcome.exceptions) if outcome.default.kind in kinds else 0
    return by_default + sum(one.kind in kinds for one in outcome.exceptions.values())
