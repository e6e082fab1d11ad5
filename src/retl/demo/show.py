"""`retl demo`: the whole story on this machine, told by real commands against real servers.

Rows land; a run is killed half way and run again; one row in a hundred changes and only that moves. Every
number is counted twice: by retl, and by plain SQL that asks the warehouse and the targets themselves.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from retl.demo import oracle, warehouse
from retl.demo.oracle import LANDINGS, Landing, Motion, Rows
from retl.demo.stage import Stage, interruptible, open_stage, project

ROWS_SHOWN = 5
STATISTICS_WITHIN = 10.0  # seconds until PostgreSQL has counted what a closed connection wrote
# One target of each kind loses its run: by SIGKILL, right after the n-th batch was acknowledged.
KILLS = (("product_recommendations", 9), ("email_triggers", 2), ("churn_campaign", 7))
# Redis takes an insert or an update as one SET; so does the campaign tool.
_ONLY_TOTALS = ("redis", "campaigns")


@dataclass
class Story:
    """The console, and what turned out wrong so far."""

    console: Console
    wrong: list[str] = field(default_factory=list)

    def chapter(self, title: str) -> None:
        self.console.print()
        self.console.print(Text(title, style="bold"))

    def say(self, text: str) -> None:
        self.console.print(Text("  " + text))

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
        drawn = Table(box=box.SIMPLE_HEAD, title=Text("  " + title, style="dim"), title_justify="left")
        numeric = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(headers))]
        for header, right in zip(headers, numeric, strict=True):
            drawn.add_column(Text(header), justify="right" if right else "left", no_wrap=True)
        for row in rows:
            drawn.add_row(*(Text(_cell(value)) for value in row))
        self.console.print(drawn)

    def expect(self, true: bool, sentence: str) -> None:
        """A sentence that must hold; the demo fails with it otherwise."""
        if not true:
            self.wrong.append(sentence)

    @contextmanager
    def waiting(self, doing: str) -> Iterator[None]:
        """On a terminal, say what is going on until it is done."""
        with self.console.status(Text(doing, style="dim")):
            yield


def run(directory: Path | None, keep: bool) -> int:
    """Play the demo in `directory` (a temporary one if None). Returns 0 if every number is as it must be,
    else 1. Stops all it started; removes the project too unless `keep`."""
    story = Story(Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 110))
    began = time.monotonic()
    with interruptible(), project(directory, keep) as folder:
        with story.waiting("starting PostgreSQL, Valkey and a campaign tool"):
            opened = open_stage(folder)
            stage = opened.__enter__()
        try:
            _opening(story, stage)
            before = _killed(story, stage)
            _landed(story, stage)
            _changed(story, stage, before)
        finally:
            opened.__exit__(None, None, None)
        _closing(story, folder, keep, time.monotonic() - began)
    return 1 if story.wrong else 0


def _opening(story: Story, stage: Stage) -> None:
    postgres, redis = stage.targets.postgres, stage.targets.redis
    story.chapter("A warehouse, six syncs, three real servers")
    story.table(
        ("what", "where"),
        [
            ("warehouse (DuckDB)", "data/warehouse.duckdb: 20,000 made-up users in four marts"),
            ("PostgreSQL", f"{postgres['host']}:{postgres['port']}"),
            ("Valkey (speaks Redis)", f"{redis['host']}:{redis['port']}"),
            ("campaign tool (HTTP)", stage.targets.campaigns.url.removeprefix("http://")),
        ],
    )


def _killed(story: Story, stage: Stage) -> dict[str, Rows]:
    """The first delivery, killed with SIGKILL three times, then run to its end. Returns what must be
    there."""
    wanted = {one.sync: oracle.expected(stage.warehouse, one) for one in LANDINGS}
    story.chapter("The first delivery, killed half way")
    for name, batch in KILLS:
        landing = _landing(name)
        with story.waiting(f"retl sync --sync {name}"):
            ran = stage.sync("--sync", name, crash_at=f"batch_acknowledged:{batch}")
            there = len(oracle.held(stage.targets, landing)) if oracle.exists(stage.targets, landing) else 0
        total = len(wanted[name])
        story.say(
            f"kill -9 in retl sync --sync {name}: {there:,} of {total:,} rows are at the target"
        )
        story.expect(ran.code == -9, f"{name}: the run was to die by SIGKILL, but ended with {ran.code}")
        story.expect(0 < there < total, f"{name}: the kill was to come half way, not at {there} of {total}")
    with story.waiting("retl sync --all"):
        ran = stage.sync("--all")
    story.say("and again, as if nothing had happened: retl sync --all")
    _runs(story, ran.syncs)
    story.expect(ran.code == 0, f"retl sync --all ended with exit code {ran.code}")
    _compare(story, stage, wanted)
    return wanted


def _landed(story: Story, stage: Stage) -> None:
    story.chapter("What landed")
    for landing in LANDINGS:
        found = sorted(oracle.held(stage.targets, landing), key=_by_number)[:ROWS_SHOWN]
        where = {"redis": "Valkey, reco:{user_id}", "campaigns": "campaign tool, GET /v1/recipients"}
        story.table(landing.columns, found, where.get(landing.at, f"PostgreSQL, {landing.at}"))


def _changed(story: Story, stage: Stage, before: dict[str, Rows]) -> None:
    story.chapter("One user in a hundred changes")
    counted = {one.sync: _settled(stage, one) for one in LANDINGS}
    changed = warehouse.change(stage.warehouse)
    wanted = {one.sync: oracle.expected(stage.warehouse, one, before[one.sync]) for one in LANDINGS}
    due = {one.sync: oracle.motion(before[one.sync], wanted[one.sync]) for one in LANDINGS}
    with story.waiting("retl sync --all"):
        ran = stage.sync("--all")
    story.expect(ran.code == 0, f"retl sync --all ended with exit code {ran.code}")
    story.say(f"{changed} of 20,000 users searched and spent more; every mart was computed anew: retl sync --all")
    _runs(story, ran.syncs)
    moved = {one.sync: _moved(stage, one, counted[one.sync], due[one.sync]) for one in LANDINGS}
    story.table(
        ("sync", "inserts due", "updates due", "deletes due", "inserted", "updated", "deleted"),
        [(name, *astuple(due[name]), *astuple(moved[name])) for name in due],
        "by plain SQL in the warehouse, and by the target's own statistics (Valkey, campaigns: only totals)",
    )
    for landing in LANDINGS:
        name = landing.sync
        right = moved[name] == _visible(landing, due[name])
        story.expect(right, f"{name}: {due[name]} was due, but {moved[name]} was written")
        told = next((one for one in ran.syncs if one["sync"] == name), {})
        said = Motion(*(told.get(each, -1) for each in ("inserted", "updated", "deleted")))
        story.expect(said == due[name], f"{name}: {due[name]} was due, but retl reports {said}")
    if all(moved[one.sync] == _visible(one, due[one.sync]) for one in LANDINGS):
        story.say("Only that moved.")
    _compare(story, stage, wanted)


def _closing(story: Story, folder: Path, keep: bool, seconds: float) -> None:
    story.console.print()
    for sentence in story.wrong:
        story.console.print(Text(f"WRONG: {sentence}", style="bold red"))
    if not story.wrong:
        story.console.print(Text("Every number is as it must be.", style="bold green"))
    story.say(f"{seconds:.0f} s. The servers are stopped, and their data are gone.")
    if keep:
        story.say(f"The project stays in {folder}. To go on with servers of your own:")
        for line in (
            "cp config.example.env config.env   and fill in where they are",
            "retl validate                      definitions and SQL, offline",
            "retl sync --dry-run                what a run would do; writes nothing",
        ):
            story.say(f"  {line}")
    else:
        story.say("--keep leaves the project behind, to read and to run.")


def _runs(story: Story, syncs: Sequence[dict[str, Any]]) -> None:
    names = ("read", "unchanged", "inserted", "updated", "deleted", "rejected", "seconds")
    rows = [(one["sync"], *(one[name] for name in names)) for one in syncs]
    story.table(("sync", *names), rows, "what retl reports")


def _compare(story: Story, stage: Stage, wanted: dict[str, Rows]) -> None:
    """Count every row at every target against plain SQL in the warehouse."""
    with story.waiting("comparing every row of warehouse and targets"):
        found = {one.sync: oracle.held(stage.targets, one) for one in LANDINGS}
        wrong = {one.sync: oracle.compare(wanted[one.sync], found[one.sync], one) for one in LANDINGS}
    story.table(
        ("sync", "must be there", "is there", "lost", "doubled", "altered", "foreign"),
        [(name, len(wanted[name]), len(found[name]), *astuple(one)) for name, one in wrong.items()],
        "every row and value of the targets against plain SQL in the warehouse",
    )
    lost = sum(one.lost + one.altered for one in wrong.values())
    doubled = sum(one.doubled + one.foreign for one in wrong.values())
    story.say(f"{lost} lost, {doubled} doubled.")
    for name, one in wrong.items():
        story.expect(not one, f"{name}: {one}")


def _moved(stage: Stage, landing: Landing, before: Motion, due: Motion) -> Motion:
    """What the target counted since `before`, once it has counted at least what was due."""
    deadline = time.monotonic() + STATISTICS_WITHIN
    while True:
        now = oracle.written(stage.targets, landing)
        moved = Motion(*(b - a for a, b in zip(astuple(before), astuple(now), strict=True)))
        if moved == _visible(landing, due) or time.monotonic() > deadline:
            return moved
        time.sleep(0.1)


def _settled(stage: Stage, landing: Landing) -> Motion:
    """The target's statistics, once two looks at them agree."""
    former = oracle.written(stage.targets, landing)
    while landing.is_table:
        time.sleep(0.2)
        now = oracle.written(stage.targets, landing)
        if now == former:
            break
        former = now
    return former


def _visible(landing: Landing, due: Motion) -> Motion:
    """What of a motion the target's statistics can tell."""
    return Motion(updated=due.inserted + due.updated) if landing.at in _ONLY_TOTALS else due


def _landing(name: str) -> Landing:
    return next(one for one in LANDINGS if one.sync == name)


def _by_number(row: oracle.Row) -> tuple[tuple[int, str], ...]:
    """Numbers in the order of numbers, though they are text here."""
    return tuple((len(value or ""), value or "") for value in row)


def _cell(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, float):
        return f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
