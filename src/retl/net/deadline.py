"""Deadlines for connections, also if the other side sends slowly.

A socket's own timeout limits one read, so a server that sends a byte now and then could block forever. Each
step of a `TimedSocket` is limited to the time left until its deadline. If a library hides its socket,
`hang_up_after` closes the connection from outside. It knows no protocol.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from math import inf
from time import monotonic
from typing import Any


class Deadline:
    """A moment `seconds` from now."""

    def __init__(self, seconds: float) -> None:
        self._end = monotonic() + seconds

    def left(self, longest: float = inf) -> float:
        """Seconds for the next step, at most `longest`; never 0, which would mean "do not block"."""
        return max(min(longest, self._end - monotonic()), 0.001)

    @property
    def over(self) -> bool:
        return monotonic() >= self._end


_NO_WAIT = Deadline(0)


class TimedSocket(socket.socket):
    """A socket that raises TimeoutError at its deadline, or after `idle` seconds without a byte. Without a
    deadline it does not wait."""

    _deadline, _idle = _NO_WAIT, inf

    def wait_until(self, deadline: Deadline, idle: float = inf) -> None:
        self._deadline, self._idle = deadline, idle

    def hang_up(self) -> None:
        """End what another thread sends or waits for on this socket."""
        with suppress(OSError):
            socket.socket.shutdown(self, socket.SHUT_RDWR)  # that of TLS would go on without TLS

    def is_quiet(self) -> bool:
        """Whether there is nothing to read, so the server has not closed the connection."""
        poll = select.poll()
        poll.register(self, select.POLLIN)
        return not poll.poll(0)

    def _limit(self) -> None:
        if self._deadline.over and self._deadline is not _NO_WAIT:  # also if bytes never stop coming
            raise TimeoutError("the deadline is over")
        seconds = self._deadline.left(self._idle)
        if seconds != self.gettimeout():  # usually `idle` again, then a system call is saved
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
def hang_up_after(seconds: float, fileno: int) -> Iterator[Callable[[], None]]:
    """Close the connection of this file descriptor if the block takes longer than `seconds`. It gets the
    function that closes it, for other reasons."""

    def hang_up() -> None:
        with suppress(OSError):
            wire.shutdown(socket.SHUT_RDWR)

    with socket.socket(fileno=os.dup(fileno)) as wire:
        timer = threading.Timer(seconds, hang_up)
        timer.daemon = True
        timer.start()
        try:
            yield hang_up
        finally:
            timer.cancel()
            timer.join()
