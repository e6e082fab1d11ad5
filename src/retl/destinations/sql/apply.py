"""Applies a staged batch to its table in the caller's transaction, and finds the rows that the table refuses.

A database fails a whole statement for one row, so the rows are halved inside savepoints until it is alone.
The caller commits.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from retl.destinations.batch import ABSENT, PRESENT, Batch, Kind, Mode, RowResult
from retl.destinations.sql.dialect import Session
from retl.destinations.sql.statements import Statements
from retl.errors import InvariantBroken

Found = dict[int, RowResult]  # the rows that were not written, by number

SWALLOWED = RowResult(
    Kind.REJECTED, "SWALLOWED", "the database reported success, but a trigger kept the row as it was"
)
KEY_CHANGED = RowResult(
    Kind.REJECTED, "KEY_CHANGED", "a trigger of the table changes the key: no row has the key that was sent"
)
NOT_EXACT = RowResult(
    Kind.REJECTED, "NOT_EXACT", "a column of the table would keep another value than the one that was sent"
)
KEY_COLLIDES = RowResult(
    Kind.REJECTED, "KEY_COLLIDES", "another row of the batch has a key that is equal in the table"
)


class Swallowed(Exception):
    """A trigger kept rows from being written as they were sent."""

    def __init__(self, result: RowResult) -> None:
        self.result = result


def insert_new(session: Session, load: Callable[[], None]) -> bool:
    """Load rows that should be new into the table itself, in half the time of a stage. False, and nothing was
    done, if the table refuses one."""
    try:
        with session.savepoint():
            load()
    except session.errors as error:
        if session.refusal(error) is None:
            raise
        return False
    return True


def stage(session: Session, sql: Statements, batch: Batch, load: Callable[[], None]) -> None:
    """Load the stage, which may have rows of another batch."""
    session.change(sql.empty())
    load()
    ((staged,),) = session.rows(f"SELECT count(*) FROM {sql.dialect.stage}")
    if staged != len(batch):
        raise InvariantBroken("ROWS_LOST", f"{staged} of {len(batch)} rows reached {sql.dialect.name}")


def inexact(sql: Statements, batch: Batch) -> Found:
    """The rows with a value that the table would keep as another one."""
    sent = len(sql.keys) if batch.operation == "delete" else len(sql.columns)
    bends = {column: one for column, one in sql.bends.items() if column < sent}
    return dict.fromkeys(batch.bent(bends), NOT_EXACT) if bends else {}


def apply(session: Session, sql: Statements, batch: Batch, refused: Found) -> Found:
    """Apply the staged rows, but not the `refused` ones; all others than the returned ones are written."""
    refused = dict(refused)
    if sql.folding and batch.mode != "append":
        refused |= {row: KEY_COLLIDES for (row,) in session.rows(sql.collisions())}
    for statement in sql.take_out(refused):
        session.change(statement)
    return Halving(session, sql, batch.mode).divide(0, len(batch) - 1) | refused


class Halving(Struct, frozen=True):
    """The rows of the stage, from number to number, each time in a savepoint."""

    session: Session
    sql: Statements
    mode: Mode

    def divide(self, first: int, last: int) -> Found:
        """Apply all of these rows that are not refused."""
        try:
            with self.session.savepoint():
                return self._apply(first, last)
        except Swallowed as swallowed:
            refused: RowResult | None = swallowed.result
        except self.session.errors as error:
            refused = self.session.refusal(error)
            if refused is None:
                raise
        if first == last:
            assert refused is not None
            return {first: refused}
        middle = (first + last) // 2
        return self.divide(first, middle) | self.divide(middle + 1, last)

    def _apply(self, first: int, last: int) -> Found:
        """Apply these rows; Swallowed if triggers kept one from being written, or moved it to another key."""
        session, sql, watched = self.session, self.sql, self.sql.table.triggers
        if self.mode == "delete":
            session.change(sql.delete(first, last))
            if watched and sql.shape.deletes == "delete" and session.rows(sql.there(first, last)):
                raise Swallowed(SWALLOWED)
            return {}
        if self.mode == "append":
            inserted = session.change(sql.insert(first, last, absent=False))
            if watched and inserted < session.rows(sql.sent(first, last))[0][0]:
                raise Swallowed(SWALLOWED)
            return {}
        if self.mode == "replace":
            session.change(sql.remove(first, last))
            if watched and session.rows(sql.there(first, last)):
                raise Swallowed(SWALLOWED)
        known = set[int]()
        if watched or self.mode != "upsert":
            known = {row for (row,) in session.rows(sql.there(first, last))}
        if self.mode not in ("insert_only", "replace"):
            self._update(first, last, watched=watched)
        if self.mode == "update_only":
            return {row: ABSENT for row in range(first, last + 1) if row not in known}
        inserted = session.change(sql.insert(first, last))
        if watched:
            self._see_inserted(first, last, inserted, known)
        return dict.fromkeys(known, PRESENT) if self.mode == "insert_only" else {}

    def _update(self, first: int, last: int, *, watched: bool) -> None:
        statement = self.sql.update(first, last)
        if statement is None:
            return
        due = self.session.rows(self.sql.due(first, last))[0][0] if watched else 0
        if self.session.change(statement) < due:
            raise Swallowed(SWALLOWED)

    def _see_inserted(self, first: int, last: int, inserted: int, known: set[int]) -> None:
        """Staged rows that were taken out are not counted: their keys are not there, and were not sent."""
        sent = self.session.rows(self.sql.sent(first, last))[0][0]
        there = len(self.session.rows(self.sql.there(first, last)))
        if there < sent:
            raise Swallowed(KEY_CHANGED if inserted + len(known) >= sent else SWALLOWED)
