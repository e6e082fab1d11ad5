"""Notices a pooler that gives each transaction another server process (PgBouncer's transaction mode).

Settings, locks and temporary tables belong to a server process: there they would be lost, or become those of
other clients. So this is asked before a session changes anything. It refuses nothing itself.

A pooler invents the process number that it tells its client, so a session whose number is the server's own
is connected directly. Behind a pooler, either another session gets our process although we still hold it, or
we get another one ourselves; if neither happens, the pooler is in session mode.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

from retl.net.deadline import hang_up_after

if TYPE_CHECKING:
    import psycopg

SHARED = "is a pooler that gives each transaction another server process: locks and temporary tables get lost"
SESSION_MODE = "connect to the server itself, or set `pool_mode = session` in the pooler for this account"
OTHERS = 2  # sessions that try to get our process, all at once
LOOKS = 10  # a busy pool may give us the same process once or twice
PATIENCE = 3.0  # seconds to wait for a process: a pool in session mode may have no other
_NO_TRANSACTIONS = "08P01"  # PgBouncer's answer to BEGIN in statement mode
_PROCESS = "SELECT pg_catalog.pg_backend_pid()"

_in_session_mode: set[tuple[Any, ...]] = set()  # addresses, so that a run asks once


class Shared(Exception):
    """Other clients use the server process between our transactions."""


def require_own_process(session: psycopg.Connection[Any], process: int, keywords: Mapping[str, Any]) -> None:
    """Shared if the session does not keep `process`, which answered its first query. `keywords` open another
    session at the same address."""
    import psycopg

    address = tuple(keywords.get(name) for name in ("host", "port", "dbname", "user"))
    if process == session.info.backend_pid or address in _in_session_mode:
        return
    with ExitStack() as others:
        for _ in range(OTHERS):
            try:
                other = others.enter_context(closing(psycopg.connect(**keywords)))
                if _process(other) == process:  # it keeps its transaction open, so the next gets another
                    raise Shared
            except psycopg.Error as error:
                if error.sqlstate == _NO_TRANSACTIONS:
                    raise Shared from None
            if any(_process(session) != process for _ in range(LOOKS)):
                raise Shared
    _in_session_mode.add(address)


def _process(session: psycopg.Connection[Any]) -> int:
    with hang_up_after(PATIENCE, session.fileno()):
        row = session.execute(_PROCESS, prepare=False).fetchone()
    return int(row[0]) if row else 0
