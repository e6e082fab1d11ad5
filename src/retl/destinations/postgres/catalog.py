"""Reads a target table from the catalog: its columns, keys and our rights. `fitness` judges it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retl.destinations.batch import Trace
from retl.destinations.postgres.statements import MARKER, Relation, Statements, Traits
from retl.net.postgres import Session


@dataclass(frozen=True)
class Place:
    """Our rights on the server, the database and the schema."""

    role: str
    read_only: bool
    may_stage: bool  # make temporary tables
    schema: bool
    may_use: bool  # the schema
    may_create: bool  # tables in the schema, or the schema itself where it is missing
    marker: bool
    may_mark: bool  # all rights that markers need on an existing marker table


@dataclass(frozen=True)
class Column:
    """One column; `type` is from format_type(), for a domain that of its base type."""

    name: str
    type: str
    enum: bool
    needed: bool  # NOT NULL without a default
    generated: bool  # also GENERATED ALWAYS AS IDENTITY: cannot be written
    folds: bool  # different texts are equal in its collation
    rights: list[str]


@dataclass(frozen=True)
class Table:
    kind: str  # pg_class.relkind
    owned: bool
    may_delete: bool
    row_security: bool
    rules: bool
    columns: dict[str, Column]
    keys: tuple[frozenset[str], ...]  # column sets of indexes that ON CONFLICT can use
    dependents: tuple[str, ...]  # foreign keys through which our deletes would change other tables


def place(session: Session, relation: Relation) -> Place:
    row = session.execute(
        "SELECT current_user::text,"
        " pg_is_in_recovery() OR current_setting('default_transaction_read_only')::boolean,"
        " has_database_privilege(current_database(), 'TEMP'), n.oid IS NOT NULL,"
        " coalesce(has_schema_privilege(n.oid, 'USAGE'), false),"
        " coalesce(has_schema_privilege(n.oid, 'CREATE'),"
        "  has_database_privilege(current_database(), 'CREATE')),"
        " m.oid IS NOT NULL,"
        " coalesce((SELECT bool_and(has_table_privilege(m.oid, p))"
        "   FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS p), false)"
        " FROM (VALUES (%s::text, %s::text)) AS asked(schema, marker)"
        " LEFT JOIN pg_catalog.pg_namespace AS n ON n.nspname = asked.schema"
        " LEFT JOIN pg_catalog.pg_class AS m ON m.relnamespace = n.oid AND m.relname = asked.marker",
        [relation.schema, MARKER],
    ).fetchone()
    assert row is not None
    return Place(*row)


def table(session: Session, relation: Relation) -> Table | None:
    """None if there is no such table."""
    found = session.execute(
        "SELECT c.oid, c.relkind::text, pg_has_role(c.relowner, 'USAGE'),"
        " has_table_privilege(c.oid, 'DELETE'), row_security_active(c.oid),"
        " EXISTS (SELECT FROM pg_catalog.pg_rewrite AS r WHERE r.ev_class = c.oid AND r.ev_type <> '1')"
        " FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relname = %s",
        [relation.schema, relation.name],
    ).fetchone()
    if found is None:
        return None
    oid, kind, owned, may_delete, row_security, rules = found
    columns = {column.name: column for column in _columns(session, oid)}
    return Table(
        kind,
        owned,
        may_delete,
        row_security,
        rules,
        columns,
        _keys(session, oid),
        _dependents(session, oid),
    )


def _columns(session: Session, oid: int) -> list[Column]:
    rows = session.execute(
        "SELECT a.attname::text,"
        " CASE WHEN t.typtype = 'd' THEN format_type(t.typbasetype, t.typtypmod)"
        "  ELSE format_type(a.atttypid, a.atttypmod) END, b.typtype = 'e',"
        " (a.attnotnull OR t.typnotnull) AND NOT a.atthasdef AND a.attidentity = '' AND t.typdefault IS NULL,"
        " a.attgenerated <> '' OR a.attidentity = 'a', coalesce(NOT l.collisdeterministic, false),"
        " ARRAY(SELECT p FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE']) AS p"
        "  WHERE has_column_privilege(a.attrelid, a.attnum, p))"
        " FROM pg_catalog.pg_attribute AS a JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid"
        " JOIN pg_catalog.pg_type AS b ON b.oid = CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END"
        " LEFT JOIN pg_catalog.pg_collation AS l ON l.oid = a.attcollation"
        " WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped",
        [oid],
    ).fetchall()
    return [Column(*row) for row in rows]


def _keys(session: Session, oid: int) -> tuple[frozenset[str], ...]:
    """ON CONFLICT needs a valid, immediate unique index without predicate and expressions."""
    rows = session.execute(
        "SELECT ARRAY(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, n)"
        "  JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum"
        "  WHERE k.n <= i.indnkeyatts)"
        " FROM pg_catalog.pg_index AS i WHERE i.indrelid = %s AND i.indisunique AND i.indisvalid"
        " AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL",
        [oid],
    ).fetchall()
    return tuple(frozenset(row[0]) for row in rows)


def _dependents(session: Session, oid: int) -> tuple[str, ...]:
    rows = session.execute(
        "SELECT f.conrelid::regclass::text || ' (' || f.conname || ': ON DELETE ' || CASE f.confdeltype"
        "  WHEN 'c' THEN 'CASCADE' WHEN 'n' THEN 'SET NULL' ELSE 'SET DEFAULT' END || ')'"
        " FROM pg_catalog.pg_constraint AS f"
        # a partition of the other table repeats the constraint; a partition of ours is named in its own
        " LEFT JOIN pg_catalog.pg_constraint AS p ON p.oid = f.conparentid AND p.confrelid = f.confrelid"
        " WHERE f.confrelid = %s AND f.contype = 'f' AND p.oid IS NULL AND f.confdeltype IN ('c', 'n', 'd')"
        " ORDER BY 1",
        [oid],
    ).fetchall()
    return tuple(row[0] for row in rows)


def trace(session: Session, statements: Statements) -> Trace:
    """Reads the marker table, which must exist and be readable."""
    batches, replaced, foreign, epoch = set[tuple[str, str]](), set[tuple[str, str]](), set[str](), 0
    for sync, run_id, batch, is_replaced in session.execute(statements.trace()).fetchall():
        if not run_id:
            epoch = int(batch)
            continue
        batches.add((run_id, batch))
        if is_replaced:
            replaced.add((run_id, batch))
        if sync != statements.shape.sync:
            foreign.add(run_id)
    row = session.execute(statements.strangers()).fetchone()
    return Trace(frozenset(batches), frozenset(replaced), frozenset(foreign), epoch, bool(row and row[0]))


def types(session: Session, relation: Relation) -> dict[str, str]:
    """Each column's type for casts, without its length, because a cast would cut to it; empty if there is
    no such table."""
    rows = session.execute(
        "SELECT attname::text, format_type(atttypid, NULL) FROM pg_catalog.pg_attribute"
        " WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped",
        [relation.sql],
    ).fetchall()
    return dict(rows)


def traits(session: Session, relation: Relation, keys: Sequence[str]) -> Traits:
    """Those of an ordinary table if there is none. A key is compared by the operator of its own type, or by
    PostgreSQL's: the search path may lead to others."""
    row = session.execute(
        "SELECT c.relkind = 'r',"
        " ARRAY(SELECT format('OPERATOR(%%I.=)', coalesce("
        "   (SELECT n.nspname FROM pg_catalog.pg_operator AS o JOIN pg_catalog.pg_namespace AS n"
        "     ON n.oid = b.typnamespace WHERE o.oprname = '=' AND o.oprnamespace = b.typnamespace"
        "     AND o.oprleft = b.oid AND o.oprright = b.oid), 'pg_catalog'))"
        "  FROM unnest(%s::text[]) WITH ORDINALITY AS k(name, n)"
        "  LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attname = k.name"
        "  LEFT JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid"
        "  LEFT JOIN pg_catalog.pg_type AS b"
        "   ON b.oid = CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END ORDER BY k.n),"
        # a partition may have triggers of its own
        " coalesce((SELECT bit_or(g.tgtype) FROM pg_catalog.pg_trigger AS g WHERE NOT g.tgisinternal"
        "  AND g.tgenabled <> 'D' AND (g.tgrelid = c.oid OR g.tgrelid IN"
        "  (SELECT p.relid FROM pg_catalog.pg_partition_tree(c.oid) AS p))), 0)"
        " FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relname = %s",
        [list(keys), relation.schema, relation.name],
    ).fetchone()
    return Traits(row[0], tuple(row[1]), row[2]) if row else Traits()
