"""Judges whether a table fits a sync, before anything is written: its columns, its key, and what a delete
would change. Pure: facts of the catalog, no I/O."""

from __future__ import annotations

from retl.destinations.batch import Field, Shape, SoftDelete
from retl.destinations.drift import Fault, drift
from retl.destinations.sql.dialect import Column, Dialect, Table
from retl.destinations.sql.statements import Statements
from retl.errors import DefinitionError, Mismatch


def check_names(dialect: Dialect, shape: Shape) -> None:
    """DefinitionError for names that the database would not take as they are."""
    soft = tuple(shape.deletes.set) if isinstance(shape.deletes, SoftDelete) else ()
    seen: dict[str, str] = {}
    for name in (*(field.name for field in (*shape.key, *shape.fields)), *soft):
        try:
            dialect.check_name(name)
        except ValueError as error:
            raise DefinitionError("IDENTIFIER", str(error)) from None
        folded = dialect.folded(name)
        if folded.startswith("retl_"):
            raise DefinitionError(
                "IDENTIFIER", f"no column can be called {name}: batches are staged with such names"
            )
        if seen.setdefault(folded, name) != name:
            raise DefinitionError(
                "IDENTIFIER", f"{seen[folded]} and {name} are one column: {dialect.name} ignores the case"
            )
    if shape.write == "update_only" and not any(field.compared for field in shape.fields):
        raise DefinitionError("NOTHING_TO_WRITE", "`write: update_only` needs a field besides the key")


def judge(table: Table | None, sql: Statements, *, create: bool) -> None:
    """Mismatch TARGET_DRIFT with the DDL, CASCADE."""
    if table is None:
        if create:
            return
        raise Mismatch(
            "TARGET_DRIFT",
            f"there is no table {sql.relation}",
            hint=f"{sql.create_table()}; or `create: true`",
        )
    if table.kind is not None:
        raise Mismatch("TARGET_DRIFT", f"{sql.relation} is {table.kind}", hint=table.advice)
    faults = [*_columns(table, sql, create), *_needed(table, sql), *_key(table, sql)]
    if faults:
        raise drift(faults, sql.shape.write)
    deletes = sql.shape.deletes == "delete" or sql.shape.write == "replace"
    if deletes and table.dependents and not sql.shape.cascade:
        raise Mismatch(
            "CASCADE",
            f"deleting from {sql.relation} would change other tables: {', '.join(table.dependents)}",
            hint="to allow that, set `cascade: true` in the sync; else use a soft delete"
            " (`deletes: {set: …}`) or foreign keys that restrict",
        )


def _columns(table: Table, sql: Statements, create: bool) -> list[Fault]:
    shape, dialect, faults = sql.shape, sql.dialect, list[Fault]()
    for field in (*shape.key, *shape.fields):
        column, key = table.columns.get(dialect.folded(field.name)), field in shape.key
        if column is None:
            if key or not create:
                faults.append((f"column {field.name} is missing", sql.add_column(field)))
        elif column.generated:
            faults.append((f"the database generates column {field.name}: remove it from the sync", None))
        elif not dialect.holds(column, field, key=key):
            faults.append((_unfit(column, field, key, sql), None))
    named = {dialect.folded(field.name) for field in shape.fields} if create else set[str]()
    soft = shape.deletes.set if isinstance(shape.deletes, SoftDelete) else {}
    faults += [
        (f"column {name} of the soft delete is missing", None)
        for name in soft
        if dialect.folded(name) not in {*table.columns, *named}
    ]
    return faults


def _unfit(column: Column, field: Field, key: bool, sql: Statements) -> str:
    cannot = f"tell all {field.type} keys apart" if key else f"hold every {field.type} without loss"
    wanted = sql.dialect.ddl(field.type, key=key)
    return (
        f"column {field.name} is {column.type or 'of no type'}, which cannot {cannot}: cast it in the"
        f" source's SQL and the contract, or make the column {wanted}"
    )


def _needed(table: Table, sql: Statements) -> list[Fault]:
    if sql.shape.write == "update_only":
        return []
    ours = {sql.dialect.folded(field.name) for field in (*sql.shape.key, *sql.shape.fields)}
    return [
        (f"column {column.name} is NOT NULL without default and not in the sync", None)
        for name, column in table.columns.items()
        if column.needed and not column.generated and name not in ours
    ]


def _key(table: Table, sql: Statements) -> list[Fault]:
    wanted = frozenset(sql.dialect.folded(field.name) for field in sql.shape.key)
    if sql.shape.write not in ("upsert", "insert_only") or not sql.dialect.needs_key or wanted in table.keys:
        return []
    listed = ", ".join(field.name for field in sql.shape.key)
    return [(f"no unique index is on exactly ({listed})", sql.add_key())]
