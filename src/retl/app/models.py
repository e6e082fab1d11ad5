"""The syncs behind a dbt model: `dbt:orders+` is the model and what is built from it, in dbt's own words.

It reads manifest.json of `warehouse.dbt`. A sync belongs to a model if it names the model or its table, or
reads the table in SQL. SQL of another dialect that DuckDB cannot parse belongs to no model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retl.errors import DefinitionError
from retl.project.definitions import Sync
from retl.sources import dbt
from retl.values.sql import split

if TYPE_CHECKING:
    from retl.app.loaded import LoadedProject

_SPEC = re.compile(r"(?:(\d*)(\+))?([^+]+)(?:(\+)(\d*))?")


def readers(project: LoadedProject, spec: str) -> set[str]:
    """The syncs that read one of the models of `spec`: x, +x (what it is built from too), x+ (what is built
    from it), 2+x, x+1. DefinitionError DBT_MODEL, SourceError DBT_MISSING."""
    found = _SPEC.fullmatch(spec)
    if found is None:
        raise DefinitionError(
            "USAGE", f"there is no selector 'dbt:{spec}'", hint="dbt:orders, dbt:+orders, dbt:orders+"
        )
    manifest = dbt.read_manifest(Path(project.warehouse.dbt) / dbt.MANIFEST)
    try:
        node = dbt.find(manifest, found[3])
    except DefinitionError as problem:
        raise DefinitionError(problem.code, problem.message, hint=problem.hint) from None
    wanted = {node.unique_id}
    if found[2]:
        wanted |= _reached(_parents(manifest), node.unique_id, found[1])
    if found[4]:
        wanted |= _reached(_children(manifest), node.unique_id, found[5])
    models = [
        one for name, one in manifest.nodes.items() if name in wanted and one.resource_type in dbt.MARTS
    ]
    return {name for name, sync in project.syncs.items() if _reads(project.folder, sync, manifest, models)}


def _parents(manifest: dbt.Manifest) -> Mapping[str, list[str]]:
    return {name: node.depends_on.nodes for name, node in manifest.nodes.items()}


def _children(manifest: dbt.Manifest) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, parents in _parents(manifest).items():
        for parent in parents:
            found.setdefault(parent, []).append(name)
    return found


def _reached(edges: Mapping[str, list[str]], start: str, steps: str) -> set[str]:
    """What can be reached in so many steps; any number of them without a number."""
    left, seen, front = int(steps) if steps else -1, {start}, {start}
    while front and left:
        front = {there for here in front for there in edges.get(here, ())} - seen
        seen |= front
        left -= 1
    return seen


def _reads(folder: Path, sync: Sync, manifest: dbt.Manifest, models: list[dbt.Node]) -> bool:
    source = sync.source
    parts = [source.model_dump()] if source.inputs is None else list(source.inputs.values())
    tables = [table for part in parts for table in _tables(folder, part)]
    for part in parts:
        with suppress(DefinitionError):  # validate reports it
            if part.get("dbt") and dbt.find(manifest, part["dbt"]) in models:
                return True
    built = [re.findall(r'[^."`\[\]]+', (one.relation_name or "").lower()) for one in models]
    return any(parts[-len(table) :] == table for parts in built for table in tables)


def _tables(folder: Path, part: Mapping[str, Any]) -> Iterator[list[str]]:
    """The tables that a source reads, each as its lower-case parts."""
    if part.get("table"):
        yield [one.lower() for one in split(part["table"])]
    text = part.get("sql")
    if part.get("file"):
        with suppress(OSError, UnicodeDecodeError):  # validate reports it
            text = (folder / part["file"]).read_text(encoding="utf-8")
    if text:
        yield from read_tables(text)


def read_tables(sql: str) -> list[list[str]]:
    """The tables that a SELECT names, each as its lower-case parts; none if DuckDB cannot parse it."""
    import duckdb

    from retl.sources.relations import written

    with duckdb.connect() as connection:
        ((text,),) = connection.execute("SELECT json_serialize_sql(CAST(? AS VARCHAR))", [sql]).fetchall()
    return [list(name) for name in sorted(written(text))]
