"""Syncs as exposures of dbt, so that dbt's lineage ends where the rows go.

Names only: no secret, no address, no value of a row. The same project gives the same text. It writes nothing
for a sync that an exposure of the dbt project asked for, because that exposure is there already.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct

from retl.app.loaded import LoadedProject
from retl.app.scaffold.yamltext import flow, sentence
from retl.engine.scratch import private_directory
from retl.engine.workspace import Workspace
from retl.errors import DefinitionError, Failure
from retl.observe.signals import Stop
from retl.project.definitions import Sync
from retl.sources import dbt
from retl.sources.dbt import Manifest, Node

_HEAD = "# Made by `retl dbt exposures`, which makes it again: change the syncs, not this file.\n"
_MARK = "delivered_by"  # in `meta`, of exposures that are ours


class Exposure(Struct, frozen=True):
    """A sync as dbt shows it. `refs` are the arguments of each `ref`."""

    name: str
    sync: str
    label: str
    description: str | None
    tags: tuple[str, ...]
    refs: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        return {"name": self.name, "sync": self.sync, "label": self.label, "depends_on": list(self.refs)}


def exposures(project: LoadedProject) -> list[Exposure]:
    """An exposure for each sync that reads dbt's models, by name. SourceError if dbt's files or the warehouse
    cannot be read, Later if it is being written, DefinitionError EXPOSURE_NAME."""
    manifest = dbt.read_manifest(project.folder / project.warehouse.dbt / dbt.MANIFEST)
    theirs = {one.name for one in manifest.exposures.values() if not _is_ours(one)}
    found: dict[str, Exposure] = {}
    for sync in sorted(project.syncs.values(), key=lambda one: one.name):
        name = sync.name.replace("-", "_")
        refs = tuple(sorted(_ref(manifest, node) for node in _read(project, sync, manifest)))
        if not refs or name in theirs:
            continue
        if name in found:
            raise DefinitionError(
                "EXPOSURE_NAME",
                f"dbt cannot tell the syncs {found[name].sync!r} and {sync.name!r} apart: names of exposures"
                " have no hyphens",
                hint="rename one of them",
            )
        description = " ".join(sync.description.split()) if sync.description else None
        found[name] = Exposure(name, sync.name, _label(project, sync), description, sync.tags, refs)
    return list(found.values())


def text(found: list[Exposure]) -> str:
    """The file for dbt's `models` folder."""
    lines = [_HEAD + "version: 2", "exposures:" if found else "exposures: []"]
    for one in found:
        lines += [f"  - name: {one.name}", f"    label: {sentence(one.label)}", "    type: application"]
        lines += [f"    description: {_quiet(one.description)}"] if one.description else []
        lines += [f"    tags: {flow(list(one.tags))}"] if one.tags else []
        lines += ["    owner: {name: retl}", "    depends_on:"]
        lines += [f"      - {ref}" for ref in one.refs]
        lines.append(f"    meta: {{{_MARK}: retl, sync: {flow(one.sync)}}}")
    return "\n".join(lines) + "\n"


def write(path: Path, text: str) -> bool:
    """Write the file if it differs; whether it did. Failure FILE_UNWRITABLE."""
    if is_current(path, text):
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as problem:
        raise Failure("FILE_UNWRITABLE", f"{path} cannot be written: {problem.strerror}") from problem
    return True


def is_current(path: Path, text: str) -> bool:
    """Whether the file has this text."""
    try:
        return path.read_bytes() == text.encode()
    except FileNotFoundError:
        return False
    except OSError as problem:
        raise Failure("FILE_UNREADABLE", f"{path} cannot be read: {problem.strerror}") from problem


def _is_ours(exposure: Node) -> bool:
    return _MARK in {**exposure.meta, **(exposure.config.get("meta") or {})}


def _read(project: LoadedProject, sync: Sync, manifest: Manifest) -> Iterator[Node]:
    """The models that a sync reads. A SELECT is asked of the warehouse; several inputs are not read for it,
    so only those that name their model count."""
    source = sync.source
    if source.inputs is not None:
        names = [str(one["dbt"]) for one in source.inputs.values() if "dbt" in one]
        yield from {node.unique_id: node for node in (dbt.find(manifest, name) for name in names)}.values()
    elif source.dbt is not None:
        yield dbt.find(manifest, source.dbt)
    elif source.from_ is None:
        with (
            private_directory() as folder,
            Workspace(folder, Stop()) as workspace,
            project.source(sync).open(workspace, wait=False) as snapshot,
        ):
            yield from (manifest.nodes[one] for one in snapshot.description.models)


def _ref(manifest: Manifest, node: Node) -> str:
    same = [
        one
        for one in manifest.nodes.values()
        if one.name == node.name and one.resource_type in dbt.MARTS and one.package_name != node.package_name
    ]
    package = f"'{node.package_name}', " if same else ""
    version = f", v={node.version}" if node.version is not None else ""
    return f"ref({package}'{node.name}'{version})"


def _label(project: LoadedProject, sync: Sync) -> str:
    """Where the rows go: the connection's name, and the table or object in it."""
    ref = sync.destination
    where = ref.options.get("table") or ref.options.get("object")
    name = str(ref.connection or ref.type)
    return f"{where} in {name}" if isinstance(where, str) and "${" not in where else name


def _quiet(text: str | None) -> str:
    """A text in which dbt finds no Jinja."""
    return flow(str(text).replace("{{", "{ {").replace("{%", "{ %").replace("{#", "{ #"))
