"""The dbt models that a SELECT reads: DuckDB parses it and binds it, and nobody searches its text.

The parser names what is written, the binder names the tables behind it: behind views that dbt did not make,
behind macros and `query_table`. A view of dbt stands for what it reads, because dbt skips it if that failed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import duckdb

from retl.engine.sql_text import Query
from retl.engine.workspace import Workspace
from retl.sources.dbt import MARTS, Manifest, Node
from retl.values.sql import quoted, split

Name = tuple[str, ...]


def models(workspace: Workspace, query: Query, manifest: Manifest, database: str) -> list[Node]:
    """The models, seeds and snapshots of the manifest that a query reads, in `database`, which is in use."""
    known = {
        _folded(split(node.relation_name)): node
        for node in manifest.nodes.values()
        if node.resource_type in MARTS and node.relation_name
    }
    text = workspace.one("SELECT json_serialize_sql($sql)", {"sql": query.sql})[0]
    found = {_found(name, known, database) for name in written(text)}
    named = {relation for relation in found if relation in known}
    behind = set[Name]()
    for relation in named:
        behind |= _bound(workspace, f"SELECT * FROM {'.'.join(map(quoted, relation))}") - {relation}
    read = named | (_bound(workspace, query.sql) - behind)
    for relation in found - named:  # the whole may read files in a way that is not told
        read |= _bound(workspace, f"SELECT * FROM {'.'.join(map(quoted, relation))}")
    return [known[relation] for relation in sorted(read) if relation in known]


def written(serialized: str) -> set[Name]:
    """The names of tables and views in a text, as `json_serialize_sql` gives it, without those of its own
    CTEs; in lower case. None if DuckDB could not parse it."""
    return set(_named(json.loads(serialized).get("statements", []), frozenset()))


def _named(node: Any, hidden: frozenset[str]) -> Iterator[Name]:
    if isinstance(node, list):
        for one in node:
            yield from _named(one, hidden)
    elif isinstance(node, dict):
        if node.get("type") == "BASE_TABLE":
            name = _folded(node[part] for part in ("catalog_name", "schema_name", "table_name") if node[part])
            if len(name) > 1 or name[0] not in hidden:
                yield name
        for one in (node.get("cte_map") or {}).get("map", []):
            yield from _named(one["value"], hidden)
            hidden |= {one["key"].lower()}
        yield from _named([value for part, value in node.items() if part != "cte_map"], hidden)


def _found(name: Name, known: dict[Name, Node], database: str) -> Name:
    """The name in full. Of two parts the first is a schema, or else a database."""
    if len(name) == 1:
        return (database.lower(), "main", *name)
    if len(name) == 2:
        in_schema = (database.lower(), *name)
        in_database = (name[0], "main", name[1])
        return in_database if in_database in known and in_schema not in known else in_schema
    return name


def _bound(workspace: Workspace, sql: str) -> set[Name]:
    """The tables that a text reads once views and macros are opened. Empty if DuckDB cannot tell, as for a
    SELECT from a CSV file."""
    try:
        document = json.loads(workspace.one("SELECT json_serialize_plan($sql)", {"sql": sql})[0])
    except duckdb.Error:
        return set()
    return set(_scanned(document))


def _scanned(node: Any) -> Iterator[Name]:
    if isinstance(node, dict):
        if {"catalog", "schema", "table"} <= node.keys():
            yield _folded((node["catalog"], node["schema"], node["table"]))
        node = list(node.values())
    if isinstance(node, list):
        for one in node:
            yield from _scanned(one)


def _folded(parts: Any) -> Name:
    return tuple(str(part).lower() for part in parts)
