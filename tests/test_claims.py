"""Sentences of the pages and the tests that hold them, in claims.tsv: page, first words, test.

`-` in the place of a test says that a paragraph claims nothing about behaviour: it leads elsewhere, or tells
what to type, which tests of the pages run anyway.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CLAIMS = [
    line.split("\t")
    for line in (ROOT / "tests" / "claims.tsv").read_text(encoding="utf-8").splitlines()
    if line
]
WHOLE = ("README.md", "docs/guides/operating.md", "docs/guides/undo.md", "docs/guides/recipes.md")
FENCE = re.compile(r"^```.*?^```$|<!--.*?-->", re.MULTILINE | re.DOTALL)
SILENT = 12  # paragraphs of these pages that claim nothing, at most


def paragraphs(page: str) -> list[str]:
    """What a page says, without code, headings and pictures: each paragraph on one line. A list and a table
    are one paragraph each."""
    text = FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    found = (re.sub(r"^#+ .*\n?", "", one, flags=re.MULTILINE) for one in re.split(r"\n\s*\n", text))
    lines = (" ".join(one.split()) for one in found)
    return [one for one in lines if one and not one.startswith("![")]


@cache
def names_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def begins(words: str, paragraph: str) -> bool:
    """Whether a sentence, a cell or an item of the paragraph begins with these words."""
    starts = re.compile(rf"(^|[.:;!?)*] \**|\| |- |\d\. ){re.escape(words)}")
    return starts.search(paragraph) is not None


def test_every_claim_stands_on_its_page_and_is_told_once() -> None:
    assert all(len(claim) == 3 for claim in CLAIMS)
    lost = [claim for claim in CLAIMS if not any(begins(claim[1], one) for one in paragraphs(claim[0]))]
    assert lost == []
    assert len({tuple(claim) for claim in CLAIMS}) == len(CLAIMS)


def test_every_test_that_holds_a_claim_exists() -> None:
    named = {claim[2] for claim in CLAIMS} - {"-"}
    assert all(re.fullmatch(r"tests/[\w/]+\.py::test_\w+", name) for name in named)
    gone = [name for name in named if name.partition("::")[2] not in names_in(name.partition("::")[0])]
    assert gone == []


@pytest.mark.parametrize("page", WHOLE)
def test_no_paragraph_of_these_pages_is_without_a_line(page: str) -> None:
    words = [claim[1] for claim in CLAIMS if claim[0] == page]
    silent = [one for one in paragraphs(page) if not any(begins(few, one) for few in words)]
    assert silent == []


def test_few_paragraphs_claim_nothing() -> None:
    assert len([claim for claim in CLAIMS if claim[2] == "-"]) <= SILENT
