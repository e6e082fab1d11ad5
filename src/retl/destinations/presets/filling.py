"""The `<name>` in a preset's YAML, and what takes its place: a value, a text with it inside, or nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from pydantic import SecretStr

_USE = re.compile(r"<([a-z_]+)>")
_IF = re.compile(r"[?!]([a-z_]+)$")
_ABSENT = object()


def fill(part: Any, given: Mapping[str, Any], place: str = "") -> Any:
    """A part of a preset with the values in it; `place` is the member that it belongs to."""
    if isinstance(part, dict):
        made = {
            fill(name, given): fill(value, given, place if place == "row" else name)
            for name, value in _present(part, given)
        }
        return {name: value for name, value in made.items() if value is not _ABSENT}
    if isinstance(part, list):
        return [value for item in part if (value := fill(item, given, place)) is not _ABSENT]
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


def used(part: Any) -> Iterator[str]:
    """The names of all values that a part asks for."""
    if isinstance(part, dict):
        for name, value in part.items():
            yield from used(name)
            yield from _IF.findall(name)
            yield from used(value)
    elif isinstance(part, list | tuple):
        for value in part:
            yield from used(value)
    elif isinstance(part, str):
        yield from _USE.findall(part)


def _plain(value: Any) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)
