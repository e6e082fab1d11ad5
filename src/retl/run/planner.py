"""Freeze, diff, judge, guard: everything a run knows before its first write.

`retl plan`, `--dry-run`, `retl explain` and `retl sync` all make the same Plan here; only `sync` goes on.
Nothing in this module writes to the target, the ledger or the state directory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

from retl.contract.judge import Contract
from retl.destinations.api import Destination
from retl.destinations.batch import MODES, UNKNOWN, Batch, Outcome, Visit
from retl.engine import baseline, changes, mapping
from retl.engine.changes import Cursor, Strategy
from retl.engine.mapping import FieldMap, Run
from retl.engine.workspace import Workspace
from retl.errors import DefinitionError, Mismatch, Systemic, TargetError
from retl.ledger import BatchRow, Checkpoint, LayerRow, Ledger, RejectRow
from retl.observe import log
from retl.run import guards, recovery, volatile
from retl.run.fit import fit
from retl.run.guards import Facts, Refusal
from retl.run.job import Clock, Job
from retl.run.plan import Plan
from retl.run.reading import Reading
from retl.sources import dbt
from retl.sources import duckdb as mart

RIGHTS = frozenset({"42501", "NO_MARKER", "NOPERM"})  # missing ones, which a dry run does not need
SAMPLE = 200  # confirmed keys asked for before `unchanged` is believed

Settle = Callable[[FieldMap, Destination[Any], Workspace], None]


def make(
    job: Job,
    run: Run,
    directory: Path,
    clock: Clock,
    settle: Settle | None = None,
    hold: ExitStack | None = None,
    *,
    epoch: int = 0,
    ask: bool = True,
) -> Plan:
    """Plan one run in `directory` (private, gone afterwards). `settle` may bring evidence of a dead
    run's open batches before the baseline is read; without `ask` the target is left alone. With `hold`
    the run will write: as long as that is open the target keeps other ledgers out, where it can.

    Raises DefinitionError, SourceError, TargetError, Later; what guards say is in `Plan.refusals`.
    """
    with clock.phase("start"):
        planning = _Planning(job, run, directory, hold, epoch)
    with clock.phase("freeze"):
        planning.open()
    with planning.freezing(clock):
        with clock.phase("recover"):
            if settle is not None:
                planning.settle(settle)
            elif ask:
                planning.foresee()
        with clock.phase("diff"):
            planning.lay()
        if ask:
            with clock.phase("guard"):
                planning.ask_target()
    with clock.phase("diff"):
        planning.narrow()
        planning.diff()
    with clock.phase("judge"):
        planning.judge()
    with clock.phase("diff"):
        planning.assemble()
    with clock.phase("guard"):
        return planning.guard()


class _Planning:
    """The steps of a plan in the order of `make`; each leaves what the next ones need."""

    def __init__(self, job: Job, run: Run, directory: Path, hold: ExitStack | None, epoch: int) -> None:
        self.epoch = epoch
        self.job, self.run, self.directory, self.hold = job, run, directory, hold
        self.workspace = Workspace(directory, job.stop)
        self.refusals: list[Refusal] = []
        self.emptied = False  # the target lost rows that expire anyway: every row is due
        self.sampled = self.lost = 0
        self.readonly = False
        self.asked = False
        self.watermark: str | None = None
        self.foreseen: dict[str, Outcome] = {}  # of dead runs' batches, by their ids
        self.unforeseen = 0  # rows of those that only a run can ask after

    def open(self) -> None:
        """Lay hold of the mart, and know how its rows become the target's."""
        job, sync = self.job, self.job.sync
        self.reading = Reading(job, self.workspace)
        self._map()
        self.capabilities = job.lane(self.field_map.shape).capabilities
        fit(sync, self.field_map, self.capabilities)
        self.checkpoint = job.ledger.checkpoint(sync.name, self.capabilities.object)
        self.layers = job.ledger.layers(sync.name, self.capabilities.object)

    @contextmanager
    def freezing(self, clock: Clock) -> Iterator[None]:
        """The mart is read, and its rows are hashed, while the body asks ledger and target."""
        with self.reading.under_way(clock, self._hash if self._at_once else None):
            if self.contract.edits:
                self._map()  # its rows have other types than the mart's
            yield

    def _hash(self, workspace: Workspace) -> None:
        sure = "TRUE" if self.contract.edits else self.contract.clears()
        changes.fingerprint(workspace, self.field_map, sure, self._what)

    @property
    def _at_once(self) -> bool:
        """Are the rows that are hashed those that the mart has, as it has them?"""
        return not (self._in_part or self.contract.edits or self.field_map.lookups)

    def settle(self, settle: Settle) -> None:
        """Ask what became of dead runs' batches, where that is to be known."""
        if self.layers:
            with _closing(self.job, self.field_map) as destination:
                settle(self.field_map, destination, self.workspace)

    def foresee(self) -> None:
        """What a run would learn of dead runs' batches, as far as reading alone can tell."""
        ledger, now = self.job.ledger, self.run.started_at
        for layer, rows in recovery.unanswered(ledger, self.job.sync.name, self.capabilities, now):
            found = recovery.batches(ledger, self.workspace, self.field_map, self.directory, layer, rows, 0)
            with _closing(self.job, self.field_map) as destination:
                for row, batch in found:
                    try:
                        outcome = destination.resolve(batch, row.handle, act=False)
                    except Systemic:  # a right to look that this account lacks
                        outcome = Outcome(UNKNOWN)
                    if not isinstance(outcome, Outcome) or outcome == Outcome(UNKNOWN):
                        self.unforeseen += len(batch)
                    else:
                        self.foreseen[row.batch_id] = outcome

    def lay(self) -> None:
        """The baseline, and what else the ledger knows."""
        sync, ledger = self.job.sync, self.job.ledger
        newest = _newest(ledger, self.checkpoint, self.layers)  # a batch that was just resolved may be it
        self.visit = Visit(self.run.run_id, self.epoch, newest, exclusive=self.hold is not None)
        self.fingerprints = {
            "where": self.capabilities.object,
            "who": mapping.who(self.field_map),
            "what": self._what,
            "mark": f"{self.reading.cursor.column} {self.reading.cursor.column_type}"
            if self.reading.cursor
            else "",
        }
        last = self.layers[-1].fingerprint if self.layers else {}
        self.former: Mapping[str, str] = self.checkpoint.fingerprints if self.checkpoint else last
        self.forgets = bool(self.former) and self.former.get("who") != self.fingerprints["who"]
        base = self.checkpoint.base if self.checkpoint and not self.forgets else None
        layers = [] if self.forgets else ledger.layers(sync.name, self.capabilities.object)
        self._look_up()
        self.baseline_rows = lay(ledger, self.workspace, self.directory, base, layers, self.foreseen)
        self.open_rejects: Sequence[RejectRow] = ledger.rejects(sync.name)
        self.known_rejects = {
            (one.key, one.hash) for one in [*self.open_rejects, *ledger.rejects(sync.name, "dismissed")]
        }

    def narrow(self) -> None:
        """Drop from the frozen mart the rows that this run is not about."""
        if self._in_part:
            changes.find_duplicates(self.workspace, self.field_map)  # in the whole mart, before rows leave it
        if self.reading.cursor is not None:
            self.watermark = self._since(self.reading.cursor)
        if self._selection.where is not None:
            mart.choose(self.workspace, self._selection.where, self.job.options.variables)
        self.read = changes.select(self.workspace, self.field_map, self.job.options.selection)

    def ask_target(self) -> None:
        """Reached, writable, fitting, and does it still hold what was delivered?"""
        self.asked = True
        expires = self.capabilities.expires
        with ExitStack() as shortly:
            closing = _closing(self.job, self.field_map)
            destination = (shortly if self.hold is None else self.hold).enter_context(closing)
            try:
                self.job.pace.retrying(self.job.sync.retry, self.job.stop.event)(
                    destination.check, self.visit
                )
            except Mismatch as problem:
                self.emptied = problem.code == "TARGET_EMPTIED"
                # to a lost target `--full` is the answer
                if not self.emptied and not (problem.code == "TARGET_LOST" and self._selection.full):
                    self.refusals.append(Refusal(problem.code, problem.message, problem.hint))
            except Systemic as problem:
                if not (self.job.options.dry_run and problem.code in RIGHTS):
                    raise
                self.readonly = True
            believes = self.baseline_rows and self.job.sync.write != "append" and not self._selection.full
            if believes and self.capabilities.readable and not self.emptied and not self.refusals:
                self._sample(destination)
        if expires is not None and guards.is_lost(self.sampled, self.lost):
            self.emptied, self.lost = True, 0

    def diff(self) -> None:
        """The candidates: rows that differ from the baseline, or are due for another reason."""
        sync, capabilities = self.job.sync, self.capabilities
        if not self._at_once:
            self._hash(self.workspace)
        expires = capabilities.expires
        self.strategy = Strategy(
            everything=self._selection.forced or sync.changes.strategy == "all" or self.emptied,
            absence=sync.deletes.how != "keep"
            and sync.changes.strategy == "hash"
            and not self._selection.forced
            and self._selection.limit is None,
            once=sync.write == "append",
            hold_unknown=not capabilities.idempotent and sync.delivery != "at_least_once",
            refresh_before=None if expires is None else self.run.started_at - timedelta(seconds=expires / 2),
        )
        changes.diff(self.workspace, self.strategy, self.baseline_rows, whole=not self._in_part)

    def judge(self) -> None:
        """The contract's word on the candidates."""
        changes.judge(self.workspace, self.contract, self.job.sync.key)
        self.waiting = changes.refuse_missing(self.workspace, self.field_map.lookups)
        self.outcome = {
            row[0]: row[1] for row in self.workspace.run("SELECT op, count(*) FROM candidates GROUP BY op")
        }
        self.outcome["rejected"] = self.workspace.one("SELECT count(*) FROM rejects")[0]

    def assemble(self) -> None:
        """The change set. A row without a usable key might be any of the missing ones: with one of
        those in the mart nothing is deleted."""
        unkeyed = changes.unkeyed(self.workspace)
        absence = self.strategy.absence and not unkeyed
        by_ref = absence and self.capabilities.by_ref
        self.unnamed = changes.refuse_unnamed(self.workspace) if by_ref else 0
        self.change_set = changes.assemble(
            self.workspace,
            self.field_map,
            absence=absence,
            owed=[reject.key for reject in self.open_rejects if reject.stage == "target"],
            limit=self._selection.limit,
            directory=self.directory,
        )
        changes.find_standing(self.workspace, list(dict.fromkeys(one.key for one in self.open_rejects)))
        self.withheld = self.outcome.get("gone", 0) if self.strategy.absence and unkeyed else 0

    def guard(self) -> Plan:
        """What the facts refuse, and the plan as a whole."""
        sync, options = self.job.sync, self.job.options
        part_only = self._selection.partial or self._selection.limit is not None
        whole = not part_only and sync.write != "append" and self.reading.cursor is None
        if part_only and sync.first_run == "adopt" and self._is_first:
            raise DefinitionError(
                "ADOPT_WHOLE",
                "`first_run: adopt` takes the whole mart as delivered, never a part of it",
                hint="run once without --key, --where and --limit",
                where=f"sync {sync.name}",
            )
        if self.forgets:
            self.refusals.append(_KEY_REDEFINED)
        self.refusals += self._orphans()
        self.refusals = [refusal for refusal in self.refusals if refusal.code not in options.accept]
        self.refusals += guards.judge(self._facts(whole), sync.guards, options.accept)
        log.event("guards_judged", refusals=len(self.refusals), changes=len(self.change_set))
        return Plan(
            run=self.run,
            visit=self.visit,
            workspace=self.workspace,
            field_map=self.field_map,
            contract=self.contract,
            change_set=self.change_set,
            capabilities=self.capabilities,
            checkpoint=self.checkpoint,
            layers=self.layers,
            fingerprints=self.fingerprints,
            read=self.read,
            outcome=self.outcome,
            baseline_rows=self.baseline_rows,
            refusals=self.refusals,
            source_identity=self.reading.identity,
            watermark=self._mark(),
            adopting=sync.first_run == "adopt" and self._is_first,
            forgets=self.forgets,
            withheld_deletes=self.withheld,
            unnamed_deletes=self.unnamed,
            read_whole=whole,
            notes=[*self._notes(), *self._volatile()],
            payload=self.reading.payload,
        )

    def _facts(self, whole: bool) -> Facts:
        """What the guards are asked about; `whole`: the mart was read as a whole."""
        sync = self.job.sync
        return Facts(
            read=self.read,
            total=self.reading.total,
            new_rejects=sum(one not in self.known_rejects for one in changes.rejected(self.workspace)),
            reject_codes=tuple(changes.reject_codes(self.workspace)),
            baseline_rows=self.baseline_rows,
            deletes=self.change_set.counts.get("delete", 0),
            deletes_on=sync.deletes.how != "keep",
            full_read=whole,
            last_read=self.checkpoint.read_rows if self.checkpoint else None,
            inserts=self.outcome.get("insert", 0),
            matched=self.read - self.outcome["rejected"] - self.outcome.get("insert", 0) + self.waiting,
            sampled=self.sampled,
            lost=self.lost,
            failed_checks=tuple(self.reading.failed_checks),
            allow_deletes=self.job.options.allow_deletes,
            build=self.reading.build,
            max_age=sync.source.max_age,
            now=self.run.started_at,
        )

    @property
    def _selection(self) -> changes.Selection:
        return self.job.options.selection

    @property
    def _in_part(self) -> bool:
        """Do rows leave the frozen mart before it is looked at?"""
        return self.reading.cursor is not None or self._selection.partial

    @property
    def _is_first(self) -> bool:
        return self.checkpoint is None and not self.layers

    @property
    def contract(self) -> Contract:
        return self.reading.contract

    @property
    def _what(self) -> str:
        return mapping.what(self.job.sync, self.contract, self.field_map, self.capabilities.shaping)

    def _map(self) -> None:
        """As the contract is now."""
        self.field_map = mapping.build(
            self.job.sync,
            self.contract,
            self.run,
            state_id=self.job.ledger.state_id,
            timezone=self.job.warehouse.timezone,
        )

    def _look_up(self) -> None:
        """The ids that other syncs learnt, as the ledger knows them now, in a table for each of them."""
        ledger, workspace = self.job.ledger, self.workspace
        for sync, columns in {one.ref: len(one.by) for one in self.job.sync.refers_to.values()}.items():
            assert sync is not None
            _lay_other(ledger, workspace, self.directory, sync, self.job.references[sync])
            workspace.run(
                f"CREATE TABLE {mapping.external_ids(sync)} AS SELECT {mapping.external_ids_key(columns)} AS"
                ' "retl key", ref AS "retl ref" FROM baseline WHERE ref IS NOT NULL'
            )

    def _since(self, cursor: Cursor) -> str | None:
        """Read from the mark on, unless rows behind it may be due for another reason than their cursor."""
        behind = (
            self._selection.forced
            or self.forgets
            or self.capabilities.expires is not None
            or self.job.sync.write == "update_only"  # a key that was missing may be there now
            or any(one.row_id for one in self.open_rejects)  # under which key it is mended nobody knows
            or self.field_map.lookups  # an id may be another one, or there at last
            or any(self.former.get(name) != self.fingerprints[name] for name in ("what", "mark"))
        )
        mark = self.checkpoint.watermark if self.checkpoint and not behind else None
        unknown = [row[0] for row in self.workspace.run("SELECT key FROM baseline WHERE hash IS NULL")]
        owed = [*unknown, *(reject.key for reject in self.open_rejects)]
        return changes.since(self.workspace, self.field_map, cursor, mark, owed, self.run.started_at)

    def _mark(self) -> str | None:
        """The mark stays where it is when only some rows were looked at or sent."""
        if self._selection.partial or self._selection.limit is not None:
            return self.checkpoint.watermark if self.checkpoint else None
        return self.watermark

    def _sample(self, destination: Destination[Any]) -> None:
        """Confirmed keys that the target must still have."""
        expires = self.capabilities.expires
        alive = None if expires is None else self.run.started_at - timedelta(seconds=expires)
        sample = changes.sample(self.workspace, self.field_map, SAMPLE, alive, self.directory)
        if len(sample):
            batch = Batch(sample, *MODES["delete"], self.run.run_id, 0, 0, len(sample) - 1)
            self.sampled, self.lost = len(sample), sum(row is None for row in destination.read(batch))

    def _orphans(self) -> list[Refusal]:
        """Is this a new name for a sync whose state is still there?"""
        if not self._is_first or not self.job.siblings:
            return []
        former = [one.sync for one in self.job.ledger.checkpoints_on(self.capabilities.object)]
        return [
            Refusal(
                "ORPHANED_STATE",
                f"sync {name!r}, which is no more, delivered to this object: a renamed sync?",
                f"`retl state mv {name} {self.job.sync.name}` carries its state on; --accept ORPHANED_STATE"
                " begins anew",
            )
            for name in former
            if name not in self.job.siblings
        ]

    def _notes(self) -> Sequence[str]:
        sync, former, preview = self.job.sync, self.former, self.job.target.destination.about.preview
        reshaped = bool(former) and former.get("what") != self.fingerprints["what"]
        twice = not self.capabilities.idempotent and sync.delivery == "at_least_once"
        notes = {
            "what is sent changed (fields, types, transforms or formats): every row is sent once": reshaped,
            f"a dead run left {self.unforeseen} rows unanswered: a run asks after them first, which may"
            " change these numbers": self.unforeseen > 0,
            "the target lost rows that expire: every row is sent again": self.emptied,
            "this account may not write here: a run with it would fail": self.readonly,
            f"{self.withheld} deletes wait: a row without a usable key may be one of them": self.withheld > 0,
            "delivery is at_least_once: after a crash a row may arrive twice": twice,
            f"{self.job.target.kind} is a {preview}": bool(preview),
        }
        told = dbt.notes(self.reading.build) if self.reading.build else ()
        return [*(note for note, holds in notes.items() if holds), *told]

    def _volatile(self) -> Sequence[str]:
        """Nearly every row is an update, though nothing but the mart changed: because of which field?"""
        updates = self.change_set.counts.get("update", 0)
        reshaped = self.former.get("what") != self.fingerprints["what"]
        asked = self.asked and self.capabilities.readable and not self.strategy.everything
        if self.refusals or reshaped or not asked or not volatile.is_suspect(updates, self.read):
            return []
        last = min(volatile.SAMPLE, len(self.change_set) - self.change_set.counts.get("delete", 0)) - 1
        batch = Batch(self.change_set, *MODES[self.job.sync.write], self.run.run_id, 0, 0, last)
        try:
            with _closing(self.job, self.field_map) as destination:
                names = volatile.fields(destination, batch)
        except TargetError:  # a note is no reason to fail: the guards already said what they had to say
            return []
        return [volatile.note(names, updates, self.read)] if names else []


_KEY_REDEFINED = Refusal(
    "IDENTITY_CHANGED",
    "the key's columns or types are not those the rows were delivered under",
    "--accept IDENTITY_CHANGED begins a new baseline: every row is sent, nothing is deleted",
)


def lay(
    ledger: Ledger,
    workspace: Workspace,
    directory: Path,
    base: str | None,
    layers: Sequence[LayerRow],
    foreseen: Mapping[str, Outcome] = MappingProxyType({}),
) -> int:
    """Lay the baseline that the ledger's files and answers make, as if the batches `foreseen` were answered
    so; returns its rows."""

    def answers(run_id: str) -> list[BatchRow]:
        rows = ledger.batches(run_id)
        return [replace(row, outcome=foreseen.get(row.batch_id, row.outcome)) for row in rows]

    parts = [
        baseline.Layer(ledger.get_file(one.part, directory), one.started_at, answers(one.run_id))
        for one in layers
    ]
    return baseline.lay(workspace, ledger.get_file(base, directory) if base else None, parts)


def _lay_other(ledger: Ledger, workspace: Workspace, directory: Path, sync: str, object: str) -> None:
    """Lay the baseline of another sync. Its own run may go on meanwhile and put a new base in the place of
    files that were just named: then they are named anew."""
    while True:
        checkpoint, layers = ledger.checkpoint(sync, object), ledger.layers(sync, object)
        try:
            lay(ledger, workspace, directory, checkpoint.base if checkpoint else None, layers)
            return
        except Exception:
            if (ledger.checkpoint(sync, object), ledger.layers(sync, object)) == (checkpoint, layers):
                raise


def _newest(
    ledger: Ledger, checkpoint: Checkpoint | None, layers: Sequence[LayerRow]
) -> tuple[str, str] | None:
    """The newest batch that the ledger knows as answered by this very object."""
    for layer in reversed(layers):
        done = [b for b in ledger.batches(layer.run_id) if b.attempts and b.outcome and b.outcome.arrived]
        if done:
            return layer.run_id, done[-1].batch_id
    return checkpoint.newest if checkpoint else None


@contextmanager
def _closing(job: Job, field_map: FieldMap) -> Iterator[Destination[Any]]:
    destination = job.lane(field_map.shape)
    try:
        yield destination
    finally:
        destination.close()
