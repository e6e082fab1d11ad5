"""What a reader of a plan should know: notes of what the target and the ledger are like, of what is sent and
what is not, and of what to write in the sync. It decides nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing

from msgspec.structs import replace

from retl.destinations.batch import MODES, Batch
from retl.engine import diff, succession, suppression
from retl.engine.baseline import BASELINE
from retl.errors import TargetError
from retl.observe.summary import counted
from retl.run import contract_diff, resolve, trace, volatile
from retl.run.diffing import Made
from retl.run.job import Job
from retl.run.known import Known
from retl.run.plan import Plan
from retl.run.recovery import Found, Settled
from retl.sources.dbt_results import note


def standing(job: Job, made: Made, plan: Plan) -> tuple[str, ...]:
    """What holds for this plan and will hold for the next ones, until its facts change."""
    said = {**_lost(job, made, plan), **_withheld(job, made, plan)}
    return (*(words for words, holds in said.items() if holds), *note(plan.facts.builds))


def notes(job: Job, made: Made, plan: Plan, *, unanswered: int) -> tuple[str, ...]:
    """What is news of this plan. `unanswered` rows of dead runs may change it."""
    said = {**_before(job, made, plan, unanswered), **_sent(job, made, plan)}
    former, types = made.known.former.get("types"), plan.fingerprints["types"]
    news = contract_diff.new_columns(job.ledger, job.sync, made.opened.description.columns)
    return (
        *(words for words, holds in said.items() if holds),
        *filter(None, (news, contract_diff.orphaned(former, types, plan.capabilities, job.sync.write))),
        *_volatile(job, made, plan),
        *filter(None, [plan.settled.note()]),
    )


def settled(job: Job, made: Made, plan: Plan, found: Found) -> Settled:
    """What became of rows that earlier runs sent and got no answer for, also of those that nothing tells and
    that would stay twice. After a restore rows are unknown for another reason."""
    capabilities, changes, known = plan.capabilities, plan.changes, made.known
    twice = job.sync.write == "append" or not capabilities.idempotent
    doubted = known.distrusted or plan.distrust is not None or known.basis.others or capabilities.whole
    again = 0
    if twice and not doubted and not found.unanswered and changes.counts.get("update"):
        (again,) = changes.workspace.one(
            f"SELECT count(*) FROM (SELECT key, op FROM {changes.table}) c JOIN {BASELINE} b USING (key)"
            " WHERE c.op = 'update' AND b.hash IS NULL"
        )
    unknown = sum(rows for (_, ending), rows in plan.ends.items() if ending == "in_doubt")
    return replace(found.settled, again=again, unknown=unknown)


def _before(job: Job, made: Made, plan: Plan, unanswered: int) -> Mapping[str, bool]:
    """What others did to the target, and what the ledger knows of it."""
    known, asked, place = made.known, made.asked, plan.capabilities.object
    left, distrust = _left_behind(job, known, place), plan.distrust
    learnt = _learnt(made, plan)
    return {
        f"this is another object than {left}: what was delivered there stays, and nothing there is deleted": (
            left is not None
        ),
        f"what is sent changed ({_reshaped(made)}): every row is sent once": (
            known.differs(made.frozen.mapped, "what")
        ),
        f"a dead run left {counted(unanswered, 'row')} unanswered: a run resolves them first, so these"
        " numbers may change": unanswered > 0,
        f"{counted(learnt, 'unchanged row', 'is')} sent once, because `conflicts` has to"
        " learn what the target holds: from then on it notices other people's edits": learnt > 0,
        "the target lost rows that expire: every row is sent again": asked.emptied,
        "ERASED: the target was restored or emptied, so people who were erased may be there again:"
        " `retl erase verify` looks for them, `retl erase --again` erases them again": (
            asked.restored and bool(known.suppressed)
        ),
        f"every row of the source was read: {made.frozen.unfed}": made.frozen.unfed is not None,
        "only the rows of these keys were read: the guards that judge all rows of the mart were not asked"
        f" (`retl sync --sync {job.sync.name} --dry-run` asks them)": made.frozen.narrowed,
        **_of_keys(job, made),
        **_unfinished(job, known),
        **_unsuppressed(job, known, plan),
        "this account has no right to write here: a run would fail": asked.readonly,
        "runs that this ledger lost may have sent the requests that follow them (`then`): those that follow"
        " this run may say the same once more": plan.behind and bool(job.followers),
        trace.TAKEN: asked.taken,
        f"the target has no column {', '.join(asked.emptied_fields)} any more, which was delivered before:"
        " it is made again, and every row is sent": bool(asked.emptied_fields),
        "the object was rewritten since the last run (a restore, TRUNCATE, VACUUM FULL, ALTER TABLE … TYPE):"
        " every row is sent again": asked.replaced and distrust is not None,
        f"this object was delivered to as {known.object}: its baseline continues": known.object != place,
        "rows that were delivered before are not deleted: after STATE_BEHIND nobody knows whose they are"
        f" (`retl state rebuild {job.sync.name} --take-ownership` takes them)": (
            distrust is not None and distrust.disown and job.sync.deletes.how != "keep"
        ),
    }


def _unfinished(job: Job, known: Known) -> Mapping[str, bool]:
    """The erasures that have not come to their end: a person who is never sent may be there all the same."""
    left = job.ledger.unfinished(job.sync.name) if known.suppressed else []
    return {
        f"erasure {one} is not finished, and its rows may still be at the target: run the same `retl erase`"
        " again": True
        for one in left
    }


def _unsuppressed(job: Job, known: Known, plan: Plan) -> Mapping[str, bool]:
    """The erasures that say nothing of this sync, because it is new or has another key now: they have digests
    of the keys of that time."""
    basis, name = known.basis, job.sync.name
    if not (basis.is_first or basis.restarts):
        return {}
    made = [one for one in job.ledger.erasures() if one.status not in ("continued", "lifted")]
    mine = set() if basis.restarts else {one.erasure_id for one in made if one.sync == name}
    left = len({one.erasure_id for one in made} - mine)
    if any(one.code == "ORPHANED_STATE" for one in plan.refusals):  # with its state it knows them all
        return {}
    which = "whose key is another one now" if basis.restarts else "which is new"
    return {
        f"ERASED: {counted(left, 'erasure', 'know')} a person only by the keys of"
        f" other syncs or of former times: this sync, {which}, sends who is still in its mart, unless the"
        f" same `retl erase` is repeated first{_same_keys(job, plan) if left else ''}": left > 0
    }


def _same_keys(job: Job, plan: Plan) -> str:
    """How many rows have a key that was erased from another sync whose key has the same columns."""
    suppressed, changes = job.ledger.suppressed_in(job.akin), plan.changes
    if not suppressed or not len(changes):
        return ""
    rows = suppression.count(changes.workspace, plan.field_map, suppressed, changes.table)
    if not rows:
        return ""
    return f"; {counted(rows, 'row')} of these {'has' if rows == 1 else 'have'} a key that was erased there"


def _learnt(made: Made, plan: Plan) -> int:
    """How many unchanged rows are sent because it is not known what the target holds of them."""
    changes, unseen = plan.changes, f"op = 'update' AND seen = {diff.NEVER}"
    if not plan.field_map.shape.cautious or not changes.counts.get("update"):
        return 0
    if not changes.workspace.run(f"SELECT 1 FROM {changes.table} WHERE {unseen} LIMIT 1"):
        return 0
    (number,) = changes.workspace.one(
        f"SELECT count(*) FROM (SELECT key, hash FROM {changes.table} WHERE {unseen}) c"
        f" JOIN {BASELINE} b USING (key) WHERE b.seen IS NULL AND b.hash = c.hash"
    )
    return int(number)


def _lost(job: Job, made: Made, plan: Plan) -> Mapping[str, bool]:
    """What the target lacks, and no run sends."""
    asked = made.asked
    ways = f"`retl reconcile {job.sync.name} --repair` sends what is missing"
    if plan.field_map.shape.conflicts != "warehouse_wins":
        ways = "`conflicts` keeps rows that others removed away"
    if plan.capabilities.whole:
        if len(plan.changes):  # then every row is sent
            return {}
        ways = f"nothing changed; `retl sync --sync {job.sync.name} --full` sends every row"
    return {
        f"the target lacks {asked.lost} of {asked.sampled} sampled rows that were delivered, and they are not"
        f" sent: {ways}": asked.lost > 0 and not plan.refusals
    }


def _of_keys(job: Job, made: Made) -> Mapping[str, bool]:
    """What became of the keys of which somebody said that their rows may have changed."""
    absent = made.diffed.absent
    if absent is None:
        return {}
    gone = (
        f"{absent.gone} of these keys were delivered and have left the mart: a run of the whole mart deletes"
    )
    return {
        f"keys that the mart does not have: {absent.missing} of {absent.asked}": absent.missing > 0,
        f"{gone} them": absent.gone > 0 and job.sync.deletes.how != "keep",
    }


def _withheld(job: Job, made: Made, plan: Plan) -> Mapping[str, bool]:
    """What is not sent or deleted, and what may arrive twice."""
    sync, erased = job.sync, made.diffed.erased
    withheld = plan.ends.get(("delete", "not_attempted"), 0)
    succeeded = plan.ends.get(("delete", succession.SUCCEEDED), 0) if made.diffed.strategy.absence else 0
    outside = plan.ends.get(("delete", diff.OUTSIDE), 0)
    facts, known = plan.facts, made.known.baseline_rows
    return {
        f"the mart has no rows: nothing is sent, and {counted(known, 'delivered row', 'stay')}": (
            facts.full_read and not facts.total and not facts.deletes_on and known > 0
        ),
        f"{counted(withheld, 'delete', 'wait')}: a row without a usable key may be one of them": withheld > 0,
        f"ERASED: {counted(erased, 'row', 'is')} never sent, by an erasure"
        f" (`retl erase --lift --sync {sync.name} --key …` takes one off)": erased > 0,
        f"{counted(outside, 'key')} left the mart and {'stays' if outside == 1 else 'stay'}: outside"
        " `deletes: {within: …}`": outside > 0,
        f"{counted(succeeded, 'key')} left the mart and nothing is deleted for"
        f" {'it: it' if succeeded == 1 else 'them: each'} stands for the same object as"
        " another key, because the target does not tell them apart or gave both one id": succeeded > 0,
        "delivery is at_least_once: after a crash a row may arrive twice": (
            not plan.capabilities.idempotent and sync.delivery == "at_least_once"
        ),
        f"`write: {sync.write}` says that the target takes a row twice as once: after a crash or without an"
        " answer a row is sent again": plan.capabilities.posts_twice,
    }


def _sent(job: Job, made: Made, plan: Plan) -> Mapping[str, bool]:
    """What a first run should know, and what to write in the sync after it."""
    preview, unproved = job.target.destination.about.preview, plan.facts.unproved
    return {
        f"{job.target.kind} is a {preview}": (
            bool(preview) and (job.options.dry_run or made.known.basis.checkpoint is None)
        ),
        "this ledger has no history, and the target keeps no trace of what it was sent"
        f" (rows: {unproved}): if they were sent before, they arrive twice": bool(unproved),
        "after this run write `first_run: adopt`: if the state is ever lost, nothing is sent twice": (
            made.known.basis.is_first and resolve.sends_first(job.sync)
        ),
    }


def _left_behind(job: Job, known: Known, place: str) -> str | None:
    """The object that the sync delivered to until now, if it begins with another one."""
    if not known.basis.is_first or known.object != place:
        return None
    former = [one for one in job.ledger.checkpoints(job.sync.name) if one.object != place]
    return max(former, key=lambda one: one.run_id).object if former else None


def _reshaped(made: Made) -> str:
    """The fields that came, went or have another type, and what else of what is sent changed, for a note."""
    former, now = made.known.former, made.frozen.mapped.fingerprints
    types, parts = ((_parsed(former, name), _parsed(now, name)) for name in ("types", "parts"))
    said = [f"{name}: {then or 'new'} → {today or 'gone'}" for name, then, today in _differing(*types)]
    said += [name for name, then, today in _differing(*parts) if then and today]
    if not said:
        return "fields, types, transforms or formats"
    return ", ".join(said[:5]) + (f" and {len(said) - 5} more" if len(said) > 5 else "")


def _parsed(fingerprints: Mapping[str, str], name: str) -> dict[str, str] | None:
    parsed: dict[str, str] | None = json.loads(fingerprints.get(name, "null"))
    return parsed


def _differing(
    former: dict[str, str] | None, now: dict[str, str] | None
) -> Iterator[tuple[str, str | None, str | None]]:
    """The names with another value than before, if that is known."""
    if former is not None and now is not None:
        for name in {**former, **now}:
            if former.get(name) != now.get(name):
                yield name, former.get(name), now.get(name)


def _volatile(job: Job, made: Made, plan: Plan) -> Sequence[str]:
    """If nearly every row is an update although only the mart changed: a note with the fields that differ."""
    updates = plan.changes.counts.get("update", 0)
    reshaped = made.known.former.get("what") != plan.fingerprints["what"] or bool(made.asked.emptied_fields)
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
