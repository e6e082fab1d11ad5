"""One ledger at a time delivers to a table, on whatever machine it is.

Ledgers do not see each other's locks, so the target keeps the list of who is there: session advisory
locks of (table, ledger), all shared. Whoever meets another ledger's is sent away; the look and the entry
in the list are one step under a mutex. Each batch enters itself too, until its transaction ends: what is
still under way keeps others out even when the session that stood for its run is gone. Runs of one ledger
let each other pass: its own lock and its fence tell them apart.

That session also holds a lock of its run alone. A batch that could share it knows that the session is
gone; to look into pg_locks instead costs five times as much per batch.

It waits for nobody and ends nobody's session. A lock belongs to a session: behind a pooler that changes
sessions between transactions it is worth nothing.
"""

from __future__ import annotations

import os
import socket
from hashlib import sha256
from typing import Any

from retl.destinations.postgres.statements import LONGEST_NAME, Relation
from retl.errors import Later, Systemic
from retl.net.postgres import Session
from retl.values.sql import literal

# The two-int form is a space of its own: bigint locks, the ledger's among them, are never mistaken for it.
_HERE = (
    "l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted"
    " AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())"
)
# It stands still for as long as the run lasts, and no longer: no timeout for the idle ends it, and when its
# machine vanishes the server notices within a minute instead of two hours. PostgreSQL 13 lacks the first.
_LAST = """
SELECT set_config(name, value, false) FROM pg_catalog.pg_settings JOIN (VALUES ('idle_session_timeout', '0'),
  ('tcp_keepalives_idle', '30'), ('tcp_keepalives_interval', '10'), ('tcp_keepalives_count', '3')
) AS wanted (name, value) USING (name)
"""


class Exclusion:
    """The list of one table, as one ledger meets it."""

    def __init__(self, relation: Relation, state_id: str) -> None:
        self._relation = relation
        self._table = _number(f"retl table {relation}")
        self._ledger = _number(f"retl ledger {state_id}")
        self._batches = _number(f"retl batches of {state_id}")
        self._runs = _number(f"retl run into {relation}")
        self._state_id = state_id

    def take(self, session: Session, run_id: str) -> None:
        """Enter the run in the list for as long as the session lives. Later TARGET_HELD if another ledger is
        there. Call it in a transaction."""
        mutex = literal(f"retl:exclusion:{self._relation}")
        session.execute(f"SELECT pg_advisory_xact_lock(hashtextextended({mutex}, 0))")
        other = session.execute(self._others()).fetchone()
        if other is not None:
            raise Later(
                "TARGET_HELD",
                f"another ledger is delivering to {self._relation}: {_named(*other)}",
                hint="run it again when that run has ended",
            )
        here = f"pg_advisory_lock_shared({self._table}, {self._ledger})"
        session.execute(f"SELECT {here}, pg_advisory_lock({self._run(run_id)})")
        session.execute(_LAST)

    def begin(self, session: Session, run_id: str, first: str) -> None:
        """The first statement of a batch's transaction, and with it, in the same round trip, the batch's
        own entry. Systemic TARGET_LOCK_LOST if the run's is gone."""
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
                hint="run the same command again: it carries on from what was confirmed; behind a pooler"
                " retl needs sessions of its own",
            )

    def _run(self, run_id: str) -> str:
        return f"{self._runs}, {_number(f'retl {self._state_id} {run_id}')}"

    def _others(self) -> str:
        """The session that has been there longest, as far as it can be seen."""
        return (
            "SELECT l.pid, a.application_name, a.usename::text, host(a.client_addr),"
            " to_char(a.backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')"
            " FROM pg_catalog.pg_locks AS l LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid"
            f" WHERE {_HERE} AND l.classid = {self._table}"
            f" AND l.objid NOT IN ({self._ledger}, {self._batches})"
            " ORDER BY a.backend_start, l.pid LIMIT 1"
        )


def name(sync: str) -> str:
    """The application_name of the session that stands for a run: it tells others whom they met."""
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
    """31 bits: the same number as int4, which the lock functions take, and as oid, which pg_locks shows."""
    return int.from_bytes(sha256(text.encode()).digest()[:4], "big") & 0x7FFFFFFF
