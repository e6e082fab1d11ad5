"""The numbers of a dry run: from the plan, and if they depend on the target, from its keys."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from math import ceil

from msgspec import Struct, field
from msgspec.structs import asdict

from retl.destinations.batch import ABSENT, MODES, PRESENT, Batch, Kind, Peeked
from retl.engine import judge
from retl.engine.judge import Reject
from retl.engine.workspace import Workspace
from retl.errors import Mismatch
from retl.observe.summary import REJECTS_SHOWN, Estimate, Summary
from retl.run import counts
from retl.run.conflicts import STAGE
from retl.run.drain import batches, size
from retl.run.job import Clock, Job
from retl.run.plan import Plan

KNOWN = 10_000  # rows per op that Fates describes


class Fate(Struct, frozen=True):
    """What becomes of a row of the change set that would not just be written."""

    op: str
    key: str
    hash: str | None
    peeked: Peeked


class Fates(Struct):
    """The rows of a change set that a run would not just write, because of what the target has: their numbers
    by op and kind, the positions of those of which nothing is written, and the first of each op. `notes`: why
    it is not known."""

    counts: Counter[tuple[str, Kind]] = field(default_factory=Counter)
    unwritten: array[int] = field(default_factory=lambda: array("q"))
    rows: dict[int, Fate] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def add(self, position: int, text: tuple[str, str, str | None], peeked: Peeked) -> None:
        op, kind = text[0], peeked.result.kind
        known = sum(number for (other, _), number in self.counts.items() if other == op)
        self.counts[op, kind] += 1
        if kind is not Kind.MERGED:
            self.unwritten.append(position)
        if known < KNOWN:
            self.rows[position] = Fate(*text, peeked)

    def queued(self) -> Iterator[Reject]:
        """The first rows that would wait for a person's decision."""
        for one in self.rows.values():
            result = one.peeked.result
            if result.kind is Kind.CONFLICT:
                code, reason = result.code or "REJECTED", result.reason or ""
                yield Reject(one.key, "", one.hash, STAGE, code, reason)


def fates(job: Job, plan: Plan) -> Fates:
    """If what a run writes depends on the target's rows, they are looked at; nothing is written."""
    found = Fates()
    if plan.refusals or plan.adopting:
        return found
    if plan.field_map.shape.conditional and not job.options.offline:
        _peek(job, plan, found)
    elif job.sync.write in ("insert_only", "update_only"):
        if plan.capabilities.readable:
            _skip(job, plan, found)
        else:
            why = "the target is not read offline" if job.options.offline else "this target cannot be read"
            found.notes = (f"{why}: inserted and updated are at most these numbers",)
    return found


def predict(job: Job, plan: Plan, workspace: Workspace, clock: Clock, others: Fates | None = None) -> Summary:
    """What the run would report if mart, ledger and target do not change. Where the `others` are not known,
    counts are `at most`."""
    others = fates(job, plan) if others is None else others
    problem = plan.refusals[0] if plan.refusals else None
    found = counts.if_refused(plan) if problem else counts.if_taken(plan, others.counts)
    found.check()
    rejected = found.rejected or found.deletes.rejected
    dismissed = counts.dismissals(job.ledger.rejects(job.sync.name, "dismissed"))
    every = [*judge.rejects(workspace, None if dismissed else REJECTS_SHOWN), *others.queued()]
    is_open = [*counts.still_open(every, dismissed)]
    covered = len(every) - len(is_open)
    status = "SUCCESS_WITH_REJECTS" if rejected and (is_open or not covered) else "SUCCESS"
    return Summary(
        job.sync.name,
        None,
        "REFUSED" if problem else status,
        Mismatch.exit_code if problem else 0,
        dry_run=True,
        counts=found,
        seconds=sum(clock.phases.values()),
        phases=clock.phases,
        rejects=[
            {"key": r.key, "stage": r.stage, "code": r.code, "reason": r.reason}
            for r in is_open[:REJECTS_SHOWN]
        ],
        guards=[asdict(refusal) for refusal in plan.refusals],
        error=asdict(problem) if problem else None,
        notes=[
            *plan.notes,
            *plan.standing,
            *others.notes,
            *([counts.dismissed_note(covered)] if covered else []),
        ],
        estimate=_estimate(job, plan),
    )


def _estimate(job: Job, plan: Plan) -> Estimate | None:
    """How long the limits of the connection make the delivery; None without limits, or if nothing is sent."""
    terms, phases = job.pace.terms, plan.changes.phases
    if terms is None or not plan.writes:
        return None
    requests = sum(ceil(len(phase) / size(plan, phase)) for phase in phases) * plan.capabilities.requests
    claim = job.target.destination.claim(job.target.options, job.sync.write)
    return Estimate(
        requests,
        terms.seconds(requests + plan.capabilities.probes),
        str(terms),
        "requests" if claim else "messages",
        ceil(requests / terms.day) if terms.day and requests > terms.day else 0,
    )


def _peek(job: Job, plan: Plan, found: Fates) -> None:
    """Add the rows of a conditional plan that would not just be written."""
    with closing(job.lane(plan.field_map.shape)) as destination:
        for phase in plan.changes.phases:
            for batch in batches(plan, phase, 0):
                texts = plan.changes.texts(range(batch.first, batch.last + 1))
                for position, one in enumerate(destination.peek(batch), batch.first):
                    if one.result.kind is not Kind.WRITTEN:
                        found.add(position, texts[position], one)


def _skip(job: Job, plan: Plan, found: Fates) -> None:
    """Add the rows that the write mode skips: insert_only keys that the target has, update_only keys that it
    lacks."""
    present = job.sync.write == "insert_only"
    skipped = Peeked(PRESENT if present else ABSENT)
    with closing(job.lane(plan.field_map.shape)) as destination:
        for phase in plan.changes.phases:
            for first, last in phase.cut(job.sync.batch.rows) if phase.mode != "delete" else ():
                batch = Batch(plan.changes, *MODES[job.sync.write], plan.run.run_id, 0, first, last)
                texts = plan.changes.texts(range(first, last + 1))
                for position, row in enumerate(destination.read(batch), first):
                    if (row is not None) == present:
                        found.add(position, texts[position], skipped)
