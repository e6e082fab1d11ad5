"""Stop on signals: the first SIGTERM or SIGINT requests a stop, the second ends the process at once.

Python runs signal handlers only between bytecodes of the main thread, so a long DuckDB query would delay
them for minutes. Instead, a watcher thread reads the interpreter's wakeup pipe and calls the functions that
were registered to interrupt a blocking call.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from retl.errors import Stopped

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AGAIN = 0.05  # seconds between two interrupts of the same work


class Insistent(threading.Timer):
    """A timer that calls `interrupt` after `seconds`, and then again and again until it is cancelled: DuckDB
    and SQLite forget an interrupt that comes between two statements or just before one begins."""

    def __init__(self, seconds: float, interrupt: Callable[[], object]) -> None:
        super().__init__(seconds, interrupt)
        self.daemon = True

    def run(self) -> None:
        while not self.finished.wait(self.interval):
            self.function()
            self.interval = _AGAIN


class Stop:
    """A request to stop, shared by everything that waits or works in a run."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.signum: int | None = None
        self._interrupts: list[Callable[[], object]] = []
        self._queries: list[Callable[[], object]] = []
        self._calling = threading.Lock()
        self._insistent = Insistent(0, self._interrupt_queries)

    def request(self, signum: int) -> None:
        """Request a stop. A second call ends the process at once with 128 + signum."""
        if self.event.is_set():
            os._exit(128 + signum)
        self.signum = signum
        self.event.set()
        for interrupt in list(self._interrupts):
            interrupt()
        self._insistent.start()

    def check(self) -> None:
        """Raise Stopped if a stop was requested."""
        if self.event.is_set():
            raise Stopped(self.signum or signal.SIGTERM)

    def wait(self, seconds: float) -> None:
        """Sleep. Raise Stopped as soon as a stop is requested."""
        self.event.wait(seconds)
        self.check()

    @contextmanager
    def interrupting(self, interrupt: Callable[[], object]) -> Iterator[None]:
        """While the body runs, a stop request calls `interrupt` from another thread."""
        self._interrupts.append(interrupt)
        try:
            self.check()
            yield
        finally:
            self._interrupts.remove(interrupt)

    @contextmanager
    def interrupting_queries(self, interrupt: Callable[[], object]) -> Iterator[None]:
        """The same for queries of DuckDB or SQLite: the interrupt is repeated until the body ends, and never
        comes later."""
        self._queries.append(interrupt)
        try:
            self.check()
            yield
        finally:
            with self._calling:
                self._queries.remove(interrupt)

    def _interrupt_queries(self) -> None:
        with self._calling:
            if not self._queries:
                self._insistent.cancel()
            for interrupt in self._queries:
                interrupt()

    @contextmanager
    def listening(self, hangup: Callable[[], object] | None = None) -> Iterator[Stop]:
        """Listen to the process's signals until the former handlers come back; on SIGHUP call `hangup`, in a
        thread of its own. Signals reach the main thread only: in any other this listens to nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        calls = {int(signal.SIGHUP): hangup} if hangup is not None else {}
        former = {number: signal.signal(number, _noticed) for number in (*_SIGNALS, *calls)}
        former_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        watcher = threading.Thread(target=self._watch, args=(reader, calls), name="retl-signals", daemon=True)
        watcher.start()
        try:
            yield self
        finally:
            signal.set_wakeup_fd(former_fd)
            for number, handler in former.items():
                signal.signal(number, handler)
            os.close(writer)
            watcher.join(timeout=1)

    def _watch(self, reader: int, calls: Mapping[int, Callable[[], object]]) -> None:
        with os.fdopen(reader, "rb", buffering=0) as pipe:
            while numbers := pipe.read(1):
                if numbers[0] in _SIGNALS:  # the process may have handlers for others
                    self.request(numbers[0])
                elif numbers[0] in calls:
                    calls[numbers[0]]()


def _noticed(_signum: int, _frame: object) -> None:
    """Does nothing: the watcher thread acts. Without a Python handler the signal would end the process."""
