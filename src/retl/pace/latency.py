"""Is a target slower than it was when it was calm? Pure: seconds in, a fraction out.

Each request is held against the calm level of requests of its own size, so that a batch of a thousand
rows after a batch of one does not look like a target in trouble.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median_low

LOOK = 8  # requests: so many make a level, and the median of the last so many is what is judged
FLOOR = 0.05  # seconds below which nobody is called slow
SLOWEST = 1 / 8
_FOLLOW = 1 / 64  # how fast the calm level follows requests that are not slow


@dataclass
class Latency:
    """Of one connection. `fraction` is the part of the usual pace that the target bears now: 1, halved
    each time its latency doubles, 1/8 at the least. It recovers as the latency does."""

    fraction: float = 1.0
    _ratios: deque[float] = field(default_factory=lambda: deque(maxlen=LOOK))
    _first: dict[int, list[float]] = field(default_factory=dict)  # by size: until the level is known
    _calm: dict[int, float] = field(default_factory=dict)

    def add(self, seconds: float, size: int) -> None:
        """A request of so many bytes was answered after so long."""
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
