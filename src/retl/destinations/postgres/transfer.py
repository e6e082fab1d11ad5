"""Writes one batch in the caller's transaction: COPY, convert what must be judged (`conversion`), apply, and
find the rows that the table refuses.

Rows refused because of their order are found together (`ordering`), others by halving. The caller commits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import psycopg

from retl.destinations.batch import ABSENT, PRESENT, Batch, Kind, Mode, RowResult
from retl.destinations.postgres import conditional
from retl.destinations.postgres.arrangement import Arrangement
from retl.destinations.postgres.conversion import convert
from retl.destinations.postgres.halving import Found, Step, divide, halve, indexed
from retl.destinations.postgres.ordering import BY_ORDER, Staged
from retl.destinations.postgres.rejection import CARDINALITY, UNSUPPORTED, rejection
from retl.destinations.postgres.rules import read
from retl.destinations.postgres.statements import STAGE, Statements
from retl.errors import InvariantBroken
from retl.net.postgres import Session, copied

Count = Callable[[int], None]  # called with the number of bytes sent

SWALLOWED = RowResult(
    Kind.REJECTED, "SWALLOWED", "PostgreSQL reported success, but a trigger or policy kept the row as it was"
)
KEY_COLLIDES = RowResult(
    Kind.REJECTED, "KEY_COLLIDES", "another row of the batch has a key that is equal in the table"
)
KEY_CHANGED = RowResult(
    Kind.REJECTED, "KEY_CHANGED", "a trigger of the table changes the key: no row has the key that was sent"
)
# The result of a row that was not written, if its key is absent and if it is present.
_UNWRITTEN: dict[Mode, tuple[RowResult, RowResult]] = {
    "upsert": (SWALLOWED, SWALLOWED),
    "append": (SWALLOWED, SWALLOWED),
    "delete": (SWALLOWED, SWALLOWED),
    "insert_only": (SWALLOWED, PRESENT),
    "update_only": (ABSENT, SWALLOWED),
}


class _Astray(Exception):
    """Triggers wrote these rows under other keys."""

    def __init__(self, rows: Iterable[int]) -> None:
        self.rows = frozenset(rows)


class _Collided(Exception):
    """One row of the table stands for several staged rows."""


def copy_in(session: Session, sql: Statements, batch: Batch, count: Count) -> bool:
    """Copy rows that should be new into the table itself, in half the time of an upsert. False, and nothing
    was done, unless the table accepted every row as new; psycopg.Error if the fault is not in the rows or
    the table."""
    try:
        with session.transaction():
            if _copied(session, sql.copy_in(), batch.csv(numbered=False), count) != len(batch):
                raise psycopg.Rollback  # a trigger dropped some
            return True
    except psycopg.Error as error:
        if rejection(error, sql.names) is None and error.sqlstate != UNSUPPORTED:
            raise
    return False


def transfer(session: Session, sql: Statements, batch: Batch, count: Count) -> Found:
    """The rows that were not written, by number; a commit makes all others written.
    psycopg.Error if the fault is not in the rows. The stage must be empty."""
    try:
        with session.transaction():
            copy_staged(session, sql, batch, count)
    except psycopg.Error as error:
        rejected = rejection(error, sql.names)
        if rejected is None:
            raise
        if len(batch) == 1:
            return {0: rejected}
    else:
        last = len(batch) - 1
        refused = convert(session, sql, batch.mode, last) if sql.judged(batch.mode) else {}
        if sql.shape.conditional:
            return refused | conditional.write(session, sql, batch, refused, apply_all)
        if sql.digests and batch.mode == "update_only":  # which does not lock a row that has our values
            session.execute(sql.lock(batch.mode))
        found = refused | apply_all(session, sql, batch.mode, last)
        if batch.returns is not None and batch.mode != "delete":
            _return(session, sql, batch, found)
        return found
    first, second = batch.halves()
    found = transfer(session, sql, first, count)
    session.execute(sql.empty())
    later = transfer(session, sql, second, count)
    return found | {len(first) + row: result for row, result in later.items()}


def copy_apart(session: Session, sql: Statements, batch: Batch, count: Count, at: int = 0) -> Found:
    """Stage all rows that PostgreSQL can read, also if it cannot read others: these are returned. Later rows
    come first, so that a number below that of a row which is staged is free."""
    try:
        with session.transaction():
            copy_staged(session, sql, batch, count)
            if at:
                session.execute(sql.shift(batch.mode, len(batch), at))
        return {}
    except psycopg.Error as error:
        rejected = rejection(error, sql.names)
        if rejected is None:
            raise
        if len(batch) == 1:
            return {at: rejected}
    first, second = batch.halves()
    found = copy_apart(session, sql, second, count, at + len(first))
    return found | copy_apart(session, sql, first, count, at)


def _return(session: Session, sql: Statements, batch: Batch, found: Found) -> None:
    """Hand over the digests of the rows that were written: nobody else can change them before COMMIT."""
    assert batch.returns is not None
    if found:
        session.execute(sql.take_out(n for row in found for n in (row, -1 - row)))
    batch.returns.digests(batch, copied(session, sql.returned()))


def copy_staged(session: Session, sql: Statements, batch: Batch, count: Count) -> None:
    rows = _copied(session, sql.copy(batch.mode), batch.csv(), count)
    if rows != len(batch):  # if the source of a COPY fails midway, it may succeed with fewer rows
        raise InvariantBroken("ROWS_LOST", f"{rows} of {len(batch)} rows reached PostgreSQL")


def _copied(session: Session, statement: str, chunks: Iterable[bytes], count: Count) -> int:
    """The number of rows that the server reports."""
    with session.cursor() as cursor:
        with cursor.copy(statement) as copy:
            for chunk in chunks:
                copy.write(chunk)
                count(len(chunk))
        return cursor.rowcount


def apply_all(session: Session, sql: Statements, operation: Mode, last: int) -> Found:
    """Apply all staged rows, up to number `last`. Rows with colliding keys are removed before any halving,
    because halving would let the last of them win; at once if the statement could let one win in silence."""
    folding = sql.fit.folding and operation in ("upsert", "insert_only", "update_only")
    found = collided(session, sql) if folding else {}
    rejected = None
    try:
        return found | _apply(session, sql, operation, 0, last)
    except _Collided:
        pass
    except psycopg.Error as error:
        rejected = rejection(error, sql.names)
        if rejected is None and error.sqlstate != CARDINALITY:
            raise
    same = collided(session, sql)
    if rejected is not None and rejected.code in BY_ORDER and not same:
        return found | _in_order(session, sql, operation, last, rejected)
    step = _step(session, sql, operation)
    with indexed(session, STAGE):
        if rejected is None or same:
            return found | same | divide(step, 0, last)
        return found | halve(step, 0, last, rejected)


def collided(session: Session, sql: Statements) -> Found:
    """Take the rows with colliding keys out of the stage."""
    return {row: KEY_COLLIDES for (row,) in session.execute(sql.take_collisions()).fetchall()}


def _step(session: Session, sql: Statements, operation: Mode) -> Step:
    """Apply staged rows. With no colliding keys in the stage, only a trigger makes two keys one."""

    def refusal(error: psycopg.Error) -> RowResult | None:
        return KEY_CHANGED if error.sqlstate == CARDINALITY else rejection(error, sql.names)

    return Step(session, STAGE, lambda first, last: _apply(session, sql, operation, first, last), refusal)


def _in_order(session: Session, sql: Statements, operation: Mode, last: int, rejected: RowResult) -> Found:
    """Apply all staged rows except those that must wait, in an order in which the table takes them."""
    rules = sql.rules = sql.rules or read(session, sql.relation)
    step = _step(session, sql, operation)
    staged = Staged(session, sql, rules, operation, last + 1)
    found = staged.arrange(lift=True)
    left = _arranged(session, sql, operation, last, staged, found) if found.lifted else None
    if left is None:
        found = staged.arrange(lift=False)
        left = _arranged(session, sql, operation, last, staged, found)
    if left is None:  # the table refuses rows for another reason too
        session.execute(sql.set_aside(found.blocked))
        with indexed(session, STAGE):
            left = halve(step, 0, last, rejected)
    if rules.exact or not found.blocked:
        return found.blocked | left
    with indexed(session, STAGE):
        aside = divide(step, -1 - last, -1)  # a trigger may have made them fit
    for row, result in aside.items():
        foreseen = found.blocked[-1 - row]
        left[-1 - row] = foreseen if foreseen.code == result.code else result
    return left


def _arranged(
    session: Session, sql: Statements, operation: Mode, last: int, staged: Staged, found: Arrangement
) -> Found | None:
    """None, and nothing was done, if the table refuses a row all the same."""
    try:
        with session.transaction():
            session.execute(sql.set_aside(found.blocked))
            for statement in staged.lift(found.lifted):
                session.execute(statement)
            left = _apply(session, sql, operation, 0, last, found.order)
            if staged.settled(found.lifted):
                return left
            raise psycopg.Rollback
    except psycopg.Error as error:
        if rejection(error, sql.names) is None:
            raise
    return None


def _apply(
    session: Session, sql: Statements, operation: Mode, first: int, last: int, order: Sequence[int] = ()
) -> Found:
    """Apply staged rows in a savepoint, those of `order` in that order; returns the rows that were not
    written. If a trigger writes some under other keys, all is undone and the others are applied."""
    found: Found = {}
    watched = sql.triggers(operation)
    while True:
        try:
            with session.transaction():
                return found | _attempt(session, sql, operation, first, last, order, watched=watched)
        except _Astray as astray:
            lost = astray.rows
        if operation == "update_only":  # a key may have been absent before
            before = session.execute(sql.left(operation, first, last)).fetchall()
            lost -= {row for row, is_absent in before if is_absent}
        if lost:
            session.execute(sql.take_out(sorted(lost)))
            found |= dict.fromkeys(lost, KEY_CHANGED)
        watched = bool(lost)


def _attempt(
    session: Session,
    sql: Statements,
    operation: Mode,
    first: int,
    last: int,
    order: Sequence[int],
    *,
    watched: bool,
) -> Found:
    """Apply staged rows; with `watched` the row count is no proof. An UPDATE has no order: the rows of
    `order` are updated one by one."""
    if operation == "update_only" and order:
        with indexed(session, STAGE):
            for row in order:
                session.execute(sql.apply(operation, row, row))
        order = ()
    cursor = session.execute(sql.apply(operation, first, last, order))
    counts = cursor.fetchone() if cursor.description else None
    written, under_any_key = (counts[0], counts[-1]) if counts else (cursor.rowcount, cursor.rowcount)
    if written == under_any_key == last - first + 1 and not watched:
        return {}
    if written > under_any_key or (operation == "update_only" and _one(session, sql.collides())):
        raise _Collided
    rows = session.execute(sql.left(operation, first, last)).fetchall()
    if operation == "update_only" and not watched and not all(is_absent for _, is_absent in rows):
        # UPDATE does not lock a row that has our values: another session may have changed it meanwhile
        session.execute(sql.apply(operation, first, last))
        rows = session.execute(sql.left(operation, first, last)).fetchall()
    if watched and rows and operation != "delete":
        placed = written if operation == "insert_only" else _one(session, sql.in_place(first, last))
        if placed < under_any_key:
            raise _Astray(row for row, is_absent in rows if is_absent or operation != "insert_only")
    absent, present = _UNWRITTEN[operation]
    return {row: absent if is_absent else present for row, is_absent in rows}


def _one(session: Session, query: str) -> Any:
    row = session.execute(query).fetchone()
    return row[0] if row else None
