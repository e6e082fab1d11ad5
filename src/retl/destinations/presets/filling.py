"""A preset's YAML with the values of its parameters in it.

`<name>` alone becomes the value itself; inside a text it becomes part of the text (percent-encoded in paths).
A list inside a text makes one text for each item, and in the name of a member one member. A member with a
missing value is left out, and so is an object with a false `only_if`. A value is always a constant, even if
it looks like a placeholder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal
from urllib.parse import quote

from pydantic import SecretStr

from retl.net.lookup import text
from retl.project.yamlfile import Loc

Condition = Mapping[str, Literal["given", "missing"] | list[Any]]

_USE = re.compile(r"<([a-z_]+)>")
_PATHS = ("path", "$path")
_TEXTS = ("row", "envelope", "headers")  # of an operation; their texts have `$` words
_ABSENT = object()


def holds(wanted: Condition, given: Mapping[str, Any]) -> bool:
    """Whether the parameters have the values of an `only_if`."""
    return all(
        given[name] in values if isinstance(values, list) else (given[name] is None) == (values == "missing")
        for name, values in wanted.items()
    )


def conditions(wanted: Condition) -> list[str]:
    """An `only_if` in words: ["match: email or id", "list: given"]."""
    return [
        f"{name}: {' or '.join(map(text, values)) if isinstance(values, list) else values}"
        for name, values in wanted.items()
    ]


def parameter_at(written: Mapping[str, Any], loc: Loc) -> str | None:
    """The first parameter in the text at `loc`, or at `loc` of the credential: a whole address that is a
    secret is judged before the rest. Parts of `loc` that are not written are skipped."""
    part: Any
    for part in (written, written.get("auth")):
        for step in loc:
            if isinstance(part, Mapping):
                part = part.get(step, part)
            elif isinstance(part, list) and isinstance(step, int):
                part = part[step]
        if isinstance(part, str) and (names := _USE.findall(part)):
            return str(names[0])
    return None


def fill(part: Any, given: Mapping[str, Any], place: str = "") -> Any:
    """A part of a preset with its values; `place` is the member that contains it."""
    if isinstance(part, dict):
        if not holds(part.get("only_if", {}), given):
            return _ABSENT
        inside = place if place in _TEXTS else ""
        made = {
            fill(name, each): fill(value, each, name if name in _PATHS else inside or name)
            for name, value in part.items()
            if name != "only_if"
            for each in _items(name, given)
        }
        return {name: value for name, value in made.items() if value is not _ABSENT}
    if isinstance(part, list | tuple):
        return [value for item in part if (value := fill(item, given, place)) is not _ABSENT]
    if not isinstance(part, str) or not (uses := _USE.findall(part)):
        return part
    values = {name: given[name] for name in uses}
    if any(value is None for value in values.values()):
        return _ABSENT
    listed = next((name for name, value in values.items() if isinstance(value, tuple)), None)
    if listed is not None:
        return [fill(part, {**given, listed: item}, place) for item in values[listed]]
    if part == f"<{uses[0]}>" and not isinstance(values[uses[0]], str):
        return values[uses[0]]
    return _joined(part, values, place)


def _items(name: str, given: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The values for each member that this name makes: one for each item of a list in it."""
    lists = [one for one in _USE.findall(name) if isinstance(given[one], tuple)]
    return [{**given, lists[0]: item} for item in given[lists[0]]] if lists else [given]


def _joined(written: str, values: Mapping[str, Any], place: str) -> str | SecretStr:
    """A text with its values: a secret if one of them is secret; in a row or header never a `$` word."""
    plain = {name: _plain(value) for name, value in values.items()}
    if place in _PATHS:
        plain = {name: quote(value, safe="") for name, value in plain.items()}
    elif place in _TEXTS and not written.startswith("$"):
        plain = {name: value.replace("$", "$$") for name, value in plain.items()}
    made = _USE.sub(lambda found: plain[found[1]], written)
    return SecretStr(made) if any(isinstance(value, SecretStr) for value in values.values()) else made


def used(part: Any, at: Loc = ()) -> Iterator[tuple[str, Loc, bool]]:
    """Every parameter in a part, its location, and whether it is in the key there."""
    if isinstance(part, dict):
        for name, value in part.items():
            if name == "only_if":
                yield from ((parameter, (*at, name, parameter), True) for parameter in value)
            yield from ((parameter, (*at, name), True) for parameter in _USE.findall(name))
            yield from used(value, (*at, name))
    elif isinstance(part, list | tuple):
        for n, value in enumerate(part):
            yield from used(value, (*at, n))
    elif isinstance(part, str):
        yield from ((parameter, at, False) for parameter in _USE.findall(part))


def _plain(value: Any) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)
