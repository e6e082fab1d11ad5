"""One stream of batches for all lanes: each is opened in the ledger before a lane gets it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Protocol

from retl.delivery.answered import Answered
from retl.destinations.batch import Batch
from retl.observe import log

WINDOW = 16  # batches opened in the ledger at once; after a crash at most these are unknown
SMALL_WINDOW = 128  # for small batches, because each opening waits for the disk
SMALL_WINDOW_ROWS = 10_000


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


class Stream(Iterator[Batch]):
    """Thread-safe."""

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
