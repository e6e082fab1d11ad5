"""The opening of a run that is no sync: a rebuild, a reconcile, a rollback, an erasure.

It takes the lock, records that the run began, and ends runs that died. What the run does is its command's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from msgspec import Struct

from retl.engine.scratch import private_directory
from retl.engine.workspace import Workspace
from retl.ledger import Lock
from retl.observe import log
from retl.run import recovery
from retl.run.job import Clock, Job
from retl.run.pipeline import take_lock
from retl.run.run import Execution, new_run


class OwnRun(Struct, frozen=True):
    """A run that has begun. `hold` closes what the run opens, at its end."""

    running: Execution
    hold: ExitStack
    folder: Path

    def workspace(self) -> Workspace:
        """The run's workspace, in a private folder."""
        made = self.hold.enter_context(Workspace(self.folder, self.running.job.stop))
        self.running.workspace = made
        return made


def locked(job: Job) -> tuple[Clock, Lock]:
    """The lock of the sync, and the clock of the run, which counts the wait for it. Later if another run
    holds it."""
    clock = Clock.since(job.since)
    with clock.phase("begin"):
        return clock, take_lock(job)


@contextmanager
def own_run(job: Job, taken: tuple[Clock, Lock] | None = None) -> Iterator[OwnRun]:
    """Begin a run, with what `locked` gave if the caller had to look at something first."""
    clock, lock = taken or locked(job)
    run, sync = new_run(job), job.sync.name
    with lock, private_directory() as folder, ExitStack() as hold, log.bound(run_id=run.run_id, sync=sync):
        running = Execution(job, run, lock, clock)
        with clock.phase("begin"):
            running.begin()
            recovery.abandon_dead_runs(job.ledger, sync, run.run_id, lock.epoch)
        yield OwnRun(running, hold, folder)
