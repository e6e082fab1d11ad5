"""Listens to PostgreSQL: a NOTIFY on a channel asks for a run of the syncs that name it.

The payload is not used. What is said while nobody listens is lost, so each new connection asks for a run
too. A database that cannot be reached is tried again; the first time a run is asked for, which says why.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from msgspec import Struct

from retl.errors import RetlError
from retl.observe import log

if TYPE_CHECKING:
    from retl.net.postgres import PostgresConnection, Session

PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between two attempts to connect


class Ears(Struct, frozen=True):
    """What is heard at one database: the syncs by channel. `missed`: those for which a first connection asks,
    because nobody knows what was said before."""

    database: PostgresConnection
    channels: Mapping[str, frozenset[str]]
    missed: frozenset[str]

    @property
    def syncs(self) -> frozenset[str]:
        return frozenset().union(*self.channels.values())


class Listener:
    """One session of one database, in a thread of its own. `connected`: it hears everything now."""

    def __init__(self, ears: Ears, ask: Callable[[str], object]) -> None:
        self.ears, self._ask = ears, ask
        self.connected = False
        self._reader, self._writer = os.pipe()
        self._thread = threading.Thread(target=self._run, name="retl-notify", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the session; the thread ends when a connection under way is made or has failed."""
        with suppress(OSError):
            os.close(self._writer)
        self._thread.join(timeout=5)

    def _run(self) -> None:
        pause, first = PAUSE, True
        with os.fdopen(self._reader, "rb", buffering=0):
            while True:
                try:
                    self._hear(first=first)
                    return
                except Exception as problem:  # noqa: BLE001 - whatever it is, it is tried again
                    if self.connected or first:
                        code = problem.code if isinstance(problem, RetlError) else type(problem).__name__
                        address = self.ears.database.address
                        log.event("listening_failed", level="warning", database=address, code=code)
                        pause = PAUSE
                        if not self.connected:
                            self._ask_for(self.ears.syncs)
                    self.connected = first = False
                if self._ends(pause):
                    return
                pause = min(pause * 2, LONGEST_PAUSE)

    def _hear(self, *, first: bool) -> None:
        """Listen until `close`."""
        from psycopg import sql

        with self.ears.database.connect("retl watch") as session:
            session.autocommit = True
            for channel in self.ears.channels:
                session.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
            self.connected = True
            log.event("listening_for_changes", database=self.ears.database.address)
            self._ask_for(self.ears.missed if first else self.ears.syncs)
            while not self._ends(None, session):
                heard = {one.channel for one in session.notifies(timeout=0)}
                self._ask_for(name for channel in heard for name in self.ears.channels.get(channel, ()))

    def _ask_for(self, syncs: Iterable[str]) -> None:
        for name in set(syncs):
            self._ask(name)

    def _ends(self, seconds: float | None, session: Session | None = None) -> bool:
        """Wait until there is something to read from the session; True if `close` came first."""
        poll = select.poll()
        poll.register(self._reader, select.POLLIN | select.POLLHUP)
        if session is not None:
            poll.register(session.fileno(), select.POLLIN)
        found = poll.poll(None if seconds is None else seconds * 1000)
        return any(number == self._reader for number, _ in found)


class Listeners:
    """The listeners of all databases that syncs name."""

    def __init__(self, ask: Callable[[str], object]) -> None:
        self._ask = ask
        self._running: list[Listener] = []

    def use(self, ears: Iterable[Ears]) -> None:
        """Listen to these from now on. One that stays the same stays connected."""
        wanted = list(ears)
        kept = [one for one in self._running if one.ears in wanted]
        former, self._running = self._running, kept
        for listener in former:
            if listener not in kept:
                listener.close()
        for one in wanted:
            if all(one != listener.ears for listener in kept):
                self._running.append(Listener(one, self._ask))
                self._running[-1].start()

    @property
    def deaf(self) -> list[str]:
        """The databases that are not connected."""
        return [one.ears.database.address for one in self._running if not one.connected]

    def close(self) -> None:
        self.use(())
