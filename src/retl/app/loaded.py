"""A project whose files are valid: its syncs with the destination and the source of each.

It reads only definitions: no warehouse, no target, no ledger. An unset variable is an error only when it is
needed (`require`, `destination`), so that every project can be validated.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace
from pydantic import BaseModel

from retl.app.alerts import Route
from retl.app.choice import Choice
from retl.app.connections import Connections, DestinationClass, placed
from retl.app.selection import select
from retl.app.sources import Sources
from retl.errors import DefinitionError, Place
from retl.model import Hours, Limits
from retl.observe.mask import MASK
from retl.observe.redact import register_model
from retl.project import parameters
from retl.project.alerts import Alert
from retl.project.definitions import Project, Sync, Warehouse
from retl.project.fields import key_names
from retl.project.settings import Environment, Settings
from retl.project.then import FollowUp
from retl.project.triggers import Trigger
from retl.project.validation import each, raise_all, validate
from retl.project.variables import Filled, Missing, fill, named_in, unset
from retl.project.yamlfile import Loc
from retl.run.job import Follower, Target
from retl.sources.api import Source, own_pace

if TYPE_CHECKING:
    from retl.destinations.presets import Preset
    from retl.pace.limiter import Pace


class Resolved(Struct, frozen=True):
    """The destination of a sync: connection name, class of the type, and validated options."""

    name: str
    type: str
    destination: DestinationClass
    options: BaseModel
    limits: Limits
    hours: Hours | None = None

    @property
    def target(self) -> Target:
        return Target(self.type, self.destination, self.options, self.name)


class Following(Struct, frozen=True):
    """A request of `then`, with the connection that it goes through. `secrets` are values of variables."""

    name: str
    asked: FollowUp
    http: Any  # an HttpConnection
    limits: Limits
    hours: Hours | None
    secrets: tuple[str, ...]

    def follower(self, pace: Pace) -> Follower:
        return Follower(self.name, self.asked, self.http, pace, self.secrets)


class LoadedProject(Struct, frozen=True, dict=True):
    """A project with valid files, or the valid ones of them. Paths in `warehouse` and `state_url` are
    absolute."""

    __repr__ = object.__repr__  # the values of variables are secrets

    folder: Path
    environment: Environment
    settings: Settings
    definitions: Project
    warehouse: Warehouse
    state_url: str
    syncs: Mapping[str, Sync]
    presets: Mapping[str, Preset]
    file: Filled
    _written: Mapping[str, Filled]
    unread: frozenset[str] = frozenset()  # syncs in wrong files, which are not among `syncs`
    faults: tuple[DefinitionError, ...] = ()  # only for reading the ledger is it used in spite of them

    @cached_property
    def connections(self) -> Connections:
        return Connections(self.definitions.connections, self.environment, self.file, self.presets)

    @cached_property
    def sources(self) -> Sources:
        known, variables = self.definitions.sources, self.definitions.vars
        variables = parameters.bound(variables, variables, datetime.now(UTC).date())
        return Sources(self.folder, known, self.warehouse, variables, self.environment, self.file)

    def select(
        self,
        names: Collection[str] = (),
        tags: Collection[str] = (),
        exclude: Collection[str] = (),
        all: bool = False,
    ) -> list[Sync]:
        """`selection.select` from the syncs of this project."""
        return select(self, Choice(tuple(names), tuple(tags), tuple(exclude), all))

    def missing(self, syncs: Iterable[Sync] | None = None) -> list[Missing]:
        """The unset variables that these syncs (all by default), their connections, the warehouse or the
        state need, and the alerts. It runs no command and reads no file."""
        found = [*self.file.all_missing(), *self._unset("alerts")]
        for sync in self.syncs.values() if syncs is None else syncs:
            found += self._written[sync.name].all_missing()
            found += self._unset_connection(sync)
            found += self._unset_followed(sync)
            for name in sync.source.named:
                found += self._unset("sources", name)
        return list(dict.fromkeys(found))

    def _unset(self, *at: str | int) -> list[Missing]:
        """The unset variables of a part of retl.yml."""
        tree = self.file.tree
        return [one for _, one in unset(tree, self.environment, at)] if at in tree.places else []

    def unready(self, syncs: Iterable[Sync] | None = None) -> list[DefinitionError]:
        """What cannot be filled in: for these syncs and the alerts, or for everything in retl.yml, used or
        not. It reads the files and runs the commands that variables of retl.yml name."""
        parts = ("alerts", "connections", "sources") if syncs is None else ("alerts",)
        used = [*self.missing(syncs), *(one for part in parts for one in self._unset(part))]
        found = [one.error() for one in dict.fromkeys(used)]
        for loc in (loc for loc in self.file.tree.places if len(loc) == 2 and loc[0] in parts):
            try:
                fill(self.file.tree, self.environment, loc)
            except DefinitionError as problem:
                found.append(problem)
        return found

    def _unset_connection(self, sync: Sync) -> list[Missing]:
        """The unset variables of a sync's connection; `destination` reports a wrong one."""
        with suppress(DefinitionError):
            return self.connections.unset(self.connections.of(sync, self._written[sync.name])[0])
        return []

    def _unset_followed(self, sync: Sync) -> list[Missing]:
        """The unset variables of the connections of `then`."""
        known = [one.connection for one in sync.then if one.connection in self.definitions.connections]
        return [unset for name in dict.fromkeys(known) for unset in self.connections.unset(name)]

    def require(self, syncs: Iterable[Sync], *, offline: bool = False) -> None:
        """DefinitionError(s) VARIABLE_UNSET for everything in `missing` that a run of these syncs needs; the
        addresses of alerts are not among it. Every run starts with it. With `offline` their connections are
        not needed either."""
        syncs = list(syncs)
        at_rest = set(self._unset("alerts"))
        if offline:
            at_rest |= {one for sync in syncs for one in self._unset_connection(sync)}
            at_rest |= {one for sync in syncs for one in self._unset_followed(sync)}
        raise_all(one.error() for one in self.missing(syncs) if one not in at_rest)

    @cached_property
    def alerts(self) -> tuple[list[Route], list[tuple[Alert, DefinitionError]]]:
        """The alerts that can be sent, and the others as they are written, each with what it lacks."""
        known, lacking = list[Route](), list[tuple[Alert, DefinitionError]]()
        for index, written in enumerate(self.definitions.alerts):
            try:
                filled = fill(self.file.tree, self.environment, ("alerts", index))
                missing = filled.all_missing()
                if written.to.connection is not None:
                    missing += self.connections.unset(written.to.connection)
                raise_all(one.error() for one in missing)
                alert = validate(Alert, filled)
                register_model(alert)
                target = self.connections.recipient(alert, filled.part("to")) if alert.to.connection else None
                limits = [self._limits(target.connection, target.destination)] if target else []
                known.append(Route(alert, target, *limits))
            except DefinitionError as problem:
                lacking += [(written, one) for one in each(problem)]
        return known, lacking

    def destination(
        self, sync: Sync, more: Mapping[str, Any] | None = None, *, offline: bool = False
    ) -> Resolved:
        """The sync's destination class and options, with variables filled in. `redact` knows their secrets
        from now on. DefinitionError(s), each with the place where it was written.

        An unset variable stays as it was written if a text is allowed there, else VARIABLE_UNSET. `more` are
        options that replace written ones. With `offline` no secret is read: `***` stands for each, and only
        what decides which object it is must be known.
        """
        name, type_name = self.connections.of(sync, self._written[sync.name])
        written = self._written[sync.name].part("destination").without("connection", "type", *(more or ()))
        kind = self.connections.kind(name, type_name, self.place(sync, ("destination", "type")))
        stand_ins = (MASK, "unset.invalid") if offline else (None,)
        options, *others = (
            placed(kind.Options, written, connection=self.connections.model(kind, name, one), **(more or {}))
            for one in stand_ins
        )
        if any(kind.place(one, sync.write) != kind.place(options, sync.write) for one in others):
            raise_all(one.error() for one in self._unset_connection(sync))
            return self.destination(sync, more)  # a file or a command says which object it is
        register_model(options)
        known = self.definitions.connections.get(name)
        hours = known.hours if known else None
        return Resolved(name, type_name, kind, options, self._limits(name, kind), hours)

    def following(self, sync: Sync, *, assumed: bool = False) -> list[Following]:
        """The requests of `then`, with their connections. With `assumed` stand-ins replace what variables
        would say. DefinitionError(s) for an unknown connection, one that is not over HTTP, and placeholders
        that are no value of a run."""
        found, errors = list[Following](), list[DefinitionError]()
        names: dict[str, int] = {}
        for index, asked in enumerate(sync.then):
            try:
                one = self._following(sync, index, asked, assumed)
            except DefinitionError as problem:
                problem.where = problem.where or self.place(sync, ("then", index))
                errors += each(problem)
                continue
            number = names[one.name] = names.get(one.name, 0) + 1
            found.append(one if number == 1 else replace(one, name=f"{one.name} ({number})"))
        raise_all(errors)
        return found

    def _following(self, sync: Sync, index: int, asked: FollowUp, assumed: bool) -> Following:
        from retl.destinations.http import following

        written = self._written[sync.name]
        name = asked.connection
        at: Loc = ("then",) if isinstance(written.value["then"], dict) else ("then", index)
        kind = self.connections.named(name, written.place((*at, "connection")))
        model = self.connections.assumed(kind, name) if assumed else self.connections.model(kind, name)
        http = following.connection_of(model)
        if http is None:
            message = f"the connection {name!r} is not over HTTP: `then` sends HTTP requests"
            raise DefinitionError("THEN_CONNECTION", message, where=written.place((*at, "connection")))
        if not assumed:
            register_model(model)
        following.require(asked, http)
        path = written.found((*at, "path")) if "path" in asked.model_fields_set else ""
        secrets = tuple(str(_at(written.value, loc)) for loc in written.variables if loc[: len(at)] == at)
        known = self.definitions.connections[name]
        label = f"{asked.when}: {asked.method} {name}{path}"
        return Following(label, asked, http, self._limits(name, kind), known.hours, secrets)

    def heard(self, sync: Sync, trigger: Trigger, *, assumed: bool = False) -> BaseModel:
        """The connection of the topic that a trigger names, a KafkaConnection. With `assumed` stand-ins
        replace what variables would say. DefinitionError for one that is unknown or of another type."""
        written, name = self._written[sync.name], str(trigger.from_)
        kind = self.connections.named(name, written.place(("when",)))
        if self.definitions.connections[name].type != "kafka":
            message = f"the connection {name!r} is of another type: `topic` needs one of type kafka"
            raise DefinitionError("WHEN_UNKNOWN", message, where=written.place(("when",)))
        model = self.connections.assumed(kind, name) if assumed else self.connections.model(kind, name)
        register_model(model)
        return model

    def _limits(self, name: str, kind: DestinationClass) -> Limits:
        """The limits of a connection: those of its type, with what retl.yml says."""
        known = self.definitions.connections.get(name)
        if known is None:
            return kind.about.limits
        written = {part: getattr(known.limits, part) for part in known.limits.model_fields_set}
        return kind.about.limits.model_copy(update=written)

    def source(
        self,
        sync: Sync,
        variables: Mapping[str, Any] | None = None,
        waiting: Callable[[str], object] = lambda _who: None,
        pace: Callable[[str, Limits], Pace] = lambda _name, limits: own_pace(limits),
        *,
        offline: bool = False,
    ) -> Source[Any]:
        """`Sources.of` a sync."""
        return self.sources.of(sync, self._written[sync.name], variables, waiting, pace, offline=offline)

    def kind(self, sync: Sync) -> DestinationClass:
        """The class of the sync's destination. DefinitionError if its connection is missing or wrong."""
        name, type_name = self.connections.of(sync, self._written[sync.name])
        return self.connections.kind(name, type_name, self.place(sync, ("destination", "type")))

    def references(self, sync: Sync) -> dict[str, str]:
        """The syncs whose external ids this one sends → their objects. No secret of their targets is read.
        DefinitionError(s) REF_UNLEARNT if a target returns no ids, and those of `destination`."""
        found, errors = {}, []
        for field, source in sync.refers_to.items():
            other = self.syncs[str(source.ref)]
            written = self._written[other.name].missing.items()
            raise_all(one.error() for loc, unset in written if loc[0] == "destination" for one in unset)
            resolved = self.destination(other, offline=True)
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
        if sync.name not in self._claims:
            self._claims[sync.name] = self._claim(sync)
        return self._claims[sync.name]

    @cached_property
    def _claims(self) -> dict[str, str | None]:
        """The claims that somebody has asked for."""
        return {}

    def _claim(self, sync: Sync) -> str | None:
        try:
            name, type_name = self.connections.of(sync, self._written[sync.name])
            kind = self.connections.kind(name, type_name, self.place(sync, ("destination", "type")))
            written = self._written[sync.name].part("destination").without("connection", "type")
            options = placed(kind.Options, written, connection=self.connections.assumed(kind, name))
        except DefinitionError:  # `destination` reports it
            return None
        return kind.claim(options, sync.write)

    def texts(self, parts: Collection[str]) -> Iterator[str]:
        """The texts in these parts of all syncs, as they are written with their variables filled in."""
        for written in self._written.values():
            for name in parts:
                yield from _texts(written.value.get(name))

    def variable_names(self) -> set[str]:
        """The environment variables that retl.yml and the syncs use, with a default or without."""
        written = [self.file, *self._written.values()]
        return {name for one in written for text in _texts(one.tree.value) for name in named_in(text)}

    def place(self, sync: Sync | str, loc: Loc = ()) -> Place:
        """The place where a part of a sync's definition was written."""
        return self._written[sync if isinstance(sync, str) else sync.name].place(loc)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)


def _at(value: Any, loc: Loc) -> Any:
    for part in loc:
        value = value[part]
    return value
