"""Makes the stage of what was sent, where a column's type may alter values: one INSERT with the types' own
input, and one query that removes the rows in which a column does not give back what was sent."""

from __future__ import annotations

import psycopg
from msgspec.structs import replace

from retl.destinations.batch import Kind, Mode, RowResult
from retl.destinations.postgres.halving import Found, Step, halve, indexed
from retl.destinations.postgres.rejection import unreadable
from retl.destinations.postgres.statements import ROW, SENT, STAGE, Statements
from retl.net.postgres import Session
from retl.values.sql import literal, quoted

NOT_EXACT = "PostgreSQL would keep another value in this column, or this one in another form"


def convert(session: Session, sql: Statements, operation: Mode, last: int) -> Found:
    """Fill the stage with all rows that the table can hold, up to number `last`; returns the others."""

    def run(first: int, last: int) -> Found:
        with session.transaction():
            session.execute(fill(sql, operation, first, last))
        return {}

    found: Found = {}
    step = Step(session, SENT, run, lambda error: unreadable(error, sql.names))
    try:
        run(0, last)
    except psycopg.Error as error:
        rejected = step.refusal(error)
        if rejected is None:
            raise
        with indexed(session, SENT):
            refused = halve(step, 0, last, rejected)
        found = {row: _located(session, sql, operation, row, result) for row, result in refused.items()}
    for row, column in session.execute(take_inexact(sql, operation)).fetchall():
        found[row] = RowResult(Kind.REJECTED, "NOT_EXACT", f"{column}: {NOT_EXACT}")
    return found


def _located(session: Session, sql: Statements, operation: Mode, row: int, result: RowResult) -> RowResult:
    """The same result with its column: the error of a cast does not name it."""
    for name in sql.judged(operation):
        try:
            with session.transaction(force_rollback=True):
                session.execute(fill(sql, operation, row, row, only=name))
        except psycopg.Error as error:
            if error.sqlstate == result.code:
                return replace(result, reason=f"{name}: {(result.reason or '').removeprefix(f'{name}: ')}")
    return result


def fill(sql: Statements, operation: Mode, first: int, last: int, only: str | None = None) -> str:
    """Fill the stage with what the table's types make of the rows that were sent; `only` of this column.
    The assignment to the stage applies lengths, as an INSERT into the table would."""
    names, beside = ([only], []) if only else (sql.sent(operation), sql.beside(operation))
    columns = ", ".join([*(quoted(name) for name in names), *beside])
    values = [
        one.made(f"r.{quoted(name)}") if (one := sql.fit.judged.get(name)) else f"r.{quoted(name)}"
        for name in names
    ]
    listed = ", ".join([*values, *(f"r.{name}" for name in beside)])
    return (
        f"INSERT INTO {STAGE} ({ROW}, {columns}) SELECT r.{ROW}, {listed}"
        f" FROM {SENT} AS r WHERE r.{ROW} BETWEEN {first} AND {last}"
    )


def take_inexact(sql: Statements, operation: Mode) -> str:
    """Remove from the stage the rows of which a judged value is not what was sent; returns their numbers
    and one such column."""
    differs = {
        name: one.differs(f"r.{quoted(name)}", f"s.{quoted(name)}")
        for name, one in sql.judged(operation).items()
    }
    named = " ".join(f"WHEN {test} THEN {literal(name)}" for name, test in differs.items())
    return (
        f"DELETE FROM {STAGE} AS s USING {SENT} AS r WHERE s.{ROW} = r.{ROW}"
        f" AND ({' OR '.join(differs.values())}) RETURNING s.{ROW}, CASE {named} END"
    )
