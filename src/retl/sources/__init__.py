"""All sources: a file here is a source type."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from typing import Any

from retl.errors import DefinitionError
from retl.project.validation import did_you_mean
from retl.sources.api import Source

_SHARED = {
    "api",
    "columnar",
    "dbt",
    "dbt_model",
    "dbt_results",
    "inputs",
    "personal",
    "relations",
    "sql",
    "streams",
    "texts",
}  # not types


@cache
def names() -> tuple[str, ...]:
    """The types of sources."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _SHARED))


@cache
def load(type_name: str) -> type[Source[Any]]:
    """The class of a type. DefinitionError SOURCE_UNKNOWN if there is none."""
    if type_name not in names():
        raise DefinitionError(
            "SOURCE_UNKNOWN",
            f"there is no source type {type_name!r}",
            hint=did_you_mean(type_name, names()) or f"known types: {', '.join(names())}",
        )
    module = import_module(f"{__name__}.{type_name}")
    (found,) = (
        thing
        for thing in vars(module).values()
        if isinstance(thing, type) and issubclass(thing, Source) and thing.__module__ == module.__name__
    )
    return found
