"""Finds errors in a preset's file, with their places, before a sync uses it.

Parts are checked with sample values for their parameters. When a sync uses the preset, they are checked
again with its values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec.structs import replace

from retl.destinations.http.body import Endpoint
from retl.destinations.http.cells import Cast
from retl.destinations.http.finding import Find
from retl.destinations.http.folds import KeyFolds
from retl.destinations.http.jobs import Job
from retl.destinations.http.objects import Read, Version
from retl.destinations.http.options import Idempotency, Probe
from retl.destinations.http.rules import Rules
from retl.destinations.http.steps import Together
from retl.destinations.presets.filling import fill, used
from retl.destinations.presets.parameters import Parameter
from retl.errors import DefinitionError, Place
from retl.model import Definition
from retl.net.oauth import Auth
from retl.project.validation import did_you_mean, each, raise_all, validate
from retl.project.variables import Filled
from retl.project.yamlfile import Loc, Tree

PARTS: dict[str, type[Definition]] = {
    **dict.fromkeys(("upsert", "insert", "update", "delete"), Endpoint),
    "find": Find,
    "read": Read,
    "batch": Together,
    "version": Version,
    "outcome": Rules,
    "job": Job,
    "cast": Cast,
    "idempotency": Idempotency,
    "check": Probe,
    "folds": KeyFolds,
}
_PATHS = ("path", "then", "errors_path")
_PROSE = ("summary", "docs", "source", "example", "connection", "parameters")


class _Login(Definition):
    """The part of a connection that a preset fills in."""

    auth: Auth


def whole(tree: Tree) -> Tree:
    """The preset with what its operations, and their outcomes, take from another one: `like: upsert`, or
    `like: delete.0`, the first of several ways. What they say themselves wins. Then `root` stands before
    their paths. Each value keeps its place. DefinitionError if there is no such part."""
    for name in PARTS:
        for loc, way in _ways(tree, name):
            tree = _inherited(tree, loc, way)
            tree = _inherited(tree, (*loc, "outcome"), way.get("outcome") if isinstance(way, dict) else None)
    root = tree.value.get("root") if isinstance(tree.value, dict) else None
    return _rooted(tree, root) if isinstance(root, str) else tree


def _rooted(tree: Tree, root: str) -> Tree:
    """The preset with `root` before the paths of its parts, and of the steps of its jobs."""

    def below(part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        inner = {name: below(part[name]) for name in ("job", "open", "start") if name in part}
        return part | inner | {name: root + part[name] for name in _PATHS if isinstance(part.get(name), str)}

    for name in PARTS:
        for loc, way in _ways(tree, name):
            tree = replace(tree, value=_with(tree.value, loc, below(way)))
    return tree


def _inherited(tree: Tree, at: Loc, own: Any) -> Tree:
    if not isinstance(own, dict) or (like := own.get("like")) is None:
        return tree
    name, _, number = str(like).partition(".")
    there: Loc = (name, int(number)) if number.isdecimal() else (name,)
    try:
        base = tree.at(there)
    except (KeyError, IndexError, TypeError):
        base = None
    if not isinstance(base, dict) or "like" in base or there == at:
        raise DefinitionError(
            "DEFINITION_INVALID",
            f"`like: {like}` names no part of this preset that says everything itself",
            hint="an operation, one of its ways (delete.0), or `outcome`",
            where=tree.place((*at, "like")),
        )
    mine = own.keys() | {"only_if"}
    added = {key: value for key, value in base.items() if key not in mine}
    merged = {**{key: value for key, value in own.items() if key != "like"}, **added}
    new = {
        at + loc[len(there) :]: place
        for loc, place in tree.places.items()
        if loc[: len(there)] == there and loc[len(there) : len(there) + 1] and loc[len(there)] in added
    }
    return replace(tree, value=_with(tree.value, at, merged), places={**tree.places, **new})


def _with(value: Any, at: Loc, new: Any) -> Any:
    """A copy with another value at one place."""
    if not at:
        return new
    copy: Any = list(value) if isinstance(value, list) else dict(value)
    copy[at[0]] = _with(copy[at[0]], at[1:], new)
    return copy


def refuse(tree: Tree, parameters: Mapping[str, Parameter]) -> None:
    """DefinitionError(s) if a preset with these parameters cannot work."""
    known = {**parameters, "base_url": Parameter(about="")}
    raise_all(_unknown(tree, known))
    raise_all(_unfit(tree, known))


def named(tree: Tree, field: str) -> Iterator[Place]:
    """The places that name a field of the rows."""
    word = re.compile(rf"\$(field\.)?{re.escape(field)}(?!\w)|\{{{re.escape(field)}\}}")
    for loc, place in tree.places.items():
        written = tree.at(loc)
        if loc and loc[0] not in _PROSE and isinstance(written, str) and word.search(written):
            yield place


def _unknown(tree: Tree, known: Mapping[str, Parameter]) -> Iterator[DefinitionError]:
    """Parameters that do not exist, and conditions that are never true."""
    for name, loc, in_key in used({key: part for key, part in tree.value.items() if key not in _PROSE}):
        if name not in known:
            place = tree.key_place(loc) if in_key else tree.place(loc)
            hint = did_you_mean(name, known) or f"known: {', '.join(known)}"
            message = f"<{name}> is not a key of `connection` or `parameters`"
            yield DefinitionError("DEFINITION_INVALID", message, hint=hint, where=place)
        elif known[name].secret and loc[0] in PARTS and loc[-2:] != ("only_if", name):
            message = f"<{name}> is a secret, which only `auth` and the connection's `headers` may contain"
            hint = f"auth: {{type: body, name: …, value: <{name}>}} puts it into the body as it is sent"
            yield DefinitionError("DEFINITION_INVALID", message, hint=hint, where=tree.place(loc))
        elif loc[-2:] == ("only_if", name) and (refusal := known[name].refusal(tree.at(loc))):
            yield DefinitionError("DEFINITION_INVALID", f"`{name}`: {refusal}", where=tree.place(loc))


def _unfit(tree: Tree, known: Mapping[str, Parameter]) -> Iterator[DefinitionError]:
    """Parts that are wrong for any parameters."""
    for name, model in PARTS.items():
        for loc, way in _ways(tree, name):
            yield from _errors(model, Filled(tree, loc, fill(way, _samples(way, known))))
    for loc, way in _ways(tree, "auth"):
        login = {"auth": fill(way, _samples(way, known))}
        errors = _errors(_Login, Filled(tree, loc, login))
        yield from (one for one in errors if one.code in ("OPTION_UNKNOWN", "OPTION_MISSING"))


def _errors(model: type[Definition], filled: Filled) -> tuple[DefinitionError, ...]:
    try:
        validate(model, filled)
    except DefinitionError as error:
        return each(error)
    return ()


def _ways(tree: Tree, name: str) -> list[tuple[Loc, Any]]:
    """The ways to do a part, each with its place."""
    written = tree.value.get(name)
    if isinstance(written, list):
        return [((name, n), way) for n, way in enumerate(written)]
    return [] if written is None else [((name,), written)]


def _samples(way: Mapping[str, Any], known: Mapping[str, Parameter]) -> dict[str, Any]:
    """Values for which this way is used."""
    given = {name: one.sample for name, one in known.items()}
    for name, wanted in way.get("only_if", {}).items():
        given[name] = wanted[0] if isinstance(wanted, list) else None if wanted == "missing" else given[name]
    return given
