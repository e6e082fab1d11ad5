"""The project's folder: find retl.yml and syncs/, fill in variables and connections, select and order.

It reads only definitions: no warehouse, no target, no ledger. An unset variable is an error only when it is
needed (`require`, `destination`), so that every project can be validated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from retl import destinations, sources
from retl.destinations.api import Destination
from retl.errors import DefinitionError, Place
from retl.model import Limits
from retl.observe.redact import register_model
from retl.project.definitions import WAREHOUSE, Project, Sync, Warehouse
from retl.project.fields import Claim, claimed, key_names, problems, sharing
from retl.project.files import PROJECT_FILE, inside, read_project_file, read_syncs
from retl.project.settings import DEFAULT_CONNECTIONS, Environment, Settings, read, variable
from retl.project.validation import ModelT, did_you_mean, each, raise_all, validate
from retl.project.variables import Filled, Missing, fill, unset
from retl.project.yamlfile import Loc, empty
from retl.sources.api import Invocation, Source, own_pace
from retl.sources.dbt_model import DbtModel, Model
from retl.sources.inputs import Inputs, Select

if TYPE_CHECKING:
    from retl.destinations.presets import Preset
    from retl.pace.limiter import Pace

DestinationClass = type[Destination[Any]]


@dataclass(frozen=True)
class Resolved:
    """The destination of a sync: connection name, class of the type, and validated options."""

    name: str
    type: str
    destination: DestinationClass
    options: BaseModel
    limits: Limits


@dataclass(frozen=True, repr=False)
class LoadedProject:
    """A project with valid files. Paths in `warehouse` and `state_url` are absolute."""

    folder: Path
    environment: Environment
    settings: Settings
    definitions: Project
    warehouse: Warehouse
    state_url: str
    syncs: Mapping[str, Sync]
    presets: Mapping[str, Preset]
    _file: Filled
    _written: Mapping[str, Filled]

    def select(
        self,
        names: Collection[str] = (),
        tags: Collection[str] = (),
        exclude: Collection[str] = (),
        all: bool = False,
    ) -> list[Sync]:
        """The named or tagged syncs without the excluded ones; each comes after those in its `after`.

        Without names and tags, or with `all`: every enabled sync. A paused sync is selected only by name.
        DefinitionError SYNC_UNKNOWN or TAG_UNKNOWN.
        """
        known_tags = {tag for sync in self.syncs.values() for tag in sync.tags}
        raise_all(
            DefinitionError("SYNC_UNKNOWN", f"there is no sync {name!r}", hint=did_you_mean(name, self.syncs))
            for name in {*names, *exclude} - self.syncs.keys() - {"all"}
        )
        raise_all(
            DefinitionError("TAG_UNKNOWN", f"no sync has the tag {tag!r}", hint=did_you_mean(tag, known_tags))
            for tag in set(tags) - known_tags
        )
        everything = all or "all" in names or not (names or tags)
        chosen = {
            name
            for name, sync in self.syncs.items()
            if name in names or (sync.enabled and (everything or set(tags) & set(sync.tags)))
        }
        if "all" in exclude:
            return []
        return [self.syncs[name] for name in _ordered(self.syncs) if name in chosen - set(exclude)]

    def missing(self, syncs: Iterable[Sync] | None = None) -> list[Missing]:
        """The unset variables that these syncs (all by default), their connections, the warehouse or the
        state need. It runs no command and reads no file."""
        found = self._file.all_missing()
        for sync in self.syncs.values() if syncs is None else syncs:
            found += self._written[sync.name].all_missing()
            with suppress(DefinitionError):  # `destination` reports a wrong connection
                found += self._unset(self._connection(sync)[0])
            for name in sync.source.named:
                if (at := ("sources", name)) in self._file.tree.places:
                    found += [missing for _, missing in unset(self._file.tree, self.environment, at)]
        return list(dict.fromkeys(found))

    def require(self, syncs: Iterable[Sync]) -> None:
        """DefinitionError(s) VARIABLE_UNSET for everything in `missing`. Every run starts with it."""
        raise_all(one.error() for one in self.missing(syncs))

    def destination(self, sync: Sync) -> Resolved:
        """The sync's destination class and options, with variables filled in. `redact` knows their secrets
        from now on. DefinitionError(s), each with the place where it was written.

        An unset variable stays as it was written if a text is allowed there, else VARIABLE_UNSET.
        """
        name, type_name = self._connection(sync)
        written = self._written[sync.name].part("destination").without("connection", "type")
        kind = self._load(sync, name, type_name)
        options = _placed(kind.Options, written, connection=self._connect(kind, name))
        register_model(options)
        known = self.definitions.connections.get(name)
        limits = (
            {part: getattr(known.limits, part) for part in known.limits.model_fields_set} if known else {}
        )
        return Resolved(name, type_name, kind, options, kind.about.limits.model_copy(update=limits))

    def source(
        self,
        sync: Sync,
        variables: Mapping[str, Any] | None = None,
        waiting: Callable[[str], object] = lambda _who: None,
        pace: Callable[[str, Limits], Pace] = lambda _name, limits: own_pace(limits),
    ) -> Source[Any]:
        """The source of a sync, ready to open; `variables` fill `$name` in its SQL (by default those of
        retl.yml), `pace` finds the pace of a source by name and limits. DefinitionError(s), each with the
        place where it was written."""
        given = self.definitions.vars if variables is None else variables
        invocation = Invocation(self.folder, given, waiting, sync.contract, watermark=sync.changes.watermark)
        written = self._written[sync.name].part("source")
        if sync.source.inputs is None:
            source = self._source(sync.source.from_, written.without("complete"), invocation, pace)
        else:
            inputs = written.part("inputs")
            invocation = replace(
                invocation, contract=None, watermark=None
            )  # it judges what the SELECT makes of them
            named = {
                name: self._source(value.get("from"), inputs.part(name), invocation, pace)
                for name, value in inputs.value.items()
            }
            source = Inputs(Select(sql=str(sync.source.sql)), named, invocation)
        raise_all(self._unfit(sync, source))
        return source

    def _source(
        self,
        name: str | None,
        written: Filled,
        invocation: Invocation,
        pace: Callable[[str, Limits], Pace],
    ) -> Source[Any]:
        """A source with the options that are written in a sync."""
        known = self.definitions.sources
        if name is not None and name != WAREHOUSE and name not in known:
            raise DefinitionError(
                "SOURCE_UNKNOWN",
                f"{PROJECT_FILE} has no source {name!r}",
                hint=did_you_mean(name, [*known, WAREHOUSE]),
                where=written.place(("from",)),
            )
        kind = self._source_type(name or WAREHOUSE)
        connection: BaseModel = self.warehouse
        if name is not None and name != WAREHOUSE:
            filled = fill(self._file.tree, self.environment, ("sources", name))
            connection = _placed(kind.Connection, filled.without("type"))
            register_model(connection)
        invocation = replace(invocation, pace=partial(pace, name or WAREHOUSE))
        if "dbt" in written.value and "dbt" not in kind.Options.model_fields:
            model = _placed(Model, written.without("from"))
            try:
                return DbtModel(kind, connection, model, Path(self.warehouse.dbt), invocation)
            except DefinitionError as error:
                error.where = error.where or written.place(("dbt",))
                raise
        options = _placed(kind.Options, written.without("from"))
        register_model(options)
        if (file := getattr(options, "file", None)) is not None:
            inside(self.folder, file, written.place(("file",)))
        try:
            return kind(connection, options, invocation)
        except DefinitionError as error:
            error.where = error.where or written.place(())
            raise

    def _unfit(self, sync: Sync, source: Source[Any]) -> Iterator[DefinitionError]:
        """What a sync asks of its source that this type cannot give."""
        if sync.changes.strategy not in source.changes:
            yield DefinitionError(
                "CHANGES_UNKNOWN",
                "this source does not report its changes: `changes` can be"
                f" {', '.join(sorted(source.changes))}",
                where=self.place(sync, ("changes",)),
            )
        absence = sync.deletes.how != "keep"
        if absence and not source.one_state and not sync.source.complete:
            yield DefinitionError(
                "SOURCE_INCOMPLETE",
                "this source has no snapshots, so a missing row may only have been missed: `deletes` needs"
                " `source: {complete: true}`",
                where=self.place(sync, ("deletes",)),
            )
        if sync.source.complete and (source.one_state or not absence):
            yield DefinitionError(
                "OPTION_UNUSED",
                "`complete` has no effect here: it is for `deletes` from a source without snapshots",
                where=self.place(sync, ("source", "complete")),
            )

    def _source_type(self, name: str) -> type[Source[Any]]:
        try:
            return sources.load(
                self.warehouse.type if name == WAREHOUSE else self.definitions.sources[name].type
            )
        except DefinitionError as error:
            error.hint = did_you_mean(self.definitions.sources[name].type, sources.names()) or error.hint
            error.where = self._file.place(("sources", name, "type"))
            raise

    def references(self, sync: Sync) -> dict[str, str]:
        """The syncs whose external ids this one sends → their objects. DefinitionError(s) REF_UNLEARNT if a
        target returns no ids, and those of `destination`."""
        found, errors = {}, []
        for field, source in sync.refers_to.items():
            other = self.syncs[str(source.ref)]
            resolved = self.destination(other)
            if not resolved.destination.learns(resolved.options, other.write, key_names(other)):
                errors.append(
                    DefinitionError(
                        "REF_UNLEARNT",
                        f"sync {other.name!r} gets no external ids: {resolved.type} returns none here",
                        hint="an HTTP target returns ids if its `outcome` has `ref`",
                        where=self.place(sync, ("fields", field, "ref")),
                    )
                )
            found[other.name] = resolved.destination.place(resolved.options, other.write)
        raise_all(errors)
        return found

    def claim(self, sync: Sync) -> str | None:
        """A value that all syncs of one object share; None if there is none, or if a definition is wrong. It
        runs no command and reads no file: an unset variable is represented by its name."""
        try:
            name, type_name = self._connection(sync)
            kind = self._load(sync, name, type_name)
            written = self._written[sync.name].part("destination").without("connection", "type")
            options = _placed(kind.Options, written, connection=self._assumed(kind, name))
        except DefinitionError:  # `destination` reports it
            return None
        return kind.claim(options, sync.write)

    def _assumed(self, kind: DestinationClass, name: str) -> BaseModel:
        """The connection's model, with stand-ins for unknown values."""
        environment, written = self.environment.plain(), {}
        missing: set[str] = set()
        if name in self.definitions.connections:
            filled = fill(self._file.tree, environment, ("connections", name))
            written, missing = dict(filled.value), {str(loc[0]) for loc in filled.missing if len(loc) == 1}
        if name in DEFAULT_CONNECTIONS:
            written |= read(DEFAULT_CONNECTIONS[name], environment).model_dump(exclude_none=True)
        fields = kind.Connection.model_fields
        given = {key: value for key, value in written.items() if key in fields and key not in missing}
        for key, field in fields.items():
            if key not in given and (key in missing or field.is_required()):
                given[key] = _stand_in(key, str(written.get(key, f"{name} {key}")))
        try:
            return validate(kind.Connection, Filled(empty(""), (), given))
        except DefinitionError:
            known = {
                key: value for key, value in given.items() if key not in missing or fields[key].is_required()
            }
            return validate(kind.Connection, Filled(empty(""), (), known))

    def place(self, sync: Sync | str, loc: Loc = ()) -> Place:
        """The place where a part of a sync's definition was written."""
        return self._written[sync if isinstance(sync, str) else sync.name].place(loc)

    def _connection(self, sync: Sync) -> tuple[str, str]:
        """The name and the type of a sync's connection. DefinitionError if it is missing or wrong."""
        ref, known = sync.destination, self.definitions.connections
        for loc, waiting in self._written[sync.name].missing.items():
            if loc in (("destination", "connection"), ("destination", "type")):
                raise waiting[0].error()
        name = ref.connection or ref.type
        if name is None:
            message = "a destination names its `connection`, or a `type` for the default connection"
            raise DefinitionError("CONNECTION_MISSING", message, where=self.place(sync, ("destination",)))
        if ref.connection is not None and name not in known and name not in DEFAULT_CONNECTIONS:
            raise DefinitionError(
                "CONNECTION_UNKNOWN",
                f"{PROJECT_FILE} has no connection {name!r}",
                hint=did_you_mean(name, [*known, *DEFAULT_CONNECTIONS]),
                where=self.place(sync, ("destination", "connection")),
            )
        type_name = known[name].type if name in known else name
        wanted = ref.type or (name if name in DEFAULT_CONNECTIONS else type_name)
        if wanted != type_name:
            message = f"the connection {name!r} is of type {type_name!r}, not {wanted!r}"
            raise DefinitionError("CONNECTION_TYPE", message, where=self.place(sync, ("destination",)))
        return name, type_name

    def _load(self, sync: Sync, name: str, type_name: str) -> DestinationClass:
        if type_name in self.presets:
            return self.presets[type_name].destination
        try:
            return destinations.load(type_name)
        except DefinitionError as error:
            types = [*destinations.names(), *destinations.preset_names(), *self.presets]
            error.hint = did_you_mean(type_name, types) or error.hint
            written = name in self.definitions.connections
            error.where = (
                self._file.place(("connections", name, "type"))
                if written
                else self.place(sync, ("destination", "type"))
            )
            raise

    def _connect(self, kind: DestinationClass, name: str) -> BaseModel:
        """The connection's model. For a default connection, the environment overrides retl.yml."""
        above: dict[str, Any] = {}
        if name in DEFAULT_CONNECTIONS:
            above = read(DEFAULT_CONNECTIONS[name], self.environment).model_dump(exclude_none=True)
        if name in self.definitions.connections:
            written = fill(self._file.tree, self.environment, ("connections", name))
        else:
            source = f"environment {name.upper()}_*" if name in DEFAULT_CONNECTIONS else PROJECT_FILE
            written = Filled(empty(source), (), {})
        ours = {"type", "limits"} - kind.Connection.model_fields.keys()
        return _placed(kind.Connection, written.without(*ours, *above), **above)

    def _unset(self, name: str) -> list[Missing]:
        """The unset variables of a connection, without values that the environment replaces."""
        at: Loc = ("connections", name)
        model = DEFAULT_CONNECTIONS.get(name)
        replaced = (
            {field for field in model.model_fields if self.environment.has(variable(model, field))}
            if model
            else ()
        )
        if at in self._file.tree.places:
            return [o for loc, o in unset(self._file.tree, self.environment, at) if loc[2] not in replaced]
        if model is None:
            return []
        needed = destinations.load(name).Connection.model_fields.items()
        lacking = [field for field, info in needed if info.is_required() and field not in replaced]
        return [Missing(variable(model, field), Place("environment")) for field in lacking]


def _stand_in(key: str, text: str) -> str:
    """A host or address that does not exist; the same for the same text."""
    host = re.sub("[^a-z0-9]+", "-", text.lower()).strip("-") + ".invalid"
    return f"https://{host}" if key.endswith("url") else host


def _placed(model: type[ModelT], filled: Filled, **given: Any) -> ModelT:
    """`validate`, but errors that an adapter raises without a place get one."""
    try:
        return validate(model, filled, **given)
    except DefinitionError as error:
        error.where = error.where or filled.place(())
        raise


def open_project(
    folder: Path, environment: str | None = None, *, environ: Mapping[str, str] | None = None, **flags: Any
) -> LoadedProject:
    """Read the project in `folder` with --env `environment`; `flags` override Settings.

    DefinitionError(s) for everything wrong in any file; unset variables are not an error here.
    """
    folder = folder.resolve()
    variables = Environment(folder, environment, environ)
    settings = read(Settings, variables, **flags)
    if not (folder / PROJECT_FILE).is_file() and not (folder / "syncs").is_dir():
        message = f"there is neither {PROJECT_FILE} nor a folder syncs/ in {folder}"
        raise DefinitionError("NO_PROJECT", message, hint="`retl init` makes a project; --project names one")
    definitions, file = read_project_file(folder, variables)
    found = read_syncs(folder, variables, file)
    project = LoadedProject(
        folder=folder,
        environment=variables,
        settings=settings,
        definitions=definitions,
        warehouse=_warehouse(folder, definitions.warehouse, settings),
        state_url=_state_url(folder, definitions, file, settings, environment),
        syncs={name: read.sync for name, read in found.items()},
        presets=_presets(folder),
        _file=file,
        _written={name: read.written for name, read in found.items()},
    )
    register_model(definitions)
    raise_all(
        [
            *_orders(project),
            *_wrong_sources(project),
            *_wrong_references(project),
            *_broken_rules(project),
            *_unknown_to_alerts(project),
        ]
    )
    return project


def _presets(folder: Path) -> Mapping[str, Preset]:
    if not (folder / "presets").is_dir():
        return {}
    from retl.destinations import presets  # loads all of HTTP, which other projects do not need

    return presets.own(folder)


def _warehouse(folder: Path, warehouse: Warehouse, settings: Settings) -> Warehouse:
    path = str(folder / (settings.duckdb_path or warehouse.path))
    read_paths = tuple(str(folder / each) for each in warehouse.read_paths)
    dbt = str(folder / warehouse.dbt)
    return warehouse.model_copy(update={"path": path, "read_paths": read_paths, "dbt": dbt})


def _state_url(
    folder: Path, definitions: Project, file: Filled, settings: Settings, environment: str | None
) -> str:
    """Absolute. A file state gets its own folder per --env NAME, unless the environment names the state."""
    url = settings.retl_state_url or definitions.state.url
    scheme, _, rest = url.partition(":")
    if scheme in ("postgresql", "postgres") or ("state", "url") in file.missing:
        return url
    if scheme != "file" or not rest or rest.startswith("//"):
        where = "environment RETL_STATE_URL" if settings.retl_state_url else file.place(("state", "url"))
        raise DefinitionError("STATE_URL", "a state is file:FOLDER or postgresql://…", where=where)
    own = () if settings.retl_state_url or environment is None else (environment,)
    return f"file:{(folder / rest).joinpath(*own)}"


def _ordered(syncs: Mapping[str, Sync]) -> list[str]:
    """The names, each after those in its `after`, otherwise by name. DefinitionError AFTER_CYCLE."""
    done: dict[str, None] = {}
    open_names: list[str] = []

    def visit(name: str) -> None:
        if name in done or name not in syncs:
            return
        if name in open_names:
            circle = " → ".join([*open_names[open_names.index(name) :], name])
            raise DefinitionError("AFTER_CYCLE", f"these syncs wait for one another: {circle}", where=name)
        open_names.append(name)
        for earlier in sorted(syncs[name].earlier):
            visit(earlier)
        done[open_names.pop()] = None

    for name in sorted(syncs):
        visit(name)
    return list(done)


def _orders(project: LoadedProject) -> Iterator[DefinitionError]:
    """What is wrong with `after`."""
    syncs = project.syncs
    for sync in syncs.values():
        for index, name in enumerate(sync.after):
            if name not in syncs:
                yield DefinitionError(
                    "SYNC_UNKNOWN",
                    f"there is no sync {name!r}",
                    hint=did_you_mean(name, syncs),
                    where=project.place(sync, ("after", index)),
                )
    try:
        _ordered(syncs)
    except DefinitionError as error:
        error.where = project.place(str(error.where), ("after",))
        yield error


def _wrong_sources(project: LoadedProject) -> Iterator[DefinitionError]:
    """What is wrong with the options of sources that syncs name."""
    for sync in project.syncs.values():
        if not project.missing([sync]):
            try:
                project.source(sync)
            except DefinitionError as error:
                yield from each(error)


def _unknown_to_alerts(project: LoadedProject) -> Iterator[DefinitionError]:
    """Unknown syncs and tags in `alerts`."""
    tags = {tag for sync in project.syncs.values() for tag in sync.tags}
    for index, alert in enumerate(project.definitions.alerts):
        for part, known, code in (
            ("syncs", set(project.syncs), "SYNC_UNKNOWN"),
            ("tags", tags, "TAG_UNKNOWN"),
        ):
            for at, name in enumerate(getattr(alert, part)):
                if name not in known:
                    yield DefinitionError(
                        code,
                        f"no sync is named {name!r}" if part == "syncs" else f"no sync has the tag {name!r}",
                        hint=did_you_mean(name, known),
                        where=project._file.place(("alerts", index, part, at)),
                    )


def _wrong_references(project: LoadedProject) -> Iterator[DefinitionError]:
    """What is wrong with `ref`, as far as the files show."""
    for sync in project.syncs.values():
        for field, source in sync.refers_to.items():
            where = project.place(sync, ("fields", field, "ref"))
            other = project.syncs.get(str(source.ref))
            if other is None:
                message, hint = (
                    f"there is no sync {source.ref!r}",
                    did_you_mean(str(source.ref), project.syncs),
                )
                yield DefinitionError("SYNC_UNKNOWN", message, hint=hint, where=where)
            elif other is sync:
                message = f"field {field!r}: a row cannot wait for the id of another row of the same run"
                hint = f"give {field} to a second sync of this object, `write: update_only`, after this one"
                yield DefinitionError("REF_SELF", message, hint=hint, where=where)
            elif len(source.by) != len(other.key):
                message = (
                    f"the key of sync {other.name!r} is {', '.join(other.key)}: `by` names as many columns"
                )
                yield DefinitionError("REF_BY", message, where=project.place(sync, ("fields", field, "by")))


def _broken_rules(project: LoadedProject) -> Iterator[DefinitionError]:
    """Conflicts between columns and fields of a sync, or between syncs of one object."""
    claims = []
    several = sum(sync.enabled for sync in project.syncs.values()) > 1
    for sync in project.syncs.values():
        columns = list(sync.contract.columns) if sync.contract and sync.contract.columns else None
        for problem in problems(sync, columns):
            where = project.place(sync, problem.loc)
            yield DefinitionError(problem.code, problem.message, hint=problem.hint, where=where)
        if several and sync.enabled and (object := project.claim(sync)) is not None:
            claims.append(Claim(sync, object, claimed(sync, columns)))
    for problem in sharing(claims):
        where = project.place(problem.sync, problem.loc)
        yield DefinitionError(problem.code, problem.message, hint=problem.hint, where=where)
