"""The only module that waits: for a connection's limits, for a target's Retry-After, and between attempts.

Every wait ends at once on a signal. It decides nothing about rows and knows no target. An account
(`allowance`) records what may be sent: in the ledger, for all processes and hosts of the connection, or in
memory if nothing may be written. If the ledger cannot be reached, nothing is sent.
"""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from math import inf
from threading import BoundedSemaphore, Event, Lock, local
from typing import Any, Protocol, TypeVar

import tenacity
from msgspec.structs import replace

from retl.errors import Later, LedgerError, Unavailable
from retl.model import Hours, Limits, Retry
from retl.net.waits import Quota
from retl.observe import log
from retl.observe.signals import Stop
from retl.pace.allowance import USE, Account, Grant, Lease, Terms
from retl.pace.latency import Latency

T = TypeVar("T")

# Seconds between attempts: random, from 0 to an upper end that doubles.
_PAUSES = tenacity.wait_random_exponential(multiplier=0.5, max=30)
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_LOOK = 0.1  # seconds between two looks at a turn that another lane has
_FREE = Terms()
_LONG = 300.0  # a run does not wait for a hold longer than these seconds
_TRUST = 60.0  # seconds for which the book's clock is not asked again
_AGAIN = 3600.0  # seconds until the next try after a spent budget without a known end


def monotonic() -> float:
    """Seconds, time asleep included: leases and holds end while the machine sleeps."""
    return time.clock_gettime(_CLOCK)


class Book(Protocol):
    """Where accounts are stored."""

    def now(self) -> datetime:
        """The time on the book's clock."""
        ...

    def account(self, connection: str) -> tuple[Account, float]:
        """The current account, and the time in seconds on the book's clock."""
        ...

    def change_account(self, connection: str, change: Callable[[Account, float], T]) -> T:
        """Apply `change` to the account and the book's time in seconds, atomically, and return its result."""
        ...


class Memory:
    """The account of a single process."""

    def __init__(self) -> None:
        self._account = Account()

    def now(self) -> datetime:
        return datetime.now(UTC)

    def account(self, connection: str) -> tuple[Account, float]:
        return self._account, monotonic()

    def change_account(self, connection: str, change: Callable[[Account, float], T]) -> T:
        return change(self._account, monotonic())


class Pace:
    """Shared by all lanes of one connection. `share` is our part of the limits if `limits` has none. `book`
    stores the account; without it the account is in memory. Nothing is begun outside `hours`."""

    def __init__(
        self,
        limits: Limits,
        share: float = 1.0,
        *,
        book: Book | None = None,
        connection: str = "",
        hours: Hours | None = None,
    ) -> None:
        self._limits, self._hours, self._open_until = limits, hours, -inf
        self._share = limits.share or share
        ours = (limits.requests or 0) * self._share
        count = max(1, int(ours)) if ours else None
        # The window grows so that `count` per window is `ours` per `per` exactly: half of one request a
        # second is one request in two seconds.
        window = limits.per * (count or 0) / (ours or 1)
        day = max(1, int(limits.per_day * self._share)) if limits.per_day else None
        self._terms = Terms(count, window, day)
        self._book: Book = book or Memory()
        self._connection = connection
        self.concurrency = limits.concurrency
        self._turns = BoundedSemaphore(limits.concurrency) if limits.concurrency else None
        self._lock = Lock()
        self._held_until = 0.0
        self._spent: float | None = None  # on the book's clock
        self._lease: Lease | None = None
        self._old: list[Lease] = []  # used up or expired, and not given back yet
        self._waiting = False
        self._latency = Latency()
        self._lane = local()

    def elsewhere(self, concurrency: int) -> dict[str, Any]:
        """The arguments of a pace in another process, which shares the book and may have this number of
        requests at the same time."""
        limits = self._limits.model_copy(update={"concurrency": concurrency})
        return {
            "limits": limits,
            "share": self._share,
            "connection": self._connection,
            "hours": self._hours,
        }

    @property
    def terms(self) -> Terms | None:
        """Our share of the limits; None if there are none."""
        return None if self._terms == _FREE else self._terms

    @contextmanager
    def permit(self, stop: Event, size: int | None = None) -> Iterator[bool]:
        """Permission for one request, until the block ends. False, without permission, if `stop` came first.
        Later BUDGET_SPENT if the daily budget is spent, HELD_OFF during a long hold. With a `size` in bytes
        the request's time is measured; if the target is slow, the lane pauses before its next request."""
        while self._turns is not None and not self._turns.acquire(timeout=_LOOK):
            if stop.is_set():
                yield False
                return
        try:
            lease = self._admit(stop)
            if lease is None:
                yield False
                return
            began = monotonic()
            try:
                yield True
            finally:
                self._answered(lease, began, size)
        finally:
            if self._turns is not None:
                self._turns.release()

    @contextmanager
    def held(self, stop: Stop, size: int | None = None) -> Iterator[None]:
        """Like `permit`, but raises Stopped if there is no permission."""
        with self.permit(stop.event, size) as room:
            if not room:
                stop.check()
            yield

    def permits(self, stop: Stop) -> Callable[..., AbstractContextManager[None]]:
        """`held` for a destination, which does not know `stop`."""
        return partial(self.held, stop)

    def wait(self, stop: Event) -> bool:
        """Wait until one more request is within the limits, and count it. False if `stop` came first."""
        with self.permit(stop) as room:
            return room

    def pause(self, seconds: float) -> None:
        """Send nothing for this many seconds. A longer hold stays. Without limits the book keeps only a hold
        that ends the run."""
        with self._lock:
            self._held_until = max(self._held_until, monotonic() + seconds)
            if self._terms != _FREE or seconds > _LONG:
                self._book.change_account(self._connection, lambda account, now: account.pause(now + seconds))

    def on_quota(self, quota: Quota) -> None:
        """If our share of the target's quota is used up, send nothing until the quota starts again."""
        if quota.left > 1 - self._share:
            return
        if quota.daily:
            self.spend(quota.restart)
        elif quota.restart is not None:
            self.pause(quota.restart)

    def spend(self, restart: float | None = None) -> Later:
        """The target says that the daily budget is spent: send nothing for `restart` seconds. Returns the
        error to raise."""
        seconds = _AGAIN if restart is None else restart
        with self._lock:
            self._spent = monotonic() + seconds
            self._book.change_account(self._connection, lambda account, now: account.spend(now + seconds))
        return self._gone(seconds)

    def require_open(self) -> None:
        """Later OUTSIDE_HOURS outside the connection's hours."""
        if self._hours is None or monotonic() < self._open_until:
            return
        now = self._book.now()
        closes = self._hours.closes(now)
        if closes is None:
            raise Later(
                "OUTSIDE_HOURS",
                f"connection {self._connection} is used from {self._hours};"
                f" the next time begins at {self._hours.opens(now):%Y-%m-%d %H:%M} UTC",
                hint="run again then, or change `hours` in retl.yml",
            )
        self._open_until = monotonic() + min((closes - now).total_seconds(), _TRUST)

    def require_room(self) -> None:
        """Later OUTSIDE_HOURS, BUDGET_SPENT if the daily budget is spent, HELD_OFF during a long hold.
        Writes nothing."""
        self.require_open()
        account, now = self._book.account(self._connection)
        if account.held - now > _LONG:
            raise self._held_off(account.held - now)
        if (seconds := account.spent_for(self._terms, now)) is not None:
            raise self._gone(seconds)

    def retrying(self, retry: Retry, stop: Event) -> tenacity.Retrying:
        """`retrying`; a `retry_after` pauses all lanes of the connection. Later HELD_OFF if it is too long to
        wait."""
        return retrying(retry, stop, self.pause, self._held_off)

    def close(self) -> None:
        """Give back unused leases; never raises."""
        with self._lock, suppress(LedgerError):
            self._retire()
            if any(one.name for one in self._old):
                now = monotonic()
                self._book.change_account(
                    self._connection, lambda account, moment: self._give_back(account, moment - now)
                )

    def _admit(self, stop: Event) -> Lease | None:
        """Wait for room and take it; None if `stop` came first."""
        while not stop.is_set():
            with self._lock:
                now = monotonic()
                if self._spent is not None and now < self._spent:
                    raise self._gone(self._spent - now)
                seconds = max(self._while_held(now), getattr(self._lane, "rests_until", 0.0) - now)
                if seconds <= 0 and (seconds := self._lease_room(now)) <= 0:
                    assert self._lease is not None
                    self._lease.used += 1
                    self._lease.flying += 1
                    return self._lease
            log.event("room_awaited", seconds=round(seconds, 3), level="debug")
            stop.wait(seconds)
        return None

    def _while_held(self, now: float) -> float:
        """Seconds until a hold ends. Later HELD_OFF if it is too long to wait."""
        if (seconds := self._held_until - now) > _LONG:
            raise self._held_off(seconds)
        return seconds

    def _lease_room(self, now: float) -> float:
        """0 if the current lease has room, after taking a new one if necessary; otherwise seconds until the
        next try."""
        lease = self._lease
        if lease is not None and lease.used < lease.requests and now < lease.ends:
            return 0.0
        self._retire()
        if self._terms == _FREE:
            self._lease = Lease("", sys.maxsize, 0, inf)
            return 0.0
        name = secrets.token_hex(4)
        grant = self._ask(name, now)
        if grant.spent is not None:
            self._spent = now + grant.spent
            raise self._gone(grant.spent)
        self._waiting = not grant.requests
        if grant.held:
            self._held_until = now + grant.wait
            return self._while_held(now)
        if self._waiting:
            return grant.wait
        self._lease = Lease(name, grant.requests, grant.hour, now + USE)
        return 0.0

    def _ask(self, name: str, now: float) -> Grant:
        """Give back finished leases and take a new one. While it waits and has nothing to give back, it
        only reads, because reading does not block other writers."""
        terms = self._slowed()
        if self._waiting and all(one.flying for one in self._old):
            account, moment = self._book.account(self._connection)
            seen = account.look(terms, moment)
            if not seen.requests:
                return seen

        def take(account: Account, moment: float) -> Grant:
            self._give_back(account, moment - now)
            return account.take(name, terms, moment)

        return self._book.change_account(self._connection, take)

    def _retire(self) -> None:
        if self._lease is not None:
            self._old.append(self._lease)
            self._lease = None

    def _give_back(self, account: Account, ahead: float) -> None:
        """Give back every lease without open requests. The account's clock is `ahead` of ours; `ahead` is
        never too small, because our clock was read first."""
        for lease in [one for one in self._old if not one.flying]:
            account.give_back(lease, self._terms, lease.answered + ahead)
            self._old.remove(lease)

    def _answered(self, lease: Lease, began: float, size: int | None) -> None:
        """The request ended, with or without an answer. Its time decides how long the lane pauses: at half
        pace, as long as the request took."""
        with self._lock:
            lease.flying -= 1
            lease.answered = monotonic()
            if size is None:
                return
            took, before = lease.answered - began, self._latency.fraction
            self._latency.add(took, size)
            fraction = self._latency.fraction
            self._lane.rests_until = lease.answered + took * (1 / fraction - 1)
        if fraction != before:
            log.event("target_slow" if fraction < before else "target_recovers", pace=fraction)

    def _slowed(self) -> Terms:
        """The terms, reduced while the target is slow."""
        count = self._terms.count
        return replace(self._terms, count=count and max(1, int(count * self._latency.fraction)))

    def _held_off(self, seconds: float, message: str | None = None) -> Later:
        pause = f"the target of connection {self._connection} asked for a pause until {_moment(seconds)}"
        return Later("HELD_OFF", f"{pause}: {message}" if message else pause, hint="run again then")

    def _gone(self, seconds: float) -> Later:
        return Later(
            "BUDGET_SPENT",
            f"connection {self._connection} has used up its requests for the day;"
            f" requests are possible again at {_moment(seconds)}",
            hint="run again then, or raise `limits.per_day` or `share`",
        )


def _moment(seconds: float) -> str:
    """The time this many seconds from now, for people."""
    return f"{datetime.now(UTC) + timedelta(seconds=seconds):%Y-%m-%d %H:%M} UTC"


def retrying(
    retry: Retry,
    stop: Event,
    pause: Callable[[float], None] = lambda seconds: None,
    held_off: Callable[[float, str], Later] | None = None,
) -> tenacity.Retrying:
    """Repeats calls that raise Unavailable, after a random pause whose maximum doubles, never before the
    target's `retry_after`. It ends with the last error: after `retry.attempts`, if the next pause would
    exceed `retry.budget` seconds since the first attempt, or when `stop` is set. If the target asked for a
    pause that exceeds the budget or _LONG, it ends with `held_off` instead."""
    last = Unavailable("UNAVAILABLE", "not tried")

    def note(state: tenacity.RetryCallState) -> None:
        nonlocal last
        error = state.outcome.exception() if state.outcome else None
        assert isinstance(error, Unavailable)
        last = error
        if error.retry_after is not None:
            pause(error.retry_after)

    def wait(state: tenacity.RetryCallState) -> float:
        seconds = float(_PAUSES(state))
        if last.retry_after is None:
            return seconds
        return last.retry_after + min(seconds, 1.0)  # lanes that got the same moment do not all meet there

    def sleep(seconds: float) -> None:
        level: log.Level = "info" if seconds >= log.NOTABLE else "debug"
        log.event("retry_awaited", code=last.code, seconds=round(seconds, 3), level=level)
        if stop.wait(seconds):  # tenacity.sleep_using_event would try once more
            raise last

    used_up, over = tenacity.stop_after_attempt(retry.attempts), tenacity.stop_before_delay(retry.budget)

    def too_long(state: tenacity.RetryCallState) -> bool:
        return last.retry_after is not None and (last.retry_after > _LONG or over(state))

    def end(state: tenacity.RetryCallState) -> None:
        if held_off is not None and too_long(state) and not stop.is_set():
            raise held_off(last.retry_after or 0.0, last.message) from last
        raise last

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(Unavailable),
        after=note,
        stop=lambda state: stop.is_set() or used_up(state) or over(state) or too_long(state),
        wait=wait,
        sleep=sleep,
        retry_error_callback=end,
    )
