"""Does a test notice when a line that a promise stands on is changed? `make mutate`, or `python -m tests.mutation`.

mutmut changes the modules named under `[tool.mutmut]`, one expression at a time, and runs the tests that come
by. A change that no test notices (a survivor) is either a gap, and gets a test, or breaks no promise, and
stands in docs/decisions/0011-mutants.md with the reason. Prints a table, and the survivors that are not
listed in the form of that page; ends with 1 if there are any. `--keep` looks at the last run again.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "decisions" / "0011-mutants.md"
WORKERS = 2
NOTICED = ("killed",)
CUT_OFF = ("timeout", "segfault")  # it hung, or the process died of it: no run would pass for good
SQL = re.compile(
    r"\b(select|insert|update|delete|copy|create|from|where|case|join|varchar|bigint|retl_[a-z]+)\b",
    re.IGNORECASE,
)
TEXT = re.compile(r"'[^']*'")


@dataclass(frozen=True)
class Change:
    """One change of one function, named by its lines: numbers shift with every edit."""

    function: str
    removed: tuple[str, ...]
    added: tuple[str, ...]

    @classmethod
    def read(cls, function: str, lines: list[str]) -> Change:
        """From the lines of a diff without context."""
        sides = {
            sign: tuple(line[1:].strip() for line in lines if line.startswith(sign)) for sign in ("-", "+")
        }
        return cls(function, sides["-"], sides["+"])

    @property
    def is_same_sql(self) -> bool:
        """SQL in capitals or in small letters, but for the texts in it: every database reads it alike."""
        before, after = "\n".join(self.removed), "\n".join(self.added)
        same_texts = TEXT.findall(before) == TEXT.findall(after)
        return bool(SQL.search(before)) and same_texts and before.lower() == after.lower()

    def __str__(self) -> str:
        return "\n".join([*(f"- {line}" for line in self.removed), *(f"+ {line}" for line in self.added)])


@dataclass(frozen=True)
class Mutant:
    """A change, and what the tests said of it."""

    module: str
    status: str
    change: Change

    @property
    def survived(self) -> bool:
        return self.status not in (*NOTICED, *CUT_OFF) and not self.change.is_same_sql


def run() -> None:
    """All mutants from the beginning; what a former run found is forgotten."""
    shutil.rmtree(ROOT / "mutants", ignore_errors=True)
    mutmut = Path(sys.executable).with_name("mutmut")
    done = subprocess.run(
        [mutmut, "run", "--max-children", str(WORKERS)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{done.stdout[-5000:]}\nmutmut ended with {done.returncode}")


def mutants() -> Iterator[Mutant]:
    """What the last run found."""
    from mutmut.mutation.data import SourceFileMutationData
    from mutmut.mutation.diff_apply import get_diff_for_mutant
    from mutmut.stats import status_by_exit_code
    from mutmut.utils.file_utils import walk_mutatable_files
    from mutmut.utils.format_utils import get_module_from_key, orig_function_and_class_names_from_key

    for path in walk_mutatable_files():
        found = SourceFileMutationData(path=path)
        found.load()
        for name, code in found.exit_code_by_key.items():
            module = get_module_from_key(name)
            function, owner = orig_function_and_class_names_from_key(name)
            diff = get_diff_for_mutant(name, path=path).split("\n")[2:]
            place = ".".join(part for part in (module, owner, function) if part)
            yield Mutant(module, status_by_exit_code[code], Change.read(place, diff))


def listed(text: str) -> set[Change]:
    """The changes of a page: under a heading `### function`, in blocks of diff, parted by empty lines."""
    changes: set[Change] = set()
    function, lines, inside = "", [], False
    for line in [*text.split("\n"), ""]:
        if line.startswith("### "):
            function = line.removeprefix("### ").strip(" `")
        inside = line == "```diff" or (inside and line != "```")
        if inside and line[:1] in ("-", "+"):
            lines.append(line)
        elif lines:
            changes.add(Change.read(function, lines))
            lines = []
    return changes


def report(found: list[Mutant], known: set[Change]) -> bool:
    """Print what was found; True if every survivor is known."""
    row = "{:<22}{:>9}{:>9}{:>9}{:>10}{:>10}"
    print(row.format("module", "mutants", "killed", "cut off", "same SQL", "survived"))
    for module, group in groupby(sorted(found, key=lambda one: one.module), lambda one: one.module):
        those = list(group)
        killed, cut_off = (sum(one.status in end for one in those) for end in (NOTICED, CUT_OFF))
        survived = sum(one.survived for one in those)
        same = len(those) - killed - cut_off - survived
        print(row.format(module, len(those), killed, cut_off, same, survived))
    survivors = {one.change for one in found if one.survived}
    for title, changes in (
        ("cut off", {one.change for one in found if one.status in CUT_OFF}),
        (f"in {PAGE.name}, and noticed by now", known - survivors),
        (f"survived, and not in {PAGE.name}", survivors - known),
    ):
        if changes:
            print(f"\n{title}:")
        ordered = sorted(changes, key=lambda one: (one.function, one.removed, one.added))
        for function, same in groupby(ordered, lambda one: one.function):
            print(f"\n### `{function}`\n\n```diff")
            print("\n\n".join(map(str, same)))
            print("```")
    return survivors <= known


def main() -> int:
    started = time.monotonic()
    if "--keep" not in sys.argv[1:]:
        run()
    found = list(mutants())
    passed = report(found, listed(PAGE.read_text()))
    print(f"\n{len(found)} mutants in {time.monotonic() - started:.0f} s")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
