"""`retl demo`: shows retl on this machine, with real commands and real servers.

It delivers rows, kills runs half way and runs them again; then one user in a hundred changes and only these
changes are sent; then somebody else's edit stays, a bad run is taken back and a customer is erased; at last
rows become records of a stream and files behind a dashboard. Every number is counted twice: by retl, and by
plain SQL in the warehouse and the targets.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from retl_demo import oracle, publish, servers, undo, warehouse
from retl_demo.oracle import LANDINGS, Landing, Motion, Rows
from retl_demo.stage import Ran, Stage, interruptible, open_stage, project

ROWS_SHOWN = 5
COLUMNS_SHOWN = 5
WIDTH = 110  # without a terminal
STATISTICS_WITHIN = 10.0  # seconds until PostgreSQL has counted what a closed connection wrote
# Runs that are killed (SIGKILL) after the n-th batch is acknowledged: an upsert, an append, an API. Two lanes
# write to PostgreSQL, so one more batch may have arrived.
KILLS = (("product_recommendations", 9), ("email_triggers", 1), ("churn_campaign", 7))


@dataclass
class Story:
    """The console, and what was wrong so far."""

    console: Console
    wrong: list[str] = field(default_factory=list)

    def chapter(self, title: str) -> None:
        self.console.print()
        self.console.print(Text(title, style="bold"))

    def say(self, text: str, style: str = "") -> None:
        self.console.print(Text("  " + text, style=style))

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[Any]], title: str) -> None:
        drawn = Table(box=box.SIMPLE_HEAD, show_edge=False)
        for i, header in enumerate(headers):
            right = all(isinstance(row[i], int | float) for row in rows)
            least = (
                max((len(_cell(row[i])) for row in rows), default=0) if right else None
            )  # no number is cut
            drawn.add_column(
                Text(header), justify="right" if right else "left", no_wrap=True, min_width=least
            )
        for row in rows:
            drawn.add_row(*(Text(_cell(value)) for value in row))
        self.console.print()
        self.say(title, "dim")
        self.console.print(Padding(drawn, (0, 0, 1, 1), expand=False))

    def expect(self, true: bool, sentence: str) -> None:
        """If not `true`, the demo ends with this sentence and exit code 1."""
        if not true:
            self.wrong.append(sentence)

    @contextmanager
    def waiting(self, doing: str) -> Iterator[None]:
        """On a terminal, show the current command until it is done."""
        with self.console.status(Text(doing, style="dim")):
            yield


def run(directory: Path | None, keep: bool) -> int:
    """Run the demo in `directory` (a temporary one if None). Returns 0 if every number is right, else 1.
    Stops all servers, and removes the project unless `keep`."""
    servers.require(*servers.PACKAGES)
    story = Story(Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH))
    began = time.monotonic()
    with interruptible(), project(directory, keep) as folder:
        with open_stage(folder) as stage:
            _landed(story, stage)
            with stage.elsewhere() as elsewhere:
                _killed(story, elsewhere)
            _changed(story, stage)
            with tempfile.TemporaryDirectory(prefix="retl-demo-undo-") as beside:
                undo.play(story, stage, Path(beside))
            with tempfile.TemporaryDirectory(prefix="retl-demo-publish-") as beside:
                publish.play(story, stage, Path(beside))
        _close(story, folder, keep, time.monotonic() - began)
    return 1 if story.wrong else 0


def _landed(story: Story, stage: Stage) -> None:
    postgres, redis = stage.targets.postgres, stage.targets.redis
    story.chapter("Six syncs from one warehouse to three real servers")
    story.say("warehouse      DuckDB, 20,000 made-up users, four marts")
    story.say(f"PostgreSQL     {postgres['host']}:{postgres['port']}")
    story.say(f"Valkey         {redis['host']}:{redis['port']}, speaks Redis")
    story.say(f"campaign tool  {stage.targets.campaigns.url}")
    _deliver(story, stage)
    for landing in LANDINGS:
        found = sorted(oracle.held(stage.targets, landing), key=_in_order)[:ROWS_SHOWN]
        story.expect(len(found) == ROWS_SHOWN, f"{landing.sync}: nothing landed")
        shown = [row[:COLUMNS_SHOWN] for row in found]
        story.table(landing.columns[:COLUMNS_SHOWN], shown, f"{landing.sync} → {_place(landing)}")


def _killed(story: Story, stage: Stage) -> None:
    """Deliver everything again to empty targets, and kill runs half way."""
    wanted = {one.sync: oracle.expected(stage.warehouse, one) for one in LANDINGS}
    story.chapter("The same again to empty targets, killed half way")
    for name, batch in KILLS:
        landing = next(one for one in LANDINGS if one.sync == name)
        with story.waiting(f"retl sync --sync {name}"):
            ran = stage.sync("--sync", name, crash_at=f"batch_acknowledged:{batch}")
            there, total = len(oracle.held(stage.targets, landing)), len(wanted[name])
        story.say(f"kill -9: retl sync --sync {name} is dead, {there:,} of {total:,} rows have landed")
        story.expect(ran.code == -9, f"{name}: the run should be killed by SIGKILL but ended with {ran.code}")
        story.expect(0 < there < total, f"{name}: the kill came at {there} of {total} rows, not half way")
    story.say("Nobody repairs anything. The next plain run:")
    _deliver(story, stage)
    story.say(
        "Batches sent without a recorded answer are sent again if the target is idempotent, else resolved."
    )
    found = {one.sync: oracle.applications(stage.targets, one) for one in LANDINGS}
    _compare(story, wanted, found)


def _changed(story: Story, stage: Stage) -> None:
    story.chapter("One user in a hundred changes")
    before = {one.sync: oracle.expected(stage.warehouse, one) for one in LANDINGS}
    counted = {one.sync: _counted(stage, one, before[one.sync]) for one in LANDINGS}
    changed = warehouse.change(stage.warehouse)
    wanted = {one.sync: oracle.expected(stage.warehouse, one, before[one.sync]) for one in LANDINGS}
    story.say(f"{changed} of 20,000 users searched and spent more, and every mart was computed again.")
    ran = _deliver(story, stage)
    due = {one.sync: oracle.motion(before[one.sync], wanted[one.sync]) for one in LANDINGS}
    moved = {one.sync: _moved(stage, one, counted[one.sync], _due(one, before, wanted)) for one in LANDINGS}
    story.table(
        ("sync", "inserts due", "updates due", "deletes due", "inserted", "updated", "deleted"),
        [(name, *astuple(due[name]), *astuple(moved[name])) for name in due],
        "due by plain SQL; done by the targets' own statistics (Valkey and campaign tool: one number)",
    )
    for landing in LANDINGS:
        name = landing.sync
        wrote = _due(landing, before, wanted)
        story.expect(moved[name] == wrote, f"{name}: the target counts {moved[name]}, due were {wrote}")
        summary = next((one for one in ran.syncs if one["sync"] == name), {})
        reported = Motion(*(summary.get(each, -1) for each in ("inserted", "updated", "deleted")))
        story.expect(reported == due[name], f"{name}: retl reports {reported}, due were {due[name]}")
    total, rows = sum(sum(astuple(one)) for one in moved.values()), sum(map(len, wanted.values()))
    story.say(f"{total:,} of {rows:,} rows were written, each of them due.")
    _compare(story, wanted, {one.sync: oracle.held(stage.targets, one) for one in LANDINGS})


def _close(story: Story, folder: Path, keep: bool, seconds: float) -> None:
    story.console.print()
    for sentence in story.wrong:
        story.say(f"WRONG: {sentence}", "bold red")
    if not story.wrong:
        story.say("Nothing lost, nothing doubled, and only what changed has moved.", "bold green")
    story.say(f"{seconds:.0f} seconds; the servers are stopped and their data are gone.")
    if not keep:
        story.say("To read and run the project yourself: retl demo DIR --keep")
        return
    story.say(f"The project stays in {folder}. To use your own servers, run there:")
    story.say(f"  python -m http.server -b 127.0.0.1 -d {folder / publish.DASHBOARD}   the dashboard")
    story.say("  cp config.example.env config.env    and fill in where they are")
    story.say("  retl validate                       definitions and SQL, offline")
    story.say("  retl sync --dry-run                 what a run would do; writes nothing")


def _deliver(story: Story, stage: Stage) -> Ran:
    """Run `retl sync --all` and show its summary."""
    with story.waiting("retl sync --all"):
        ran = stage.sync("--all")
    names = ("read", "unchanged", "inserted", "updated", "deleted", "rejected", "seconds")
    rows = [(one["sync"], *(one[name] for name in names)) for one in ran.syncs]
    story.table(("sync", *names), rows, "retl sync --all")
    story.expect(ran.code == 0, f"retl sync --all ended with exit code {ran.code}")
    for one in ran.syncs:
        story.expect(one["error"] is None, f"{one['sync']}: {one['error'] and one['error']['message']}")
    return ran


def _compare(story: Story, wanted: dict[str, Rows], found: dict[str, list[oracle.Row]]) -> None:
    """Compare every row of the targets with the warehouse."""
    wrong = {one.sync: oracle.compare(wanted[one.sync], found[one.sync], one) for one in LANDINGS}
    story.table(
        ("sync", "must be there", "is there", "lost", "doubled", "altered", "foreign"),
        [(name, len(wanted[name]), len(found[name]), *astuple(one)) for name, one in wrong.items()],
        "every row and value at the targets against plain SQL in the warehouse",
    )
    lost, doubled = (sum(getattr(one, what) for one in wrong.values()) for what in ("lost", "doubled"))
    story.say(f"{lost} lost, {doubled} doubled.")
    for name, one in wrong.items():
        story.expect(not one, f"{name}: {one}")


def _due(landing: Landing, before: dict[str, Rows], after: dict[str, Rows]) -> Motion:
    """The due writes, in the detail of the target's statistics."""
    due = oracle.motion(before.get(landing.sync, {}), after[landing.sync])
    return due if landing.is_table else Motion(updated=due.inserted + due.updated)


def _counted(stage: Stage, landing: Landing, rows: Rows) -> Motion:
    """The target's statistics after the first delivery; PostgreSQL may still be counting."""
    if landing.is_table:
        return _moved(stage, landing, Motion(), Motion(inserted=len(rows)))
    return oracle.written(stage.targets, landing)


def _moved(stage: Stage, landing: Landing, before: Motion, due: Motion) -> Motion:
    """The target's count since `before`; waits while it may still be counting."""
    deadline = time.monotonic() + STATISTICS_WITHIN
    while True:
        now = oracle.written(stage.targets, landing)
        moved = Motion(*(b - a for a, b in zip(astuple(before), astuple(now), strict=True)))
        if moved == due or time.monotonic() > deadline:
            return moved
        time.sleep(0.1)


def _place(landing: Landing) -> str:
    if landing.is_table:
        return f"PostgreSQL, {landing.at}"
    return {"redis": "Valkey, reco:{user_id}", "campaigns": "campaign tool, recipients"}[landing.at]


def _in_order(row: oracle.Row) -> tuple[tuple[int, str], ...]:
    """Sort numbers as numbers, although they are text here."""
    return tuple((len(value or ""), value or "") for value in row)


def _cell(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, float):
        return f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
