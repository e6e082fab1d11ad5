"""Why a run must not write: facts about a sync, its ledger and its target that no guard measures."""

from __future__ import annotations

from collections.abc import Iterator

from retl.errors import DefinitionError
from retl.observe.summary import counted
from retl.run import columns, guards, trace
from retl.run.diffing import Made
from retl.run.guards import Facts, Refusal
from retl.run.job import Job, repeats
from retl.run.known import Known
from retl.run.mart import Mapped


def found(job: Job, made: Made, facts: Facts) -> list[Refusal]:
    """Why the run must not write, without what is accepted."""
    mapped, known, accept = made.frozen.mapped, made.known, job.options.accept
    redefined = known.basis.restarts and not job.options.adopt
    described, now = made.opened.description.columns, mapped.fingerprints
    found = [*_redefined(redefined), *_orphans(job, mapped, known)]
    found += columns.drifted(known.former, now, mapped.field_map, described)
    found += _doubted(job, made)
    found = [*made.asked.refusals, *(one for one in found if one.code not in accept)]
    return [*found, *guards.judge(facts, job.sync.guards, accept), *unapproved(job)]


def _redefined(redefined: bool) -> Iterator[Refusal]:
    if redefined:
        yield Refusal(
            "IDENTITY_CHANGED",
            "the key's columns or types differ from those of the delivered rows",
            "--accept IDENTITY_CHANGED starts a new baseline: every row is sent, nothing is deleted",
        )


def _orphans(job: Job, mapped: Mapped, known: Known) -> Iterator[Refusal]:
    """Refuse if this sync is probably a new name of a sync that still has state."""
    if not known.basis.is_first or not job.siblings:
        return
    for former in job.ledger.checkpoints_on(mapped.capabilities.object):
        if former.sync not in job.siblings:
            yield Refusal(
                "ORPHANED_STATE",
                f"sync {former.sync!r} delivered to this object and no longer exists: was it renamed?",
                f"`retl state mv {former.sync} {job.sync.name}` keeps its state; --accept ORPHANED_STATE"
                " starts without it",
            )


def _doubted(job: Job, made: Made) -> Iterator[Refusal]:
    """Refuse to send from a ledger that another sync found to be wrong: it may have forgotten what it sent,
    and whom it must never send again. A new ledger that knows this sync has sent for it since."""
    doubted, rows = job.doubted, len(made.due.changes)
    if doubted is None or not rows or adopts(job, made.known):
        return
    behind = doubted.code == "STATE_BEHIND"
    if not (behind or repeats(job.sync) or made.known.basis.is_first):
        return
    state = "is older than what it sent" if behind else "is not the one that sent"
    may, which = "may have been sent before, and would arrive twice", "newer" if behind else "former"
    ways = f"`retl state adopt {job.sync.name}` takes today's rows as sent; or "
    if not repeats(job.sync):
        may, ways = "may be of people who were erased, which such a ledger does not know", ""
    yield Refusal(
        doubted.code,
        f"the ledger {state}, as {doubted.sync} found, and this target keeps no marks: some of these"
        f" {counted(rows, 'row')} {may}",
        f"bring the {which} ledger back; or {ways}--accept {doubted.code} sends them"
        + ("" if repeats(job.sync) else f"; {trace.FORGOTTEN}"),
    )


def unapproved(job: Job) -> Iterator[Refusal]:
    """Refuse to send the mart without a signed plan, where the sync asks for one. To restore rows, or to
    erase a person, must not wait for a plan."""
    options = job.options
    sends = options.purpose in ("sync", "apply", "repair") and not (options.dry_run or options.adopt)
    if job.sync.require == "approval" and sends and options.approved_by is None:
        yield Refusal(
            "APPROVAL_REQUIRED",
            "this sync delivers only plans that somebody signed (`require: approval`)",
            f"`retl plan --sync {job.sync.name} --out PLAN`; another person signs it (`ssh-keygen -Y sign -n"
            " retl-plan -f KEY PLAN`); `retl apply PLAN --signature PLAN.sig`",
        )


def refuse_part(job: Job, mapped: Mapped, known: Known, in_part: bool) -> None:
    """DefinitionError where a part of the mart is asked for and only the whole can be right."""
    sync, wrong = job.sync, None
    if in_part and sync.first_run == "adopt" and known.basis.is_first:
        wrong = "ADOPT_WHOLE", "`first_run: adopt` records the whole mart as delivered, never a part of it"
    elif mapped.capabilities.whole and (in_part or job.options.purpose not in ("sync", "apply")):
        wrong = "SNAPSHOT_WHOLE", "a snapshot has every row of the mart, so a part of it cannot be sent"
    if wrong:
        hint = "run without --key, --where and --limit"
        raise DefinitionError(*wrong, hint=hint, where=f"sync {sync.name}")


def adopts(job: Job, known: Known) -> bool:
    """Whether the rows are recorded as delivered and not sent."""
    return job.options.adopt or (job.sync.first_run == "adopt" and known.basis.is_first)
