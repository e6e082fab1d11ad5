"""An end to every wait: a moment after which nobody is waited for, however slowly the other side sends.

A socket's own timeout bounds one read, so a server that sends a byte now and then is waited for without
end. A `TimedSocket` holds each of its steps to what is left until its deadline; where a library keeps its
socket to itself, `hang_up_after` ends the connection from outside. It knows no protocol.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import inf
from time import monotonic
from typing import Any


class Deadline:
    """So many seconds from now."""

    def __init__(self, seconds: float) -> None:
        self._end = monotonic() + seconds

    def left(self, longest: float = inf) -> float:
        """Seconds for the next step, at most `longest`; never 0, which would mean "do not block"."""
        return max(min(longest, self._end - monotonic()), 0.001)


class TimedSocket(socket.socket):
    """A socket that gives up at its deadline, or after `idle` seconds without a byte, with a TimeoutError.
    Until it is given a deadline it waits for nothing."""

    _deadline, _idle = Deadline(0), inf

    def wait_until(self, deadline: Deadline, idle: float = inf) -> None:
        self._deadline, self._idle = deadline, idle

    def is_quiet(self) -> bool:
        """Nothing to read. Between two answers there could only be the server's goodbye."""
        poll = select.poll()
        poll.register(self, select.POLLIN)
        return not poll.poll(0)

    def _limit(self) -> None:
        seconds = self._deadline.left(self._idle)
        if seconds != self.gettimeout():  # most often it is `idle` again, and a call of the system is spared
            self.settimeout(seconds)

    def send(self, data: Any, flags: int = 0, /) -> int:
        self._limit()
        return super().send(data, flags)

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        with memoryview(data).cast("B") as view:
            sent = 0
            while sent < len(view):
                sent += self.send(view[sent:], flags)

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        self._limit()
        return super().recv(buflen, flags)

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        self._limit()
        return super().recv_into(buffer, nbytes or 0, flags)


@contextmanager
def hang_up_after(seconds: float, fileno: int) -> Iterator[None]:
    """The connection behind the file descriptor ends if the block lasts longer."""

    def hang_up() -> None:
        with suppress(OSError):
            wire.shutdown(socket.SHUT_RDWR)

    with socket.socket(fileno=os.dup(fileno)) as wire:
        timer = threading.Timer(seconds, hang_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
