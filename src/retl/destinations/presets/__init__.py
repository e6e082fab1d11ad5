"""Vendors as data: a YAML file in this folder, or in a project's own presets/, is a destination type.

A preset fills in the models of `destinations/http`; it can do nothing that a hand-written sync cannot do. It
has two kinds of placeholders. `$name` is filled in from a row when a request is made (`http/cells`). `<name>`
is filled in from the keys of the connection and the parameters of the sync when the preset is used
(`filling`). An object with `only_if: {name: [values]}` is kept only if that parameter has one of the values;
`given` or `missing` may replace the list. An operation, and `auth`, may be a list of ways: the first one
with a true `only_if` is used. `like: upsert` takes what an operation does not say itself from another one.
`root` is what the paths of all operations begin with, and `cast` belongs to those that have none of their
own. `place` names the object that is written, the same for every way to write it; without it two syncs write
the same object if they share path and credential.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError, create_model, model_validator

from retl import destinations
from retl.destinations.api import About
from retl.destinations.batch import Mode, Shape, WriteMode
from retl.destinations.http.adapter import HttpDestination
from retl.destinations.http.body import Endpoint
from retl.destinations.http.cells import NoField
from retl.destinations.http.options import OPERATION_NAMES, HttpOptions
from retl.destinations.presets import check
from retl.destinations.presets.filling import conditions, fill, holds, parameter_at
from retl.destinations.presets.parameters import Parameter
from retl.errors import DefinitionError, Place
from retl.model import Definition, Limits
from retl.net.client import Address, Timeouts
from retl.net.connection import HttpConnection
from retl.net.gate import Gate
from retl.net.proxy import Setting
from retl.project.validation import ModelT, validate
from retl.project.variables import Filled
from retl.project.yamlfile import Tree
from retl.project.yamlfile import load as load_yaml

Evidence = Literal["contract", "recording", "golden", "docs", "own"]  # own: there is no vendor
# Whether a delete of this preset fulfils an erasure request: it does; another call or a person has to; it
# asks a receiver, who decides; the vendor does not say; or no person's data is kept by what it writes.
Erasure = Literal["delete", "elsewhere", "asked", "unsaid", "nothing kept"]
Ways = Annotated[
    tuple[dict[str, Any], ...], BeforeValidator(lambda given: [given] if isinstance(given, dict) else given)
]

_FOLDER = Path(__file__).parent
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")


class VendorLimits(Limits):
    """What the vendor allows one account, and the source of it."""

    share: float | None = 0.5
    source: str
    checked_on: date


class Preset(Definition):
    """How one vendor accepts rows."""

    name: str
    summary: str
    docs: str
    evidence: tuple[Evidence, ...]
    source: str
    checked_on: date
    erasure: Erasure = "unsaid"
    versioning: str = "none"  # what the vendor offers to see that somebody else changed an object
    connection: dict[str, Parameter] = Field(default={})
    parameters: dict[str, Parameter] = Field(default={})
    base_url: str | None = None
    root: Annotated[str, Field(pattern=r"^/.*[^/]$")] | None = None  # what all paths begin with
    place: str | None = None  # names the object, for all accounts of the server
    auth: Ways = ({"type": "none"},)
    headers: dict[str, Any] = Field(default={})
    csrf: dict[str, Any] | None = None
    upsert: Ways = ()
    insert: Ways = ()
    update: Ways = ()
    delete: Ways = ()
    find: Ways = ()
    read: Ways = ()
    batch: Ways = ()
    version: Ways = ()
    outcome: dict[str, Any] = Field(default={})
    job: dict[str, Any] | None = None
    cast: dict[str, Any] | None = None
    idempotency: dict[str, Any] | None = None
    check: dict[str, Any] | None = None
    folds: Ways = ()
    erasing: Ways = ()  # parameters that let `delete` erase a person for good
    limits: VendorLimits
    example: str

    _tree: Tree = PrivateAttr()

    @classmethod
    def load(cls, path: Path, file: str) -> Preset:
        """The preset in a file, named `file` in messages. DefinitionError(s) with their places in it."""
        tree = check.whole(load_yaml(path, name=file))
        preset = validate(cls, Filled(tree, (), tree.value), name=path.stem)
        preset._tree = tree
        check.refuse(tree, {**preset.connection, **preset.parameters})
        return preset

    def where(self, field: str) -> Place | None:
        """The place that names a field of the rows."""
        return next(check.named(self._tree, field), None)

    def reach(self, connection: PresetConnection) -> HttpConnection:
        """The HTTP connection for these keys. ValueError if they do not fit."""
        given = connection.given(self.connection)
        given["base_url"] = connection.base_url or (self.base_url and fill(self.base_url, given))
        auth = self._way("auth", given) or {}
        filled = fill({"base_url": "<base_url>", "auth": auth}, given) | {
            "headers": fill(self.headers, given),
            "csrf": self.csrf,
        }
        more = {name: getattr(connection, name) for name in ("proxy", "timeouts", "allow_plaintext")}
        auth = self._way("auth", given) or {}
        written = {"base_url": "<base_url>" if connection.base_url else self.base_url or auth.get("url")}
        written |= {"auth": auth, "headers": self.headers}
        return self._model(HttpConnection, {**filled, **more}, written)

    def options(self, options: PresetOptions) -> HttpOptions:
        """The HTTP options for a sync's parameters. ValueError if they do not fit."""
        given = options.connection.given(self.connection) | options.given(self.parameters)
        raw = {name: way for name in check.PARTS if (way := self._way(name, given)) is not None}
        return self._model(HttpOptions, {**fill(raw, given), "connection": options.connection.http})

    def _way(self, name: str, given: Mapping[str, Any]) -> dict[str, Any] | None:
        """The way of a part that fits these values."""
        part = getattr(self, name)
        ways = part if isinstance(part, tuple) else (part,)
        return next((way for way in ways if way is not None and holds(way.get("only_if", {}), given)), None)

    def _model(self, model: type[ModelT], value: dict[str, Any], written: Any = None) -> ModelT:
        """The model of the filled preset. Its first error becomes a ValueError without values. It names the
        user's key, if the wrong value is one in what is `written` in the preset; else the place there."""
        try:
            return model.model_validate(value)
        except ValidationError as error:
            found = error.errors(include_input=False, include_url=False, include_context=False)[0]
            message = found["msg"].removeprefix("Value error, ")
            if written is not None and (name := parameter_at(written, found["loc"] or ("base_url",))):
                raise ValueError(f"`{name}`: {message.removeprefix('base_url ')}") from None
            where = ".".join(str(part) for part in self._tree.written(found["loc"]))
            parts = (str(self._tree.place(found["loc"])), where, message)
            raise ValueError(": ".join(filter(None, parts))) from None

    def erases(self, options: PresetOptions) -> dict[str, Any]:
        """The parameters with which a delete erases for good, if these allow it."""
        given = options.connection.given(self.connection) | options.given(self.parameters)
        way = self._way("erasing", given) or {}
        return {name: value for name, value in way.items() if name != "only_if"}

    def claim(self, options: PresetOptions) -> str | None:
        """The object of these parameters, if the preset has a `place`."""
        given = options.connection.given(self.connection) | options.given(self.parameters)
        path: str | None = fill({"path": self.place}, given).get("path")
        return path and f"{Address.parse(options.http.connection.base_url).place}{path}"

    @property
    def _about(self) -> About:
        return About(
            limits=Limits(**{name: getattr(self.limits, name) for name in Limits.model_fields}),
            evidence=self.evidence,
            source=self.source,
            checked_on=self.checked_on,
            limits_source=self.limits.source,
            limits_checked_on=self.limits.checked_on,
            example=self.example,
            summary=self.summary,
            docs=self.docs,
        )

    @cached_property
    def destination(self) -> type[HttpDestination]:
        """The destination class of this type."""
        connection = create_model(
            "Connection",
            __base__=PresetConnection,
            **{name: one.field() for name, one in self.connection.items()},  # type: ignore[call-overload]
        )
        options = create_model(
            "Options",
            __base__=PresetOptions,
            connection=(connection, ...),
            **{name: one.field() for name, one in self.parameters.items()},  # type: ignore[call-overload]
        )
        connection.preset = options.preset = self
        members = {
            "Connection": connection,
            "Options": options,
            "preset": self,
            "about": self._about,
            "__doc__": self.docs,
            "__module__": __name__,
        }
        return type(f"{self.name.title().replace('_', '')}Destination", (PresetDestination,), members)


class _Given(Definition):
    """Adds the keys that a preset declares."""

    preset: ClassVar[Preset]

    def given(self, names: Iterable[str]) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names}


class PresetConnection(_Given):
    """The keys of every preset's connection, besides its own."""

    base_url: str | None = Field(None, description="Another address: a gateway, a sandbox, a region.")
    proxy: Setting = None
    timeouts: Timeouts = Timeouts()
    allow_plaintext: bool = False
    _http: HttpConnection = PrivateAttr()

    @model_validator(mode="after")
    def _fits(self) -> PresetConnection:
        self._http = self.preset.reach(self)
        return self

    @property
    def http(self) -> HttpConnection:
        return self._http


class PresetOptions(_Given):
    """The parameters of a sync."""

    connection: PresetConnection
    _http: HttpOptions = PrivateAttr()

    @model_validator(mode="after")
    def _fits(self) -> PresetOptions:
        self._http = self.preset.options(self)
        return self

    @property
    def http(self) -> HttpOptions:
        return self._http


class PresetDestination(HttpDestination):
    """HTTP as a preset describes it."""

    preset: ClassVar[Preset]
    documented = True

    def __init__(self, options: Any, shape: Shape, gate: Gate | None = None) -> None:
        try:
            super().__init__(options.http, shape, gate)
        except NoField as error:
            error.where = self.preset.where(error.name)
            raise

    @classmethod
    def place(cls, options: Any, write: WriteMode) -> str:
        return super().place(options.http, write)

    @classmethod
    def claim(cls, options: Any, write: WriteMode) -> str | None:
        found = super().claim(options.http, write)
        return found and (cls.preset.claim(options) or found)

    @classmethod
    def erasing(cls, options: Any) -> Mapping[str, Any]:
        return cls.preset.erases(options)

    @classmethod
    def forgets(cls, options: Any) -> bool:
        return cls.preset.erasure not in ("elsewhere", "asked") or bool(cls.preset.erases(options))

    @classmethod
    def asks(cls) -> bool:
        return cls.preset.erasure == "asked"

    @classmethod
    def learns(cls, options: Any, write: WriteMode, key: Sequence[str]) -> bool:
        return super().learns(options.http, write, key)

    @classmethod
    def comparable(cls, options: Any) -> bool:
        return super().comparable(options.http)

    def _refuse_unused(self, endpoint: Endpoint) -> None:
        """A sync may have none of the fields that the vendor treats in its own way."""

    def lacks(self, operation: Mode) -> DefinitionError:
        ways = getattr(self.preset, OPERATION_NAMES[operation])
        needs = ", or with ".join(
            ", ".join(f"`{one}`" for one in conditions(way.get("only_if", {}))) for way in ways
        )
        word = "deletes" if operation == "delete" else f"write: {operation}"
        return DefinitionError(
            "HTTP_OPERATION",
            f"the preset {self.preset.name} cannot do `{word}`" + (f", except with {needs}" if needs else ""),
            hint=f"`retl destinations {self.preset.name}` lists what it can do",
        )


@cache
def read(name: str) -> Preset:
    """A preset that comes with retl."""
    return Preset.load(_FOLDER / f"{name}.yml", f"presets/{name}.yml")


def own(folder: Path) -> dict[str, Preset]:
    """The presets of a project by name. DefinitionError(s) if a file is wrong or its name is already used."""
    found: dict[str, Preset] = {}
    for path in sorted((folder / "presets").glob("*.y*ml")):
        file = path.relative_to(folder).as_posix()
        if not _NAME.fullmatch(path.stem):
            raise DefinitionError("PRESET_NAME", f"{path.stem!r} cannot be a preset's name", where=file)
        if path.stem in (*destinations.names(), *destinations.preset_names(), *found):
            raise DefinitionError(
                "PRESET_TWICE", f"there is already a destination type {path.stem!r}", where=file
            )
        found[path.stem] = Preset.load(path, file)
    return found
