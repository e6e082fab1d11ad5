"""One lane: attempts to get an answer for a batch, and for the parts of it that need one of their own.

What the target may have applied, or has accepted as a job, is resolved by evidence. It is sent again only
where twice is once, or where the sync asks for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from retl.delivery.answered import Answered
from retl.delivery.stream import Journal
from retl.destinations.api import Destination
from retl.destinations.batch import UNKNOWN, Answer, Batch, Kind, Outcome, Pending, RowResult
from retl.errors import Ambiguous, Expired, Later, Poisoned, RetlError, Spent, Stopped, Systemic, Unavailable
from retl.model import Retry
from retl.net.gate import Gate
from retl.observe import log
from retl.observe.signals import Insistent, Stop
from retl.pace.limiter import Pace

GRACE = 1.5  # seconds that the current request may still take after a stop request


class Tries(Struct):
    """What is known about one batch during delivery."""

    count: int = 0
    doubt: bool = False  # an attempt got no answer: part of it may have been applied
    handle: str | None = None  # of the job in the target
    gate: Gate = field(default_factory=Gate)  # of the lane: it has the status of the last answer
    started: float = field(default_factory=time.monotonic)

    def answer(self, batch: Batch, outcome: Outcome | None) -> Answered:
        status = "done" if outcome is not None else "split"
        seconds = time.monotonic() - self.started
        return Answered(batch, outcome, self.count, seconds, status, self.gate.http_status)


class Lane(Struct, frozen=True):
    """A destination, which one thread uses. `twice`: to send a batch twice is as good as once; `resends`: the
    sync asks for it where it is not."""

    destination: Destination[Any]
    journal: Journal
    pace: Pace
    retry: Retry
    stop: Stop
    twice: bool
    resends: bool

    def persist(self, batch: Batch, tries: Tries) -> Outcome:
        """Retry until there is an answer, inside the budget of attempts and seconds. Unavailable past it;
        Poisoned, Systemic, Expired; Later, Stopped."""
        try:
            try:
                return self._once(batch, tries)
            except Unavailable as problem:  # creating a retry policy is slow: only if needed
                return self._retry(problem, lambda: self._once(batch, tries))
        except Spent as problem:
            raise self.pace.spend(problem.restart) from problem

    def _retry(self, first: Unavailable, attempt: Callable[[], Outcome]) -> Outcome:
        """Continue after a first attempt that failed."""
        failed = [first]

        def again() -> Outcome:
            if failed:
                raise failed.pop()
            return attempt()

        return self.pace.retrying(self.retry, self.stop.event)(again)

    def _once(self, batch: Batch, tries: Tries) -> Outcome:
        """One attempt: write, or resolve if the answer is missing."""
        self.stop.check()
        tries.count += 1
        gate = self.destination.gate
        tries.gate, gate.http_status = gate, None
        log.event("batch_sending", batch=batch.id, rows=len(batch), attempt=tries.count, level="debug")
        only_once = not (self.twice or self.resends)
        # never send again what the target accepted as a job or may have applied: resolve it
        resolves = tries.handle is not None or (tries.doubt and only_once)
        try:
            with self._in_hand():
                answer = self._evidence(batch, tries.handle) if resolves else self.destination.write(batch)
        except Ambiguous as problem:
            tries.doubt = True  # until there is evidence
            if isinstance(problem, Expired) and not only_once:
                if batch.round:  # a second key expired: the target does not answer
                    raise Unavailable(problem.code, problem.message) from problem
                raise
            answer = self._evidence(batch, None)
            if not only_once and answer == Outcome(UNKNOWN):
                raise Unavailable(problem.code, problem.message, hint=problem.hint) from problem
        while isinstance(answer, Pending):
            if tries.handle != answer.handle:
                self.journal.attach(batch, answer.handle)
            tries.handle = answer.handle
            self.stop.wait(answer.look_again)
            answer = self._evidence(batch, answer.handle)
        tries.handle, tries.doubt = None, False
        if answer.default.kind is Kind.RETRY and not answer.exceptions:
            raise Unavailable(
                answer.default.code or "TARGET_BUSY", answer.default.reason or "the target is busy"
            )
        return answer

    @contextmanager
    def _in_hand(self) -> Iterator[None]:
        """After a stop request the current request may finish within GRACE."""
        late = Insistent(GRACE, self.destination.interrupt)
        try:
            with self.stop.interrupting(late.start):
                yield
        finally:
            late.cancel()

    def _evidence(self, batch: Batch, handle: str | None) -> Answer:
        """The outcome of a batch. Resolving changes nothing, so a lost answer is Unavailable: try again."""
        try:
            return self.destination.resolve(batch, handle)
        except Ambiguous as problem:
            raise Unavailable(problem.code, problem.message, hint=problem.hint) from problem

    def resolve(self, batch: Batch, handle: str | None) -> Outcome:
        """The outcome of a batch that was left open: by its handle, by evidence in the target, or by sending
        the same bytes under the same key. Otherwise UNKNOWN."""

        def once() -> Outcome:
            answer = self.destination.resolve(batch, handle)
            while isinstance(answer, Pending):
                self.stop.wait(answer.look_again)
                answer = self.destination.resolve(batch, answer.handle)
            return answer

        try:
            return self.pace.retrying(self.retry, self.stop.event)(once)
        except Ambiguous:
            return Outcome(UNKNOWN)
        except Poisoned as problem:
            return Outcome(RowResult(Kind.REJECTED, problem.code, problem.message))


class Rest(Struct):
    """The rows of a batch whose answer is not final: sent again as slices of it. A slice has no intent of its
    own, so it could not be recovered after a crash: only where twice is once, elsewhere these rows wait for
    the next run. `held_off`: why the run ends once the batch is recorded."""

    lane: Lane
    batch: Batch
    held_off: RetlError | None = None

    def again(self, outcome: Outcome) -> Outcome:
        """The outcome with the rows that the target refused for now sent once more."""
        if not (self.lane.twice and outcome.exceptions):
            return outcome
        rows = [row for row in range(len(self.batch)) if outcome.result(row).kind is Kind.RETRY]
        merged = dict(outcome.exceptions)
        for first, last in spans(rows):
            part, tries = self._part(first, last), Tries()
            try:
                found = self.lane.persist(part, tries)
            except (Unavailable, Poisoned, Later) as problem:
                if tries.doubt or tries.handle is not None:
                    merged |= dict.fromkeys(range(first, last + 1), UNKNOWN)
                if isinstance(problem, Later):
                    self.held_off = problem
                    break
                continue
            merged |= {first + row: found.result(row) for row in range(len(part))}
        return replace(outcome, exceptions=merged)

    def search(self, outcome: Outcome, may_search: Callable[[], bool]) -> Outcome:
        """The outcome with the rows of which the target refused some without naming them sent in halves,
        until each has an answer of its own. What `may_search` does not allow stays UNKNOWN: the next run
        sends that again."""
        if not (outcome.divides and self.lane.twice):
            return outcome
        merged = dict(outcome.exceptions)
        waiting = _parts(outcome, 0, len(self.batch))
        while waiting and self.held_off is None and may_search():
            first, last = waiting.pop()
            part = self._part(first, last)
            try:
                found = self.lane.persist(part, Tries())
            except Poisoned as problem:
                found = Outcome(RowResult(Kind.REJECTED, problem.code, problem.message))
                if len(part) > 1:
                    found = Outcome(UNKNOWN, divides=True)
            except Unavailable:
                break
            except (Later, Systemic, Stopped) as problem:
                self.held_off = problem
                break
            merged |= {first + row: found.result(row) for row in range(len(part))}
            waiting += _parts(found, first, len(part)) if found.divides else []
        return replace(outcome, exceptions=merged)

    def _part(self, first: int, last: int) -> Batch:
        one = self.batch
        return replace(one.slice(one.first + first, one.first + last), round=one.round + 1)


def _parts(outcome: Outcome, first: int, size: int) -> list[tuple[int, int]]:
    """The rows of an answer that divides as ranges to send, the first one last; all rows are two halves.
    Numbers count from `first` on."""
    unknown = [row for row in range(size) if outcome.result(row).kind in (Kind.UNKNOWN, Kind.RETRY)]
    if len(unknown) == size:
        middle = (size + 1) // 2
        ranges = [(0, middle - 1), (middle, size - 1)] if size > 1 else []
    else:
        ranges = list(spans(unknown))
    return [(first + a, first + b) for a, b in reversed(ranges)]


def spans(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Sorted row numbers as (first, last) of each range without gaps."""
    there = set(rows)
    for row in rows:
        if row - 1 not in there:
            first = row
        if row + 1 not in there:
            yield first, row
