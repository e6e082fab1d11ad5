"""`retl init --from-dbt`: a sync for every mart with `meta.retl` in dbt's manifest.

`meta.retl` of a model or an exposure has the destination, and the keys of a sync that differ from the
default. Key and contract come from the tests that dbt *enforces* (a test that only warns, or checks only
some rows, does not count) and from the types in the warehouse. If dbt builds in another database than DuckDB,
which cannot be read here yet, the syncs name a source to fill in and have no contract. It overwrites no file,
writes only valid syncs, and reports what it left out and why.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from retl import destinations, sources
from retl.app.resolve import open_project
from retl.app.scaffold import ABOUT_ENVIRONMENT, ENVIRONMENT, PRIVATE, put, unprotected
from retl.app.scaffold.templates import HUBSPOT_URL
from retl.app.scaffold.yamltext import flow, sentence
from retl.contract.completion import allowed
from retl.engine.scratch import private_directory
from retl.engine.workspace import Workspace
from retl.errors import DefinitionError, Mismatch, SourceError
from retl.observe.signals import Stop
from retl.project import yamlfile
from retl.project.contracts import Documented
from retl.project.definitions import SYNC_NAME, Sync, Warehouse
from retl.project.fields import problems
from retl.project.marts import Source
from retl.project.settings import DEFAULT_CONNECTIONS, Environment, Settings, read
from retl.project.validation import each, validate
from retl.project.variables import fill
from retl.sources import dbt
from retl.sources.api import Invocation
from retl.sources.dbt import Manifest, Node
from retl.sources.dbt_model import type_for
from retl.sources.duckdb import DuckDB
from retl.values.types import of_duckdb

_OURS = {
    "sync",
    "model",
    "key",
    "max_age",
    "destination",
}  # keys of meta.retl that are not keys of a sync file
_SYNC_WORDS = {one.alias or name for name, one in Sync.model_fields.items()} - {
    "name",
    "source",
    "contract",
    "key",
    "destination",
}

_GIVE = f"give the path of the {dbt.MANIFEST} that `dbt parse` writes, usually target/{dbt.MANIFEST}"


class Scaffolded(Struct):
    """The result: files written, files that existed, and marts without a sync."""

    written: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)  # which mart, and why
    notes: list[str] = field(default_factory=list)


class _Wish(Struct, frozen=True):
    """One sync that the manifest asks for."""

    name: str
    model: Node
    meta: Mapping[str, Any]

    @property
    def destination(self) -> dict[str, Any]:
        """`destination`, plus all keys that are not keys of a sync."""
        rest = {name: v for name, v in self.meta.items() if name not in _OURS | _SYNC_WORDS}
        whole = {**self.meta.get("destination", {}), **rest}
        return whole if whole.keys() & {"connection", "type"} else {"type": "postgres", **whole}


def _read(manifest: Path) -> Manifest:
    """The manifest that --from-dbt names. Its errors say what to give instead."""
    if manifest.exists() and manifest.name != dbt.MANIFEST:
        what = f"--from-dbt takes dbt's {dbt.MANIFEST}, and {manifest} has another name"
        raise DefinitionError("USAGE", what, hint=_GIVE)
    try:
        return dbt.read_manifest(manifest)
    except SourceError as problem:
        raise SourceError(problem.code, problem.message, hint=_GIVE) from None


def write(folder: Path, manifest: Path) -> Scaffolded:
    """Make or complete the project in `folder`. DefinitionError if the manifest has no `meta.retl` or the
    warehouse file cannot be found; SourceError if either cannot be read."""
    manifest = manifest / dbt.MANIFEST if manifest.is_dir() else manifest
    known = _read(manifest)
    found = Scaffolded()
    wishes = list(_wishes(known, found))
    if not wishes and not found.left_out:
        raise DefinitionError(
            "DBT_NOTHING",
            "no model and no exposure in the manifest has `meta.retl`",
            hint="give a model `meta: {retl: {connection: crm_db, table: crm.users}}`, then `dbt parse`",
            where=str(manifest),
        )
    folder = folder.absolute()
    there = (folder / "retl.yml").exists() or (folder / "syncs").is_dir()
    adapter, inside, after = known.metadata.adapter_type or "duckdb", list[str](), list[str]()
    if adapter == "duckdb":
        warehouse = open_project(folder).warehouse if there else _warehouse(folder, manifest, wishes)
        reading = warehouse.model_copy(update={"dbt": str(manifest.parent.absolute())})
        texts, inside = _syncs(folder, known, wishes, reading, found), _file_lines(folder, warehouse)
    else:
        source, kind = _source(folder, adapter, there=there), type_for(adapter)
        after = _source_lines(source, kind)
        texts = _syncs_of(folder, known, wishes, source, found)
        if there and source not in open_project(folder).definitions.sources:
            found.notes.append(f"retl.yml has no source {source!r} yet")
    files = {"config.env": (ENVIRONMENT, 0o600), ".gitignore": (PRIVATE, 0o644)}  # `data/` may be dbt's seeds
    if not there:
        files |= _new_files(_project(folder, inside, after, manifest, wishes), wishes)
    else:
        connections = open_project(folder).definitions.connections
        names = {str(wish.destination.get("connection", "postgres")) for wish in wishes}
        lacking = sorted(names - {*connections, *DEFAULT_CONNECTIONS})
        found.notes += [f"retl.yml has no connection {name!r} yet" for name in lacking]
        found.kept += [folder / "retl.yml"] if (folder / "retl.yml").exists() else []
        for name, other in _renamed(folder, texts).items():
            del texts[name]
            found.notes.append(f"no sync {name!r}: {other!r} is what became of it")
        found.kept += _moved(folder, texts)
        _keep(folder, texts, found)
    files |= {f"syncs/{name}.yml": (text, 0o644) for name, text in texts.items()}
    for path, (text, mode) in files.items():
        (found.written if put(folder / path, text, mode) else found.kept).append(folder / path)
    found.notes += unprotected(folder)
    return found


def _keep(folder: Path, texts: Mapping[str, str], found: Scaffolded) -> None:
    """A sync that the project has, and that the manifest would not make again, is kept and not left out."""
    project = open_project(folder)
    there = {name for name, _ in found.left_out if name in project.syncs and name not in texts}
    for name, why in found.left_out:
        if name in there:
            found.notes.append(f"dbt's files would not make the sync {name!r} again: {why}")
    found.kept += [folder / project.place(name).file for name in sorted(there)]
    found.left_out = [one for one in found.left_out if one[0] not in there]


def _moved(folder: Path, texts: dict[str, str]) -> list[Path]:
    """The files of syncs that are not where they would be written, in a folder of their own for example. They
    are taken out of `texts`."""
    project = open_project(folder)
    places = {name: folder / project.place(name).file for name in texts if name in project.syncs}
    moved = {name: path for name, path in places.items() if path != folder / "syncs" / f"{name}.yml"}
    for name in moved:
        del texts[name]
    return list(moved.values())


def _renamed(folder: Path, texts: Mapping[str, str]) -> dict[str, str]:
    """The syncs that the project has under another name: their first line says what they were made as; else
    of the same model, to the same connection, and named by no wish."""
    project = open_project(folder)
    there = project.syncs
    renamed: dict[str, str] = {}
    firsts = {name: (folder / project.place(name).file).read_text("utf-8").split("\n")[0] for name in there}
    for name, text in texts.items():
        first = text.split("\n")[0]
        if name not in there and (made := [other for other, one in firsts.items() if one == first]):
            renamed[name] = made[0]
        elif name not in there:
            wished = _prove(folder, name, text)
            for other in there.values():
                if other.name not in {*texts, *renamed.values()} and _end(other) == _end(wished):
                    renamed[name] = other.name
                    break
    return renamed


def _end(sync: Sync) -> tuple[str | None, ...]:
    ref = sync.destination
    return sync.source.from_, sync.source.dbt, ref.connection or ref.type


def _wishes(manifest: Manifest, found: Scaffolded) -> Iterator[_Wish]:
    """The syncs of models, then of exposures. A list under `meta.retl` is several syncs."""
    for node in manifest.nodes.values():
        for meta in _metas(node) if node.resource_type in dbt.MARTS else ():
            yield _Wish(str(meta.get("sync", node.name)), node, meta)
    for exposure in manifest.exposures.values():
        marts = [manifest.nodes[name] for name in exposure.depends_on.nodes if name in manifest.nodes]
        for meta in _metas(exposure):
            chosen = [one for one in marts if meta.get("model", one.name) == one.name]
            if len(chosen) == 1:
                yield _Wish(str(meta.get("sync", exposure.name)), chosen[0], meta)
            else:
                why = "set `model` in meta.retl to one of the models that the exposure depends on"
                found.left_out.append((f"exposure {exposure.name}", why))


def _metas(node: Node) -> list[dict[str, Any]]:
    written = (node.config.get("meta") or node.meta).get("retl")
    return [one for one in (written if isinstance(written, list) else [written]) if isinstance(one, dict)]


def _warehouse(folder: Path, manifest: Path, wishes: list[_Wish]) -> Warehouse:
    """The warehouse of a new project: DUCKDB_PATH, or the one file near the dbt project with its database's
    name."""
    if (path := read(Settings, Environment(folder)).duckdb_path) is not None:
        return Warehouse(path=str(folder / path))
    project = manifest.parent.absolute().parent
    names = {wish.model.database for wish in wishes}
    files = [*project.glob("*.d*b"), *project.glob("*/*.d*b")]
    near = sorted(path for path in files if path.suffix in (".duckdb", ".db", ".ddb") and path.stem in names)
    if len(near) != 1:
        raise DefinitionError(
            "DBT_DATABASE",
            f"there is {'no' if not near else 'more than one'} DuckDB file near {project} that dbt may write",
            hint="set DUCKDB_PATH to the path in dbt's profiles.yml",
        )
    return Warehouse(path=str(near[0]))


def _syncs(
    folder: Path, manifest: Manifest, wishes: list[_Wish], warehouse: Warehouse, found: Scaffolded
) -> dict[str, str]:
    """The text of every sync that is valid, by name."""
    texts: dict[str, str] = {}
    with private_directory() as directory, Workspace(directory, Stop()) as workspace:
        for wish in wishes:
            with _left_out(wish, texts, found):
                name = dbt.name_of(manifest, wish.model)
                source = DuckDB(warehouse, Source(dbt=name), Invocation(folder, {}))
                with source.open(workspace) as snapshot:
                    columns = snapshot.description.columns
                tests = _enforced_tests(manifest, wish)
                key = _key(wish, tests, columns)
                known = dbt.columns_of(manifest, wish.model)
                contract = [
                    _column(*one, known.get(one[0].lower(), Documented()), one[0] in key)
                    for one in columns.items()
                ]
                text = _text(wish, {"dbt": name}, key, ["contract:", *contract], manifest)
                _prove(folder, wish.name, text)
                texts[wish.name] = text
    return texts


def _syncs_of(
    folder: Path, manifest: Manifest, wishes: list[_Wish], source: str, found: Scaffolded
) -> dict[str, str]:
    """The same for a source that cannot be read yet: the columns are those that dbt's files name."""
    texts: dict[str, str] = {}
    for wish in wishes:
        with _left_out(wish, texts, found):
            name, tests = dbt.name_of(manifest, wish.model), _enforced_tests(manifest, wish)
            tested = [test.column_name.strip('`"') for test in tests if test.column_name]
            key = _key(wish, tests, dict.fromkeys([*wish.model.columns, *tested], ""))
            free = ["# without a contract every column is sent, with the types of the database"]
            text = _text(wish, {"from": source, "dbt": name}, key, free, manifest)
            _prove(folder, wish.name, text)
            texts[wish.name] = text
    return texts


@contextmanager
def _left_out(wish: _Wish, texts: Mapping[str, str], found: Scaffolded) -> Iterator[None]:
    """Take down why there is no such sync."""
    try:
        if wish.name in texts:
            raise DefinitionError("SYNC_TWICE", "another sync has this name; set `sync` in meta.retl")
        yield
    except (DefinitionError, Mismatch) as problem:
        errors = each(problem) if isinstance(problem, DefinitionError) else (problem,)
        found.left_out.append((wish.name, "; ".join(one.message for one in errors)))


def _source(folder: Path, adapter: str, *, there: bool) -> str:
    """The name of the source of what an adapter builds: the project's own, else a new one."""
    known = open_project(folder).definitions.sources if there else {}
    return next((name for name, one in known.items() if one.type == type_for(adapter)), "dw")


def _enforced_tests(manifest: Manifest, wish: _Wish) -> list[Node]:
    tests = manifest.tests(wish.model)
    return [test for test in tests if dbt.is_enforced(test) and test.test_metadata]


def _text(
    wish: _Wish, place: Mapping[str, str], key: list[str], contract: list[str], manifest: Manifest
) -> str:
    name, tests = place["dbt"], manifest.tests(wish.model)
    lines = [f"# Made from the dbt model {name} as {wish.name}. You can change what follows."]
    if wish.model.description:
        lines.append(f"description: {sentence(wish.model.description)}")
    source = {**place} | ({"max_age": wish.meta["max_age"]} if "max_age" in wish.meta else {})
    hint = "" if "max_age" in source else " # add max_age: 26h to refuse an older mart"
    lines += [f"source: {flow(source)}{hint}", f"key: {flow(key)}", *contract]
    lines.append(f"destination: {flow(wish.destination | _created(wish))}")
    lines += [f"{word}: {flow(value)}" for word, value in wish.meta.items() if word in _SYNC_WORDS]
    unused = sorted(test.name for test in tests if test.test_metadata and _unused(test))
    lines += [f"# dbt test that is not part of the contract: {sentence(name)}" for name in unused]
    return "\n".join(lines) + "\n"


def _created(wish: _Wish) -> dict[str, bool]:
    """`create: true` where the target can make its table, unless the manifest says or needs otherwise."""
    written = wish.destination
    try:
        kind = destinations.load(str(written.get("type", "postgres")))
    except DefinitionError:  # a preset of the project, or a mistake that is reported elsewhere
        return {}
    makes = "create" in kind.Options.model_fields and "table" in written and "create" not in written
    return {"create": True} if makes and wish.meta.get("write") != "update_only" else {}


def _unused(test: Node) -> bool:
    assert test.test_metadata is not None
    return test.test_metadata.name not in ("unique", "not_null", "accepted_values")


def _key(wish: _Wish, tests: list[Node], columns: Mapping[str, str]) -> list[str]:
    """The key in `meta.retl`; else the first unique column (columns that are never NULL first); else the
    columns of a unique combination."""
    if (key := wish.meta.get("key")) is not None:
        return [str(one) for one in (key if isinstance(key, list) else [key])]
    unique, filled = dbt.tested_columns(tests, "unique"), dbt.tested_columns(tests, "not_null")
    single = [name for name in columns if name.lower() in unique]
    best = [name for name in single if name.lower() in filled] or single
    if best:
        return best[:1]
    for test in tests:
        assert test.test_metadata is not None
        if test.test_metadata.name == "unique_combination_of_columns":
            several = test.test_metadata.kwargs.get("combination_of_columns", [])
            return [name for name in columns if name.lower() in {str(one).lower() for one in several}]
    raise DefinitionError(
        "KEY_COLUMN", "it has no key; test a column with `unique`, or set `key` in meta.retl"
    )


def _column(name: str, kind: str, known: Documented, in_key: bool) -> str:
    found = of_duckdb(kind)
    if found is None:
        return f"  # {sentence(name)} is {kind}, a type that retl does not carry: cast it"
    options: dict[str, Any] = {"type": found.name}
    for option in ("max_digits", "decimal_places", "items"):
        if (value := getattr(found, option)) is not None:
            options[option] = value
    if not in_key and not known.filled:
        options["nullable"] = True
    if known.sensitive:
        options["sensitive"] = True
    if one_of := allowed(found.name, known.one_of):
        texts = [one.replace("${", "$${") if isinstance(one, str) else one for one in one_of]
        options["one_of"] = texts
    text = ", ".join(f"{option}: {flow(value)}" for option, value in options.items())
    if known.description:
        text += f", description: {sentence(known.description)}"
    return f"  {flow(name)}: {{{text}}}"


def _prove(folder: Path, name: str, text: str) -> Sync:
    """The sync of this text; DefinitionError(s) unless it is valid. Variables of its connection may be
    unset."""
    if not SYNC_NAME.fullmatch(name) or name == "all":
        raise DefinitionError("SYNC_NAME", f"{name!r} is not a valid name of a sync; set `sync` in meta.retl")
    tree = yamlfile.load(folder / "syncs" / f"{name}.yml", text, name=f"syncs/{name}.yml")
    sync = validate(Sync, fill(tree, Environment(folder, None, {})), name=name)
    columns = sync.contract.named if sync.contract is not None else None
    for problem in problems(sync, columns):
        raise DefinitionError(problem.code, problem.message)
    return sync


def _file_lines(folder: Path, warehouse: Warehouse) -> list[str]:
    """Of the warehouse in retl.yml."""
    path = os.path.relpath(warehouse.path, folder)
    return ["  type: duckdb", f"  path: {flow(path)} # or DUCKDB_PATH"]


def _source_lines(name: str, type: str) -> list[str]:
    """A source to fill in for retl.yml."""
    return ["sources:", f"  {flow(name)}: {flow({'type': type, **_to_fill(name, sources.load(type))})}"]


def _to_fill(name: str, kind: Any) -> dict[str, str]:
    """A variable for each required option of a connection, for its password, and for a port that has a
    default."""
    fields = kind.Connection.model_fields.items()
    needed = {one: "" for one, info in fields if info.is_required() or one == "password"}
    needed |= {one: f":-{info.default}" for one, info in fields if one == "port" and one not in needed}
    return {
        one: f"${{{re.sub('[^A-Z0-9]', '_', f'{name}_{one}'.upper())}{default}}}"
        for one, default in needed.items()
    }


def _new_files(project: str, wishes: list[_Wish]) -> dict[str, tuple[str, int]]:
    return {"retl.yml": (project, 0o644), "config.env": (_environment(project, wishes), 0o600)}


def _environment(project: str, wishes: list[_Wish]) -> str:
    """config.env: the variables of this retl.yml, and those of the default connections that syncs use."""
    lines = [f"#{name}={default}" for name, default in re.findall(r"\$\{(\w+)(?::-([^}]*))?\}", project)]
    plain = any(str(wish.destination.get("connection", "postgres")) == "postgres" for wish in wishes)
    settings = [line for line in ENVIRONMENT.splitlines() if line.startswith("#POSTGRES_")] if plain else []
    return ABOUT_ENVIRONMENT + "".join(f"{line}\n" for line in dict.fromkeys([*lines, *settings]))


def _project(
    folder: Path, warehouse: list[str], source: list[str], manifest: Path, wishes: list[_Wish]
) -> str:
    """retl.yml: where the marts and dbt's files are, and a connection to fill in for each name in
    `meta.retl`."""
    target = os.path.relpath(manifest.parent.absolute(), folder)
    lines = ["warehouse:", *warehouse, f"  dbt: {flow(target)} # dbt's target folder", *source]
    connections: dict[str, str] = {}
    kinds = {*destinations.names(), *destinations.preset_names()}
    for wish in wishes:
        name = wish.destination.get("connection")
        if name is not None and name not in DEFAULT_CONNECTIONS:
            assumed = name if name in kinds else "postgres"  # `hubspot` is of type hubspot
            connections.setdefault(str(name), str(wish.destination.get("type", assumed)))
    lines += ["connections:"] if connections else []
    for name, type in connections.items():
        variables = _to_fill(name, destinations.load(type))
        if type == "hubspot":  # the fake one of `retl demo --serve` has another address
            variables = {"base_url": HUBSPOT_URL, **variables}
        lines.append(f"  {flow(name)}: {flow({'type': type, **variables})}")
    return "\n".join(lines) + "\n"
