"""Why a run that reached its end is not a success: rows in doubt, postponed by the target, or all refused."""

from __future__ import annotations

from collections.abc import Sequence

from retl.delivery.answered import Answered, rows_with
from retl.destinations.batch import Kind
from retl.errors import Failure
from retl.observe.summary import Counts, counted
from retl.run.plan import Plan


def find(
    sync: str, plan: Plan, answered: Sequence[Answered], numbers: Counts, refused: int
) -> Failure | None:
    """Failure IN_DOUBT, TARGET_BUSY or ALL_REFUSED. `refused`: the rows that the target refused and nobody
    has dismissed."""
    if problem := in_doubt(sync, plan, answered, numbers):
        return problem
    if postponed := rows_with(answered, Kind.RETRY):
        return Failure(
            "TARGET_BUSY",
            f"the target postponed {counted(postponed, 'row')} beyond the retry budget",
            hint="run again: they are still due",
        )
    in_place = plan.capabilities.in_place and numbers.unchanged > 0
    if refused and not (numbers.written or in_place):  # a set with rows that are the same has arrived
        skipped = f", skipped: {numbers.skipped}" if numbers.skipped else ""
        return Failure(
            "ALL_REFUSED",
            f"nothing was written; rows refused by the target: {refused}{skipped}",
            hint="see `retl rejects`",
        )
    return None


def in_doubt(
    sync: str, plan: Plan | None, answered: Sequence[Answered], numbers: Counts, ended: str | None = None
) -> Failure | None:
    """Failure IN_DOUBT if rows have no answer; `ended`: why the run stopped before its end."""
    doubtful = numbers.in_doubt + numbers.deletes.in_doubt
    if plan is None or not doubtful:
        return None
    message = f"rows without an answer: {doubtful}. It is unknown whether they arrived"
    if said := _said(answered):
        message = f"{counted(doubtful, 'row', 'is')} in doubt: {said}"
    distrusted = any(delta.distrusts is not None for delta in plan.basis.deltas)
    return Failure(
        "IN_DOUBT",
        f"{message}; the run stopped because {ended}" if ended else message,
        hint=f"`retl state rebuild {sync}` reads what the target has"
        if distrusted  # no batch has these rows
        else "look into the target, then `retl resolve`",
    )


def _said(answered: Sequence[Answered]) -> str | None:
    """What an answer said that left rows in doubt."""
    for one in answered:
        results = (one.outcome.default, *one.outcome.exceptions.values()) if one.outcome else ()
        for result in results:
            if result.kind is Kind.UNKNOWN and result.reason:
                return f"{result.code}: {result.reason}" if result.code else result.reason
    return None
