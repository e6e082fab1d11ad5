"""Work for observers that no run waits for: done in order, in a thread of its own.

At the end it is waited for a few seconds and no longer. What fails is one warning with a CODE and the kind
of error, whose text could hold anything; nothing is ever raised.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread

from retl.observe import log

SECONDS = 5.0  # that a finished run waits for a collector that does not answer
Work = Callable[[], object]


class Aside:
    """`code` is what a failure is called; `libraries` keep their own complaints off stderr."""

    def __init__(self, code: str, *libraries: str) -> None:
        self.code = code
        self._warned = False
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        for name in libraries:
            logging.getLogger(name).addHandler(logging.NullHandler())
        self._thread = Thread(target=self._work, name=f"retl-{code.lower()}", daemon=True)
        self._thread.start()

    def do(self, work: Work) -> None:
        """Some time later, after everything that was asked for before."""
        self._queue.put(work)

    def close(self) -> None:
        """Wait until all is done, but no longer than SECONDS."""
        self._queue.put(None)
        self._thread.join(SECONDS)
        if self._thread.is_alive():
            self.warn(f"not all was sent within {SECONDS:.0f} s")

    def warn(self, why: str) -> None:
        if not self._warned:
            self._warned = True
            log.get().warning(self.code.lower(), code=self.code, why=why)

    def _work(self) -> None:
        for work in iter(self._queue.get, None):
            try:
                work()
            except Exception as problem:  # noqa: BLE001 - whatever a library raises, the run goes on
                self.warn(type(problem).__name__)
