"""A target in memory that remembers objects, and the delivery of a run into it with a real ledger.

It does what it is told to answer, one answer per request, and takes everything once it was told nothing
more. What it holds and what it was sent is there to be looked at.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from pydantic import BaseModel

from retl.delivery.lanes import Delivery, prepared
from retl.delivery.paced import Paced
from retl.destinations.api import Destination
from retl.destinations.batch import (
    MODES,
    UNKNOWN,
    WRITTEN,
    Answer,
    Batch,
    Capabilities,
    Kind,
    Line,
    Outcome,
    RowResult,
    Shape,
    Visit,
)
from retl.errors import Poisoned, TargetError
from retl.ledger import BatchRow, Ledger, RunRow
from retl.ledger import Lock as LedgerLock
from retl.model import Limits, Retry
from retl.net.gate import Gate
from retl.net.waits import Quota
from retl.observe.signals import Stop
from retl.pace.limiter import Pace
from retl.run.journal import RunJournal
from tests.ledgers import start, take

RUN = "run-1"
Step = Callable[["Target", Batch], Answer]


@dataclass(frozen=True)
class Numbers:
    """Rows whose key is their position."""

    def keys(self, first: int, last: int) -> Sequence[tuple[Any, ...]]:
        return [(row,) for row in range(first, last + 1)]

    def tuples(self, first: int, last: int) -> Sequence[tuple[Any, ...]]:
        return [(row, f"value {row}") for row in range(first, last + 1)]

    def documents(self, first: int, last: int) -> Sequence[tuple[Any, ...]]:
        return [(row, json.dumps({"value": row})) for row in range(first, last + 1)]

    def lines(self, first: int, last: int, line: Line) -> Sequence[str]:
        raise NotImplementedError

    def csv(self, first: int, last: int, *, delete: bool, numbered: bool) -> Iterator[bytes]:
        yield from (b"%d\n" % row for row in range(first, last + 1))


@dataclass(frozen=True)
class Sent:
    """One request as the target got it."""

    first: int
    last: int
    id: str
    request: bytes | None
    key: str | None


@dataclass
class World:
    """What is on the other side: objects, what arrived, and what it will answer."""

    objects: dict[int, str] = field(default_factory=dict)
    sent: list[Sent] = field(default_factory=list)
    asked: list[str | None] = field(default_factory=list)  # the handle of every `resolve`
    asked_of: list[tuple[int, int]] = field(default_factory=list)  # and its rows
    answers: deque[Step] = field(default_factory=deque)
    evidence: deque[Step] = field(default_factory=deque)
    poison: set[int] = field(default_factory=set)
    opened: int = 0
    closed: int = 0
    lock: Lock = field(default_factory=Lock)

    @property
    def spans(self) -> list[tuple[int, int]]:
        return [(one.first, one.last) for one in self.sent]


class Target(Destination[Any]):
    """One lane to a World."""

    Connection = BaseModel
    Options = BaseModel

    def __init__(self, world: World, capabilities: Capabilities, gate: Gate) -> None:
        super().__init__(None, Shape("users", "state", (), ()), gate)
        self.world = world
        self.capabilities = capabilities
        with world.lock:
            world.opened += 1

    @classmethod
    def place(cls, options: Any, write: Any) -> str:
        return "memory"

    def check(self, visit: Visit) -> None:
        """It is always there."""

    def write(self, batch: Batch) -> Answer:
        with self.world.lock:
            sent = Sent(batch.first, batch.last, batch.id, batch.request, batch.idempotency_key)
            self.world.sent.append(sent)
            step = self.world.answers.popleft() if self.world.answers else took()
        return step(self, batch)

    def resolve(self, batch: Batch, handle: str | None, *, act: bool = True) -> Answer:
        with self.world.lock:
            self.world.asked.append(handle)
            self.world.asked_of.append((batch.first, batch.last))
            step = self.world.evidence.popleft() if self.world.evidence else says(Outcome(UNKNOWN))
        return step(self, batch)

    def read(self, batch: Batch) -> Iterator[Mapping[str, Any] | None]:
        raise NotImplementedError

    def preview(self, batch: Batch) -> bytes:
        self.refuse_poison(batch)
        return f"exactly {batch.first} to {batch.last}".encode()

    def close(self) -> None:
        self.world.closed += 1

    def refuse_poison(self, batch: Batch) -> None:
        if self.world.poison & set(range(batch.first, batch.last + 1)):
            raise Poisoned("BAD_ROW", "a row is bad")

    def keep(self, batch: Batch, outcome: Outcome) -> None:
        """Apply what the outcome calls written."""
        for number, (row, *value) in enumerate(batch.tuples()):
            if outcome.result(number).kind is Kind.WRITTEN:
                if batch.operation == "delete":
                    self.world.objects.pop(row, None)
                else:
                    self.world.objects[row] = value[0]


def took(exceptions: Mapping[int, RowResult] | None = None, default: RowResult = WRITTEN) -> Step:
    """The target takes the batch, all but some rows; a poison row spoils it whole."""

    def step(target: Target, batch: Batch) -> Answer:
        target.refuse_poison(batch)
        outcome = Outcome(default, exceptions or {})
        target.keep(batch, outcome)
        return outcome

    return step


def says(answer: Answer) -> Step:
    """An answer, and nothing else happens."""
    return lambda target, batch: answer


def fails(error: Exception) -> Step:
    """Nothing is applied."""

    def step(target: Target, batch: Batch) -> Answer:
        raise error

    return step


def took_but(error: TargetError) -> Step:
    """All is applied, and the answer is lost."""

    def step(target: Target, batch: Batch) -> Answer:
        target.keep(batch, Outcome(WRITTEN))
        raise error

    return step


def tells(quota: Quota) -> Step:
    """The target takes the batch and says what is left of its own limit."""

    def step(target: Target, batch: Batch) -> Answer:
        target.gate.on_quota(quota)
        return took()(target, batch)

    return step


@dataclass
class Scene:
    """A run that has begun, and its delivery into a World."""

    ledger: Ledger
    lock: LedgerLock
    home: Path
    world: World = field(default_factory=World)
    retry: Retry = field(default_factory=lambda: Retry(attempts=3))
    stop: Stop = field(default_factory=Stop)

    def delivery(
        self,
        *,
        limits: Limits | None = None,
        resend_unknown: bool = False,
        target: type[Target] = Target,
        **capable: Any,
    ) -> Delivery:
        able = {"idempotent": True, **capable}
        capabilities = Capabilities("memory", frozenset({"upsert", "delete"}), form="tuples", **able)
        pace = Pace(limits or Limits())
        return Delivery(
            lane=lambda: Paced(partial(target, self.world, capabilities), pace, self.stop),
            capabilities=capabilities,
            journal=RunJournal(self.ledger, self.lock, RUN, every=prepared(capabilities)),
            pace=pace,
            retry=self.retry,
            stop=self.stop,
            resend_unknown=resend_unknown,
        )

    def batch(self, first: int, last: int, operation: Any = "upsert") -> Batch:
        return Batch(Numbers(), *MODES[operation], RUN, self.lock.epoch, first, last)

    def batches(self, rows: int, size: int, operation: Any = "upsert") -> Iterator[Batch]:
        for first in range(0, rows, size):
            yield self.batch(first, min(first + size, rows) - 1, operation)

    @property
    def recorded(self) -> list[BatchRow]:
        """What the ledger knows of the run's batches."""
        return self.ledger.batches(RUN)

    @property
    def run(self) -> RunRow:
        run = self.ledger.run(RUN)
        assert run is not None
        return run

    def stored(self, batch: str) -> bytes | None:
        """The bytes that lie in the ledger for a batch, as a file."""
        path = self.home / "runs" / f"request-{batch}"
        return path.read_bytes() if path.exists() else None


def begin(ledger: Ledger, home: Path) -> Scene:
    lock = take(ledger)
    lock.__enter__()
    ledger.begin(start(lock.epoch, RUN))
    return Scene(ledger, lock, home)
