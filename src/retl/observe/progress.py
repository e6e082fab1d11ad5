"""Progress on a terminal: phase, rows, rate and remaining time, drawn on stderr from events.

One line for the whole invocation, because several syncs share one terminal. It only draws: its numbers are
used nowhere else, and it never fails a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import Any

import structlog
from msgspec import Struct
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from retl.observe import log
from retl.observe.summary import PHASES

WIDE = 100  # columns of a terminal that has room for bar, rate and elapsed time


class What(ProgressColumn):
    """Sync, phase and rows read. It gives way first: a number that is cut would be another number."""

    def render(self, task: Task) -> Text:
        return Text(task.description, no_wrap=True, overflow="ellipsis")


class Count(ProgressColumn):
    """Rows that are done, of all."""

    def render(self, task: Task) -> Text:
        total = "?" if task.total is None else f"{int(task.total):,}"
        return Text(f"{int(task.completed):,}/{total}")


class Rate(ProgressColumn):
    """Rows per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} rows/s" if task.speed else "")


def columns(width: int) -> list[ProgressColumn]:
    """The parts of the line that a terminal of this width has room for."""

    def whole() -> Column:
        return Column(no_wrap=True)

    remaining = TimeRemainingColumn(table_column=whole())
    if width < WIDE:
        return [What(), Count(table_column=whole()), remaining]
    bar, elapsed = BarColumn(bar_width=24), TimeElapsedColumn(table_column=whole())
    return [What(), bar, Count(table_column=whole()), Rate(table_column=whole()), elapsed, remaining]


@contextmanager
def shown(begun: float | None = None) -> Iterator[None]:
    """While open, events update a progress line on stderr. The line is removed at the end. Its clock counts
    from `begun` (monotonic), as the seconds of the first run do."""
    console = Console(stderr=True)
    with Progress(*columns(console.width), console=console, transient=True) as progress:
        drawing = Drawing(progress, begun)
        log.listen(drawing)
        try:
            yield
        finally:
            log.unlisten(drawing)


class _Sync(Struct):
    """How far a sync is: the furthest phase of the path, and the rows that were read. `share`: of a mart that
    is being read and whose rows nobody knows."""

    phase: int = 0
    rows: int | None = None
    share: float | None = None
    wait: str = ""

    def __str__(self) -> str:
        if self.wait:
            return self.wait
        part = "" if self.share is None else f", {self.share:.0%} of the mart read"
        read = part if self.rows is None else f", {self.rows:,} rows read"
        return f"{PHASES[self.phase]} ({self.phase + 1} of {len(PHASES)}){read}"


class Drawing:
    """The listener: `guards_judged` gives the number of rows to send, `batch_acknowledged` the rows sent.

    The target is asked while the mart is read, so events of phases come in turn. What is shown only goes
    forward, in the order of the path: the guards come after the judge."""

    def __init__(self, progress: Progress, begun: float | None = None) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=None)
        if begun is not None:
            progress.tasks[-1].start_time = begun
        self._lock = Lock()
        self._expected = 0
        self._syncs: dict[str, _Sync] = {}

    def __call__(self, event: str, fields: Mapping[str, Any]) -> None:
        name = str(structlog.contextvars.get_contextvars().get("sync") or "")
        with self._lock:
            match event:
                case "phase":
                    self._show(name, phase=fields["phase"])
                case "mart_frozen":
                    self._show(name, rows=fields.get("rows"))
                case "mart_reading":
                    self._show(name, rows=fields.get("rows"), share=fields.get("share"))
                case "guards_judged":
                    self._expected += fields.get("changes", 0)
                    self._progress.update(self._task, total=self._expected or None)
                case "batch_acknowledged":
                    self._progress.update(self._task, advance=fields.get("rows", 0))
                    if name in self._syncs:
                        self._show(name)
                case "room_awaited" | "retry_awaited" if fields["seconds"] >= log.NOTABLE:
                    why = "the connection's limits" if event == "room_awaited" else "another attempt"
                    self._show(name, wait=f"waits {fields['seconds']:,.0f} s for {why}")
                case "mart_locked":
                    waiting = f"waiting for process {fields.get('writer')} to finish writing the warehouse"
                    self._progress.update(self._task, description=waiting)

    def _show(
        self,
        name: str,
        phase: str | None = None,
        rows: int | None = None,
        share: float | None = None,
        wait: str = "",
    ) -> None:
        """Show what is known now. Whatever happens next ends a `wait`."""
        sync = self._syncs.setdefault(name, _Sync())
        if phase in PHASES and (phase != "guard" or sync.phase >= PHASES.index("judge")):
            sync.phase = max(sync.phase, PHASES.index(phase))
        sync.rows = sync.rows if rows is None else rows
        sync.share = sync.share if share is None else share
        sync.wait = wait
        self._progress.update(self._task, description=f"{name}: {sync}" if name else str(sync))
