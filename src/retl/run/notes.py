"""What a reader of a plan should know: notes of what the target and the ledger are like, of what is sent and
what is not, and of what to write in the sync. It decides nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing

from retl.destinations.batch import MODES, Batch
from retl.engine import diff, succession
from retl.errors import TargetError
from retl.run import contract_diff, resolve, trace, volatile
from retl.run.job import Job
from retl.run.known import Known
from retl.run.plan import Plan
from retl.run.planner import Made
from retl.sources.dbt_results import note


def notes(job: Job, made: Made, plan: Plan, *, unanswered: int) -> tuple[str, ...]:
    """All that holds for this plan. `unanswered` rows of dead runs may change it."""
    said = {**_before(job, made, plan, unanswered), **_sent(job, made, plan)}
    former, types = made.known.former.get("types"), plan.fingerprints["types"]
    news = contract_diff.new_columns(job.ledger, job.sync, made.opened.description.columns)
    return (
        *(words for words, holds in said.items() if holds),
        *filter(None, (news, contract_diff.orphaned(former, types))),
        *note(plan.facts.builds),
        *_volatile(job, made, plan),
    )


def _before(job: Job, made: Made, plan: Plan, unanswered: int) -> Mapping[str, bool]:
    """What others did to the target, and what the ledger knows of it."""
    known, asked, place = made.known, made.asked, plan.capabilities.object
    left, distrust = _left_behind(job, known, place), plan.distrust
    return {
        f"this is another object than {left}: what was delivered there stays, and nothing there is deleted": (
            left is not None
        ),
        f"what is sent changed ({_reshaped(made)}): every row is sent once": (
            known.differs(made.frozen.mapped, "what")
        ),
        f"a dead run left {unanswered} rows unanswered: a run resolves them first, so these numbers may"
        " change": unanswered > 0,
        "the target lost rows that expire: every row is sent again": asked.emptied,
        f"the target lacks {asked.lost} of {asked.sampled} sampled rows that were delivered, and they are not"
        f" sent: `retl reconcile {job.sync.name} --repair` sends what is missing": (
            asked.lost > 0 and not plan.refusals
        ),
        "ERASED: the target was restored or emptied, so people who were erased may be there again:"
        " `retl erase verify` looks for them, `retl erase --again` erases them again": (
            asked.restored and bool(known.suppressed)
        ),
        f"every row of the source was read: {made.frozen.unfed}": made.frozen.unfed is not None,
        "only the rows of these keys were read: the guards that judge all rows of the mart were not asked"
        f" (`retl sync --sync {job.sync.name} --dry-run` asks them)": made.frozen.narrowed,
        "this account has no right to write here: a run would fail": asked.readonly,
        trace.TAKEN: asked.taken,
        "the object was rewritten since the last run (a restore, TRUNCATE, VACUUM FULL): every row is sent"
        " again": asked.replaced and distrust is not None,
        f"this object was delivered to as {known.object}: its baseline continues": known.object != place,
        "rows that were delivered before are not deleted: after STATE_BEHIND nobody knows whose they are"
        f" (`retl state rebuild {job.sync.name} --take-ownership` takes them)": (
            distrust is not None and distrust.disown and job.sync.deletes.how != "keep"
        ),
    }


def _sent(job: Job, made: Made, plan: Plan) -> Mapping[str, bool]:
    """What is withheld, what may arrive twice, and what to write in the sync after this run."""
    sync, erased, unproved = job.sync, made.diffed.erased, plan.facts.unproved
    withheld = plan.ends.get(("delete", "not_attempted"), 0)
    succeeded = plan.ends.get(("delete", succession.SUCCEEDED), 0) if made.diffed.strategy.absence else 0
    outside = plan.ends.get(("delete", diff.OUTSIDE), 0)
    preview = job.target.destination.about.preview
    return {
        f"{withheld} deletes wait: a row without a usable key may be one of them": withheld > 0,
        f"ERASED: {_are(erased)} never sent, by an erasure"
        f" (`retl erase --lift --sync {sync.name} --key …` takes one off)": erased > 0,
        f"{outside} keys left the mart and stay: they are outside `deletes: {{within: …}}`": outside > 0,
        f"{succeeded} keys left the mart and nothing is deleted for them: each stands for the same object as"
        " another key, because the target does not tell them apart or gave both one id": succeeded > 0,
        "delivery is at_least_once: after a crash a row may arrive twice": (
            not plan.capabilities.idempotent and sync.delivery == "at_least_once"
        ),
        f"{job.target.kind} is a {preview}": (
            bool(preview) and (job.options.dry_run or made.known.basis.checkpoint is None)
        ),
        "this ledger has no history, and the target keeps no trace of what it was sent"
        f" (rows: {unproved}): if they were sent before, they arrive twice": bool(unproved),
        "after this run write `first_run: adopt`: if the state is ever lost, nothing is sent twice": (
            made.known.basis.is_first and resolve.sends_first(sync)
        ),
    }


def _left_behind(job: Job, known: Known, place: str) -> str | None:
    """The object that the sync delivered to until now, if it begins with another one."""
    if not known.basis.is_first or known.object != place:
        return None
    former = [one for one in job.ledger.checkpoints(job.sync.name) if one.object != place]
    return max(former, key=lambda one: one.run_id).object if former else None


def _reshaped(made: Made) -> str:
    """The fields that came, went or have another type, for a note."""
    former = json.loads(made.known.former.get("types", "null"))
    now: dict[str, str] = json.loads(made.frozen.mapped.fingerprints["types"])
    if former is None or former == now:
        return "fields, types, transforms or formats"
    names = [name for name in {**former, **now} if former.get(name) != now.get(name)]
    said = [f"{name}: {former.get(name, 'new')} → {now.get(name, 'gone')}" for name in names[:5]]
    return ", ".join(said) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _are(rows: int) -> str:
    return "1 row is" if rows == 1 else f"{rows} rows are"


def _volatile(job: Job, made: Made, plan: Plan) -> Sequence[str]:
    """If nearly every row is an update although only the mart changed: a note with the fields that differ."""
    updates = plan.changes.counts.get("update", 0)
    reshaped = made.known.former.get("what") != plan.fingerprints["what"]
    readable = made.asked.reached and plan.capabilities.readable and not made.diffed.strategy.everything
    if plan.refusals or reshaped or not readable or not volatile.is_suspect(updates, plan.read):
        return []
    last = min(volatile.SAMPLE, len(plan.changes) - plan.changes.counts.get("delete", 0)) - 1
    batch = Batch(plan.changes, *MODES[job.sync.write], plan.run.run_id, 0, 0, last)
    try:
        with closing(job.lane(plan.field_map.shape)) as destination:
            names = volatile.fields(destination, batch)
    except TargetError:  # a note is no reason to fail
        return []
    return [volatile.note(names, updates, plan.read)] if names else []
