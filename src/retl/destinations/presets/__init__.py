"""Vendors as data: a YAML file beside this one, or in a project's own presets/, is a destination type.

A preset fills in the models of `destinations/http.py`; it cannot do anything a sync written by hand
could not. `<name>` in it is a key that its connection takes or a parameter that a sync gives: alone it
is the value itself, inside a text it joins the text (percent-encoded in paths), and a member whose value
was left out is left out with it. `$<name>` in a row is the field that the parameter names, of a list
those fields. A member `name?parameter` is there only if that was given, `name!parameter` only if not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import quote

from pydantic import Field, PrivateAttr, SecretStr, ValidationError, create_model, model_validator

from retl import destinations
from retl.batch import Operation, Shape, WriteMode
from retl.definitions import Definition, Limits
from retl.destinations.http import OPERATION_NAMES, HttpDestination, HttpOptions
from retl.errors import DefinitionError
from retl.http.client import Timeouts
from retl.validation import validate
from retl.variables import Filled
from retl.yamlfile import load as load_yaml

Evidence = Literal["contract", "recording", "golden", "docs"]

_FOLDER = Path(__file__).parent
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_USE = re.compile(r"<([a-z_]+)>")
_IF = re.compile(r"[?!]([a-z_]+)$")
_ABSENT = object()


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
    """One vendor's way of taking rows. `only_if` of an operation names the values that parameters must
    have for it to be there."""

    name: str
    summary: str
    docs: str
    evidence: tuple[Evidence, ...]
    source: str
    checked_on: date
    connection: dict[str, Parameter] = Field(default={})
    parameters: dict[str, Parameter] = Field(default={})
    base_url: str | None = None
    auth: dict[str, Any] = Field(default={"type": "none"})
    headers: dict[str, Any] = Field(default={})
    upsert: dict[str, Any] | None = None
    insert: dict[str, Any] | None = None
    update: dict[str, Any] | None = None
    delete: dict[str, Any] | None = None
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
        for name in _used(parts):
            if name not in known:
                raise ValueError(f"<{name}> is no key of `connection` or `parameters`")
        return self

    def options(self, connection: PresetConnection, parameters: Mapping[str, Any]) -> HttpOptions:
        """What the preset stands for, with these values. ValidationError where they do not fit."""
        given = {**{name: getattr(connection, name) for name in self.connection}, **parameters}
        given["base_url"] = connection.base_url or (self.base_url and _fill(self.base_url, given))
        reached = {"base_url": "<base_url>", "auth": self.auth, "headers": self.headers}
        raw: dict[str, Any] = {"outcome": self.outcome}
        for name in ("upsert", "insert", "update", "delete", "job", "idempotency", "check"):
            part = getattr(self, name)
            if part is not None and _holds(part.get("only_if", {}), given):
                raw[name] = {key: value for key, value in part.items() if key != "only_if"}
        filled = _fill(raw, given)
        filled["connection"] = {
            **_fill(reached, given),
            "timeouts": connection.timeouts,
            "allow_plaintext": connection.allow_plaintext,
        }
        return HttpOptions.model_validate(filled)

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
        options.preset = self
        limits = {name: getattr(self.limits, name) for name in Limits.model_fields}
        members = {
            "Connection": connection,
            "Options": options,
            "preset": self,
            "limits": Limits(**limits),
            "__doc__": self.docs,
            "__module__": __name__,
        }
        return type(f"{self.name.title().replace('_', '')}Destination", (PresetDestination,), members)


class PresetConnection(Definition):
    """What every preset's connection takes besides its own keys."""

    base_url: str | None = Field(None, description="Another address: a proxy, a sandbox, a region.")
    timeouts: Timeouts = Timeouts()
    allow_plaintext: bool = False


class PresetOptions(Definition):
    """The parameters of a sync, and what they come to."""

    preset: ClassVar[Preset]
    connection: PresetConnection
    _http: HttpOptions = PrivateAttr()

    @model_validator(mode="after")
    def _fits(self) -> PresetOptions:
        given = {name: getattr(self, name) for name in self.preset.parameters}
        try:
            self._http = self.preset.options(self.connection, given)
        except ValidationError as error:
            found = error.errors(include_input=False, include_url=False, include_context=False)[0]
            place = ".".join(str(part) for part in found["loc"])
            raise ValueError(f"preset {self.preset.name}: {place}: {found['msg']}") from None
        return self

    @property
    def http(self) -> HttpOptions:
        return self._http


class PresetDestination(HttpDestination):
    """HTTP as a preset describes it."""

    preset: ClassVar[Preset]

    def __init__(self, options: Any, shape: Shape) -> None:
        super().__init__(options.http, shape)

    @classmethod
    def identity(cls, options: Any, write: WriteMode) -> str:
        return super().identity(options.http, write)

    def lacks(self, operation: Operation) -> DefinitionError:
        part = getattr(self.preset, OPERATION_NAMES[operation]) or {}
        wanted = part.get("only_if", {}).items()
        needs = ", ".join(f"`{name}: {' or '.join(map(str, values))}`" for name, values in wanted)
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


def _holds(wanted: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    return all(given[name] in values for name, values in wanted.items())


def _fill(part: Any, given: Mapping[str, Any], place: str = "") -> Any:
    """A part of a preset with the values in it; `place` is the member that it belongs to."""
    if isinstance(part, dict):
        made = {
            _fill(name, given): _fill(value, given, place if place == "row" else name)
            for name, value in _present(part, given)
        }
        return {name: value for name, value in made.items() if value is not _ABSENT}
    if isinstance(part, list):
        return [value for item in part if (value := _fill(item, given, place)) is not _ABSENT]
    if not isinstance(part, str) or not (uses := _USE.findall(part)):
        return part
    values = {name: given[name] for name in uses}
    if any(value is None for value in values.values()):
        return _ABSENT
    whole = len(uses) == 1 and values[uses[0]]
    if part == f"<{uses[0]}>":
        constant = place == "row" and isinstance(whole, str) and whole.startswith("$")
        return f"${whole}" if constant else list(whole) if isinstance(whole, tuple) else whole
    if part == f"$<{uses[0]}>" and isinstance(whole, tuple):
        return [f"$field.{name}" for name in whole]
    if part == f"$<{uses[0]}>":
        return f"$field.{whole}"
    plain = {name: _plain(value) for name, value in values.items()}
    if place in ("path", "$path", "errors_path"):
        plain = {name: quote(value, safe="") for name, value in plain.items()}
    text = _USE.sub(lambda found: plain[found[1]], part)
    return SecretStr(text) if any(isinstance(value, SecretStr) for value in values.values()) else text


def _present(part: dict[str, Any], given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The members of a part that are there with these values."""
    for written, value in part.items():
        found = _IF.search(written)
        if found is None:
            yield written, value
        elif (given[found[1]] is None) == found[0].startswith("!"):
            yield written[: found.start()], value


def _used(part: Any) -> Iterator[str]:
    """The names of all values that a part asks for."""
    if isinstance(part, dict):
        for name, value in part.items():
            yield from _used(name)
            yield from _IF.findall(name)
            yield from _used(value)
    elif isinstance(part, list | tuple):
        for value in part:
            yield from _used(value)
    elif isinstance(part, str):
        yield from _USE.findall(part)


def _plain(value: Any) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)
