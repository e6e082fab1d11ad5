"""A mart as a dbt model: its relation, and the last results that dbt reported for it.

It reads two kinds of files in dbt's target folder and imports nothing of dbt: manifest.json defines a model,
run_results.json has its results. dbt overwrites the second with every command. So every `run_results*.json`
is read, and the newest result of each node counts: a project that runs and tests in two commands keeps a
copy of the first. A result that no file has is unknown, which never counts as good. dbt's messages are not
repeated, because they may quote rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from retl.errors import DefinitionError, SourceError
from retl.project.definitions import Warehouse
from retl.project.validation import did_you_mean

MANIFEST = "manifest.json"
_RESULTS = "run_results*.json"
_BUILDS = {"run", "build", "retry", "seed", "snapshot"}  # not `compile` and `docs`: they build nothing
_TESTS = {"test", "build", "retry"}
MARTS = {"model", "snapshot", "seed"}
FileT = TypeVar("FileT")
_HINT = "run `dbt build`, or set `warehouse.dbt` in retl.yml to dbt's target folder"


class TestMetadata(msgspec.Struct):
    """The generic test behind a test, and its arguments."""

    name: str
    kwargs: dict[str, Any] = {}


class ColumnNode(msgspec.Struct):
    """A column in a model's properties."""

    name: str
    description: str = ""
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


class _Step(msgspec.Struct):
    name: str
    completed_at: datetime | None = None


class _Result(msgspec.Struct):
    unique_id: str
    status: str
    timing: list[_Step] = []
    relation_name: str | None = None


class _RunResults(msgspec.Struct):
    metadata: Metadata
    results: list[_Result]
    args: dict[str, Any] = {}


@dataclass(frozen=True)
class Build:
    """dbt's last results for a model. `status` is None if no file has a run of it. `ended_at` (aware) is when
    that run built the mart, None if it did not."""

    model: str
    status: str | None
    ended_at: datetime | None = None
    failed_tests: tuple[str, ...] = ()
    warned_tests: tuple[str, ...] = ()
    untested: tuple[str, ...] = ()  # no result, skipped, or a result older than the model's run
    unfinished: bool = False  # manifest.json is newer than every result


def read_manifest(path: Path) -> Manifest:
    """SourceError DBT_MISSING or DBT_UNREADABLE."""
    return _decoded(path, Manifest)


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


def build(target: Path, name: str) -> Build:
    """dbt's last results for a model, from its target folder. SourceError if there is no manifest or a file
    cannot be read."""
    manifest = read_manifest(target / MANIFEST)
    node = find(manifest, name)
    files = [_decoded(path, _RunResults) for path in sorted(target.glob(_RESULTS))]
    files.sort(key=lambda one: _aware(one.metadata.generated_at))
    runs = [
        _run(node, result, file)
        for file in files
        if file.args.get("which") in _BUILDS
        for result in file.results
        if result.unique_id == node.unique_id and result.relation_name in (None, node.relation_name)
    ]
    status, ended = runs[-1] if runs else (None, None)
    results = {
        result.unique_id: (result.status, _aware(file.metadata.generated_at))
        for file in files
        if file.args.get("which") in _TESTS
        for result in file.results
        if result.status != "skipped"  # does not change an earlier result
    }
    tests: dict[str, list[str]] = {"failed": [], "warn": [], "silent": [], "pass": []}
    for test in manifest.tests(node):
        if test.config.get("enabled") is not False:
            tests[_verdict(results.get(test.unique_id), ended)].append(test.name)
    newest = files[-1].metadata if files else None
    return Build(
        model=name,
        status=status,
        ended_at=ended,
        failed_tests=tuple(sorted(tests["failed"])),
        warned_tests=tuple(sorted(tests["warn"])),
        untested=tuple(sorted(tests["silent"])),
        unfinished=newest is not None
        and newest.invocation_id != manifest.metadata.invocation_id
        and _aware(newest.generated_at) < _aware(manifest.metadata.generated_at),
    )


def notes(build: Build) -> Iterator[str]:
    """What does not stop a run but should be known."""
    if build.warned_tests:
        yield f"dbt's tests of {build.model} warned: {', '.join(build.warned_tests)}"
    if build.untested:
        yield f"not tested since dbt last ran {build.model}: {', '.join(build.untested)}"
    if build.unfinished:
        yield "dbt's manifest.json is newer than its results: the last dbt command only parsed, or died"


def _names(node: Node) -> set[str]:
    """All names of a node."""
    names: set[str] = set()
    if node.version is None or str(node.version) == str(node.latest_version):
        names.add(node.name)
    if node.version is not None:
        names.add(f"{node.name}.v{node.version}")
    return names | {f"{node.package_name}.{name}" for name in names}


def _run(node: Node, result: _Result, file: _RunResults) -> tuple[str, datetime | None]:
    """How a run ended, and when if it built the mart; `--empty` and `--sample` build only a part."""
    partly = next((option for option in ("empty", "sample") if file.args.get(option)), None)
    if result.status == "success" and partly and node.resource_type == "model":
        return f"built with --{partly}", None
    if result.status != "success":
        return result.status, None
    ends = [step.completed_at for step in result.timing if step.name == "execute" and step.completed_at]
    return result.status, _aware(ends[-1]) if ends else None


def _verdict(result: tuple[str, datetime] | None, ended: datetime | None) -> str:
    """failed, warn, pass, or silent. A failure counts until the test passes; a pass only for its build."""
    if result is None:
        return "silent"
    status, at = result
    if status in ("fail", "error", "runtime error"):
        return "failed"
    if status not in ("pass", "warn") or (ended is not None and at < ended):  # of another build
        return "silent"
    return status


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _decoded(path: Path, kind: type[FileT]) -> FileT:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        raise SourceError("DBT_MISSING", f"there is no {path}", hint=_HINT) from None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "it is not what dbt writes"
        raise SourceError("DBT_UNREADABLE", f"{path} cannot be read: {reason}", hint=_HINT) from None
