"""The code stays readable: few rooms, short functions, and files that say what they do."""

from __future__ import annotations

import ast
from pathlib import Path

import retl

HOUSE = Path(retl.__file__).parent
FILES = sorted(HOUSE.rglob("*.py"))
ROOMS, LINES = 20, 50


def named(path: Path) -> str:
    return str(path.relative_to(HOUSE))


def test_the_package_has_few_rooms() -> None:
    rooms = {path.name for path in HOUSE.iterdir() if path.name != "__pycache__"}
    assert len(rooms) <= ROOMS, rooms


def test_every_file_says_what_it_does() -> None:
    silent = [named(path) for path in FILES if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


def test_no_function_is_longer_than_a_screen() -> None:
    found = [
        f"{named(path)}: {node.name}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > LINES
    ]
    assert found == []


def test_values_are_structs_which_cost_a_start_nothing() -> None:
    found = [
        named(path)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "dataclasses"
    ]
    assert found == [], "a frozen dataclass is compiled at each start: use msgspec.Struct"
