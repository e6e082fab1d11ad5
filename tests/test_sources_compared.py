"""The table that compares sources says what they declare and what tests saw, of every source."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from pages import compared

from retl import sources
from tests import seen, test_source_postgres

ROOT = Path(__file__).parents[1]


def rows() -> dict[str, dict[str, str]]:
    """By source, what the page says under each title."""
    titles, _, *lines = compared.sources_compared()[2].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (titles, *lines)]
    return {re.sub(r"\[(\w+)\].*", r"\1", one[0]): dict(zip(cells[0], one, strict=True)) for one in cells[1:]}


def test_every_source_is_compared_and_no_count_is_of_another(
    record_property: Callable[[str, object], None],
) -> None:
    record_property("sources", compared.sources_compared()[2])
    assert tuple(rows()) == sources.names()
    assert seen.types().keys() <= set(sources.names())
    unseen = {name for name in sources.names() if name not in seen.types()}
    assert all(sources.load(name).evidence.startswith("unproved") for name in unseen)
    exact = sum(one[3] is not None for one in test_source_postgres.VALUES)
    assert f"{exact} exact" in rows()["postgres"]["types"]


@pytest.mark.parametrize("name", sources.names())
def test_a_source_promises_only_what_it_declares(name: str) -> None:
    kind, row = sources.load(name), rows()[name]
    assert (row["snapshot"] == "yes") == kind.one_state
    assert (row["feed"] == "yes") == ("cdf" in kind.changes)
    assert ("complete" in row["deletes"]) == (not kind.one_state)
    assert row["evidence"] == kind.evidence


def test_figures_are_those_of_the_last_measurement() -> None:
    figures = json.loads((ROOT / "benchmarks" / "sources.json").read_text(encoding="utf-8"))
    assert figures["rows"] == 10_000_000
    for name, found in figures["sources"].items():
        assert found["ours_processor"] > 0 < found["bare_processor"]
        assert f"{found['ours_megabytes']:,} MB" in rows()[name]["memory"]
