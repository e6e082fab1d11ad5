"""What a person reads of a plan before it is delivered: `retl plan`.

It makes the plan of a run, writes nothing, and contacts the target only to read. Sensitive values are masked
unless they are asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

from msgspec import Struct, field
from msgspec.structs import asdict, replace

from retl.destinations.batch import MODES, Batch
from retl.engine.workspace import Workspace
from retl.errors import TargetError
from retl.observe.summary import Summary
from retl.run import explain, guards, pipeline, samples, volatile
from retl.run.job import Job
from retl.run.plan import Plan
from retl.run.prediction import Fates

COMPARED = 10_000  # updates that are compared with the target, to count what changes in each field


class Column(Struct, frozen=True):
    """A field: the new rows that have a value in it, and the compared updates that change it (None if the
    target cannot be read)."""

    name: str
    inserted: int
    updated: int | None


class Review(Struct):
    """A dry run, and its first changes as (op, key, field → [before, after]). In full also the changes of
    each field, the verdicts of the guards, and the request of the first row alone. `compared`: the updates
    that `columns` is about."""

    summary: Summary
    target: str = ""
    samples: list[dict[str, Any]] = field(default_factory=list)
    columns: Sequence[Column] = ()
    compared: int = 0
    verdicts: Sequence[guards.Verdict] = ()
    request: str | None = None

    full: bool = False

    def parts(self) -> dict[str, Any]:
        """The JSON form of what a full review has beside summary and samples: `review`."""
        if not self.full:
            return {}
        parts = {
            "columns": [asdict(one) for one in self.columns],
            "compared": self.compared,
            "verdicts": [asdict(one) for one in self.verdicts],
            "request": self.request,
        }
        return {"review": parts}


def review(
    job: Job, *, reveal: bool, full: bool = False, keep: Callable[[Plan], object] = lambda _plan: None
) -> Review:
    """A dry run and what it shows. `keep` is called with the plan while it can be read."""
    made = Review(Summary(job.sync.name, None, "FAILED", 1))

    def look(plan: Plan, workspace: Workspace, others: Fates) -> None:
        made.target = plan.capabilities.object
        made.samples = samples.samples(job, plan, workspace, reveal, others)
        if full:
            made.full = True
            made.columns, made.compared = _columns(job, plan, workspace, others)
            made.verdicts = guards.verdicts(plan.facts, job.sync.guards, plan.refusals, job.options.accept)
            made.request = _request(job, plan, workspace, reveal, others)
        keep(plan)

    summary = pipeline.dry_run(job, look)
    made.summary = replace(summary, notes=[*summary.notes, *_emptied(made.samples)])
    return made


def _columns(job: Job, plan: Plan, workspace: Workspace, others: Fates) -> tuple[list[Column], int]:
    """Per field how many rows that would be written change it, and how many updates were compared for
    that."""
    fields = plan.field_map.shape.fields
    if not fields:
        return [], 0
    counts = ", ".join(f"count(f{i})" for i in range(len(fields)))
    workspace.load("unwritten", {"pos": "BIGINT"}, ((pos,) for pos in others.unwritten))
    written = "FROM changes WHERE pos NOT IN (FROM unwritten) AND op IN"
    makes_none = plan.field_map.shape.write == "update_only"  # its first run finds rows that others made
    inserted = workspace.one(f"SELECT {counts} {written} ('{'none' if makes_none else 'insert'}')")
    of = "'insert', 'update'" if makes_none else "'update'"
    updates = f"SELECT pos {written} ({of}) ORDER BY pos LIMIT {COMPARED}"
    positions = [position for (position,) in workspace.run(updates)]
    workspace.run("DROP TABLE unwritten")
    differing = _differing(job, plan, positions)
    kept = {pos: one.peeked.fields for pos, one in others.rows.items()}
    updated = Counter(
        name
        for pos, names in zip(positions, differing or (), strict=False)
        for name in names
        if kept.get(pos, {}).get(name, "write") == "write"
    )
    found = [
        Column(one.name, number, None if differing is None else updated[one.name])
        for one, number in zip(fields, inserted, strict=True)
    ]
    return found, 0 if differing is None else len(positions)


def _differing(job: Job, plan: Plan, positions: Sequence[int]) -> list[Sequence[str]] | None:
    """Per row the compared fields that the target does not hold; None if it cannot be read. A row that it
    lacks differs in every field."""
    compares = job.target.comparable
    if job.options.offline or not (compares or plan.capabilities.readable):
        return None
    every = [one.name for one in plan.field_map.shape.fields if one.compared]
    try:
        with closing(job.lane(plan.field_map.shape)) as destination:
            ask = destination.differing if compares else lambda batch: volatile.differing(destination, batch)
            return [
                every if row is None else row
                for batch in _updates(job, plan, positions)
                for row in ask(batch)
            ]
    except TargetError:  # a count is no reason to fail: the guards have judged already
        return None


def _updates(job: Job, plan: Plan, positions: Sequence[int]) -> Iterator[Batch]:
    if not positions:
        return
    rows, run, size = plan.changes.pick(positions), plan.run, job.sync.batch.rows
    for first in range(0, len(positions), size):
        job.stop.check()
        last = min(first + size, len(positions)) - 1
        yield Batch(rows, *MODES[job.sync.write], run.run_id, 0, first, last, run.started_at.isoformat())


def _request(job: Job, plan: Plan, workspace: Workspace, reveal: bool, others: Fates) -> str | None:
    """The request of the first change that would be written, alone; None if there is none."""
    enough = len(others.unwritten) + 1
    rows = workspace.run(f"SELECT pos, key FROM changes ORDER BY op = 'delete', pos LIMIT {enough}")
    unwritten = set(others.unwritten)
    key = next((key for pos, key in rows if pos not in unwritten), None)
    if key is None:
        return None
    shown = explain.Rows(job, plan, workspace, reveal)
    return next(filter(None, map(shown.request, shown.chosen([key], 1))), None)


def _emptied(samples: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Warnings for fields that a NULL would empty in a row that is shown."""
    updates = [sample["fields"] for sample in samples if sample["op"] == "update"]
    names = dict.fromkeys(
        name for one in updates for name, (old, new) in one.items() if new is None and old not in (None, "?")
    )
    for name in names:
        yield (
            f"a NULL would empty {name}, which has a value in the target: to keep the value, map it with"
            f" nulls: keep, fields: {{{name}: {{column: …, nulls: keep}}}}"
        )
