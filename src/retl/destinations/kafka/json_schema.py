"""JSON Schema: the schema of a sync's JSON values, and whether somebody else's schema takes all of them.

It asks nobody, and validates no row: a schema is refused if it may refuse a value that the contract lets
through, or if it has a keyword of which that is not known.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from retl.destinations.batch import Field
from retl.model import Formats
from retl.values.types import Type

_DRAFT = "http://json-schema.org/draft-07/schema#"
_SAYS_NOTHING = {"title", "description", "default", "examples", "deprecated", "readOnly", "$comment"}
_OBJECT = {"$schema", "$id", "type", "properties", "required", "additionalProperties"} | _SAYS_NOTHING


def schema_of(title: str, columns: Sequence[Field], formats: Formats) -> str:
    """The schema of rows with these columns. It is closed, because registries take a new property of an open
    one for incompatible; what may be empty is not required, so that it may be added."""
    whole = {
        "$schema": _DRAFT,
        "title": title,
        "type": "object",
        "properties": {one.name: _property(one, formats) for one in columns},
        "required": [one.name for one in columns if not one.nullable],
        "additionalProperties": False,
    }
    return json.dumps(whole)


def _property(column: Field, formats: Formats) -> dict[str, Any]:
    about = {"description": column.description} if column.description else {}
    return about | _of(column.type, formats, nullable=column.nullable)


def _of(type_: Type, formats: Formats, *, nullable: bool = False) -> dict[str, Any]:
    if type_.name == "list":
        found: dict[str, Any] = {"type": "array", "items": _of(type_.item, formats, nullable=True)}
    else:
        types, format_ = _written(type_, formats)
        said = types[0] if len(types) == 1 else types
        found = ({"type": said} if types else {}) | ({"format": format_} if format_ else {})
    return {"oneOf": [{"type": "null"}, found]} if nullable and found else found


def _written(type_: Type, formats: Formats) -> tuple[list[str], str | None]:
    """The JSON types of a value, none if it may have any, and the format of its text."""
    match type_.name:
        case "json":
            return [], None
        case "integer":
            return (["integer", "string"] if formats.bigints == "string" else ["integer"]), None
        case "decimal":
            return ["string" if formats.decimals == "string" else "number"], None
        case "float":
            return ["number"], None
        case "boolean":
            return ["boolean"], None
        case "date":
            return (["integer"], None) if formats.dates == "epoch_ms" else (["string"], "date")
        case "timestamp" | "timestamptz":
            return (["string"], "date-time") if formats.timestamps == "iso" else (["integer"], None)
        case "uuid":
            return ["string"], "uuid"
        case _:
            return ["string"], None


def unfit(schema: str, columns: Sequence[Field], formats: Formats) -> Iterator[str]:
    """Why this schema may refuse a row with these columns: a sentence for each reason."""
    whole = json.loads(schema)
    if not isinstance(whole, dict) or whole.get("type") != "object":
        yield "it is not of `type: object`"
        return
    if unknown := sorted(whole.keys() - _OBJECT):
        yield f"retl cannot say what its {unknown[0]} refuses"
    there = whole.get("properties", {})
    for column in columns:
        if column.name not in there:
            yield f"it has no property {column.name}"
        elif why := _why_not(column.type, formats, there[column.name], nullable=column.nullable):
            yield f"its property {column.name} {why}"
    for name in sorted(set(whole.get("required", ())) - {one.name for one in columns}):
        yield f"its property {name} is required, and the sync does not send it"


def _why_not(type_: Type, formats: Formats, schema: Any, *, nullable: bool) -> str | None:
    """Why a schema may refuse a value of this type."""
    accepted = _accepted(schema)
    if isinstance(accepted, str):
        return accepted
    if not accepted:
        return None
    if nullable and "null" not in accepted:
        return "takes no null"
    if type_.name == "list":
        if "array" not in accepted:
            return f"is {_shown(accepted)}, and {type_} needs array"
        inner = _why_not(type_.item, formats, accepted["array"].get("items", True), nullable=True)
        return inner and f"has items of which it {inner}"
    types, format_ = _written(type_, formats)
    if not types or any(one not in accepted and not _wider(one, accepted) for one in types):
        return f"is {_shown(accepted)}, and {type_} needs {' and '.join(types) or 'any value'}"
    asked = accepted["string"].get("format") if "string" in types else None
    return None if asked in (None, format_) else f"has the format {asked}, which {type_} may not have"


def _wider(name: str, accepted: Mapping[str, Any]) -> bool:
    return name == "integer" and "number" in accepted


def _accepted(schema: Any) -> dict[str, Mapping[str, Any]] | str:
    """The JSON types that a schema takes, each with what it asks of them; none if it takes everything. A
    sentence if that cannot be said."""
    if schema is True:
        return {}
    said = {
        name: one
        for name, one in schema.items()
        if name not in _SAYS_NOTHING and not name.startswith("connect.")
    }
    for name in ("oneOf", "anyOf"):
        if said.keys() == {name}:
            return _together([_accepted(one) for one in said[name]])
    if unknown := sorted(said.keys() - {"type", "format", "items"}):
        return f"has the keyword {unknown[0]}, of which retl cannot say what it refuses"
    if "type" not in said:
        return {} if not said else "has no type"
    types = said["type"] if isinstance(said["type"], list) else [said["type"]]
    return dict.fromkeys(types, said)


def _together(branches: list[dict[str, Mapping[str, Any]] | str]) -> dict[str, Mapping[str, Any]] | str:
    """Of several schemas, of which each value fits one."""
    found: dict[str, Mapping[str, Any]] = {}
    for one in branches:
        if isinstance(one, str):
            return one
        if not one or one.keys() & found.keys():
            return "has alternatives that one value fits"
        found |= one
    return "has alternatives that one value fits" if {"integer", "number"} <= found.keys() else found


def _shown(accepted: Mapping[str, Any]) -> str:
    return " or ".join(accepted)
