"""The pages under docs/ say what is so: every code is explained, every proof that is named exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from retl import errors
from retl.run.guards import Refusal

ROOT = Path(__file__).parents[1]
CODE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")
ROW = re.compile(r"^\| `([A-Z0-9_]+)` \| (\S.*\S) \|$", re.MULTILINE)
# Which argument of a call is a code that a user may meet.
SAYS = {name: 0 for name, kind in vars(errors).items() if isinstance(kind, type)}
SAYS |= {Refusal.__name__: 0, "Verdict": 1, "RowResult": 1, "Problem": 2, "_blocked": 1}
# The sample campaign tool's own answers are its own.
ELSEWHERE = ("retl_demo/campaigns.py",)


def codes() -> set[str]:
    """Every code that stands in a call in src, or names a fault of a key."""
    found = set()
    for path in sorted((ROOT / "src").rglob("*.py")):
        if str(path).endswith(ELSEWHERE):
            continue
        text = path.read_text(encoding="utf-8")
        found |= set(re.findall(r"\b(?:KEY_NULL|KEY_BLANK|KEY_DUPLICATE|KEY_TYPE)\b", text))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SAYS:
                arguments = node.args[SAYS[node.func.id] :][:1]
                arguments += [one.value for one in node.keywords if one.arg == "code"]
                said = {one.value for one in arguments if isinstance(one, ast.Constant)}
                found |= {code for code in said if isinstance(code, str) and CODE.fullmatch(code)}
    return found


def explained() -> dict[str, str]:
    return dict(ROW.findall((ROOT / "docs" / "errors.md").read_text(encoding="utf-8")))


def test_every_code_has_a_sentence_that_says_what_to_do() -> None:
    assert codes() - explained().keys() == set()
    assert all(sentence.endswith(".") for sentence in explained().values())


def test_no_code_is_explained_that_nobody_says() -> None:
    words = {
        word
        for path in (ROOT / "src").rglob("*.py")
        for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))
    }
    assert set(explained()) - words == set()


@pytest.mark.parametrize("page", ["guarantees.md", "guides/compliance.md", "guides/proved.md"])
def test_every_proof_that_is_named_exists(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > 20
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{test}"


def test_every_claim_of_the_compliance_page_names_what_shows_it_and_a_test() -> None:
    text = (ROOT / "docs" / "guides" / "compliance.md").read_text(encoding="utf-8")
    tables = text.split("| claim | shown by | held by |\n|---|---|---|\n")[1:]
    rows = [line.split(" | ") for table in tables for line in table.partition("\n\n")[0].splitlines()]
    assert len(rows) > 20
    assert [row for row in rows if len(row) != 3 or "::test_" not in row[2] or not row[1].strip()] == []


def test_every_line_of_the_proofs_of_undo_names_a_test_and_no_target_that_compares_is_left_out() -> None:
    text = (ROOT / "docs" / "guides" / "proved.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| \S.* \| (.*::test_.*) \| (?:\S.* )?\|$", text, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 25))
    adapters = (ROOT / "src" / "retl" / "destinations").glob("*/adapter.py")
    compare = {one.parent.name for one in adapters if "compares=" in one.read_text(encoding="utf-8")}
    listed = {"PostgreSQL": "postgres", "Redis, Valkey": "redis", "Dataverse": "dataverse"}
    listed |= {"HTTP with a `version` and conditions": "http"}
    raced = re.findall(r"^\| (.+?) \| atomic: .* \| yes \| all \|$", text, re.MULTILINE)
    assert compare == {listed[name] for name in raced}


def test_all_promises_stand_there_in_order() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    assert re.findall(r"^### (\d+)\. ", text, re.MULTILINE) == [str(n) for n in range(1, 34)]


def test_every_table_has_the_rule_under_its_head_that_markdown_needs() -> None:
    rule, bare = re.compile(r"\|(?: ?:?-+:? ?\|)+"), []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        lines = ["", *text.splitlines(), ""]
        for before, head, after in zip(lines, lines[1:], lines[2:], strict=False):
            if head.startswith("|") and not before.startswith("|") and not rule.fullmatch(after):
                bare.append(f"{page.relative_to(ROOT)}: {head}")
    assert bare == []
