"""THE DATA PATH, IN ORDER. Read `sync` first: it is the whole of retl on one screen.

SQL finds what changed; the contract judges it; the adapter only translates. Everything that ever
writes makes a change set and drains it through `deliver`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack

from retl.engine.scratch import private_directory
from retl.errors import Later, Mismatch, RetlError
from retl.observe import log
from retl.observe.summary import Summary, described
from retl.run import planner
from retl.run.job import Clock, Job
from retl.run.plan import Plan
from retl.run.prediction import predict
from retl.run.run import Execution, new_run


def sync(job: Job, verify: Callable[[Plan], None] = lambda _plan: None) -> Summary:
    """Plan, guard, deliver, record: one sync to its summary. Every end but a bug is a summary.
    `verify` may refuse the plan by raising Mismatch."""
    clock = Clock.since(job.since)
    run = new_run(job)
    try:
        with clock.phase("begin"):
            _pass_breaker(job)
            job.pace.require_room()
            lock = job.ledger.lock(
                [job.sync.name, job.object],
                sync=job.sync.name,
                host=socket.gethostname(),
                pid=os.getpid(),
            )
    except Later as problem:
        return _blocked(job, problem)
    with (
        lock,
        private_directory() as directory,
        ExitStack() as hold,
        log.bound(run_id=run.run_id, sync=job.sync.name),
    ):
        running = Execution(job, run, lock, clock, directory)
        try:
            with clock.phase("begin"):
                running.begin()
            with clock.phase("recover"):
                running.abandon_dead_runs()
        except Later as problem:
            return _blocked(job, problem)
        try:
            running.plan = planner.make(job, run, directory, clock, running.settle, hold, epoch=lock.epoch)
            verify(running.plan)
            if running.plan.refusals:
                return running.refuse()
            with clock.phase("prepare"):
                running.prepare()
            with clock.phase("deliver"):
                running.deliver()
            return running.commit()
        except RetlError as problem:
            return running.fail(problem)


def _blocked(job: Job, problem: Later) -> Summary:
    return Summary(job.sync.name, None, "BLOCKED", problem.exit_code, error=described(problem))


def _pass_breaker(job: Job) -> None:
    """Later BREAKER_OPEN while the connection is left alone."""
    breaker = job.ledger.breaker(job.target.connection)
    if breaker is not None and (seconds := breaker.closes(job.ledger.now())):
        raise Later(
            "BREAKER_OPEN",
            f"connection {job.target.connection} failed {breaker.failures} times in a row, last with"
            f" {breaker.error}: it is left alone for another {round(seconds)} s",
            hint=f"mended? `retl state unblock {job.target.connection}`",
        )


def dry_run(job: Job, look: Callable[[Plan], object] = lambda _plan: None) -> Summary:
    """Freeze to guard in a private temporary folder: no lock, no row, no file in the state directory.
    `look` is shown the plan while it can be read."""
    clock = Clock.since(job.since)
    run = new_run(job)
    with private_directory() as directory, log.bound(sync=job.sync.name):
        try:
            plan = planner.make(job, run, directory, clock)
            look(plan)
            return predict(job, plan, clock)
        except RetlError as problem:
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
