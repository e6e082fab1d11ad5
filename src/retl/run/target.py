"""What the target reports before a run plans: can it be reached and written, does the object fit, and does it
still have the delivered rows? Nothing is written.
"""

from __future__ import annotations

import json
from contextlib import ExitStack, closing
from datetime import timedelta
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from retl.destinations.api import Destination
from retl.destinations.batch import MODES, Batch, Folds, Trace, Visit
from retl.engine import baseline, change_set
from retl.engine.baseline import NONE, Distrust
from retl.engine.mapping import Run
from retl.engine.workspace import Workspace
from retl.errors import Mismatch, Systemic
from retl.run import guards, resolve, trace
from retl.run.guards import Refusal
from retl.run.job import Job
from retl.run.known import Known
from retl.run.mart import Mapped
from retl.run.plan import Basis, Plan
from retl.run.trace import Expected, Lost, Marks

RIGHTS = frozenset({"42501", "NO_MARKER", "NOPERM"})  # codes of missing rights that a dry run does not need
SAMPLE = 200  # confirmed keys that are looked up in the target
READ_AT_ONCE = 1000  # deleted keys


class Visited(Struct, frozen=True):
    """A target that was reached, and what the ledger expects there. `strange`: another ledger has delivered
    there, and no sync of this one. `torn`: batches that it lacks and that are due again."""

    expected: Expected
    destination: Destination[Any] | None = None
    trace: Trace | None = None
    readonly: bool = False
    strange: bool = False
    refusals: tuple[Refusal, ...] = ()
    torn: Lost = ()


class Asked(Struct, frozen=True):
    """What the target reported. `readonly`: this account must not write. `marks`: of earlier batches, None if
    it keeps none; `past`: the newest epoch that it knows. `emptied`: rows that expire are gone, so every row
    is due; `replaced`: the object was rewritten, so values may differ; `restored`: either, or it lacks
    batches. `emptied_fields`: columns that were delivered before and are made again; `lacks`: fields without
    a column. `sampled`, `lost`: confirmed keys that were looked up, and those it lacks; `spared`: so many may
    have been removed by people. `distrust`: what a run records before it writes.
    `folds`: how the target compares keys."""

    reached: bool = False
    readonly: bool = False
    marks: Marks | None = None
    past: int = 0
    emptied: bool = False
    replaced: bool = False
    restored: bool = False
    emptied_fields: tuple[str, ...] = ()
    lacks: frozenset[str] = frozenset()
    sampled: int = 0
    lost: int = 0
    spared: int = 0
    distrust: Distrust | None = None
    refusals: tuple[Refusal, ...] = ()
    folds: tuple[Folds, ...] = ()
    taken: bool = False  # another ledger has delivered there since this one last did


def visit(job: Job, run: Run, mapped: Mapped, epoch: int | None, hold: ExitStack) -> Visited:
    """Reach the target. With an epoch, and while `hold` is open, it refuses other ledgers, if it can."""
    place = mapped.capabilities.object
    destination = hold.enter_context(closing(job.lane(mapped.field_map.shape)))
    visiting = Visit(run.run_id, epoch or 0, exclusive=epoch is not None)
    found = Visited(Expected(place), destination)
    try:
        seen = job.pace.retrying(job.sync.retry, job.stop.event)(destination.check, visiting)
    except Mismatch as problem:
        return replace(found, refusals=(Refusal(problem.code, problem.message, problem.hint),))
    except Systemic as problem:
        if not (job.options.dry_run and problem.code in RIGHTS):
            raise
        return replace(found, readonly=True)
    if seen is None:
        return found
    strange = seen.strangers or trace.is_open(job.ledger, place)
    return replace(
        found,
        trace=seen,
        expected=trace.expected(job.ledger, job.sync.name, place, seen),
        strange=strange,
        refusals=(trace.strangers(place, job.sync, seen.others_at),) if strange else (),
    )


def torn(job: Job, visited: Visited) -> Visited:
    """With the batches that an append sends again because the target lacks them and the user accepts that: of
    a run of which it has others. Rows of other lost runs are told by their epoch."""
    accepts = job.sync.write == "append" and "TARGET_LOST" in job.options.accept
    if visited.trace is None or not accepts:
        return visited
    found = trace.torn(job.ledger, job.sync.name, visited.trace, visited.expected)
    return replace(visited, torn=found)


def ask(
    job: Job, run: Run, mapped: Mapped, known: Known, visited: Visited, workspace: Workspace
) -> tuple[Asked, Known]:
    """Does the target still have the delivered rows? What it may lack is unknown in the returned baseline."""
    chosen, append = job.options.selection, job.sync.write == "append"
    expires = mapped.capabilities.expires is not None
    refusals = tuple(one for one in visited.refusals if not trace.accepted(one, job))
    folds = visited.destination.folds if visited.destination is not None else ()
    found = Asked(reached=True, readonly=visited.readonly, refusals=refusals, folds=folds)
    lost: int | None = None
    if visited.trace is not None:
        here = visited.trace.batches & visited.expected.marks
        found = replace(found, marks=here - visited.trace.replaced, past=visited.trace.epoch)
        found = replace(found, taken=visited.trace.taken, lacks=visited.trace.lacks)
        compared = _compared(job, visited)
        found, lost = _judged(job, found, compared, expires=expires), compared.lost
        found = replace(found, replaced=bool(visited.trace.replaced & visited.expected.marks))
        found = replace(found, distrust=_refilled(job, found.distrust, mapped, known, visited.trace))
        found = replace(found, emptied_fields=found.distrust.emptied if found.distrust else ())
    if found.distrust is not None and not chosen.full:
        known = replace(known, baseline_rows=baseline.distrust(workspace, found.distrust))
    believes = known.baseline_rows and not (found.emptied or found.refusals or known.misses(mapped))
    if believes and mapped.capabilities.readable and (found.replaced or not (append or chosen.full)):
        assert visited.destination is not None
        sampled, missed = sample(visited.destination, run, mapped, workspace, known.basis)
        by_hand = mapped.field_map.shape.conflicts != "warehouse_wins" and not found.replaced
        spared = guards.FEW_REMOVED if by_hand else 0
        found = replace(found, sampled=sampled, lost=missed, spared=spared)
    is_lost = guards.is_lost(found.sampled, found.lost, found.spared)
    if is_lost and expires:
        found = replace(found, emptied=True, lost=0)
    if is_lost and found.replaced and lost is None:
        lost = 0
    found = replace(found, restored=found.replaced or is_lost or lost is not None)
    if chosen.full or found.emptied:
        found = replace(found, lost=0, distrust=_owed(job, mapped, found.distrust))
    elif (is_lost and "TARGET_LOST" in job.options.accept) or (found.replaced and not (append or is_lost)):
        found = replace(found, distrust=replace(found.distrust or Distrust(rows=0), rows=0))
    doubt = found.distrust
    if doubt is None or found.refusals:
        return replace(found, distrust=None), known
    if lost is not None and not append:
        doubt = replace(doubt, back=_returned(visited, run, mapped, workspace, lost))
    if not (chosen.full or found.emptied):
        known = replace(known, baseline_rows=baseline.distrust(workspace, doubt))
    return replace(found, distrust=doubt), known


def can_tell(job: Job, mapped: Mapped, visited: Visited) -> bool:
    """Whether the target's marks say what became of batches without an answer. If target or ledger is an old
    one, and nobody accepts that, such a batch may have arrived without a mark: it stays open."""
    found = Asked(refusals=tuple(one for one in visited.refusals if not trace.accepted(one, job)))
    if visited.trace is not None:
        expires = mapped.capabilities.expires is not None
        found = _judged(job, found, _compared(job, visited), expires=expires)
    return not found.refusals


def _refilled(
    job: Job, doubt: Distrust | None, mapped: Mapped, known: Known, trace: Trace
) -> Distrust | None:
    """The columns that somebody dropped are empty in all rows when they are made again, so all are due, where
    a row that is there can be changed. Not meant is a field that was never sent: then the hash of each row is
    another one."""
    if not known.baseline_rows or job.sync.write in ("append", "insert_only"):
        return doubt
    shapes = json.loads(known.former.get("digests", "{}"))
    sent = {name for names in shapes.values() for name in names}
    names = [one.name for one in mapped.field_map.shape.compared]
    emptied = tuple(name for name in names if name in trace.lacks and name in sent)
    if not emptied:
        return doubt
    return replace(doubt or Distrust(rows=NONE), emptied=emptied, shapes=shapes)


def disagreement(
    job: Job, run: Run, mapped: Mapped, known: Known, visited: Visited, workspace: Workspace
) -> tuple[list[Refusal], Distrust | None]:
    """For a run that takes no row of the mart: the refusals of a target and a ledger that do not agree. What
    is accepted stays distrusted, so the next sync sends what the target lacks."""
    refusals, doubt, seen = list(visited.refusals), None, visited.trace
    if seen is not None:
        append = job.sync.write == "append"
        compared = _compared(job, visited)
        refusals += compared.refusals
        doubt = compared.distrust
        if doubt is not None and compared.lost is not None and not append:
            doubt = replace(doubt, back=_returned(visited, run, mapped, workspace, compared.lost))
        doubt = _refilled(job, doubt, mapped, known, seen)
    return [one for one in refusals if not trace.accepted(one, job)], doubt


def _compared(job: Job, visited: Visited) -> trace.Compared:
    assert visited.trace is not None
    assert visited.destination is not None
    return trace.compare(
        job.ledger,
        job.sync.name,
        visited.trace,
        visited.expected,
        append=job.sync.write == "append",
        comparable=job.target.comparable,
        whole=visited.destination.capabilities.whole,
        lost=visited.torn,
    )


def _returned(
    visited: Visited, run: Run, mapped: Mapped, workspace: Workspace, since: int
) -> tuple[str, ...]:
    """The keys that were deleted after this epoch and that the restored target has again."""
    if visited.destination is None:
        return ()
    return returned(visited.destination, run, mapped, workspace, baseline.deleted(since))


def returned(
    destination: Destination[Any], run: Run, mapped: Mapped | Plan, workspace: Workspace, deleted: str
) -> tuple[str, ...]:
    """Those of the deleted keys (SQL) that the target has again; all of them if it cannot be asked, because
    to delete a row once more harms nothing."""
    if not mapped.capabilities.readable:
        return tuple(str(key) for (key,) in workspace.run(deleted))
    listed = f"row_number() OVER () - 1 AS pos, key FROM ({deleted})"
    gone = change_set.of_keys(workspace, mapped.field_map, "deleted_keys", listed)
    keys = [key for (key,) in workspace.run("SELECT key FROM deleted_keys ORDER BY pos")]
    found = list[str]()
    for first in range(0, len(keys), READ_AT_ONCE):
        last = min(first + READ_AT_ONCE, len(keys)) - 1
        rows = destination.read(Batch(gone, *MODES["delete"], run.run_id, 0, first, last))
        found += [key for key, row in zip(keys[first:], rows, strict=False) if row is not None]
    return tuple(found)


def _judged(job: Job, found: Asked, compared: trace.Compared, *, expires: bool) -> Asked:
    """Which refusals of the trace stand. A target that lost rows that expire is refilled; `--full` passes
    TARGET_LOST; what is accepted distrusts the baseline."""
    if compared.lost is not None and expires:
        return replace(found, emptied=True)
    passed = compared.lost is not None and job.options.selection.full
    refused = tuple(one for one in compared.refusals if not (passed or trace.accepted(one, job)))
    if refused:
        return replace(found, refusals=(*found.refusals, *refused))
    return replace(found, distrust=compared.distrust)


def _owed(job: Job, mapped: Mapped, distrust: Distrust | None) -> Distrust | None:
    """A run that sends every row owes them until they are confirmed, unless an unknown row is never sent."""
    if resolve.waits(job.sync, idempotent=mapped.capabilities.idempotent):
        return distrust
    return Distrust(rows=0)


def sample(
    destination: Destination[Any], run: Run, mapped: Mapped | Plan, workspace: Workspace, basis: Basis
) -> tuple[int, int]:
    """How many confirmed keys were looked up in the target, and how many it lacks. They are the same until a
    run succeeds: who is refused is not let through by trying again."""
    expires = mapped.capabilities.expires
    alive = None if expires is None else run.started_at - timedelta(seconds=expires)
    seed = basis.checkpoint.run_id if basis.checkpoint else ""
    drawn = change_set.sample(workspace, mapped.field_map, SAMPLE, alive, seed)
    if not len(drawn):
        return 0, 0
    batch = Batch(drawn, *MODES["delete"], run.run_id, 0, 0, len(drawn) - 1)
    return len(drawn), sum(row is None for row in destination.read(batch))
