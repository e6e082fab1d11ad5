"""Which rows of the mart are due: those that differ and are not rejected, in the order of sending.

Each step takes the results of earlier steps and returns a frozen value; the rows themselves are tables of the
workspace. `planner` judges what comes of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType

from msgspec import Struct
from msgspec.structs import replace

from retl.destinations.batch import Capabilities
from retl.engine import (
    change_set,
    diff,
    hash,
    judge,
    scope,
    selection,
    statistics,
    succession,
    suppression,
)
from retl.engine.change_set import ChangeSet
from retl.engine.diff import Ends, Strategy
from retl.engine.mapping import FieldMap, Run
from retl.engine.scope import IN_SCOPE, Scope, Scoped
from retl.engine.selection import Absent
from retl.engine.statistics import Drifted, Statistics
from retl.engine.workspace import Workspace
from retl.errors import DefinitionError
from retl.ledger.breakers import SKEW
from retl.run import resolve
from retl.run.job import Job
from retl.run.known import Known, holding
from retl.run.mart import Extent, Frozen, Opened, follows, hash_rows
from retl.run.target import Asked
from retl.values.suppressed import Suppressed


class Diffed(Struct, frozen=True):
    """The candidates are a table now. `read`: the rows of this run; `watermark`: the next mark."""

    strategy: Strategy
    read: int
    watermark: str | None
    scoped: Scoped | None  # where only keys in a scope are deleted
    erased: int  # rows of suppressed keys, which nothing looks at
    absent: Absent | None = None  # where only keys were looked at that may have changed


class Judged(Struct, frozen=True):
    """The rejects are a table now."""

    new_rejects: int  # key and contract rejects that were not open or dismissed before
    old_rejects: int  # those that were
    reject_codes: tuple[str, ...]  # the most frequent first
    statistics: Mapping[str, Statistics] | None  # by column, where drift is judged
    drifted: Mapping[str, Drifted]


class Due(Struct, frozen=True):
    """The change set, and the candidates by op and ending before delivery. Rows past --limit have one."""

    changes: ChangeSet
    ends: Ends
    scope_grown: int  # deletes that were outside the scope of the last run


class Made(Struct, frozen=True):
    """The results of the steps before the guards."""

    opened: Opened
    frozen: Frozen
    known: Known
    asked: Asked
    diffed: Diffed
    judged: Judged
    due: Due


class Comparison(Struct, frozen=True):
    """How rows are compared with the baseline; it is the same for every share of the keys. `whole`: every row
    of the mart is there; `fed`: only what changed is; `published`: each run sends the whole mart; `resends`:
    twice is once; `left_due`: keys that stay due, where the mart is taken as delivered."""

    strategy: Strategy
    whole: bool
    fed: bool
    published: bool
    resends: bool
    scope: Scope | None
    suppressed: Suppressed
    left_due: tuple[str, ...] | None


class Different(Struct, frozen=True):
    """What `differ` found beside the candidates."""

    read: int
    scoped: Scoped | None
    erased: int


def compare(
    job: Job,
    run: Run,
    opened: Opened,
    frozen: Frozen,
    known: Known,
    asked: Asked,
    reach: Extent,
    workspace: Workspace,
) -> Diffed:
    """Find the candidates: rows that differ from the baseline, or are due for another reason."""
    frozen, mark, absent = folding(frozen, asked), None, None
    if not frozen.hashed:
        condition, mark = choose(job, run, opened, frozen, reach, workspace)
        if opened.cursor is not None and job.options.explains is not None:
            selection.keep_passed(workspace, frozen.mapped.field_map, condition or "TRUE")
        if touched := job.options.selection.touched:
            absent = selection.absent(workspace, frozen.mapped.field_map, len(touched))
        hash_rows(workspace, frozen.mapped, condition)
    how = comparison(job, run, opened, frozen, known, asked)
    found = differ(workspace, frozen.mapped.field_map, how, known.baseline_rows)
    return Diffed(how.strategy, found.read, next_mark(job, known, mark), found.scoped, found.erased, absent)


def folding(frozen: Frozen, asked: Asked) -> Frozen:
    """The rows with the target's way of comparing keys, which may be known only since it was asked."""
    if not asked.folds:
        return frozen
    field_map = replace(frozen.mapped.field_map, folds=asked.folds)
    return replace(frozen, mapped=replace(frozen.mapped, field_map=field_map))


def comparison(job: Job, run: Run, opened: Opened, frozen: Frozen, known: Known, asked: Asked) -> Comparison:
    """How this run compares its rows."""
    sync, chosen, capabilities = job.sync, job.options.selection, frozen.mapped.capabilities
    expires = capabilities.expires
    strategy = Strategy(
        everything=chosen.forced or sync.changes.strategy == "all" or asked.emptied,
        absence=sync.deletes.how != "keep"
        and sync.changes.strategy in ("hash", "cdf")
        and not (chosen.partial if capabilities.whole else chosen.forced or chosen.partial)
        and chosen.limit is None
        and not frozen.narrowed
        and not job.options.adopt,
        once=_sends_once(job, capabilities),
        hold_unknown=resolve.waits(sync, idempotent=capabilities.idempotent),
        compares=frozen.mapped.compares(known.former, asked.lacks),
        learns=frozen.mapped.field_map.shape.cautious,
        refresh_before=None if expires is None else run.started_at - timedelta(seconds=expires / 2),
        refresh_after=None if expires is None else run.started_at + SKEW,
        held=() if expires is None else holding(job.ledger, sync.name),
    )
    scope = opened.scope if strategy.absence else None
    left = tuple(one.key for one in known.open_rejects if one.stage == "target")
    return Comparison(
        strategy=replace(strategy, scope=IN_SCOPE) if scope is not None else strategy,
        whole=opened.cursor is None and not chosen.partial and not frozen.fed,
        fed=frozen.fed,
        published=capabilities.whole,
        resends=capabilities.idempotent,
        scope=scope,
        suppressed=known.suppressed,
        left_due=left if job.options.adopt else None,
    )


def differ(workspace: Workspace, field_map: FieldMap, how: Comparison, baseline_rows: int) -> Different:
    """Create CANDIDATES and SUCCEEDED from the hashed rows and BASELINE, all of them or one share of the
    keys."""
    erased = suppression.drop(workspace, field_map, how.suppressed)
    scoped = scope.find(workspace, field_map, how.scope) if how.scope is not None else None
    strategy = how.strategy
    diff.diff(workspace, field_map, strategy, baseline_rows, whole=how.whole, fed=how.fed)
    if how.published and any(ending is None for _, ending in diff.ends(workspace)):
        strategy = replace(strategy, again=True)
        diff.diff(workspace, field_map, strategy, baseline_rows, whole=how.whole)
    succession.withhold(workspace, field_map, strategy, whole=how.whole, resend=how.resends)
    if how.left_due is not None:
        diff.leave_due(workspace, how.left_due)
    return Different(hash.count(workspace) + erased, scoped, erased)


def next_mark(job: Job, known: Known, mark: str | None) -> str | None:
    """The mark for the checkpoint. It does not move if only some rows were read or sent."""
    chosen = job.options.selection
    if not chosen.partial and chosen.limit is None:
        return mark
    former = known.basis.checkpoint
    return former.watermark if former and not known.distrusted else None


def choose(
    job: Job, run: Run, opened: Opened, frozen: Frozen, reach: Extent, workspace: Workspace
) -> tuple[str | None, str | None]:
    """The frozen rows that the run selects, as SQL (None: all of them), and the next mark."""
    field_map, chosen = frozen.mapped.field_map, job.options.selection
    if not job.options.retry:
        selection.require(workspace, field_map, job.sync, chosen.keys)
    conditions = selection.chosen(workspace, field_map, chosen, job.options.variables)
    mark = None
    if opened.cursor is not None:
        moved = selection.since(workspace, field_map, opened.cursor, reach.mark, reach.due, run.started_at)
        conditions.append(moved.condition)
        mark = moved.next
    elif follows(job):
        mark = opened.description.version
    return " AND ".join(conditions) or ("TRUE" if frozen.fed else None), mark


def _sends_once(job: Job, capabilities: Capabilities) -> bool:
    """Whether a key that the target confirmed is never sent again: it would take the row for a new one,
    because it does not look for the key before it inserts. DefinitionError FULL_APPEND for --full."""
    write = job.sync.write
    once = write == "append" or (write == "insert_only" and not capabilities.idempotent)
    if once and job.options.selection.full:
        raise DefinitionError(
            "FULL_APPEND",
            f"--full is not possible with `write: {write}` here: this target would insert every row again",
            where=f"sync {job.sync.name}",
        )
    return once


def judge_rows(job: Job, frozen: Frozen, known: Known, workspace: Workspace) -> Judged:
    """Reject rows by their keys, by the contract and by missing external ids."""
    mapped = frozen.mapped
    judge.judge(workspace, mapped.contract, job.sync.key, frozen.edited)
    judge.reject_missing(workspace, mapped.field_map)
    unkeyed = judge.has_unkeyed(workspace)
    judge.hold_deletes(workspace, unkeyed=unkeyed, by_ref=mapped.capabilities.by_ref)
    judge.find_standing(workspace, dict.fromkeys(one.key for one in known.open_rejects))
    measured, drifted = _measure(job, frozen, workspace)
    return judged(known, workspace, measured, drifted)


def judged(
    known: Known,
    workspace: Workspace,
    measured: Mapping[str, Statistics] | None = None,
    drifted: Mapping[str, Drifted] = MappingProxyType({}),
) -> Judged:
    """What the rejects say."""
    new, old = judge.new_rejects(workspace, known.known_rejects)
    return Judged(new, old, judge.codes(workspace), measured, drifted)


def _measure(
    job: Job, frozen: Frozen, workspace: Workspace
) -> tuple[dict[str, Statistics] | None, dict[str, Drifted]]:
    """The statistics of the columns whose drift is judged, and how they changed since the last good run."""
    names = dict.fromkeys(one.column for one in job.sync.guards.drift)
    if not names or job.options.selection.partial or frozen.narrowed:
        return None, {}
    former = job.ledger.last_statistics(job.sync.name)
    now: dict[str, Statistics] = {
        name: statistics.measure(workspace, hash.MART, name, frozen.types[name], former.get(name))
        for name in names
    }
    return now, {name: statistics.compare(former[name], now[name]) for name in names if name in former}


def assemble(job: Job, frozen: Frozen, known: Known, diffed: Diffed, workspace: Workspace) -> Due:
    """Make the change set of the due rows, in the order of sending. Rows of suppressed keys are skipped."""
    if frozen.mapped.capabilities.whole:
        diff.settle(workspace)
    changes = change_set.assemble(
        workspace,
        frozen.mapped.field_map,
        write=job.sync.write,
        retried=retried(known, frozen.mapped.capabilities),
        limit=job.options.selection.limit,
        succeeds=bool(workspace.run(f"SELECT 1 FROM {succession.SUCCEEDED} LIMIT 1")),
    )
    former, grown = known.basis.checkpoint and known.basis.checkpoint.scope, 0
    if former and changes.counts.get("delete"):
        grown = scope.grown(workspace, frozen.mapped.field_map, Scope.parse(former))
    return due(changes, planned(workspace, changes), diffed.erased, grown)


def retried(known: Known, capabilities: Capabilities) -> list[str]:
    """The keys that the target refused before, which are sent last. If everything is one batch: none."""
    return [] if capabilities.whole else [one.key for one in known.open_rejects if one.stage == "target"]


def due(changes: ChangeSet, ends: Ends, erased: int, grown: int) -> Due:
    """Rows of erased keys are skipped."""
    counted = Counter(ends)
    counted["insert", "skipped"] += erased
    return Due(changes, counted, grown)


def planned(workspace: Workspace, changes: ChangeSet) -> Ends:
    """The candidates by op and ending before delivery; those that are due and not in the change set are not
    attempted."""
    return taken(diff.ends(workspace), changes.counts)


def taken(found: Ends, counts: Mapping[str, int]) -> Ends:
    """The same from the number of candidates, and of rows in the change set by op."""
    ends = dict(found)
    for op in (*diff.UPSERTS, "delete"):
        sent = counts.get(op, 0)
        past = ends.pop((op, None), 0) - sent
        ends[op, None] = sent
        ends[op, "not_attempted"] = ends.get((op, "not_attempted"), 0) + past
    return ends
