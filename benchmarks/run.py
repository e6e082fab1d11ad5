"""Measure, say so, and write docs/benchmarks.md.

usage: python -m benchmarks.run [--rounds 5] [--rows 1000000] [--only postgres,redis,…] [--large] [--no-docs]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from benchmarks import cases, report
from benchmarks.timing import Series
from benchmarks.workbench import Workbench

SIZES = {"small": 1_000_000, "large": 10_000_000}


class Case(Protocol):
    @property
    def series(self) -> list[Series]: ...

    def round(self) -> None: ...


def main() -> int:
    words = argparse.ArgumentParser(prog="python -m benchmarks.run")
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--rows", type=int, default=SIZES["small"])
    words.add_argument("--only", default="postgres,contract,redis,http,start,others")
    words.add_argument("--large", action="store_true", help="growth to ten times the rows, and nothing else")
    words.add_argument("--no-docs", action="store_true")
    asked = words.parse_args()
    with ExitStack() as open_:
        folder = Path(open_.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        folder.chmod(0o755)

        def bench(name: str, rows: int) -> Workbench:
            (folder / name).mkdir()
            return open_.enter_context(Workbench(folder / name, rows))

        small = bench("small", asked.rows)
        makers: dict[str, Callable[[Workbench], Case]] = {
            "postgres": cases.Postgres,
            "contract": cases.Contract,
            "redis": cases.Redis,
            "http": cases.Http,
            "start": cases.Start,
            "others": cases.Others,
        }
        found: list[Case] = []
        if asked.large:
            found = [_rounds(cases.Growth(small, bench("large", 10 * asked.rows)), asked.rounds)]
        else:
            found = [_rounds(makers[name](small), asked.rounds) for name in asked.only.split(",")]
    series = [one for case in found for one in case.series]
    phases = next((case.phases for case in found if isinstance(case, cases.Postgres)), [])
    if phases:
        print(report.phase_table(phases))
    if not asked.no_docs:
        print("written:", report.write(series, phases, asked.rows, asked.rounds, large=asked.large))
    return 1 if any(one.verdict == "MISSED" for one in series) else 0


def _rounds(case: Case, number: int) -> Case:
    for _ in range(number):
        case.round()
    for one in case.series:
        print(one.line(), flush=True)
    return case


if __name__ == "__main__":
    sys.exit(main())
