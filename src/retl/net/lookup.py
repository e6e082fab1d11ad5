"""Finds values in a JSON answer by dotted paths."""

from __future__ import annotations

import re
from decimal import Decimal
from functools import cache, cached_property
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BeforeValidator, Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from retl.model import Definition

Paths = Annotated[
    tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
]


class Match(Definition):
    """True if the value at the dotted path `at` is one of `in`, with the same type, or a text that contains
    one of `holds`, or with `empty: true` a list, object or text that is there and has nothing in it."""

    at: str = ""
    values: tuple[StrictStr | StrictBool | StrictInt | StrictFloat | None, ...] = Field((), alias="in")
    holds: Paths = ()
    empty: Literal[True] | None = None

    def fits(self, value: Any) -> bool:
        found = look(value, self.at)
        if self.empty and found in ("", [], {}):
            return True
        if isinstance(found, dict | list):
            return False
        if isinstance(found, str) and any(part in found for part in self.holds):
            return True
        return (type(found), found) in self._typed

    @model_validator(mode="after")
    def _complete(self) -> Match:
        if not self.values and not self.holds and not self.empty:
            raise ValueError("a match needs `in`, `holds` or `empty: true`")
        return self

    @cached_property
    def _typed(self) -> frozenset[tuple[type, Any]]:
        return frozenset((type(value), value) for value in self.values)


@cache
def _steps(path: str) -> tuple[str, ...]:
    return tuple(path.split(".")) if path else ()


def look(value: Any, path: str) -> Any:
    """The value at a dotted path ("" = the value itself, a number indexes a list, `*` is the only member of
    an object, whatever its name), or None."""
    for step in _steps(path):
        if isinstance(value, dict) and step == "*" and len(value) == 1:
            (value,) = value.values()
        elif isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


class Found(Definition):
    """A text in an answer: the value at the dotted path `at`, or what the group of `pattern` finds in it."""

    at: str
    pattern: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> Found:
        try:
            groups = 1 if self.pattern is None else re.compile(self.pattern).groups
        except re.error:
            groups = 0
        if groups != 1:
            raise ValueError("a `pattern` is a regular expression with one group")
        return self

    def of(self, value: Any) -> str | None:
        """The text in an answer, or None."""
        found = look(value, self.at)
        if type(found) not in (str, int):
            return None
        if self.pattern is None:
            return text(found) or None
        matched = re.search(self.pattern, text(found))
        return matched[1] or None if matched else None


def every(value: Any, path: str) -> list[Any]:
    """The values at a dotted path in which a step `*` is each item of a list, or each member of an object."""
    found = [value]
    for step in _steps(path):
        if step == "*":
            inner = (list(one.values()) if isinstance(one, dict) else one for one in found)
            found = [item for part in inner if isinstance(part, list) for item in part]
        else:
            found = [item for one in found if (item := look(one, step)) is not None]
    return found


def text(value: Any) -> str:
    """A value as text in paths, forms and answers: JSON without the quotes."""
    if isinstance(value, str):
        return value
    if isinstance(value, Decimal):
        return format(value, "f")
    plain = msgspec.json.encode(value)
    return msgspec.json.decode(plain, type=str) if plain.startswith(b'"') else plain.decode()
