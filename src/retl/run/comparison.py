"""Comparison: mart, baseline and target, key by key, as tables of the workspace (`engine.held`).

`rebuild` and `reconcile` decide what follows from it. It changes neither target nor baseline, and refuses a
mart that is not whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from retl.destinations.api import Destination
from retl.destinations.batch import MODES, Batch
from retl.engine import change_set, diff, dump, hash, held, judge, suppression
from retl.engine.alike import NOTHING, Alike
from retl.engine.change_set import ChangeSet
from retl.engine.diff import Strategy
from retl.engine.mapping import FieldMap, Run
from retl.engine.workspace import Workspace
from retl.errors import Mismatch
from retl.observe import log
from retl.run import dbt_results, guards, target
from retl.run.guards import Facts
from retl.run.job import Clock, Job
from retl.run.known import Known, know
from retl.run.mart import Extent, Frozen, Mapped, Opened, Reading, hash_rows, open_mart
from retl.run.pipeline import Recover
from retl.run.target import Visited

COMPARED_AT_ONCE = 20_000  # rows; few look-ups in a large table are slower than one join
# Refusals because target and ledger do not agree: a comparison is the answer to them.
ANSWERED = frozenset({"TARGET_LOST", "STATE_LOST", "STATE_BEHIND"})
_EVERYTHING = Strategy(everything=True, absence=False, once=False, hold_unknown=False)


class Scope(Struct, frozen=True):
    """What is asked besides the rows of the mart: every key at the target (`scan`), the delivered keys that
    the mart lacks (`left`), and those that were deleted. With `sample`, only so many rows of the mart.
    `counts`: rows that mart, baseline and target have alike need only be counted."""

    scan: bool = False
    left: bool = False
    deleted: bool = False
    sample: int | None = None
    counts: bool = False


class Compared(Struct, frozen=True):
    """The tables COMPARED and PRESENT. `rows`: the rows of the mart that could be sent, but for those that a
    dump showed to be the same, and for those that are only counted, `alike`. `forgotten`: owned keys of the
    baseline that the mart lacks. `whole`: the mart is one that row counts are compared of. `erased`: rows of
    the mart with suppressed keys, which are not compared."""

    opened: Opened
    frozen: Frozen
    known: Known
    visited: Visited
    rows: ChangeSet
    forgotten: int
    whole: bool
    erased: int
    alike: Alike

    @property
    def mapped(self) -> Mapped:
        return self.frozen.mapped

    @property
    def destination(self) -> Destination[Any]:
        assert self.visited.destination is not None
        return self.visited.destination


def compare(
    job: Job,
    run: Run,
    workspace: Workspace,
    clock: Clock,
    hold: ExitStack,
    scope: Scope,
    epoch: int | None = None,
    recover: Recover | None = None,
) -> Compared:
    """Read mart and target. With an `epoch`, and while `hold` is open, the target refuses other ledgers, if
    it can. Mismatch if its object does not fit, or if the mart is not whole."""
    with clock.phase("freeze"):
        opened = open_mart(job, run, workspace)
    with Reading(job, run, opened, workspace, clock).under_way() as reading:
        mapped = reading.mapped
        reading.extent = Extent("every row is compared")
        with clock.phase("guard"):
            visited = _visit(job, run, mapped, epoch, hold)
        with clock.phase("recover"):
            if recover is not None and target.can_tell(job, mapped, visited):
                recover(mapped, workspace, visited.expected.object)
        with clock.phase("diff"):
            known = know(job, mapped, workspace, visited.expected.object)
        with clock.phase("deliver"):
            dumped = _list_target(job, visited, mapped, known, workspace, scope)
    frozen = reading.frozen
    with clock.phase("diff"):
        rows, erased, same = _sendable(job, frozen, known, visited, workspace, scope, dumped=dumped)
    with clock.phase("guard"):
        _raise_refusal(job, run, opened, frozen, known)
    forgotten = diff.forgotten(workspace)
    whole = job.sync.write != "append" and opened.cursor is None
    found = Compared(opened, frozen, known, visited, rows, forgotten, whole, erased, same)
    with clock.phase("deliver"):
        _ask(job, found, run, scope, dumped=dumped)
    log.event("target_compared", rows=len(rows), dumped=dumped)
    return found


def _visit(job: Job, run: Run, mapped: Mapped, epoch: int | None, hold: ExitStack) -> Visited:
    """Reach the target. Mismatch if its object does not fit; whether it and the ledger agree is no matter."""
    visited = target.visit(job, run, mapped, epoch, hold)
    for one in visited.refusals:
        if one.code not in ANSWERED | set(job.options.accept):
            raise Mismatch(one.code, one.message, hint=one.hint)
    return visited


def _sendable(
    job: Job,
    frozen: Frozen,
    known: Known,
    visited: Visited,
    workspace: Workspace,
    scope: Scope,
    *,
    dumped: bool,
) -> tuple[ChangeSet, int, Alike]:
    """Every row of the mart that could be sent, with what the baseline knows of its key, but for those that a
    dump shows to be the same; how many have a suppressed key, and how many were only counted."""
    assert visited.destination is not None
    field_map, same = replace(frozen.mapped.field_map, folds=visited.destination.folds), NOTHING
    if not frozen.hashed:
        hash_rows(workspace, frozen.mapped)
    erased = suppression.drop(workspace, field_map, known.suppressed)
    if dumped and _counts(scope, field_map):
        same = dump.find_alike(workspace, field_map)
    if dumped:
        held.count_scan(workspace, field_map, same.others)
        suppression.remove(workspace, field_map, known.suppressed, held.SCANNED)
    lacks = visited.trace.lacks if visited.trace is not None else frozenset()
    compares = frozen.mapped.compares(known.former, lacks)  # a repair keeps what others edited
    strategy = replace(_EVERYTHING, compares=compares)
    diff.diff(workspace, field_map, strategy, known.baseline_rows, whole=True, among=same.others)
    judge.judge(workspace, frozen.mapped.contract, job.sync.key, frozen.edited)
    judge.reject_missing(workspace, field_map)
    judge.find_standing(workspace, dict.fromkeys(one.key for one in known.open_rejects))
    if dumped:
        dump.meet(workspace, field_map, same.others)
    return change_set.assemble(workspace, field_map, write=job.sync.write), erased, same


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
        builds=dbt_results.known(job, opened.description),
        max_age=job.source.max_age,
        now=run.started_at,
    )
    if not frozen.total and "EMPTY_SOURCE" not in accepted:
        raise Mismatch(
            "EMPTY_SOURCE",
            "the mart has no rows to compare: everything that was delivered would look gone",
            hint="was the mart built? If it is empty on purpose, --accept EMPTY_SOURCE",
        )
    for one in guards.judge(facts, job.sync.guards, accepted):
        raise Mismatch(one.code, one.message, hint=one.hint)


def _list_target(
    job: Job, visited: Visited, mapped: Mapped, known: Known, workspace: Workspace, scope: Scope
) -> bool:
    """Read a dump of the target's rows, and return True, if it has one; else create SCANNED if the scope asks
    for it."""
    destination, again = visited.destination, job.pace.retrying(job.sync.retry, job.stop.event)
    assert destination is not None
    field_map = replace(mapped.field_map, folds=destination.folds)

    def dumped() -> bool:
        chunks = destination.dump(dump.fields(field_map)) if scope.sample is None else None
        counts = _counts(scope, field_map)
        return chunks is not None and dump.load(workspace, field_map, chunks, counts=counts)

    found = again(dumped)
    if not found and scope.scan:
        again(lambda: held.load_scan(workspace, field_map, destination.scan()))
        suppression.remove(workspace, field_map, known.suppressed, held.SCANNED)
    return found


def _counts(scope: Scope, field_map: FieldMap) -> bool:
    """Whether rows that are alike are only counted."""
    return scope.counts and not (field_map.lookups or field_map.folds)


def _ask(job: Job, compared: Compared, run: Run, scope: Scope, *, dumped: bool) -> None:
    """Compare the rows at the target, and look for the keys of rows that cannot be compared."""
    rows, destination = compared.rows, compared.destination
    workspace, field_map = rows.workspace, rows.field_map
    again = job.pace.retrying(job.sync.retry, job.stop.event)
    others = dump.others() if dumped else f"SELECT key FROM {held.SCANNED}"
    listed = others if scope.scan else None
    among = compared.alike.others
    held.list_keys(workspace, field_map, among, scanned=listed, left=scope.left, deleted=scope.deleted)
    hash.release(workspace)

    def batches(of: ChangeSet, mode: Any, size: int) -> Iterator[Batch]:
        for first in range(0, len(of), size):
            job.stop.check()
            last = min(first + size, len(of)) - 1
            yield Batch(of, *MODES[mode], run.run_id, 0, first, last, run.started_at.isoformat())

    asked = rows if scope.sample is None else rows.draw(scope.sample)
    held.compare(
        workspace,
        asked.table,
        (
            one
            for batch in batches(asked, job.sync.write, COMPARED_AT_ONCE)
            for one in again(lambda batch=batch: list(destination.differing(batch)))
        ),
    )
    if dumped:
        held.keep_same(workspace, dump.same())
    if scope.scan:
        held.keep_scanned(workspace, field_map)
        return
    keyed = change_set.of_keys(workspace, field_map, "keyed", f"pos, key, ref FROM {held.ASKED}")
    held.keep_present(
        workspace,
        (
            row is not None
            for batch in batches(keyed, "delete", job.sync.batch.rows)
            for row in again(lambda batch=batch: list(destination.read(batch)))
        ),
    )
