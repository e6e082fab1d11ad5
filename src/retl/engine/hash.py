"""Hash: every frozen row with the fault of its key, the hash of what would be sent, and whether the
contract's prefilter clears it.

The result is the mart of a run: the rows that later steps compare, judge and send. The new columns are in
the same table as the rows, because a join takes longer than writing the rows again.
"""

from __future__ import annotations

from retl.engine import freeze
from retl.engine.mapping import FieldMap, compared
from retl.engine.workspace import Workspace
from retl.values.canonical import hash_sql
from retl.values.phone import REASON

MART = "mart"  # "retl row", the mart's columns, "retl fault", "retl hash", "retl cleared", "retl unread"
ROWS = "rows"  # of MART: row, key (as text), fault, hash, cleared, unread
DUPLICATED = (
    "duplicated"  # "retl folded", "retl twice": keys of more than one row, as the target compares them
)

KEY_FAULTS = {
    "KEY_NULL": "a key column is NULL",
    "KEY_BLANK": "a key column is blank",
    "KEY_DUPLICATE": "the mart has this key more than once",
    "KEY_COLLIDES": "the target cannot tell this key from the key of another row",
    "NO_PHONE": REASON,
    "KEY_TYPE": "a key value does not fit the key's type",
}
USABLE_FAULTS = ("KEY_DUPLICATE", "KEY_COLLIDES")  # the key itself is good, but not the only one


def hash_rows(
    workspace: Workspace,
    field_map: FieldMap,
    prefilter: str,
    salt: str,
    chosen: str | None = None,
    misfit: str | None = None,
) -> None:
    """Create MART and ROWS from the frozen rows, or from those that match the SQL predicate `chosen`; then
    drop the frozen rows. `prefilter` is the contract's, `salt` the payload fingerprint. `misfit`: SQL of a
    column with a value that its cast changes, or NULL. The hash of such a row is that of no other, because
    the cast value may be the one that was delivered.

    With `chosen`, duplicate keys are found first: the other rows are dropped."""
    fault = field_map.key_fault
    if chosen is not None:
        _find_duplicates(workspace, field_map, freeze.FROZEN, f"{fault} IS NULL")
        folded = field_map.folded(field_map.key)
        fault = f'coalesce({fault}, (SELECT "retl twice" FROM {DUPLICATED} WHERE "retl folded" = {folded}))'
    hashed = hash_sql(compared(field_map), salt)
    if misfit is not None:
        other = f"unhex(left(sha256(concat(hex({hashed}), {misfit})), 32))"
        # as two conditions: DuckDB then evaluates the second one only for rows that the first leaves
        hashed = (
            f'CASE WHEN "retl cleared" THEN {hashed} WHEN {misfit} IS NULL THEN {hashed} ELSE {other} END'
        )
    workspace.run(
        f'CREATE TABLE {MART} AS SELECT *, {fault} AS "retl fault",'
        f' {hashed} AS "retl hash", {field_map.field_fault or "NULL"} AS "retl unread"'
        f' FROM (SELECT *, {prefilter} AS "retl cleared" FROM {freeze.FROZEN}'
        + (f" WHERE coalesce({chosen}, FALSE))" if chosen is not None else ")")
    )
    freeze.release(workspace)
    workspace.run(
        f'CREATE VIEW {ROWS} AS SELECT "retl row" AS row, {field_map.key} AS key, "retl fault" AS fault,'
        f' "retl hash" AS hash, "retl cleared" AS cleared, "retl unread" AS unread FROM {MART}'
    )


def mark_duplicates(workspace: Workspace, field_map: FieldMap) -> None:
    """Give the rows of MART that share a key their fault: KEY_DUPLICATE, or KEY_COLLIDES if the mart has
    different keys that the target does not tell apart."""
    _find_duplicates(workspace, field_map, MART, '"retl fault" IS NULL')
    workspace.run(
        f'UPDATE {MART} SET "retl fault" = "retl twice" FROM {DUPLICATED}'
        f' WHERE "retl fault" IS NULL AND "retl folded" = {field_map.folded(field_map.key)}'
    )


def collide(workspace: Workspace, field_map: FieldMap) -> bool:
    """Whether the target would take two different keys of ROWS for one. One of them differs from what the
    target compares, so only those are looked for."""
    folded = field_map.folded("key")
    odd = f"SELECT {folded} FROM {ROWS} WHERE fault IS NULL AND key <> {folded}"
    return bool(
        workspace.run(
            f"SELECT 1 FROM (SELECT {folded} AS folded FROM {ROWS} WHERE fault IS NULL)"
            f" WHERE folded IN ({odd}) GROUP BY folded HAVING count(*) > 1 LIMIT 1"
        )
    )


def _find_duplicates(workspace: Workspace, field_map: FieldMap, table: str, usable: str) -> None:
    """Create DUPLICATED from the usable rows (SQL) of a table."""
    twice = "'KEY_DUPLICATE'"
    if field_map.may_collide:
        twice = "CASE WHEN min(mart_key) = max(mart_key) THEN 'KEY_DUPLICATE' ELSE 'KEY_COLLIDES' END"
    key = f"{field_map.folded(field_map.key)} AS folded, {field_map.mart_key} AS mart_key"
    workspace.run(
        f'CREATE TABLE {DUPLICATED} AS SELECT folded AS "retl folded", {twice} AS "retl twice"'
        f" FROM (SELECT {key} FROM {table} WHERE {usable}) GROUP BY folded HAVING count(*) > 1"
    )


def count(workspace: Workspace) -> int:
    """The number of rows in MART."""
    number: int = workspace.one(f"SELECT count(*) FROM {MART}")[0]
    return number


def release(workspace: Workspace) -> None:
    """Drop MART and ROWS: the change set has their rows, and delivery needs the memory."""
    workspace.run(f"DROP VIEW IF EXISTS {ROWS}")
    workspace.run(f"DROP TABLE IF EXISTS {MART}")
