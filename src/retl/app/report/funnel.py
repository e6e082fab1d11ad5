"""The rows of a mart on their way to the target: read, left out at each step, delivered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

ARRIVED = ("inserted", "updated", "refreshed")
LOST_ON_THE_WAY = ("unchanged", "rejected", "skipped", "in_doubt", "not_attempted")
ALWAYS = ("unchanged", "rejected")  # shown even if zero, because people look for them


class Step(Struct, frozen=True):
    """`rows` of the mart with this result; `kind` is through (read, delivered), less or of which."""

    name: str
    rows: int
    share: float  # of the rows read, 0 to 1
    kind: str


def delivered(counts: Mapping[str, Any]) -> int:
    """Rows of the mart that reached the target, without deletes."""
    return sum(int(counts.get(name, 0)) for name in ARRIVED)


def funnel(counts: Mapping[str, Any]) -> list[Step]:
    """read, less unchanged, less rejected …, delivered, of which inserted …: the numbers of a run's counts,
    which add up to the rows read. Zero results are left out."""
    read = int(counts.get("read", 0))

    def step(name: str, rows: int, kind: str) -> Step:
        return Step(name.replace("_", " "), rows, rows / read if read else 0.0, kind)

    def some(names: tuple[str, ...], kind: str) -> list[Step]:
        present = [(name, int(counts.get(name, 0))) for name in names]
        return [step(name, rows, kind) for name, rows in present if rows or name in ALWAYS]

    return [
        step("read", read, "through"),
        *some(LOST_ON_THE_WAY, "less"),
        step("delivered", delivered(counts), "through"),
        *some(ARRIVED, "of which"),
    ]
