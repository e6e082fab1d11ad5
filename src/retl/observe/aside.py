"""Runs the work of observers in order, in a thread of its own, so that no run waits for it.

At the end it waits at most a few seconds. A failure is one warning with a CODE and the type of the error,
because the error's text could contain anything. It never raises.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread

from retl.observe import log

SECONDS = 5.0  # how long a finished run waits for a collector
Work = Callable[[], object]


class Aside:
    """`code` is the code of the warning. The loggers of `libraries` are kept off stderr."""

    def __init__(self, code: str, *libraries: str) -> None:
        self.code = code
        self._warned = False
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        for name in libraries:
            logging.getLogger(name).addHandler(logging.NullHandler())
        self._thread = Thread(target=self._work, name=f"retl-{code.lower()}", daemon=True)
        self._thread.start()

    def do(self, work: Work) -> None:
        """Queue the work after all earlier work."""
        self._queue.put(work)

    def close(self) -> None:
        """Wait until all work is done, at most SECONDS."""
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
            except Exception as problem:  # noqa: BLE001 - a library may raise anything; the run goes on
                self.warn(type(problem).__name__)
