"""Compares the rows of a batch with the table, by the condition that decides whether a write changes a row.
It changes nothing but the temporary stage.
"""

from __future__ import annotations

import psycopg

from retl.destinations.batch import MODES, Batch
from retl.destinations.postgres.rejection import rejection
from retl.destinations.postgres.statements import STAGE, Statements
from retl.destinations.postgres.transfer import copy_staged
from retl.net.postgres import Session


def unequal(session: Session, sql: Statements, batch: Batch) -> dict[int, bool | None]:
    """By number, the rows that the table does not hold as a write would leave them: False, or None if it
    lacks the key. The stage must be empty. A row that the table cannot hold is found by halving."""
    if _staged(session, sql, batch):
        rows = session.execute(sql.unequal()).fetchall()
        return {row: None if is_absent else False for row, is_absent in rows}
    if len(batch) == 1:
        return {0: _keyed(session, sql, batch)}
    first, second = batch.halves()
    found = unequal(session, sql, first)
    session.execute(f"DELETE FROM {STAGE}")
    return found | {len(first) + row: result for row, result in unequal(session, sql, second).items()}


def _keyed(session: Session, sql: Statements, batch: Batch) -> bool | None:
    """Whether the table has the key of the one row, whose values it cannot hold."""
    operation, condition = MODES["delete"]
    key = Batch(batch.rows, operation, condition, batch.run_id, batch.epoch, batch.first, batch.last)
    return False if _staged(session, sql, key) and session.execute(sql.present()).fetchall() else None


def _staged(session: Session, sql: Statements, batch: Batch) -> bool:
    """Whether the stage could take the rows; psycopg.Error if the fault is not in them."""
    try:
        with session.transaction():
            copy_staged(session, sql, batch, lambda size: None)
    except psycopg.Error as error:
        if rejection(error, sql.names) is None:
            raise
        return False
    return True
