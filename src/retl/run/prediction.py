"""The numbers of a dry run: from the plan, and if they depend on the target, from its keys."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import asdict
from math import ceil

from retl.destinations.batch import MODES, Batch, Kind
from retl.engine import judge
from retl.engine.workspace import Workspace
from retl.errors import Mismatch
from retl.observe.summary import REJECTS_SHOWN, Estimate, Summary
from retl.run import counts
from retl.run.drain import batches, size
from retl.run.job import Clock, Job
from retl.run.plan import Plan


def predict(job: Job, plan: Plan, workspace: Workspace, clock: Clock) -> Summary:
    """What the run would report if mart, ledger and target do not change. If the write mode depends on the
    target's rows, its keys are read; if it is not readable, counts are `at most`."""
    notes, others = list(plan.notes), Counter[tuple[str, Kind]]()
    sends = not (plan.refusals or plan.adopting)
    if sends and plan.field_map.shape.conditional and not job.options.offline:
        others = _peeked(job, plan)
    elif sends and job.sync.write in ("insert_only", "update_only"):
        if plan.capabilities.readable:
            others = _skips(job, plan)
        else:
            why = "the target is not read offline" if job.options.offline else "this target cannot be read"
            notes.append(f"{why}: inserted and updated are at most these numbers")
    problem = plan.refusals[0] if plan.refusals else None
    found = counts.if_refused(plan) if problem else counts.if_taken(plan, others)
    found.check()
    rejected = found.rejected or found.deletes.rejected
    status = "SUCCESS_WITH_REJECTS" if rejected else "SUCCESS"
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
            for r in judge.rejects(workspace, REJECTS_SHOWN)
        ],
        guards=[asdict(refusal) for refusal in plan.refusals],
        error=asdict(problem) if problem else None,
        notes=notes,
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
        terms.seconds(requests),
        str(terms),
        "requests" if claim else "messages",
        ceil(requests / terms.day) if terms.day and requests > terms.day else 0,
    )


def _peeked(job: Job, plan: Plan) -> Counter[tuple[str, Kind]]:
    """By op and kind, the rows of a conditional plan that would not just be written."""
    found: Counter[tuple[str, Kind]] = Counter()
    with closing(job.lane(plan.field_map.shape)) as destination:
        for phase in plan.changes.phases:
            for batch in batches(plan, phase, 0):
                texts = plan.changes.texts(range(batch.first, batch.last + 1))
                for position, one in enumerate(destination.peek(batch), batch.first):
                    if one.result.kind is not Kind.WRITTEN:
                        found[texts[position][0], one.result.kind] += 1
    return found


def _skips(job: Job, plan: Plan) -> Counter[tuple[str, Kind]]:
    """By op, the rows that the write mode skips: insert_only keys that the target has, update_only keys
    that it lacks."""
    found: Counter[tuple[str, Kind]] = Counter()
    present = job.sync.write == "insert_only"
    with closing(job.lane(plan.field_map.shape)) as destination:
        for phase in plan.changes.phases:
            for first, last in phase.cut(job.sync.batch.rows) if phase.mode != "delete" else ():
                batch = Batch(plan.changes, *MODES[job.sync.write], plan.run.run_id, 0, first, last)
                texts = plan.changes.texts(range(first, last + 1))
                for position, row in enumerate(destination.read(batch), first):
                    if (row is not None) == present:
                        found[texts[position][0], Kind.SKIPPED] += 1
    return found
