"""A destination that keeps its connection's pace: the same interface, and a permit for every request.

A client that the destination made with the lane's gate takes a permit for each request, also for tokens,
look-ups and the state of a job. Without such a client, a batch is one request. It retries nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from retl.destinations.api import Destination
from retl.destinations.batch import Answer, Batch, Field, Folds, Peeked, Trace, Visit, WriteMode
from retl.net.auth import Permit
from retl.net.gate import Gate
from retl.net.waits import Quota
from retl.observe.signals import Stop
from retl.pace.limiter import Pace


class PacedGate(Gate):
    """Permits by the connection's pace. Stopped if a stop request comes first."""

    def __init__(self, pace: Pace, stop: Stop) -> None:
        self._pace, self._stop = pace, stop
        self._per_request = False

    def permits(self) -> Permit:
        self._per_request = True
        return self._pace.permits(self._stop)

    def on_quota(self, quota: Quota) -> None:
        self._pace.on_quota(quota)

    def batch(self) -> AbstractContextManager[object]:
        """A permit for a batch, unless its requests take permits themselves."""
        return nullcontext() if self._per_request else self._pace.held(self._stop)


class Paced(Destination[Any]):
    """The destination of `make`, under a pace."""

    def __init__(self, make: Callable[[Gate], Destination[Any]], pace: Pace, stop: Stop) -> None:
        self._pace, gate = pace, PacedGate(pace, stop)
        self._inner = inner = make(gate)
        super().__init__(inner.options, inner.shape, gate)
        self._gate = gate
        self.capabilities = inner.capabilities

    @property
    def sent(self) -> int:
        return self._inner.sent

    @property
    def folds(self) -> tuple[Folds, ...]:
        return self._inner.folds

    @classmethod
    def place(cls, options: Any, write: WriteMode) -> str:
        raise TypeError("a place is the destination's: ask its class")

    def check(self, visit: Visit) -> Trace | None:
        return self._inner.check(visit)

    def notes(self) -> list[str]:
        return self._inner.notes()

    def prepare(self, visit: Visit) -> None:
        self._pace.require_open()
        self._inner.prepare(visit)

    def write(self, batch: Batch) -> Answer:
        with self._gate.batch():
            return self._inner.write(batch)

    def resolve(self, batch: Batch, handle: str | None, *, act: bool = True) -> Answer:
        with self._gate.batch():
            return self._inner.resolve(batch, handle, act=act)

    def read(self, batch: Batch) -> Iterator[Mapping[str, Any] | None]:
        return self._inner.read(batch)

    def differing(self, batch: Batch) -> Iterator[tuple[str, ...] | None]:
        return self._inner.differing(batch)

    def peek(self, batch: Batch) -> Iterator[Peeked]:
        return self._inner.peek(batch)

    def scan(self) -> Iterator[tuple[str, ...]]:
        return self._inner.scan()

    def dump(self, fields: Sequence[Field]) -> Iterator[bytes] | None:
        return self._inner.dump(fields)

    def ask(self, sql: str) -> Any:
        return self._inner.ask(sql)

    @property
    def relation(self) -> str:
        return self._inner.relation

    def age_sql(self, column: str) -> str:
        return self._inner.age_sql(column)

    def preview(self, batch: Batch) -> bytes:
        return self._inner.preview(batch)

    def interrupt(self) -> None:
        self._inner.interrupt()

    def close(self) -> None:
        self._inner.close()
