"""Facts → the page of a run: the numbers and charts that run.html shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import pairwise

from msgspec import Struct

from retl.app.html import Link, nowhere, number, render, span
from retl.app.report.facts import Facts
from retl.app.report.funnel import delivered, funnel
from retl.ledger import BatchRow, RunRow
from retl.observe.summary import PHASES

ROOM = 0.92  # height of the highest bar, as a share of the chart
LEAST = 0.015  # smallest height of a value that is not zero, so that it is visible
Part = tuple[float, str]  # value, colour


class Bar(Struct, frozen=True):
    """One column: its parts from the bottom up, and a sentence that describes it."""

    says: str
    parts: Sequence[Part]


class Chart(Struct, frozen=True):
    """Columns from left to right; `ends` are the labels of the first and last, `highest` is the scale."""

    title: str
    bars: Sequence[Bar]
    ends: tuple[str, str]
    highest: str

    def columns(self) -> Iterator[tuple[str, list[dict[str, float | str]]]]:
        """Per bar, its sentence and its rectangles in percent of the frame, so that they fit every width."""
        top = max((sum(value for value, _ in bar.parts) for bar in self.bars), default=0.0)
        slot = 100 / max(len(self.bars), 1)
        for index, bar in enumerate(self.bars):
            drawn, y = list[dict[str, float | str]](), 100.0
            for value, colour in bar.parts:
                if value > 0 and top > 0:
                    height = max(value / top * ROOM, LEAST) * 100
                    y = max(y - height, 0.0)
                    place = {
                        "x": slot * (index + 0.1),
                        "y": y,
                        "width": min(slot * 0.8, 20),
                        "height": height,
                    }
                    drawn.append({"colour": colour, **{name: f"{part:.3f}%" for name, part in place.items()}})
            yield bar.says, drawn


def page(facts: Facts, link: Link = nowhere) -> str:
    """The whole HTML document."""
    error = [facts.run.error] if facts.run.error else []
    problems = [(one["code"], one["message"], one.get("hint")) for one in [*facts.run.guards, *error]]
    return render(
        "run",
        "runs",
        link,
        facts=facts,
        run=facts.run,
        problems=list(dict.fromkeys(problems)),
        steps=funnel(facts.run.counts),
        history=list(_history(facts.runs)) if facts.runs else [],
        batches=_batches(facts.batches) if facts.batches else None,
        phases=PHASES,
        delivered=delivered,
        rate=_rate,
        state=_state,
    )


def _history(runs: Sequence[RunRow]) -> Iterator[Chart]:
    ends = (_day(runs[0].started_at), _day(runs[-1].started_at))
    sent = [(run, _moved(run), int(run.counts.get("rejected", 0))) for run in runs]
    bars = [
        Bar(
            f"{_day(run.started_at)}: {moved} delivered, {rejected} rejected",
            [(moved, "good"), (rejected, "bad")],
        )
        for run, moved, rejected in sent
    ]
    most = max(moved + rejected for _, moved, rejected in sent)
    yield Chart("rows delivered (deletes too) and, on top, rejected", bars, ends, f"{number(most)} rows")
    rates = [_rate(run) or 0.0 for run in runs]
    fast = [
        Bar(f"{_day(run.started_at)}: {rate:,.0f} rows/s", [(rate, "idle")])
        for run, rate in zip(runs, rates, strict=True)
    ]
    yield Chart("rows per second", fast, ends, f"{number(max(rates))} rows/s")
    if ages := _ages(runs):
        yield Chart(
            "age of the target's data before it was renewed",
            [Bar(f"{_day(at)}: {span(age)}", [(age, "warn")]) for at, age in ages],
            ends,
            span(max(age for _, age in ages)),
        )


def _ages(runs: Sequence[RunRow]) -> list[tuple[datetime, float]]:
    """The end of each delivery except the first, and the time since the one before."""
    delivered = (
        run for run in runs if run.status.startswith("SUCCESS") and run.purpose not in ("reconcile", "repair")
    )
    good = [run.finished_at for run in delivered if run.finished_at]
    return [(now, (now - before).total_seconds()) for before, now in pairwise(good)]


def _batches(batches: Sequence[BatchRow]) -> Chart:
    taken = [(one, one.duration_ms or 0) for one in batches]
    bars = [Bar(f"batch {one.number}: {ms} ms", [(float(ms), _state(one))]) for one, ms in taken]
    return Chart("time per batch", bars, ("first", "last"), span(max(ms for _, ms in taken) / 1000))


def _state(batch: BatchRow) -> str:
    return {"done": "good", "open": "warn"}.get(batch.status, "bad")


def _rate(run: RunRow) -> float | None:
    """Rows moved per second of the run, None if unknown."""
    return _moved(run) / run.seconds if run.seconds else None


def _moved(run: RunRow) -> int:
    """Rows and deletes that reached the target."""
    return delivered(run.counts) + int(run.counts.get("deleted", 0))


def _day(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M}"
