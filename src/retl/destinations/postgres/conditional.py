"""Writes staged rows where nobody else has changed them since our last write, in the batch's transaction.

Nearly all rows are as we left them: one UPDATE compares and writes those, and READ COMMITTED compares again
what another transaction changed meanwhile. The others are locked, judged field by field and then written as
ever; of a key that is not there only an INSERT can tell whether it stays so. To look first and to write later
would lose edits, as would any statement that tells the row as it was before without a lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain

import psycopg
from msgspec import Struct

from retl.destinations.batch import (
    ABSENT,
    PRESENT,
    WRITTEN,
    Batch,
    Decision,
    Kind,
    Mode,
    Peeked,
    RowResult,
)
from retl.destinations.conflict import BUSY, ROUNDS, gone, in_conflict, spared
from retl.destinations.postgres.halving import Found
from retl.destinations.postgres.rejection import CARDINALITY, rejection
from retl.destinations.postgres.statements import STAGE, Image, Statements
from retl.net.postgres import Session, copied

ApplyAll = Callable[[Session, Statements, Mode, int], Found]

RETURNS_OLD = 180000  # PostgreSQL's version
DECIDED = frozenset({Kind.CONFLICT, Kind.KEPT})


class Verdict(Struct, frozen=True):
    """Of a row that the table has: which compared fields stay as they are, which are written, which are in
    conflict, and a digest of both sides."""

    row: int
    kept: Sequence[bool]
    written: Sequence[bool]
    conflicts: Sequence[bool]
    both: str

    def result(self, sql: Statements, decision: Decision | None, *, ours: bool) -> RowResult:
        """The row's result, if nothing refuses it. Fields that a decision gives to the mart are written."""
        if any(self.conflicts):
            fields = zip(sql.shape.compared, self.conflicts, strict=True)
            queued = in_conflict([field.name for field, clash in fields if clash], self.both, decision)
            if queued is not None:
                return queued
        kind = Kind.WRITTEN
        if any(self.kept):
            kind = Kind.MERGED if any(self.written) else Kind.KEPT
        return RowResult(kind, ours=ours or kind is Kind.KEPT)

    def fields(self, sql: Statements) -> dict[str, str]:
        """What becomes of each compared field."""
        ends = zip(self.conflicts, self.kept, self.written, strict=True)
        names = [field.name for field in sql.shape.compared]
        return {
            name: "conflict" if clash else "keep" if kept else "write" if written else "same"
            for name, (clash, kept, written) in zip(names, ends, strict=True)
        }


def write(session: Session, sql: Statements, batch: Batch, refused: Found, apply_all: ApplyAll) -> Found:
    """The rows with another result than WRITTEN; `refused` are not staged. Puts the digests of the others,
    and the images of all."""
    updates = batch.mode in ("upsert", "update_only") and not (batch.new or sql.triggers("update_only"))
    updates = updates and sql.traits.unique  # the rows of the table that it returns are counted
    how = _how(session, sql) if updates and sql.shape.images and batch.returns is not None else None
    if how is None:
        _image(session, sql, batch)
    if batch.mode == "delete":
        return _delete(session, sql, batch, apply_all)
    found: Found = {}
    if sql.fit.folding:
        from retl.destinations.postgres.transfer import collided

        found = collided(session, sql)
    staged = len(batch) - len(refused) - len(found)
    told, done = b"", 0
    if batch.mode == "insert_only":
        known = dict[int, int](session.execute(sql.staged()).fetchall())
        there = {row for (row,) in session.execute(sql.present()).fetchall()}
        respected = _absent(sql, batch, known, known.keys() - there)
        _take_out(session, sql, respected)
        found |= respected
        found |= apply_all(session, sql, "insert_only", len(batch) - 1)
        _take_out(session, sql, found)
    elif how is not None:
        done = _untouched_imaged(session, sql, batch, how)
        if done < staged:
            left = [row for (row,) in session.execute(sql.not_updated()).fetchall()]
            _take_out(session, sql, left, but=True)
            _image(session, sql, batch)
            found |= _judged(session, sql, batch, apply_all)
    else:
        if updates:  # RETURNING is before what AFTER triggers do
            told = _untouched(session, sql)
        done = told.count(b"\n")
        if done < staged:
            _take_done(session, sql, told, staged - done)
            found |= _judged(session, sql, batch, apply_all)
    if batch.returns is not None:
        if done == staged:
            batch.returns.digests(batch, [told])
        else:
            batch.returns.digests(batch, chain([told], copied(session, sql.returned())))
    return found


def _image(session: Session, sql: Statements, batch: Batch) -> None:
    """Keep the staged rows as the table has them now, locked."""
    if sql.shape.images and batch.returns is not None:
        fields = [field.name for field in sql.shape.fields]
        names = sql.every_column if batch.mode == "delete" else fields
        batch.returns.images(batch, copied(session, sql.image(STAGE, batch.first, names)))


def _how(session: Session, sql: Statements) -> Image | None:
    """How an UPDATE returns the rows as they were. A row of a partition is not found by its ctid alone."""
    if session.info.server_version >= RETURNS_OLD:
        return "old"
    return "joined" if sql.traits.ordinary else None


def _delete(session: Session, sql: Statements, batch: Batch, apply_all: ApplyAll) -> Found:
    """A row that somebody touched, in a column that is ours or in any other, is not deleted."""
    found: Found = {}
    if sql.shape.conflicts != "warehouse_wins":
        session.execute(sql.lock("delete"))
        for row, held in session.execute(sql.touched()).fetchall():
            result = spared(sql.shape.conflicts, held, batch.decisions.get(batch.first + row))
            if result is not None:
                found[row] = result
        _take_out(session, sql, found)
    return found | apply_all(session, sql, "delete", len(batch) - 1)


def _untouched(session: Session, sql: Statements) -> bytes:
    """Update the rows that are as we left them. Nothing, if the table refuses one of them."""
    if not sql.shape.compared:
        return b""
    try:
        with session.transaction():
            return b"".join(copied(session, sql.update_untouched()))
    except psycopg.Error as error:
        if rejection(error, sql.names) is None and error.sqlstate != CARDINALITY:
            raise
    return b""


def _untouched_imaged(session: Session, sql: Statements, batch: Batch, how: Image) -> int:
    """The same, and the rows as they were: how many rows there were."""
    assert batch.returns is not None
    if not sql.shape.compared:
        return 0
    names, count = [field.name for field in sql.shape.fields], 0

    def returned() -> Iterator[bytes]:
        nonlocal count
        count = yield from copied(session, sql.update_untouched(how))

    try:
        with session.transaction():
            batch.returns.updated(batch, returned(), names)
        return count
    except psycopg.Error as error:
        batch.returns.forget(batch)
        if rejection(error, sql.names) is None and error.sqlstate != CARDINALITY:
            raise
    return 0


def _take_done(session: Session, sql: Statements, told: bytes, left: int) -> None:
    """Leave only the other rows in the stage."""
    rows = [int(line.partition(b",")[0]) for line in told.splitlines()]
    if not rows:
        return
    if len(rows) <= left:
        session.execute(sql.take_out(rows))
    else:
        done = frozenset(rows)
        others = (row for row, _ in session.execute(sql.staged()).fetchall() if row not in done)
        session.execute(sql.take_out(others, but=True))


def _judged(session: Session, sql: Statements, batch: Batch, apply_all: ApplyAll) -> Found:
    """Write all rows that are left in the stage, in rounds: a key may appear while it is inserted."""
    found: Found = {}
    appeared: set[int] = set()
    for _ in range(ROUNDS):
        session.execute(sql.lock(batch.mode))
        if appeared:
            _image(session, sql, batch)
        verdicts = [Verdict(*row) for row in session.execute(sql.judge(note=True)).fetchall()]
        known = dict[int, int](session.execute(sql.staged()).fetchall())
        found |= _write_present(session, sql, batch, verdicts, known, apply_all)
        absent = known.keys() - {one.row for one in verdicts}
        respected = _absent(sql, batch, known, absent)
        _take_out(session, sql, respected)
        found |= respected
        if not absent - found.keys():
            return found
        inserted = apply_all(session, sql, "insert_only", len(batch) - 1)
        appeared = {row for row, one in inserted.items() if one.kind is Kind.SKIPPED}
        refused = {row: one for row, one in inserted.items() if row not in appeared}
        _take_out(session, sql, refused)
        found |= refused
        if not appeared:
            return found
    _take_out(session, sql, appeared)
    return found | dict.fromkeys(appeared, BUSY)


def _write_present(
    session: Session,
    sql: Statements,
    batch: Batch,
    verdicts: Sequence[Verdict],
    known: dict[int, int],
    apply_all: ApplyAll,
) -> Found:
    """The results of rows that the table has, as far as they are not just written. A row that we did not know
    there is not ours."""
    results = _results(sql, batch, verdicts, known)
    left = {one.row for one in verdicts if any(one.conflicts) and results[one.row].kind in DECIDED}
    _take_out(session, sql, left)
    writes = {one.row for one in verdicts if any(one.written)} - left
    _set_apart(session, sql, [one.row for one in verdicts if one.row not in writes | left])
    if writes:
        refused = apply_all(session, sql, "update_only", len(batch) - 1)
        results |= {row: one for row, one in refused.items() if row in writes}
        refused = {row: one for row, one in refused.items() if row in writes}
        _take_out(session, sql, refused)
        _set_apart(session, sql, sorted(writes - refused.keys()))
    return {row: one for row, one in results.items() if one != WRITTEN}


def _results(
    sql: Statements, batch: Batch, verdicts: Sequence[Verdict], known: Mapping[int, int]
) -> dict[int, RowResult]:
    always = sql.shape.conflicts == "warehouse_wins"
    return {
        one.row: one.result(
            sql, batch.decisions.get(batch.first + one.row), ours=always or known[one.row] > 0
        )
        for one in verdicts
    }


def peek(session: Session, sql: Statements, batch: Batch) -> list[Peeked]:
    """What `write` would do to the rows, which are staged. It writes nothing; somebody may edit them after
    it."""
    if batch.mode == "delete":
        touched = dict[int, str](session.execute(sql.touched()).fetchall())
        strategy = sql.shape.conflicts
        rows = [spared(strategy, touched[row], None) if row in touched else None for row in range(len(batch))]
        return [Peeked(one or WRITTEN) for one in rows]
    known = dict[int, int](session.execute(sql.staged()).fetchall())
    verdicts = {one[0]: Verdict(*one) for one in session.execute(sql.judge(note=False)).fetchall()}
    results = _results(sql, batch, list(verdicts.values()), known)
    fields = {row: one.fields(sql) for row, one in verdicts.items()}
    if batch.mode == "insert_only":
        results, fields = dict.fromkeys(verdicts, PRESENT), {}
    absent = _absent(sql, batch, known, known.keys() - verdicts.keys())
    return [
        Peeked(results.get(row) or absent.get(row, WRITTEN), fields.get(row, {})) for row in range(len(batch))
    ]


def _absent(sql: Statements, batch: Batch, known: Mapping[int, int], rows: Iterable[int]) -> Found:
    """The results of rows that the table lacks and that are not made: somebody removed them, unless the sync
    wins; or the mode only updates."""
    if batch.mode == "update_only":
        return dict.fromkeys(rows, ABSENT)
    found: Found = {}
    for row in () if batch.refill else rows:
        if known[row]:
            result = gone(sql.shape.conflicts, batch.decisions.get(batch.first + row))
            if result is not None:
                found[row] = result
    return found


def _take_out(session: Session, sql: Statements, rows: Iterable[int], *, but: bool = False) -> None:
    numbers = list(_both(rows))
    if numbers:
        session.execute(sql.take_out(numbers, but=but))


def _set_apart(session: Session, sql: Statements, rows: Sequence[int]) -> None:
    if rows:
        session.execute(sql.apart(rows))


def _both(rows: Iterable[int]) -> Iterator[int]:
    """A row's number, and the one it has if it was set aside."""
    for row in rows:
        yield row
        yield -1 - row
