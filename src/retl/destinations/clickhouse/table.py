"""The table of a sync: what the catalog says of it, whether it fits, and the statements that make it.

A row replaces an older one with the same sorting key once their parts are merged, or where a reader says
FINAL; the one with the highest version counts. So the sorting key must be the key of the sync, the version a
column of ours, and a row all that the table has of its key.
"""

from __future__ import annotations

import re
from functools import cached_property

from msgspec import Struct, field

from retl.destinations.batch import Field, Shape, WriteMode
from retl.destinations.clickhouse import columns
from retl.destinations.clickhouse.columns import Column
from retl.destinations.clickhouse.connection import Requests
from retl.destinations.drift import fills
from retl.errors import Mismatch
from retl.net.clickhouse import quoted

VERSION, DELETED = "retl_version", "retl_deleted"  # the columns that `create` makes
_ENGINE = re.compile(r"((?:Replicated|Shared)?)ReplacingMergeTree(?:\((.*?)\))?(?: |$)")
_ARGUMENT = re.compile(r"'(?:[^'\\]|\\.)*'|[^,\s']+")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HINT = "`create: true` makes such a table: give another name, and copy the rows from there if need be"


class Name(Struct, frozen=True):
    """Database and table."""

    database: str
    table: str

    def __str__(self) -> str:
        return f"{self.database}.{self.table}"

    @property
    def sql(self) -> str:
        return f"{quoted(self.database)}.{quoted(self.table)}"


class Table(Struct, frozen=True, dict=True):
    """What the catalog has of it. `engine` with its arguments, `key` the expression it is sorted by."""

    name: Name
    engine: str
    storage: str  # the id that a new table gets
    key: str
    columns: dict[str, Column] = field(default_factory=dict)

    @cached_property
    def arguments(self) -> tuple[str, ...] | None:
        """The version, and whether a row is deleted, if there are such columns. None for another engine."""
        found = _ENGINE.match(self.engine)
        if found is None:
            return None
        return tuple(one.strip("`") for one in _ARGUMENT.findall(found[2] or "") if not one.startswith("'"))

    @property
    def version(self) -> str:
        assert self.arguments
        return self.arguments[0]

    @property
    def deleted(self) -> str | None:
        return self.arguments[1] if self.arguments and len(self.arguments) > 1 else None

    @property
    def replicated(self) -> bool:
        """Whether other tables beside it must be made on each replica."""
        return self.engine.startswith("Replicated")


def found(requests: Requests, name: Name) -> Table | None:
    """The table as the catalog has it; None if there is none."""
    at = {"database": name.database, "name": name.table}
    known = requests.ask(
        "SELECT engine_full, toString(uuid) AS storage, sorting_key FROM system.tables"
        " WHERE database = {database:String} AND name = {name:String}",
        **at,
    )
    if not known:
        return None
    listed = requests.ask(
        "SELECT name, type, default_kind, toBool(is_in_partition_key) AS partitions FROM system.columns"
        " WHERE database = {database:String} AND table = {name:String} ORDER BY position",
        **at,
    )
    found = [Column(one["name"], one["type"], one["default_kind"], one["partitions"]) for one in listed]
    one = known[0]
    by_name = {column.name: column for column in found}
    return Table(name, one["engine_full"], one["storage"], one["sorting_key"], by_name)


def judge(table: Table, shape: Shape, *, create: bool) -> list[Field]:
    """The fields that the table lacks and `create` adds. Mismatch TARGET_DRIFT."""
    _judge_engine(table, shape)
    keys = [one.name for one in shape.key]
    if sorted(_columns_of(table.key)) != sorted(map(_in_catalog, keys)):
        raise _drift(
            f"{table.name} is sorted by {table.key or 'nothing'}, and the sync's key is {', '.join(keys)}",
            "rows replace each other by ORDER BY: it must have exactly the columns of `key`. " + _HINT,
        )
    if outside := [one.name for one in table.columns.values() if one.partitions and one.name not in keys]:
        raise _drift(
            f"{table.name} is partitioned by {outside[0]}, which is not in the key of the sync",
            "rows of one key in two partitions never become one: partition by columns of the key. " + _HINT,
        )
    missing = [one for one in (*shape.key, *shape.fields) if _lacks(table, one, shape.write, create=create)]
    _refuse_others(table, shape)
    return missing


def _judge_engine(table: Table, shape: Shape) -> None:
    if not table.arguments:
        raise _drift(
            f"{table.name} is no ReplacingMergeTree with a version: {table.engine.partition(' ')[0]}",
            "its rows would not replace each other. " + _HINT,
        )
    version = table.columns.get(table.version)
    if version is None or version.type != "UInt64":
        kind = "missing" if version is None else version.type
        raise _drift(
            f"the version {table.version} of {table.name} is {kind}, and must be UInt64",
            "retl counts versions by its runs, so that a row that goes back to an older value counts too. "
            + _HINT,
        )
    if shape.deletes == "delete" and table.deleted is None:
        raise _drift(
            f"{table.name} has no column that says that a row is deleted",
            f"its engine must be ReplacingMergeTree({table.version}, {DELETED}). {_HINT}, or use"
            " `deletes: keep`",
        )
    own = {table.version, table.deleted}
    if taken := [one.name for one in (*shape.key, *shape.fields) if one.name in own]:
        raise _drift(
            f"the sync sends {taken[0]}, which is a column of the engine of {table.name}",
            "leave it out of `fields`: retl fills it",
        )


def _lacks(table: Table, one: Field, write: WriteMode, *, create: bool) -> bool:
    """Whether the table lacks the field. Mismatch TARGET_DRIFT if that, or its column, does not fit."""
    held = table.columns.get(one.name)
    if held is None:
        if create:
            return True
        raise _drift(
            f"the table {table.name} has no column {one.name}",
            f"ALTER TABLE {table.name.sql} ADD COLUMN {columns.declared(one, key=False)}; {fills(write)}",
        )
    if held.computed or columns.unfit(one.type, held.type, "x") is None:
        shown = held.filled if held.computed else held.type
        wanted = columns.ddl(one.type, key=False)
        raise _drift(
            f"the column {one.name} of {table.name} is {shown}, which does not keep every {one.type}",
            f"make it {wanted}; or cast it in the source's SQL, and change the type in the contract, if there"
            " is one",
        )
    return False


def _refuse_others(table: Table, shape: Shape) -> None:
    """Mismatch TARGET_DRIFT for columns of others: a new row would empty them."""
    ours = {one.name for one in (*shape.key, *shape.fields)} | {table.version, table.deleted}
    others = [one.name for one in table.columns.values() if not one.computed and one.name not in ours]
    if others:
        raise _drift(
            f"{table.name} has a column {others[0]}, which the sync does not send",
            "ClickHouse replaces whole rows, so it would be emptied: send it, drop it, or make it"
            " MATERIALIZED, or let others keep it in a table of their own",
        )


def statement(name: Name, shape: Shape) -> str:
    """What `create` makes."""
    keys = [columns.declared(one, key=True) for one in shape.key]
    fields = [columns.declared(one, key=False) for one in shape.fields]
    ours = [f"{quoted(VERSION)} UInt64", f"{quoted(DELETED)} UInt8"]
    order = ", ".join(quoted(one.name) for one in shape.key)
    return (
        f"CREATE TABLE IF NOT EXISTS {name.sql} ({', '.join([*keys, *fields, *ours])})"
        f" ENGINE = ReplacingMergeTree({quoted(VERSION)}, {quoted(DELETED)}) ORDER BY ({order})"
    )


def addition(name: Name, missing: list[Field]) -> str:
    added = ", ".join(f"ADD COLUMN IF NOT EXISTS {columns.declared(one, key=False)}" for one in missing)
    return f"ALTER TABLE {name.sql} {added}"


def _columns_of(key: str) -> list[str]:
    """The columns of an expression that is nothing but columns; that of one may be in brackets."""
    return (key[1:-1] if key.startswith("(") and key.endswith(")") else key).split(", ")


def _in_catalog(name: str) -> str:
    """A column as the catalog writes it in expressions."""
    return name if _PLAIN.fullmatch(name) else quoted(name)


def _drift(message: str, hint: str) -> Mismatch:
    return Mismatch("TARGET_DRIFT", message, hint=hint)
