"""Vendors as data: a YAML file beside this one, or in a project's own presets/, is a destination type.

A preset fills in the models of `destinations/http.py`; it cannot do anything a sync written by hand
could not. `<name>` in it is a key that its connection takes or a parameter that a sync gives: alone it
is the value itself, inside a text it joins the text (percent-encoded in paths), and a member whose value
was left out is left out with it. `$<name>` in a row is the field that the parameter names, of a list
those fields. A member `name?parameter` is there only if that was given, `name!parameter` only if not.
An operation may be a list of ways to do it, of which the first whose `only_if` holds is taken. `place`
names the object that is written, in the account's own words and the same for every way to write it; without
it two syncs meet where they write to one path with one credential.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    create_model,
    model_validator,
)

from retl import destinations
from retl.destinations.api import About
from retl.destinations.batch import Mode, Shape, WriteMode
from retl.destinations.http.adapter import (
    OPERATION_NAMES,
    HttpConnection,
    HttpDestination,
    HttpOptions,
)
from retl.destinations.presets.filling import fill, used
from retl.errors import DefinitionError
from retl.model import Definition, Limits
from retl.net.client import Address, Timeouts
from retl.net.gate import Gate
from retl.project.validation import ModelT, validate
from retl.project.variables import Filled
from retl.project.yamlfile import load as load_yaml

Evidence = Literal["contract", "recording", "golden", "docs", "own"]  # own: there is no vendor
Ways = Annotated[
    tuple[dict[str, Any], ...], BeforeValidator(lambda given: [given] if isinstance(given, dict) else given)
]

_FOLDER = Path(__file__).parent
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")


class Parameter(Definition):
    """A key that a connection or a sync gives: required unless it has a default or is optional."""

    about: str
    type: Literal["text", "integer", "boolean", "list"] = "text"
    one_of: tuple[str, ...] = ()
    secret: bool = False
    optional: bool = False
    default: Any = None

    @property
    def is_required(self) -> bool:
        return self.default is None and not self.optional

    def field(self) -> tuple[Any, Any]:
        """The parameter as a field of a model."""
        types = {"text": str, "integer": int, "boolean": bool, "list": tuple[str, ...]}
        kind: Any = SecretStr if self.secret else Literal[self.one_of] if self.one_of else types[self.type]
        if self.is_required:
            return kind, Field(description=self.about)
        default = tuple(self.default) if isinstance(self.default, list) else self.default
        return kind | None, Field(default, description=self.about)


class VendorLimits(Limits):
    """What the vendor lets one account do, and who says so."""

    share: float | None = 0.5
    source: str
    checked_on: date


class Preset(Definition):
    """One vendor's way of taking rows. `only_if` of a way to do an operation names the values that
    parameters must have for it, or "*" for any."""

    name: str
    summary: str
    docs: str
    evidence: tuple[Evidence, ...]
    source: str
    checked_on: date
    connection: dict[str, Parameter] = Field(default={})
    parameters: dict[str, Parameter] = Field(default={})
    base_url: str | None = None
    place: str | None = None  # names the object, for all accounts of the server
    auth: dict[str, Any] = Field(default={"type": "none"})
    headers: dict[str, Any] = Field(default={})
    upsert: Ways = ()
    insert: Ways = ()
    update: Ways = ()
    delete: Ways = ()
    outcome: dict[str, Any] = Field(default={})
    job: dict[str, Any] | None = None
    idempotency: dict[str, Any] | None = None
    check: dict[str, Any] | None = None
    limits: VendorLimits
    example: str

    @model_validator(mode="after")
    def _knows_its_names(self) -> Preset:
        known = {*self.connection, *self.parameters, "base_url"}
        parts = self.model_dump(exclude={"docs", "example", "connection", "parameters", "summary"})
        for name in used(parts):
            if name not in known:
                raise ValueError(f"<{name}> is no key of `connection` or `parameters`")
        return self

    def reach(self, connection: PresetConnection) -> HttpConnection:
        """The connection the preset stands for, with these keys. ValueError where they do not fit."""
        given = connection.given(self.connection)
        given["base_url"] = connection.base_url or (self.base_url and fill(self.base_url, given))
        filled = fill({"base_url": "<base_url>", "auth": self.auth, "headers": self.headers}, given)
        more = {"timeouts": connection.timeouts, "allow_plaintext": connection.allow_plaintext}
        return _model(HttpConnection, self, {**filled, **more})

    def options(self, options: PresetOptions) -> HttpOptions:
        """What a sync's parameters come to. ValueError where they do not fit."""
        given = options.connection.given(self.connection) | options.given(self.parameters)
        raw: dict[str, Any] = {"outcome": self.outcome}
        raw |= {name: part for name in ("job", "idempotency", "check") if (part := getattr(self, name))}
        for name in OPERATION_NAMES.values():
            way = next((way for way in getattr(self, name) if _holds(way.get("only_if", {}), given)), None)
            if way is not None:
                raw[name] = {key: value for key, value in way.items() if key != "only_if"}
        return _model(HttpOptions, self, {**fill(raw, given), "connection": options.connection.http})

    def claim(self, options: PresetOptions) -> str | None:
        """The object that these parameters name, where `place` says so."""
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
    """Keys that a preset has declared, beside those of its models."""

    preset: ClassVar[Preset]

    def given(self, names: Iterable[str]) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names}


class PresetConnection(_Given):
    """What every preset's connection takes besides its own keys."""

    base_url: str | None = Field(None, description="Another address: a proxy, a sandbox, a region.")
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

    def __init__(self, options: Any, shape: Shape, gate: Gate | None = None) -> None:
        super().__init__(options.http, shape, gate)

    @classmethod
    def place(cls, options: Any, write: WriteMode) -> str:
        return super().place(options.http, write)

    @classmethod
    def claim(cls, options: Any, write: WriteMode) -> str | None:
        found = super().claim(options.http, write)
        return found and (cls.preset.claim(options) or found)

    @classmethod
    def learns(cls, options: Any, write: WriteMode, key: Sequence[str]) -> bool:
        return super().learns(options.http, write, key)

    def lacks(self, operation: Mode) -> DefinitionError:
        needs = ", or with ".join(
            ", ".join(f"`{name}: {' or '.join(map(str, values))}`" for name, values in way["only_if"].items())
            for way in getattr(self.preset, OPERATION_NAMES[operation])
        )
        word = "deletes" if operation == "delete" else f"write: {operation}"
        return DefinitionError(
            "HTTP_OPERATION",
            f"the preset {self.preset.name} cannot do `{word}`" + (f" but with {needs}" if needs else ""),
            hint=f"`retl destinations {self.preset.name}` says what it can",
        )


@cache
def read(name: str) -> Preset:
    """A preset that comes with retl."""
    return _read(_FOLDER / f"{name}.yml", f"presets/{name}.yml")


def own(folder: Path) -> dict[str, Preset]:
    """The presets of a project by their names. DefinitionError(s) where a file is wrong or its name is
    taken."""
    found: dict[str, Preset] = {}
    for path in sorted((folder / "presets").glob("*.y*ml")):
        file = path.relative_to(folder).as_posix()
        if not _NAME.fullmatch(path.stem):
            raise DefinitionError("PRESET_NAME", f"{path.stem!r} cannot be a preset's name", where=file)
        if path.stem in (*destinations.names(), *destinations.preset_names(), *found):
            raise DefinitionError(
                "PRESET_TWICE", f"there is already a destination type {path.stem!r}", where=file
            )
        found[path.stem] = _read(path, file)
    return found


def _read(path: Path, file: str) -> Preset:
    tree = load_yaml(path, name=file)
    return validate(Preset, Filled(tree, (), tree.value), name=path.stem)


def _model(model: type[ModelT], preset: Preset, value: dict[str, Any]) -> ModelT:
    """The model of a filled preset; its first error, without any value, as a ValueError."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in found["loc"])
        said = found["msg"].removeprefix("Value error, ")
        raise ValueError(f"preset {preset.name}: {place}: {said}") from None


def _holds(wanted: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    return all(given[name] in values or (values == ["*"] and given[name]) for name, values in wanted.items())
