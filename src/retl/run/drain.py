"""Drain: a plan's change set in batches, phase by phase, deletes last. It knows no sync.

Every command that writes makes a plan and ends here.
"""

from __future__ import annotations

from collections.abc import Iterator

from retl.delivery.failure_rate import FailureRate
from retl.delivery.lanes import Delivery
from retl.destinations.batch import MODES, Batch, Kind
from retl.engine.change_set import Phase
from retl.observe import log
from retl.run.plan import Plan

ROOM_MADE = frozenset({"23505", "23503", "23P01"})  # refusals that a later delete may have resolved


def drain(plan: Plan, delivery: Delivery, epoch: int) -> None:
    """Deliver the change set; the answers are in `delivery`. Nothing is deleted while a row is in
    doubt or must be retried, and no object that an answer of this run gave to another row. Raises the error
    that stopped it."""
    failure_rate = FailureRate(plan.terms.max_failed_rate)
    for phase in plan.changes.phases:
        deletes = phase.mode == "delete"
        if deletes and (delivery.count(Kind.UNKNOWN) or delivery.count(Kind.RETRY)):
            return
        kept = _answered_again(plan, delivery) if deletes else []
        parts = (batch for part in phase.without(kept) for batch in batches(plan, part, epoch))
        delivery.drain(parts, None if phase.retried else failure_rate)
        if deletes and plan.capabilities.idempotent:
            delivery.retry_after_deletes(ROOM_MADE)


def _answered_again(plan: Plan, delivery: Delivery) -> list[int]:
    """The positions of deletes whose external id this run got for a row of the mart. They wait: the next run
    knows that both keys stand for one object."""
    deletes = plan.changes.deletes_by_ref()
    found: set[int] = set()
    if deletes:
        for one in delivery.answered:
            for result in one.outcome.exceptions.values() if one.outcome else ():
                found.update(deletes.get(result.ref or "", ()))
    if found:
        log.event("deletes_withheld", rows=len(found))
    return sorted(found)


def batches(plan: Plan, phase: Phase, epoch: int) -> Iterator[Batch]:
    """The rows of a phase in batches of the largest size that plan and target allow."""
    most = plan.capabilities.max_rows
    if phase.mode == "delete":
        most = plan.capabilities.max_deletes or most
    size = min(plan.terms.batch_rows, most or plan.terms.batch_rows)
    new = not plan.changes.counts.keys() - {"insert", "delete"}
    for first, last in phase.cut(size):
        yield Batch(
            plan.changes,
            *MODES[phase.mode],
            plan.run.run_id,
            epoch,
            first,
            last,
            plan.run.started_at.isoformat(),
            new=new,
            exclusive=True,
        )
