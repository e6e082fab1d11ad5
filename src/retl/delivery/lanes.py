"""Delivery over one or more lanes: intend, write, resolve, acknowledge, retry, halve.

The error type decides: Unavailable is retried inside the budget, Ambiguous is resolved, Poisoned is halved,
Systemic stops the run after one attempt. Any other error is a bug and stops the run too. Delivery knows no
target and no ledger, only a Destination and a Journal.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, Protocol

from msgspec import Struct, field
from msgspec.structs import replace

from retl.delivery.answered import Answered, changed, having
from retl.delivery.lane import Lane, Rest, Tries, spans
from retl.delivery.stream import Journal, Stream
from retl.destinations.api import Destination
from retl.destinations.batch import UNKNOWN, Batch, Capabilities, Kind, Outcome, RowResult
from retl.destinations.window import KeyWindow
from retl.errors import Expired, Later, Poisoned, Stopped, Systemic, Unavailable
from retl.model import Retry
from retl.observe import log
from retl.observe.signals import Stop
from retl.pace.limiter import Pace

SEARCHES = 1000  # requests of a run that look for rows which the target refused and did not name
NOT_APPLIED = RowResult(Kind.RETRY)


class Judge(Protocol):
    """Hears of every answer, and raises to stop the run."""

    def add(self, batch: Batch, outcome: Outcome) -> None: ...


def prepared(capabilities: Capabilities) -> bool:
    """Whether every batch needs an intent of its own: it may not arrive twice, or it has a key."""
    return not capabilities.idempotent or capabilities.key_window is not None


class Delivery(Struct):
    """The lanes of one run into one object. `lane()` creates a Destination for one thread."""

    lane: Callable[[], Destination[Any]]
    capabilities: Capabilities
    journal: Journal
    pace: Pace
    retry: Retry
    stop: Stop
    resend_unknown: bool = False  # at_least_once: an unanswered batch is sent again
    answered: list[Answered] = field(default_factory=list)
    retries: int = 0
    _searches: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    elsewhere: int = 0  # bytes that other processes of the run sent
    _failure_rate: Judge | None = None
    _lanes: list[Lane] = field(default_factory=list)
    _left: list[Batch] = field(default_factory=list)

    def drain(self, batches: Iterable[Batch], failure_rate: Judge | None = None) -> None:
        """Deliver every batch over all lanes; returns when all are answered.

        Raises the error that stopped it: Systemic, Unavailable past its budget, Later, Stopped, or too many
        rejected rows (`failure_rate`). The other lanes then finish their current batch. `answered` has the
        answers so far.
        """
        work = Stream(iter(batches), self.journal)
        self._failure_rate = failure_rate
        try:
            if self.capabilities.lanes == 1:
                self._work(work, self._lane(0))
            else:
                with ThreadPoolExecutor(self.capabilities.lanes, thread_name_prefix="retl-lane") as pool:
                    lanes = [
                        pool.submit(copy_context().run, self._work, work, self._lane(number))
                        for number in range(self.capabilities.lanes)
                    ]
                for lane in sorted(lanes, key=lambda lane: isinstance(lane.exception(), Stopped)):
                    lane.result()
        finally:
            self._failure_rate = None  # unsent batches do not count
            for batch in [*self._left, *work.close()]:
                self._record(Answered(batch, Outcome(NOT_APPLIED), attempts=0))
            self.journal.flush()

    @property
    def sent(self) -> int:
        """Bytes sent by all lanes."""
        return self.elsewhere + sum(lane.destination.sent for lane in self._lanes)

    def close(self) -> None:
        for lane in self._lanes:
            lane.destination.close()

    def _lane(self, number: int) -> Lane:
        while len(self._lanes) <= number:
            self._lanes.append(self._lane_of(self.lane()))
        return self._lanes[number]

    def _lane_of(self, destination: Destination[Any]) -> Lane:
        budget = self.pace, self.retry, self.stop
        return Lane(destination, self.journal, *budget, self.capabilities.idempotent, self.resend_unknown)

    def _work(self, work: Stream, lane: Lane) -> None:
        try:
            for batch in work:
                self._deliver(lane, batch)
        except BaseException:
            self._left += work.close()
            raise

    def _deliver(self, lane: Lane, batch: Batch) -> None:
        """Deliver one batch until it is answered; a poisoned batch as halves with their own ids."""
        tries = Tries()
        try:
            self.pace.require_open()
            if prepared(self.capabilities):
                batch = self._prepare(lane, batch, tries)
            outcome = lane.persist(batch, tries)
        except Expired:  # twice is once here, or asked for: the same rows under a new key
            return self._replace(lane, batch, [batch.renewed(batch.round + 1)], tries)
        except Poisoned as problem:
            if len(batch) > 1:
                return self._replace(lane, batch, batch.halves(), tries)
            outcome = Outcome(RowResult(Kind.REJECTED, problem.code, problem.message))
        except (Unavailable, Systemic, Stopped, Later):
            if tries.handle is None:  # with a handle the batch stays open: it is resolved later
                self._record(tries.answer(batch, Outcome(UNKNOWN if tries.doubt else NOT_APPLIED)))
            self.stop.check()  # a stop request ends the pauses between attempts early
            raise
        except Exception:  # the ledger was lost, or a bug: an attempt under way may have been applied
            if tries.count:
                with self._lock:
                    self.answered.append(tries.answer(batch, Outcome(UNKNOWN)))
            raise
        finally:
            with self._lock:
                self.retries += max(tries.count - 1, 0)
        log.event("batch_answered", batch=batch.id, level="debug")
        if outcome.divides and any(outcome.result(row).kind is Kind.RETRY for row in range(len(batch))):
            return self._send_others(lane, batch, outcome, tries)
        rest = Rest(lane, batch)
        outcome = rest.search(rest.again(outcome), self._may_search)
        self._record(tries.answer(batch, outcome))
        if rest.held_off is not None:
            raise rest.held_off
        return None

    def _may_search(self) -> bool:
        with self._lock:
            self._searches += 1
            self.retries += self._searches <= SEARCHES
            return self._searches <= SEARCHES

    def _replace(self, lane: Lane, batch: Batch, parts: Sequence[Batch], tries: Tries) -> None:
        """Deliver the rows of a batch as other batches."""
        self.journal.split(batch, parts)
        self._record(tries.answer(batch, None))
        for part in parts:
            self._deliver(lane, part)

    def _send_others(self, lane: Lane, batch: Batch, outcome: Outcome, tries: Tries) -> None:
        """Nothing was applied because of rows that the target named: record these, and deliver the others as
        batches of their own."""
        others = {row for row in range(len(batch)) if outcome.result(row).kind is Kind.RETRY}
        ranges = sorted([*spans(sorted(others)), *spans(sorted(outcome.exceptions.keys() - others))])
        parts = [batch.slice(batch.first + first, batch.first + last) for first, last in ranges]
        self.journal.split(batch, parts)
        self._record(tries.answer(batch, None))
        waiting = []
        for part, (first, _) in zip(parts, ranges, strict=True):
            if first in others:
                waiting.append(part)
            else:
                refused = {row: outcome.result(first + row) for row in range(len(part))}
                self._record(tries.answer(part, Outcome(refused[0], refused)))
        for part in waiting:
            self._deliver(lane, part)

    def repeat(
        self, batch: Batch, positions: Sequence[int], record: Callable[[Sequence[Batch]], None] | None = None
    ) -> int:
        """Send refused rows once more: `batch` has the rows at these positions of the change set. Returns how
        many of them are no longer refused. Their first answer is replaced, in the ledger too; meanwhile they
        are unknown there. `record` makes durable what the target returned with the batch. Raises as
        `drain`."""
        self.pace.require_open()
        former = [(number, self.answered[number]) for number in having(self.answered, positions)]
        self._record_again(former, dict.fromkeys(positions, UNKNOWN))
        lane, tries = self._lane(0), Tries()
        rest = Rest(lane, batch)
        found: Outcome | None = None
        try:
            found = rest.again(lane.persist(batch, tries))
        except Poisoned:
            found = None  # they stay refused
        finally:
            self.retries += 1
            if found is not None:
                if record is not None:
                    record([batch])
                news = {at: found.result(row) for row, at in enumerate(positions)}
            else:
                news = dict.fromkeys(positions, UNKNOWN) if tries.doubt else {}
            self._record_again(former, news)
        if rest.held_off is not None:
            raise rest.held_off
        return sum(found.result(row).kind is not Kind.REJECTED for row in range(len(batch))) if found else 0

    def _record_again(self, former: Sequence[tuple[int, Answered]], news: Mapping[int, RowResult]) -> None:
        """Replace the results of some rows, by position, in these former answers; durable at its end."""
        for number, one in former:
            self.answered[number] = changed(one, news)
            self.journal.acknowledge(self.answered[number])
        self.journal.flush()

    def resolve(self, destination: Destination[Any], batch: Batch, handle: str | None) -> Outcome:
        """The outcome of a batch that a dead run left open, as `Lane.resolve`."""
        return self._lane_of(destination).resolve(batch, handle)

    def finish(self, batch: Batch, handle: str | None) -> None:
        """Answer a batch that an earlier attempt at this work left open: by evidence in the target, after
        which that attempt cannot write it any more, else by sending it again where twice is once."""
        lane = self._lane(0)
        outcome = lane.resolve(batch, handle)
        again = self.capabilities.idempotent or self.resend_unknown
        try:
            unknown = outcome.default == UNKNOWN and not outcome.exceptions
            if outcome.default.kind is Kind.RETRY or (unknown and again):
                self._deliver(lane, batch)
            else:
                self._record(Answered(batch, outcome))
        finally:
            self.journal.flush()

    def _prepare(self, lane: Lane, batch: Batch, tries: Tries) -> Batch:
        """Make the intent durable before the batch is sent; if the target honours a key, also the key and the
        exact bytes that every resend uses."""
        if self.capabilities.key_window is not None:
            try:
                window = KeyWindow(self.capabilities.key_window, self.journal.now)
                request = lane.destination.preview(batch)
                batch = replace(batch, request=request, idempotency_key=batch.id, window=window)
            except Poisoned:  # no request can be made of these rows: that is their answer
                tries.count = 1
                self.journal.intend(batch)
                raise
        self.journal.intend(batch)
        log.event("batch_intended", batch=batch.id, level="debug")
        return batch

    def _record(self, answered: Answered) -> None:
        with self._lock:
            self.answered.append(answered)
            self.journal.acknowledge(answered)
        rows = 0 if answered.status == "split" else len(answered.batch)  # its halves are counted instead
        log.event(
            "batch_acknowledged",
            batch=answered.batch.id,
            rows=rows,
            attempts=answered.attempts,
            level="debug",
        )
        if answered.outcome is not None:
            with self._lock:
                if self._failure_rate is not None and answered.attempts:
                    self._failure_rate.add(answered.batch, answered.outcome)
