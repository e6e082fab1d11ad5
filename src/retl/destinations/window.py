"""How long an idempotency key may be used: from its first send, by every clock that can tell.

A vendor forgets a key after its window, and takes a later request for a new one. Each send is measured, so a
long pause, a machine asleep and a clock that jumps cannot carry a key past its window. It sends nothing.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache
from math import inf
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from retl.errors import Expired

LONGEST_MARGIN = 120.0  # seconds that a request may take to arrive
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # on macOS the latter counts sleep too


class Moment(Struct, frozen=True):
    """A moment on the ledger's clock, and in seconds since the machine's boot, time asleep included."""

    at: datetime
    boot: str
    seconds: float

    @classmethod
    def now(cls, at: datetime) -> Moment:
        return cls(at, _boot(), _seconds())

    @classmethod
    def load(cls, text: Mapping[str, Any]) -> Moment:
        return cls(datetime.fromisoformat(text["at"]), text["boot"], text["seconds"])

    def dump(self) -> dict[str, Any]:
        return {**asdict(self), "at": self.at.isoformat()}

    def since(self, earlier: Moment) -> float:
        """Seconds that may have passed: the most that a clock says. Infinite if the only clock went back."""
        passed = (self.at - earlier.at).total_seconds()
        if self.boot == earlier.boot:
            return max(passed, self.seconds - earlier.seconds)
        return passed if passed >= 0 else inf


class KeyWindow:
    """The window of one key, which begins with its first send: `first`, or the first `use`. The last tenth
    (at most LONGEST_MARGIN) is not used, because a request needs time to arrive."""

    def __init__(self, seconds: float, now: Callable[[], datetime], first: Moment | None = None) -> None:
        """`now` is the time on the ledger's clock."""
        self._usable = seconds - min(seconds / 10, LONGEST_MARGIN)
        self._now, self._first = now, first

    def use(self) -> None:
        """To be called before each send. Expired if the window is over."""
        now = Moment.now(self._now())
        if self._first is None:
            self._first = now
        elif now.since(self._first) >= self._usable:
            raise Expired(
                "KEY_EXPIRED", "the window of the idempotency key is over, so the request was not repeated"
            )

    @property
    def over(self) -> bool:
        return self._first is not None and Moment.now(self._now()).since(self._first) >= self._usable


def _seconds() -> float:
    """Seconds since the machine's boot, time asleep included."""
    return time.clock_gettime(_CLOCK)


@cache
def _boot() -> str:
    """Names this boot of this machine; if it has no name, this process."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return secrets.token_hex(8)
