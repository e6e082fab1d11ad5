"""All targets: a folder here is a destination type, and a YAML file in presets/ is one too."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from retl.destinations.api import Destination
from retl.errors import DefinitionError
from retl.project.validation import did_you_mean


@cache
def names() -> tuple[str, ...]:
    """The types with code of their own: the folders of this package, without what several types share."""
    shared = ("presets", "sql")
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if m.ispkg and m.name not in shared))


@cache
def preset_names() -> tuple[str, ...]:
    """The types that are data: the presets that come with retl."""
    return tuple(sorted(path.stem for path in (Path(__file__).parent / "presets").glob("*.yml")))


@cache
def load(type_name: str) -> type[Destination[Any]]:
    """The destination class of a type. DefinitionError DESTINATION_UNKNOWN if there is none."""
    if type_name in preset_names():
        kind: type[Destination[Any]] = import_module(f"{__name__}.presets").read(type_name).destination
        return kind
    if type_name not in names():
        known = [*names(), *preset_names()]
        raise DefinitionError(
            "DESTINATION_UNKNOWN",
            f"there is no destination type {type_name!r}",
            hint=did_you_mean(type_name, known) or f"known types: {', '.join(known)}",
        )
    module = import_module(f"{__name__}.{type_name}.adapter")
    found = [
        thing
        for thing in vars(module).values()
        if isinstance(thing, type) and issubclass(thing, Destination) and thing.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise TypeError(
            f"destinations/{type_name}/adapter.py must define exactly one Destination, not {len(found)}"
        )
    return found[0]
