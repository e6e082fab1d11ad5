"""Ensures that only one ledger at a time delivers to a table, from any machine.

Ledgers do not see each other's locks, so the target lists them: each run holds a shared session advisory
lock of (table, ledger). A run that finds another ledger's lock is refused; a mutex makes test and lock one
step. Each batch takes such a lock too, until its transaction ends: an unfinished batch keeps others out even
if the run's session is gone. Runs of the same ledger are not refused here: its own lock and the fence
separate them.

The run's session also holds an exclusive lock of the run. If a batch can share that lock, the session is
gone; reading pg_locks instead would cost five times as much per batch.

It waits for no other session and ends none. A lock belongs to a session: behind a pooler that changes
sessions between transactions it has no effect.
"""

from __future__ import annotations

import os
import socket
from hashlib import sha256
from typing import Any

from retl.destinations.postgres.relation import LONGEST_NAME, Relation
from retl.errors import Later, Systemic
from retl.net.postgres import Session
from retl.values.sql import literal

# Locks of two ints (objsubid 2) never collide with bigint locks, such as the ledger's.
_HERE = (
    "l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted"
    " AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())"
)
# The session is idle during the run, so no idle timeout may end it. If its machine disappears, the server
# notices within a minute instead of two hours. PostgreSQL 13 has no idle_session_timeout.
_KEEP_OPEN = """
SELECT set_config(name, value, false) FROM pg_catalog.pg_settings JOIN (VALUES ('idle_session_timeout', '0'),
  ('tcp_keepalives_idle', '30'), ('tcp_keepalives_interval', '10'), ('tcp_keepalives_count', '3')
) AS wanted (name, value) USING (name)
"""


class Exclusion:
    """One ledger's locks on one table."""

    def __init__(self, relation: Relation, state_id: str) -> None:
        self._relation = relation
        self._table = _number(f"retl table {relation}")
        self._ledger = _number(f"retl ledger {state_id}")
        self._batches = _number(f"retl batches of {state_id}")
        self._runs = _number(f"retl run into {relation}")
        self._state_id = state_id

    def take(self, session: Session, run_id: str) -> None:
        """Take the run's locks, until the session ends. Later TARGET_HELD if another ledger has one. Call it
        in a transaction."""
        mutex = literal(f"retl:exclusion:{self._relation}")
        session.execute(f"SELECT pg_advisory_xact_lock(pg_catalog.hashtextextended({mutex}, 0))")
        other = session.execute(self._others()).fetchone()
        if other is not None:
            raise Later(
                "TARGET_HELD",
                f"another ledger is delivering to {self._relation}: {_named(*other)}",
                hint="run it again when that run has ended",
            )
        here = f"pg_advisory_lock_shared({self._table}, {self._ledger})"
        session.execute(f"SELECT {here}, pg_advisory_lock({self._run(run_id)})")
        session.execute(_KEEP_OPEN)

    def begin(self, session: Session, run_id: str, first: str) -> None:
        """Execute the first statement of a batch's transaction and take the batch's lock, in one round trip.
        Systemic TARGET_LOCK_LOST if the run's lock is gone."""
        entered = f"SELECT pg_advisory_xact_lock_shared({self._table}, {self._batches})"
        gone = f"SELECT pg_try_advisory_xact_lock_shared({self._run(run_id)})"
        cursor = session.execute(f"{first}; {entered}; {gone}", prepare=False)
        while cursor.nextset():
            pass
        if cursor.fetchone() != (False,):
            raise Systemic(
                "TARGET_LOCK_LOST",
                f"the session that kept other ledgers away from {self._relation} is gone: nothing more is"
                " written",
                hint="run the same command again: it continues after what was confirmed; a pooler must be in"
                " session mode",
            )

    def _run(self, run_id: str) -> str:
        return f"{self._runs}, {_number(f'retl {self._state_id} {run_id}')}"

    def _others(self) -> str:
        """The oldest session of another ledger, with what our role can see of it."""
        return (
            "SELECT l.pid, a.application_name, a.usename::text, host(a.client_addr),"
            " to_char(a.backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')"
            " FROM pg_catalog.pg_locks AS l LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid"
            f" WHERE {_HERE} AND l.classid = {self._table}"
            f" AND l.objid NOT IN ({self._ledger}, {self._batches})"
            " ORDER BY a.backend_start, l.pid LIMIT 1"
        )


def name(sync: str) -> str:
    """The application_name of a run's session: TARGET_HELD shows it to other ledgers."""
    room = LONGEST_NAME - len(tail := f" pid {os.getpid()} on {socket.gethostname()}")
    return f"retl:{sync}"[: max(room, 0)] + tail


def _named(pid: int, application: str | None, role: str | None, address: str | None, since: Any) -> str:
    session = [f"session {pid}", f"of role {role}" if role else "", f"from {address}" if address else ""]
    return (
        (f"{application}, " if application else "")
        + " ".join(filter(None, session))
        + (f", since {since}" if since else "")
    )


def _number(text: str) -> int:
    """31 bits: the same as int4, for the lock functions, and as oid, in pg_locks."""
    return int.from_bytes(sha256(text.encode()).digest()[:4], "big") & 0x7FFFFFFF
