"""Where a run hands out the steps of its shards, one at a time, to everybody who asks for work.

Who asks has one ticket for the desk, and gets another one for each step. If its connection ends, the step
that it had is lost, and the run decides what becomes of it. Nothing here knows what a step does.
"""

from __future__ import annotations

import ssl
import subprocess
import threading
from contextlib import nullcontext, suppress
from queue import Empty, SimpleQueue
from select import POLLIN, poll

from msgspec.structs import replace

from retl.observe.signals import Stop
from retl.run.lines import TOKEN, Exchange, Line, Ticket, attend, dialled, exactly, shut

_ASKS = b"a"  # the direction of a connection to a desk
_DONE = b"."
_LOOK = 1.0  # seconds between two looks whether somebody who waits is still there


class Step:
    """A step that waits for somebody, or that somebody has, as `subprocess.Popen` shows a process."""

    def __init__(self, exchange: Exchange, name: str) -> None:
        self.line: Line = exchange.line()
        self.returncode: str | None = None
        self._exchange, self._name = exchange, name
        self._over = threading.Event()

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    def end(self, how: str) -> None:
        """Its line ends, and its ticket is good for nothing any more."""
        self.returncode = self.returncode or how
        self._exchange.forget(self.line)
        self._over.set()

    def wait(self, seconds: float | None = None) -> None:
        """subprocess.TimeoutExpired if it does not end in time."""
        if not self._over.wait(seconds):
            raise subprocess.TimeoutExpired(self._name, seconds or 0)

    def kill(self) -> None:
        self.end("the run has ended it")


class Desk:
    """The steps of a run that wait. Serve it at an exchange."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[Step | None] = SimpleQueue()
        self._closed = threading.Event()
        self._asking = 0

    def put(self, step: Step) -> None:
        self._waiting.put(step)

    def serve(self, sock: ssl.SSLSocket, _direction: bytes) -> None:
        """Give steps to somebody until the run or the connection ends."""
        self._asking += 1
        while step := self._next(sock):
            try:
                sock.sendall(step.line.ticket.token)
                exactly(sock, len(_DONE))
                step.end("its process ended")
            finally:
                step.end("the command that had it is gone")

    def hang_up(self) -> None:
        self._closed.set()
        for _ in range(self._asking):
            self._waiting.put(None)

    def _next(self, sock: ssl.SSLSocket) -> Step | None:
        """The next step that nobody has ended, if somebody is there to take it."""
        gone = poll()
        gone.register(sock, POLLIN)  # who waits says nothing
        while not self._closed.is_set():
            with suppress(Empty):
                step = self._waiting.get(timeout=_LOOK)
                if step is not None and not step.is_over:
                    if not gone.poll(0):
                        return step
                    self._waiting.put(step)
            if gone.poll(0):
                return None
        return None


def work(ticket: Ticket, stop: Stop | None = None) -> None:
    """Do the steps that a desk gives, until its run is over or gone. OSError if it cannot be reached,
    Stopped."""
    with (
        dialled(ticket, _ASKS) as sock,
        suppress(EOFError, OSError),
        stop.interrupting(lambda: shut(sock)) if stop else nullcontext(),
    ):
        while True:
            attend(replace(ticket, token=exactly(sock, TOKEN)), stop)
            sock.sendall(_DONE)
