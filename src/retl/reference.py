"""What the code knows of itself, for reading: the JSON Schema of sync files.

It is made from the definitions and from every destination's own Options, so it cannot say anything that
validation does not. It reads no project.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from retl import destinations
from retl.definitions import Sync
from retl.settings import DEFAULT_CONNECTIONS

_VARIABLE = {"type": "string", "pattern": r"\$\{[A-Za-z_]", "description": "a ${NAME} of the environment"}


def sync_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a file in syncs/. Its `destination` is any of the known types."""
    schema = Sync.model_json_schema()
    definitions: dict[str, Any] = schema.setdefault("$defs", {})
    definitions.pop("DestinationRef", None)
    schema["properties"].pop("name")
    schema["required"].remove("name")
    variants = []
    for type_name in [*destinations.names(), *destinations.preset_names()]:
        definitions[f"{type_name}_destination"] = _options(type_name, definitions)
        variants.append({"$ref": f"#/$defs/{type_name}_destination"})
    schema["properties"]["destination"] = {"description": "Where to, and how.", "anyOf": variants}
    schema = _with_variables(schema)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "A sync of retl",
        "description": "One file in syncs/; its name is the sync's name.",
    }


def _options(type_name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of what stands under `destination:` for one type; its parts go to `definitions`."""
    model: type[BaseModel] = destinations.load(type_name).Options
    schema = model.model_json_schema(ref_template=f"#/$defs/{type_name}.{{model}}")
    parts = schema.pop("$defs", {})
    properties: dict[str, Any] = {
        "connection": {"type": "string", "description": "A connection in retl.yml."},
        "type": {"const": type_name},
        **{name: part for name, part in schema["properties"].items() if name != "connection"},
    }
    required = [name for name in schema.get("required", []) if name != "connection"]
    reached = _reached(properties, parts)
    definitions.update({f"{type_name}.{name}": parts[name] for name in sorted(reached)})
    way = [{"required": ["connection"]}]
    way += [{"required": ["type"]}] if type_name in DEFAULT_CONNECTIONS else []
    return {**schema, "properties": properties, "required": required, "anyOf": way}


def _reached(schema: Any, parts: dict[str, Any]) -> set[str]:
    """The names of the parts that a schema refers to, directly or through others."""
    found: set[str] = set()
    waiting = [schema]
    while waiting:
        thing = waiting.pop()
        if isinstance(thing, dict):
            waiting += thing.values()
            name = str(thing.get("$ref", "")).rpartition("/")[2].partition(".")[2]
            if name in parts and name not in found:
                found.add(name)
                waiting.append(parts[name])
        elif isinstance(thing, list):
            waiting += thing
    return found


def _with_variables(schema: Any) -> Any:
    """Every number and truth value may also be a variable that holds one."""
    if isinstance(schema, list):
        return [_with_variables(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") in ("integer", "number", "boolean"):
        outside = {k: schema[k] for k in ("title", "description", "default") if k in schema}
        inside = {k: v for k, v in schema.items() if k not in outside}
        return {**outside, "anyOf": [inside, _VARIABLE]}
    return {name: _with_variables(item) for name, item in schema.items()}
