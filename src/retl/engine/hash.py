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

MART = "mart"  # "retl row", the mart's columns, "retl fault", "retl hash", "retl cleared", "retl unread"
ROWS = "rows"  # of MART: row, key (as text), fault, hash, cleared, unread
DUPLICATED = "duplicated"  # key: keys that the mart has more than once

KEY_FAULTS = {
    "KEY_NULL": "a key column is NULL",
    "KEY_BLANK": "a key column is blank",
    "KEY_DUPLICATE": "the mart has this key more than once",
    "KEY_TYPE": "a key value does not fit the key's type",
}


def hash_rows(
    workspace: Workspace, field_map: FieldMap, prefilter: str, salt: str, chosen: str | None = None
) -> None:
    """Create MART and ROWS from the frozen rows, or from those that match the SQL predicate `chosen`; then
    drop the frozen rows. `prefilter` is the contract's, `salt` the payload fingerprint.

    With `chosen`, duplicate keys are found first: the other rows are dropped."""
    fault = field_map.key_fault
    if chosen is not None:
        find_duplicates(workspace, freeze.FROZEN, field_map.key, f"{fault} IS NULL")
        twice = f"{field_map.key} IN (SELECT key FROM {DUPLICATED})"
        fault = f"coalesce({fault}, CASE WHEN {twice} THEN 'KEY_DUPLICATE' END)"
    workspace.run(
        f'CREATE TABLE {MART} AS SELECT *, {fault} AS "retl fault",'
        f' {hash_sql(compared(field_map), salt)} AS "retl hash", {prefilter} AS "retl cleared",'
        f' {field_map.field_fault or "NULL"} AS "retl unread" FROM {freeze.FROZEN}'
        + (f" WHERE coalesce({chosen}, FALSE)" if chosen is not None else "")
    )
    freeze.release(workspace)
    workspace.run(
        f'CREATE VIEW {ROWS} AS SELECT "retl row" AS row, {field_map.key} AS key, "retl fault" AS fault,'
        f' "retl hash" AS hash, "retl cleared" AS cleared, "retl unread" AS unread FROM {MART}'
    )


def find_duplicates(workspace: Workspace, table: str, key: str, usable: str) -> None:
    """Create DUPLICATED from the keys (SQL) of a table's usable rows (SQL)."""
    workspace.run(
        f"CREATE TABLE {DUPLICATED} AS SELECT key FROM (SELECT {key} AS key FROM {table} WHERE {usable})"
        " GROUP BY key HAVING count(*) > 1"
    )


def mark_duplicates(workspace: Workspace) -> None:
    """Give the rows of MART that share a key the fault KEY_DUPLICATE."""
    find_duplicates(workspace, ROWS, "key", "fault IS NULL")
    workspace.run(
        f'UPDATE {MART} SET "retl fault" = \'KEY_DUPLICATE\' WHERE "retl row" IN'
        f" (SELECT row FROM {ROWS} WHERE fault IS NULL AND key IN (SELECT key FROM {DUPLICATED}))"
    )


def count(workspace: Workspace) -> int:
    """The number of rows in MART."""
    number: int = workspace.one(f"SELECT count(*) FROM {MART}")[0]
    return number


def release(workspace: Workspace) -> None:
    """Drop MART and ROWS: the change set has their rows, and delivery needs the memory."""
    workspace.run(f"DROP VIEW {ROWS}")
    workspace.run(f"DROP TABLE {MART}")
