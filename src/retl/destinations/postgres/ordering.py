"""Finds which rows of a staged batch the table refuses because of their order, and an order in which it takes
the others.

A row waits for a row that it refers to, and for a row that still has its unique value. A few queries compare
all staged rows with the table at once, where halving would need two statements for each refused row. Rows
that swap unique values wait for each other: one of them gives up its value for a moment, inside the
transaction.

It knows foreign keys and unique indexes on plain columns of the sync. Whatever else ties rows together, it
leaves to the table and to halving.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

from retl.destinations.batch import Mode, Order, SoftDelete
from retl.destinations.postgres.arrangement import Arrangement, Rival, Wait, arrange
from retl.destinations.postgres.rejection import refused
from retl.destinations.postgres.rules import Link, Rules, Unique
from retl.destinations.postgres.statements import ROW, STAGE, Statements
from retl.net.postgres import Session
from retl.values.sql import quoted

BY_ORDER = frozenset({"23503", "23001", "23505"})  # refusals that it can explain
ANALYZED = 1000  # from so many rows on, a wrong plan costs more than statistics
_NUMBER = "(SELECT max(u.{0}) FROM {1} AS u) + s." + ROW + " + 1"
_TEXT = "'retl ' || gen_random_uuid()"
# A value that no row has, by the column's type; for a column that cannot be NULL.
_MOMENTARY = {"smallint": _NUMBER, "integer": _NUMBER, "bigint": _NUMBER, "uuid": "gen_random_uuid()"}
_MOMENTARY |= {"text": _TEXT, "character varying": _TEXT}


class Staged:
    """The rows in the stage, as the rules see them."""

    def __init__(self, session: Session, sql: Statements, rules: Rules, mode: Mode, rows: int) -> None:
        self._session, self._sql, self._rules, self._mode = session, sql, rules, mode
        self._rows = rows
        self._keys = {one.name for one in sql.shape.key}
        self._columns = self._keys | {one.name for one in sql.shape.fields if not one.only_if_empty}

    def arrange(self, *, lift: bool) -> Arrangement:
        return arrange(*self._found, self._may_lift if lift else lambda _unique: False)

    @cached_property
    def _found(self) -> tuple[list[Wait], list[Rival]]:
        """What the staged rows wait for."""
        if self._rows >= ANALYZED:
            self._session.execute(f"ANALYZE {STAGE}")
        waits, rivals = list[Wait](), list[Rival]()
        if self._mode == "delete":
            hard = not isinstance(self._sql.shape.deletes, SoftDelete)
            for link in self._rules.children if hard else ():
                waits += self._kept_by(link)
            return waits, rivals
        for link in self._rules.parents:
            if self._columns.issuperset(link.mine):
                waits += self._lacking(link)
        for unique in self._rules.uniques:
            if self._columns.issuperset(unique.columns) and not self._is_key(unique):
                waits += self._taken(unique)
                rivals += self._rivals(unique)
        return waits, rivals

    def _is_key(self, unique: Unique) -> bool:
        return set(unique.columns) == self._keys and self._mode != "append"

    def _kept_by(self, link: Link) -> Iterator[Wait]:
        """Rows that others refer to; of our own table, those may be in the batch too."""
        o = f"LEFT JOIN {STAGE} AS o ON {self._sql.same_key('o', 'r')}" if link.own else ""
        rows = self._session.execute(
            f"SELECT DISTINCT s.{ROW}, {f'o.{ROW}' if link.own else 'NULL::int'} FROM {STAGE} AS s"
            f" JOIN {self._rules.table} AS t ON {self._sql.same_key('s', 't')}"
            f" JOIN {link.other} AS r ON {_equal(link.theirs, 'r', link.mine, 't')} {o}"
        ).fetchall()
        result = refused("23503", link.name)
        return (Wait(row, other, result) for row, other in rows if row != other)

    def _lacking(self, link: Link) -> Iterator[Wait]:
        """Rows that refer to a row that is not there; of our own table, it may be in the batch."""
        staged = link.own and self._columns.issuperset(link.theirs)
        joined = staged and self._mode != "update_only"
        o = f"LEFT JOIN {STAGE} AS o ON {_equal(link.mine, 's', link.theirs, 'o')}" if joined else ""
        unchanged = self._exists(
            f"{self._sql.same_key('s', 't')} AND {_equal(link.mine, 's', link.mine, 't')}"
        )
        rows = self._session.execute(
            f"SELECT s.{ROW}, {f'min(o.{ROW})' if joined else 'NULL::int'} FROM {STAGE} AS s {o}"
            f" WHERE {_given(link.mine)} AND {self._writes()} AND NOT {unchanged} AND NOT EXISTS"
            f" (SELECT FROM {link.other} AS r WHERE {_equal(link.mine, 's', link.theirs, 'r')}) GROUP BY 1"
        ).fetchall()
        result = refused("23503", link.name, Order(link.mine, link.theirs) if staged else None)
        return (Wait(row, other, result) for row, other in rows if row != other)

    def _taken(self, unique: Unique) -> Iterator[Wait]:
        """Rows whose unique value another row has. That row may be in the batch and get another value."""
        moves = self._mode in ("upsert", "update_only")
        another = "true" if self._mode == "append" else f"NOT ({self._sql.same_key('s', 't')})"
        o = f"LEFT JOIN {STAGE} AS o ON {self._sql.same_key('o', 't')}" if moves else ""
        kept = self._kept(unique)
        rows = self._session.execute(
            f"SELECT s.{ROW}, {f'CASE WHEN ({kept}) IS NOT TRUE THEN o.{ROW} END' if moves else 'NULL::int'}"
            f" FROM {STAGE} AS s JOIN {self._rules.table} AS t ON"
            f" {_equal(unique.columns, 's', unique.columns, 't')} AND {another} {o} WHERE {self._writes()}"
        ).fetchall()
        result = refused("23505", unique.name, Order(unique.columns))
        return (Wait(row, other, result, unique) for row, other in rows)

    def _rivals(self, unique: Unique) -> Iterator[Rival]:
        listed = ", ".join(f"s.{quoted(name)}" for name in unique.columns)
        same = _equal(unique.columns, "s", unique.columns, "t")
        holds = self._exists(f"{self._sql.same_key('s', 't')} AND {same}")
        rows = self._session.execute(
            f"SELECT * FROM (SELECT min(s.{ROW}) OVER w, s.{ROW}, {holds}, count(*) OVER w AS retl_count"
            f" FROM {STAGE} AS s WHERE {_given(unique.columns)} AND {self._writes()}"
            f" WINDOW w AS (PARTITION BY {listed})) AS s WHERE retl_count > 1 ORDER BY 1, 2"
        ).fetchall()
        result = refused("23505", unique.name, Order(unique.columns))
        return (Rival((unique.name, group), row, has, result) for group, row, has, _ in rows)

    def _kept(self, unique: Unique) -> str:
        """Whether a staged row leaves the value of its row in the table as it is."""
        keeping = {one.name for one in self._sql.shape.fields if one.nulls == "keep"}
        return " AND ".join(
            f"(o.{name} = t.{name}{f' OR o.{name} IS NULL' if column in keeping else ''})"
            for column, name in ((column, quoted(column)) for column in unique.columns)
        )

    def _writes(self) -> str:
        """Whether a row is written at all in this mode."""
        there = self._exists(self._sql.same_key("s", "t"))
        return {"insert_only": f"NOT {there}", "update_only": there}.get(self._mode, "true")

    def _exists(self, condition: str) -> str:
        return f"EXISTS (SELECT FROM {self._rules.table} AS t WHERE {condition})"

    def lift(self, lifted: Sequence[tuple[int, Unique]]) -> Iterator[str]:
        """Statements by which these rows give up a value of an index."""
        for unique in {unique for _, unique in lifted}:
            rows = ", ".join(str(row) for row, one in lifted if one == unique)
            moment = _moment(unique, self._keys, self._rules.table)
            assert moment is not None
            column, value = moment
            yield (
                f"UPDATE {self._rules.table} AS t SET {quoted(column)} = {value} FROM {STAGE} AS s"
                f" WHERE {self._sql.same_key('s', 't')} AND s.{ROW} IN ({rows})"
            )

    def _may_lift(self, unique: Unique) -> bool:
        """Whether a row can give up a value of this index, and nobody sees it."""
        return self._rules.unobserved and _moment(unique, self._keys, self._rules.table) is not None

    def settled(self, lifted: Sequence[tuple[int, Unique]]) -> bool:
        """Whether all of these rows have the values of the stage now."""
        for unique in {unique for _, unique in lifted}:
            rows = [row for row, one in lifted if one == unique]
            condition = (
                f"{self._sql.same_key('s', 't')} AND {_equal(unique.columns, 's', unique.columns, 't')}"
            )
            found = self._session.execute(
                f"SELECT count(*) FROM {STAGE} AS s JOIN {self._rules.table} AS t ON {condition}"
                f" WHERE s.{ROW} IN ({', '.join(map(str, rows))})"
            ).fetchone()
            if found != (len(rows),):
                return False
        return True


def _moment(unique: Unique, keys: set[str], table: str) -> tuple[str, str] | None:
    """A column of the index and a value that no row has; None if there is no such value."""
    columns = list(zip(unique.columns, unique.nullable, unique.types, strict=True))
    for name, nullable, _ in columns:
        if nullable and name not in keys:
            return name, "NULL"
    for name, _, kind in columns:
        if name not in keys and kind in _MOMENTARY:
            return name, _MOMENTARY[kind].format(quoted(name), table)
    return None


def _given(names: Sequence[str]) -> str:
    return " AND ".join(f"s.{quoted(name)} IS NOT NULL" for name in names)


def _equal(names: Sequence[str], one: str, others: Sequence[str], other: str) -> str:
    return " AND ".join(
        f"{one}.{quoted(a)} = {other}.{quoted(b)}" for a, b in zip(names, others, strict=True)
    )
