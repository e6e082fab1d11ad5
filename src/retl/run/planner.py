"""Diff, judge, guard: what a run would do, and why it must not. It reads rows and writes nothing.

Each step takes the results of earlier steps and returns a frozen value. `pipeline` calls them in order for
`sync`, `--dry-run`, `plan` and `explain`.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
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
from retl.observe import log
from retl.observe.summary import counted
from retl.run import columns, dbt_results, extent, guards, resolve, target, trace
from retl.run.guards import Facts, Refusal
from retl.run.job import Job, repeats
from retl.run.known import Known, holding
from retl.run.mart import Extent, Frozen, Mapped, Opened, follows, hash_rows
from retl.run.plan import Plan, Terms, Undecided
from retl.run.target import Asked, Visited
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


def guard(job: Job, run: Run, made: Made) -> Plan:
    """Judge the facts and make the plan, without its notes."""
    sync, options, chosen = job.sync, job.options, job.options.selection
    mapped, known = made.frozen.mapped, made.known
    in_part = chosen.partial or chosen.limit is not None
    whole = not in_part and _is_whole(job, made)
    _refuse_part(job, mapped, known, in_part)
    columns.require_own(job.ledger, sync, mapped.field_map, job.neighbours)
    facts = _facts(job, run, made, whole)
    refusals = _refusals(job, made, facts)
    log.event("guards_judged", refusals=len(refusals), changes=len(made.due.changes))
    return Plan(
        purpose=options.purpose,
        run=run,
        field_map=mapped.field_map,
        contract=mapped.contract,
        capabilities=mapped.capabilities,
        changes=made.due.changes,
        ends=made.due.ends,
        read=made.diffed.read,
        facts=facts,
        refusals=tuple(refusals),
        basis=known.basis,
        distrust=made.asked.distrust,
        moved_from=known.object if known.object != mapped.capabilities.object else None,
        past=made.asked.past,
        marks=made.asked.marks,
        fingerprints={
            **mapped.fingerprints,
            "mark": extent.fingerprint(job, made.opened),
            "digests": diff.remembered(known.former, mapped.fingerprints),
        },
        watermark=made.diffed.watermark,
        scope=_scope(made),
        read_rows=_rows_read(made, whole=whole or (made.frozen.fed and not in_part)),
        source_version=made.opened.description.version,
        statistics=made.judged.statistics,
        adopting=_adopts(job, known),
        payload=made.frozen.payload,
        notes=(),
        terms=Terms(
            sync.batch.rows,
            sync.guards.max_failed_rate,
            sync.guards.max_conflict_rate,
            refill=chosen.full or made.asked.emptied,
            decisions=made.due.changes.positions(options.decisions),
        ),
        narrowed=made.frozen.narrowed,
        rest=_leaves(job, made),
    )


def _leaves(job: Job, made: Made) -> bool:
    """Whether a run of keys that may have changed leaves what only a run of the whole mart does: to delete
    what left the mart, and to send what the target lost."""
    absent = made.diffed.absent
    if absent is None:
        return False
    return made.asked.distrust is not None or bool(absent.gone and job.sync.deletes.how != "keep")


def _refusals(job: Job, made: Made, facts: Facts) -> list[Refusal]:
    """Why the run must not write, without what is accepted."""
    mapped, known, accept = made.frozen.mapped, made.known, job.options.accept
    redefined = known.basis.restarts and not job.options.adopt
    described, now = made.opened.description.columns, mapped.fingerprints
    found = [*_redefined(redefined), *_orphans(job, mapped, known)]
    found += columns.drifted(known.former, now, mapped.field_map, described)
    found += _doubted(job, made)
    found = [*made.asked.refusals, *(one for one in found if one.code not in accept)]
    return [*found, *guards.judge(facts, job.sync.guards, accept), *_unapproved(job)]


def _doubted(job: Job, made: Made) -> Iterator[Refusal]:
    """Refuse to send from a ledger that another sync found to be wrong: it may have forgotten what it sent,
    and whom it must never send again. A new ledger that knows this sync has sent for it since."""
    doubted, rows = job.doubted, len(made.due.changes)
    if doubted is None or not rows or _adopts(job, made.known):
        return
    behind = doubted.code == "STATE_BEHIND"
    if not (behind or repeats(job.sync) or made.known.basis.is_first):
        return
    state = "is older than what it sent" if behind else "is not the one that sent"
    may, which = "may have been sent before, and would arrive twice", "newer" if behind else "former"
    ways = f"`retl state adopt {job.sync.name}` takes today's rows as sent; or "
    if not repeats(job.sync):
        may, ways = "may be of people who were erased, which such a ledger does not know", ""
    yield Refusal(
        doubted.code,
        f"the ledger {state}, as {doubted.sync} found, and this target keeps no marks: some of these"
        f" {counted(rows, 'row')} {may}",
        f"bring the {which} ledger back; or {ways}--accept {doubted.code} sends them"
        + ("" if repeats(job.sync) else f"; {trace.FORGOTTEN}"),
    )


def _is_whole(job: Job, made: Made) -> bool:
    """Whether a run like this reads every row of the mart, so that their number says something."""
    some = made.frozen.fed or made.frozen.narrowed or made.opened.cursor is not None
    explains_feed = job.options.explains is not None and job.sync.changes.strategy == "cdf"
    return not (some or explains_feed or job.sync.write == "append")


def _refuse_part(job: Job, mapped: Mapped, known: Known, in_part: bool) -> None:
    """DefinitionError where a part of the mart is asked for and only the whole can be right."""
    sync, wrong = job.sync, None
    if in_part and sync.first_run == "adopt" and known.basis.is_first:
        wrong = "ADOPT_WHOLE", "`first_run: adopt` records the whole mart as delivered, never a part of it"
    elif mapped.capabilities.whole and (in_part or job.options.purpose not in ("sync", "apply")):
        wrong = "SNAPSHOT_WHOLE", "a snapshot has every row of the mart, so a part of it cannot be sent"
    if wrong:
        hint = "run without --key, --where and --limit"
        raise DefinitionError(*wrong, hint=hint, where=f"sync {sync.name}")


def aside(
    job: Job,
    run: Run,
    mapped: Mapped,
    known: Known,
    visited: Visited,
    changes: ChangeSet,
    ends: Ends,
    facts: Facts,
    source_version: str,
) -> Plan:
    """A plan beside the syncs: it takes no row from them, so mark, fingerprints and the version of the source
    stay, and what its own digests are of is added. A target and a ledger that do not agree refuse it, and so
    do the guards of the facts."""
    former, place, seen = known.basis.checkpoint, mapped.capabilities.object, visited.trace
    refusals, doubt = target.disagreement(job, run, mapped, known, visited, changes.workspace)
    unknown = trace.unknown(seen, visited.expected) if seen is not None else frozenset()
    digests = diff.remembered(known.former, mapped.fingerprints)
    return Plan(
        purpose=job.options.purpose,
        run=run,
        field_map=changes.field_map,
        contract=mapped.contract,
        capabilities=mapped.capabilities,
        changes=changes,
        ends=ends,
        read=facts.read,
        facts=facts,
        refusals=(*refusals, *guards.judge(facts, job.sync.guards, job.options.accept), *_unapproved(job)),
        basis=known.basis,
        fingerprints=known.former and {**known.former, "digests": digests},
        watermark=former.watermark if former else None,
        read_rows=former.read_rows if former else 0,
        source_version=(former.source_version if former else None) or source_version,
        statistics=None,
        scope=former.scope if former else None,
        distrust=doubt,
        moved_from=known.object if known.object != place else None,
        past=seen.epoch if seen is not None else 0,
        marks=None,
        adopting=False,
        payload=None,
        notes=(),
        terms=Terms(job.sync.batch.rows, job.sync.guards.max_failed_rate, job.sync.guards.max_conflict_rate),
        undecided=Undecided(unknown, visited.strange),
    )


def _rows_read(made: Made, *, whole: bool) -> int:
    """The rows of the mart as this run knows them, else as the last run did. A mart without rows is not one
    that a later one fell from."""
    if whole and made.frozen.total:
        return made.frozen.total
    checkpoint = made.known.basis.checkpoint
    return checkpoint.read_rows if checkpoint else 0


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


def _scope(made: Made) -> str | None:
    """The scope that the next run compares its own with: a run that deletes nothing by absence keeps it."""
    former, scope = made.known.basis.checkpoint, made.opened.scope
    if made.diffed.strategy.absence or former is None:
        return scope.text() if scope else None
    return former.scope


def _facts(job: Job, run: Run, made: Made, whole: bool) -> Facts:
    """The facts for the guards; `whole`: the whole mart was read."""
    checkpoint, ends = made.known.basis.checkpoint, made.due.ends
    new = sum(number for (op, _), number in ends.items() if op == "insert")
    unusable = sum(number for (op, _), number in ends.items() if op == "none")
    return Facts(
        read=made.diffed.read,
        total=made.frozen.total,
        new_rejects=_new_rejects(job, made),
        old_rejects=made.judged.old_rejects,
        left_out=_left_out(made),
        reject_codes=made.judged.reject_codes,
        baseline_rows=made.known.baseline_rows,
        deletes=made.due.changes.counts.get("delete", 0),
        deletes_on=job.sync.deletes.how != "keep" and not job.options.selection.touched,
        scope_known=made.diffed.scoped.known if made.diffed.scoped else None,
        scope_read=made.diffed.scoped is None or made.frozen.fed or made.diffed.scoped.read,
        scope_grown=made.due.scope_grown,
        append=job.sync.name if job.sync.write == "append" else None,
        full_read=whole,
        last_read=checkpoint.read_rows if checkpoint else None,
        inserts=ends.get(("insert", None), 0),
        matched=made.diffed.read - unusable - new,
        sampled=made.asked.sampled,
        lost=made.asked.lost,
        spared=made.asked.spared,
        taken=made.asked.taken,
        failed_checks=made.frozen.failed_checks,
        drifted=made.judged.drifted,
        allow_deletes=job.options.allow_deletes,
        builds=dbt_results.known(job, made.opened.description),
        max_age=job.source.max_age,
        now=run.started_at,
        unproved=len(made.due.changes) if _is_unproved(job, made) else None,
    )


def _new_rejects(job: Job, made: Made) -> int:
    """They are judged as a share of the rows that were read. Few of a few keys say nothing of the mart, and
    must not keep the other keys waiting."""
    found = made.judged.new_rejects
    few = bool(job.options.selection.touched) and found <= guards.FEW_REJECTS
    return 0 if made.frozen.narrowed or few else found


def _is_unproved(job: Job, made: Made) -> bool:
    """Whether a first run looks just like the run after a lost state: what is sent twice stays twice, the
    target keeps no trace of this ledger, and the ledger has no history."""
    asked, capabilities = made.asked, made.frozen.mapped.capabilities
    if _adopts(job, made.known) or not (made.known.basis.is_first and asked.reached and asked.marks is None):
        return False
    once = job.sync.write == "append" or not capabilities.idempotent
    return once and not job.ledger.has_history(job.sync.name, socket.gethostname(), os.getpid())


def _left_out(made: Made) -> int:
    """The rejected rows of a mart that is published as a whole, if it is published."""
    if not (made.frozen.mapped.capabilities.whole and len(made.due.changes)):
        return 0
    return sum(number for (_, ending), number in made.due.ends.items() if ending == "rejected")


def _adopts(job: Job, known: Known) -> bool:
    """Whether the rows are recorded as delivered and not sent."""
    return job.options.adopt or (job.sync.first_run == "adopt" and known.basis.is_first)


def _unapproved(job: Job) -> Iterator[Refusal]:
    """Refuse to send the mart without a signed plan, where the sync asks for one. To restore rows, or to
    erase a person, must not wait for a plan."""
    options = job.options
    sends = options.purpose in ("sync", "apply", "repair") and not (options.dry_run or options.adopt)
    if job.sync.require == "approval" and sends and options.approved_by is None:
        yield Refusal(
            "APPROVAL_REQUIRED",
            "this sync delivers only plans that somebody signed (`require: approval`)",
            f"`retl plan --sync {job.sync.name} --out PLAN`; another person signs it (`ssh-keygen -Y sign -n"
            " retl-plan -f KEY PLAN`); `retl apply PLAN --signature PLAN.sig`",
        )


def _redefined(redefined: bool) -> Iterator[Refusal]:
    if redefined:
        yield Refusal(
            "IDENTITY_CHANGED",
            "the key's columns or types differ from those of the delivered rows",
            "--accept IDENTITY_CHANGED starts a new baseline: every row is sent, nothing is deleted",
        )


def _orphans(job: Job, mapped: Mapped, known: Known) -> Iterator[Refusal]:
    """Refuse if this sync is probably a new name of a sync that still has state."""
    if not known.basis.is_first or not job.siblings:
        return
    for former in job.ledger.checkpoints_on(mapped.capabilities.object):
        if former.sync not in job.siblings:
            yield Refusal(
                "ORPHANED_STATE",
                f"sync {former.sync!r} delivered to this object and no longer exists: was it renamed?",
                f"`retl state mv {former.sync} {job.sync.name}` keeps its state; --accept ORPHANED_STATE"
                " starts without it",
            )
