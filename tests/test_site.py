"""The documentation as a whole: nothing in it is stale, nothing leads nowhere, every page can be found."""

from __future__ import annotations

import re
from collections.abc import Iterator
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


@pytest.mark.parametrize("page", sorted(made()), ids=lambda page: str(page.relative_to(ROOT)))
def test_no_generated_page_is_stale(page: Path) -> None:
    assert page.read_text(encoding="utf-8") == made()[page], "run `make docs`"


def test_docs_reference_holds_generated_pages_and_nothing_else() -> None:
    assert {one for one in made() if one.parent.name == "reference"} == set((DOCS / "reference").iterdir())


def anchors(page: Path) -> set[str]:
    """What can stand after # for a page: its headings in small letters, blanks as dashes."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", NAME.sub("", title.lower()).strip()) for title in titles}


def links(page: Path) -> Iterator[tuple[Path, str]]:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            yield (page.parent / target).resolve() if target else page, anchor


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_every_anchor_leads_somewhere(page: Path) -> None:
    for target, anchor in links(page):
        assert target.exists(), target
        if anchor:
            assert anchor in anchors(target), f"{target}#{anchor}"
        if page.is_relative_to(DOCS):
            assert target.is_relative_to(DOCS), f"{target} is no page of the site"


def test_every_page_can_be_found_in_the_site() -> None:
    site: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = {DOCS / path for path in leaves(site["nav"])}
    assert all(path.is_file() for path in listed)
    for start in (DOCS / "reference" / "destinations.md", DOCS / "reference" / "decisions.md"):
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
    known = set(Sync.model_fields) | set(Project.model_fields)
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
