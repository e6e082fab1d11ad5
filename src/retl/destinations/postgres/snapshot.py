"""Makes the table hold one mart and nothing else, in the caller's transaction: rows that differ are written,
rows whose keys are not in the mart are deleted. It takes no lock that makes readers wait.

A row that the table refuses is not in the table afterwards. If it refuses more than the sync allows, or all,
nothing is written.
"""

from __future__ import annotations

import psycopg

from retl.destinations.batch import Batch
from retl.destinations.postgres.conversion import convert
from retl.destinations.postgres.halving import Found
from retl.destinations.postgres.rejection import rejection
from retl.destinations.postgres.statements import STAGE, Statements
from retl.destinations.postgres.transfer import KEY_CHANGED, KEY_COLLIDES, Count, apply_all, copy_apart
from retl.errors import Systemic
from retl.net.postgres import Session

REFUSED = "SNAPSHOT_REFUSED"


def publish(session: Session, sql: Statements, batch: Batch, count: Count) -> tuple[Found, int]:
    """The rows that were not written, by number; a commit makes all others the content of the table. And how
    many rows of the table it takes out because the mart does not have their keys.
    Systemic FAILED_RATE, SNAPSHOT_REFUSED; psycopg.Error if the fault is not in the rows."""
    found: Found = {}
    removed = 0
    with session.transaction():
        found = copy_apart(session, sql, batch, count)
        session.execute(f"ANALYZE {STAGE}")
        refused, removed = _replace(session, sql, batch)
        found |= refused
        if len(found) == len(batch):
            raise psycopg.Rollback
    if len(found) < len(batch):
        _require_enough(batch, found)
    return found, removed


def _replace(session: Session, sql: Statements, batch: Batch) -> tuple[Found, int]:
    """Deletes come first, because they free unique values. If rows that stay still refer to what leaves, it
    leaves once these are written, and then rows that were refused have another chance."""
    last = len(batch) - 1
    found = convert(session, sql, batch.mode, last) if sql.judged(batch.mode) else {}
    removed = early = _removed(session, sql)
    refused = apply_all(session, sql, batch.mode, last)
    if early is None:
        session.execute(sql.put_back())
        removed = _remove(session, sql)
        refused = apply_all(session, sql, batch.mode, last) | _gone(refused) if refused else {}
    found |= refused
    if found:
        session.execute(sql.take_out(number for row in found for number in (row, -1 - row)))
        _remove(session, sql)
    if sql.triggers("delete") and _one(session, sql.absent()):
        raise Systemic(
            REFUSED,
            "a trigger of the table keeps rows that are not in the mart: nothing was written",
            hint="change the trigger, or use `mode: changes`",
        )
    return found, removed or 0


def _gone(refused: Found) -> Found:
    """Of the refused rows those that are no longer staged."""
    return {row: one for row, one in refused.items() if one in (KEY_COLLIDES, KEY_CHANGED)}


def _remove(session: Session, sql: Statements) -> int:
    removed = _removed(session, sql)
    if removed is None:
        raise Systemic(
            REFUSED,
            "rows that are not in the mart cannot be deleted, because rows of other tables, or of this one,"
            " refer to them: nothing was written",
            hint="remove what refers to them, or use `mode: changes`, which delivers all other rows",
        )
    return removed


def _removed(session: Session, sql: Statements) -> int | None:
    """Delete what is not staged, and return how many rows; None, and nothing was done, if the table refuses
    that."""
    try:
        with session.transaction():
            return session.execute(sql.remove_absent()).rowcount
    except psycopg.Error as error:
        if rejection(error, sql.names) is None:
            raise
    return None


def _require_enough(batch: Batch, found: Found) -> None:
    if batch.most_refused is None or len(found) <= batch.most_refused:
        return
    first = found[min(found)]
    raise Systemic(
        "FAILED_RATE",
        f"the table refuses {len(found)} of {len(batch)} rows, more than max_failed_rate allows; the first:"
        f" {first.reason} ({first.code}). Nothing was written",
        hint="fix the rows or the table",
    )


def _one(session: Session, query: str) -> bool:
    row = session.execute(query).fetchone()
    return bool(row and row[0])
