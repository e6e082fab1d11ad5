"""Freeze, diff, judge, guard: everything a run knows before its first write.

`retl plan`, `--dry-run`, `retl explain` and `retl sync` all make the same Plan here; only `sync` goes on.
Nothing in this module writes to the target, the ledger or the state directory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from retl import baseline, changes, contract, guards, log, mapping
from retl.batch import Batch, Capabilities, Shape
from retl.change_set import ChangeSet
from retl.changes import Selection, Strategy
from retl.contract import Contract
from retl.definitions import Sync, Warehouse
from retl.destinations import Destination
from retl.errors import DefinitionError, Mismatch
from retl.guards import Facts, Refusal
from retl.ledger import Checkpoint, LayerRow, Ledger
from retl.mapping import FieldMap, Run
from retl.signals import Stop
from retl.sources import duckdb as mart
from retl.spool import Spool
from retl.summary import REJECTS_SHOWN, Counts, Deletes, Summary

SAMPLE = 200  # confirmed keys asked for before `unchanged` is believed


@dataclass(frozen=True)
class Target:
    """The resolved destination of a sync: its class and its validated options."""

    kind: str
    destination: type[Destination[Any]]
    options: Any

    def lane(self, shape: Shape) -> Destination[Any]:
        """One more Destination, for one thread."""
        return self.destination(self.options, shape)


@dataclass(frozen=True)
class Options:
    """What one invocation asks of a sync."""

    dry_run: bool = False
    selection: Selection = field(default_factory=Selection)
    allow_deletes: int | None = None
    accept: tuple[str, ...] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Job:
    """One sync to be planned or run: definitions, target, ledger and the words of the invocation."""

    sync: Sync
    folder: Path
    warehouse: Warehouse
    target: Target
    ledger: Ledger
    options: Options
    stop: Stop
    environment: str | None = None
    correlation_id: str | None = None

    @property
    def object(self) -> str:
        """The identity of what this sync writes to."""
        return self.target.destination.identity(self.target.options, self.sync.write)


@dataclass
class Clock:
    """Seconds per phase of the data path."""

    phases: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        log.event("phase", phase=name, level="debug")
        started = time.monotonic()
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + time.monotonic() - started


@dataclass
class Plan:
    """What a run would do, and why it may not."""

    run: Run
    spool: Spool
    field_map: FieldMap
    contract: Contract
    change_set: ChangeSet
    capabilities: Capabilities
    checkpoint: Checkpoint | None
    layers: Sequence[LayerRow]
    fingerprints: dict[str, str]
    read: int
    outcome: Mapping[str, int]  # candidates by op before the limit, and rejected rows
    baseline_rows: int
    refusals: list[Refusal]
    source_identity: str
    adopting: bool
    forgets: bool  # the key's definition changed and that was accepted: the old baseline is void
    withheld_deletes: int  # planned, but rows without a usable key might be them
    read_whole: bool
    notes: list[str]

    def held_back(self) -> Counts:
        """The numbers of a run that a guard refused: nothing was attempted."""
        counts = self.counts()
        return replace(
            counts,
            inserted=0,
            updated=0,
            refreshed=0,
            deleted=0,
            not_attempted=counts.not_attempted + counts.inserted + counts.updated + counts.refreshed,
            deletes=replace(counts.deletes, not_attempted=counts.deletes.planned),
        )

    def counts(self) -> Counts:
        """The numbers of this plan if the target takes everything."""
        sent, cut = self.change_set.counts, self.outcome
        upserts = sum(sent.get(op, 0) for op in ("insert", "update", "refresh"))
        planned = sum(cut.get(op, 0) for op in ("insert", "update", "refresh"))
        deletes = sent.get("delete", 0)
        skipped = cut.get("skipped", 0) + (upserts if self.adopting else 0)
        return Counts(
            read=self.read,
            unchanged=self.read - planned - cut["rejected"] - cut.get("skipped", 0) - cut.get("in_doubt", 0),
            inserted=0 if self.adopting else sent.get("insert", 0),
            updated=0 if self.adopting else sent.get("update", 0),
            refreshed=0 if self.adopting else sent.get("refresh", 0),
            rejected=cut["rejected"],
            skipped=skipped,
            in_doubt=cut.get("in_doubt", 0),
            not_attempted=planned - upserts,
            deleted=deletes,
            deletes=Deletes(planned=deletes + self.withheld_deletes, not_attempted=self.withheld_deletes),
        )


def make(
    job: Job,
    run: Run,
    directory: Path,
    clock: Clock,
    settle: Callable[[FieldMap, Destination[Any], Spool], None] = lambda _map, _destination, _spool: None,
    *,
    ask: bool = True,
) -> Plan:
    """Plan one run in `directory` (private, gone afterwards). `settle` may bring evidence of a dead
    run's open batches before the baseline is read. Without `ask` the target is not asked: no network.

    Raises DefinitionError, SourceError, TargetError, Later; what guards say is in `Plan.refusals`.
    """
    sync, options = job.sync, job.options
    with clock.phase("start"):
        spool = Spool(directory, job.stop)
    with clock.phase("freeze"):
        wanted = mart.query(sync.source, options.variables, job.folder)
        identity = mart.attach(spool, job.warehouse, job.folder, _tell_waiting)
        readable = [job.folder / path for path in job.warehouse.read_paths]
        spool.harden([*readable, *job.ledger.readable()])
        judge = contract.build(
            sync.contract, mart.columns(spool, wanted), job.folder, sync.key, job.warehouse.timezone
        )
        field_map = _map(job, judge, run, None)
        capabilities = job.target.lane(field_map.shape).capabilities
        fit(sync, field_map, capabilities)
        checkpoint = job.ledger.checkpoint(sync.name, capabilities.object)
        layers = job.ledger.layers(sync.name, capabilities.object)
        field_map = _map(job, judge, run, _newest(job.ledger, checkpoint, layers))
        mart.read(spool, wanted, judge.columns, "mart")
        mart.detach(spool, job.warehouse)
        log.event("mart_frozen")
    if judge.edits:
        with clock.phase("judge"):
            judge = changes.edit(spool, judge)
            field_map = _map(job, judge, run, field_map.shape.newest)
    destination = job.target.lane(field_map.shape)
    try:
        with clock.phase("recover"):
            settle(field_map, destination, spool)
        with clock.phase("guard"):
            failed_checks = tuple(check for check in sync.checks if _returns_rows(spool, check, options))
        with clock.phase("diff"):
            read = changes.select(spool, field_map, options.selection)
            fingerprints = {
                "where": capabilities.object,
                "who": mapping.who(field_map),
                "what": mapping.what(sync, judge, field_map, capabilities.shaping),
            }
            former = checkpoint.fingerprints if checkpoint else layers[-1].fingerprint if layers else {}
            who_changed = bool(former) and former.get("who") != fingerprints["who"]
            base = checkpoint.base if checkpoint and not who_changed else None
            known_layers = [] if who_changed else job.ledger.layers(sync.name, capabilities.object)
            baseline_rows = lay(job.ledger, spool, directory, base, known_layers)
        with clock.phase("guard"):
            refusals, emptied = _ask_target(destination, options) if ask else ([], False)
            sampled, lost = (0, 0)
            if ask and baseline_rows and not emptied and capabilities.readable and _asks(job):
                sampled, lost = _sample(spool, field_map, destination, run, directory, capabilities.expires)
            if capabilities.expires is not None and guards.is_lost(sampled, lost):
                emptied, lost = True, 0
        strategy = Strategy(
            everything=options.selection.forced or sync.changes.strategy == "all" or emptied,
            absence=_absence_counts(sync, options.selection),
            once=sync.write == "append",
            hold_unknown=not capabilities.idempotent and sync.delivery != "at_least_once",
            refresh_before=_refresh_before(run.started_at, capabilities.expires),
        )
        with clock.phase("diff"):
            sure = "TRUE" if judge.edits else judge.clears()
            changes.fingerprint(spool, field_map, sure, fingerprints["what"])
            changes.diff(spool, strategy)
        with clock.phase("judge"):
            changes.judge(spool, judge)
        with clock.phase("diff"):
            open_rejects = job.ledger.rejects(sync.name)
            outcome = _outcome(spool)
            unkeyed = spool.one(
                "SELECT count(*) FROM rows WHERE fault IN ('KEY_NULL', 'KEY_BLANK', 'KEY_TYPE')"
            )[0]
            change_set = changes.assemble(
                spool,
                field_map,
                absence=strategy.absence and not unkeyed,
                owed=[r.key for r in open_rejects if r.stage == "target"],
                limit=options.selection.limit,
                directory=directory,
            )
            withheld = changes.gone(spool) if strategy.absence and unkeyed else 0
    finally:
        destination.close()
    with clock.phase("guard"):
        known = {(r.key, r.hash) for r in open_rejects}
        facts = Facts(
            read=read,
            new_rejects=sum((key, digest) not in known for key, digest in changes.rejected(spool)),
            baseline_rows=baseline_rows,
            deletes=change_set.counts.get("delete", 0),
            deletes_on=sync.deletes.how != "keep",
            full_read=not options.selection.partial
            and options.selection.limit is None
            and sync.write != "append"
            and sync.changes.strategy != "watermark",
            last_read=checkpoint.read_rows if checkpoint else None,
            inserts=outcome.get("insert", 0),
            matched=read - outcome["rejected"] - outcome.get("insert", 0),
            sampled=sampled,
            lost=lost,
            failed_checks=failed_checks,
            allow_deletes=options.allow_deletes,
        )
        if who_changed:
            refusals.append(Refusal("IDENTITY_CHANGED", *_KEY_REDEFINED))
        refusals = [r for r in refusals if r.code not in options.accept]
        refusals += guards.judge(facts, sync.guards, options.accept)
        log.event("guards_judged", refusals=len(refusals), changes=len(change_set))
    return Plan(
        run=run,
        spool=spool,
        field_map=field_map,
        contract=judge,
        change_set=change_set,
        capabilities=capabilities,
        checkpoint=checkpoint,
        layers=layers,
        fingerprints=fingerprints,
        read=read,
        outcome=outcome,
        baseline_rows=baseline_rows,
        refusals=refusals,
        source_identity=identity,
        adopting=sync.first_run == "adopt" and checkpoint is None and not layers,
        forgets=who_changed,
        withheld_deletes=withheld,
        read_whole=facts.full_read,
        notes=_notes(former, fingerprints, emptied, withheld, capabilities, sync),
    )


_KEY_REDEFINED = (
    "the key's columns or types are not those the rows were delivered under",
    "--accept IDENTITY_CHANGED begins a new baseline: every row is sent, nothing is deleted",
)


def fit(sync: Sync, field_map: FieldMap, capabilities: Capabilities) -> None:
    """Can this destination do what the sync asks? DefinitionError where not."""
    operation = "delete" if sync.deletes.how != "keep" else None
    for needed in filter(None, (sync.write, operation)):
        if needed not in capabilities.operations:
            raise DefinitionError(
                "OPERATION_UNSUPPORTED",
                f"this destination cannot {needed}; it can: {', '.join(sorted(capabilities.operations))}",
                where=f"sync {sync.name}",
            )
    for one in field_map.shape.fields:
        if one.nulls == "keep" and not capabilities.nulls_keep:
            raise DefinitionError(
                "NULLS_KEEP_UNSUPPORTED",
                f"field {one.name!r}: this destination replaces the whole object and cannot keep a value",
                where=f"sync {sync.name}",
            )
        if one.only_if_empty and not capabilities.only_if_empty:
            raise DefinitionError(
                "ONLY_IF_EMPTY_UNSUPPORTED",
                f"field {one.name!r}: this destination cannot tell whether a field is empty",
                where=f"sync {sync.name}",
            )
    if not capabilities.idempotent and sync.first_run is None:
        raise DefinitionError(
            "FIRST_RUN_MISSING",
            "`first_run` must be chosen here (send or adopt): this target does not forget a second delivery",
            where=f"sync {sync.name}",
        )
    once = capabilities.idempotent or capabilities.settles or capabilities.key_window is not None
    if not once and sync.delivery is None:
        raise DefinitionError(
            "DELIVERY_MISSING",
            "`delivery` must be chosen here (at_least_once or at_most_once): the target is neither idempotent"
            " nor has an idempotency key",
            where=f"sync {sync.name}",
        )


def _map(job: Job, judge: Contract, run: Run, newest: tuple[str, str] | None) -> FieldMap:
    return mapping.build(
        job.sync,
        judge,
        run,
        state_id=job.ledger.state_id,
        timezone=job.warehouse.timezone,
        newest=newest,
    )


def _newest(
    ledger: Ledger, checkpoint: Checkpoint | None, layers: Sequence[LayerRow]
) -> tuple[str, str] | None:
    """The newest batch that the ledger knows as answered by this very object."""
    for layer in reversed(layers):
        done = [b for b in ledger.batches(layer.run_id) if b.attempts and b.outcome and b.outcome.arrived]
        if done:
            return layer.run_id, done[-1].batch_id
    return checkpoint.newest if checkpoint else None


def lay(ledger: Ledger, spool: Spool, directory: Path, base: str | None, layers: Sequence[LayerRow]) -> int:
    """Lay the baseline that the ledger's files and answers make; returns its rows."""
    parts = [
        baseline.Layer(ledger.get_file(one.part, directory), one.started_at, ledger.batches(one.run_id))
        for one in layers
    ]
    return baseline.lay(spool, ledger.get_file(base, directory) if base else None, parts)


def _returns_rows(spool: Spool, check: str, options: Options) -> bool:
    spool.run('CREATE OR REPLACE VIEW source AS SELECT * EXCLUDE ("retl row") FROM mart')
    wanted = mart.select(check, options.variables, "checks")
    return bool(mart.answers(spool, wanted))


def _ask_target(destination: Destination[Any], options: Options) -> tuple[list[Refusal], bool]:
    """What the target itself has against this run, and whether it forgot rows that expire anyway. To a
    lost target `--full` is the answer."""
    try:
        destination.check()
    except Mismatch as problem:
        if problem.code == "TARGET_EMPTIED":
            return [], True
        if problem.code == "TARGET_LOST" and options.selection.full:
            return [], False
        return [Refusal(problem.code, problem.message, problem.hint)], False
    return [], False


def _asks(job: Job) -> bool:
    return job.sync.write != "append" and not job.options.selection.full


def _sample(
    spool: Spool,
    field_map: FieldMap,
    destination: Destination[Any],
    run: Run,
    directory: Path,
    expires: float | None,
) -> tuple[int, int]:
    """(asked, missing) of confirmed keys that the target must still have."""
    alive = run.started_at - timedelta(seconds=expires) if expires is not None else None
    sample = changes.sample(spool, field_map, SAMPLE, alive, directory)
    if not len(sample):
        return 0, 0
    batch = Batch(sample, "delete", run.run_id, 0, 0, len(sample) - 1)
    return len(sample), sum(row is None for row in destination.read(batch))


def _absence_counts(sync: Sync, selection: Selection) -> bool:
    return (
        sync.deletes.how != "keep"
        and sync.changes.strategy == "hash"
        and not selection.partial
        and not selection.full
        and selection.limit is None
    )


def _refresh_before(now: datetime, expires: float | None) -> datetime | None:
    return None if expires is None else now - timedelta(seconds=expires / 2)


def _outcome(spool: Spool) -> dict[str, int]:
    counts = {row[0]: row[1] for row in spool.run("SELECT op, count(*) FROM candidates GROUP BY op")}
    counts["rejected"] = spool.one("SELECT count(*) FROM rejects")[0]
    return counts


def _notes(
    former: Mapping[str, str],
    now: Mapping[str, str],
    emptied: bool,
    withheld: int,
    capabilities: Capabilities,
    sync: Sync,
) -> list[str]:
    notes = []
    if former and former.get("what") != now["what"]:
        notes.append("what is sent changed (fields, types, transforms or formats): every row is sent once")
    if emptied:
        notes.append("the target lost rows that expire: every row is sent again")
    if withheld:
        notes.append(f"{withheld} deletes wait: rows without a usable key might be the missing ones")
    if not capabilities.idempotent and sync.delivery == "at_least_once":
        notes.append("delivery is at_least_once: after a crash a row may arrive twice")
    return notes


def _tell_waiting(pid: str) -> None:
    log.event("mart_locked", writer=pid)


def predict(job: Job, plan: Plan, clock: Clock) -> Summary:
    """What the run would report, as long as mart, ledger and target stay as they are. Where the write
    mode depends on what the target has, its keys are read if it is readable; else counts are `at most`."""
    counts, notes = plan.counts(), list(plan.notes)
    if not plan.refusals and job.sync.write in ("insert_only", "update_only") and not plan.adopting:
        if plan.capabilities.readable:
            counts = _with_skips(counts, _present(job, plan), job.sync.write)
        else:
            notes.append("this target cannot be read: inserted and updated are at most these numbers")
    problem = plan.refusals[0] if plan.refusals else None
    if problem is not None:
        counts = plan.held_back()
    status = "SUCCESS_WITH_REJECTS" if counts.rejected else "SUCCESS"
    counts.check()
    return Summary(
        job.sync.name,
        None,
        "REFUSED" if problem else status,
        Mismatch.exit_code if problem else 0,
        dry_run=True,
        counts=counts,
        seconds=sum(clock.phases.values()),
        phases=clock.phases,
        rejects=[
            {"key": r.key, "stage": r.stage, "code": r.code, "reason": r.reason}
            for r in changes.rejects(plan.spool, REJECTS_SHOWN)
        ],
        guards=[asdict(refusal) for refusal in plan.refusals],
        error=asdict(problem) if problem else None,
        notes=notes,
    )


def _present(job: Job, plan: Plan) -> dict[str, tuple[int, int]]:
    """By op: rows of the change set whose key the target has, and has not."""
    destination = job.target.lane(plan.field_map.shape)
    found: dict[str, tuple[int, int]] = {}
    try:
        for phase in (changes.FRESH, changes.OWED):
            for first, last in plan.change_set.cut(phase, job.sync.batch.rows):
                batch = Batch(plan.change_set, job.sync.write, plan.run.run_id, 0, first, last)
                texts = plan.change_set.texts(range(first, last + 1))
                for position, row in enumerate(destination.read(batch), first):
                    op = texts[position][0]
                    has, lacks = found.get(op, (0, 0))
                    found[op] = (has + (row is not None), lacks + (row is None))
    finally:
        destination.close()
    return found


def _with_skips(counts: Counts, present: Mapping[str, tuple[int, int]], write: str) -> Counts:
    skips = {op: has if write == "insert_only" else lacks for op, (has, lacks) in present.items()}
    return replace(
        counts,
        inserted=counts.inserted - skips.get("insert", 0),
        updated=counts.updated - skips.get("update", 0),
        refreshed=counts.refreshed - skips.get("refresh", 0),
        skipped=counts.skipped + sum(skips.values()),
    )
