"""Reads from the catalog what ties the rows of a table to other rows: foreign keys and unique indexes."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from retl.destinations.postgres.relation import Relation
from retl.net.postgres import Session

_OWN = "'pg_catalog'::regnamespace"  # the schema of PostgreSQL's own operators


class Link(Struct, frozen=True):
    """A foreign key between our table and another: `mine` are columns of ours, `theirs` of the other."""

    name: str
    other: str  # as SQL
    mine: tuple[str, ...]
    theirs: tuple[str, ...]
    own: bool  # the other table is ours


class Unique(Struct, frozen=True):
    """A unique index on plain columns, which compares by PostgreSQL's own operators."""

    name: str
    columns: tuple[str, ...]
    immediate: bool  # tested row by row, not at the end of a statement
    nullable: tuple[bool, ...]
    types: tuple[str, ...]


class Rules(Struct, frozen=True):
    """`exact`: no trigger changes rows before they are written. `unobserved`: no trigger sees an update."""

    table: str  # as SQL
    parents: tuple[Link, ...]  # foreign keys of our table
    children: tuple[Link, ...]  # foreign keys to our table that forbid a delete
    uniques: tuple[Unique, ...]
    exact: bool
    unobserved: bool


def read(session: Session, relation: Relation) -> Rules:
    """The rules that this account can test: of a foreign key, it must be able to read the other table."""
    row = session.execute(
        "SELECT c.oid, c.relkind = 'r',"
        " NOT EXISTS (SELECT FROM pg_catalog.pg_trigger AS g WHERE g.tgrelid = c.oid AND NOT g.tgisinternal"
        "  AND g.tgenabled <> 'D' AND g.tgtype::int & 2 <> 0 AND g.tgtype::int & 28 <> 0),"
        " NOT EXISTS (SELECT FROM pg_catalog.pg_trigger AS g WHERE g.tgrelid = c.oid AND NOT g.tgisinternal"
        "  AND g.tgenabled <> 'D' AND g.tgtype::int & 2 = 0 AND g.tgtype::int & 16 <> 0)"
        " FROM pg_catalog.pg_class AS c WHERE c.oid = to_regclass(%s)",
        [relation.sql],
    ).fetchone()
    assert row is not None
    oid, plain, exact, unobserved = row
    table = f"ONLY {relation.sql}" if plain else relation.sql
    return Rules(
        table,
        _links(session, oid, "f.conrelid", "f.confrelid"),
        _links(session, oid, "f.confrelid", "f.conrelid"),
        _uniques(session, oid),
        exact,
        unobserved,
    )


def _links(session: Session, oid: int, ours: str, other: str) -> tuple[Link, ...]:
    """Foreign keys, seen from the end `ours`. A partition of either table repeats a constraint; MATCH FULL is
    left out, and what compares by an operator of an extension."""
    keys = {"f.conrelid": "f.conkey", "f.confrelid": "f.confkey"}
    forbids = "" if ours == "f.conrelid" else " AND f.confdeltype IN ('a', 'r')"
    rows = session.execute(
        "SELECT f.conname::text, CASE WHEN c.relkind = 'r' THEN 'ONLY ' ELSE '' END"
        f"  || format('%%I.%%I', n.nspname, c.relname), {_names(ours, keys[ours])},"
        f" {_names(other, keys[other])}, f.conrelid = f.confrelid"
        " FROM pg_catalog.pg_constraint AS f"
        f" JOIN pg_catalog.pg_class AS c ON c.oid = {other}"
        " JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace"
        " LEFT JOIN pg_catalog.pg_constraint AS p ON p.oid = f.conparentid"
        "  AND p.conrelid = f.conrelid AND p.confrelid <> f.confrelid"
        f" WHERE {ours} = %s AND f.contype = 'f' AND f.confmatchtype = 's' AND p.oid IS NULL{forbids}"
        " AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')"
        " AND NOT row_security_active(c.oid) AND NOT EXISTS (SELECT FROM pg_catalog.pg_operator AS o"
        f"  WHERE o.oid = ANY (f.conpfeqop) AND o.oprnamespace <> {_OWN}) ORDER BY 1",
        [oid],
    ).fetchall()
    return tuple(Link(name, sql, tuple(mine), tuple(theirs), own) for name, sql, mine, theirs, own in rows)


def _uniques(session: Session, oid: int) -> tuple[Unique, ...]:
    columns = (
        "ARRAY(SELECT {} FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, n)"
        " JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum"
        " WHERE k.n <= i.indnkeyatts ORDER BY k.n)"
    )
    rows: list[tuple[Any, ...]] = session.execute(
        f"SELECT c.relname::text, {columns.format('a.attname::text')}, i.indimmediate,"
        f" {columns.format('NOT a.attnotnull')}, {columns.format('format_type(a.atttypid, NULL)')}"
        " FROM pg_catalog.pg_index AS i JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid"
        " WHERE i.indrelid = %s AND i.indisunique AND i.indisvalid AND i.indpred IS NULL"
        " AND i.indexprs IS NULL AND NOT EXISTS (SELECT FROM pg_catalog.pg_opclass AS o"
        f"  WHERE o.oid = ANY (i.indclass::oid[]) AND o.opcnamespace <> {_OWN}) ORDER BY 1",
        [oid],
    ).fetchall()
    return tuple(
        Unique(name, tuple(names), immediate, tuple(nullable), tuple(types))
        for name, names, immediate, nullable, types in rows
    )


def _names(table: str, attnums: str) -> str:
    return (
        f"ARRAY(SELECT a.attname::text FROM unnest({attnums}) WITH ORDINALITY AS k(attnum, n)"
        f" JOIN pg_catalog.pg_attribute AS a ON a.attrelid = {table} AND a.attnum = k.attnum ORDER BY k.n)"
    )
