"""One run while it lives: what it has done so far, and how it ends in the ledger.

`pipeline.sync` says in which order; here is what each step does. Whatever happens after `begin`, the run
ends with a status that tells the truth.
"""

from __future__ import annotations

import getpass
import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from retl import __version__
from retl.delivery.failure_rate import FailureRate
from retl.delivery.lanes import Answered, Delivery, prepared
from retl.destinations.api import Destination
from retl.destinations.batch import KEPT, MODES, UNKNOWN, Batch, Kind, Mode, Outcome
from retl.engine.changes import DELETES, FRESH, OWED
from retl.engine.mapping import FieldMap, Run
from retl.engine.workspace import Workspace
from retl.errors import Failure, Later, Mismatch, RetlError, Stopped, Unavailable
from retl.ledger import Acknowledgement, Checkpoint, Lock, RejectChanges, RunEnd, RunStart
from retl.observe import log
from retl.observe.signals import Stop
from retl.observe.summary import REJECTS_SHOWN, Counts, Summary, described
from retl.run import checkpoint as checkpoints
from retl.run import recovery
from retl.run.counts import Account
from retl.run.job import Clock, Job
from retl.run.journal import RunJournal
from retl.run.plan import Plan

ROOM_MADE = frozenset({"23505", "23503", "23P01"})  # refusals that a later delete may have cured
EXAMPLES_KEPT = 100  # rejects kept with the run itself


def new_run(job: Job) -> Run:
    """An id that sorts by time, on the ledger's clock."""
    now = job.ledger.now()
    return Run(f"{now:%Y%m%dT%H%M%S%f}"[:18] + "-" + secrets.token_hex(3), now)


class Execution:
    """The steps of one run, and everything they leave behind."""

    def __init__(self, job: Job, run: Run, lock: Lock, clock: Clock, directory: Path) -> None:
        self.job, self.run, self.lock, self.clock = job, run, lock, clock
        self.directory = directory
        self.plan: Plan | None = None
        self.journal = RunJournal(job.ledger, lock, run.run_id, every=False)
        self.delivery: Delivery | None = None

    def begin(self) -> None:
        """The RUNNING row: durable before anything else happens."""
        job = self.job
        job.ledger.begin(
            RunStart(
                run_id=self.run.run_id,
                sync=job.sync.name,
                object=job.object,
                environment=job.environment,
                correlation_id=job.correlation_id,
                epoch=self.lock.epoch,
                started_at=self.run.started_at,
                vars={name: str(value) for name, value in job.options.variables.items()},
                fingerprint={},
                source_identity={},
                host=socket.gethostname(),
                pid=os.getpid(),
                user=getpass.getuser(),
                version=__version__,
                options={
                    "accept": list(job.options.accept),
                    "allow_deletes": job.options.allow_deletes,
                    **{k: v for k, v in asdict(job.options.selection).items() if v},
                },
            )
        )
        so_far = sum(self.clock.so_far().values())
        log.event(
            "run_started", object=job.object, correlation_id=job.correlation_id, seconds=round(so_far, 3)
        )

    def abandon_dead_runs(self) -> None:
        """We hold the lock, so whatever still says RUNNING is dead."""
        for dead in self.job.ledger.dead_runs(self.job.sync.name):
            if dead.run_id != self.run.run_id:
                self.job.ledger.abandon(dead.run_id, self.lock.epoch)
                log.event("run_abandoned", dead=dead.run_id)

    def settle(self, field_map: FieldMap, destination: Destination[Any], workspace: Workspace) -> None:
        """Learn what became of dead runs' open batches, where that is to be known."""
        ledger, name, epoch = self.job.ledger, self.job.sync.name, self.lock.epoch
        capabilities = destination.capabilities
        for layer, rows in recovery.unanswered(ledger, name, capabilities, self.run.started_at):
            delivery = self._delivery(destination, every=True)
            found = recovery.batches(ledger, workspace, field_map, self.directory, layer, rows, epoch)
            for row, batch in found:
                log.event("batch_settling", batch=row.batch_id)
                outcome = delivery.resolve(destination, batch, row.handle)
                log.event("batch_settled", batch=row.batch_id, level="debug")
                if outcome != Outcome(UNKNOWN):
                    answer = Acknowledgement(row.batch_id, outcome, row.attempts + 1, None, None)
                    ledger.acknowledge(layer.run_id, epoch, [answer])

    def prepare(self) -> None:
        """What `create` and the promises need in the target; only where something will be written."""
        plan = self._planned()
        if plan.forgets and not len(plan.change_set):
            self.job.ledger.forget(self.job.sync.name, plan.capabilities.object, self.lock.epoch)
        if plan.adopting or not (len(plan.change_set) or plan.checkpoint is None):
            return
        destination = self._destination()
        try:
            destination.prepare(plan.visit)
        finally:
            destination.close()
        log.event("target_prepared")

    def deliver(self) -> None:
        """The change set, phase by phase; deletes last, and only if nothing is in doubt or waiting."""
        plan = self._planned()
        if not len(plan.change_set):
            return
        if plan.payload is None:
            plan.workspace.run("DROP TABLE mart")  # the change set has its rows, and wants the memory
        name = f"{self.run.run_id}.part.parquet"
        plan.change_set.write_part(self.directory / name)
        self.job.ledger.put_file(name, self.directory / name)
        if plan.adopting:
            self._adopt()  # before the part counts: rows that a killed run did not adopt would be sent
        anew = plan.capabilities.object if plan.forgets else None
        self.job.ledger.record_part(
            self.run.run_id, self.lock.epoch, name, len(plan.change_set), plan.fingerprints, anew=anew
        )
        log.event("part_written")
        if plan.adopting:
            return
        delivery = self.delivery = self._delivery(None, every=prepared(plan.capabilities))
        try:
            failure_rate = FailureRate(self.job.sync.guards.max_failed_rate)
            delivery.drain(self._batches(FRESH), failure_rate)
            delivery.drain(self._batches(OWED))  # refused before: what they meet is no news
            doubtful = delivery.count(Kind.UNKNOWN) or delivery.count(Kind.RETRY)
            if not doubtful:
                delivery.drain(self._batches(DELETES), failure_rate)
                if plan.change_set.counts.get("delete") and plan.capabilities.idempotent:
                    delivery.retry_after_deletes(ROOM_MADE)
        finally:
            delivery.close()

    def commit(self) -> Summary:
        """One ledger transaction: the run's part joins the baseline, checkpoint, status."""
        plan = self._planned()
        with self.clock.phase("commit"):
            counts = self._account.counts()
            error = self._unfinished(counts)
            status = "FAILED" if error else "SUCCESS_WITH_REJECTS" if self._has_rejects(counts) else "SUCCESS"
            checkpoint = (
                None
                if error
                else checkpoints.make(
                    self.job, plan, self.run, self.lock.epoch, self._answered, self.directory
                )
            )
            reject_changes = self._rejects()
            log.event("committing")
            self.job.ledger.unblock(self.job.target.connection)
            self._finish(status, counts, checkpoint, reject_changes, error)
            if checkpoint is not None:
                self.job.ledger.tidy(self.job.sync.name)
        return self._summary(status, error.exit_code if error else 0, counts, error)

    def refuse(self) -> Summary:
        """A guard spoke: nothing was written, and the ledger keeps the counts and examples."""
        plan = self._planned()
        counts = plan.held_back()
        first = plan.refusals[0]
        problem = Mismatch(first.code, first.message, hint=first.hint)
        self._finish("REFUSED", counts, None, RejectChanges(retain=self._retain), problem)
        return self._summary("REFUSED", problem.exit_code, counts, problem)

    def fail(self, problem: RetlError) -> Summary:
        """Stopped before the end: what was delivered stays delivered and is known."""
        counts = Counts()
        rejects = RejectChanges(retain=self._retain)
        if self.plan is not None:
            self.plan.workspace.unstoppable()
        if self.plan is not None and not isinstance(problem, Mismatch):
            self.plan.workspace.stop = Stop()  # the request is being obeyed: the accounts may still be made
            counts = self._account.counts()
            rejects = self._rejects() if self.delivery is not None else rejects
        status = (
            "INTERRUPTED"
            if isinstance(problem, Stopped) or (isinstance(problem, Later) and self.delivery is not None)
            else "REFUSED"
            if isinstance(problem, Mismatch)
            else "BLOCKED"
            if isinstance(problem, Later)
            else "FAILED"
        )
        if isinstance(problem, Unavailable):
            failures = self.job.sync.retry.attempts
            self.job.ledger.count_failures(self.job.target.connection, failures, problem.code)
        self._finish(status, counts, None, rejects, problem)
        return self._summary(status, problem.exit_code, counts, problem)

    def _planned(self) -> Plan:
        assert self.plan is not None
        return self.plan

    def _destination(self) -> Destination[Any]:
        return self.job.lane(self._planned().field_map.shape)

    def _delivery(self, destination: Destination[Any] | None, *, every: bool) -> Delivery:
        job = self.job
        self.journal.every = every
        capabilities = destination.capabilities if destination else self._planned().capabilities
        wanted, most = job.pace.concurrency or capabilities.lanes, capabilities.most_lanes
        capabilities = replace(capabilities, lanes=min(wanted, most or capabilities.lanes))
        return Delivery(
            lane=self._destination,
            capabilities=capabilities,
            journal=self.journal,
            pace=job.pace,
            retry=job.sync.retry,
            stop=job.stop,
            resend_unknown=job.sync.delivery == "at_least_once",
        )

    def _batches(self, phase: int) -> Iterator[Batch]:
        plan = self._planned()
        operation: Mode = "delete" if phase == DELETES else self.job.sync.write
        most = plan.capabilities.max_rows
        if phase == DELETES:
            most = plan.capabilities.max_deletes or most
        size = min(self.job.sync.batch.rows, most or self.job.sync.batch.rows)
        new = not plan.change_set.counts.keys() - {"insert", "delete"}
        for first, last in plan.change_set.cut(phase, size):
            yield Batch(
                plan.change_set,
                *MODES[operation],
                self.run.run_id,
                self.lock.epoch,
                first,
                last,
                self.run.started_at.isoformat(),
                new=new,
                exclusive=plan.visit.exclusive,
            )

    def _adopt(self) -> None:
        """Take the mart as delivered: every row confirmed, nothing sent, nothing ours to delete."""
        plan = self._planned()
        batch = Batch(
            plan.change_set,
            *MODES[self.job.sync.write],
            self.run.run_id,
            self.lock.epoch,
            0,
            len(plan.change_set) - 1,
        )
        self.journal.open([batch])
        self.journal.acknowledge(Answered(batch, Outcome(KEPT), attempts=0))
        self.journal.flush()

    def _unfinished(self, counts: Counts) -> Failure | None:
        """Why a run that reached its end is no success."""
        if doubtful := counts.in_doubt + counts.deletes.in_doubt:
            return Failure(
                "IN_DOUBT",
                f"{doubtful} rows got no answer: nobody knows whether they arrived",
                hint="look into the target, then `retl resolve`",
            )
        if self.delivery is not None and self.delivery.count(Kind.RETRY):
            return Failure(
                "TARGET_BUSY",
                f"the target put off {self.delivery.count(Kind.RETRY)} rows past the retry budget",
                hint="run again: they are still due",
            )
        return None

    @property
    def _answered(self) -> list[Answered]:
        return self.delivery.answered if self.delivery else []

    @cached_property
    def _account(self) -> Account:
        """Of all answers: asked for first when there will be no more of them."""
        return Account(self._planned(), self._answered)

    def _checkpoint(self, plan: Plan) -> Checkpoint:
        return checkpoints.make(self.job, plan, self.run, self.lock.epoch, self._answered, self.directory)

    @property
    def _retain(self) -> float | None:
        """Seconds that the ledger keeps rejected rows; None where the sync has none kept."""
        asked = self.job.sync.rejects
        return asked.retain if asked.payload else None

    def _rejects(self) -> RejectChanges:
        former = self.job.ledger.rejects(self.job.sync.name)
        found = self._account.reject_changes(former, self.job.options.selection)
        return replace(found, retain=self._retain)

    def _has_rejects(self, counts: Counts) -> bool:
        return bool(counts.rejected or counts.deletes.rejected)

    def _finish(
        self,
        status: str,
        counts: Counts,
        checkpoint: Checkpoint | None,
        rejects: RejectChanges,
        problem: RetlError | None,
    ) -> None:
        counts.check()
        guards = self._guards(problem)
        numbers = {
            **asdict(counts),
            **self._effort(),
            "rejects": self._account.examples(EXAMPLES_KEPT) if self.plan else [],
        }
        self.job.ledger.finish(
            RunEnd(
                run_id=self.run.run_id,
                epoch=self.lock.epoch,
                status=status,
                counts=numbers,
                phases=self.clock.so_far(),
                guards=guards,
                error=described(problem) if problem else None,
            ),
            checkpoint,
            rejects,
        )
        log.event(
            "run_finished",
            status=status,
            exit_code=problem.exit_code if problem else 0,
            code=problem.code if problem else None,
            counts={**asdict(counts), **self._effort()},
        )

    def _guards(self, problem: RetlError | None) -> list[dict[str, Any]]:
        if self.plan is not None and self.plan.refusals:
            return [asdict(refusal) for refusal in self.plan.refusals]
        return [described(problem)] if isinstance(problem, Mismatch) else []

    def _effort(self) -> dict[str, int]:
        answered = self.delivery.answered if self.delivery else []
        return {
            "batches": sum(1 for one in answered if one.attempts),
            "retries": self.delivery.retries if self.delivery else 0,
            "bytes": self.delivery.sent if self.delivery else 0,
        }

    def _summary(self, status: str, code: int, counts: Counts, problem: RetlError | None) -> Summary:
        effort = self._effort()
        return Summary(
            self.job.sync.name,
            self.run.run_id,
            status,
            code,
            counts=counts,
            seconds=sum(self.clock.phases.values()),
            phases=self.clock.phases,
            rejects=self._account.examples(REJECTS_SHOWN) if self.plan else (),
            guards=self._guards(problem),
            error=described(problem) if problem else None,
            notes=self.plan.notes if self.plan else (),
            batches=effort["batches"],
            retries=effort["retries"],
            bytes=effort["bytes"],
        )
