"""The examples of the guides on mapping and recipes are files of a project, and they do what the pages say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel

from retl.model import Formats
from retl.project.writing import FieldSource, RunValue, Transform
from tests.commands import Workshop

GUIDES = Path(__file__).parents[1] / "docs" / "guides"
FILE = re.compile(r'^```yaml title="([\w/.-]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def files(page: str) -> dict[str, str]:
    """Path → text of every file that the page shows."""
    found = FILE.findall((GUIDES / page).read_text(encoding="utf-8"))
    assert len(dict(found)) == len(found)
    return dict(found)


@pytest.fixture
def mapping(tmp_path: Path) -> Workshop:
    made = Workshop(tmp_path / "project")
    for path, text in files("mapping.md").items():
        made.write(path, text)
    return made


def test_every_example_of_the_mapping_sends_what_the_page_says(mapping: Workshop) -> None:
    (mapping.folder / "data" / "warehouse.duckdb").unlink()
    assert mapping.retl("validate").code == 0
    tested = mapping.json("test")
    assert {one["sync"] for one in tested["tests"] if one["passed"]} >= {
        "renamed",
        "nulls",
        "forms",
        "formats",
    }


def test_every_key_and_every_transform_of_a_mapping_has_an_example() -> None:
    syncs = [yaml.safe_load(text) for path, text in files("mapping.md").items() if path.startswith("syncs/")]
    fields = [one for sync in syncs for one in sync.get("fields", {}).values() if isinstance(one, dict)]
    assert {name for one in fields for name in one} == keys(FieldSource)
    said = str([one.get("transform") for one in fields])
    assert [name for name in get_args(Transform) if name not in said] == []
    page = (GUIDES / "mapping.md").read_text(encoding="utf-8")
    assert [name for name in get_args(RunValue) if f": {name}" not in page] == []
    assert {name for sync in syncs for name in sync.get("formats", {})} == keys(Formats)


def keys(model: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}


MARTS = """
CREATE TABLE customers (customer_id BIGINT, hubspot_id BIGINT, name VARCHAR, email VARCHAR, plan VARCHAR);
INSERT INTO customers VALUES (1, 101, 'Ada', 'ada@example.com', 'vip'), (2, 102, 'Bob', 'bob@example.com', 'vip'),
 (4, 104, 'Dan', 'dan@example.com', 'vip');
CREATE TABLE scores AS SELECT * FROM (VALUES (1, 7), (3, 9)) made (customer_id, score);
CREATE TABLE order_lines AS SELECT * FROM (VALUES (10, 1, 'tea'), (10, 2, 'cup')) made (order_id, line, what)
"""


def test_every_recipe_is_a_sync_that_fits_its_mart(tmp_path: Path) -> None:
    made = Workshop(tmp_path / "project")
    for path, text in files("recipes.md").items():
        made.write(path, text)
    made.warehouse(MARTS)
    valid = made.json("validate")["syncs"]
    assert [one["sync"] for one in valid if "not checked" in (one["note"] or "")] == []
    assert len(valid) == 7
