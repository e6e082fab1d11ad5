"""Circuit breakers, one per connection: retl sends nothing to a dead target for a while.

Consecutive failures open a breaker; after the pause one run may try again. The pause is ten seconds for a
failed run, and ten more for each further one, up to a minute: who has just corrected an address waits
little. The ledger stores them, so they are shared by all processes and hosts.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from math import ceil

from msgspec import Struct

from retl.ledger.rejects import Rejects
from retl.ledger.rows import cell

FAILURES = 5
PAUSE = timedelta(seconds=60)  # at most
STEP = timedelta(seconds=10)  # for every FAILURES
SKEW = timedelta(seconds=60)  # between the clocks of the hosts of one ledger

_FAIL = """
INSERT INTO retl_breakers (connection, failures, opened_at, error) VALUES (?, ?, ?, ?)
ON CONFLICT (connection) DO UPDATE SET failures = retl_breakers.failures + excluded.failures,
  opened_at = excluded.opened_at, error = excluded.error
"""


class BreakerRow(Struct, frozen=True):
    """A connection's consecutive failures; `opened_at` is the time of the last one."""

    connection: str
    failures: int
    opened_at: datetime
    error: str

    @property
    def tripped(self) -> bool:
        return self.failures >= FAILURES

    def closes(self, now: datetime) -> float:
        """Seconds until a run may try again; 0 if it may. A clock that was set back tells nothing of the
        pause, and a run may try."""
        pause = min(PAUSE, STEP * (self.failures // FAILURES))
        if now < self.opened_at - SKEW:
            return 0.0
        return max(0.0, (self.opened_at + pause - now).total_seconds()) if self.tripped else 0.0

    def wait(self, now: datetime) -> int:
        """`closes` as people read it: whole seconds, none too few."""
        return ceil(self.closes(now))


class Breakers(Rejects):
    """The ledger's breakers."""

    def breakers(self) -> list[BreakerRow]:
        return self._database.rows(BreakerRow, "retl_breakers", "ORDER BY connection")

    def breaker(self, connection: str) -> BreakerRow | None:
        found = [one for one in self.breakers() if one.connection == connection]
        return found[0] if found else None

    def count_failures(self, connection: str, failures: int, code: str) -> None:
        """Add consecutive failures; the last one is now."""
        with self._database.transaction():
            self._database.change(_FAIL, connection, failures, cell(self.now()), code)

    def unblock(self, connection: str) -> bool:
        """Delete a connection's failures; True if its breaker was open."""
        found = self.breaker(connection)
        with self._decided():
            self._database.change("DELETE FROM retl_breakers WHERE connection = ?", connection)
        return found is not None and found.tripped
