"""Delivery over one or more lanes: intend, write, resolve, acknowledge, retry, halve.

The error type decides: Unavailable is retried inside the budget, Ambiguous is resolved, Poisoned is halved,
Systemic stops the run after one attempt. Any other error is a bug and stops the run too. Delivery knows no
target and no ledger, only a Destination and a Journal.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from datetime import datetime
from itertools import islice
from typing import Any, Protocol

from msgspec import Struct, field
from msgspec.structs import replace

from retl.destinations.api import Destination
from retl.destinations.batch import (
    UNKNOWN,
    Answer,
    Batch,
    Capabilities,
    Kind,
    Mode,
    Outcome,
    Pending,
    RowResult,
)
from retl.destinations.window import KeyWindow
from retl.errors import Ambiguous, Expired, Later, Poisoned, RetlError, Spent, Stopped, Systemic, Unavailable
from retl.model import Retry
from retl.net.gate import Gate
from retl.observe import log
from retl.observe.signals import Insistent, Stop
from retl.pace.limiter import Pace

WINDOW = 16  # batches opened in the ledger at once; after a crash at most these are unknown
SMALL_WINDOW = 128  # for small batches, because each opening waits for the disk
SMALL_WINDOW_ROWS = 10_000
GRACE = 1.5  # seconds that the current request may still take after a stop request
SEARCHES = 1000  # requests of a run that look for rows which the target refused and did not name
NOT_APPLIED = RowResult(Kind.RETRY)


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


class Journal(Protocol):
    """What delivery needs from the ledger. Each method returns when its entry is durable. Exception:
    `acknowledge` may collect answers if a lost one only costs a second delivery. It ignores a batch that
    was split: its halves have answers of their own."""

    def now(self) -> datetime: ...

    def open(self, batches: Sequence[Batch]) -> None: ...

    def intend(self, batch: Batch) -> None: ...

    def attach(self, batch: Batch, handle: str) -> None: ...

    def split(self, batch: Batch, halves: Sequence[Batch]) -> None: ...

    def acknowledge(self, answered: Answered) -> None: ...

    def flush(self) -> None: ...


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
    searches: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    elsewhere: int = 0  # bytes that other processes of the run sent
    _failure_rate: Judge | None = None
    _lanes: list[Destination[Any]] = field(default_factory=list)
    _left: list[Batch] = field(default_factory=list)
    _held_off: RetlError | None = None

    def drain(self, batches: Iterable[Batch], failure_rate: Judge | None = None) -> None:
        """Deliver every batch over all lanes; returns when all are answered.

        Raises the error that stopped it: Systemic, Unavailable past its budget, Later, Stopped, or too many
        rejected rows (`failure_rate`). The other lanes then finish their current batch. `answered` has the
        answers so far.
        """
        work = _Window(iter(batches), self.journal)
        self._failure_rate = failure_rate
        try:
            if self.capabilities.lanes == 1:
                self._work(work, self._destination(0))
            else:
                with ThreadPoolExecutor(self.capabilities.lanes, thread_name_prefix="retl-lane") as pool:
                    lanes = [
                        pool.submit(copy_context().run, self._work, work, self._destination(number))
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
        return self.elsewhere + sum(lane.sent for lane in self._lanes)

    def close(self) -> None:
        for destination in self._lanes:
            destination.close()

    def _destination(self, number: int) -> Destination[Any]:
        while len(self._lanes) <= number:
            self._lanes.append(self.lane())
        return self._lanes[number]

    def _work(self, work: _Window, destination: Destination[Any]) -> None:
        try:
            for batch in work:
                self._deliver(destination, batch)
        except BaseException:
            self._left += work.close()
            raise

    def _deliver(self, destination: Destination[Any], batch: Batch) -> None:
        """Deliver one batch until it is answered; a poisoned batch as halves with their own ids."""
        tries = _Tries()
        try:
            self.pace.require_open()
            if prepared(self.capabilities):
                batch = self._prepare(destination, batch, tries)
            outcome = self._persist(destination, batch, tries)
        except Expired:  # twice is once here, or asked for: the same rows under a new key
            return self._replace(destination, batch, [batch.renewed(batch.round + 1)], tries)
        except Poisoned as problem:
            if len(batch) > 1:
                return self._replace(destination, batch, batch.halves(), tries)
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
            return self._send_others(destination, batch, outcome, tries)
        outcome = self._again(destination, batch, outcome)
        outcome = self._find_refused(destination, batch, outcome)
        self._record(tries.answer(batch, outcome))
        if self._held_off is not None:
            raise self._held_off
        return None

    def _replace(
        self, destination: Destination[Any], batch: Batch, parts: Sequence[Batch], tries: _Tries
    ) -> None:
        """Deliver the rows of a batch as other batches."""
        self.journal.split(batch, parts)
        self._record(tries.answer(batch, None))
        for part in parts:
            self._deliver(destination, part)

    def _send_others(
        self, destination: Destination[Any], batch: Batch, outcome: Outcome, tries: _Tries
    ) -> None:
        """Nothing was applied because of rows that the target named: record these, and deliver the others as
        batches of their own."""
        others = {row for row in range(len(batch)) if outcome.result(row).kind is Kind.RETRY}
        spans = sorted([*_spans(sorted(others)), *_spans(sorted(outcome.exceptions.keys() - others))])
        parts = [batch.slice(batch.first + first, batch.first + last) for first, last in spans]
        self.journal.split(batch, parts)
        self._record(tries.answer(batch, None))
        waiting = []
        for part, (first, _) in zip(parts, spans, strict=True):
            if first in others:
                waiting.append(part)
            else:
                refused = {row: outcome.result(first + row) for row in range(len(part))}
                self._record(tries.answer(part, Outcome(refused[0], refused)))
        for part in waiting:
            self._deliver(destination, part)

    def _persist(self, destination: Destination[Any], batch: Batch, tries: _Tries) -> Outcome:
        """Retry until there is an answer, inside the budget of attempts and seconds."""
        try:
            try:
                return self._once(destination, batch, tries)
            except Unavailable as problem:  # creating a retry policy is slow: only if needed
                return self._retry(problem, lambda: self._once(destination, batch, tries))
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

    def _once(self, destination: Destination[Any], batch: Batch, tries: _Tries) -> Outcome:
        """One attempt: write, or resolve if the answer is missing."""
        self.stop.check()
        tries.count += 1
        tries.gate, destination.gate.http_status = destination.gate, None
        log.event("batch_sending", batch=batch.id, rows=len(batch), attempt=tries.count, level="debug")
        only_once = not (self.capabilities.idempotent or self.resend_unknown)
        # never send again what the target accepted as a job or may have applied: resolve it
        resolves = tries.handle is not None or (tries.doubt and only_once)
        try:
            with self._in_hand(destination):
                answer = _evidence(destination, batch, tries.handle) if resolves else destination.write(batch)
        except Ambiguous as problem:
            tries.doubt = True  # until there is evidence
            if isinstance(problem, Expired) and not only_once:
                if batch.round:  # a second key expired: the target does not answer
                    raise Unavailable(problem.code, problem.message) from problem
                raise
            answer = _evidence(destination, batch, None)
            if not only_once and answer == Outcome(UNKNOWN):
                raise Unavailable(problem.code, problem.message, hint=problem.hint) from problem
        while isinstance(answer, Pending):
            if tries.handle != answer.handle:
                self.journal.attach(batch, answer.handle)
            tries.handle = answer.handle
            self.stop.wait(answer.look_again)
            answer = _evidence(destination, batch, answer.handle)
        tries.handle, tries.doubt = None, False
        if answer.default.kind is Kind.RETRY and not answer.exceptions:
            raise Unavailable(
                answer.default.code or "TARGET_BUSY", answer.default.reason or "the target is busy"
            )
        return answer

    @contextmanager
    def _in_hand(self, destination: Destination[Any]) -> Iterator[None]:
        """After a stop request the current request may finish within GRACE."""
        late = Insistent(GRACE, destination.interrupt)
        try:
            with self.stop.interrupting(late.start):
                yield
        finally:
            late.cancel()

    def _again(self, destination: Destination[Any], batch: Batch, outcome: Outcome) -> Outcome:
        """Send rows that the target refused for now again, as slices of the batch, and merge their outcomes.

        If the target is not idempotent they wait for the next run: a slice has no intent of its own, so it
        could not be recovered after a crash."""
        if not (self.capabilities.idempotent and outcome.exceptions):
            return outcome
        rows = [row for row in range(len(batch)) if outcome.result(row).kind is Kind.RETRY]
        merged = dict(outcome.exceptions)
        for first, last in _spans(rows):
            part = replace(batch.slice(batch.first + first, batch.first + last), round=batch.round + 1)
            tries = _Tries()
            try:
                again = self._persist(destination, part, tries)
            except (Unavailable, Poisoned, Later) as problem:
                if tries.doubt or tries.handle is not None:
                    merged |= dict.fromkeys(range(first, last + 1), UNKNOWN)
                if isinstance(problem, Later):
                    self._held_off = problem  # the run ends when this batch is recorded
                    break
                continue
            merged |= {first + row: again.result(row) for row in range(len(part))}
        return replace(outcome, exceptions=merged)

    def _find_refused(self, destination: Destination[Any], batch: Batch, outcome: Outcome) -> Outcome:
        """Send the rows of which the target refused some without naming them again in halves, until each has
        an answer of its own. Only where twice is once; the halves have no intent of their own. After SEARCHES
        requests the rest stays UNKNOWN: the next run sends it again."""
        if not (outcome.divides and self.capabilities.idempotent):
            return outcome
        merged = dict(outcome.exceptions)
        waiting = _parts(outcome, 0, len(batch))
        while waiting and self._held_off is None and self._may_search():
            first, last = waiting.pop()
            part = replace(batch.slice(batch.first + first, batch.first + last), round=batch.round + 1)
            tries = _Tries()
            try:
                found = self._persist(destination, part, tries)
            except Poisoned as problem:
                found = Outcome(RowResult(Kind.REJECTED, problem.code, problem.message))
                if len(part) > 1:
                    found = Outcome(UNKNOWN, divides=True)
            except Unavailable:
                break
            except (Later, Systemic, Stopped) as problem:
                self._held_off = problem  # the run ends when this batch is recorded
                break
            merged |= {first + row: found.result(row) for row in range(len(part))}
            waiting += _parts(found, first, len(part)) if found.divides else []
        return replace(outcome, exceptions=merged)

    def _may_search(self) -> bool:
        with self._lock:
            self.searches += 1
            self.retries += 1
            return self.searches <= SEARCHES

    def repeat(
        self, batch: Batch, positions: Sequence[int], record: Callable[[Sequence[Batch]], None] | None = None
    ) -> int:
        """Send refused rows once more: `batch` has the rows at these positions of the change set. Returns how
        many of them are no longer refused. Their first answer is replaced, in the ledger too; meanwhile they
        are unknown there. `record` makes durable what the target returned with the batch. Raises as
        `drain`."""
        self.pace.require_open()
        former = [(number, self.answered[number]) for number in self._answers_of(positions)]
        self._record_again(former, dict.fromkeys(positions, UNKNOWN))
        destination, tries = self._destination(0), _Tries()
        found: Outcome | None = None
        try:
            found = self._again(destination, batch, self._persist(destination, batch, tries))
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
        return sum(found.result(row).kind is not Kind.REJECTED for row in range(len(batch))) if found else 0

    def _answers_of(self, positions: Sequence[int]) -> list[int]:
        """The places in `answered` of the batches that have these rows."""
        there = sorted(positions)
        return [
            number
            for number, one in enumerate(self.answered)
            if one.outcome is not None and bisect_left(there, one.first) < bisect_right(there, one.last)
        ]

    def _record_again(self, former: Sequence[tuple[int, Answered]], news: Mapping[int, RowResult]) -> None:
        """Replace the results of some rows, by position, in these former answers; durable at its end."""
        for number, one in former:
            assert one.outcome is not None
            rows = range(len(one.batch))
            results = [news.get(one.first + row) or one.outcome.result(row) for row in rows]
            default, _ = Counter(results).most_common(1)[0]
            exceptions = {row: result for row, result in enumerate(results) if result != default}
            self.answered[number] = replace(one, outcome=Outcome(default, exceptions))
            self.journal.acknowledge(self.answered[number])
        self.journal.flush()

    def refused(self, codes: Collection[str], *, deletes: bool) -> list[int]:
        """The positions of the rows refused with one of these codes, in order."""
        found = []
        for one in self.answered:
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

    def resolve(self, destination: Destination[Any], batch: Batch, handle: str | None) -> Outcome:
        """The outcome of a batch that a dead run left open: by its handle, by evidence in the target, or by
        sending the same bytes under the same key. Otherwise UNKNOWN."""

        def once() -> Outcome:
            answer = destination.resolve(batch, handle)
            while isinstance(answer, Pending):
                self.stop.wait(answer.look_again)
                answer = destination.resolve(batch, answer.handle)
            return answer

        try:
            return self.pace.retrying(self.retry, self.stop.event)(once)
        except Ambiguous:
            return Outcome(UNKNOWN)
        except Poisoned as problem:
            return Outcome(RowResult(Kind.REJECTED, problem.code, problem.message))

    def finish(self, batch: Batch, handle: str | None) -> None:
        """Answer a batch that an earlier attempt at this work left open: by evidence in the target, after
        which that attempt cannot write it any more, else by sending it again where twice is once."""
        destination = self._destination(0)
        outcome = self.resolve(destination, batch, handle)
        again = self.capabilities.idempotent or self.resend_unknown
        try:
            unknown = outcome.default == UNKNOWN and not outcome.exceptions
            if outcome.default.kind is Kind.RETRY or (unknown and again):
                self._deliver(destination, batch)
            else:
                self._record(Answered(batch, outcome))
        finally:
            self.journal.flush()

    def count(self, kind: Kind) -> int:
        """How many rows have this result so far."""
        total = 0
        for one in self.answered:
            if one.outcome is not None:
                total += sum(result.kind is kind for result in one.outcome.exceptions.values())
                if one.outcome.default.kind is kind:
                    total += len(one.batch) - len(one.outcome.exceptions)
        return total

    def _prepare(self, destination: Destination[Any], batch: Batch, tries: _Tries) -> Batch:
        """Make the intent durable before the batch is sent; if the target honours a key, also the key and the
        exact bytes that every resend uses."""
        if self.capabilities.key_window is not None:
            try:
                window = KeyWindow(self.capabilities.key_window, self.journal.now)
                request = destination.preview(batch)
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


class _Tries(Struct):
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


class _Window(Iterator[Batch]):
    """One stream of batches for all lanes; a batch is opened in the ledger before a lane gets it."""

    def __init__(self, batches: Iterator[Batch], journal: Journal) -> None:
        self._batches = batches
        self._journal = journal
        self._ready: deque[Batch] = deque()
        self._lock = threading.Lock()
        self._closed = False

    def __next__(self) -> Batch:
        with self._lock:
            if not self._ready and not self._closed:
                opened = self._next()
                if opened:
                    self._journal.open(opened)
                    log.event("batches_opened", batches=len(opened), level="debug")
                self._ready.extend(opened)
            if self._closed or not self._ready:
                raise StopIteration
            return self._ready.popleft()

    def _next(self) -> list[Batch]:
        opened = list(islice(self._batches, WINDOW))
        rows = sum(map(len, opened))
        while len(opened) < SMALL_WINDOW and rows < SMALL_WINDOW_ROWS:
            if (batch := next(self._batches, None)) is None:
                break
            opened.append(batch)
            rows += len(batch)
        return opened

    def close(self) -> list[Batch]:
        """Give out no more batches; returns those that were opened but not given out."""
        with self._lock:
            self._closed = True
            left, self._ready = list(self._ready), deque()
            return left


def _evidence(destination: Destination[Any], batch: Batch, handle: str | None) -> Answer:
    """The outcome of a batch. Resolving changes nothing, so a lost answer is Unavailable: try again."""
    try:
        return destination.resolve(batch, handle)
    except Ambiguous as problem:
        raise Unavailable(problem.code, problem.message, hint=problem.hint) from problem


def _parts(outcome: Outcome, first: int, size: int) -> list[tuple[int, int]]:
    """The rows of an answer that divides as ranges to send, the first one last; all rows are two halves.
    Numbers count from `first` on."""
    unknown = [row for row in range(size) if outcome.result(row).kind in (Kind.UNKNOWN, Kind.RETRY)]
    if len(unknown) == size:
        middle = (size + 1) // 2
        ranges = [(0, middle - 1), (middle, size - 1)] if size > 1 else []
    else:
        ranges = list(_spans(unknown))
    return [(first + a, first + b) for a, b in reversed(ranges)]


def _spans(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Sorted row numbers as (first, last) of each range without gaps."""
    there = set(rows)
    for row in rows:
        if row - 1 not in there:
            first = row
        if row + 1 not in there:
            yield first, row
