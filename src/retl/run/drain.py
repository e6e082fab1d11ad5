"""Drain: a plan's change set in batches, phase by phase, deletes last. It knows no sync.

Every command that writes makes a plan and ends here. Rows that the target refuses because another row comes
later are sent again in rounds, as long as a round gets something through.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Protocol

from msgspec.structs import replace

from retl.delivery.answered import refused_rows, rows_with
from retl.delivery.failure_rate import FAILED_RATE_FROM, FailureRate
from retl.delivery.lanes import Delivery
from retl.destinations.batch import MODES, Batch, Capabilities, Kind, Order, Outcome, Returns, RowResult
from retl.engine.answers import Answers
from retl.engine.change_set import ChangeSet, Phase
from retl.engine.mapping import Run
from retl.observe import log
from retl.run.plan import Plan, Terms

LINKS = frozenset({"23503", "23001"})  # refusals by a reference to another row, or from one
UNIQUE = frozenset({"23505", "23P01"})  # refusals by a value that another row has
BY_ORDER = LINKS | UNIQUE
ROUND_ROWS = 25_000  # in one statement: the more rows, the fewer rounds
OTHERS_ROWS = 10_000  # rows that may wait for other syncs: these may be of no help

Others = Callable[[], bool]  # runs the other syncs that may be of help; False if there are none
# Sends these rows of a plan: of one phase, or all of them.
Send = Callable[[Sequence[Phase], FailureRate], None]


class Cuttable(Protocol):
    """What batches are made of: a plan, or one shard's part of it."""

    @property
    def run(self) -> Run: ...
    @property
    def capabilities(self) -> Capabilities: ...
    @property
    def terms(self) -> Terms: ...
    @property
    def changes(self) -> ChangeSet: ...


def drain(
    plan: Plan,
    delivery: Delivery,
    epoch: int,
    others: Others | None = None,
    returns: Answers | None = None,
    send: Send | None = None,
) -> None:
    """Deliver the change set; the answers are in `delivery`. Nothing is deleted while a row is in
    doubt or must be retried, and no object that an answer of this run gave to another row. Raises the error
    that stopped it. `send`: other processes send the rows, and `delivery` gets their answers."""

    def here(parts: Sequence[Phase], failure_rate: FailureRate) -> None:
        delivery.drain((b for part in parts for b in batches(plan, part, epoch, returns)), failure_rate)

    send = send or here
    if plan.capabilities.whole:  # rows that left go with the others: after a kill they are unknown too
        send(plan.changes.phases, FailureRate(plan.terms.max_failed_rate))
        return
    rounds = Rounds(plan, delivery, epoch, returns, patient=others is not None)
    failure_rate = FailureRate(plan.terms.max_failed_rate, rounds.waiting, plan.terms.max_conflict_rate)
    for phase in plan.changes.phases:
        kept: Sequence[int] = ()
        if phase.mode == "delete":
            rounds.repeat()
            if rows_with(delivery.answered, Kind.UNKNOWN) or rows_with(delivery.answered, Kind.RETRY):
                return
            rounds.judge(len(phase))
            kept = _answered_again(plan, delivery)
        send(list(phase.without(kept)), failure_rate)
    rounds.repeat()
    if others is not None and rounds.left(LINKS) and others():
        rounds.repeat()
    rounds.patient = False
    rounds.judge()


class Rounds:
    """The rows of a plan that were refused because of their order. `patient`: while other syncs may still
    help."""

    def __init__(
        self, plan: Plan, delivery: Delivery, epoch: int, returns: Answers | None, *, patient: bool
    ) -> None:
        self.patient = patient
        self._plan, self._delivery, self._epoch, self._returns = plan, delivery, epoch, returns
        self._numbers = count(2, 2)  # a batch of each number; odd numbers are its slices
        counts = plan.changes.counts
        self._room = {"unique": sum(counts.get(op, 0) for op in ("update", "refresh", "delete"))}
        self._room["others"] = OTHERS_ROWS

    def repeat(self) -> None:
        """Send the refused rows again, until a round gets nothing through. Only where twice is once: the
        batches of a round have no intent of their own."""
        backwards = True
        while self._plan.capabilities.idempotent and (
            self._round(backwards, deletes=True) + self._round(backwards, deletes=False)
        ):
            backwards = not backwards

    def left(self, codes: frozenset[str] = BY_ORDER) -> bool:
        return any(refused_rows(self._delivery.answered, codes, deletes=deletes) for deletes in (True, False))

    def judge(self, coming: int = 0) -> None:
        """Judge all answers so far. Systemic ALL_REFUSED, Failure FAILED_RATE. Each of the `coming` deletes
        may free a unique value."""
        waiting = Counter[str]()
        for code in sorted(BY_ORDER):
            rows = len(refused_rows(self._delivery.answered, {code}, deletes=False))
            if code in LINKS:
                waiting[code] = rows if self.patient else 0
            else:
                waiting[code] = min(rows, coming - sum(waiting[other] for other in UNIQUE))
        answered = self._delivery.answered
        answers = [(one.batch, one.outcome) for one in answered if one.outcome and one.attempts]
        FailureRate(self._plan.terms.max_failed_rate).add_all(answers, waiting)

    def waiting(self, batch: Batch, outcome: Outcome) -> Mapping[str, int]:
        """How many refused rows of an answer may still get through, by code. A row that refers to a row which
        is nowhere in the plan does not wait: a wrong mapping must not be sent to its end."""
        if not self._plan.capabilities.idempotent:
            return {}
        rows = range(len(batch)) if outcome.default.code in BY_ORDER else sorted(outcome.exceptions)
        refused = {row: one for row in rows if (one := outcome.result(row)).code in BY_ORDER}
        if batch.operation in ("delete", "restore"):  # nothing is sent after them: they are judged at the end
            return Counter(str(one.code) for one in refused.values())
        orders = {one.order for one in refused.values() if one.order is not None}
        follow = {one: self._plan.changes.may_follow(one, batch.first, batch.last) for one in orders}
        waiting = Counter[str]()
        for row, one in refused.items():
            if self._waits(batch.first + row, one, follow):
                waiting[str(one.code)] += 1
        return waiting

    def _waits(self, position: int, result: RowResult, follow: Mapping[Order, set[int]]) -> bool:
        if result.order is not None and position not in follow[result.order]:
            return False
        if result.code in LINKS and result.order is not None:
            return True
        reason = "unique" if result.code in UNIQUE else "others"
        self._room[reason] -= 1
        return self._room[reason] >= 0 and (reason == "unique" or self.patient)

    def _round(self, backwards: bool, *, deletes: bool) -> int:
        """How many rows got through. Every other round goes backwards, for rows that wait for later ones."""
        positions = refused_rows(self._delivery.answered, BY_ORDER, deletes=deletes)
        most = self._plan.capabilities.max_rows or ROUND_ROWS
        decisions = self._plan.terms.decisions
        parts = [positions[at : at + most] for at in range(0, len(positions), most)]
        through = 0
        for part in reversed(parts) if backwards else parts:
            phase = next(one for one in self._plan.changes.phases if (one.mode == "delete") is deletes)
            rows = self._plan.changes.pick(part)
            returns = None if self._returns is None else self._returns.again(rows.table)
            phase = replace(phase, first=0, last=len(part) - 1)
            batch = _batch(self._plan, rows, phase, self._epoch, returns)
            decided = {row: decisions[at] for row, at in enumerate(part) if at in decisions}
            batch = replace(batch, round=next(self._numbers), decisions=decided)
            through += self._delivery.repeat(batch, part, returns.record if returns is not None else None)
        return through


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


def batches(plan: Cuttable, phase: Phase, epoch: int, returns: Returns | None = None) -> Iterator[Batch]:
    """The rows of a phase in batches of the largest size that plan and target allow."""
    for first, last in phase.cut(size(plan, phase)):
        yield batch(plan, replace(phase, first=first, last=last), epoch, returns)


def size(plan: Cuttable, phase: Phase) -> int:
    """The rows of a batch of this phase."""
    if plan.capabilities.whole:
        return len(phase)
    most = plan.capabilities.max_rows
    if phase.mode == "delete":
        most = plan.capabilities.max_deletes or most
    return min(plan.terms.batch_rows, most or plan.terms.batch_rows)


def batch(plan: Cuttable, phase: Phase, epoch: int, returns: Returns | None = None) -> Batch:
    """All rows of a phase as one batch."""
    return _batch(plan, plan.changes, phase, epoch, returns)


def _batch(plan: Cuttable, rows: ChangeSet, phase: Phase, epoch: int, returns: Returns | None) -> Batch:
    return Batch(
        rows,
        *MODES[phase.mode],
        plan.run.run_id,
        epoch,
        phase.first,
        phase.last,
        plan.run.started_at.isoformat(),
        new=not plan.changes.counts.keys() - {"insert", "delete"},
        exclusive=True,
        returns=returns,
        refill=plan.terms.refill,
        most_refused=_most_refused(plan, phase) if plan.capabilities.whole else None,
        decisions=plan.terms.decisions if rows is plan.changes else {},
    )


def _most_refused(plan: Cuttable, phase: Phase) -> int:
    """How many rows of a phase the target may refuse before the run fails."""
    rows = len(phase)
    return rows if rows < FAILED_RATE_FROM else int(plan.terms.max_failed_rate * rows)
