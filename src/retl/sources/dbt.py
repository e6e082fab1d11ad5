"""A mart as a dbt model, as manifest.json in dbt's target folder defines it. It imports nothing of dbt, and
does not know how a run of dbt ended (`dbt_results`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from datetime import datetime
from math import ceil
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import msgspec

from retl.errors import DefinitionError, Later, SourceError
from retl.observe import log
from retl.project.contracts import Documented
from retl.project.definitions import Warehouse
from retl.project.validation import did_you_mean
from retl.values.types import Type, of_duckdb

MANIFEST = "manifest.json"
MARTS = {"model", "snapshot", "seed"}
_PERSONAL = {"sensitive", "pii"}
PATIENCE, WRITING = 10.0, 60.0  # seconds
FileT = TypeVar("FileT")
_LOOK_AGAIN = 0.2  # seconds
_HINT = "run `dbt build`, or set `warehouse.dbt` in retl.yml to dbt's target folder"


class TestMetadata(msgspec.Struct):
    """The generic test behind a test, and its arguments."""

    name: str
    kwargs: dict[str, Any] = {}


class ColumnNode(msgspec.Struct):
    """A column in a model's properties."""

    name: str
    description: str = ""
    data_type: str | None = None
    tags: list[str] = []
    meta: dict[str, Any] = {}
    config: dict[str, Any] = {}


class DependsOn(msgspec.Struct):
    nodes: list[str] = []


class Node(msgspec.Struct):
    """What retl reads of a node or exposure in the manifest, such as a model or a test."""

    name: str
    resource_type: str
    unique_id: str
    package_name: str = ""
    description: str = ""
    database: str | None = None
    relation_name: str | None = None
    version: str | int | float | None = None
    latest_version: str | int | float | None = None
    columns: dict[str, ColumnNode] = {}
    meta: dict[str, Any] = {}
    config: dict[str, Any] = {}
    depends_on: DependsOn = msgspec.field(default_factory=DependsOn)
    attached_node: str | None = None
    column_name: str | None = None
    test_metadata: TestMetadata | None = None


class Metadata(msgspec.Struct):
    """When a file was written, by which dbt command, and for which kind of database."""

    generated_at: datetime
    invocation_id: str | None = None
    adapter_type: str | None = None


class Manifest(msgspec.Struct):
    """manifest.json, as far as retl reads it."""

    metadata: Metadata
    nodes: dict[str, Node]
    exposures: dict[str, Node] = {}

    def tests(self, model: Node) -> list[Node]:
        """The tests of a model: generic tests of it, and SQL tests that read it."""
        tests = [node for node in self.nodes.values() if node.resource_type == "test"]
        return [
            test
            for test in tests
            if test.attached_node == model.unique_id
            or (test.attached_node is None and model.unique_id in test.depends_on.nodes)
        ]


def read_manifest(path: Path) -> Manifest:
    """SourceError DBT_MISSING or DBT_UNREADABLE."""
    return decoded(path, Manifest)


def find(manifest: Manifest, name: str) -> Node:
    """The model (or seed, or snapshot) with this name, `package.name` or `name.v2`; by default the latest
    version. DefinitionError DBT_MODEL if there is none, or more than one."""
    marts = [node for node in manifest.nodes.values() if node.resource_type in MARTS]
    found = [node for node in marts if name in _names(node)]
    if len(found) == 1:
        return found[0]
    message = f"the dbt project has {'no' if not found else 'more than one'} model {name!r}"
    hint = (
        f"name its package: {', '.join(sorted(f'{node.package_name}.{node.name}' for node in found))}"
        if found
        else did_you_mean(name, [node.name for node in marts])
    )
    raise DefinitionError("DBT_MODEL", message, hint=hint, where="source.dbt")


def documented(target: Path, name: str) -> dict[str, Documented]:
    """What the project says of a model's columns, by name in lower case: only what dbt enforces. SourceError
    if there is no manifest, DefinitionError DBT_MODEL."""
    manifest = read_manifest(target / MANIFEST)
    return columns_of(manifest, find(manifest, name))


def columns_of(manifest: Manifest, model: Node) -> dict[str, Documented]:
    """`documented`, of a node of this manifest."""
    tests = [test for test in manifest.tests(model) if test.column_name and is_enforced(test)]
    tested = {name: tested_columns(tests, name) for name in ("not_null", "unique", "accepted_values")}
    known = {column.name.strip('"').lower(): column for column in model.columns.values()}
    names = dict.fromkeys([*known, *(name for kind in tested.values() for name in kind)])
    return {
        name: Documented(
            _type(known[name].data_type) if name in known else None,
            name in tested["not_null"],
            name in tested["unique"],
            _values(tested["accepted_values"].get(name)),
            name in known and _is_personal(known[name]),
            known[name].description or None if name in known else None,
        )
        for name in names
    }


def is_enforced(test: Node) -> bool:
    """Whether dbt fails if a single row of the mart breaks the test."""
    config = {"severity": "error", "error_if": "!= 0", "enabled": True, **test.config}
    fails = str(config["severity"]).lower() == "error" and config["error_if"] == "!= 0"
    return fails and bool(config["enabled"]) and not config.get("where") and not config.get("limit")


def tested_columns(tests: Iterable[Node], name: str) -> dict[str, Node]:
    """The tests of one kind by column, in lower case."""
    return {
        test.column_name.strip('"').lower(): test
        for test in tests
        if test.test_metadata is not None and test.test_metadata.name == name and test.column_name
    }


def _values(test: Node | None) -> tuple[str, ...]:
    if test is None or test.test_metadata is None:
        return ()
    return tuple(str(value) for value in test.test_metadata.kwargs.get("values", []))


def personal(model: Node) -> frozenset[str]:
    """The columns of a node that the project calls personal, in lower case."""
    return frozenset(one.name.strip('"').lower() for one in model.columns.values() if _is_personal(one))


def _is_personal(column: ColumnNode) -> bool:
    """Whether a tag or a meta of the column calls it personal. It is never guessed."""
    meta = {**column.meta, **(column.config.get("meta") or {})}
    tags = {*column.tags, *(column.config.get("tags") or ())}
    return bool(_PERSONAL & {*tags, *(word for word, value in meta.items() if value)})


def _type(written: str | None) -> Type | None:
    """The contract type of a column's `data_type`, if DuckDB knows the word. A decimal without digits has
    other ones in each database."""
    if not written or ("(" not in written and re.match(r"\s*(dec|num)", written, re.IGNORECASE)):
        return None
    try:
        return of_duckdb(str(duckdb.sqltype(written)))
    except duckdb.Error:
        return None


def name_of(manifest: Manifest, node: Node) -> str:
    """The shortest name by which `find` finds this node."""
    for name in sorted(_names(node), key=len):
        with suppress(DefinitionError):
            if find(manifest, name) is node:
                return name
    return node.name


def relation(warehouse: Warehouse, folder: Path, name: str) -> str:
    """The quoted relation of a model in the warehouse's DuckDB file."""
    database = Path(warehouse.path).stem
    hint = "point DUCKDB_PATH or `warehouse.path` at the file that dbt writes; if it was renamed since, use"
    return relation_in(
        *(folder / warehouse.dbt, name, {"duckdb"}, database), hint=f"{hint} `source: {{table: …}}`"
    )


def relation_in(
    target: Path, name: str, adapters: Collection[str], database: str | None, *, hint: str
) -> str:
    """The relation of a model, quoted as its adapter does it. `target` is dbt's target folder, `adapters` are
    those that build where the source reads, `database` is the only one it reads (None: any), and `hint` says
    where both are set. DefinitionError DBT_MODEL or DBT_DATABASE if the source does not have the model."""
    manifest = read_manifest(target / MANIFEST)
    node = find(manifest, name)
    if node.relation_name is None:
        raise DefinitionError(
            "DBT_MODEL",
            f"the dbt model {name!r} is ephemeral: it is not in the warehouse",
            hint="materialize it as a table or view",
            where="source.dbt",
        )
    adapter = manifest.metadata.adapter_type
    if adapter is not None and adapter not in adapters:
        raise DefinitionError(
            "DBT_DATABASE",
            f"dbt builds {name!r} in {adapter}, and the source is {' or '.join(sorted(adapters))}",
            hint="name a source of that type: `source: {from: NAME, dbt: …}`, with its `dbt` set to dbt's"
            " target folder",
            where="source.dbt",
        )
    if None not in (node.database, database) and str(node.database).lower() != str(database).lower():
        raise DefinitionError(
            "DBT_DATABASE",
            f"dbt builds {name!r} in the database {node.database!r}, and the source is {database!r}",
            hint=hint,
            where="source.dbt",
        )
    return node.relation_name


def _names(node: Node) -> set[str]:
    """All names of a node."""
    names: set[str] = set()
    if node.version is None or str(node.version) == str(node.latest_version):
        names.add(node.name)
    if node.version is not None:
        names.add(f"{node.name}.v{node.version}")
    return names | {f"{node.package_name}.{name}" for name in names}


def decoded(path: Path, kind: type[FileT], wait: Callable[[float], object] = time.sleep) -> FileT:
    """A file of dbt. dbt writes it in place, so one that was changed a moment ago may be half written: it is
    read again for PATIENCE seconds. Later DBT_WRITING after that; SourceError DBT_UNREADABLE for a file that
    nobody has changed for WRITING seconds."""
    for again in range(ceil(PATIENCE / _LOOK_AGAIN)):
        try:
            return _decoded(path, kind)
        except _HalfWritten:
            if again == 0:
                log.event("dbt_is_writing", file=path.name)
            wait(_LOOK_AGAIN)
    raise Later("DBT_WRITING", f"dbt is writing {path}", hint="run again when dbt has ended")


class _HalfWritten(Exception):
    """The file is no JSON yet."""


def _decoded(path: Path, kind: type[FileT]) -> FileT:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        raise SourceError("DBT_MISSING", f"there is no {path}", hint=_HINT) from None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as problem:
        is_cut = isinstance(problem, msgspec.DecodeError) and not isinstance(problem, msgspec.ValidationError)
        if is_cut and _is_new(path):
            raise _HalfWritten from None
        reason = problem.strerror if isinstance(problem, OSError) else "it is not what dbt writes"
        raise SourceError("DBT_UNREADABLE", f"{path} cannot be read: {reason}", hint=_HINT) from None


def _is_new(path: Path) -> bool:
    """Whether the file was changed a moment ago."""
    try:
        return abs(time.time() - path.stat().st_mtime) < WRITING
    except OSError:
        return True  # it is being replaced
