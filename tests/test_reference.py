"""The JSON Schema of sync files says what validation says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from retl import destinations, sources
from retl.app.reference import (
    page,
    source_page,
    sync_schema,
    types,
    write_pages,
    write_source_pages,
)
from retl.project.definitions import Sync
from tests.commands import Workshop


def test_the_schema_has_every_key_of_a_sync_but_its_name() -> None:
    schema = sync_schema()
    named = {one.alias or name for name, one in Sync.model_fields.items()}
    assert schema["properties"].keys() == named - {"name"}
    assert set(schema["required"]) == {"source", "key", "destination"}
    assert schema["additionalProperties"] is False


def test_the_schema_knows_every_destination() -> None:
    schema = sync_schema()
    for type_name in types():
        part = schema["$defs"][f"{type_name}_destination"]
        fields = destinations.load(type_name).Options.model_fields
        known = {field.alias or name for name, field in fields.items()}
        assert part["properties"].keys() == known | {"connection", "type"}
        assert part["additionalProperties"] is False


def test_every_reference_leads_somewhere_and_every_part_is_used() -> None:
    schema = sync_schema()
    references = set(found(schema, "$ref"))
    assert {name.removeprefix("#/$defs/") for name in references} == schema["$defs"].keys()


def test_the_schema_speaks_the_users_spellings() -> None:
    properties, parts = sync_schema()["properties"], sync_schema()["$defs"]
    assert (properties["changes"]["default"], properties["deletes"]["default"]) == ("hash", "keep")
    assert parts["WatermarkSpelling"]["required"] == ["watermark"]
    assert parts["HashSpelling"]["additionalProperties"] is False
    text = json.dumps(properties)
    assert '"strategy"' not in text.replace(json.dumps(properties["description"]), "")
    assert "pattern" in json.dumps(properties["enabled"])


def test_the_pages_of_the_destinations_are_not_stale(tmp_path: Path) -> None:
    write_pages(tmp_path)
    made = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    kept = Path(__file__).parents[1] / "docs" / "destinations"
    assert {path.name: path.read_text(encoding="utf-8") for path in kept.iterdir()} == made, "run `make docs`"


def test_the_pages_of_the_sources_are_not_stale(tmp_path: Path) -> None:
    write_source_pages(tmp_path)
    made = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    kept = Path(__file__).parents[1] / "docs" / "sources"
    assert {path.name: path.read_text(encoding="utf-8") for path in kept.iterdir()} == made, "run `make docs`"


def found(thing: Any, key: str) -> list[str]:
    if isinstance(thing, dict):
        here = [thing[key]] if key in thing else []
        return here + [name for item in thing.values() for name in found(item, key)]
    return [name for item in thing for name in found(item, key)] if isinstance(thing, list) else []


def test_no_option_of_a_type_is_without_words() -> None:
    found = [(page(name, destinations.load(name)), "destination") for name in types()]
    found += [(source_page(name), "source") for name in sources.names()]
    silent = {
        f"{one['name']}: {part}.{option['option']}"
        for one, own in found
        for part, options in {"connection": one["connection"], own: one[own], **one.get("parts", {})}.items()
        for option in options
        if not option["description"]
    }
    assert not silent


def test_the_page_of_http_begins_with_a_project_that_is_valid(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "destinations" / "http.md").read_text(encoding="utf-8")
    before, example, after = text.split("```", 2)
    assert len(before.splitlines()) < 8
    settings, sync = example.removeprefix("yaml\n# retl.yml\n").split("# syncs/subscribers.yml\n")
    workshop = Workshop(tmp_path / "project")
    workshop.write("retl.yml", settings)
    workshop.write("syncs/subscribers.yml", sync)
    workshop.warehouse(
        "CREATE TABLE subscribers AS SELECT 'a' AS user_id, 'a@example.com' AS email, 1 AS score"
    )
    assert workshop.retl("validate").code == 0
    request = workshop.json("explain", "subscribers", "--key", "a")["rows"][0]["request"]
    assert request.startswith("PUT /v1/subscribers/a")
    assert '"attributes":{"score":1}' in request
    keys = after.split("## Keys of an operation")[1].split("## ")[0]
    assert all(f"| `{name}` |" in keys for name in ("method", "path", "wrap", "row", "max_rows"))
    shown = workshop.retl("destinations", "http").out
    assert (
        shown.index("# retl.yml")
        < shown.index("keys of an operation:")
        < shown.index("`find` is for objects")
    )
