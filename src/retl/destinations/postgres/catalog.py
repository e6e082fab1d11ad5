"""Reads a target table from the catalog: its columns, keys and our rights. `fitness` judges it."""

from __future__ import annotations

from msgspec import Struct

from retl.destinations.batch import Shape, Trace
from retl.destinations.postgres.markers import MARKER
from retl.destinations.postgres.relation import Relation
from retl.destinations.postgres.statements import Statements, Traits
from retl.net.postgres import Session


class Place(Struct, frozen=True):
    """Our rights on the server, the database and the schema."""

    role: str
    read_only: bool
    may_stage: bool  # make temporary tables
    schema: bool
    may_use: bool  # the schema
    may_create: bool  # tables in the schema, or the schema itself where it is missing
    marker: bool
    may_mark: bool  # all rights that markers need on an existing marker table


class Column(Struct, frozen=True):
    """One column. `type` and `base`, which has no length, are from format_type(); for a domain they are those
    of the type under all its domains. `cast` is the base type, with its schema."""

    name: str
    type: str
    base: str
    cast: str
    enum: bool
    needed: bool  # NOT NULL without a default
    generated: bool  # also GENERATED ALWAYS AS IDENTITY: cannot be written
    folds: bool  # different texts are equal in it
    equals: str  # the operator of the type itself, or PostgreSQL's: the search path may lead to others
    rights: list[str]
    composite: bool = False  # a row type


class Table(Struct, frozen=True):
    kind: str  # pg_class.relkind
    owned: bool
    may_delete: bool
    row_security: bool
    rules: bool
    triggers: int  # the events that call one, as bits of pg_trigger.tgtype
    fills: bool  # a trigger may give columns their values before a row is inserted
    unidentified: bool  # published, and without an identity by which subscribers find a changed row
    columns: dict[str, Column]
    # of each unique index that ON CONFLICT can use: the columns, and those of them under lower()
    keys: tuple[tuple[frozenset[str], frozenset[str]], ...]
    dependents: tuple[str, ...]  # foreign keys through which our deletes would change other tables
    partitioned: tuple[str, ...] = ()  # by these columns; an expression is ""
    foreign: tuple[str, ...] = ()  # partitions that are on other servers


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


# Triggers of a partition fire too.
_PARTS = "(SELECT c.oid UNION SELECT p.relid FROM pg_catalog.pg_partition_tree(c.oid) AS p)"
_TRIGGERS = f"""coalesce((SELECT bit_or(g.tgtype) FROM pg_catalog.pg_trigger AS g
  WHERE g.tgrelid IN {_PARTS} AND NOT g.tgisinternal AND g.tgenabled <> 'D'), 0)"""
_FILLS = f"""EXISTS (SELECT FROM pg_catalog.pg_trigger AS g
  WHERE g.tgrelid IN {_PARTS} AND NOT g.tgisinternal AND g.tgenabled IN ('O', 'A')
  AND g.tgtype & 7 = 7)"""  # for each row, BEFORE, INSERT
# CASE, because to list what is published takes long.
_UNIDENTIFIED = f"""EXISTS (SELECT FROM pg_catalog.pg_class AS r WHERE r.oid IN {_PARTS}
  AND CASE WHEN r.relkind <> 'r' OR r.relreplident = 'f' OR EXISTS (SELECT FROM pg_catalog.pg_index AS i
      WHERE i.indrelid = r.oid AND i.indisvalid
      AND CASE r.relreplident WHEN 'd' THEN i.indisprimary ELSE i.indisreplident END)
    THEN false
    ELSE EXISTS (SELECT FROM pg_catalog.pg_publication_tables AS t
      JOIN pg_catalog.pg_publication AS u ON u.pubname = t.pubname AND (u.pubupdate OR u.pubdelete)
      JOIN pg_catalog.pg_namespace AS s ON s.nspname = t.schemaname
      WHERE s.oid = r.relnamespace AND t.tablename = r.relname) END)"""


def table(session: Session, relation: Relation) -> Table | None:
    """None if there is no such table."""
    found = session.execute(
        "SELECT c.oid, c.relkind::text, pg_has_role(c.relowner, 'USAGE'),"
        " has_table_privilege(c.oid, 'DELETE'), row_security_active(c.oid),"
        " EXISTS (SELECT FROM pg_catalog.pg_rewrite AS r WHERE r.ev_class = c.oid AND r.ev_type <> '1'),"
        f" {_TRIGGERS}, {_FILLS}, {_UNIDENTIFIED}"
        " FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relname = %s",
        [relation.schema, relation.name],
    ).fetchone()
    if found is None:
        return None
    oid, kind, owned, may_delete, row_security, rules, triggers, fills, unidentified = found
    return Table(
        kind,
        owned,
        may_delete,
        row_security,
        rules,
        triggers,
        fills,
        unidentified,
        {column.name: column for column in _columns(session, oid)},
        _keys(session, oid),
        _dependents(session, oid),
        *(_partitions(session, oid) if kind == "p" else ()),
    )


# A column's type, and the types under it if it is a domain (domains can be made of domains).
_TYPES = """
WITH RECURSIVE types AS (
  SELECT t.oid AS top, t.oid, t.typtype, t.typbasetype, t.typtypmod, t.typnotnull, NULL::int4 AS size
    FROM pg_catalog.pg_type AS t
    WHERE t.oid IN
      (SELECT atttypid FROM pg_catalog.pg_attribute WHERE attrelid = %(oid)s AND NOT attisdropped)
  UNION ALL
  SELECT d.top, t.oid, t.typtype, t.typbasetype, t.typtypmod, d.typnotnull OR t.typnotnull, d.typtypmod
    FROM types AS d JOIN pg_catalog.pg_type AS t ON t.oid = d.typbasetype WHERE d.typtype = 'd')
"""
_EQUALS = """
SELECT format('OPERATOR(%%I.=)', n.nspname) FROM pg_catalog.pg_operator AS o
  JOIN pg_catalog.pg_namespace AS n ON n.oid = o.oprnamespace
  WHERE o.oprname = '=' AND n.oid = b.typnamespace AND o.oprleft = b.oid AND o.oprright = b.oid
"""


# Types of pgvector, in whatever schema it is.
_VECTOR = """b.typname IN ('vector', 'halfvec') AND EXISTS (SELECT FROM pg_catalog.pg_depend AS x
  JOIN pg_catalog.pg_extension AS e ON e.oid = x.refobjid AND e.extname = 'vector'
  WHERE x.classid = 'pg_type'::regclass AND x.objid = b.oid AND x.deptype = 'e')"""


def _columns(session: Session, oid: int) -> list[Column]:
    named = (
        "CASE WHEN b.typname = 'citext' THEN 'citext' WHEN b.typname = '_citext' THEN 'citext[]'"
        f" WHEN {_VECTOR} THEN b.typname ELSE {{}} END"
    )
    sized = named.format("format_type(b.oid, coalesce(t.size, a.atttypmod))")
    rows = session.execute(
        f"{_TYPES} SELECT a.attname::text, {sized}, {named.format('format_type(b.oid, -1)')},"
        " format('%%I.%%I', s.nspname, b.typname), b.typtype = 'e',"
        " (a.attnotnull OR t.typnotnull) AND NOT a.atthasdef AND a.attidentity = '' AND d.typdefault IS NULL,"
        " a.attgenerated <> '' OR a.attidentity = 'a',"
        " b.typname = 'citext' OR coalesce(NOT l.collisdeterministic, false),"
        f" coalesce(({_EQUALS}), 'OPERATOR(pg_catalog.=)'),"
        " ARRAY(SELECT p FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE']) AS p"
        "  WHERE has_column_privilege(a.attrelid, a.attnum, p)), b.typtype = 'c'"
        " FROM pg_catalog.pg_attribute AS a JOIN pg_catalog.pg_type AS d ON d.oid = a.atttypid"
        " JOIN types AS t ON t.top = a.atttypid AND t.typtype <> 'd'"
        " JOIN pg_catalog.pg_type AS b ON b.oid = t.oid"
        " JOIN pg_catalog.pg_namespace AS s ON s.oid = b.typnamespace"
        " LEFT JOIN pg_catalog.pg_collation AS l ON l.oid = a.attcollation"
        " WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
        {"oid": oid},
    ).fetchall()
    return [Column(*row) for row in rows]


def _keys(session: Session, oid: int) -> tuple[tuple[frozenset[str], frozenset[str]], ...]:
    """ON CONFLICT needs a valid, immediate unique index without predicate. Each part is a column, or
    lower(column); an index with other expressions has no usable key."""
    rows = session.execute(
        "SELECT array_agg(a.attname::text), array_agg(a.attname::text) FILTER (WHERE k.attnum = 0)"
        " FROM pg_catalog.pg_index AS i"
        " CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, n)"
        " LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND NOT a.attisdropped"
        "  AND CASE k.attnum WHEN 0 THEN pg_get_indexdef(i.indexrelid, k.n::int, true)"
        "   IN (format('lower(%%I)', a.attname), format('lower(%%I::text)', a.attname))"
        "   ELSE a.attnum = k.attnum END"
        " WHERE i.indrelid = %s AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL"
        " AND k.n <= i.indnkeyatts GROUP BY i.indexrelid HAVING bool_and(a.attname IS NOT NULL)",
        [oid],
    ).fetchall()
    return tuple((frozenset(names), frozenset(lowered or ())) for names, lowered in rows)


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


def _partitions(session: Session, oid: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The columns that the table is partitioned by, at any level, and its foreign partitions."""
    names = session.execute(
        "SELECT DISTINCT coalesce(a.attname::text, '') FROM pg_catalog.pg_partition_tree(%(oid)s) AS t"
        " JOIN pg_catalog.pg_partitioned_table AS p ON p.partrelid = t.relid"
        " CROSS JOIN LATERAL unnest(p.partattrs::int2[]) AS k(attnum)"
        " LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = p.partrelid AND a.attnum = k.attnum"
        " ORDER BY 1",
        {"oid": oid},
    ).fetchall()
    foreign = session.execute(
        "SELECT t.relid::regclass::text FROM pg_catalog.pg_partition_tree(%(oid)s) AS t"
        " JOIN pg_catalog.pg_class AS c ON c.oid = t.relid WHERE c.relkind = 'f' ORDER BY 1",
        {"oid": oid},
    ).fetchall()
    return tuple(name for (name,) in names), tuple(name for (name,) in foreign)


def trace(session: Session, statements: Statements) -> Trace:
    """Reads the marker table, which must exist and be readable."""
    batches, replaced, foreign, epoch = set[tuple[str, str]](), set[tuple[str, str]](), set[str](), 0
    for sync, run_id, batch, is_replaced in session.execute(statements.markers.trace()).fetchall():
        if not run_id:
            epoch = int(batch)
            continue
        batches.add((run_id, batch))
        if is_replaced:
            replaced.add((run_id, batch))
        if sync != statements.shape.sync:
            foreign.add(run_id)
    found = session.execute(statements.markers.strangers()).fetchone() or (False, False, None)
    return Trace(frozenset(batches), frozenset(replaced), frozenset(foreign), epoch, *found)


def traits(table: Table, shape: Shape) -> Traits:
    keys = [table.columns[field.name] for field in shape.key if field.name in table.columns]
    names = {field.name for field in shape.key}
    return Traits(
        table.kind == "r",
        {column.name: column.equals for column in keys},
        any(unique <= names for unique, _ in table.keys),
        table.triggers,
    )
