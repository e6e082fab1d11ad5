"""Restores rows as they were before an earlier run, where nobody has touched them since: in one transaction.

Every row of the table that is concerned is locked first, so what is compared is what is written. A field that
somebody changed after the run stays; a row that the run inserted is removed only if no column of it changed;
a row that the run deleted comes back with all its columns, unless its key is there again. Values are the
texts that PostgreSQL itself told of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import psycopg

from retl.destinations.batch import Batch, Kind, RowResult
from retl.destinations.conflict import GONE_SINCE, MADE_SINCE, PARTLY_RESTORED, TOUCHED_SINCE
from retl.destinations.postgres import digests
from retl.destinations.postgres.halving import Found
from retl.destinations.postgres.rejection import rejection
from retl.destinations.postgres.statements import KEPT, ROW, SEEN, TO_DO, Statements, constant
from retl.errors import InvariantBroken, Poisoned, Unavailable
from retl.net.postgres import Session, copied
from retl.values.sql import literal, quoted

STAGE = "pg_temp.retl_restore"
PARTLY = "retl_partly"  # whether somebody touched a field since


def restore(session: Session, sql: Statements, batch: Batch, count: Callable[[int], None]) -> Found:
    """The rows that are not restored, or in part."""
    _stage(session, sql, batch, count)
    if batch.returns is not None:
        batch.returns.images(batch, copied(session, sql.image(STAGE, batch.first, sql.every_column)))
    types = _types(session, sql)
    verdicts = session.execute(_judge(sql, types)).fetchall()
    found = {row: one for row, op, *facts in verdicts if (one := _result(op, *facts)) is not None}
    todo = [(row, op) for row, op, *_ in verdicts if found.get(row, PARTLY_RESTORED).kind is Kind.MERGED]
    found |= _apply(session, sql, types, sorted(todo, key=_in_order))
    if batch.returns is not None:
        batch.returns.digests(batch, copied(session, _returned(sql)))
    return found


def _in_order(row: tuple[int, str]) -> tuple[bool, int]:
    """Rows that are removed come last, and in the other direction: what refers to a row was made after it."""
    number, op = row
    return op == "remove", -number if op == "remove" else number


def _apply(
    session: Session, sql: Statements, types: dict[str, str], todo: Sequence[tuple[int, str]]
) -> Found:
    """Write these rows, in halves where the table refuses some of them; the rows that it refuses."""
    if not todo:
        return {}
    try:
        with session.transaction():
            _write(session, sql, types, todo)
        return {}
    except psycopg.Error as error:
        refused = rejection(error, sql.names)
        if refused is None:
            raise
    except Poisoned as problem:
        refused = RowResult(Kind.REJECTED, problem.code, problem.message)
    if len(todo) == 1:
        return {todo[0][0]: refused}
    middle = len(todo) // 2
    return _apply(session, sql, types, todo[:middle]) | _apply(session, sql, types, todo[middle:])


def _result(
    op: str, there: bool, touched: bool, kept: Sequence[bool] | None, writes: bool | None
) -> RowResult | None:
    """None if the row can be restored as a whole, or is as it was already."""
    if op == "remake":
        return MADE_SINCE if there else None
    if op == "remove":
        return TOUCHED_SINCE if there and touched else None
    if not there:
        return GONE_SINCE
    if op == "restore" and any(kept or ()):
        return PARTLY_RESTORED if writes else TOUCHED_SINCE
    return None


def _stage(session: Session, sql: Statements, batch: Batch, count: Callable[[int], None]) -> None:
    keys = ", ".join(f"t.{key}" for key in sql.keys)
    session.execute(
        f"CREATE TEMP TABLE {STAGE.partition('.')[2]} ON COMMIT DROP AS SELECT 0 AS {ROW}, ''::text AS op,"
        f" {keys}, NULL::json AS before, ''::bytea AS {SEEN}, ARRAY[]::boolean[] AS {KEPT}, false AS {PARTLY}"
        f" FROM {sql.relation.sql} AS t WHERE false"
    )
    columns = ", ".join([ROW, "op", *sql.keys, "before", SEEN])
    with session.cursor() as cursor:
        with cursor.copy(f"COPY {STAGE} ({columns}) FROM STDIN (FORMAT csv, NULL '')") as copy:
            for chunk in batch.csv():
                copy.write(chunk)
                count(len(chunk))
        if cursor.rowcount != len(batch):
            raise InvariantBroken("ROWS_LOST", f"{cursor.rowcount} of {len(batch)} rows reached PostgreSQL")


def _types(session: Session, sql: Statements) -> dict[str, str]:
    """The columns that can be written, with their types."""
    found = session.execute(
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_catalog.pg_attribute"
        f" WHERE attrelid = {literal(sql.relation.sql)}::regclass AND attnum > 0 AND NOT attisdropped"
        " AND attgenerated = ''"
    ).fetchall()
    return dict(found)


def _value(name: str, types: dict[str, str]) -> str:
    return f"(s.before ->> {literal(name)})::{types[name]}"


def _judge(sql: Statements, types: dict[str, str]) -> str:
    """Per staged row: number, what to do, whether the table has it, whether any column was touched, which
    compared fields stay, and whether another one is written. Notes whether fields stay, and those whose
    digest stays: also what the run had left to others is still theirs."""
    kept, writes, theirs = list[str](), list[str](), list[str]()
    for number, field in enumerate(sql.shape.compared, 1):
        column = f"t.{quoted(field.name)}"
        differs = f"{column}::text IS DISTINCT FROM (s.before ->> {literal(field.name)})"
        touched = f"{digests.digest(column)} IS DISTINCT FROM {digests.part(f's.{SEEN}', number)}"
        theirs.append(touched)
        kept.append(f"({differs} AND {touched})")
        writes.append(f"({differs} AND NOT {touched})")
    touched = f"{sql.held('t')} IS DISTINCT FROM s.{SEEN}"
    stays = f"CASE WHEN s.op = 'restore' THEN ARRAY[{', '.join(kept)}]::boolean[] END"
    listed = f"s.op, true, {touched}, {stays}, {' OR '.join(writes) or 'false'}"
    left = f"CASE WHEN s.op = 'restore' THEN ARRAY[{', '.join(theirs)}]::boolean[] END"
    noted = (
        f"UPDATE {STAGE} AS s SET {KEPT} = {left}, {PARTLY} = {' OR '.join(kept) or 'false'} FROM {sql.rows}"
        f" WHERE {TO_DO} AND {sql.same_key('t', 's')} RETURNING s.{ROW}, {listed}"
    )
    return (
        f"WITH noted AS ({noted}) SELECT * FROM noted UNION ALL"
        f" SELECT s.{ROW}, s.op, false, false, NULL, NULL FROM {STAGE} AS s"
        f" WHERE {TO_DO} AND NOT EXISTS (SELECT FROM {sql.rows} WHERE {sql.same_key('t', 's')})"
    )


def _write(session: Session, sql: Statements, types: dict[str, str], todo: Sequence[tuple[int, str]]) -> None:
    rows = {op: [row for row, of in todo if of == op] for op in ("restore", "flag", "remake", "remove")}
    matched = f"{STAGE} AS s WHERE {TO_DO} AND {sql.same_key('t', 's')} AND s.{ROW} IN"

    def listed(op: str) -> str:
        return f"({', '.join(map(str, rows[op]))})"

    if rows["restore"]:
        session.execute(f"UPDATE {sql.rows} SET {_sets(sql, types)} FROM {matched} {listed('restore')}")
    if rows["flag"]:
        flags = ", ".join(f"{quoted(n)} = {constant(v)}" for n, v in sql.shape.flags.items())
        session.execute(f"UPDATE {sql.rows} SET {flags} FROM {matched} {listed('flag')}")
    if rows["remake"]:
        _remake(session, sql, types, f"s.{ROW} IN {listed('remake')}", len(rows["remake"]))
    if rows["remove"]:
        session.execute(f"DELETE FROM {sql.rows} USING {matched} {listed('remove')}")


def _remake(session: Session, sql: Statements, types: dict[str, str], rows: str, count: int) -> None:
    """Insert the staged rows of this condition as they were. A column that is new since gets its default."""
    staged = f"{STAGE} AS s WHERE {rows}"
    found = session.execute(f"SELECT DISTINCT json_object_keys(s.before) FROM {staged}").fetchall()
    kept = [name for name in types if (name,) in found]
    made = session.execute(
        f"INSERT INTO {sql.relation.sql} ({', '.join(map(quoted, kept))}) OVERRIDING SYSTEM VALUE"
        f" SELECT {', '.join(_value(name, types) for name in kept)} FROM {staged} ON CONFLICT DO NOTHING"
    ).rowcount
    if made == count:
        return
    absent = f"NOT EXISTS (SELECT FROM {sql.rows} WHERE {sql.same_key('t', 's')})"
    if session.execute(f"SELECT FROM {staged} AND {absent} LIMIT 1").rowcount:
        raise Poisoned("23505", "another row has the same value")
    raise Unavailable("APPEARED", "a row appeared while it was restored")  # the next attempt sees it


def _sets(sql: Statements, types: dict[str, str]) -> str:
    """A compared field that was touched stays; one that is not compared is restored with an untouched row."""
    numbers = {field.name: n for n, field in enumerate(sql.shape.compared, 1)}
    sets = []
    for field in sql.shape.fields:
        column = quoted(field.name)
        stays = f"s.{KEPT}[{numbers[field.name]}]" if field.compared else f"s.{PARTLY}"
        value = f"CASE WHEN {stays} THEN t.{column} ELSE {_value(field.name, types)} END"
        sets.append(f"{column} = {value}")
    return ", ".join(sets)


def _returned(sql: Statements) -> str:
    """COPY the digests of the staged rows that the table has now."""
    joined = f"{STAGE} AS s JOIN {sql.rows} ON {sql.same_key('t', 's')}"
    found = f"SELECT s.{ROW}, {sql.held('t', kept=True)} FROM {joined} WHERE {TO_DO} AND s.op <> 'flag'"
    return f"COPY ({found}) TO STDOUT (FORMAT csv)"
