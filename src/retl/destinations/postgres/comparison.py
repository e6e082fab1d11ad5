"""Compares the rows of a batch with the table, by the condition that decides whether a write changes a row.
It changes nothing but the temporary stage.
"""

from __future__ import annotations

import psycopg

from retl.destinations.batch import MODES, WRITTEN, Batch, Peeked
from retl.destinations.postgres.conditional import peek
from retl.destinations.postgres.conversion import fill, take_inexact
from retl.destinations.postgres.rejection import rejection, unreadable
from retl.destinations.postgres.statements import Statements
from retl.destinations.postgres.transfer import copy_staged
from retl.net.postgres import Session

Unequal = dict[int, tuple[str, ...] | None]


def unequal(session: Session, sql: Statements, batch: Batch) -> Unequal:
    """By number, the rows that the table does not hold as a write would leave them: the columns that differ,
    or None if it lacks the key. The stage must be empty. A row that the table cannot hold is found by
    halving."""
    inexact = _staged(session, sql, batch)
    if inexact is not None:
        rows = session.execute(sql.unequal()).fetchall()
        found: Unequal = {row: None if is_absent else tuple(names) for row, is_absent, names in rows}
        for row in inexact:
            session.execute(sql.empty())
            found[row] = _keyed(session, sql, batch.slice(batch.first + row, batch.first + row))
        return found
    if len(batch) == 1:
        return {0: _keyed(session, sql, batch)}
    first, second = batch.halves()
    found = unequal(session, sql, first)
    session.execute(sql.empty())
    return found | {len(first) + row: result for row, result in unequal(session, sql, second).items()}


def peeked(session: Session, sql: Statements, batch: Batch) -> list[Peeked]:
    """What a conditional write would do to each row. The stage must be empty."""
    if _staged(session, sql, batch) is not None:
        return peek(session, sql, batch)
    if len(batch) == 1:
        return [Peeked(WRITTEN)]
    first, second = batch.halves()
    found = peeked(session, sql, first)
    session.execute(sql.empty())
    return [*found, *peeked(session, sql, second)]


def _keyed(session: Session, sql: Statements, batch: Batch) -> tuple[str, ...] | None:
    """The answer for one row whose values the table cannot hold: all fields, if it has the key."""
    operation, condition = MODES["delete"]
    key = Batch(batch.rows, operation, condition, batch.run_id, batch.epoch, batch.first, batch.last)
    there = _staged(session, sql, key) == [] and session.execute(sql.present()).fetchall()
    return tuple(field.name for field in sql.shape.fields) if there else None


def _staged(session: Session, sql: Statements, batch: Batch) -> list[int] | None:
    """Stage the rows; returns those that the table would alter, or None if it refuses one. psycopg.Error if
    the fault is not in the rows."""
    judged = bool(sql.judged(batch.mode))
    try:
        with session.transaction():
            copy_staged(session, sql, batch, lambda size: None)
            if not judged:
                return []
            session.execute(fill(sql, batch.mode, 0, len(batch) - 1))
            return [row for row, _ in session.execute(take_inexact(sql, batch.mode)).fetchall()]
    except psycopg.Error as error:
        if (unreadable if judged else rejection)(error, sql.names) is None:
            raise
        return None
