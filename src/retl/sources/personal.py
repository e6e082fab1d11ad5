"""Which columns of a SELECT carry what is personal in the tables that it names.

It follows names through the text, not values: a column is personal if an expression behind its name uses a
personal one, also through CTEs, subqueries and UNION. It opens no view and no macro. What DuckDB cannot parse
has no personal columns.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from msgspec import Struct

from retl.project.contracts import Documented
from retl.sources import dbt
from retl.sources.dbt import MARTS, Manifest
from retl.sources.relations import Name, written
from retl.values.sql import split

_EVERY = "*"  # stands for all columns, where a star hides which


class Text(Struct, frozen=True):
    """A parsed SELECT. `tables`: what it names, in lower case. `aliases`: each name of a table, with its
    alias. `made`: the name of a column, and the names that its expression uses."""

    tables: frozenset[Name] = frozenset()
    aliases: tuple[tuple[Name, str], ...] = ()
    made: tuple[tuple[str, frozenset[str]], ...] = ()


def of_models(manifest: Manifest) -> dict[Name, frozenset[str]]:
    """The personal columns of each model, seed and snapshot that has any: by the relation's parts, all in
    lower case."""
    found = {}
    for node in manifest.nodes.values():
        if node.resource_type in MARTS and node.relation_name and (names := dbt.personal(node)):
            found[tuple(part.lower() for part in split(node.relation_name))] = names
    return found


def of_table(name: Name, known: Mapping[Name, frozenset[str]]) -> frozenset[str]:
    """The personal columns of a table that is written with some or all of its parts."""
    ending = [names for full, names in known.items() if full[-len(name) :] == name]
    return frozenset().union(*ending)


def carried(sql: str, known: Mapping[Name, frozenset[str]]) -> frozenset[str]:
    """The names of personal columns in and behind a SELECT, in lower case."""
    text = _parsed(sql)
    of_tables = {name: names for name in text.tables if (names := of_table(name, known))}
    found = {_EVERY, *(one for names in of_tables.values() for one in names)}
    found |= {alias for name, alias in text.aliases if name in of_tables}  # a whole row as one value
    while more := {name for name, used in text.made if used & found} - found:
        found |= more
    return frozenset(found - {_EVERY, ""}) if of_tables else frozenset()


def inherited(names: frozenset[str]) -> dict[str, Documented]:
    """What is known of the columns that may have these names."""
    return {name: Documented(sensitive=True, inherited=True) for name in sorted(names)}


@lru_cache(maxsize=64)
def _parsed(sql: str) -> Text:
    import duckdb

    with duckdb.connect() as connection:
        ((text,),) = connection.execute("SELECT json_serialize_sql(CAST(? AS VARCHAR))", [sql]).fetchall()
    document = json.loads(text).get("statements", [])
    aliases = [
        (_name(one), (one.get("alias") or one["table_name"]).lower())
        for one in _nodes(document)
        if one.get("type") == "BASE_TABLE"
    ]
    return Text(frozenset(written(text)), tuple(aliases), tuple(_made(document)))


def _made(document: Any) -> Iterator[tuple[str, frozenset[str]]]:
    """The columns of every SELECT in the text, with the names that CTEs and subqueries give them."""
    for node in _nodes(document):
        if node.get("type") in ("SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE"):
            yield from _columns(node)
            yield from _starred(node)
        for query, names in (
            (node.get("query_node"), "aliases"),
            (node.get("subquery"), "column_name_alias"),
        ):
            if query is not None and node.get(names):
                yield from _renamed(_columns(query), [one.lower() for one in node[names]])


def _renamed(
    columns: list[tuple[str, frozenset[str]]], names: list[str]
) -> Iterator[tuple[str, frozenset[str]]]:
    starred = any(_EVERY in used for _, used in columns)
    for number, name in enumerate(names):
        if starred:
            yield name, frozenset({_EVERY})
        elif number < len(columns):
            yield name, columns[number][1] | {columns[number][0]}


def _columns(node: Mapping[str, Any]) -> list[tuple[str, frozenset[str]]]:
    """The columns of a query: name, and what its expression uses. Those of a UNION have the first's names."""
    if "node" in node:
        return _columns(node["node"])
    if "select_list" in node:
        return [(_called(one), frozenset(_used(one))) for one in node["select_list"]]
    parts = node.get("children") or [node[side] for side in ("left", "right") if node.get(side)]
    sides = [_columns(one) for one in parts]
    if not sides:
        return []
    return [
        (name, used.union(*(side[number][1] for side in sides[1:] if number < len(side))))
        for number, (name, used) in enumerate(sides[0])
    ]


def _starred(node: Mapping[str, Any]) -> Iterator[tuple[str, frozenset[str]]]:
    """What a star gives another name, or replaces."""
    for star in (one for one in node.get("select_list", ()) if one["type"] == "STAR"):
        for one in star.get("rename_list") or ():
            yield one["value"].lower(), frozenset({one["key"]["column"].lower()})
        for one in star.get("replace_list") or ():
            yield one["key"].lower(), frozenset(_used(one["value"]))


def _called(item: Mapping[str, Any]) -> str:
    names = item.get("column_names") or [""]
    return str(item.get("alias") or names[-1]).lower()


def _used(item: Any) -> Iterator[str]:
    """The names that an expression uses; of a name with a table only the column."""
    for node in _nodes(item):
        if node.get("type") == "STAR" and not node.get("expr"):
            yield _EVERY
        elif node.get("type") == "COLUMN_REF":
            names = [one.lower() for one in node["column_names"]]
            yield from names[1:] or names


def _name(table: Mapping[str, Any]) -> Name:
    parts = ("catalog_name", "schema_name", "table_name")
    return tuple(table[part].lower() for part in parts if table.get(part))


def _nodes(document: Any) -> Iterator[dict[str, Any]]:
    if isinstance(document, dict):
        yield document
        document = list(document.values())
    if isinstance(document, list):
        for one in document:
            yield from _nodes(one)
