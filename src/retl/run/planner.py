"""Guards and plan: what a run would do, and why it must not. It reads rows and writes nothing.

`pipeline` calls the steps in order for `sync`, `--dry-run`, `plan` and `explain`; `diffing` has those before.
"""

from __future__ import annotations

import os
import socket

from retl.engine import diff
from retl.engine.change_set import ChangeSet
from retl.engine.diff import Ends
from retl.engine.mapping import Run
from retl.observe import log
from retl.run import columns, dbt_results, extent, guards, refusing, target, trace
from retl.run.diffing import Made
from retl.run.guards import Facts
from retl.run.job import Job
from retl.run.known import Known
from retl.run.mart import Mapped
from retl.run.plan import Plan, Terms, Undecided
from retl.run.target import Visited


def guard(job: Job, run: Run, made: Made) -> Plan:
    """Judge the facts and make the plan, without its notes."""
    sync, options, chosen = job.sync, job.options, job.options.selection
    mapped, known = made.frozen.mapped, made.known
    in_part = chosen.partial or chosen.limit is not None
    whole = not in_part and _is_whole(job, made)
    refusing.refuse_part(job, mapped, known, in_part)
    columns.require_own(job.ledger, sync, mapped.field_map, job.neighbours)
    facts = _facts(job, run, made, whole)
    refusals = refusing.found(job, made, facts)
    log.event("guards_judged", refusals=len(refusals), changes=len(made.due.changes))
    return Plan(
        purpose=options.purpose,
        run=run,
        field_map=mapped.field_map,
        contract=mapped.contract,
        capabilities=mapped.capabilities,
        changes=made.due.changes,
        ends=made.due.ends,
        read=made.diffed.read,
        facts=facts,
        refusals=tuple(refusals),
        basis=known.basis,
        distrust=made.asked.distrust,
        moved_from=known.object if known.object != mapped.capabilities.object else None,
        past=made.asked.past,
        marks=made.asked.marks,
        fingerprints={
            **mapped.fingerprints,
            "mark": extent.fingerprint(job, made.opened),
            "digests": diff.remembered(known.former, mapped.fingerprints),
        },
        watermark=made.diffed.watermark,
        scope=_scope(made),
        read_rows=_rows_read(made, whole=whole or (made.frozen.fed and not in_part)),
        source_version=made.opened.description.version,
        statistics=made.judged.statistics,
        adopting=refusing.adopts(job, known),
        payload=made.frozen.payload,
        notes=(),
        terms=Terms(
            sync.batch.rows,
            sync.guards.max_failed_rate,
            sync.guards.max_conflict_rate,
            refill=chosen.full or made.asked.emptied,
            decisions=made.due.changes.positions(options.decisions),
        ),
        narrowed=made.frozen.narrowed,
        rest=_leaves(job, made),
    )


def _leaves(job: Job, made: Made) -> bool:
    """Whether a run of keys that may have changed leaves what only a run of the whole mart does: to delete
    what left the mart, and to send what the target lost."""
    absent = made.diffed.absent
    if absent is None:
        return False
    return made.asked.distrust is not None or bool(absent.gone and job.sync.deletes.how != "keep")


def _is_whole(job: Job, made: Made) -> bool:
    """Whether a run like this reads every row of the mart, so that their number says something."""
    some = made.frozen.fed or made.frozen.narrowed or made.opened.cursor is not None
    explains_feed = job.options.explains is not None and job.sync.changes.strategy == "cdf"
    return not (some or explains_feed or job.sync.write == "append")


def aside(
    job: Job,
    run: Run,
    mapped: Mapped,
    known: Known,
    visited: Visited,
    changes: ChangeSet,
    ends: Ends,
    facts: Facts,
    source_version: str,
) -> Plan:
    """A plan beside the syncs: it takes no row from them, so mark, fingerprints and the version of the source
    stay, and what its own digests are of is added. A target and a ledger that do not agree refuse it, and so
    do the guards of the facts."""
    former, place, seen = known.basis.checkpoint, mapped.capabilities.object, visited.trace
    refusals, doubt = target.disagreement(job, run, mapped, known, visited, changes.workspace)
    unknown = trace.unknown(seen, visited.expected) if seen is not None else frozenset()
    digests = diff.remembered(known.former, mapped.fingerprints)
    return Plan(
        purpose=job.options.purpose,
        run=run,
        field_map=changes.field_map,
        contract=mapped.contract,
        capabilities=mapped.capabilities,
        changes=changes,
        ends=ends,
        read=facts.read,
        facts=facts,
        refusals=(
            *refusals,
            *guards.judge(facts, job.sync.guards, job.options.accept),
            *refusing.unapproved(job),
        ),
        basis=known.basis,
        fingerprints=known.former and {**known.former, "digests": digests},
        watermark=former.watermark if former else None,
        read_rows=former.read_rows if former else 0,
        source_version=(former.source_version if former else None) or source_version,
        statistics=None,
        scope=former.scope if former else None,
        distrust=doubt,
        moved_from=known.object if known.object != place else None,
        past=seen.epoch if seen is not None else 0,
        marks=None,
        adopting=False,
        payload=None,
        notes=(),
        terms=Terms(job.sync.batch.rows, job.sync.guards.max_failed_rate, job.sync.guards.max_conflict_rate),
        undecided=Undecided(unknown, visited.strange),
    )


def _rows_read(made: Made, *, whole: bool) -> int:
    """The rows of the mart as this run knows them, else as the last run did. A mart without rows is not one
    that a later one fell from."""
    if whole and made.frozen.total:
        return made.frozen.total
    checkpoint = made.known.basis.checkpoint
    return checkpoint.read_rows if checkpoint else 0


def _scope(made: Made) -> str | None:
    """The scope that the next run compares its own with: a run that deletes nothing by absence keeps it."""
    former, scope = made.known.basis.checkpoint, made.opened.scope
    if made.diffed.strategy.absence or former is None:
        return scope.text() if scope else None
    return former.scope


def _facts(job: Job, run: Run, made: Made, whole: bool) -> Facts:
    """The facts for the guards; `whole`: the whole mart was read."""
    checkpoint, ends = made.known.basis.checkpoint, made.due.ends
    new = sum(number for (op, _), number in ends.items() if op == "insert")
    unusable = sum(number for (op, _), number in ends.items() if op == "none")
    return Facts(
        read=made.diffed.read,
        total=made.frozen.total,
        new_rejects=_new_rejects(job, made),
        old_rejects=made.judged.old_rejects,
        left_out=_left_out(made),
        reject_codes=made.judged.reject_codes,
        baseline_rows=made.known.baseline_rows,
        deletes=made.due.changes.counts.get("delete", 0),
        deletes_on=job.sync.deletes.how != "keep" and not job.options.selection.touched,
        scope_known=made.diffed.scoped.known if made.diffed.scoped else None,
        scope_read=made.diffed.scoped is None or made.frozen.fed or made.diffed.scoped.read,
        scope_grown=made.due.scope_grown,
        append=job.sync.name if job.sync.write == "append" else None,
        full_read=whole,
        last_read=checkpoint.read_rows if checkpoint else None,
        inserts=ends.get(("insert", None), 0),
        matched=made.diffed.read - unusable - new,
        sampled=made.asked.sampled,
        lost=made.asked.lost,
        spared=made.asked.spared,
        taken=made.asked.taken,
        failed_checks=made.frozen.failed_checks,
        drifted=made.judged.drifted,
        allow_deletes=job.options.allow_deletes,
        builds=dbt_results.known(job, made.opened.description),
        max_age=job.source.max_age,
        now=run.started_at,
        unproved=len(made.due.changes) if _is_unproved(job, made) else None,
    )


def _new_rejects(job: Job, made: Made) -> int:
    """They are judged as a share of the rows that were read. Few of a few keys say nothing of the mart, and
    must not keep the other keys waiting."""
    found = made.judged.new_rejects
    few = bool(job.options.selection.touched) and found <= guards.FEW_REJECTS
    return 0 if made.frozen.narrowed or few else found


def _is_unproved(job: Job, made: Made) -> bool:
    """Whether a first run looks just like the run after a lost state: what is sent twice stays twice, the
    target keeps no trace of this ledger, and the ledger has no history."""
    asked, capabilities = made.asked, made.frozen.mapped.capabilities
    if refusing.adopts(job, made.known) or not (
        made.known.basis.is_first and asked.reached and asked.marks is None
    ):
        return False
    once = job.sync.write == "append" or not capabilities.idempotent
    return once and not job.ledger.has_history(job.sync.name, socket.gethostname(), os.getpid())


def _left_out(made: Made) -> int:
    """The rejected rows of a mart that is published as a whole, if it is published."""
    if not (made.frozen.mapped.capabilities.whole and len(made.due.changes)):
        return 0
    return sum(number for (_, ending), number in made.due.ends.items() if ending == "rejected")
