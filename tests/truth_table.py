"""What became of each cell of the table in docs/guides/conflicts.md at each target, as the tests found it, printed at
the end of `make test-all`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

STRATEGIES = ("warehouse_wins", "target_wins", "newest_wins", "manual")
PROPERTY = "cell"  # what a test records: target, strategy, cell, what the target held


def shown(held: Sequence[Any] | None) -> str:
    """The row as phone, score and note; an empty field is a dash."""
    if held is None:
        return "no row"
    return " ".join("-" if value is None else str(value) for value in held)


def lines(found: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table per target: a line for each cell, a column for each strategy."""
    targets: dict[str, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for target, strategy, cell, held in found:
        targets[target][cell][strategy] = held
    for target, cells in sorted(targets.items()):
        strategies = [one for one in STRATEGIES if any(one in row for row in cells.values())]
        yield ""
        yield f"{target:34}" + "".join(f"{one:16}" for one in strategies)
        for cell, row in sorted(cells.items()):
            yield f"{cell:34}" + "".join(f"{row.get(one, ''):16}" for one in strategies)
