"""Every sentence of README and of the guides is held by a test, or claims nothing: see claims.py."""

from __future__ import annotations

import re

from tests.claims import PAGES, ROOT, claims, faults, names_in

SILENT = 45  # lines that claim nothing, at most


def test_every_sentence_of_the_pages_has_a_line_that_knows_its_text() -> None:
    assert faults(claims()) == []


def test_a_changed_an_added_and_a_lost_sentence_are_found() -> None:
    table = claims()
    first = table[0]
    assert faults([one for one in table if one.words != first.words or one.page != first.page])
    assert faults([first.__class__(first.page, first.words, "0", first.test), *table[1:]])
    assert faults([*table, first.__class__(first.page, "No page begins so", first.digest, first.test)])


def test_a_line_is_there_once_and_its_page_exists() -> None:
    table = claims()
    assert len({(one.page, one.words, one.test) for one in table}) == len(table)
    assert {one.page for one in table} == set(PAGES)


def test_every_test_that_holds_a_claim_exists() -> None:
    named = {one.test for one in claims()} - {"-"}
    assert all(re.fullmatch(r"tests/[\w/]+\.py::test_\w+", name) for name in named)
    gone = [name for name in named if name.partition("::")[2] not in names_in(name.partition("::")[0])]
    assert gone == []
    assert (ROOT / "tests" / "claims.tsv").read_text(encoding="utf-8").endswith("\n")


def test_few_lines_claim_nothing() -> None:
    assert len([one for one in claims() if one.test == "-"]) <= SILENT
