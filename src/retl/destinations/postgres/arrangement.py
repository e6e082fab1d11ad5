"""Arranges the rows of a batch that wait for each other. Pure: waits go in, an order comes out."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from retl.destinations.batch import RowResult
from retl.destinations.postgres.rules import Unique

SWAPPED = (
    "rows of the sync swap this value: that needs a DEFERRABLE constraint, or a column that can be NULL for a"
    " moment and no trigger after updates"
)


class Wait(Struct, frozen=True):
    """A staged row waits for another staged row, or (None) for one that is not in the batch. `unique`: until
    that row gives up a value; otherwise until it is there, or gone."""

    row: int
    other: int | None
    result: RowResult  # if it waits in vain
    unique: Unique | None = None


class Rival(Struct, frozen=True):
    """A staged row that asks for the same unique value as others; `holds`: it has the value already."""

    group: tuple[str, int]
    row: int
    holds: bool
    result: RowResult


class Arrangement(Struct):
    """`blocked` rows are refused; those in `order` follow each other; `lifted` rows give up a value of this
    index before."""

    blocked: dict[int, RowResult] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    lifted: list[tuple[int, Unique]] = field(default_factory=list)


def arrange(
    waits: Sequence[Wait], rivals: Sequence[Rival], may_lift: Callable[[Unique], bool]
) -> Arrangement:
    """Of rivals, the one that has the value or else the first gets it. Of rows that wait for each other, one
    is lifted where it may be; otherwise all are blocked."""
    found = Arrangement()
    dependents = defaultdict[int, list[Wait]](list)
    for wait in waits:
        if wait.other is not None:
            dependents[wait.other].append(wait)
    for wait in waits:
        if wait.other is None:
            deque(_block(found, dependents, wait.row, wait.result), 0)
    groups = defaultdict[tuple[str, int], list[Rival]](list)
    for rival in rivals:
        groups[rival.group].append(rival)
    for group in groups.values():
        left = sorted((one for one in group if one.row not in found.blocked), key=lambda one: not one.holds)
        for rival in left[1:]:
            deque(_block(found, dependents, rival.row, rival.result), 0)
    ordered = [one for one in waits if one.unique is not None and one.unique.immediate]
    _Queue(found, dependents, ordered, may_lift).run()
    return found


def _block(
    found: Arrangement, dependents: Mapping[int, Sequence[Wait]], row: int, result: RowResult
) -> Iterator[int]:
    """A row is refused, and with it all rows that wait for it: these are returned."""
    pending = [(row, result)]
    while pending:
        row, result = pending.pop()
        if row not in found.blocked:
            found.blocked[row] = result
            pending += [(one.row, one.result) for one in dependents.get(row, ())]
            yield row


class _Queue:
    """Rows that wait for unique values, in the order in which the values become free."""

    def __init__(
        self,
        found: Arrangement,
        dependents: Mapping[int, Sequence[Wait]],
        waits: Sequence[Wait],
        may_lift: Callable[[Unique], bool],
    ) -> None:
        self._found, self._dependents, self._may_lift = found, dependents, may_lift
        self._needs: dict[int, dict[int, set[Unique]]] = {}  # row → the rows it waits for
        self._followers = defaultdict[int, set[int]](set)
        self._results: dict[int, RowResult] = {}
        for one in waits:
            if one.other is not None and one.unique is not None and one.row not in found.blocked:
                self._needs.setdefault(one.row, {}).setdefault(one.other, set()).add(one.unique)
                self._followers[one.other].add(one.row)
                self._results[one.row] = one.result
        self._ready = deque(sorted(self._followers.keys() - self._needs.keys()))

    def run(self) -> None:
        while self._ready or self._needs:
            if not self._ready:
                self._break(self._cycle())
            while self._ready:
                row = self._ready.popleft()
                if row not in self._found.blocked:
                    self._found.order.append(row)
                    self._free(row)

    def _free(self, row: int, only: Unique | None = None) -> None:
        """The values of a row are free now, or only that of one index."""
        for follower in sorted(self._followers[row]):
            needs = self._needs.get(follower, {})
            left = needs.get(row, set()) - {only} if only is not None else set()
            if left:
                needs[row] = left
            elif needs.pop(row, None) is not None and not needs:
                del self._needs[follower]
                self._ready.append(follower)

    def _cycle(self) -> list[int]:
        """Rows that wait for each other, each for the next, and the last for the first."""
        row, path = next(iter(self._needs)), dict[int, None]()
        while row not in path:
            path[row] = None
            row = next(iter(self._needs[row]))
        rows = list(path)
        return rows[rows.index(row) :]

    def _break(self, cycle: Sequence[int]) -> None:
        for row, other in zip(cycle, [*cycle[1:], cycle[0]], strict=True):
            for unique in sorted(self._needs[row][other], key=lambda one: one.name):
                if self._may_lift(unique):
                    self._found.lifted.append((other, unique))
                    self._free(other, unique)
                    return
        for row in cycle:
            result = self._results[row]
            reason = f"{(result.reason or '').partition(':')[0]}: {SWAPPED}"
            self._found.blocked[row] = replace(result, reason=reason, order=None)
        waiting = [one for row in cycle for one in self._dependents[row]]
        blocked = [
            row for one in waiting for row in _block(self._found, self._dependents, one.row, one.result)
        ]
        for row in (*cycle, *blocked):
            self._needs.pop(row, None)
