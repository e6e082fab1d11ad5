"""The connections of a project, filled with variables and read by the models of their types.

What is unset or wrong is an error of the one who asks, so that every project can be validated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace
from pydantic import BaseModel, ValidationError

from retl import destinations
from retl.destinations.api import Destination
from retl.errors import DefinitionError, Place
from retl.model import Definition
from retl.observe.redact import register_model
from retl.project.alerts import Alert
from retl.project.definitions import ConnectionRef, DestinationRef, Sync
from retl.project.files import PROJECT_FILE
from retl.project.settings import DEFAULT_CONNECTIONS, Environment, read, variable
from retl.project.validation import ModelT, did_you_mean, each, validate
from retl.project.variables import Filled, Missing, fill, masked, unset
from retl.project.yamlfile import Loc, empty
from retl.run.job import Target

if TYPE_CHECKING:
    from retl.destinations.presets import Preset

DestinationClass = type[Destination[Any]]


class Connections(Struct, frozen=True, dict=True):
    """The connections of retl.yml and the default ones; `file` is retl.yml as written."""

    __repr__ = object.__repr__  # the values of variables are secrets

    definitions: Mapping[str, ConnectionRef]
    environment: Environment
    file: Filled
    presets: Mapping[str, Preset]

    @cached_property
    def _assumed(self) -> dict[tuple[DestinationClass, str], BaseModel]:
        """The models that `assumed` has made: each sync of a connection asks for its model."""
        return {}

    def assumed(self, kind: DestinationClass, name: str) -> BaseModel:
        """The connection's model, with stand-ins for unknown values."""
        if (kind, name) not in self._assumed:
            self._assumed[kind, name] = self._stood_in(kind, name)
        return self._assumed[kind, name]

    def _stood_in(self, kind: DestinationClass, name: str) -> BaseModel:
        environment, written = self.environment.plain(), {}
        missing: set[str] = set()
        if name in self.definitions:
            filled = fill(self.file.tree, environment, ("connections", name))
            written, missing = dict(filled.value), {str(loc[0]) for loc in filled.missing if len(loc) == 1}
        if name in DEFAULT_CONNECTIONS:
            written |= read(DEFAULT_CONNECTIONS[name], environment).model_dump(exclude_none=True)
        fields = kind.Connection.model_fields
        given = {key: value for key, value in written.items() if key in fields and key not in missing}
        for key, field in fields.items():
            if key not in given and (key in missing or field.is_required()):
                given[key] = _stand_in(key, str(written.get(key, f"{name} {key}")))
        try:
            return self._placed(validate(kind.Connection, Filled(empty(""), (), given)))
        except DefinitionError:
            known = {
                key: value for key, value in given.items() if key not in missing or fields[key].is_required()
            }
            return self._placed(validate(kind.Connection, Filled(empty(""), (), known)))

    def of(self, sync: Sync, written: Filled) -> tuple[str, str]:
        """The name and the type of a sync's connection. DefinitionError if it is missing or wrong."""
        return self._named(sync.destination, written)

    def faults(self, written: Filled) -> list[DefinitionError]:
        """What is wrong with the destination of a sync whose other parts are wrong too."""
        try:
            ref = DestinationRef.model_validate(written.value["destination"])
        except (ValidationError, KeyError, TypeError):  # the models have said so
            return []
        try:
            name, type_name = self._named(ref, written)
            kind = self.kind(name, type_name, written.place(("destination", "type")))
            options = written.part("destination").without("connection", "type")
            placed(kind.Options, options, connection=self.assumed(kind, name))
        except DefinitionError as problem:
            later = ("VARIABLE_UNSET", "OPTION_MISSING")  # what is missing is said once the rest is right
            return [one for one in each(problem) if one.code not in later]
        return []

    def recipient(self, alert: Alert, to: Filled, *, assumed: bool = False) -> Target | None:
        """The target of an alert, None if it has no connection; `to` is as it was written. DefinitionError if
        it is missing or wrong. With `assumed` stand-ins replace what variables would say."""
        if alert.to.connection is None:
            return None
        ref = DestinationRef(connection=alert.to.connection)
        nested = replace(to, at=to.at[:-1], value={"destination": to.value}, missing={})
        name, type_name = self._named(ref, nested)
        kind = self.kind(name, type_name, to.place(("connection",)))
        connection = self.assumed(kind, name) if assumed else self.model(kind, name)
        options = placed(kind.Options, to.without("connection"), connection=connection)
        register_model(options)
        return Target(type_name, kind, options, name)

    def _named(self, ref: DestinationRef, written: Filled) -> tuple[str, str]:
        known = self.definitions
        for loc, waiting in written.missing.items():
            if loc in (("destination", "connection"), ("destination", "type")):
                raise waiting[0].error()
        name = ref.connection or ref.type
        if name is None:
            message = "a destination names its `connection`, or a `type` for the default connection"
            raise DefinitionError("CONNECTION_MISSING", message, where=written.place(("destination",)))
        if ref.connection is not None and name not in known and name not in DEFAULT_CONNECTIONS:
            raise DefinitionError(
                "CONNECTION_UNKNOWN",
                f"{PROJECT_FILE} has no connection {name!r}",
                hint=did_you_mean(name, [*known, *DEFAULT_CONNECTIONS]),
                where=written.place(("destination", "connection")),
            )
        type_name = known[name].type if name in known else name
        wanted = ref.type or (name if name in DEFAULT_CONNECTIONS else type_name)
        if wanted != type_name:
            message = f"the connection {name!r} is of type {type_name!r}, not {wanted!r}"
            raise DefinitionError("CONNECTION_TYPE", message, where=written.place(("destination",)))
        if name not in known and name not in DEFAULT_CONNECTIONS:
            where = written.place(("destination", "type"))
            if needed := _required(self.kind(name, type_name, where).Connection):
                options = ", ".join(f"{one}: …" for one in needed)
                raise DefinitionError(
                    "CONNECTION_MISSING",
                    f"{type_name} needs a connection: {PROJECT_FILE} says {', '.join(needed)}, not the sync",
                    hint=f"in {PROJECT_FILE}: `connections: {{NAME: {{type: {type_name}, {options}}}}}`;"
                    " here: `destination: {connection: NAME, …}`",
                    where=where,
                )
        return name, type_name

    def named(self, name: str, where: Place) -> DestinationClass:
        """The class of the connection with this name, which a sync names at `where`. DefinitionError if
        retl.yml does not have it."""
        if name not in self.definitions:
            message, known = f"{PROJECT_FILE} has no connection {name!r}", self.definitions
            raise DefinitionError("CONNECTION_UNKNOWN", message, hint=did_you_mean(name, known), where=where)
        return self.kind(name, self.definitions[name].type, where)

    def kind(self, name: str, type_name: str, where: Place) -> DestinationClass:
        """The class of a type; `where` a sync names it."""
        if type_name in self.presets:
            return self.presets[type_name].destination
        try:
            return destinations.load(type_name)
        except DefinitionError as error:
            types = [*destinations.names(), *destinations.preset_names(), *self.presets]
            error.hint = did_you_mean(type_name, types) or error.hint
            known = name in self.definitions
            error.where = self.file.place(("connections", name, "type")) if known else where
            raise

    def model(self, kind: DestinationClass, name: str, stand_in: str | None = None) -> BaseModel:
        """The connection's model. For a default connection, the environment overrides retl.yml. With a
        `stand_in` no command is run and no file read: it stands for what they would say or is unset."""
        environment = self.environment if stand_in is None else self.environment.plain()
        above: dict[str, Any] = {}
        if name in DEFAULT_CONNECTIONS:
            above = read(DEFAULT_CONNECTIONS[name], environment).model_dump(exclude_none=True)
            if stand_in is not None and name not in self.definitions:
                above = {**dict.fromkeys(_required(kind.Connection), stand_in), **above}
        if name in self.definitions:
            written = fill(self.file.tree, environment, ("connections", name))
            written = written if stand_in is None else masked(written, stand_in)
        else:
            source = f"environment {name.upper()}_*" if name in DEFAULT_CONNECTIONS else PROJECT_FILE
            written = Filled(empty(source), (), {})
        ours = {"type", "limits", "hours"} - kind.Connection.model_fields.keys()
        return self._placed(placed(kind.Connection, written.without(*ours, *above), **above))

    def _placed(self, connection: BaseModel) -> BaseModel:
        """Relative paths are relative to the project."""
        folder = self.environment.folder
        return connection.placed_in(folder) if isinstance(connection, Definition) else connection

    def unset(self, name: str) -> list[Missing]:
        """The unset variables of a connection, without values that the environment replaces."""
        at: Loc = ("connections", name)
        model = DEFAULT_CONNECTIONS.get(name)
        replaced = (
            {field for field in model.model_fields if self.environment.has(variable(model, field))}
            if model
            else ()
        )
        if at in self.file.tree.places:
            return [o for loc, o in unset(self.file.tree, self.environment, at) if loc[2] not in replaced]
        if model is None:
            return []
        needed = _required(destinations.load(name).Connection)
        lacking = [field for field in needed if field not in replaced]
        return [Missing(variable(model, field), Place("environment")) for field in lacking]


def _required(connection: type[BaseModel]) -> list[str]:
    return [name for name, field in connection.model_fields.items() if field.is_required()]


def _stand_in(key: str, text: str) -> str:
    """A host or address that does not exist; the same for the same text."""
    host = re.sub("[^a-z0-9]+", "-", text.lower()).strip("-") + ".invalid"
    return f"https://{host}" if key.endswith("url") else host


def placed(model: type[ModelT], filled: Filled, **given: Any) -> ModelT:
    """`validate`, but errors that an adapter raises without a place get one."""
    try:
        return validate(model, filled, **given)
    except DefinitionError as error:
        error.where = error.where or filled.place(())
        raise
