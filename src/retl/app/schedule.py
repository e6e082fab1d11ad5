"""Decides when each sync starts: after the syncs it waits for, one at a time per object.

It only starts syncs. Every sync gets a summary, also one that was never started.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from retl.observe.summary import Summary
from retl.run.job import Job

BLOCKED = 75  # exit code of a sync that was not started


def run_all(
    work: Mapping[str, Job], run: Callable[[Job], Summary], *, jobs: int, fail_fast: bool
) -> dict[str, Summary]:
    """The summary of every job, by the sync's name; `run` never raises.

    A sync is BLOCKED if a sync in its `after` did not succeed. Syncs on one object take turns. Otherwise the
    order of `work` is kept.
    """
    if jobs == 1:
        return _one_by_one(work, run, fail_fast)
    done: dict[str, Summary] = {}
    running: dict[Future[Summary], str] = {}
    with ThreadPoolExecutor(min(jobs, max(len(work), 1)), thread_name_prefix="retl-sync") as pool:
        while len(done) < len(work):
            for name, job in work.items():
                if name in done or name in running.values() or _waits(job, work, done):
                    continue
                if (reason := _reason(job, done, fail_fast)) is not None:
                    done[name] = _blocked(job, *reason)
                elif len(running) < jobs and job.object not in {work[n].object for n in running.values()}:
                    running[pool.submit(run, job)] = name
            if running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    done[running.pop(future)] = future.result()
    return {name: done[name] for name in work}


def _one_by_one(
    work: Mapping[str, Job], run: Callable[[Job], Summary], fail_fast: bool
) -> dict[str, Summary]:
    done: dict[str, Summary] = {}
    for name, job in work.items():
        reason = _reason(job, done, fail_fast)
        done[name] = run(job) if reason is None else _blocked(job, *reason)
    return done


def _waits(job: Job, work: Mapping[str, Job], done: Mapping[str, Summary]) -> bool:
    return any(name in work and name not in done for name in job.sync.earlier)


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
