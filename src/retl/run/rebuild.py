"""Rebuild: replaces the baseline of a sync by what the target holds.

A row that the target holds as it would be sent is confirmed. A row that differs is unknown, so it is due. A
row that the target lacks is not in the baseline. What only the target has is somebody else's, unless it is
taken over. It sends and deletes no row, and until it has compared everything the former baseline stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from msgspec import Struct

from retl.destinations.batch import PRESENT, Outcome, Visit
from retl.engine import change_set, held
from retl.engine.scratch import private_directory
from retl.engine.workspace import Workspace
from retl.errors import DefinitionError, RetlError
from retl.ledger import BatchRow, Checkpoint
from retl.observe import log
from retl.observe.summary import Counts, Summary
from retl.project.definitions import Sync
from retl.run import trace
from retl.run.comparison import Compared, Scope, compare
from retl.run.job import Clock, Job, Target
from retl.run.own_run import own_run
from retl.run.run import Execution, new_run

REBUILT = "rebuilt"  # the new baseline, as a delta: pos, op, key, hash, owned, ref


class Found(Struct, frozen=True):
    """Rows of the mart by what the target holds: the same, a `different` row, or none (`absent`). `rejected`
    rows cannot be sent, so they are not compared. `taken`: keys that only the target has, and that are the
    sync's from now on. `forgotten`: keys that the former baseline counted as delivered and the mart lacks.
    `again`: of the same rows, those that the next run sends once, because it has to learn what they look like
    at the target before it can notice other people's edits. `erased`: rows of erased keys, never sent.
    `unknown_runs`: those that left marks at the target, and that the ledger does not know."""

    read: int = 0
    same: int = 0
    different: int = 0
    absent: int = 0
    rejected: int = 0
    taken: int = 0
    forgotten: int = 0
    again: int = 0
    erased: int = 0
    unknown_runs: int = 0


def require(sync: Sync, target: Target, *, take_ownership: bool) -> None:
    """DefinitionError if a rebuild cannot be done, or if an option would have no effect."""
    where = f"sync {sync.name}"
    if not target.comparable:
        raise DefinitionError(
            "REBUILD_UNSUPPORTED",
            "this target cannot be compared with the mart, so no baseline can be made from it",
            hint=f"`retl state adopt {sync.name}` takes the whole mart as delivered;"
            f" `retl state reset {sync.name}` lets the next run send every row",
            where=where,
        )
    if take_ownership and not target.scannable:
        raise DefinitionError(
            "REBUILD_UNSUPPORTED",
            "--take-ownership is not possible here: this target cannot list its keys",
            hint="leave the option out",
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
    with own_run(job) as own:
        running, run, clock = own.running, own.running.run, own.running.clock
        try:
            workspace, lock = own.workspace(), running.lock
            scope = Scope(scan=take_ownership)
            made = compare(job, run, workspace, clock, own.hold, scope, lock.epoch, running.recover)
            with clock.phase("diff"):
                rows = _make_baseline(job, workspace, take_ownership=take_ownership)
            with clock.phase("commit"):
                _replace_baseline(running, made, rows)
            with clock.phase("prepare"):
                made.destination.prepare(Visit(run.run_id, lock.epoch, exclusive=True))
            log.event("target_prepared")
            found = _count(job, workspace, made, take_ownership=take_ownership)
            return running.end(_numbers(found), _checkpoint(running, made, rows)), found
        except RetlError as problem:
            return running.fail(problem), Found()


def look(job: Job, *, take_ownership: bool = False) -> Found:
    """What `rebuild` would find. Writes nothing anywhere. Raises Mismatch if a guard would refuse it."""
    run = new_run(job)
    with private_directory() as folder, ExitStack() as hold, log.bound(sync=job.sync.name):
        workspace = hold.enter_context(Workspace(folder, job.stop))
        made = compare(job, run, workspace, Clock(), hold, Scope(scan=take_ownership))
        return _count(job, workspace, made, take_ownership=take_ownership)


def _make_baseline(job: Job, workspace: Workspace, *, take_ownership: bool) -> int:
    """Create REBUILT; returns its number of rows. Under append and insert_only a key that is there settles
    its row, whatever its values: no run would change them. Of rows that the former baseline does not know,
    those that a run would write are ours; see docs/decisions."""
    write = job.sync.write
    settled = "TRUE" if write in ("append", "insert_only") else "same"
    blind = f"CASE WHEN of = '{held.OF_MART}' THEN hash END" if write == "append" else "NULL"

    def owned(same: str) -> str:
        adopts = job.sync.first_run == "adopt"
        ours = "FALSE" if adopts else same if write == "insert_only" else "TRUE"
        return "TRUE" if take_ownership else f"coalesce(owned, {ours})"

    workspace.run(
        f"CREATE TABLE {REBUILT} AS SELECT row_number() OVER () - 1 AS pos, 'insert' AS op, * FROM ("
        f"SELECT key, CASE WHEN {settled} THEN hash END AS hash, {owned('same')} AS owned, ref"
        f" FROM (SELECT *, fields = '[]' AS same FROM {held.COMPARED}) WHERE there"
        f" UNION ALL SELECT key, {blind}, {owned('FALSE')}, ref FROM {held.PRESENT} WHERE there)"
    )
    number: int = workspace.one(f"SELECT count(*) FROM {REBUILT}")[0]
    return number


def _count(job: Job, workspace: Workspace, made: Compared, *, take_ownership: bool) -> Found:
    read = made.frozen.total
    same, different, absent = workspace.one(
        "SELECT count(*) FILTER (WHERE fields = '[]'), count(*) FILTER (WHERE there AND fields <> '[]'),"
        f" count(*) FILTER (WHERE NOT there) FROM {held.COMPARED}"
    )
    (taken,) = workspace.one(f"SELECT count(*) FROM {held.PRESENT} WHERE there AND of <> '{held.OF_MART}'")
    forgotten = 0 if take_ownership else made.forgotten
    rejected = read - same - different - absent - made.erased
    learns = made.mapped.field_map.shape.cautious and job.sync.write not in ("append", "insert_only")
    again = same if learns else 0
    runs = len(_unknown(made))
    return Found(read, same, different, absent, rejected, taken, forgotten, again, made.erased, runs)


def _unknown(made: Compared) -> frozenset[str]:
    seen = made.visited.trace
    return trace.unknown(seen, made.visited.expected) if seen is not None else frozenset()


def _replace_baseline(running: Execution, made: Compared, rows: int) -> None:
    """The answers are recorded before the delta, and the delta and the end of the former baseline are one
    transaction: after a kill either the old or the new baseline stands. The run gets a newer epoch than any
    that the target knows."""
    job, run_id, former = running.job, running.run.run_id, made.visited.expected.object
    if (seen := made.visited.trace) is not None and seen.epoch >= running.lock.epoch:
        job.ledger.advance(run_id, running.lock, seen.epoch)
    if _unknown(made):
        job.ledger.doubt_requests(running.lock.epoch, job.sync.name)
    fingerprints, place = made.mapped.fingerprints, made.mapped.capabilities.object
    trace.decide(job.ledger, place)
    write_held(running, REBUILT, rows, fingerprints, restart=place)
    if former != place:  # another address of the same object
        trace.relocate(job.ledger, job.sync.name, former, place, running.lock.epoch)
    log.event("delta_written")


def write_held(
    running: Execution, table: str, rows: int, fingerprints: Mapping[str, str], restart: str | None = None
) -> None:
    """Record the rows of a table as what the target holds: nothing of them is sent. `restart`: an object
    whose former baseline ends."""
    job, run_id, epoch = running.job, running.run.run_id, running.lock.epoch
    name = f"{run_id}.delta.parquet"
    path = running.workspace.directory / name
    rows_of = (
        "(SELECT pos, op, key, hash, coalesce(owned, FALSE) AS owned, ref, NULL AS seen, NULL AS dropped,"
        " NULL AS unsent"
        f" FROM {table})"
    )
    change_set.write_delta(running.workspace, rows_of, path)
    job.ledger.put_file(name, path)
    if rows:
        batch = BatchRow(
            f"{run_id}-held", 1, job.sync.write, 0, rows - 1, status="done", outcome=Outcome(PRESENT)
        )
        job.ledger.open_batches(run_id, epoch, [batch])
    job.ledger.record_delta(run_id, epoch, name, rows, fingerprints, restart=restart)


def _checkpoint(running: Execution, made: Compared, rows: int) -> Checkpoint:
    """Without a watermark: the next run reads the whole mart, because a due row may be anywhere in it."""
    return Checkpoint(
        sync=running.job.sync.name,
        object=made.mapped.capabilities.object,
        run_id=running.run.run_id,
        epoch=running.lock.epoch,
        baseline_rows=rows,
        read_rows=made.frozen.total if made.whole else 0,
        fingerprints=made.mapped.fingerprints,
        source_version=made.opened.description.version,
        others=made.known.basis.others,
        scope=made.known.basis.checkpoint.scope if made.known.basis.checkpoint else None,
    )


def _numbers(found: Found) -> Counts:
    """As the numbers of a run: nothing was attempted, and what is not confirmed is still to do."""
    return Counts(read=found.read, unchanged=found.same, not_attempted=found.read - found.same)
