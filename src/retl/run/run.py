"""One active run: what it has done so far, and how it ends in the ledger.

`pipeline.sync` has the order of the steps; this module has the steps. Whatever happens after `begin`, the run
ends with a correct status.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from functools import cached_property
from itertools import count
from typing import Any

from msgspec.structs import asdict, replace

from retl.delivery.answered import Answered
from retl.delivery.lanes import Delivery, prepared
from retl.destinations.api import Destination
from retl.destinations.batch import (
    MODES,
    PRESENT,
    Batch,
    Capabilities,
    Outcome,
    Visit,
)
from retl.engine import hash
from retl.engine.answers import LATEST, Answers
from retl.engine.mapping import Run
from retl.engine.workspace import Workspace
from retl.errors import Failure, Later, LedgerError, Misasked, Mismatch, RetlError, Stopped, Unavailable
from retl.ledger import Checkpoint, Lock, RejectChanges, RunEnd
from retl.observe import log
from retl.observe.summary import REJECTS_SHOWN, Counts, Summary, counted, described
from retl.run import asked, asserting, checkpoint, counts, recovery, reset, shortfall, standing, then, trace
from retl.run.counts import Account
from retl.run.drain import drain
from retl.run.job import Clock, Job
from retl.run.journal import RunJournal
from retl.run.mart import Mapped
from retl.run.plan import Plan

EXAMPLES_KEPT = 100  # rejects kept with the run itself


def new_run(job: Job) -> Run:
    """A run with the job's id, or one that sorts by time, on the ledger's clock."""
    made = Run.at(job.ledger.now())
    return replace(made, run_id=job.run_id) if job.run_id else made


class Execution:
    """The steps of one run, and their results."""

    workspace: Workspace  # from the planning on

    def __init__(self, job: Job, run: Run, lock: Lock, clock: Clock) -> None:
        self.job, self.run, self.lock, self.clock = job, run, lock, clock
        self.plan: Plan | None = None
        self.delivery: Delivery | None = None
        self.settled = recovery.Settled()  # what became of rows of earlier runs
        self.found: dict[str, Any] = {}  # what a comparison found, to be kept with the counts
        self._dismissed: counts.Dismissals = frozenset()  # what somebody had dismissed when the run began

    def begin(self) -> None:
        """Write the RUNNING row, durable before anything else happens."""
        job = self.job
        job.ledger.begin(asked.start(job, self.run, self.lock.epoch))
        self._dismissed = counts.dismissals(job.ledger.rejects(job.sync.name, "dismissed"))
        so_far = sum(self.clock.so_far().values())
        log.event(
            "run_started", object=job.object, correlation_id=job.correlation_id, seconds=round(so_far, 3)
        )

    def recover(
        self,
        mapped: Mapped,
        workspace: Workspace,
        target: str,
        doubtful: str | None = None,
        *,
        lost: trace.Lost = (),
    ) -> recovery.Found:
        """Resolve the open batches of dead runs, and those of the run `doubtful` that have no answer. Those
        that the target has `lost` are due again."""
        recovery.take_back(self.job.ledger, self.lock.epoch, lost)
        delivery = self._delivery(
            mapped.capabilities, every=True, lane=lambda: self.job.lane(mapped.field_map.shape)
        )
        self.settled = recovery.resolve(
            self.job, mapped, workspace, target, delivery, self.lock.epoch, doubtful
        )
        return recovery.Found(settled=self.settled)

    def record(self) -> None:
        """Record, before anything is written, what the target's trace made of the baseline, and whether this
        run decides that the ledger delivers here."""
        plan, ledger = self._planned(), self.job.ledger
        if plan.undecided is None:
            trace.decide(ledger, plan.capabilities.object)
        elif plan.undecided.strange:
            trace.leave_open(ledger, plan.capabilities.object, self.run.run_id)
        if plan.past >= self.lock.epoch:
            ledger.advance(self.run.run_id, self.lock, plan.past)
        if plan.moved_from is not None:
            checkpoint.move(ledger, self.job.sync.name, plan, self.workspace, self.lock.epoch)
        if plan.distrust is not None:
            ledger.distrust(self.run.run_id, self.lock.epoch, asdict(plan.distrust))
        if plan.behind and plan.undecided is None:
            ledger.doubt_requests(self.lock.epoch, self.job.sync.name)

    def prepare(self) -> None:
        """Create what the target needs, if something will be written."""
        plan = self._planned()
        if plan.basis.restarts and not len(plan.changes):
            place, kept = plan.capabilities.object, plan.basis.kept
            self.job.ledger.forget(self.job.sync.name, place, self.lock.epoch, keep=kept)
        if plan.adopting and not plan.behind:
            return
        if not (len(plan.changes) or plan.basis.checkpoint is None):
            return
        keep = plan.basis.marked | {run for run, _ in plan.marks or ()}
        keep |= plan.undecided.runs if plan.undecided else frozenset()
        with closing(self._lane()) as destination:
            destination.prepare(Visit(self.run.run_id, self.lock.epoch, keep, exclusive=True))
        log.event("target_prepared")

    def deliver(self) -> None:
        """Record the change set as a durable delta, then drain it or adopt it."""
        plan, ledger = self._planned(), self.job.ledger
        if not len(plan.changes):
            self._relocate()
            return
        if plan.payload is None:
            hash.release(self.workspace)
        name = f"{self.run.run_id}.delta.parquet"
        compares = plan.field_map.shape.conflicts != "warehouse_wins"
        plan.changes.write_delta(self.workspace.directory / name, compares=compares)
        ledger.put_file(name, self.workspace.directory / name)
        if plan.adopting:
            self._adopt()  # before the delta: after a kill in between, rows would be sent
        restart = plan.capabilities.object if plan.basis.restarts else None
        ledger.record_delta(
            self.run.run_id,
            self.lock.epoch,
            name,
            len(plan.changes),
            plan.fingerprints,
            writes=asked.written(plan.field_map.shape),
            restart=restart,
            keep=plan.basis.kept,
        )
        log.event("delta_written")
        if plan.adopting:
            self._relocate()
            return
        answers = None
        if plan.field_map.shape.digests != "none":
            first = LATEST if plan.shards is not None else 0
            numbers = count(first), count(first + 1)
            answers = Answers(self.workspace, self.run.run_id, plan.changes.table, ledger, *numbers)
        every = prepared(plan.capabilities)
        self.delivery = self._delivery(plan.capabilities, every=every, lane=self._lane, answers=answers)
        with closing(self.delivery), ExitStack() as hold:
            send = None
            if plan.shards is not None:
                send = hold.enter_context(plan.shards.sending(plan, self.lock, self.delivery))
            drain(plan, self.delivery, self.lock.epoch, self._others(), answers, send)

    def commit(self) -> Summary:
        """One ledger transaction: the run's delta joins the baseline, checkpoint, status."""
        plan, job = self._planned(), self.job
        with self.clock.phase("commit"):
            numbers = self._account.counts()
            error = self._shortfall(numbers)
            rejected = numbers.rejected or numbers.deletes.rejected
            dismissed = self._account.number_dismissed()
            is_open = rejected and not (dismissed and dismissed == len(self._account.rejects))
            status = "FAILED" if error else "SUCCESS_WITH_REJECTS" if is_open else "SUCCESS"
            made = None
            if error is None:
                made = checkpoint.make(
                    job.ledger,
                    job.sync,
                    plan,
                    self.workspace,
                    self.lock.epoch,
                    self._answered,
                    whole=not (numbers.not_attempted or job.options.partial or rejected),
                )
                error = self._asserted()
                status = "FAILED" if error else status
            reject_changes = self._rejects()
            log.event("committing")
            job.ledger.unblock(job.target.connection)
            self._finish(status, numbers, made, reject_changes, error)
            if made is not None:
                self._tidy()
        return self._summary(status, error.exit_code if error else 0, numbers, error)

    def _shortfall(self, numbers: Counts) -> Failure | None:
        """Why the run is not a success, though it reached its end."""
        plan = self._planned()
        sent = self.delivery.answered if self.delivery else None
        return reset.find(self.job, self.run, self.lock, plan, self.workspace, sent) or shortfall.find(
            self.job.sync.name, plan, sent or (), numbers, self._account.open_refusals()
        )

    def _asserted(self) -> Failure | None:
        """Why the target does not hold what the sync asserts; the delivery is confirmed all the same."""
        if not self.job.sync.asserts or self.job.options.purpose not in ("sync", "apply"):
            return None
        found = asserting.ask(self.job, self._planned())
        self.found["assert"] = asserting.documents(found)
        return asserting.failure(found)

    def numbers(self) -> Counts:
        """The numbers of the run so far; computed once, after the last answer."""
        return self._account.counts()

    def end(self, numbers: Counts, made: Checkpoint | None = None) -> Summary:
        """The end of a run that sent nothing."""
        self._finish("SUCCESS", numbers, made, RejectChanges(retain=self._retain), None)
        self._tidy()
        return self._summary("SUCCESS", 0, numbers, None)

    def refuse(self) -> Summary:
        """A guard refused: nothing was written, and the ledger keeps the counts and examples."""
        plan = self._planned()
        numbers = counts.if_refused(plan)
        first = plan.refusals[0]
        problem = Mismatch(first.code, first.message, hint=first.hint)
        self._finish("REFUSED", numbers, None, RejectChanges(retain=self._retain), problem)
        return self._summary("REFUSED", problem.exit_code, numbers, problem)

    def fail(self, problem: RetlError) -> Summary:
        """The run stopped before its end: delivered rows stay delivered, and the ledger knows them. If the
        ledger is what failed, the summary still has the numbers of the answers that arrived."""
        if isinstance(problem, Misasked) and self.plan is None and self._withdrawn(problem):
            return Summary(self.job.sync.name, None, "FAILED", problem.exit_code, error=described(problem))
        numbers = Counts()
        if self.plan is not None:
            self.workspace.unstoppable()
        if self.plan is not None and not isinstance(problem, Mismatch):
            with suppress(RetlError):  # a full disk may also keep us from counting
                numbers = self._account.counts()
        if isinstance(problem, Later):
            so_far = self.plan, self._answered, numbers
            problem = shortfall.in_doubt(self.job.sync.name, *so_far, problem.message) or problem
        status = (
            "INTERRUPTED"
            if isinstance(problem, Stopped) or (isinstance(problem, Later) and self.delivery is not None)
            else "REFUSED"
            if isinstance(problem, Mismatch)
            else "BLOCKED"
            if isinstance(problem, Later)
            else "FAILED"
        )
        try:
            self._record_failure(status, numbers, problem)
        except RetlError as lost:  # the next run finds this one dead, with the answers recorded so far
            status, problem = "FAILED", problem if isinstance(problem, LedgerError) else lost
        return self._summary(status, problem.exit_code, numbers, problem)

    def _withdrawn(self, problem: Misasked) -> bool:
        """Whether this is no run after all, because somebody mistyped what to send."""
        gone = self.job.ledger.withdraw(self.run.run_id, self.lock.epoch)
        if gone:
            ended: dict[str, Any] = {"status": "FAILED", "exit_code": problem.exit_code, "code": problem.code}
            log.event("run_finished", **ended, counts={})
        return gone

    def _record_failure(self, status: str, numbers: Counts, problem: RetlError) -> None:
        rejects = RejectChanges(retain=self._retain)
        if self.delivery is not None and not isinstance(problem, Mismatch):
            rejects = self._rejects()
        if isinstance(problem, Unavailable):
            failures = self.job.sync.retry.attempts
            self.job.ledger.count_failures(self.job.target.connection, failures, problem.code)
        self._finish(status, numbers, None, rejects, problem)

    def _tidy(self) -> None:
        """Remove files that are no longer read. The run has ended: if it fails, a later run does it."""
        try:
            job = self.job
            images = job.sync.rollback.keep if job.images is None else job.images
            job.ledger.tidy(job.sync.name, job.sync.log.keep, images)
        except RetlError as problem:
            log.event("tidy_failed", level="warning", code=problem.code)

    def _planned(self) -> Plan:
        assert self.plan is not None
        return self.plan

    def _journal(self, *, every: bool, answers: Answers | None = None) -> RunJournal:
        return RunJournal(self.job.ledger, self.lock, self.run.run_id, every=every, answers=answers)

    def _lane(self) -> Destination[Any]:
        return self.job.lane(self._planned().field_map.shape)

    def _delivery(
        self,
        capabilities: Capabilities,
        lane: Callable[[], Destination[Any]],
        *,
        every: bool,
        answers: Answers | None = None,
    ) -> Delivery:
        job = self.job
        wanted, most = job.pace.concurrency or capabilities.lanes, capabilities.most_lanes
        capabilities = replace(capabilities, lanes=min(wanted, most or capabilities.lanes))
        return Delivery(
            lane=lane,
            capabilities=capabilities,
            journal=self._journal(every=every, answers=answers),
            pace=job.pace,
            retry=job.sync.retry,
            stop=job.stop,
            resend_unknown=job.sync.delivery == "at_least_once",
        )

    def _others(self) -> Callable[[], bool] | None:
        """Runs the other syncs of the invocation that write to the same connection, if there are any."""
        run_others = self.job.others

        def others() -> bool:
            assert run_others is not None
            log.event("waiting_for_others")
            with self.clock.stopped():
                return run_others()

        return others if run_others is not None else None

    def _adopt(self) -> None:
        """Record the mart as delivered: every row is confirmed and not owned, nothing is sent."""
        plan = self._planned()
        last = len(plan.changes) - 1
        batch = Batch(plan.changes, *MODES[self.job.sync.write], self.run.run_id, self.lock.epoch, 0, last)
        journal = self._journal(every=False)
        journal.open([batch])
        journal.acknowledge(Answered(batch, Outcome(PRESENT), attempts=0))
        journal.flush()

    def _relocate(self) -> None:
        """What was adopted holds at every address of the object, although no mark of it tells the newest."""
        plan, job = self._planned(), self.job
        if plan.adopting and plan.moved_from is not None:
            place = plan.capabilities.object
            trace.relocate(job.ledger, job.sync.name, plan.moved_from, place, self.lock.epoch)

    @property
    def _answered(self) -> list[Answered]:
        return self.delivery.answered if self.delivery else []

    @cached_property
    def _account(self) -> Account:
        """Computed once, after the last answer."""
        return Account(self._planned(), self.workspace, self._answered, self._dismissed)

    @property
    def _retain(self) -> float | None:
        """Seconds that the ledger keeps rejected rows; None if the sync keeps none."""
        asked = self.job.sync.rejects
        return asked.retain if asked.payload else None

    def _rejects(self) -> RejectChanges:
        former = self.job.ledger.rejects(self.job.sync.name)
        found = self._account.reject_changes(former, whole=self.job.options.whole)
        return replace(found, retain=self._retain)

    def _finish(
        self,
        status: str,
        numbers: Counts,
        checkpoint: Checkpoint | None,
        rejects: RejectChanges,
        problem: RetlError | None,
    ) -> None:
        if self.plan is not None:
            self.workspace.unstoppable()  # a stop after this would be recorded as a second end
        numbers.check()
        guards, source = self._guards(problem), self.plan or checkpoint
        counted = {
            **numbers.document(),
            **self._effort(),
            **self._found(),
            "rejects": self._account.examples(EXAMPLES_KEPT) if self.plan else [],
        }
        head = self.job.ledger.finish(
            RunEnd(
                run_id=self.run.run_id,
                epoch=self.lock.epoch,
                status=status,
                counts=counted,
                phases=self.clock.so_far(),
                guards=guards,
                error=described(problem) if problem else None,
                source_version=source.source_version if source else None,
                statistics=self.plan.statistics if self.plan else None,
            ),
            checkpoint,
            rejects,
            then.due(
                self.job,
                self.run.run_id,
                self.run.started_at,
                self.lock.epoch,
                status,
                numbers,
                problem.code if problem else None,
            ),
        )
        log.event(
            "run_finished",
            status=status,
            exit_code=problem.exit_code if problem else 0,
            code=problem.code if problem else None,
            counts={**numbers.document(), **self._effort()},
            chain=head,
        )

    def _found(self) -> dict[str, Any]:
        """What the run found out beside its numbers."""
        settled = (self.plan.settled if self.plan else self.settled).document()
        foreign = self._foreign()
        removed = {"foreign_deleted": foreign} if foreign else {}
        return {**({"settled": settled} if settled else {}), **removed, **self.found}

    def _guards(self, problem: RetlError | None) -> list[dict[str, Any]]:
        if self.plan is not None and self.plan.refusals:
            return [asdict(refusal) for refusal in self.plan.refusals]
        return [described(problem)] if isinstance(problem, Mismatch) else []

    def _effort(self) -> dict[str, int]:
        answered = self._answered
        return {
            "batches": sum(1 for one in answered if one.attempts),
            "retries": self.delivery.retries if self.delivery else 0,
            "bytes": self.delivery.sent if self.delivery else 0,
        }

    def _notes(self, code: int) -> tuple[str, ...]:
        if self.plan is None:
            return tuple(filter(None, [self.settled.note()]))
        dismissed = self._account.number_dismissed()
        holds = (*self.plan.standing, *((counts.dismissed_note(dismissed),) if dismissed else ()))
        foreign = self._foreign()
        said = (f"deleted {counted(foreign, 'row')} that retl had not delivered",) if foreign else ()
        return (*self.plan.notes, *said, *standing.news(self.job, holds, good=code == 0))

    def _foreign(self) -> int:
        """How many rows a whole mart took out of the target beyond those that this sync had delivered."""
        removed = sum(one.outcome.removed for one in self._answered if one.outcome is not None)
        if self.plan is None or not removed:
            return 0
        kept = sum(self.plan.changes.counts.get(op, 0) for op in ("update", "refresh"))
        return max(0, removed - max(0, self.plan.facts.baseline_rows - kept))

    def _summary(self, status: str, code: int, numbers: Counts, problem: RetlError | None) -> Summary:
        effort = self._effort()
        return Summary(
            self.job.sync.name,
            self.run.run_id,
            status,
            code,
            counts=numbers,
            seconds=sum(self.clock.phases.values()),
            phases=self.clock.phases,
            rejects=self._account.examples(REJECTS_SHOWN) if self.plan else (),
            guards=self._guards(problem),
            error=described(problem) if problem else None,
            notes=self._notes(code),
            batches=effort["batches"],
            retries=effort["retries"],
            bytes=effort["bytes"],
            asserts=self.found.get("assert", ()),
            rest=self.plan is not None and self.plan.rest,
        )
