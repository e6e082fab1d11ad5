"""Looks at sources now and then: did their version change since it was last delivered?

A look reads no row. A change counts when two looks in a row see the same version, because files may still be
written. A source that cannot be looked at is run: the run fails and says why.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

from msgspec import Struct

from retl.errors import RetlError, Stopped
from retl.observe import log
from retl.observe.signals import Stop
from retl.sources.api import Source

SETTLE = 1.0  # seconds until a change is looked at again, if `look` is longer
UNSETTLED = 60.0  # seconds after which a version that never rests counts as a change


class View(Struct):
    """What was seen of the source of one sync. `seen`: the version for which a run was asked; None: none
    yet."""

    source: Source[Any]
    every: float
    seen: str | None = None
    skips: bool = False  # what changed before the first look does not count
    next: float = 0.0  # on the clock of `monotonic`
    newer: str | None = None
    since: float = 0.0  # when `newer` first differed from `seen`
    failed: bool = False

    def look(self, stop: Stop, now: float) -> bool:
        """Whether a run must be asked for."""
        try:
            version = self.source.version(stop)
        except Stopped:
            return False
        except Exception as problem:  # noqa: BLE001 - a library may raise anything; the run tells
            return self._fail(problem, now)
        self.failed = False
        if self.skips:
            self.seen, self.skips = version, False
        settled = version == self.newer or now - self.since >= UNSETTLED
        if version == self.seen:
            self.newer, self.next = None, now + self.every
            return False
        if self.newer is None:
            self.since = now
        elif settled:
            self.seen, self.newer, self.next = version, None, now + self.every
            return True
        self.newer, self.next = version, now + min(SETTLE, self.every)
        return False

    def _fail(self, problem: Exception, now: float) -> bool:
        first, self.failed = not self.failed, True
        self.newer, self.next = None, now + self.every
        if first:
            code = problem.code if isinstance(problem, RetlError) else type(problem).__name__
            log.event("look_failed", level="warning", source=self.source.label, code=code)
        return first


class Looks:
    """The views of all syncs that follow their source, in a thread of their own."""

    def __init__(self, changed: Callable[[str], object], stop: Stop) -> None:
        """`changed` is called with the name of a sync whose source changed."""
        self._changed, self._stop = changed, stop
        self._views: Mapping[str, View] = {}
        self._ending = False
        self._awake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="retl-looks", daemon=True)

    def use(self, views: Mapping[str, View]) -> None:
        """Look at these from now on."""
        with self._awake:
            self._views = views
            self._awake.notify_all()

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        with self._awake:
            self._ending = True
            self._awake.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout=5)

    def turn(self) -> float | None:
        """Look where it is time to; returns the seconds until the next look, None without views."""
        views = self._views
        for name, view in views.items():
            if view.next <= monotonic() and not self._ending and view.look(self._stop, monotonic()):
                self._changed(name)
        now = monotonic()
        return max(0.0, min(one.next for one in views.values()) - now) if views else None

    def _run(self) -> None:
        while not self._ending and not self._stop.event.is_set():
            views = self._views
            seconds = self.turn()
            with self._awake:
                if views is self._views and not self._ending:
                    self._awake.wait(seconds)
