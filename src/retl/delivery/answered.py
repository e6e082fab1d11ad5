"""The answers to the batches of a run, and what they say of rows by their position in the change set."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from retl.destinations.batch import Batch, Kind, Mode, Outcome, RowResult


class Answered(Struct, frozen=True):
    """A batch and its outcome. `status` is done, or split: then the halves have outcomes of their own.
    `http_status` is that of the last answer over HTTP."""

    batch: Batch
    outcome: Outcome | None
    attempts: int = 1
    seconds: float = 0.0
    status: str = "done"
    http_status: int | None = None

    @property
    def operation(self) -> Mode:
        return self.batch.mode

    @property
    def first(self) -> int:
        return self.batch.first

    @property
    def last(self) -> int:
        return self.batch.last


def rows_with(answered: Iterable[Answered], kind: Kind) -> int:
    """How many rows have this result."""
    total = 0
    for one in answered:
        if one.outcome is not None:
            total += sum(result.kind is kind for result in one.outcome.exceptions.values())
            if one.outcome.default.kind is kind:
                total += len(one.batch) - len(one.outcome.exceptions)
    return total


def refused_rows(answered: Iterable[Answered], codes: Collection[str], *, deletes: bool) -> list[int]:
    """The positions of the rows refused with one of these codes, in order."""
    found = []
    for one in answered:
        if one.outcome is not None and (one.batch.operation == "delete") is deletes:
            if one.outcome.default.code in codes:
                rows: Iterable[int] = range(len(one.batch))
            else:
                rows = one.outcome.exceptions
            for row in rows:
                result = one.outcome.result(row)
                if result.kind is Kind.REJECTED and result.code in codes:
                    found.append(one.first + row)
    return sorted(found)


def having(answered: Sequence[Answered], positions: Iterable[int]) -> list[int]:
    """The places in `answered` of the batches that have these rows."""
    there = sorted(positions)
    return [
        number
        for number, one in enumerate(answered)
        if one.outcome is not None and bisect_left(there, one.first) < bisect_right(there, one.last)
    ]


def changed(one: Answered, news: Mapping[int, RowResult]) -> Answered:
    """The same with other results of some rows, by position."""
    assert one.outcome is not None
    results = [news.get(one.first + row) or one.outcome.result(row) for row in range(len(one.batch))]
    default, _ = Counter(results).most_common(1)[0]
    exceptions = {row: result for row, result in enumerate(results) if result != default}
    return replace(one, outcome=Outcome(default, exceptions))
