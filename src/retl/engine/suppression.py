"""Suppression: keys that are never sent or stored again, known only by keyed digests.

Rows of suppressed keys leave the workspace before anything compares, judges or keeps them.
"""

from __future__ import annotations

from retl.engine.hash import MART, ROWS
from retl.engine.mapping import FieldMap
from retl.engine.workspace import Workspace
from retl.values.suppressed import Suppressed, digest_sql, pads

SUPPRESSED = "suppressed"  # key: those that were dropped from the mart's rows
_DIGESTS = "suppressed_digests"


def drop(workspace: Workspace, field_map: FieldMap, suppressed: Suppressed) -> int:
    """Remove the rows of suppressed keys from MART and list their keys in SUPPRESSED; returns how many rows
    there were."""
    workspace.run(f"CREATE OR REPLACE TABLE {SUPPRESSED} (key VARCHAR)")
    if not suppressed:
        return 0
    keys = f"SELECT row, key FROM {ROWS} WHERE key IS NOT NULL"
    _match(workspace, field_map, suppressed, "dropped", keys)
    workspace.run(f"INSERT INTO {SUPPRESSED} SELECT DISTINCT key FROM dropped")
    workspace.run(f'DELETE FROM {MART} WHERE "retl row" IN (SELECT row FROM dropped)')
    number: int = workspace.one("SELECT count(*) FROM dropped")[0]
    workspace.run("DROP TABLE dropped")
    return number


def remove(workspace: Workspace, field_map: FieldMap, suppressed: Suppressed, table: str) -> None:
    """Remove the rows of suppressed keys from a table with a column `key`."""
    if suppressed:
        _match(workspace, field_map, suppressed, "removed", f"SELECT DISTINCT key FROM {table}")
        workspace.run(f"DELETE FROM {table} WHERE key IN (SELECT key FROM removed)")
        workspace.run("DROP TABLE removed")


def count(workspace: Workspace, field_map: FieldMap, suppressed: Suppressed, relation: str) -> int:
    """How many suppressed keys a relation (SQL with a column `key`) has."""
    return len(found(workspace, field_map, suppressed, relation))


def found(workspace: Workspace, field_map: FieldMap, suppressed: Suppressed, relation: str) -> list[str]:
    """The suppressed keys that a relation (SQL with a column `key`) has."""
    if not suppressed:
        return []
    _match(workspace, field_map, suppressed, "counted", f"SELECT DISTINCT key FROM {relation}")
    return [key for (key,) in workspace.run("SELECT key FROM counted ORDER BY key")]


def _match(
    workspace: Workspace, field_map: FieldMap, suppressed: Suppressed, table: str, relation: str
) -> None:
    """Create `table` from the rows of a relation (SQL) whose key is suppressed, as the target compares it."""
    workspace.load(_DIGESTS, {"digest": "VARCHAR"}, ((one,) for one in sorted(suppressed.digests)))
    tests = [f"{digest_sql('key')} IN (SELECT digest FROM {_DIGESTS})"]
    if field_map.folds:
        tests.append(f"{digest_sql(field_map.folded('key'))} IN (SELECT digest FROM {_DIGESTS})")
    workspace.run(
        f"CREATE OR REPLACE TABLE {table} AS SELECT * FROM ({relation}) WHERE {' OR '.join(tests)}",
        pads(suppressed.secret),
    )
