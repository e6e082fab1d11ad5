"""Finds values in a JSON answer by dotted paths."""

from __future__ import annotations

from decimal import Decimal
from functools import cache, cached_property
from typing import Annotated, Any

import msgspec
from pydantic import BeforeValidator, Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from retl.model import Definition

Paths = Annotated[
    tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
]


class Match(Definition):
    """True if the value at the dotted path `at` is one of `in`, with the same type, or a text that contains
    one of `holds`."""

    at: str = ""
    values: tuple[StrictStr | StrictBool | StrictInt | StrictFloat | None, ...] = Field((), alias="in")
    holds: Paths = ()

    def fits(self, value: Any) -> bool:
        found = look(value, self.at)
        if isinstance(found, dict | list):
            return False
        if isinstance(found, str) and any(part in found for part in self.holds):
            return True
        return (type(found), found) in self._typed

    @model_validator(mode="after")
    def _complete(self) -> Match:
        if not self.values and not self.holds:
            raise ValueError("a match needs `in` or `holds`")
        return self

    @cached_property
    def _typed(self) -> frozenset[tuple[type, Any]]:
        return frozenset((type(value), value) for value in self.values)


@cache
def _steps(path: str) -> tuple[str, ...]:
    return tuple(path.split(".")) if path else ()


def look(value: Any, path: str) -> Any:
    """The value at a dotted path ("" = the value itself, a number indexes a list), or None."""
    for step in _steps(path):
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def text(value: Any) -> str:
    """A value as text in paths, forms and answers: JSON without the quotes."""
    if isinstance(value, str):
        return value
    if isinstance(value, Decimal):
        return format(value, "f")
    plain = msgspec.json.encode(value)
    return msgspec.json.decode(plain, type=str) if plain.startswith(b'"') else plain.decode()
