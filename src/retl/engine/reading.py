"""How far a long read is, for people who wait: DuckDB's own measure, asked from a second thread.

It is asked only while somebody listens to events, and first after a second: a short read costs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from threading import Event, Thread
from typing import Any

import duckdb

from retl.engine.sql_text import Query
from retl.engine.workspace import Workspace
from retl.observe import log

EVERY = 1.0  # seconds
_PLAIN = ("PROJECTION", "SEQ_SCAN", "TABLE_SCAN")  # operators that give as many rows as they take


@contextmanager
def told(workspace: Workspace, query: Query) -> Iterator[None]:
    """While the body reads a query on this workspace's connection, events `mart_reading` say how far it
    is."""
    if not log.heard():
        yield
        return
    done, total = Event(), rows_of(workspace, query)
    thread = Thread(target=copy_context().run, args=(_tell, workspace, total, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def rows_of(workspace: Workspace, query: Query) -> int | None:
    """How many rows a query gives, if it reads a table as it is: what DuckDB estimates of others may be far
    from it, and a stream can be read only once."""
    if query.count is not None or query.meaning is not None:
        return query.count
    with suppress(duckdb.Error):  # the read itself says what is wrong
        found = workspace.con.execute(f"EXPLAIN (FORMAT json) {query.sql}", dict(query.parameters))
        (plan,) = json.loads(found.fetchall()[0][1])
        return _as_it_is(plan)
    return None


def _tell(workspace: Workspace, total: int | None, done: Event) -> None:
    while not done.wait(EVERY):
        share = workspace.con.query_progress() / 100
        if share > 0:  # else nothing yet, or a stream whose length nobody knows
            rows = None if total is None else round(total * min(share, 1))
            log.event("mart_reading", level="debug", share=round(share, 3), rows=rows)


def _as_it_is(plan: dict[str, Any]) -> int | None:
    extra, children = plan["extra_info"], plan["children"]
    if plan["name"].strip() not in _PLAIN or "Filters" in extra or len(children) > 1:
        return None
    return _as_it_is(children[0]) if children else int(extra["Estimated Cardinality"])
