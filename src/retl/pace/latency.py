"""Detects a target that became slower than normal. Pure: seconds in, a fraction out.

Each request is compared with the normal time for requests of its size, so that a batch of a thousand rows
after a batch of one does not look slow.
"""

from __future__ import annotations

from collections import deque
from statistics import median_low

from msgspec import Struct, field

LOOK = 8  # number of requests for the normal time, and for the current median
FLOOR = 0.05  # seconds; a target below this is never slow
SLOWEST = 1 / 8
_FOLLOW = 1 / 64  # how fast the normal time follows requests that are not slow


class Latency(Struct):
    """The latency of one connection. `fraction` is the pace to use now: 1, halved each time the latency
    doubles, at least 1/8. It recovers when the latency does."""

    fraction: float = 1.0
    _ratios: deque[float] = field(default_factory=lambda: deque(maxlen=LOOK))
    _first: dict[int, list[float]] = field(default_factory=dict)  # by size, until the normal time is known
    _calm: dict[int, float] = field(default_factory=dict)

    def add(self, seconds: float, size: int) -> None:
        """Record a request of `size` bytes that took `seconds`."""
        kind = size.bit_length() // 2
        calm = self._calm.get(kind)
        if calm is None:
            first = self._first.setdefault(kind, [])
            first.append(seconds)
            if len(first) == LOOK:
                self._calm[kind] = median_low(self._first.pop(kind))
            return
        ratio = max(seconds, FLOOR) / max(calm, FLOOR)
        if ratio < 2:
            self._calm[kind] = calm + (seconds - calm) * _FOLLOW
        self._ratios.append(ratio)
        if len(self._ratios) < LOOK:
            return
        slower, self.fraction = median_low(self._ratios), 1.0
        while slower >= 2 and self.fraction > SLOWEST:
            slower, self.fraction = slower / 2, self.fraction / 2
