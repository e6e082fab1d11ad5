"""`${NAME}` in the strings of a definition → the environment's values.

`${NAME:-text}` has a default, `$${` is a literal `${`. A variable's value is not expanded again, so data
cannot read other variables. An unset variable is not an error here: its string stays as written and is
reported, because `retl validate` needs no variables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from retl.errors import DefinitionError, Place
from retl.project.settings import Environment
from retl.project.yamlfile import Loc, Tree

_USE = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")
_INSIDE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)


class Missing(Struct, frozen=True):
    """A variable that a definition needs and that is not set."""

    name: str
    place: Place

    def error(self) -> DefinitionError:
        return DefinitionError(
            "VARIABLE_UNSET",
            f"the variable {self.name} is not set or is empty",
            hint=f"set {self.name} in the environment or in config.env, or give it a default: "
            f"${{{self.name}:-text}}",
            where=self.place,
        )


class Filled(Struct, frozen=True):
    """A part of a tree (the one at `at`) with its variables filled in.

    `variables` are the locations, relative to `at`, of strings with a filled-in variable; `missing` those
    left as written because a variable is not set.
    """

    __repr__ = object.__repr__  # the values of variables are secrets

    tree: Tree
    at: Loc
    value: Any
    variables: frozenset[Loc] = frozenset()
    missing: Mapping[Loc, tuple[Missing, ...]] = field(default_factory=dict)

    def place(self, loc: Loc) -> Place:
        return self.tree.place((*self.at, *loc))

    def key_place(self, loc: Loc) -> Place:
        return self.tree.key_place((*self.at, *loc))

    def written(self, loc: Loc) -> Loc:
        return self.tree.written((*self.at, *loc))[len(self.at) :]

    def found(self, loc: Loc) -> Any:
        """What is written at the nearest place of `loc` in the file, variables as they are written."""
        return self.tree.at((*self.at, *self.written(loc)))

    def without(self, *names: str) -> Filled:
        """The same mapping without these keys."""
        value = {name: item for name, item in self.value.items() if name not in names}
        missing = {loc: unset for loc, unset in self.missing.items() if loc[0] not in names}
        return replace(self, value=value, missing=missing)

    def part(self, name: str) -> Filled:
        """The value of one key as a Filled of its own."""
        return Filled(
            self.tree,
            (*self.at, name),
            self.value[name],
            frozenset(loc[1:] for loc in self.variables if loc[0] == name),
            {loc[1:]: waiting for loc, waiting in self.missing.items() if loc[0] == name},
        )

    def all_missing(self) -> list[Missing]:
        return [one for several in self.missing.values() for one in several]


def fill(
    tree: Tree, environment: Environment, at: Loc = (), later: Callable[[Loc], bool] = lambda loc: False
) -> Filled:
    """The part of the tree at `at` with every `${NAME}` replaced, except strings for which `later` is true.

    DefinitionError VARIABLE_INVALID for a `${` that names no variable; what `Environment.get` raises.
    """
    variables: set[Loc] = set()
    missing: dict[Loc, tuple[Missing, ...]] = {}
    for loc, one in unset(tree, environment, at):
        if not later(loc := loc[len(at) :]):
            missing[loc] = (*missing.get(loc, ()), one)

    def walk(value: Any, loc: Loc) -> Any:
        if isinstance(value, dict):
            return {key: walk(item, (*loc, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item, (*loc, index)) for index, item in enumerate(value)]
        if not isinstance(value, str) or "${" not in value or loc in missing or later(loc):
            return value
        place = tree.place((*at, *loc))
        if any(found[1] is not None for found in _USE.finditer(value)):
            variables.add(loc)
        return _USE.sub(lambda found: _value(found, environment, place), value)

    return Filled(tree, at, walk(tree.at(at), ()), frozenset(variables), missing)


def masked(filled: Filled, stand_in: str) -> Filled:
    """The same with a stand-in for every text that has an unset variable, none of which is missing then."""

    def walk(value: Any, loc: Loc) -> Any:
        if isinstance(value, dict):
            return {key: walk(item, (*loc, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item, (*loc, index)) for index, item in enumerate(value)]
        return stand_in if loc in filled.missing else value

    return replace(filled, value=walk(filled.value, ()), missing={})


def unset(tree: Tree, environment: Environment, at: Loc = ()) -> Iterator[tuple[Loc, Missing]]:
    """The variables that the strings at `at` need and that are not set. Reads no values."""
    value = tree.at(at)
    if isinstance(value, dict | list):
        for part in value if isinstance(value, dict) else range(len(value)):
            yield from unset(tree, environment, (*at, part))
    elif isinstance(value, str):
        place = tree.place(at)
        for name in needed(value, place):
            if not environment.has(name):
                yield at, Missing(name, place)


def needed(text: str, place: Place | None = None) -> Iterator[str]:
    """The variables of a text that have no default."""
    for found in _USE.finditer(text):
        if found[1] is not None:
            name, default = _use(found, place)
            if default is None:
                yield name


def named_in(text: str) -> Iterator[str]:
    """The variables of a text, with a default or without."""
    for found in _USE.finditer(text):
        if found[1] is not None and (inside := _INSIDE.fullmatch(found[1])):
            yield inside[1]


def _use(found: re.Match[str], place: Place | None) -> tuple[str, str | None]:
    inside = _INSIDE.fullmatch(found[1])
    if inside is None or not found[2]:
        raise DefinitionError(
            "VARIABLE_INVALID",
            "${…} does not contain the name of a variable",  # the text itself may be part of a password
            hint="write ${NAME} or ${NAME:-text}; for a literal ${ write $${",
            where=place,
        )
    return inside[1], inside[2]


def _value(found: re.Match[str], environment: Environment, place: Place) -> str:
    if found[1] is None:
        return "${"
    name, default = _use(found, place)
    if (value := environment.get(name)) is not None:
        return value
    assert default is not None, "an unset variable without default was found before"
    return default
