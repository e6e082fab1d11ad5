"""A table of a server with locks of its own: while a run writes, one more session keeps other ledgers out.

The session has a lock of the table, and one that says which ledger has it.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Generic

from retl.destinations.batch import Batch, Trace, Visit
from retl.destinations.sql.dialect import Session
from retl.destinations.sql.table import SQL, SqlTable
from retl.errors import Systemic


class GuardedTable(SqlTable[SQL], Generic[SQL]):
    """The locks are taken by `check` of a run that will write, and last until `close`."""

    _guard: Session | None = None

    def check(self, visit: Visit) -> Trace | None:
        if visit.exclusive and self._guard is None:
            self._guard = self._hold()
        return super().check(visit)

    def _hold(self) -> Session:
        """A session with both locks. Later TARGET_HELD if somebody else has the table."""
        session = self._connect(write=True)
        try:
            with session.transaction(write=False):
                self._take(session)
                if self._has_marks(session):  # what is not committed yet ends first
                    session.rows(f"SELECT count(*) FROM {self._sql.marker}")
        except BaseException:
            session.close()
            raise
        return session

    @abstractmethod
    def _take(self, session: Session) -> None:
        """Take both locks. Later TARGET_HELD."""

    @abstractmethod
    def _is_ours(self, session: Session) -> bool:
        """Whether this ledger still has the table."""

    def _confirm(self, session: Session, batch: Batch) -> None:
        """After its mark was written: a ledger that takes the lock now waits for this transaction."""
        if batch.exclusive and not self._is_ours(session):
            raise Systemic(
                "TARGET_LOCK_LOST",
                f"the session that kept other ledgers away from {self._relation} is gone: nothing more is"
                " written",
                hint="run the same command again: it continues after what was confirmed",
            )

    def close(self) -> None:
        super().close()
        if self._guard is not None:
            self._guard.close()
        self._guard = None
