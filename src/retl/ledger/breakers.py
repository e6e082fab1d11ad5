"""Circuit breakers, one per connection: a target that is dead is left alone for a while.

So many failures in a row open it; after the pause one run may try again. They are kept here so that
every process and host of one ledger knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from retl.ledger.rejects import Rejects
from retl.ledger.rows import cell

FAILURES = 5
PAUSE = timedelta(seconds=60)

_FAIL = """
INSERT INTO retl_breakers (connection, failures, opened_at, error) VALUES (?, ?, ?, ?)
ON CONFLICT (connection) DO UPDATE SET failures = retl_breakers.failures + excluded.failures,
  opened_at = excluded.opened_at, error = excluded.error
"""


@dataclass(frozen=True, slots=True)
class BreakerRow:
    """A connection's failures in a row; `opened_at` is when the last of them was."""

    connection: str
    failures: int
    opened_at: datetime
    error: str

    @property
    def tripped(self) -> bool:
        return self.failures >= FAILURES

    def closes(self, now: datetime) -> float:
        """Seconds until a run may try again; 0 if it may."""
        return max(0.0, (self.opened_at + PAUSE - now).total_seconds()) if self.tripped else 0.0


class Breakers(Rejects):
    """The ledger's breakers."""

    def breakers(self) -> list[BreakerRow]:
        return self._database.rows(BreakerRow, "retl_breakers", "ORDER BY connection")

    def breaker(self, connection: str) -> BreakerRow | None:
        found = [one for one in self.breakers() if one.connection == connection]
        return found[0] if found else None

    def count_failures(self, connection: str, failures: int, code: str) -> None:
        """So many more failures in a row, the last one now."""
        with self._database.transaction():
            self._database.change(_FAIL, connection, failures, cell(self.now()), code)

    def unblock(self, connection: str) -> bool:
        """Forget a connection's failures; was its breaker open?"""
        found = self.breaker(connection)
        with self._database.transaction():
            self._database.change("DELETE FROM retl_breakers WHERE connection = ?", connection)
        return found is not None and found.tripped
