"""Decides when each sync starts: after the syncs it waits for, one at a time per object.

A run may let other syncs go first (`Job.others`): the target refused some of its rows, and a sync on the same
connection that has not ended may help: it deletes the rows that refer to them, or writes those they refer to.
It only starts syncs. Every sync gets a summary, also one that was never started.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue

from msgspec import Struct, field
from msgspec.structs import replace

from retl.observe.summary import Summary
from retl.project.definitions import Sync
from retl.run.job import Doubted, Job

DISAGREE = frozenset({"STATE_BEHIND", "STATE_LOST"})  # target and ledger: a guard's codes
BLOCKED = 75  # exit code of a sync that was not started


def run_all(
    work: Mapping[str, Job], run: Callable[[Job], Summary], *, jobs: int, fail_fast: bool
) -> dict[str, Summary]:
    """The summary of every job, by the sync's name; `run` never raises.

    A sync is BLOCKED if a sync in its `after` did not succeed. Syncs on one object take turns. Otherwise the
    order of `work` is kept, except that syncs which cannot tell a ledger that is too old (`Job.is_blind`)
    come after those that can, and are refused if one of those found it. With several jobs only those wait
    that must (`Job.waits`).
    """
    late = _late(work)
    work = {name: work[name] for name in sorted(work, key=lambda name: name in late)}
    done = (_OneByOne if jobs == 1 else partial(_Together, jobs=jobs))(work, run, fail_fast).run_all()
    return {name: done[name] for name in work}


class _OneByOne(Struct):
    """In this thread. A run that lets others go first waits on the stack while they run."""

    work: Mapping[str, Job]
    run: Callable[[Job], Summary]
    fail_fast: bool
    done: dict[str, Summary] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)

    def run_all(self) -> dict[str, Summary]:
        self.left = list(self.work)
        while self.left:
            self._next()
        return self.done

    def _next(self) -> None:
        name = self.left.pop(0)
        job = self.work[name]
        reason = _reason(job, self.done, self.fail_fast)
        if reason is not None:
            self.done[name] = _blocked(job, *reason)
            return
        helpful = any(_shares(job, self.work[other]) for other in self.left)
        self.done[name] = self.run(_ready(job, self.done, partial(self._others, job) if helpful else None))

    def _others(self, job: Job) -> bool:
        """Run the others up to the last that may help."""
        helpful = [name for name in self.left if _shares(job, self.work[name])]
        while self.left and helpful and helpful[-1] in self.left:
            self._next()
        return bool(helpful)


class _Together(Struct):
    """`jobs` at a time, each in a thread of its own. A run that waits for others does not count."""

    work: Mapping[str, Job]
    run: Callable[[Job], Summary]
    fail_fast: bool
    jobs: int
    late: set[str] = field(default_factory=set)  # they wait for those that can tell
    done: dict[str, Summary] = field(default_factory=dict)
    active: set[str] = field(default_factory=set)
    waiting: dict[str, threading.Event] = field(default_factory=dict)  # the oldest first
    events: SimpleQueue[tuple[str, Summary | threading.Event | BaseException]] = field(
        default_factory=SimpleQueue
    )

    def run_all(self) -> dict[str, Summary]:
        self.late = {name for name, job in self.work.items() if job.waits}
        with ThreadPoolExecutor(max(len(self.work), 1), thread_name_prefix="retl-sync") as pool:
            try:
                while len(self.done) < len(self.work):
                    self._start(pool)
                    self._resume()
                    if self.active:
                        self._take(*self.events.get())
            finally:  # without it an error here would leave them waiting
                for event in self.waiting.values():
                    event.set()
        return self.done

    def _take(self, name: str, what: Summary | threading.Event | BaseException) -> None:
        """A run has ended, or waits for others."""
        self.active.discard(name)
        if isinstance(what, threading.Event):
            self.waiting[name] = what
        elif isinstance(what, Summary):
            self.done[name] = what
        else:
            raise what

    def _start(self, pool: ThreadPoolExecutor) -> None:
        tell = self._tell()
        for name in self._pending():
            job = self.work[name]
            before = [*job.sync.earlier, *(tell if name in self.late else ())]
            if any(one in self.work and one not in self.done | self.waiting for one in before):
                continue
            if (reason := _reason(job, self.done, self.fail_fast)) is not None:
                self.done[name] = _blocked(job, *reason)
            elif len(self.active) < self.jobs and job.object not in {
                self.work[one].object for one in self.active | self.waiting.keys()
            }:
                unended = self.work.keys() - self.done.keys() - {name}
                helpful = any(_shares(job, self.work[other]) for other in unended)
                self.active.add(name)
                others = partial(self._others, job) if helpful else None
                pool.submit(self._run, _ready(job, self.done, others))

    def _resume(self) -> None:
        """Let the last run that waits go on, if no other can help it now."""
        for name, event in reversed(self.waiting.items()):
            unended = [*self.active, *self._pending()]
            if self.active and any(_shares(self.work[name], self.work[one]) for one in unended):
                continue
            self.active.add(name)
            del self.waiting[name]
            event.set()
            return

    def _tell(self) -> list[str]:
        """The syncs that others wait for, because they can tell."""
        late = _late(self.work)
        return [name for name in self.work if name not in late]

    def _pending(self) -> list[str]:
        return [
            name for name in self.work if name not in self.done | self.waiting and name not in self.active
        ]

    def _run(self, job: Job) -> None:
        try:
            self.events.put((job.sync.name, self.run(job)))
        except BaseException as problem:  # noqa: BLE001 - raised in the main thread
            self.events.put((job.sync.name, problem))

    def _others(self, job: Job) -> bool:
        """In the job's own thread: wait until the others have ended, or wait too."""
        event = threading.Event()
        self.events.put((job.sync.name, event))
        event.wait()
        return True


def late(syncs: Sequence[Sync], blind: Collection[str]) -> set[str]:
    """The names of the blind syncs, and of those that run after one."""
    found = set(blind)
    while more := {one.name for one in syncs if one.earlier & found} - found:
        found |= more
    return found


def _late(work: Mapping[str, Job]) -> set[str]:
    blind = [name for name, job in work.items() if job.is_blind]
    return late([job.sync for job in work.values()], blind) if blind else set()


def doubted(summary: Summary, before: Doubted | None) -> Doubted | None:
    """What a run found, if its target and the ledger do not agree. What was found `before` holds until a run
    succeeds."""
    code = summary.error["code"] if summary.error else None
    if code in DISAGREE:
        return Doubted(summary.sync, code)
    return None if summary.exit_code == 0 else before


def _ready(job: Job, done: Mapping[str, Summary], others: Callable[[], bool] | None) -> Job:
    """The job as it starts, with what earlier syncs found of the ledger if it cannot tell itself."""
    doubts = [found for one in done.values() if (found := doubted(one, None))] if job.is_blind else []
    return replace(job, others=others, doubted=doubts[0] if doubts else job.doubted)


def _shares(one: Job, other: Job) -> bool:
    """Whether they write through the same connection."""
    return one.target.connection == other.target.connection


def _reason(job: Job, done: Mapping[str, Summary], fail_fast: bool) -> tuple[str, str] | None:
    """Why a sync must not start, as CODE and sentence; None if it may."""
    if job.stop.event.is_set():
        return "STOPPED", "a signal came before this sync started"
    for name in job.sync.after:
        if name in done and done[name].exit_code != 0:
            return "AFTER_FAILED", f"it runs after {name}, which did not succeed"
    failed = [name for name, summary in done.items() if summary.exit_code != 0]
    if fail_fast and failed:
        return "FAIL_FAST", f"{failed[0]} did not succeed, and --fail-fast was given"
    return None


def _blocked(job: Job, code: str, message: str) -> Summary:
    hint = "run again; this sync did nothing"
    exit_code = 128 + job.stop.signum if job.stop.signum and job.stop.event.is_set() else BLOCKED
    return Summary(
        job.sync.name,
        None,
        "BLOCKED",
        exit_code,
        dry_run=job.options.dry_run,
        error={"code": code, "message": message, "hint": hint},
    )
