"""Parquet files as a relation: their own types, if one type has all values of a column exactly.

A column that two files hold with types that do not fit together is refused, whatever the order of the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from retl.engine.sql_text import Query, columns
from retl.engine.workspace import Workspace
from retl.errors import Mismatch
from retl.sources.files.relation import Partitions, Relation, listed
from retl.values.types import widens


def relation(workspace: Workspace, files: Mapping[str, Path], partitions: Partitions) -> Relation:
    sql = f"SELECT * FROM read_parquet({listed(files.values())}, union_by_name = true, {partitions.options})"
    found = columns(workspace, Query(sql, {}, "the files"))
    _refuse_conflicts(workspace, files, found)
    return Relation(sql, found, partitions.types)


def _refuse_conflicts(workspace: Workspace, files: Mapping[str, Path], union: Mapping[str, str]) -> None:
    """Mismatch SOURCE_DRIFT if a column of a file has values that the type of all files cannot hold. Files
    with one schema are asked once."""
    schema = "string_agg(concat_ws(' ', name, type, duckdb_type, logical_type, precision, scale), ',')"
    kinds = workspace.run(
        f"SELECT min(file_name) FROM (SELECT file_name, {schema} AS shape"
        f" FROM parquet_schema({listed(files.values())}) GROUP BY file_name) GROUP BY shape"
    )
    if len(kinds) < 2:
        return
    keys = {str(path): key for key, path in files.items()}
    names = {name.lower(): name for name in union}
    for (path,) in sorted(kinds):
        own = Query(
            f"SELECT * FROM read_parquet({listed([path])}, hive_partitioning = false)", {}, keys[path]
        )
        for name, kind in columns(workspace, own).items():
            whole = union[names[name.lower()]]
            if not widens(kind, whole):
                raise Mismatch(
                    "SOURCE_DRIFT",
                    f"the column {name} is {kind} in {keys[path]}, and with the other files {whole}",
                    hint="write the files with one type, or name those of one type in `path`",
                )
