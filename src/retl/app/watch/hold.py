"""The right to watch a project: one process has it, by a lock in the ledger. With it come the ledger, for
what is asked between runs, and the ledger's clock."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from retl.errors import Later, LedgerError
from retl.observe import log
from retl.pace.limiter import monotonic

if TYPE_CHECKING:
    from retl.ledger import Ledger, Lock

NAME = "retl watch"  # no sync can have this name


class Hold:
    """Close it to let another process watch. `ledger` is used by one thread at a time."""

    def __init__(self, opened: Callable[[], Ledger]) -> None:
        """Later LOCK_HELD if another process watches the project."""
        self._opened = opened
        self.ledger: Ledger
        self._lock: Lock | None = None
        self._take()
        self._moment: datetime = self.ledger.now()
        self._at = monotonic()

    def now(self) -> datetime:
        """The time on the ledger's clock, as of the last `renew`."""
        return self._moment + timedelta(seconds=monotonic() - self._at)

    @property
    def is_held(self) -> bool:
        return self._lock is not None

    def renew(self) -> None:
        """Look whether the lock is still ours, and take it again if it was lost with its connection. Later
        LOCK_HELD if another process has it now. An unreachable ledger is only logged: runs say so too."""
        try:
            if self._lock is not None:
                self._check()
            if self._lock is None:
                self._take()
            self._moment, self._at = self.ledger.now(), monotonic()
        except LedgerError as problem:
            log.event("ledger_unreachable", level="warning", code=problem.code)

    def close(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self.ledger.close()
        self._lock = None

    def _check(self) -> None:
        assert self._lock is not None
        try:
            self._lock.check()
            self.ledger.now()
        except LedgerError:
            self.close()

    def _take(self) -> None:
        ledger = self._opened()
        try:
            self._lock = ledger.lock([], sync=NAME, host=socket.gethostname(), pid=os.getpid())
            self.ledger = ledger
        except Later as problem:
            ledger.close()
            hint = "a project is watched by one process: end the other one first"
            raise Later(problem.code, problem.message, hint=hint) from None
        except BaseException:
            ledger.close()
            raise
