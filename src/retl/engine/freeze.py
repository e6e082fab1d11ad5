"""Freeze: the rows of a snapshot, read once into a table of the workspace.

A source describes its rows as a query over an attached database or files. Freezing reads all of it. After
that the source is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import duckdb

from retl.contract.judge import MISFIT, Contract, Verdict
from retl.engine import reading
from retl.engine.sql_text import Query, drift
from retl.engine.workspace import NAME, Workspace
from retl.errors import SourceError
from retl.values import storage
from retl.values.sql import quoted

FROZEN = "frozen"  # "retl row" (counts from 0), then the columns of the mart
UNEDITED = "unedited"  # the same before a contract edited the rows, if the run needs them
_EDITED_AT_ONCE = 10_000  # rows as Python objects at a time


def freeze(workspace: Workspace, query: Query, columns: Mapping[str, str], only: str | None = None) -> int:
    """Read these columns of a query (name → DuckDB type) into FROZEN; returns the number of rows. `only`: a
    predicate over the columns; the other rows are left out where that is less work.

    Collations of the mart are removed: under NOCASE two keys would be equal. Mismatch SOURCE_DRIFT if a
    column is missing, SourceError if the rows cannot be read, or are not as many as the source sent."""
    listed = ", ".join(
        f'{quoted(name)} COLLATE "C" AS {quoted(name)}'
        if kind.startswith("VARCHAR") and "[" not in kind
        else quoted(name)
        for name, kind in columns.items()
    )
    rows = f"SELECT {listed} FROM ({query.sql}\n)"
    if only is not None and query.count is None:  # else the rows are here already, and counted
        rows = f"SELECT * FROM ({rows}) WHERE {only}"
    try:
        with reading.told(workspace, query):
            workspace.run(
                f'CREATE TABLE {NAME}.main.{FROZEN} AS SELECT row_number() OVER () - 1 AS "retl row", *'
                f" FROM ({rows})",
                query.parameters,
            )
    except duckdb.Error as problem:
        raise drift(query, problem) from problem
    count: int = workspace.one(f"SELECT count(*) FROM {NAME}.main.{FROZEN}")[0]
    require_all(query, count)
    return count


def require_all(query: Query, count: int) -> None:
    """SourceError ROWS_LOST if the source sent another number of rows than were read."""
    if query.count not in (None, count):
        raise SourceError(
            "ROWS_LOST",
            f"{query.origin} sent {query.count} rows, and {count} were read",
            hint="run again, and report it; nothing was delivered",
        )


def edit(workspace: Workspace, judged: Contract, *, keep: bool) -> tuple[Contract, list[tuple[Any, ...]]]:
    """If the contract may edit rows, every row passes the model before it is hashed: FROZEN then has the
    model's values. Returns the contract of the new columns, and the rejected rows as (row, stage, code,
    reason, column). With `keep` the original rows stay in UNEDITED."""
    names = list(judged.columns)
    types = {name: storage.storage_type(rule.type) for name, rule in judged.columns.items()}
    rejected: list[tuple[Any, ...]] = []

    def edited() -> Iterator[tuple[Any, ...]]:
        for chunk in workspace.chunks(f'SELECT {judged.select()}, "retl row" FROM {FROZEN}', _EDITED_AT_ONCE):
            rows = [dict(zip((*names, MISFIT), row, strict=False)) for row in chunk]
            for (*_, number), row, verdict in zip(chunk, rows, judged.judge_and_edit(rows), strict=True):
                if isinstance(verdict, Verdict):
                    rejected.append((number, "contract", verdict.code, verdict.reason, verdict.column))
                after = verdict if isinstance(verdict, dict) else row
                yield (number, *(_as_text(after[name]) for name in names))

    workspace.load("edited", {"retl row": "BIGINT", **types}, edited(), lenient=True)
    workspace.run(f"ALTER TABLE {FROZEN} RENAME TO {UNEDITED}" if keep else f"DROP TABLE {FROZEN}")
    workspace.run(f"ALTER TABLE edited RENAME TO {FROZEN}")
    return judged.over({name: types[name] for name in names}), rejected


def release(workspace: Workspace) -> None:
    """Drop FROZEN when it is no longer needed; the rows of a share are a view."""
    try:
        workspace.run(f"DROP TABLE {FROZEN}")
    except duckdb.CatalogException:  # faster than a question to the catalog
        workspace.run(f"DROP VIEW {FROZEN}")


def _as_text(value: Any) -> Any:
    return json.dumps(value, default=str) if isinstance(value, list | dict) else value
