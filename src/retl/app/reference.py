"""Reference texts made from the code: the JSON Schema of sync files, and a page per source and destination.

It is made from the definitions and the Options of every type, so it agrees with validation. It reads no
project. `python -m retl.app.reference docs` writes the pages.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from retl import destinations, sources
from retl.app import wording
from retl.destinations.api import About
from retl.model import Limits
from retl.project.definitions import Sync
from retl.project.settings import DEFAULT_CONNECTIONS

if TYPE_CHECKING:
    from retl.destinations.api import Destination
    from retl.destinations.presets import Preset

_OPERATIONS = ("upsert", "insert", "update", "delete")
_VARIABLE = {"type": "string", "pattern": r"\$\{[A-Za-z_]", "description": "a ${NAME} of the environment"}


def types() -> list[str]:
    """All destination types: those with code of their own, then the presets."""
    return [*destinations.names(), *destinations.preset_names()]


def page(name: str, kind: type[Destination[Any]]) -> dict[str, Any]:
    """The facts of a destination type; for a preset also its operations and evidence."""
    preset: Preset | None = getattr(kind, "preset", None)
    about = kind.about
    text = inspect.cleandoc(about.docs or inspect.getmodule(kind).__doc__ or "")
    found: dict[str, Any] = {"name": name, "summary": about.summary or text.split("\n")[0]}
    found |= {"preview": about.preview is not None, "note": about.preview}
    found |= {"text": text, "connection": _fields(kind.Connection, wording.CONNECTION)}
    found |= {"destination": _fields(kind.Options, wording.DESTINATION)}
    if about.parts:
        parts = {title: _fields(model, wording.PARTS.get(title, {})) for title, model in about.parts.items()}
        found |= {"first": about.example, "parts": parts}
    return found | (_operations(preset) if preset else {}) | (_facts(about) if about.evidence else {})


def catalogue(own: Mapping[str, type[Destination[Any]]] = MappingProxyType({})) -> list[dict[str, Any]]:
    """Every preset at a glance, and the project's `own` ones."""
    kinds = {name: destinations.load(name) for name in destinations.preset_names()} | dict(own)
    return [_glance(name, kind) for name, kind in sorted(kinds.items())]


def _glance(name: str, kind: type[Destination[Any]]) -> dict[str, Any]:
    preset: Preset = kind.preset  # type: ignore[attr-defined]
    finds = bool(preset.find and preset.insert and preset.update)
    made = ["upsert"] if preset.upsert or finds else []
    made += ["append"] if preset.insert else []
    made += ["update"] if preset.update else []
    made += ["delete"] if preset.delete else []
    option = next((way for way in preset.erasing), None)
    erased = ", ".join(f"{k}: {v}" for k, v in (option or {}).items() if k != "only_if").replace(
        "True", "true"
    )
    return {
        "name": name,
        "summary": preset.summary,
        "operations": ", ".join(made),
        "evidence": ", ".join(preset.evidence),
        "limits": _pace(preset.limits) or "unknown",
        "erasure": erased or preset.erasure,
        "conflicts": preset.versioning,
        "state": "own"
        if name not in destinations.preset_names()
        else "preview"
        if kind.about.preview
        else "proved",
    }


def source_page(name: str) -> dict[str, Any]:
    """The facts of a source type."""
    kind = sources.load(name)
    text = inspect.cleandoc(inspect.getmodule(kind).__doc__ or "")
    return {
        "name": name,
        "summary": text.split("\n")[0],
        "text": text,
        "evidence": kind.evidence,
        "changes": sorted(kind.changes),
        "connection": _fields(kind.Connection, wording.CONNECTION),
        "source": [one for one in _fields(kind.Options, wording.SOURCE) if one["option"] != "from"],
    }


def source_markdown(page: dict[str, Any]) -> str:
    """The page as Markdown for docs/sources/."""
    parts = [f"# {page['name']}", page["text"]]
    for title, where in (
        ("connection", "Under `sources` in retl.yml"),
        ("source", "Under `source` in a sync"),
    ):
        rows = [(f"`{o['option']}`", _default(o), o["description"]) for o in page[title]]
        parts += [f"## {where}", _grid(("option", "default", ""), rows)]
    parts += [f"Changes: {', '.join(page['changes'])}.", f"Evidence: {page['evidence']}."]
    return "\n\n".join(parts) + "\n"


def markdown(page: dict[str, Any]) -> str:
    """The page as Markdown for docs/destinations/."""
    is_preset = "operations" in page
    parts = [f"# {page['name']}", *([f"{page['summary']}."] if is_preset else [])]
    parts += [f"**{page['note'].capitalize()}.**"] if page["note"] else []
    first = page.get("first")
    parts += [page["summary"], f"```yaml\n{first.rstrip()}\n```"] if first else [page["text"]]
    for title in ("connection", "destination"):
        parts += _options_table(f"Under `{title}`", page[title])
    for title, options in page.get("parts", {}).items():
        parts += _options_table(title, options)
    parts += ["## What it does", rest_of(page)] if first else []
    if is_preset:
        rows: list[tuple[Any, ...]]
        rows = [(o["operation"], f"`{o['request']}`", o["rows"], o["only_if"]) for o in page["operations"]]
        parts += ["## What it sends", _grid(("operation", "request", "rows each", "only with"), rows)]
    if "evidence" in page:
        parts += [f"Limits: {page['limits']}."] if "limits" in page else []
        parts += [f"Evidence: {', '.join(page['evidence'])}."]
        parts += [f"Source: {page['source']} (checked on {page['checked_on']})."]
        parts += ["## A sync", f"```yaml\n{page['example'].rstrip()}\n```"]
    return "\n\n".join(parts) + "\n"


def rest_of(page: Mapping[str, Any]) -> str:
    """The text of a page without its first sentence, which is its summary."""
    return str(page["text"]).removeprefix(page["summary"]).strip()


def _options_table(title: str, options: Iterable[dict[str, Any]]) -> list[str]:
    rows = [(f"`{o['option']}`", _default(o), o["description"]) for o in options]
    return [f"## {title}", _grid(("option", "default", ""), rows)] if rows else []


def _grid(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(str(cell or "") for cell in line) + " |" for line in lines)


def _default(option: dict[str, Any]) -> str:
    return "required" if option["required"] else f"`{option['default']}`" if option["default"] else ""


def _fields(model: type[BaseModel], words: Mapping[str, str]) -> list[dict[str, Any]]:
    """The options of a model; the defaults of a group are those of its own options. `words` for those that
    the model does not describe."""
    return [
        {
            "option": field.alias or key,
            "required": field.is_required(),
            "default": _word(field.default) if isinstance(field.default, str | int | float) else None,
            "description": field.description or words.get(field.alias or key),
        }
        for key, field in model.model_fields.items()
        if key not in ("connection", "type")
    ]


def _word(value: Any) -> str:
    """A value as YAML writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _operations(preset: Preset) -> dict[str, Any]:
    from retl.destinations.presets.filling import conditions  # loads all of HTTP: only if needed

    given = [(name, way) for name in _OPERATIONS for way in getattr(preset, name)]
    return {
        "operations": [
            {
                "operation": name,
                "request": f"{part.get('method', 'POST')} {part['path']}",
                "rows": part.get("max_rows", 1),
                "only_if": ", ".join(conditions(part.get("only_if", {}))),
            }
            for name, part in given
        ]
    }


def _facts(about: About) -> dict[str, Any]:
    """The facts about the vendor, with their source; without limits if the vendor sets none."""
    return ({"limits": _limits(about)} if about.limits_source else {}) | {
        "evidence": list(about.evidence),
        "source": about.source,
        "checked_on": str(about.checked_on),
        "example": about.example,
    }


def _limits(about: About) -> str:
    return (
        f"{_pace(about.limits)}; of requests {about.limits.share:.0%} are ours unless the connection's"
        f" `limits` say otherwise. They are from: {about.limits_source}"
        f" (checked on {about.limits_checked_on or about.checked_on})"
    )


def _pace(limits: Limits) -> str:
    texts = [f"{limits.requests} requests per {limits.per:g} s"] if limits.requests else []
    texts += [f"{limits.per_day} a day"] if limits.per_day else []
    texts += [f"{limits.concurrency} at a time"] if limits.concurrency else []
    return ", ".join(texts)


def write_pages(folder: Path) -> None:
    """Write a page per destination type, and remove other pages."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.md"):
        old.unlink()
    for name in types():
        (folder / f"{name}.md").write_text(markdown(page(name, destinations.load(name))), encoding="utf-8")


def write_source_pages(folder: Path) -> None:
    """Write the page of every source type to docs/sources/."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in sources.names():
        (folder / f"{name}.md").write_text(source_markdown(source_page(name)), encoding="utf-8")


def sync_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a file in syncs/. Its `destination` has one of the known types."""
    schema = Sync.model_json_schema()
    definitions: dict[str, Any] = schema.setdefault("$defs", {})
    definitions.pop("DestinationRef", None)
    schema["properties"].pop("name")
    schema["required"].remove("name")
    definitions["Source"]["properties"].pop("from")
    named = {"from": {"type": "string", "description": "A source in retl.yml; its type has the options."}}
    schema["properties"]["source"] = {
        "description": "Where the rows come from.",
        "anyOf": [
            {"$ref": "#/$defs/Source"},
            {"type": "object", "properties": named, "required": ["from"]},
        ],
    }
    variants = []
    for type_name in types():
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
    """The schema of `destination:` for one type; its parts go to `definitions`."""
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
    """The names of the parts that a schema refers to, directly or indirectly."""
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
    """Every number and boolean may also be a variable."""
    if isinstance(schema, list):
        return [_with_variables(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") in ("integer", "number", "boolean"):
        outside = {k: schema[k] for k in ("title", "description", "default") if k in schema}
        inside = {k: v for k, v in schema.items() if k not in outside}
        return {**outside, "anyOf": [inside, _VARIABLE]}
    return {name: _with_variables(item) for name, item in schema.items()}


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]) / "destinations")
    write_source_pages(Path(sys.argv[1]) / "sources")
