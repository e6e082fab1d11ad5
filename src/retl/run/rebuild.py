"""Rebuild: replaces the baseline of a sync by what the target holds.

A row that the target holds as it would be sent is confirmed. A row that differs is unknown, so it is due. A
row that the target lacks is not in the baseline. What only the target has is somebody else's, unless it is
taken over. It sends and deletes no row, and until it has compared everything the former baseline stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from retl.destinations.api import Destination
from retl.destinations.batch import MODES, PRESENT, Batch, Outcome, Visit
from retl.engine import change_set, diff, hash, held, judge
from retl.engine.baseline import BASELINE
from retl.engine.change_set import CHANGES, ChangeSet
from retl.engine.diff import Strategy
from retl.engine.mapping import Run
from retl.engine.scratch import private_directory
from retl.engine.workspace import Workspace
from retl.errors import DefinitionError, Mismatch, RetlError
from retl.ledger import BatchRow, Checkpoint
from retl.observe import log
from retl.observe.summary import Counts, Summary
from retl.project.definitions import Sync
from retl.run import guards, recovery, target
from retl.run.guards import Facts
from retl.run.job import Clock, Job
from retl.run.known import Known, know
from retl.run.mart import Frozen, Mapped, Opened, Reading, hash_rows, open_mart
from retl.run.pipeline import Recover, take_lock
from retl.run.run import Execution, new_run
from retl.run.target import Visited

COMPARED_AT_ONCE = 20_000  # rows; few look-ups in a large table are slower than one join
REBUILT = "rebuilt"  # the new baseline, as a delta: pos, op, key, hash, owned, ref
# Refusals because target and ledger do not agree: a rebuild is the answer to them.
ANSWERED = frozenset({"TARGET_LOST", "STATE_LOST", "STATE_BEHIND"})
_EVERYTHING = Strategy(everything=True, absence=False, once=False, hold_unknown=False)


@dataclass(frozen=True)
class Found:
    """Rows of the mart by what the target holds: the same, a `different` row, or none (`absent`). `rejected`
    rows cannot be sent, so they are not compared. `taken`: keys that only the target has, and that are the
    sync's from now on. `forgotten`: keys that the former baseline counted as delivered and the mart lacks."""

    read: int = 0
    same: int = 0
    different: int = 0
    absent: int = 0
    rejected: int = 0
    taken: int = 0
    forgotten: int = 0


@dataclass(frozen=True)
class Compared:
    """The new baseline is a table now."""

    mapped: Mapped
    found: Found
    rows: int  # of the new baseline
    read_rows: int
    source_version: str
    visited: Visited
    others: Mapping[str, int]  # as `Checkpoint.others`
    scope: str | None  # as `Checkpoint.scope`


def require(sync: Sync, destination: type[Destination[Any]], *, take_ownership: bool) -> None:
    """DefinitionError if a rebuild cannot be done, or if an option would have no effect."""
    where = f"sync {sync.name}"
    if destination.same is Destination.same:
        raise DefinitionError(
            "REBUILD_UNSUPPORTED",
            "this target cannot be compared with the mart, so no baseline can be made from it",
            hint=f"`retl state adopt {sync.name}` takes the whole mart as delivered;"
            f" `retl state reset {sync.name}` lets the next run send every row",
            where=where,
        )
    if take_ownership and sync.deletes.how == "keep":
        raise DefinitionError(
            "NOTHING_TO_OWN",
            "--take-ownership has no effect: this sync never deletes",
            hint="set `deletes: delete` first, or leave the option out",
            where=where,
        )


def rebuild(job: Job, *, take_ownership: bool = False) -> tuple[Summary, Found]:
    """Compare, and replace the baseline, in a run of its own. Every end except a bug is a summary; Later if
    another run holds the lock."""
    clock, run, sync = Clock.since(job.since), new_run(job), job.sync.name
    with clock.phase("begin"):
        lock = take_lock(job)
    with lock, private_directory() as folder, ExitStack() as hold, log.bound(run_id=run.run_id, sync=sync):
        running = Execution(job, run, lock, clock)
        with clock.phase("begin"):
            running.begin()
            recovery.abandon_dead_runs(job.ledger, sync, run.run_id, lock.epoch)
        try:
            workspace = running.workspace = hold.enter_context(Workspace(folder, job.stop))
            made = _compare(job, run, workspace, clock, hold, lock.epoch, take_ownership, running.recover)
            with clock.phase("commit"):
                _replace_baseline(running, made)
            with clock.phase("prepare"):
                assert made.visited.destination is not None
                made.visited.destination.prepare(Visit(run.run_id, lock.epoch, exclusive=True))
            log.event("target_prepared")
            return running.end(_numbers(made.found), _checkpoint(running, made)), made.found
        except RetlError as problem:
            return running.fail(problem), Found()


def look(job: Job, *, take_ownership: bool = False) -> Found:
    """What `rebuild` would find. Writes nothing anywhere. Raises Mismatch if a guard would refuse it."""
    run = new_run(job)
    with private_directory() as folder, ExitStack() as hold, log.bound(sync=job.sync.name):
        workspace = hold.enter_context(Workspace(folder, job.stop))
        return _compare(job, run, workspace, Clock(), hold, None, take_ownership, None).found


def _compare(
    job: Job,
    run: Run,
    workspace: Workspace,
    clock: Clock,
    hold: ExitStack,
    epoch: int | None,
    take_ownership: bool,
    recover: Recover | None,
) -> Compared:
    """Read mart and target, and make the new baseline as the table REBUILT."""
    with clock.phase("freeze"):
        opened = open_mart(job, run, workspace)
    with Reading(job, run, opened, workspace, clock).under_way() as reading:
        mapped = reading.mapped
        with clock.phase("guard"):
            visited = _visit(job, run, mapped, epoch, hold)
        with clock.phase("recover"):
            if recover is not None:
                recover(mapped, workspace, visited.expected.object)
        with clock.phase("diff"):
            known = know(job, mapped, workspace, visited.expected.object)
    frozen = reading.frozen
    with clock.phase("diff"):
        rows = _sendable(job, frozen, known, visited, workspace)
    with clock.phase("guard"):
        _raise_refusal(job, run, opened, frozen, known)
    forgotten = 0 if take_ownership else _forgotten(workspace)
    with clock.phase("deliver"):
        assert visited.destination is not None
        _ask(job, visited.destination, rows, run, scan=take_ownership)
    log.event("target_compared", rows=len(rows))
    with clock.phase("diff"):
        _make_baseline(job, workspace, take_ownership=take_ownership)
    whole = job.sync.write != "append" and opened.cursor is None
    return Compared(
        mapped=frozen.mapped,
        found=_count(workspace, frozen.total, forgotten),
        rows=workspace.one(f"SELECT count(*) FROM {REBUILT}")[0],
        read_rows=frozen.total if whole else 0,
        source_version=opened.description.version,
        visited=visited,
        others=known.basis.others,
        scope=known.basis.checkpoint.scope if known.basis.checkpoint else None,
    )


def _visit(job: Job, run: Run, mapped: Mapped, epoch: int | None, hold: ExitStack) -> Visited:
    """Reach the target. Mismatch if its object does not fit; whether it and the ledger agree is no matter."""
    visited = target.visit(job, run, mapped, epoch, hold)
    for one in visited.refusals:
        if one.code not in ANSWERED | set(job.options.accept):
            raise Mismatch(one.code, one.message, hint=one.hint)
    return visited


def _sendable(job: Job, frozen: Frozen, known: Known, visited: Visited, workspace: Workspace) -> ChangeSet:
    """Every row of the mart that could be sent, with what the former baseline knows of its key."""
    assert visited.destination is not None
    field_map = replace(frozen.mapped.field_map, folds=visited.destination.folds)
    if not frozen.hashed:
        hash_rows(workspace, frozen.mapped)
    diff.diff(workspace, field_map, _EVERYTHING, known.baseline_rows, whole=True)
    judge.judge(workspace, frozen.mapped.contract, job.sync.key, frozen.edited)
    judge.reject_missing(workspace, field_map)
    return change_set.assemble(workspace, field_map, write=job.sync.write)


def _raise_refusal(job: Job, run: Run, opened: Opened, frozen: Frozen, known: Known) -> None:
    """Mismatch if a guard says that the mart is not whole. The target is not judged: nothing is sent."""
    checkpoint, accepted = known.basis.checkpoint, job.options.accept
    facts = Facts(
        read=frozen.total,
        total=frozen.total,
        new_rejects=0,
        baseline_rows=known.baseline_rows,
        full_read=job.sync.write != "append" and opened.cursor is None,
        last_read=checkpoint.read_rows if checkpoint else None,
        failed_checks=frozen.failed_checks,
        build=opened.description.health,
        max_age=job.source.max_age,
        now=run.started_at,
    )
    if not frozen.total and "EMPTY_SOURCE" not in accepted:
        raise Mismatch(
            "EMPTY_SOURCE",
            "the mart has no rows: a rebuild would forget everything that was delivered",
            hint="was the mart built? If it is empty on purpose, --accept EMPTY_SOURCE",
        )
    for one in guards.judge(facts, job.sync.guards, accepted):
        raise Mismatch(one.code, one.message, hint=one.hint)


def _forgotten(workspace: Workspace) -> int:
    gone = f"SELECT key FROM {hash.ROWS} WHERE key IS NOT NULL"
    number: int = workspace.one(f"SELECT count(*) FROM {BASELINE} WHERE owned AND key NOT IN ({gone})")[0]
    return number


def _ask(job: Job, destination: Destination[Any], rows: ChangeSet, run: Run, *, scan: bool) -> None:
    """Compare the rows at the target, and look for the keys of rows that cannot be compared; with `scan` also
    for keys that only the target has."""
    workspace, field_map = rows.workspace, rows.field_map
    again = job.pace.retrying(job.sync.retry, job.stop.event)
    if scan:
        again(lambda: held.load_scan(workspace, field_map, destination.scan()))
    held.list_keys(workspace, field_map, scanned=scan)
    hash.release(workspace)

    def batches(of: ChangeSet, mode: Any, size: int) -> Iterator[Batch]:
        for first in range(0, len(of), size):
            job.stop.check()
            last = min(first + size, len(of)) - 1
            yield Batch(of, *MODES[mode], run.run_id, 0, first, last, run.started_at.isoformat())

    held.compare(
        workspace,
        CHANGES,
        (
            same
            for batch in batches(rows, job.sync.write, COMPARED_AT_ONCE)
            for same in again(lambda batch=batch: list(destination.same(batch)))
        ),
    )
    asked = change_set.of_keys(workspace, field_map, "keyed", f"pos, key FROM {held.ASKED}")
    held.keep_present(
        workspace,
        (
            row is not None
            for batch in batches(asked, "delete", job.sync.batch.rows)
            for row in again(lambda batch=batch: list(destination.read(batch)))
        ),
    )


def _make_baseline(job: Job, workspace: Workspace, *, take_ownership: bool) -> None:
    """Create REBUILT. Under append and insert_only a key that is there settles its row, whatever its values:
    no run would change them. Of rows that the former baseline does not know, those that a run would write are
    ours; see docs/decisions."""
    write = job.sync.write
    settled = "TRUE" if write in ("append", "insert_only") else "same"
    blind = "CASE WHEN NOT taken THEN hash END" if write == "append" else "NULL"

    def owned(same: str) -> str:
        adopts = job.sync.first_run == "adopt"
        ours = "FALSE" if adopts else same if write == "insert_only" else "TRUE"
        return "TRUE" if take_ownership else f"coalesce(owned, {ours})"

    workspace.run(
        f"CREATE TABLE {REBUILT} AS SELECT row_number() OVER () - 1 AS pos, 'insert' AS op, * FROM ("
        f"SELECT key, CASE WHEN {settled} THEN hash END AS hash, {owned('same')} AS owned, ref"
        f" FROM {held.COMPARED} WHERE same IS NOT NULL"
        f" UNION ALL SELECT key, {blind}, {owned('FALSE')}, ref FROM {held.PRESENT})"
    )


def _count(workspace: Workspace, read: int, forgotten: int) -> Found:
    same, different, absent = workspace.one(
        "SELECT count(*) FILTER (WHERE same), count(*) FILTER (WHERE NOT same),"
        f" count(*) FILTER (WHERE same IS NULL) FROM {held.COMPARED}"
    )
    (taken,) = workspace.one(f"SELECT count(*) FROM {held.PRESENT} WHERE taken")
    return Found(read, same, different, absent, read - same - different - absent, taken, forgotten)


def _replace_baseline(running: Execution, made: Compared) -> None:
    """The answers are recorded before the delta, and the delta and the end of the former baseline are one
    transaction: after a kill either the old or the new baseline stands. The run gets a newer epoch than any
    that the target knows."""
    job, run_id, former = running.job, running.run.run_id, made.visited.expected.object
    if (seen := made.visited.trace) is not None and seen.epoch >= running.lock.epoch:
        job.ledger.advance(run_id, running.lock, seen.epoch)
    epoch = running.lock.epoch
    name = f"{run_id}.delta.parquet"
    path = running.workspace.directory / name
    rows = (
        "(SELECT pos, op, key, hash, coalesce(owned, FALSE) AS owned, ref, NULL AS seen, NULL AS unsent"
        f" FROM {REBUILT})"
    )
    change_set.write_delta(running.workspace, rows, path)
    job.ledger.put_file(name, path)
    if made.rows:
        batch = BatchRow(
            f"{run_id}-held", 1, job.sync.write, 0, made.rows - 1, status="done", outcome=Outcome(PRESENT)
        )
        job.ledger.open_batches(run_id, epoch, [batch])
    fingerprints, place = made.mapped.fingerprints, made.mapped.capabilities.object
    job.ledger.record_delta(run_id, epoch, name, made.rows, fingerprints, restart=place)
    if former != place:  # another address of the same object
        job.ledger.forget(job.sync.name, former, epoch)
    log.event("delta_written")


def _checkpoint(running: Execution, made: Compared) -> Checkpoint:
    """Without a watermark: the next run reads the whole mart, because a due row may be anywhere in it."""
    return Checkpoint(
        sync=running.job.sync.name,
        object=made.mapped.capabilities.object,
        run_id=running.run.run_id,
        epoch=running.lock.epoch,
        baseline_rows=made.rows,
        read_rows=made.read_rows,
        fingerprints=made.mapped.fingerprints,
        source_version=made.source_version,
        others=made.others,
        scope=made.scope,
    )


def _numbers(found: Found) -> Counts:
    """As the numbers of a run: nothing was attempted, and what is not confirmed is still to do."""
    return Counts(read=found.read, unchanged=found.same, not_attempted=found.read - found.same)
