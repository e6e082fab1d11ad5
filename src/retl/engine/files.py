"""Files of changes, made in SQL: Parquet, CSV, JSON lines, or one JSON array.

The same rows in the same order have the same bytes, whatever the number of threads.
"""

from __future__ import annotations

import json
from pathlib import Path

from retl.destinations.batch import OPERATION, Layout, Shape
from retl.engine.lines import json_sql_of
from retl.engine.mapping import FieldMap
from retl.engine.workspace import Workspace
from retl.values import storage
from retl.values.sql import literal, quoted
from retl.values.types import Type

_PARQUET = "FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 122880"
PASSING = "FORMAT parquet, COMPRESSION uncompressed, PARQUET_VERSION V2, DICTIONARY_SIZE_LIMIT 1000"
# JSON holds neither raw line feeds nor \x01, so a line of it is a CSV cell that needs no quotes
_LINES = "FORMAT csv, HEADER false, QUOTE '', ESCAPE '', DELIMITER '\x01'"
Column = tuple[str, Type, str]  # name, type, the column of the change set


def write_file(
    workspace: Workspace,
    field_map: FieldMap,
    table: str,
    span: tuple[int, int],
    path: Path,
    layout: Layout,
    *,
    delete: bool,
) -> None:
    """Write the rows at these positions of a change set into a new file that is private to this user."""
    shape = field_map.shape
    columns = [(one.name, one.type, f"c.k{i}") for i, one in enumerate(shape.key)]
    if not (delete and layout.format in ("ndjson", "json")):
        columns += [(one.name, one.type, f"c.f{i}") for i, one in enumerate(shape.fields)]
    if layout.format == "parquet":
        select, options = _typed(columns, layout), _PARQUET
    elif layout.format == "csv":
        select, options = _cells(field_map, columns, layout)
    else:
        comma = f"CASE WHEN c.pos = {span[0]} THEN '[' ELSE ',' END || " if layout.format == "json" else ""
        select, options = f"{comma}{_object(field_map, columns, layout)} AS line", _LINES
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    workspace.rows(
        workspace.cursor(),
        f"COPY (SELECT {select} FROM {table} c WHERE c.pos BETWEEN {span[0]} AND {span[1]} ORDER BY c.pos)"
        f" TO {literal(str(path))} ({options}, USE_TMP_FILE false)",
    )
    if layout.format == "json":
        with path.open("ab") as file:
            file.write(b"]\n")


def write_values(
    workspace: Workspace, shape: Shape, table: str, span: tuple[int, int], path: Path, *, delete: bool
) -> None:
    """Write key and fields of the rows at these positions into a new Parquet file that is private to this
    user, and read once: see `Batch.parquet`."""
    columns = [(one.type, f"k{i}") for i, one in enumerate(shape.key)]
    columns += [] if delete else [(one.type, f"f{i}") for i, one in enumerate(shape.fields)]
    listed = ", ".join(f"{stored(kind, at)} AS v{n}" for n, (kind, at) in enumerate(columns))
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    workspace.rows(
        workspace.cursor(),
        f"COPY (SELECT {listed} FROM {table} WHERE pos BETWEEN {span[0]} AND {span[1]} ORDER BY pos)"
        f" TO {literal(str(path))} ({PASSING}, USE_TMP_FILE false)",
    )


def _typed(columns: list[Column], layout: Layout) -> str:
    """The values in their own types; JSON is text, which every reader of Parquet takes."""
    listed = [f"{stored(kind, at)} AS {quoted(name)}" for name, kind, at in columns]
    return ", ".join([*_operation(layout), *listed])


def stored(kind: Type, at: str) -> str:
    """SQL of a value in the type that Parquet stores it in."""
    return f"CAST({at} AS {'VARCHAR' if kind.name == 'json' else storage.storage_type(kind)})"


def _cells(field_map: FieldMap, columns: list[Column], layout: Layout) -> tuple[str, str]:
    """A header and texts: NULL is empty, and every text has quotes, so an empty one is no NULL."""
    listed, texts = [], [OPERATION] if layout.operation else []
    for name, kind, at in columns:
        cell = f"CAST({at} AS VARCHAR)"
        if kind.name not in ("string", "json"):
            cell = json_sql_of(field_map, kind, at)
            cell = cell if kind.name == "list" else f"trim({cell}, '\"')"
            cell = f"CASE WHEN {at} IS NOT NULL THEN {cell} END"
        if kind.name in ("string", "json", "list"):
            texts.append(name)
        listed.append(f"{cell} AS {quoted(name)}")
    quotes = f", FORCE_QUOTE ({', '.join(map(quoted, texts))})" if texts else ""
    return ", ".join([*_operation(layout), *listed]), f"FORMAT csv, HEADER true, NULLSTR ''{quotes}"


def _object(field_map: FieldMap, columns: list[Column], layout: Layout) -> str:
    members = [f"{json.dumps(OPERATION)}:{json.dumps(layout.operation)}"] if layout.operation else []
    parts = [literal(one) for one in members]
    for name, kind, at in columns:
        named = literal(json.dumps(name, ensure_ascii=False) + ":")
        parts.append(f"{named} || {json_sql_of(field_map, kind, at)}")
    return f"'{{' || {' || chr(44) || '.join(parts)} || '}}'"


def _operation(layout: Layout) -> list[str]:
    return [f"{literal(layout.operation)} AS {quoted(OPERATION)}"] if layout.operation else []
