"""A dry run's numbers: the plan's own, and where they depend on what the target has, its keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace

from retl.destinations.batch import MODES, Batch
from retl.engine import changes
from retl.errors import Mismatch
from retl.observe.summary import REJECTS_SHOWN, Counts, Summary
from retl.run.job import Clock, Job
from retl.run.plan import Plan


def predict(job: Job, plan: Plan, clock: Clock) -> Summary:
    """What the run would report, as long as mart, ledger and target stay as they are. Where the write
    mode depends on what the target has, its keys are read if it is readable; else counts are `at most`."""
    counts, notes = plan.counts(), list(plan.notes)
    if not plan.refusals and job.sync.write in ("insert_only", "update_only") and not plan.adopting:
        if plan.capabilities.readable:
            counts = _with_skips(counts, _present(job, plan), job.sync.write)
        else:
            notes.append("this target cannot be read: inserted and updated are at most these numbers")
    problem = plan.refusals[0] if plan.refusals else None
    if problem is not None:
        counts = plan.held_back()
    refused = counts.rejected or counts.deletes.rejected
    status = "SUCCESS_WITH_REJECTS" if refused else "SUCCESS"
    counts.check()
    return Summary(
        job.sync.name,
        None,
        "REFUSED" if problem else status,
        Mismatch.exit_code if problem else 0,
        dry_run=True,
        counts=counts,
        seconds=sum(clock.phases.values()),
        phases=clock.phases,
        rejects=[
            {"key": r.key, "stage": r.stage, "code": r.code, "reason": r.reason}
            for r in changes.rejects(plan.workspace, REJECTS_SHOWN)
        ],
        guards=[asdict(refusal) for refusal in plan.refusals],
        error=asdict(problem) if problem else None,
        notes=notes,
    )


def _present(job: Job, plan: Plan) -> dict[str, tuple[int, int]]:
    """By op: rows of the change set whose key the target has, and has not."""
    destination = job.lane(plan.field_map.shape)
    found: dict[str, tuple[int, int]] = {}
    try:
        for phase in (changes.FRESH, changes.OWED):
            for first, last in plan.change_set.cut(phase, job.sync.batch.rows):
                batch = Batch(plan.change_set, *MODES[job.sync.write], plan.run.run_id, 0, first, last)
                texts = plan.change_set.texts(range(first, last + 1))
                for position, row in enumerate(destination.read(batch), first):
                    op = texts[position][0]
                    has, lacks = found.get(op, (0, 0))
                    found[op] = (has + (row is not None), lacks + (row is None))
    finally:
        destination.close()
    return found


def _with_skips(counts: Counts, present: Mapping[str, tuple[int, int]], write: str) -> Counts:
    skips = {op: has if write == "insert_only" else lacks for op, (has, lacks) in present.items()}
    return replace(
        counts,
        inserted=counts.inserted - skips.get("insert", 0),
        updated=counts.updated - skips.get("update", 0),
        refreshed=counts.refreshed - skips.get("refresh", 0),
        skipped=counts.skipped + sum(skips.values()),
    )
