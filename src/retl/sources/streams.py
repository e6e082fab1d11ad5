"""Batches that a thread of its own reads ahead, as an Arrow stream: a request to stop does not wait for the
network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from queue import Empty, Full, Queue
from threading import Event
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]

from retl.net.waiting import LOOK_AGAIN, start
from retl.observe.signals import Stop

_AHEAD = 2  # batches that wait to be taken


def batches_of(reader: Any) -> tuple[Any, Callable[[], Iterable[Any]]]:
    """The schema and the batches of an Arrow stream of any library."""
    found = pa.RecordBatchReader.from_stream(reader)
    return found.schema, lambda: found


class Stream:
    """An Arrow stream in `reader`. What breaks it is in `problem`, as `failure` makes it of the library's
    error, because DuckDB passes on only a text."""

    def __init__(
        self,
        schema: Any,
        batches: Callable[[], Iterable[Any]],
        stop: Stop,
        failure: Callable[[Exception], BaseException],
    ) -> None:
        self._batches, self._stop, self._failure = batches, stop, failure
        self._ready: Queue[Any] = Queue(_AHEAD)
        self._closed = Event()
        self.problem: BaseException | None = None
        self.reader = pa.RecordBatchReader.from_batches(schema, self._taken())

    def close(self) -> None:
        """Read no further. The thread ends at its next batch."""
        self._closed.set()

    def _taken(self) -> Iterator[Any]:
        reading = start(self._read)
        try:
            while (batch := self._next()) is not None:
                yield batch
            reading.result()
        except Exception as problem:
            self.problem = self._failure(problem)
            raise
        finally:
            self.close()

    def _next(self) -> Any:
        """The next batch; None after the last one, or if there will be no more."""
        while True:
            self._stop.check()
            try:
                return self._ready.get(timeout=LOOK_AGAIN)
            except Empty:
                continue

    def _read(self) -> None:
        try:
            for batch in self._batches():
                if not self._put(batch):
                    return
        finally:
            self._put(None)

    def _put(self, batch: Any) -> bool:
        """Wait until somebody takes batches; False if nobody will."""
        while not self._closed.is_set():
            try:
                self._ready.put(batch, timeout=LOOK_AGAIN)
                return True
            except Full:
                continue
        return False
