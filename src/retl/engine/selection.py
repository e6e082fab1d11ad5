"""The rows of the mart that a run selects: --key, --where, --limit, --full, keys that may have changed, and a
watermark.

Each becomes a predicate over the frozen rows; nothing here drops a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import duckdb
from msgspec import Struct

from retl.engine.baseline import BASELINE
from retl.engine.freeze import FROZEN
from retl.engine.mapping import FieldMap
from retl.engine.sql_text import first_line, select
from retl.engine.workspace import NAME, Workspace
from retl.errors import DefinitionError, Misasked
from retl.project.definitions import Sync
from retl.values.keys import key_form, key_sql, key_texts
from retl.values.sql import literal, quoted
from retl.values.storage import storage_type

PASSED = "passed"  # key
TOUCHED = "touched_keys"  # key, before its transforms: its row may have changed
Parts = tuple[str, ...]  # the texts of a key, one for each of its columns


class Selection(Struct, frozen=True):
    """Which rows a run reads and sends. `touched`: only rows with these keys are compared, as in a run of the
    whole mart; a key that the mart lacks is no error."""

    full: bool = False
    limit: int | None = None
    keys: tuple[str, ...] = ()
    where: str | None = None
    touched: tuple[Parts, ...] = ()

    @property
    def partial(self) -> bool:
        """Whether absent rows mean nothing, because only a part is read."""
        return bool(self.keys or self.touched) or self.where is not None

    @property
    def forced(self) -> bool:
        """Whether unchanged rows are sent too."""
        return self.full or bool(self.keys) or self.where is not None


class Absent(Struct, frozen=True):
    """Of the keys that may have changed: how many there are, how many the mart lacks, and how many of these
    were delivered, so that a run of the whole mart would delete them."""

    asked: int
    missing: int
    gone: int


class Cursor(Struct, frozen=True):
    """The column of a watermark, its DuckDB type, and the lookback before the mark (seconds)."""

    column: str
    column_type: str
    lookback: float = 0.0

    @property
    def is_time(self) -> bool:
        return self.column_type.startswith(("TIMESTAMP", "DATE"))


def cursor(sync: Sync, columns: Mapping[str, str]) -> Cursor | None:
    """The watermark's column. DefinitionError if the mart has no such column or its type does not fit."""
    asked = sync.changes
    if asked.watermark is None:
        return None
    kind = columns.get(asked.watermark)
    cursor = Cursor(asked.watermark, kind or "", asked.lookback)
    known = cursor.is_time or (kind or "").endswith("INT") or (kind or "").endswith("INTEGER")
    if kind is None or not known:
        raise DefinitionError(
            "WATERMARK_COLUMN",
            f"the watermark's column {asked.watermark!r} is "
            + ("not in the mart" if kind is None else f"{kind}: it must be a time or an integer"),
            where=f"sync {sync.name}",
        )
    if asked.lookback and not cursor.is_time:
        raise DefinitionError(
            "WATERMARK_LOOKBACK", "`lookback` needs a time column", where=f"sync {sync.name}"
        )
    return cursor


def chosen(
    workspace: Workspace, field_map: FieldMap, selection: Selection, variables: Mapping[str, Any]
) -> list[str]:
    """The predicates of --key and --where over the frozen rows. Misasked if --where is no predicate;
    it can read only the mart and write nothing."""
    conditions = []
    if selection.keys:
        asked = key_texts(selection.keys, len(field_map.shape.key))
        workspace.load("asked_keys", {"key": "VARCHAR"}, zip(asked, strict=True))
        conditions.append(f"{field_map.key} IN (SELECT key FROM asked_keys)")
    if selection.touched:
        conditions.append(is_touched(field_map))
    if selection.where is not None:
        workspace.run(f"CREATE VIEW mart AS SELECT * FROM {FROZEN}")  # the name that --where may use
        wanted = select(f'SELECT "retl row" FROM mart WHERE ({selection.where}\n)', variables, "--where")
        try:
            workspace.run(f"CREATE TABLE selected AS {wanted.sql}", wanted.parameters)
        except duckdb.Error as problem:
            raise Misasked(
                "WHERE_INVALID", f"--where does not fit the mart: {first_line(problem)}"
            ) from problem
        workspace.run("DROP VIEW mart")
        conditions.append('"retl row" IN (FROM selected)')
    return conditions


def is_touched(field_map: FieldMap) -> str:
    """The predicate, also while the catalog of a source is in use."""
    return f"{field_map.mart_key} IN (SELECT key FROM {NAME}.main.{TOUCHED})"


def load_touched(workspace: Workspace, field_map: FieldMap, touched: Sequence[Parts]) -> None:
    """Create TOUCHED. A text that is no value of its column is the key of no row."""
    types = [one.type for one in field_map.shape.key]
    columns = {f"k{index}": storage_type(one) for index, one in enumerate(types)}
    workspace.load("named", columns, touched, lenient=True)
    key = key_sql(types, list(columns))
    workspace.run(f"CREATE OR REPLACE TABLE {TOUCHED} AS SELECT DISTINCT {key} AS key FROM named")
    workspace.run(f"DELETE FROM {TOUCHED} WHERE key IS NULL")
    workspace.run("DROP TABLE named")


def touched_keys(workspace: Workspace) -> list[str]:
    """The keys of TOUCHED, as `key_sql` writes them."""
    return [str(key) for (key,) in workspace.run(f"SELECT key FROM {NAME}.main.{TOUCHED}")]


def absent(workspace: Workspace, field_map: FieldMap, asked: int) -> Absent:
    """Compare TOUCHED with the frozen rows and the baseline. Of keys with a transform nobody knows how they
    were sent, so each that is missing may be gone."""
    lacking = f"SELECT key FROM {TOUCHED} WHERE key NOT IN (SELECT {field_map.mart_key} FROM {FROZEN}"
    lacking += f" WHERE {field_map.mart_key} IS NOT NULL)"
    found, missing = workspace.one(
        f"SELECT (SELECT count(*) FROM {TOUCHED}), (SELECT count(*) FROM ({lacking}))"
    )
    gone = missing
    if field_map.key == field_map.mart_key:
        owned = f"SELECT count(*) FROM {BASELINE} WHERE owned AND key IN ({lacking})"
        (gone,) = workspace.one(owned)
    return Absent(asked, asked - found + missing, gone)


def require(workspace: Workspace, field_map: FieldMap, sync: Sync, keys: Sequence[str]) -> None:
    """Misasked KEY_UNKNOWN if the mart lacks one of these keys; the keys may be personal data, so it
    only counts them."""
    if not keys:
        return
    workspace.load("named", {"key": "VARCHAR"}, zip(key_texts(keys, len(sync.key)), strict=True))
    found = f"SELECT {field_map.key} AS key FROM {FROZEN}"
    total, missing = workspace.one(
        f"SELECT count(*), count(*) FILTER (m.key IS NULL) FROM named n LEFT JOIN (SELECT DISTINCT key FROM"
        f" ({found})) m USING (key)"
    )
    workspace.run("DROP TABLE named")
    if missing:
        form = key_form([one.type for one in field_map.shape.key], sync.key)
        hidden = any(one.sensitive for one in field_map.shape.key)
        raise Misasked(
            "KEY_UNKNOWN",
            f"the mart has no row with {'this key' if total == 1 else f'{missing} of these {total} keys'}",
            hint=f"write a key as {form}" + ("" if hidden else f"; `retl explain {sync.name}` shows some"),
            where=f"sync {sync.name}",
        )


def keep_passed(workspace: Workspace, field_map: FieldMap, condition: str) -> None:
    """Create PASSED: the keys of the frozen rows that a run does not read, because of its mark."""
    keys = f"SELECT {field_map.key} AS key FROM {FROZEN} WHERE NOT ({condition})"
    workspace.run(f"CREATE TABLE {PASSED} AS {keys}")


class Mark(Struct, frozen=True):
    """`condition`: the rows to read, as SQL over the frozen rows; `next`: where the mark moves to."""

    condition: str
    next: str | None


def since(
    workspace: Workspace,
    field_map: FieldMap,
    cursor: Cursor,
    mark: str | None,
    due: Iterable[str],
    now: datetime,
) -> Mark:
    """Watermark: the rows at or after the mark (minus the lookback), rows with a NULL cursor, and rows that
    are due for another reason.

    The comparison is typed and inclusive: rows with the mark's value may have come later, and the baseline
    knows which are delivered already. A time mark never moves past `now`: one row of the far future must not
    hide tomorrow's rows.
    """
    column = quoted(cursor.column)
    ceiling = f" FILTER ({column} <= {literal(now.isoformat())}::TIMESTAMPTZ)" if cursor.is_time else ""
    newest: str | None = workspace.one(f"SELECT CAST(max({column}){ceiling} AS VARCHAR) FROM {FROZEN}")[0]
    if mark is None:
        return Mark("TRUE", newest)
    workspace.load("due", {"key": "VARCHAR"}, ((key,) for key in due))
    moved = workspace.one(
        f"SELECT CAST(greatest(CAST({literal(mark)} AS {cursor.column_type}), CAST("
        f"{literal(newest) if newest is not None else 'NULL'} AS {cursor.column_type})) AS VARCHAR)"
    )[0]
    kept = f"coalesce({field_map.key} IN (SELECT key FROM due), FALSE)"
    return Mark(f"(coalesce({column} >= {_least(cursor, mark)}, TRUE) OR {kept})", moved)


def least(cursor: Cursor, mark: str) -> str:
    """The least value of the column that is needed, as DuckDB writes it."""
    (found,) = duckdb.execute(f"SELECT CAST({_least(cursor, mark)} AS VARCHAR)").fetchall()[0]
    return str(found)


def _least(cursor: Cursor, mark: str) -> str:
    least = f"CAST({literal(mark)} AS {cursor.column_type})"
    if cursor.lookback:
        least += f" - INTERVAL {literal(f'{cursor.lookback} seconds')}"
    return least
