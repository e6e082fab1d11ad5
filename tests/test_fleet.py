"""Nobody joins unproved: every registered destination has a module that runs the whole suite."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

from retl import destinations
from tests.destinations.suite import Suite
from tests.presets.proof import Proof


@pytest.mark.parametrize("name", destinations.names())
def test_every_destination_passes_the_suite(name: str) -> None:
    module = import_module(f"tests.destinations.test_{name}")
    classes = [
        thing
        for thing in vars(module).values()
        if isinstance(thing, type) and issubclass(thing, Suite) and thing is not Suite
    ]
    assert any(cls.__name__.startswith("Test") for cls in classes), f"{module.__name__} has no Test…(Suite)"
    for cls in classes:
        replaced = [test for test in vars(cls) if test.startswith("test_") and hasattr(Suite, test)]
        assert not replaced, f"{cls.__name__} replaces {replaced}"
        marks = [getattr(cls, "pytestmark", None), getattr(module, "pytestmark", None)]
        assert marks == [None, None], f"{cls.__name__} is marked, so it could be skipped"


@pytest.mark.parametrize("name", destinations.preset_names())
def test_every_preset_passes_its_proof(name: str) -> None:
    module = import_module(f"tests.presets.test_{name}")
    proofs = [
        thing
        for thing in vars(module).values()
        if isinstance(thing, type) and issubclass(thing, Proof) and thing is not Proof
    ]
    assert proofs
    for proof in proofs:
        assert proof.__name__.startswith("Test")
        assert proof.preset == name
        assert not [test for test in vars(proof) if test.startswith("test_") and hasattr(Proof, test)]
        assert [getattr(proof, "pytestmark", None), getattr(module, "pytestmark", None)] == [None, None]


@pytest.mark.parametrize("name", destinations.preset_names())
def test_every_preset_says_where_it_comes_from(name: str) -> None:
    preset = destinations.load(name).preset  # type: ignore[attr-defined]
    assert preset.evidence
    assert preset.limits.share == 0.5
    assert set(preset.evidence) in ({"docs"}, {"own"}) or (
        {"recording", "contract", "golden"} & set(preset.evidence)
    )


@pytest.mark.parametrize("page", ["README.md", "docs/reference/catalogue.md"])
def test_the_number_of_presets_is_counted(page: str) -> None:
    text = (Path(__file__).parents[1] / page).read_text(encoding="utf-8")
    (number,) = re.findall(r"(\d+) (?:presets|vendors' APIs as data)", text)
    assert int(number) == len(destinations.preset_names())
