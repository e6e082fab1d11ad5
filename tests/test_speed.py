"""The fast path is still there: whole processes beside the floor of the same minute, with a generous bound.

It measures ratios, never seconds; `make bench` measures properly.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median

from benchmarks.cases import summary
from benchmarks.workbench import CONTRACT, TO_POSTGRES, Workbench

ROWS = 100_000
AT_MOST = 3.0  # row-by-row COPY or executemany would be 4.5 to 10 times as slow


def test_a_full_load_takes_no_longer_than_a_few_by_hand() -> None:
    with tempfile.TemporaryDirectory() as folder, Workbench(Path(folder), ROWS) as bench:
        bench.write_sync("users", TO_POSTGRES + CONTRACT)
        ratios = []
        for _ in range(3):
            bench.forget()
            starting = bench.retl("validate").seconds  # interpreter and imports: not what is asked here
            floor = bench.load_by_hand().seconds
            bench.forget()
            load = bench.sync("users")
            assert summary(load)["inserted"] == ROWS
            ratios.append((load.seconds - starting) / floor)
    assert median(ratios) <= AT_MOST, ratios
