"""Rows delivered by a destination that a test made, as runs deliver them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec.structs import replace
from tenacity import wait_random_exponential

from retl.delivery.answered import Answered
from retl.delivery.lanes import Delivery
from retl.destinations.api import Destination
from retl.destinations.batch import Batch, Mode, RowResult
from retl.model import Limits, Retry
from retl.observe.signals import Stop
from retl.pace import limiter
from tests.destinations.rows import Row, Rows

Prove = Callable[[str, int], None]  # what was proved, and how often


@dataclass
class Memory:
    """A journal that keeps nothing beyond the process, but the handles."""

    handles: dict[str, str] = field(default_factory=dict)

    def now(self) -> datetime:
        return datetime.now(UTC)

    def open(self, batches: Sequence[Batch]) -> None: ...

    def intend(self, batch: Batch) -> None: ...

    def attach(self, batch: Batch, handle: str) -> None:
        self.handles[batch.id] = handle

    def split(self, batch: Batch, halves: Sequence[Batch]) -> None: ...

    def acknowledge(self, answered: Answered) -> None: ...

    def flush(self) -> None: ...


def deliver(
    lane: Destination[Any],
    rows: Sequence[Row],
    operation: Mode | None = None,
    refs: Sequence[str | None] = (),
) -> list[RowResult]:
    """What becomes of the rows on this one lane, without long pauses; what stops it is raised."""
    shape = lane.shape
    able = lane.capabilities
    size = (able.max_deletes if operation == "delete" else able.max_rows) or len(rows)
    batches = [
        Rows(shape, rows, refs).batch(operation or shape.write, first, min(first + size, len(rows)) - 1)
        for first in range(0, len(rows), size)
    ]
    alone = replace(lane.capabilities, lanes=1)  # as where the limits say nothing of `concurrency`
    delivery = Delivery(lambda: lane, alone, Memory(), limiter.Pace(Limits()), Retry(attempts=8), Stop())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limiter, "_PAUSES", wait_random_exponential(multiplier=0.002, max=30))
        try:
            delivery.drain(batches)
        finally:
            delivery.close()
    found = {}
    for one in delivery.answered:
        if one.outcome is not None:
            found |= {one.first + n: one.outcome.result(n) for n in range(len(one.batch))}
    return [found[n] for n in range(len(rows))]
