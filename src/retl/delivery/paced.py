"""A destination that keeps its connection's pace: the same interface, and no request without room for it.

A client that the destination made with the lane's gate asks for each of its requests: tokens, look-ups and
questions after a job too. Where no client asks, a batch is one request. It retries nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from retl.destinations.api import Destination
from retl.destinations.batch import Answer, Batch, Visit, WriteMode
from retl.net.auth import Permit
from retl.net.gate import Gate
from retl.net.waits import Quota
from retl.observe.signals import Stop
from retl.pace.limiter import Pace


class PacedGate(Gate):
    """Room for requests by the connection's pace; Stopped where a stop came first."""

    def __init__(self, pace: Pace, stop: Stop) -> None:
        self._pace, self._stop = pace, stop
        self._per_request = False

    def permits(self) -> Permit:
        self._per_request = True
        return self._pace.permits(self._stop)

    def on_quota(self, quota: Quota) -> None:
        self._pace.on_quota(quota)

    def batch(self) -> AbstractContextManager[object]:
        """Room for a batch, unless each of its requests asks by itself."""
        return nullcontext() if self._per_request else self._pace.held(self._stop)


class Paced(Destination[Any]):
    """What `make` makes, held to a pace."""

    def __init__(self, make: Callable[[Gate], Destination[Any]], pace: Pace, stop: Stop) -> None:
        gate = PacedGate(pace, stop)
        self._inner = inner = make(gate)
        super().__init__(inner.options, inner.shape, gate)
        self._gate = gate
        self.capabilities = inner.capabilities

    @property
    def sent(self) -> int:
        return self._inner.sent

    @classmethod
    def place(cls, options: Any, write: WriteMode) -> str:
        raise TypeError("a place is the destination's: ask its class")

    def check(self, visit: Visit) -> None:
        self._inner.check(visit)

    def prepare(self, visit: Visit) -> None:
        self._inner.prepare(visit)

    def write(self, batch: Batch) -> Answer:
        with self._gate.batch():
            return self._inner.write(batch)

    def resolve(self, batch: Batch, handle: str | None, *, act: bool = True) -> Answer:
        with self._gate.batch():
            return self._inner.resolve(batch, handle, act=act)

    def read(self, batch: Batch) -> Iterator[Mapping[str, Any] | None]:
        return self._inner.read(batch)

    def preview(self, batch: Batch) -> bytes:
        return self._inner.preview(batch)

    def interrupt(self) -> None:
        self._inner.interrupt()

    def close(self) -> None:
        self._inner.close()
