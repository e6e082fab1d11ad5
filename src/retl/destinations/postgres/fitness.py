"""Whether a table, as the catalog describes it, can take what a sync writes. Pure: facts in, errors out.

Missing rights are Systemic, with the GRANT in the hint. A table that does not fit is a Mismatch, with the
DDL in the hint if DDL can correct it.
"""

from __future__ import annotations

from retl.destinations.batch import Field, Shape, SoftDelete
from retl.destinations.drift import Fault, drift
from retl.destinations.postgres.catalog import Column, Place, Table
from retl.destinations.postgres.judged import judged, lowered_keys
from retl.destinations.postgres.statements import Statements
from retl.destinations.postgres.types import VECTORS, ddl, injective, lossless, spoken
from retl.errors import Mismatch, Systemic
from retl.values.sql import quoted

_TABLES = ("r", "p")
_KINDS = {
    "v": "a view",
    "m": "a materialized view",
    "f": "a foreign table",
    "S": "a sequence",
    "i": "an index",
}


def judge_place(place: Place, statements: Statements, *, whole: bool = False) -> None:
    """Systemic if the server or our rights do not allow any write."""
    relation, role = statements.relation, quoted(place.role)
    if place.read_only:
        raise Systemic("READ_ONLY", "the server accepts no writes: it is a standby, or read-only by default")
    if place.schema and not place.may_use:
        hint = f"GRANT USAGE ON SCHEMA {quoted(relation.schema)} TO {role};"
        raise Systemic("42501", f"no right to use schema {relation.schema}", hint=hint)
    if not place.may_stage:
        hint = f"GRANT TEMPORARY ON DATABASE … TO {role};"
        raise Systemic("42501", "no right to create the temporary table for batches", hint=hint)
    marks = place.may_mark if place.marker else place.may_create
    if (whole or statements.shape.write == "append") and not marks:
        why = "append needs a marker in {} to deliver exactly once"
        if whole:
            why = "a snapshot needs a marker in {}, which keeps an older run from writing an older mart"
        may_not = f"this account may not {'write' if place.marker else 'create'} it"
        raise Systemic(
            "NO_MARKER",
            f"{why.format(statements.markers.table)}, and {may_not}",
            hint=f"{statements.markers.create()};"
            f" GRANT SELECT, INSERT, UPDATE, DELETE ON {statements.markers.table} TO {role};",
        )


def judge_table(table: Table | None, place: Place, statements: Statements, *, create: bool) -> None:
    """Mismatch TARGET_DRIFT or CASCADE, or Systemic, if the sync cannot write this table."""
    if table is None:
        if not create:
            schema = "" if place.schema else f"CREATE SCHEMA {quoted(statements.relation.schema)}; "
            raise Mismatch(
                "TARGET_DRIFT",
                f"there is no table {statements.relation}",
                hint=f"{schema}{statements.create_table()};",
            )
        if not place.may_create:
            raise Systemic("42501", f"no right to create {statements.relation}")
        return
    if table.kind not in _TABLES:
        what = _KINDS.get(table.kind, "no table")
        raise Mismatch(
            "TARGET_DRIFT",
            f"{statements.relation} is {what}, which has no row versions to prove what was written: name the"
            " table behind it",
        )
    if table.rules:
        raise Mismatch(
            "TARGET_DRIFT", f"{statements.relation} has rewrite rules: upserts need a table without"
        )
    if table.foreign:
        raise Mismatch(
            "TARGET_DRIFT",
            f"partition {table.foreign[0]} is a foreign table, which has no row versions to prove what was"
            " written",
            hint="write to the table on its own server, or detach the partition",
        )
    faults = [
        *_columns(table, statements, create),
        *_needed(table, statements.shape),
        *_key(table, statements),
        *_identity(table, statements),
    ]
    if faults:
        raise drift(faults, statements.shape.write)
    _judge_deletes(table, statements)
    _judge_rights(table, place, statements, create)


def _columns(table: Table, statements: Statements, create: bool) -> list[Fault]:
    """The faults of the columns that the sync writes, each with its DDL."""
    shape, faults = statements.shape, list[Fault]()
    for field in (*shape.key, *shape.fields):
        column = table.columns.get(field.name)
        key = field in shape.key
        if column is None:
            if key or not create:
                faults.append(_missing(field, table, statements))
        elif column.generated and not (key and shape.write == "update_only"):  # there it is only compared
            faults.append((f"the database generates column {field.name}: remove it from the sync", None))
        elif not _holds(column, field, key):
            faults.append(_unfit(column, field, key, statements))
    faults += [
        (f"column {one.target}, which newest_wins compares, is missing", None)
        for one in shape.newest
        if one.target not in table.columns
    ]
    faults += [
        (f"column {field.name} of the soft rollback is missing", statements.add_column(field))
        for field in shape.flagged
        if field.name not in table.columns and not create
    ]
    if isinstance(shape.deletes, SoftDelete):
        faults += [
            (f"column {name} of the soft delete is missing", None)
            for name in shape.deletes.set
            if name not in table.columns and not (create and name in {f.name for f in shape.fields})
        ]
    return faults


def _missing(field: Field, table: Table, statements: Statements) -> Fault:
    """The fault and its DDL; if the table has the name with other upper and lower case, a renaming."""
    other = next((name for name in table.columns if name.lower() == field.name.lower()), None)
    if other is None:
        return f"column {field.name} is missing", statements.add_column(field)
    return (
        f"column {field.name} is missing, but there is {other} (PostgreSQL folds names"
        f' without quotes to lower case): set fields: {{"*": "*", {other}: {field.column or field.name}}}',
        f"ALTER TABLE {statements.relation.sql} RENAME COLUMN {quoted(other)} TO {quoted(field.name)}",
    )


def _holds(column: Column, field: Field, key: bool) -> bool:
    """Whether it takes each value as it is, or refuses it alone."""
    if key and not injective(field.type, column.base, enum=column.enum):
        return False
    fits = lossless(field.type, column.type, max_length=field.max_length, enum=column.enum)
    return fits or judged(column, field) is not None


def _unfit(column: Column, field: Field, key: bool, statements: Statements) -> Fault:
    """The fault, and what corrects it: first in the sync, because the table may belong to an application."""
    cannot = f"tell all {field.type} keys apart" if key else f"hold every {field.type} without loss"
    words = f"column {field.name} is {column.type}, which cannot {cannot}"
    alter = f"ALTER TABLE {statements.relation.sql} ALTER COLUMN {quoted(field.name)} TYPE {ddl(field.type)}"
    other = "json" if column.composite else spoken(column.base)
    if column.base in VECTORS:
        other = "list, items: float"
    if other is None or field.column is None:
        return words, alter
    digits = ", max_digits: …, decimal_places: …" if other == "decimal" else ""
    contract = f"{{type: {other}{digits}}}"
    return words, (
        f"cast {field.column} in the source's SQL, and set `{field.column}: {contract}` in the contract, if"
        f" there is one; if the table is yours: {alter}"
    )


def _needed(table: Table, shape: Shape) -> list[Fault]:
    """NOT NULL is tested before ON CONFLICT: such a column refuses every row, known or new, unless a trigger
    fills it first."""
    if shape.write == "update_only" or table.fills:
        return []
    ours = {field.name for field in (*shape.key, *shape.fields)}
    return [
        (f"column {name} is NOT NULL without default and not in the sync: every row would be refused", None)
        for name, column in table.columns.items()
        if column.needed and not column.generated and name not in ours
    ]


def _key(table: Table, statements: Statements) -> list[Fault]:
    if statements.shape.write not in ("upsert", "insert_only"):
        return []
    if lowered_keys(table, statements.shape) is not None:
        return []
    listed = ", ".join(field.name for field in statements.shape.key)
    words = (
        f"no unique constraint on exactly ({listed}) is checked immediately (an index on lower(column)"
        " would do, one with WHERE would not)"
    )
    names = {field.name for field in statements.shape.key}
    if lacking := [name or "an expression" for name in table.partitioned if name not in names]:
        words += (
            f", and none is possible, because the table is partitioned by ({', '.join(lacking)}): add that to"
            " `key`, or use `write: update_only`, which needs none"
        )
        return [(words, None)]
    return [(words, statements.add_key())]


def _identity(table: Table, statements: Statements) -> list[Fault]:
    """PostgreSQL refuses to change rows of such a table, which would be seen only in the second run."""
    shape, relation = statements.shape, statements.relation
    if not table.unidentified or (shape.write in ("append", "insert_only") and shape.deletes == "keep"):
        return []
    words = f"{relation} is published for replication without a replica identity: its rows cannot be changed"
    return [(words, f"ALTER TABLE {relation.sql} REPLICA IDENTITY FULL")]


def _judge_deletes(table: Table, statements: Statements) -> None:
    deletes = statements.shape.deletes
    if deletes == "delete" and table.dependents and not statements.shape.cascade:
        raise Mismatch(
            "CASCADE",
            f"deleting from {statements.relation} would change other tables: {', '.join(table.dependents)}",
            hint="to allow that, set `cascade: true` in the sync; else use a soft delete"
            " (`deletes: {set: …}`) or foreign keys that restrict",
        )
    if deletes != "keep" and table.row_security:
        raise Mismatch(
            "ROW_SECURITY",
            f"{statements.relation} hides rows from this account: a delete of a hidden row would look like"
            " a success",
            hint="deliver by a role that has BYPASSRLS or owns the table",
        )


def _judge_rights(table: Table, place: Place, statements: Statements, create: bool) -> None:
    shape = statements.shape
    present = [field.name for field in (*shape.key, *shape.fields) if field.name in table.columns]
    fields = [field.name for field in shape.fields if field.name in table.columns]
    asked = {"SELECT": present}
    if shape.write != "update_only":
        asked["INSERT"] = present
    if shape.write in ("upsert", "update_only"):
        asked["UPDATE"] = fields
    if isinstance(shape.deletes, SoftDelete):
        asked["UPDATE"] = [*asked.get("UPDATE", []), *(n for n in shape.deletes.set if n in table.columns)]
    flagged = [field.name for field in shape.flagged if field.name in table.columns]
    if flagged:
        asked["UPDATE"] = [*asked.get("UPDATE", []), *flagged]
    missing = [
        right
        for right, names in asked.items()
        if any(right not in table.columns[name].rights for name in names)
    ]
    if shape.deletes == "delete" and not table.may_delete:
        missing.append("DELETE")
    if missing:
        rights = ", ".join(missing)
        hint = f"GRANT {rights} ON {statements.relation.sql} TO {quoted(place.role)};"
        raise Systemic("42501", f"no right to {rights} on {statements.relation}", hint=hint)
    absent = [f.name for f in (*shape.fields, *shape.flagged) if f.name not in table.columns]
    if create and absent and not table.owned:
        raise Systemic("42501", f"only the owner of {statements.relation} may add {', '.join(absent)}")
