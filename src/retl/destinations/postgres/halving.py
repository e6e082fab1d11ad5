"""Finds the rows that PostgreSQL refuses: it fails a whole statement for one of them, so the statement is
halved inside savepoints until the row is alone. One bad row in 50,000 costs about 17 small statements."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
from msgspec import Struct

from retl.destinations.batch import RowResult
from retl.destinations.postgres.statements import index_rows, unindex_rows
from retl.net.postgres import Session

Found = dict[int, RowResult]  # the rows that were not written, by number


class Step(Struct, frozen=True):
    """A statement over rows of a temporary table, from number to number, in a savepoint of its own. `refusal`
    is the result of a row that the error concerns; None if it is not about a row."""

    session: Session
    table: str
    run: Callable[[int, int], Found]
    refusal: Callable[[psycopg.Error], RowResult | None]


def divide(step: Step, first: int, last: int) -> Found:
    """Run the step on all of these rows that are not refused."""
    try:
        return step.run(first, last)
    except psycopg.Error as error:
        rejected = step.refusal(error)
        if rejected is None:
            raise
    return halve(step, first, last, rejected)


def halve(step: Step, first: int, last: int, rejected: RowResult) -> Found:
    """The same after the step was refused for all of these rows at once."""
    if first == last:
        return {first: rejected}
    middle = (first + last) // 2
    return divide(step, first, middle) | divide(step, middle + 1, last)


@contextmanager
def indexed(session: Session, table: str) -> Iterator[None]:
    """For many statements over few rows each. An error ends the transaction and the index with it."""
    session.execute(index_rows(table))
    yield
    session.execute(unindex_rows())
