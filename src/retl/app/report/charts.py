"""Charts as inline SVG. Bars are placed in percent, so that they fit every width and no text is scaled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

HEIGHT = 120  # px
ROOM = 0.92  # of the height for the highest bar


@dataclass(frozen=True)
class Bar:
    """One column: its parts from the bottom up as (value, colour), and what it stands for in a sentence."""

    parts: Sequence[tuple[float, str]]
    says: str

    @property
    def total(self) -> float:
        return sum(value for value, _ in self.parts)


def share(part: float, colour: str) -> str:
    """A horizontal bar of so much of the width; the number stands beside it, so readers skip the bar."""
    return (
        '<svg width="100%" height="12" aria-hidden="true" focusable="false">'
        f'<rect class="fill-{colour}" width="{_percent(part)}" height="12" rx="2"/></svg>'
    )


def columns(title: str, bars: Sequence[Bar], ends: tuple[str, str], highest: str) -> str:
    """A figure of columns from left to right; `ends` name the first and the last, `highest` the scale.
    A value that is not zero is seen, however small."""
    top = max((bar.total for bar in bars), default=0.0)
    slot = 1 / max(len(bars), 1)
    drawn = "".join(_column(bar, index * slot, slot, top) for index, bar in enumerate(bars))
    first, last = ends
    return (
        f"<figure><figcaption>{escape(title)}; highest {highest}</figcaption>"
        f'<svg width="100%" height="{HEIGHT}" role="img" aria-label="{escape(title)}">{drawn}</svg>'
        f'<div class="axis"><span>{first}</span><span>{last}</span></div></figure>'
    )


def _column(bar: Bar, left: float, slot: float, top: float) -> str:
    width = min(slot * 0.8, 0.2)
    drawn, base = [], 1.0
    for value, colour in bar.parts:
        if value <= 0 or top <= 0:
            continue
        height = max(value / top * ROOM, 0.015)
        base -= height
        drawn.append(
            f'<rect class="fill-{colour}" x="{_percent(left + slot * 0.1)}" y="{_percent(max(base, 0))}"'
            f' width="{_percent(width)}" height="{_percent(height)}"/>'
        )
    return f"<g><title>{escape(bar.says)}</title>{''.join(drawn)}</g>"


def _percent(part: float) -> str:
    return f"{min(max(part, 0.0), 1.0) * 100:.3f}%"
