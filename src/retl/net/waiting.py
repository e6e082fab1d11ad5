"""Waiting for a library that does not hear a request to stop, and may wait for ever for another machine.

Its call runs in a thread of its own, which is left alone if nobody waits any longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from threading import Thread
from typing import TypeVar

from retl.observe.signals import Stop

T = TypeVar("T")

LOOK_AGAIN = 0.5  # seconds between two looks for a request to stop


def within(stop: Stop, seconds: float, call: Callable[[], T]) -> T:
    """What a call returns. TimeoutError after `seconds`, Stopped if that is requested: the call itself is
    left alone in its thread, which ends with the process."""
    future = start(call)
    deadline = time.monotonic() + seconds
    while True:
        stop.check()
        left = deadline - time.monotonic()
        if wait_for([future], max(0.0, min(LOOK_AGAIN, left))).done:
            return future.result()
        if left <= 0:
            raise TimeoutError


def start(call: Callable[[], T]) -> Future[T]:
    """Begin a call in a thread of its own that no end of the process waits for."""
    future = Future[T]()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as problem:  # noqa: BLE001 - it is raised where the result is wanted
            future.set_exception(problem)

    Thread(target=run, name="retl-call", daemon=True).start()
    return future
