"""The documentation as a whole: nothing in it is stale, nothing leads nowhere, every page can be found."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import words
from pages.__main__ import made

from retl import destinations
from retl.project.definitions import Project, Sync

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
NAME = re.compile(r"[^\w\- ]")


@pytest.fixture(scope="module")
def generated() -> dict[Path, str]:
    return made()


def test_no_generated_page_is_stale(generated: dict[Path, str]) -> None:
    stale = [
        str(page.relative_to(ROOT))
        for page, text in sorted(generated.items())
        if not page.exists() or page.read_text(encoding="utf-8") != text
    ]
    assert stale == [], "run `make docs`"


def test_docs_reference_holds_generated_pages_and_nothing_else(generated: dict[Path, str]) -> None:
    assert {one for one in generated if one.parent.name == "reference"} == set((DOCS / "reference").iterdir())


@cache
def anchors(page: Path) -> set[str]:
    """What can stand after # for a page: its headings in small letters, blanks as dashes."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", NAME.sub("", title.lower()).strip()) for title in titles}


def links(page: Path) -> Iterator[tuple[Path, str]]:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            yield (page.parent / target).resolve() if target else page, anchor


def test_every_link_and_every_anchor_leads_somewhere() -> None:
    astray = [
        f"{page.relative_to(ROOT)}: {target.relative_to(ROOT)}#{anchor} {why}"
        for page in PAGES
        for target, anchor in links(page)
        if (why := wrong(page, target, anchor))
    ]
    assert astray == []


def wrong(page: Path, target: Path, anchor: str) -> str | None:
    """What is wrong with a link of this page, if anything."""
    if not target.exists():
        return "does not exist"
    if anchor and anchor not in anchors(target):
        return "has no such heading"
    if page.is_relative_to(DOCS) and not target.is_relative_to(DOCS):
        return "is no page of the site"
    return None


def test_every_page_can_be_found_in_the_site() -> None:
    site: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = {DOCS / path for path in leaves(site["nav"])}
    assert all(path.is_file() for path in listed)
    for start in (DOCS / "reference" / f"{kind}.md" for kind in ("sources", "destinations", "decisions")):
        listed |= {target for target, _ in links(start)}
    assert set(DOCS.rglob("*.md")) - listed == set()
    assert site["strict"] is True


def leaves(thing: Any) -> Iterator[str]:
    if isinstance(thing, str):
        yield thing
    else:
        for part in thing.values() if isinstance(thing, dict) else thing:
            yield from leaves(part)


def test_no_word_explains_a_key_that_is_no_more() -> None:
    known = {field.alias or name for model in (Sync, Project) for name, field in model.model_fields.items()}
    assert {path.partition(".")[0] for path in (*words.SYNC, *words.PROJECT)} <= known
    reference = "".join((DOCS / "reference" / f"{name}.md").read_text() for name in ("syncs", "project"))
    shown = set(re.findall(r"^\| `(\w+)` \|", reference, re.MULTILINE))
    assert {path.rpartition(".")[2] for path in (*words.SYNC, *words.PROJECT)} <= shown


@pytest.mark.parametrize("page", ["syncs", "project"])
def test_every_key_of_a_definition_is_explained(page: str) -> None:
    text = (DOCS / "reference" / f"{page}.md").read_text(encoding="utf-8")
    bare = re.findall(r"^\| `(\w+)` \|[^|\n]*\| *\|$", text, re.MULTILINE)
    assert bare == [], "say what they are for in pages/words.py, then `make docs`"


def test_readme_counts_the_presets() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{len(destinations.preset_names())} presets" in readme
