"""Whether the target lost rows during a run: it was emptied, restarted or replaced since the run looked."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

from msgspec.structs import asdict, replace

from retl.delivery.answered import Answered
from retl.destinations.api import Destination
from retl.destinations.batch import Trace, Visit
from retl.engine import baseline
from retl.engine.baseline import Distrust
from retl.engine.mapping import Run
from retl.engine.workspace import Workspace
from retl.errors import Failure, Mismatch
from retl.ledger import Lock
from retl.observe.summary import counted
from retl.run import guards, target, trace
from retl.run.job import Job
from retl.run.plan import Plan


def find(
    job: Job, run: Run, lock: Lock, plan: Plan, workspace: Workspace, answered: Sequence[Answered] | None
) -> Failure | None:
    """Failure TARGET_RESET if it did; then older rows may be lost too, and the ledger trusts none. `answered`
    is None if the run sent nothing."""
    marks, append = plan.marks, job.sync.write == "append"
    if marks is None or not (marks or answered is not None):
        return None
    visit = Visit(run.run_id, lock.epoch)
    with closing(job.lane(plan.field_map.shape)) as destination:

        def is_lost() -> bool:
            return guards.is_lost(*target.sample(destination, run, plan, workspace, plan.basis))

        retrying = job.pace.retrying(job.sync.retry, job.stop.event)
        lost = retrying(
            lambda: trace.lost(destination, visit, answered or (), marks, is_lost if append else None)
        )
        if not lost:
            return None
        back = () if append else retrying(lambda: _returned(job, run, plan, workspace, destination, visit))
    compares = job.target.comparable
    if compares or not append or plan.distrust is not None:
        doubt = plan.distrust or Distrust(rows=0)
        doubt = replace(doubt, rows=0, own=True, back=(*doubt.back, *back))
        job.ledger.distrust(run.run_id, lock.epoch, asdict(doubt))
    hint = "run again: every row that is not confirmed is sent"
    if append:  # what only its marks can tell is left to the next run, which looks for them
        hint = "run again: it says what the target lacks, and how to append that again"
    if append and compares:
        hint = f"`retl state rebuild {job.sync.name}` reads what it has"
    return Failure(
        "TARGET_RESET",
        f"the target lost {counted(lost, 'batch')} during this run: it was emptied, restarted or replaced",
        hint=hint,
    )


def _returned(
    job: Job, run: Run, plan: Plan, workspace: Workspace, destination: Destination[Any], visit: Visit
) -> tuple[str, ...]:
    """The keys that this run or an earlier one deleted and that the target, which was put back, has."""
    ledger, sync = job.ledger, job.sync.name
    try:
        seen = destination.check(visit) or Trace()
    except Mismatch:  # there is no object
        return ()
    known = trace.expected(ledger, sync, plan.capabilities.object, seen)
    since = trace.compare(ledger, sync, seen, known, append=False).lost
    if since is None:
        return ()
    gone = f"{baseline.deleted(since)} UNION SELECT key FROM {plan.changes.table} WHERE op = 'delete'"
    return target.returned(destination, run, plan, workspace, gone)
