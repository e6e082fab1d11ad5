"""Rollback: takes back what one run wrote, except what somebody touched since.

It is a plan like any other, made from the images that the run kept and not from the mart: under the same
lock, guards and delivery, a run of its own, with images of its own, so that it can be taken back too. The
hashes in the baseline stay, so a restored row waits until its mart row changes. The sync is paused, because a
mart that is still wrong would bring the bad rows back.
"""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict, replace

from retl.engine import suppression, undo
from retl.engine.diff import Ends
from retl.engine.mapping import Run
from retl.engine.scratch import private_directory
from retl.engine.workspace import Workspace
from retl.errors import DefinitionError, Misasked, RetlError
from retl.ledger import RunRow
from retl.observe import log
from retl.observe.summary import Summary, counted
from retl.run import planner, resolve, target
from retl.run.guards import Facts
from retl.run.job import Clock, Job
from retl.run.known import Known, know
from retl.run.mart import Mapped, open_mart
from retl.run.own_run import own_run
from retl.run.pipeline import Recover
from retl.run.plan import Plan
from retl.run.prediction import predict
from retl.run.run import new_run

EXAMPLES = 20


class Asked(Struct, frozen=True):
    """Which run to take back, or only these keys of it, and whether the sync then waits for somebody."""

    run: RunRow
    keys: Sequence[str] = ()
    pause: bool = True


def require(job: Job, run: RunRow) -> None:
    """DefinitionError NOT_REVERSIBLE if nothing can tell how the rows were before the run."""
    if job.ledger.images(run.run_id):
        return
    kept = job.sync.rollback.keep is not None
    if run.delta_rows:
        why = "its images are no longer kept" if kept else "no images of the rows were kept"
    else:
        why = "it wrote nothing"
    raise DefinitionError(
        "NOT_REVERSIBLE",
        f"run {run.run_id} cannot be taken back: {why}",
        hint="" if not run.delta_rows else _by_hand(job, run),
        where=f"sync {job.sync.name}",
    )


def _by_hand(job: Job, run: RunRow) -> str:
    """What a person can do instead."""
    name = job.sync.name
    if job.sync.write == "append":
        return (
            f"what was appended can only be corrected: `retl show {run.run_id}` says when and how many. Pause"
            f" the sync (`retl state pause {name} --reason …`), then remove or correct the rows by hand"
        )
    if not job.target.comparable:
        return (
            f"this target cannot be read before a write: pause it with `retl state pause {name} --reason …`,"
            " put the mart back as it was, resume, and the next run sends the old values"
        )
    return (
        f"put the mart back as it was and run `retl sync --sync {name}`, or restore the rows from a backup of"
        " the target; on PostgreSQL and Redis `rollback: {keep: 30d}` keeps images from the next run on"
    )


def rollback(job: Job, asked: Asked) -> Summary:
    """Take the run back. Every end except a bug is a summary; Later if another run holds the lock."""
    with own_run(job) as own:
        running, clock = own.running, own.running.clock
        try:
            recover = partial(running.recover, doubtful=_doubtful(job, asked.run))
            workspace, opening = own.workspace(), (running.lock.epoch, recover)
            made, wrote = _plan(job, asked, running.run, workspace, clock, own.hold, *opening)
            running.plan = made
            running.found = {"rollback": {**asdict(wrote), "examples": _examples(workspace)}}
            unknown = resolve.unanswered(job.ledger, asked.run.run_id)
            if made.refusals:
                return running.refuse()
            running.record()
            if asked.pause and wrote.undo:  # first: a kill must not leave a sync that writes it all again
                reason = f"run {asked.run.run_id} was rolled back: fix the mart first"
                job.ledger.pause(job.sync.name, getpass.getuser(), reason, running.run.run_id)
            with clock.phase("prepare"):
                running.prepare()
            with clock.phase("deliver"):
                running.deliver()
            done = running.commit()
            said = (*_notes(done, wrote, asked), *_unknown(unknown), *_again(job, wrote, asked.run))
            return replace(done, notes=(_named(asked.run), *done.notes, *said))
        except RetlError as problem:
            return running.fail(problem)


def _doubtful(job: Job, of: RunRow) -> str | None:
    """The run, if the target may still tell what became of its batches without an answer. A later run has
    sent such rows again, and may have removed the marks of this one."""
    later = any(one.epoch > of.epoch for one in job.ledger.deltas(of.sync, of.object))
    return None if later else of.run_id


def look(job: Job, asked: Asked) -> Summary:
    """What `rollback` would restore, if nobody touched a row. Writes nothing anywhere."""
    run, clock = new_run(job), Clock()
    with private_directory() as folder, ExitStack() as hold, log.bound(sync=job.sync.name):
        workspace = hold.enter_context(Workspace(folder, job.stop))
        made, wrote = _plan(job, asked, run, workspace, clock, hold)
        done = predict(job, made, workspace, clock)
        note = "rows that somebody touched since are left alone: these numbers are at most"
        unknown = _unknown(resolve.unanswered(job.ledger, asked.run.run_id))
        said = (*_since(wrote), *unknown, *_again(job, wrote, asked.run), note)
        return replace(done, notes=(_named(asked.run), *done.notes, *said))


def _plan(
    job: Job,
    asked: Asked,
    run: Run,
    workspace: Workspace,
    clock: Clock,
    hold: ExitStack,
    epoch: int | None = None,
    recover: Recover | None = None,
) -> tuple[Plan, undo.Wrote]:
    with clock.phase("freeze"):
        opened = open_mart(job, run, workspace)
        with closing(opened.reader), opened.snapshot:
            pass  # only the definition is needed
    mapped = opened.mapped
    with clock.phase("guard"):
        visited = target.visit(job, run, mapped, epoch, hold)
    with clock.phase("recover"):
        if recover is not None and target.can_tell(job, mapped, visited):
            recover(mapped, workspace, visited.expected.object)
    with clock.phase("diff"):
        known = know(job, mapped, workspace, visited.expected.object)
        _require_same_shape(job, asked.run, mapped, known)
        wrote = _find(job, asked, mapped, known, workspace)
        changes = undo.assemble(workspace, mapped.field_map)
    read = wrote.undo + wrote.already + wrote.since
    counts = changes.counts
    ends: Ends = {(op, None): counts[op] for op in counts} | {("update", "skipped"): wrote.since}
    with clock.phase("guard"):
        facts = Facts(
            read=read - counts.get("delete", 0),
            total=read,
            new_rejects=0,
            baseline_rows=known.baseline_rows,
            deletes=counts.get("delete", 0),
            full_read=False,
            allow_deletes=job.options.allow_deletes,
        )
        version = opened.description.version
        return planner.aside(job, run, mapped, known, visited, changes, ends, facts, version), wrote


def _find(job: Job, asked: Asked, mapped: Mapped, known: Known, workspace: Workspace) -> undo.Wrote:
    ledger, of = job.ledger, asked.run
    files = [ledger.get_file(name, workspace.directory) for name in ledger.images(of.run_id)]
    undone = [one.epoch for one in ledger.taken_back(job.sync.name) if one.of_run == of.run_id]
    soft = job.sync.rollback.soft is not None and of.purpose != "rollback"
    answers = ledger.batches(of.run_id)
    without = partial(suppression.remove, workspace, mapped.field_map, known.suppressed)
    wrote = undo.find(
        workspace, files, answers, of.epoch, undone, soft=soft, keys=asked.keys, without=without
    )
    if missing := undo.count_missing(workspace):
        keys = len(set(asked.keys))
        which = "this key" if keys == 1 else f"{missing} of these {keys} keys"
        raise Misasked(
            "KEY_UNKNOWN",
            f"run {of.run_id} wrote no row with {which}",
            hint=f"`retl log --run {of.run_id}` lists the rows of the run",
            where=f"sync {job.sync.name}",
        )
    return wrote


def _require_same_shape(job: Job, of: RunRow, mapped: Mapped, known: Known) -> None:
    """DefinitionError NOT_REVERSIBLE if the run wrote other fields, or to another object."""
    now, then = mapped.fingerprints, of.fingerprint
    if of.object != known.object or any(now[name] != then.get(name) for name in ("who", "what")):
        raise DefinitionError(
            "NOT_REVERSIBLE",
            f"run {of.run_id} cannot be taken back: key, fields or destination of the sync are others now",
            hint="put the definition back as it was for that run, roll back, and change it again",
            where=f"sync {job.sync.name}",
        )


def _examples(workspace: Workspace) -> list[dict[str, Any]]:
    """The first keys that a later run wrote again."""
    rows = workspace.run(f"SELECT key FROM {undo.WROTE} WHERE state = 'since' ORDER BY key LIMIT {EXAMPLES}")
    return [{"key": key, "code": "WRITTEN_SINCE"} for (key,) in rows]


_PURPOSES = {"sync": "a sync", "apply": "an applied plan", "rollback": "a rollback", "repair": "a repair"}


def _named(run: RunRow) -> str:
    """Which run is taken back: a person may have named only its sync, or the last one."""
    parts = [f"{number:,} {name}" for name, number in run.written.items()]
    listed = " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))
    many = "row" if sum(run.written.values()) == 1 else "rows"
    rows = f"wrote {listed} {many}" if listed else "did not end" if not run.counts else "wrote nothing"
    purpose = _PURPOSES.get(run.purpose, run.purpose)
    return f"this takes back run {run.run_id}, {purpose} that began at {run.started_at:%F %T}Z and {rows}"


def _again(job: Job, wrote: undo.Wrote, of: RunRow) -> list[str]:
    """That nothing is left to take back, because another rollback did it, and how to undo that one."""
    undone = [one.run_id for one in job.ledger.taken_back(job.sync.name) if one.of_run == of.run_id]
    if wrote.undo or not wrote.already or not undone:
        return []
    return [
        f"run {of.run_id} was taken back by run {undone[0]} already: `retl rollback {undone[0]}` would bring"
        " its rows again"
    ]


def _since(wrote: undo.Wrote) -> list[str]:
    if not wrote.since:
        return []
    rows = counted(wrote.since, "row", "was")
    return [f"{rows} written again by a later run: take back the newest run first"]


def _unknown(rows: int) -> list[str]:
    if not rows:
        return []
    return [f"{rows} rows of that run have no answer, so it is not known whether it wrote them"]


def _notes(done: Summary, wrote: undo.Wrote, asked: Asked) -> list[str]:
    counts, name = done.counts, done.sync
    kept = counts.skipped - wrote.since + counts.deletes.kept
    restored = counts.inserted + counts.updated + counts.deleted
    said = f"{counted(restored, 'row')} restored, {kept} touched since and left alone"
    if counts.conflicts.merged:
        said += f", {counts.conflicts.merged} of the restored ones only in part"
    if asked.pause and wrote.undo:
        said += (
            f"; {name} is paused: fix the mart, then `retl state resume {name}`; restored rows wait until"
            " their mart row changes"
        )
    return [said, *_since(wrote)]
