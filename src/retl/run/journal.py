"""The Journal of delivery: records one run's batches in the ledger.

If a lost answer only costs a second delivery, answers are collected for up to a second. Otherwise each answer
is durable before the next batch is sent. Every write has the run's epoch, so a run that lost its lock records
nothing more. What the target returned with a batch is durable before its answer is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from math import inf

from msgspec import Struct, field

from retl.delivery.answered import Answered
from retl.destinations.batch import UNKNOWN, Batch, Outcome
from retl.destinations.window import Moment
from retl.engine.answers import Answers
from retl.ledger import Acknowledgement, Attempt, BatchRow, Ledger, Lock
from retl.observe import log

GROUP = 128  # answers
GROUP_SECONDS = 1.0


class RunJournal(Struct):
    """Thread-safe. `every`: acknowledge each answer separately. `number`: the last one that is taken."""

    ledger: Ledger
    lock: Lock | Attempt
    run_id: str
    every: bool
    answers: Answers | None = None  # of a sync that keeps what the target held
    number: int = 0
    _batches: list[Batch] = field(default_factory=list)  # of the collected answers
    _collected: list[Acknowledgement] = field(default_factory=list)
    _since: float = field(default_factory=time.monotonic)
    _beat: float = -inf  # the last heartbeat
    _clock: tuple[datetime, float] | None = None  # of the ledger, and ours at the same moment
    _guard: threading.RLock = field(default_factory=threading.RLock)

    def now(self) -> datetime:
        """The time on the ledger's clock."""
        return self.ledger.now()

    def open(self, batches: Sequence[Batch]) -> None:
        """Record batches before any of them is sent: after a crash only these are unknown."""
        self.lock.check()
        if not self.every:
            self.ledger.open_batches(self.run_id, self.lock.epoch, [self._row(b) for b in batches])

    def intend(self, batch: Batch) -> None:
        self.lock.check()
        self.ledger.intend(self.run_id, self.lock.epoch, self._row(batch), batch.request)

    def attach(self, batch: Batch, handle: str) -> None:
        self.ledger.attach(self.run_id, self.lock.epoch, batch.id, handle)
        log.event("handle_attached", batch=batch.id, level="debug")

    def split(self, batch: Batch, halves: Sequence[Batch]) -> None:
        self.ledger.split(self.run_id, self.lock.epoch, batch.id, [self._row(half) for half in halves])

    def acknowledge(self, answered: Answered) -> None:
        if answered.outcome is None or (self.every and not answered.attempts):
            return
        if self.every and answered.outcome == Outcome(UNKNOWN):
            return  # it stays open with its key and bytes: the next run may resolve it
        with self._guard:
            self._batches.append(answered.batch)
            self._collected.append(
                Acknowledgement(
                    answered.batch.id,
                    answered.outcome,
                    answered.attempts,
                    round(answered.seconds * 1000),
                    answered_at=self._at(),
                    http_status=answered.http_status,
                )
            )
            full = len(self._collected) >= GROUP or time.monotonic() - self._since >= GROUP_SECONDS
            if self.every or full:
                self.flush()

    def flush(self) -> None:
        with self._guard:
            collected, self._collected = self._collected, []
            batches, self._batches = self._batches, []
            self._since = time.monotonic()
            if collected:
                if self._since >= self._beat + GROUP_SECONDS:
                    self.ledger.heartbeat(self.run_id, self.lock.epoch)
                    self._beat = self._since
                if self.answers is not None:
                    self.answers.record(batches)
                # a request is stored only if every batch has an intent of its own
                stored = self.every or self.answers is not None
                self.ledger.acknowledge(self.run_id, self.lock.epoch, collected, stored=stored)
                log.event("answers_recorded", batches=len(collected), level="debug")

    def _at(self) -> datetime:
        """The time now on the ledger's clock, which is asked once."""
        if self._clock is None:
            self._clock = self.ledger.now(), time.monotonic()
        began, then = self._clock
        return began + timedelta(seconds=time.monotonic() - then)

    def _row(self, batch: Batch) -> BatchRow:
        with self._guard:
            self.number += 1
            return BatchRow(
                batch_id=batch.id,
                number=self.number,
                operation=batch.mode,
                first=batch.first,
                last=batch.last,
                idempotency_key=batch.idempotency_key,
                intent=Moment.now(self.now()).dump() if batch.idempotency_key else None,
            )
