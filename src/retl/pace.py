"""The only place that waits: a connection's limits, a target's "later", and the pauses between attempts.

Every wait is on an event that a signal sets, so a stop ends it at once. It decides nothing about rows
and knows no target. The limit is a log of the moments at which requests went out, kept in memory for
the lanes of one process: five lines, which a limiter library would only wrap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import uniform
from threading import BoundedSemaphore, Event, Lock
from time import monotonic

import tenacity

from retl.batch import Quota
from retl.definitions import Limits, Retry
from retl.errors import Unavailable

_FIRST, _LONGEST = 0.5, 30.0  # seconds: the upper ends of the first and of any pause between attempts
_LOOK = 0.1  # seconds between two looks at a turn that another lane has


class Pace:
    """What all lanes of one connection share. `share` is the part of the connection's limit that is
    ours where `limits` does not say."""

    def __init__(self, limits: Limits, share: float = 1.0) -> None:
        self._share = limits.share or share
        ours = (limits.requests or 0) * self._share
        self._count = max(1, int(ours)) if ours else None
        # The window grows so that `count` per window is `ours` per `per` exactly: half of one request a
        # second is one request in two seconds.
        self._window = limits.per * (self._count or 0) / (ours or 1)
        self._taken: deque[float] = deque()
        self._turns = BoundedSemaphore(limits.concurrency) if limits.concurrency else None
        self._lock = Lock()
        self._held_until = 0.0

    @contextmanager
    def turn(self, stop: Event) -> Iterator[bool]:
        """Room for one request, kept until the block ends. False, and no room, if `stop` came first."""
        while self._turns is not None and not self._turns.acquire(timeout=_LOOK):
            if stop.is_set():
                yield False
                return
        try:
            yield self.wait(stop)
        finally:
            if self._turns is not None:
                self._turns.release()

    def wait(self, stop: Event) -> bool:
        """Until one more request is within the limits, and count it. False if `stop` came first."""
        while not stop.is_set():
            seconds = self._take()
            if seconds <= 0:
                return True
            stop.wait(seconds)
        return False

    def hold(self, seconds: float) -> None:
        """No lane sends anything for so many seconds; a longer hold that is already there stays."""
        with self._lock:
            self._held_until = max(self._held_until, monotonic() + seconds)

    def heed(self, quota: Quota | None) -> None:
        """Leave the target alone until its quota begins anew, where our share of it is used up."""
        if quota is not None and quota.anew is not None and quota.left <= 1 - self._share:
            self.hold(quota.anew)

    def retrying(self, retry: Retry, stop: Event) -> tenacity.Retrying:
        """`retrying`, and a `retry_after` holds all lanes of the connection."""
        return retrying(retry, stop, self.hold)

    def _take(self) -> float:
        """Take room for one request and return 0, or return the seconds until it is worth asking again."""
        with self._lock:
            now = monotonic()
            if now < self._held_until:
                return self._held_until - now
            while self._taken and self._taken[0] <= now - self._window:
                self._taken.popleft()
            if self._count is not None and len(self._taken) >= self._count:
                return self._taken[0] + self._window - now
            if self._count is not None:
                self._taken.append(now)
            return 0.0


def retrying(
    retry: Retry, stop: Event, hold: Callable[[float], None] = lambda seconds: None
) -> tenacity.Retrying:
    """Repeats what raises Unavailable, and nothing else, after a random pause that doubles at most, never
    before the target's `retry_after`. It ends with the last error: after `retry.attempts`, when the next
    pause would go beyond `retry.budget` seconds since the first attempt, or when `stop` is set."""
    last = Unavailable("UNAVAILABLE", "not tried")

    def pause(state: tenacity.RetryCallState) -> float:
        nonlocal last
        error = state.outcome.exception() if state.outcome else None
        assert isinstance(error, Unavailable)
        last = error
        wait = uniform(0, min(_LONGEST, _FIRST * 2 ** (state.attempt_number - 1)))  # noqa: S311
        if error.retry_after is None:
            return wait
        hold(error.retry_after)
        return error.retry_after + min(
            wait, 1.0
        )  # lanes that were told the same moment do not all meet there

    def sleep(seconds: float) -> None:
        if stop.wait(seconds):
            raise last

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(Unavailable),
        stop=tenacity.stop_after_attempt(retry.attempts)
        | tenacity.stop_before_delay(retry.budget)
        | tenacity.stop_when_event_set(stop),
        wait=pause,
        sleep=sleep,
        reraise=True,
    )
