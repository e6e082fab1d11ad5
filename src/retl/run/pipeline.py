"""THE DATA PATH, IN ORDER. Read `sync` first: it shows all steps on one screen.

SQL finds what changed; the contract judges it; the adapter only translates. Every command that writes
makes a plan and drains it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

from msgspec.structs import replace

from retl.engine.mapping import Run
from retl.engine.scratch import private_directory
from retl.engine.workspace import Workspace
from retl.errors import Later, Mismatch, RetlError
from retl.ledger import Lock, Pause
from retl.observe import log
from retl.observe.summary import Summary, described
from retl.run import contract_diff, dbt_results, diffing, extent, planner, recovery, target, then, trace
from retl.run.diffing import Diffed, Due, Judged
from retl.run.job import Clock, Job
from retl.run.known import Known, know
from retl.run.mart import Extent, Frozen, Mapped, Opened, Reading, open_mart
from retl.run.notes import notes, settled, standing
from retl.run.plan import Plan
from retl.run.prediction import Fates, fates, predict
from retl.run.run import Execution, new_run
from retl.run.target import Asked

if TYPE_CHECKING:
    from retl.run.shards import Shards

UNASKED = (
    "offline: the target was not asked. A run may find rows lost or edited there, or answers to batches in"
    " doubt; it may be refused for that, for another ledger, or for the target's table, columns and rights"
)


class Recover(Protocol):
    """Resolves the open batches of dead runs at an object; those that it has `lost` are due again."""

    def __call__(
        self, mapped: Mapped, workspace: Workspace, target: str, *, lost: trace.Lost = ()
    ) -> recovery.Found: ...


def _again(problem: Exception) -> RetlError:
    raise problem


def sync(
    job: Job,
    verify: Callable[[Plan], None] = lambda _plan: None,
    unexpected: Callable[[Exception], RetlError] = _again,
) -> Summary:
    """Plan, guard, deliver, record one sync, and send what follows. Every end except a bug is a summary, and
    also a bug that `unexpected` can describe. `verify` may refuse the plan by raising Mismatch."""
    clock = Clock.since(job.since)
    run = new_run(job)
    try:
        with clock.phase("begin"):
            lock = _begin(job)
    except Later as problem:
        return _blocked(job, problem)
    if pause := job.ledger.paused(job.sync.name):
        lock.release()
        return paused(pause)
    with (
        lock,
        private_directory() as folder,
        ExitStack() as hold,
        log.bound(run_id=run.run_id, sync=job.sync.name),
    ):
        running = Execution(job, run, lock, clock)
        try:
            with clock.phase("begin"):
                running.begin()
            with clock.phase("recover"):
                recovery.abandon_dead_runs(job.ledger, job.sync.name, run.run_id, lock.epoch)
        except Later as problem:
            return _blocked(job, problem)
        try:
            with clock.phase("start"):
                workspace = running.workspace = hold.enter_context(Workspace(folder, job.stop))
            running.plan = plan(job, run, workspace, clock, hold, running.recover, lock=lock)
            verify(running.plan)
            if running.plan.refusals:
                summary = running.refuse()
            else:
                running.record()
                with clock.phase("prepare"):
                    running.prepare()
                with clock.phase("deliver"):
                    running.deliver()
                summary = running.commit()
        except Exception as problem:  # noqa: BLE001 - `unexpected` raises it, or describes it
            summary = running.fail(problem if isinstance(problem, RetlError) else unexpected(problem))
        return _followed(job, lock, summary)


def _followed(job: Job, lock: Lock, summary: Summary) -> Summary:
    """Send what follows the run, and let other commands know how it ended."""
    summary = then.follow(job, lock, summary)
    if job.peer is not None:
        _peers().conclude(job, summary)
    return summary


def dry_run(job: Job, look: Callable[[Plan, Workspace, Fates], object] = lambda *_: None) -> Summary:
    """Freeze to guard in a private temporary folder: no lock, no row, no file in the state directory.
    `look` is called with the plan and the fates of its rows while they can be read. Offline, the target is
    not asked."""
    clock = Clock.since(job.since)
    run = new_run(job)
    with private_directory() as folder, ExitStack() as hold, log.bound(sync=job.sync.name):

        def recover(
            mapped: Mapped, workspace: Workspace, target: str, *, lost: trace.Lost = ()
        ) -> recovery.Found:
            return recovery.look(job, mapped, workspace, target, lost)

        try:
            with clock.phase("start"):
                workspace = hold.enter_context(Workspace(folder, job.stop))
            offline = job.options.offline
            found = plan(job, run, workspace, clock, hold, None if offline else recover)
            others = fates(job, found)
            look(found, workspace, others)
            made = predict(job, found, workspace, clock, others)
            pause = job.ledger.paused(job.sync.name)
            more = [*([UNASKED] if offline else ()), *(paused(pause).notes if pause else ())]
            more += then.planned(job, made)
            return replace(made, notes=(*made.notes, *more))
        except RetlError as problem:
            return _unplanned(job, problem, clock)


def plan(
    job: Job,
    run: Run,
    workspace: Workspace,
    clock: Clock,
    hold: ExitStack,
    recover: Recover | None,
    *,
    lock: Lock | None = None,
) -> Plan:
    """Freeze, hash, diff, judge, guard. `recover` resolves batches of dead runs before the baseline is
    built; without it the target is not contacted. With a `lock` the run will write: while `hold` is open, the
    target refuses other ledgers, if it can. `hold` also ends the processes of a job with shards.

    Raises DefinitionError, SourceError, TargetError, Later. Refusals of guards are in `Plan.refusals`.
    """
    with clock.phase("freeze"):
        opened = open_mart(job, run, workspace)
        if lock is not None:
            dbt_results.remember(job, opened.description)
    crew = hold.enter_context(_crew(job, run, workspace, lock))
    with Reading(job, run, opened, workspace, clock, crew.reader if crew else None).under_way() as reading:
        mapped = reading.mapped
        visited, found, asked = None, recovery.NOTHING, Asked()
        if recover:
            with clock.phase("guard"):
                visited = target.visit(job, run, mapped, lock.epoch if lock else None, hold)
            with clock.phase("recover"):
                visited = target.torn(job, visited)
                if target.can_tell(job, mapped, visited):
                    found = recover(mapped, workspace, visited.expected.object, lost=visited.torn)
        with clock.phase("diff"):
            place = visited.expected.object if visited else mapped.capabilities.object
            known = know(job, mapped, workspace, place, found.outcomes)
        if visited:
            with clock.phase("guard"):
                asked, known = target.ask(job, run, mapped, known, visited, workspace)
        reach = reading.extent = extent.find(job, opened, mapped, known, asked, workspace)
        reading.folds = asked.folds
    frozen = reading.frozen
    workspace.suit(max(frozen.total, known.baseline_rows))
    changes = _compare(job, run, (opened, frozen, reach), known, asked, workspace, clock, crew)
    with clock.phase("guard"):
        made = diffing.Made(opened, frozen, known, asked, *changes)
        planned = planner.guard(job, run, made)
        planned = replace(planned, settled=settled(job, made, planned, found))
        said = notes(job, made, planned, unanswered=found.unanswered)
        if lock is not None:
            contract_diff.remember(job.ledger, job.sync, opened.description.columns)
        return replace(planned, notes=said, standing=standing(job, made, planned), shards=crew)


def _crew(
    job: Job, run: Run, workspace: Workspace, lock: Lock | None
) -> AbstractContextManager[Shards | None]:
    """The processes that share the keys, if there are several. Only then is their code imported."""
    if job.shards == 1:
        return nullcontext()
    from retl.run.shards import shared

    return shared(job, run, workspace, lock)


def _compare(
    job: Job,
    run: Run,
    read: tuple[Opened, Frozen, Extent],
    known: Known,
    asked: Asked,
    workspace: Workspace,
    clock: Clock,
    crew: Shards | None,
) -> tuple[Diffed, Judged, Due]:
    """The differences, judged and in the order of sending: by the processes of `crew`, or by this one."""
    opened, frozen, reach = read
    if crew is not None:
        with clock.phase("diff"):
            return crew.plan(opened, frozen, known, asked, reach)
    with clock.phase("diff"):
        diffed = diffing.compare(job, run, opened, frozen, known, asked, reach, workspace)
    with clock.phase("judge"):
        judged = diffing.judge_rows(job, frozen, known, workspace)
    with clock.phase("diff"):
        return diffed, judged, diffing.assemble(job, frozen, known, diffed, workspace)


def paused(pause: Pause) -> Summary:
    """The summary of a run that a pause kept from writing."""
    note = f"paused since {pause.since:%Y-%m-%d %H:%M}Z by {pause.by}: {pause.reason}"
    return Summary(
        pause.sync, None, "PAUSED", 0, notes=(f"{note}; `retl state resume {pause.sync}` ends the pause",)
    )


def _begin(job: Job) -> Lock:
    """The lock of the sync and its object. Later if another run has it, if the breaker is open, or if other
    commands have done the work."""
    _pass_breaker(job)
    lock = take_lock(job)
    if job.peer is not None:
        try:
            _peers().require_open(job)
        except BaseException:
            lock.release()
            raise
    return lock


def _peers() -> ModuleType:
    """The code of several commands that are one run, imported only for those."""
    from retl.run import peers

    return peers


def take_lock(job: Job) -> Lock:
    """The lock of the sync and its object. Later if another run has it, or if the connection's quota is
    spent."""
    job.pace.require_room()
    return job.ledger.lock(
        [job.sync.name, job.object], sync=job.sync.name, host=socket.gethostname(), pid=os.getpid()
    )


def _pass_breaker(job: Job) -> None:
    """Later BREAKER_OPEN while the connection must not be used."""
    breaker = job.ledger.breaker(job.target.connection)
    if breaker is not None and (seconds := breaker.wait(job.ledger.now())):
        raise Later(
            "BREAKER_OPEN",
            f"connection {job.target.connection} failed {breaker.failures} times in a row, last with"
            f" {breaker.error}: it is not used for another {seconds} s",
            hint=f"after a fix: `retl state unblock {job.target.connection} --yes`",
        )


def _blocked(job: Job, problem: Later) -> Summary:
    return Summary(job.sync.name, None, "BLOCKED", problem.exit_code, error=described(problem))


def _unplanned(job: Job, problem: RetlError, clock: Clock) -> Summary:
    """The summary of a dry run that ended before there was a plan."""
    refused = isinstance(problem, Mismatch)
    return Summary(
        job.sync.name,
        None,
        "REFUSED" if refused else "FAILED",
        problem.exit_code,
        dry_run=True,
        seconds=sum(clock.phases.values()),
        phases=clock.phases,
        guards=[described(problem)] if refused else (),
        error=described(problem),
    )
