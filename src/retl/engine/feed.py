"""Feed: the rows that a source reports as changed, instead of the whole mart.

The rows of the feed are frozen like a mart, and the keys that may be gone are a table. Absence means nothing
otherwise. The number of rows of the mart is compared with what the last run left: if they differ, the feed
lacks a change, and the mart must be read whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from retl.engine import freeze
from retl.engine.baseline import BASELINE
from retl.engine.freeze import FROZEN
from retl.engine.mapping import FieldMap
from retl.engine.sql_text import Query
from retl.engine.workspace import Workspace

LEFT = "left_keys"  # key: may be gone
_HELD = "held_keys"  # key: delivered, or rejected, so the mart had it


def take(
    workspace: Workspace,
    field_map: FieldMap,
    rows: Query,
    left: Query,
    columns: Mapping[str, str],
    rejected: Sequence[str],
) -> int:
    """Freeze the rows of a feed and create LEFT. Returns by how many rows the mart grew, if the mart had just
    the keys of the baseline and the `rejected` ones before."""
    count = freeze.freeze(workspace, rows, columns)
    key = field_map.key
    workspace.run(
        f"CREATE OR REPLACE TABLE {LEFT} AS SELECT DISTINCT {key} AS key FROM ({left.sql}\n)"
        f" WHERE {key} IS NOT NULL",
        left.parameters,
    )
    workspace.load(_HELD, {"key": "VARCHAR"}, ((one,) for one in rejected))
    touched = f"SELECT key FROM {LEFT} UNION SELECT {key} FROM {FROZEN}"
    before: int = workspace.one(
        f"SELECT count(*) FROM ({touched}) WHERE key IN (SELECT key FROM {BASELINE} UNION FROM {_HELD})"
    )[0]
    return count - before


def add(
    workspace: Workspace,
    field_map: FieldMap,
    rows: Query,
    columns: Mapping[str, str],
    due: Sequence[str],
) -> None:
    """Add those rows of the whole mart that have one of these keys and are not in the feed."""
    workspace.load("due", {"key": "VARCHAR"}, ((one,) for one in due))
    workspace.run(f"ALTER TABLE {FROZEN} RENAME TO fed")
    key = field_map.key
    workspace.run(f"DELETE FROM due WHERE key IN (SELECT {key} FROM fed)")
    wanted = f"SELECT * FROM ({rows.sql}\n) WHERE {key} IN (FROM due)"
    freeze.freeze(workspace, replace(rows, sql=wanted), columns)
    workspace.run(
        f'INSERT INTO {FROZEN} SELECT * REPLACE ("retl row" + (SELECT count(*) FROM {FROZEN}) AS "retl row")'
        " FROM fed"
    )
    workspace.run("DROP TABLE fed")
