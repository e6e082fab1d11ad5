"""A run in several processes: each compares, judges and sends one share of the keys.

The parent reads the mart and the ledger, asks the target, cuts rows and baseline by the hash of the key, and
sees the shards' tables as its own. So guards judge the whole, and numbers, rejects, delta and checkpoint are
those of any run: the ledger and the target do not know how many processes there were. It alone has the lock
and ends the run. A shard whose process is lost gets another, which carries on; after the third the run fails,
and what was not acknowledged is unknown. On a cluster each step of a shard is a process of its own, because
not all of them may run at the same time.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from retl.delivery.answered import Answered
from retl.delivery.failure_rate import FailureRate
from retl.delivery.lanes import Delivery
from retl.destinations.batch import MODES, UNKNOWN, Batch, Kind, Outcome
from retl.engine import shards
from retl.engine.change_set import ChangeSet, Phase
from retl.engine.mapping import FieldMap, Run
from retl.engine.scope import Scoped
from retl.engine.shards import Placed
from retl.engine.sql_text import Query
from retl.engine.workspace import Workspace
from retl.errors import Stopped
from retl.ledger import Acknowledgement, Lock
from retl.observe import log, redact
from retl.run import depot, diffing
from retl.run.depot import Depot
from retl.run.diffing import Diffed, Due, Judged
from retl.run.job import Job
from retl.run.known import Known
from retl.run.mart import Elsewhere, Extent, Frozen, Opened
from retl.run.parts import Cut, Part
from retl.run.plan import Plan
from retl.run.processes import Process, Processes, files
from retl.run.shard import Columns, Failed, Halt, Planned, Sending, Sent, Work
from retl.run.target import Asked

CHECKED = 1.0  # seconds for which the lock is not looked at again


@contextmanager
def shared(job: Job, run: Run, workspace: Workspace, lock: Lock | None) -> Iterator[Shards]:
    """The processes of a run, or of a dry run without a lock; they end with it."""
    with ExitStack() as hold:
        place = None
        if job.cluster is not None:
            place = Depot(workspace.directory)
            if job.cluster.folder is not None:
                root = depot.root(job.cluster.folder, job.ledger.state_id, job.sync.name)
                place = hold.enter_context(depot.lent(root, run.run_id if lock else None))
            hold.enter_context(job.cluster.open(place))
        keep = lock.descriptors if lock else ()
        yield hold.enter_context(closing(Shards(job, run, workspace, keep, place)))


class Shards(Processes):
    """What the processes of a run do, and what it makes of that."""

    def __init__(
        self, job: Job, run: Run, workspace: Workspace, keep: Sequence[int], depot: Depot | None
    ) -> None:
        super().__init__(job, run, workspace, keep, depot)
        self._cuts: list[Cut] = []
        self._placed: list[Placed] = []
        self._sending: Sending | None = None
        self._heard: dict[str, int] = {}  # batches by id, and where their answers are

    # --- read

    @property
    def reader(self) -> Elsewhere | None:
        """What reads parts of the mart on other machines, if these see the folders of the source."""
        if self._job.cluster is None:
            return None
        folder = self._job.cluster.folder
        seen = folder is None or all(one.is_relative_to(folder) for one in self._job.source.readable)
        return self.read if seen else None

    def read(self, queries: Sequence[Query], types: Mapping[str, str], field_map: FieldMap) -> int:
        """Read these parts, one for each shard, and cut them; returns the number of their rows."""
        job = self._job
        self._start(
            [
                Part(
                    **self._step(number, self._workspace.directory / f"{number}.share.duckdb"),
                    query=query,
                    types=types,
                    field_map=field_map,
                    shards=job.shards,
                    readable=job.source.readable,
                )
                for number, query in enumerate(queries)
            ]
        )
        self._cuts = self._all(lambda part: part)
        rows = sum(one.rows for one in self._cuts)
        log.event("parts_read", parts=len(self._cuts), rows=rows)
        return rows

    def _step(self, number: int, share: Path) -> dict[str, Any]:
        """What every step of a shard has."""
        return {
            "number": number,
            "share": share,
            **files(share, number, attempt=1),
            "threads": 1 if self._depot else max(1, (os.cpu_count() or 1) // self._job.shards),
            "sync": self._job.sync,
            "run": self._run,
            "log": log.elsewhere(),
            "secrets": redact.known(),
            "depot": self._depot,
        }

    # --- plan

    def plan(
        self,
        opened: Opened,
        frozen: Frozen,
        known: Known,
        asked: Asked,
        reach: Extent,
    ) -> tuple[Diffed, Judged, Due]:
        """What `diffing.compare`, `judge_rows` and `assemble` return for the whole mart."""
        job, workspace = self._job, self._workspace
        frozen = diffing.folding(frozen, asked)
        condition, mark = diffing.choose(job, self._run, opened, frozen, reach, workspace)
        how = diffing.comparison(job, self._run, opened, frozen, known, asked)
        self._start(self._cut(opened, frozen, known, how, condition))
        log.event("shards_started", shards=job.shards)
        found: list[Planned] = self._all(lambda work: work)
        changes = self._place(frozen, found)
        scoped = [one.scoped for one in found if one.scoped is not None]
        diffed = Diffed(
            how.strategy,
            sum(one.read for one in found),
            diffing.next_mark(job, known, mark),
            Scoped(sum(one.known for one in scoped), any(one.read for one in scoped)) if scoped else None,
            sum(one.erased for one in found),
        )
        ends = Counter[tuple[str, str | None]]()
        for one in found:
            ends.update(one.ends)
        due = diffing.due(
            changes, diffing.taken(ends, changes.counts), diffed.erased, sum(one.grown for one in found)
        )
        return diffed, diffing.judged(known, workspace), due

    def _cut(
        self,
        opened: Opened,
        frozen: Frozen,
        known: Known,
        how: diffing.Comparison,
        condition: str | None,
    ) -> list[Work]:
        job, workspace, mapped = self._job, self._workspace, frozen.mapped
        if self._cuts:
            unkeyed = any(one.unkeyed for one in self._cuts)
            paths = [one.work.share for one in self._processes]
            shards.cut_entries(workspace, mapped.field_map, paths)
        else:
            unkeyed = shards.has_unkeyed(workspace, mapped.field_map, condition)
            paths = shards.cut(workspace, mapped.field_map, job.shards, workspace.directory, condition)
        for path in paths if self._depot else ():
            self._depot.move(path)  # type: ignore[union-attr]
        described = opened.description
        edited = {name: rule.column_type for name, rule in mapped.contract.columns.items()}
        columns = Columns(
            described=described.columns,
            documented=opened.documented,
            misfit=described.misfit,
            timezone=job.source.timezone,
            project=job.folder,
            edited=edited if mapped.contract.edits else None,
            rejected=frozen.edited,
        )
        checkpoint = known.basis.checkpoint
        return [
            Work(
                **self._step(number, path),
                columns=columns,
                field_map=mapped.field_map,
                capabilities=mapped.capabilities,
                fingerprints=mapped.fingerprints,
                how=how,
                selective=condition is not None,
                unkeyed=unkeyed,
                open_rejects=[one.key for one in known.open_rejects],
                retried=diffing.retried(known, mapped.capabilities),
                limit=job.options.selection.limit,
                former_scope=checkpoint.scope if checkpoint else None,
                parts=[one.files[number] for one in self._cuts],
            )
            for number, path in enumerate(paths)
        ]

    def _place(self, frozen: Frozen, found: Sequence[Planned]) -> ChangeSet:
        """Give each share its positions; returns the change set of the run."""
        workspace, limit, field_map = (
            self._workspace,
            self._job.options.selection.limit,
            frozen.mapped.field_map,
        )
        rows: Sequence[Mapping[int, int]] = [one.phases for one in found]
        if limit is not None:
            heads = [self._here(one.work.heads) for one in self._processes]
            rows = shards.first_of(workspace, field_map, heads, limit)
        self._placed = shards.place(rows)
        planned = [one.work.tables for one in self._processes] if self._depot else [None] * len(found)

        def changed(work: Work) -> Work:
            return replace(work, placed=self._placed[work.number], planned=planned[work.number])

        for one, placed in zip(self._processes, self._placed, strict=True):
            if self._depot is None:
                self._tell(one, placed)
            else:
                self._next_step(one, changed)
            one.asked = True
        self._all(changed)
        tables = [self._here(one.work.tables) for one in self._processes]
        changes = shards.unite(workspace, field_map, tables)
        changes.phases = shards.united(self._placed, self._job.sync.write)
        return changes

    # --- send

    @contextmanager
    def sending(self, plan: Plan, lock: Lock, delivery: Delivery) -> Iterator[Callable[..., None]]:
        """While open, the shards send what the returned function gets: parts of one phase, and the failure
        rate of the run. `delivery` gets their answers. It raises as `Delivery.drain`."""
        job = self._job
        wanted = job.pace.concurrency or job.shards
        lanes = max(1, wanted // job.shards)
        self._sending = Sending(
            target=job.target,
            ledger=job.ledger.address,
            pace=job.pace.elsewhere(lanes),
            retry=job.sync.retry,
            resend_unknown=job.sync.delivery == "at_least_once",
            epoch=lock.epoch,
            counts=plan.changes.counts,
            terms=plan.terms,
            shape=plan.field_map.shape,
            lanes=lanes,
        )
        for one in self._processes if self._depot is None else ():
            self._tell(one, self._sending)

        def send(parts: Sequence[Phase], failure_rate: FailureRate) -> None:
            self._send(plan, lock, delivery, parts, failure_rate, at_once=min(wanted, job.shards))

        yield send

    def _send(
        self,
        plan: Plan,
        lock: Lock,
        delivery: Delivery,
        parts: Sequence[Phase],
        failure_rate: FailureRate,
        at_once: int,
    ) -> None:
        own = [
            (one, list(_clipped(parts, placed)))
            for one, placed in zip(self._processes, self._placed, strict=True)
        ]
        waiting = [(one, mine) for one, mine in own if mine]
        problems: list[Exception] = []
        hear = self._hearing(plan, lock, delivery, failure_rate)
        busy: list[Process] = []
        parts_of = {one.work.number: mine for one, mine in waiting}

        def again(one: Process) -> None:
            mine = parts_of[one.work.number]
            self._acknowledge(mine, delivery, lock)
            self._begin_again(one, _sends)
            self._tell(one, self._sending)
            self._ask_to_send(one, mine)

        with self._job.stop.interrupting(self._stop):
            while busy or (waiting and not problems):
                while waiting and not problems and len(busy) < at_once:
                    one, mine = waiting.pop(0)
                    if self._depot is not None:
                        self._next_step(one, _sends)
                        self._tell(one, self._sending)
                    self._ask_to_send(one, mine)
                    one.asked = True
                    busy.append(one)
                try:
                    self._hear(busy, hear, again, problems)
                except Exception as problem:  # noqa: BLE001 - the others finish their batch
                    problems.append(problem)
                if problems:
                    for one in busy:
                        self._tell(one, Halt())
        delivery.retries += sum(one.retries for one in self._processes) - self._retries
        self._retries = sum(one.retries for one in self._processes)
        delivery.elsewhere = sum(one.bytes for one in self._processes)
        if problems:
            self._doubt(plan, lock.epoch, delivery)
            raise sorted(problems, key=lambda problem: isinstance(problem, Stopped))[0]

    _retries = 0

    def _ask_to_send(self, one: Process, mine: Sequence[Phase]) -> None:
        self._tell(one, mine)
        if self._depot is not None:  # that was all
            self._tell(one, None)

    def _hearing(
        self, plan: Plan, lock: Lock, delivery: Delivery, failure_rate: FailureRate
    ) -> Callable[[Answered], None]:
        """What takes an answer of a shard; it raises if the run must stop."""
        checked = time.monotonic()

        def hear(answered: Answered) -> None:
            nonlocal checked
            batch = replace(answered.batch, rows=plan.changes)
            one = replace(answered, batch=batch)
            if not self._is_news(one, delivery.answered):
                return
            log.event("answers_heard", level="debug")
            rows = 0 if one.status == "split" else len(batch)
            log.event("batch_acknowledged", batch=batch.id, rows=rows, attempts=one.attempts, level="debug")
            if one.outcome is not None and one.attempts:
                failure_rate.add(batch, one.outcome)
            if time.monotonic() - checked > CHECKED:
                lock.check()
                checked = time.monotonic()

        return hear

    def _acknowledge(self, parts: Sequence[Phase], delivery: Delivery, lock: Lock) -> None:
        """Record the answers that a lost process had told and not recorded: its successor need not ask."""
        run_id = self._run.run_id
        opened = {
            row.batch_id
            for row in self._job.ledger.batches(run_id)
            if row.status == "open" and any(part.first <= row.first <= part.last for part in parts)
        }
        found = [
            Acknowledgement(one.batch.id, one.outcome, one.attempts, round(one.seconds * 1000))
            for one in delivery.answered
            if one.batch.id in opened and one.outcome is not None and _is_final(one.outcome)
        ]
        if found:
            self._job.ledger.acknowledge(run_id, lock.epoch, found)

    def _is_news(self, one: Answered, answers: list[Answered]) -> bool:
        """Add an answer. A later attempt repeats what an earlier one had told: only what was in doubt, or was
        not applied, is replaced."""
        known = self._heard.setdefault(one.batch.id, len(answers))
        if known == len(answers):
            answers.append(one)
            return True
        former = answers[known].outcome
        if former is None or _is_final(former):
            return False
        answers[known] = one
        return True

    def _hear(
        self,
        busy: list[Process],
        hear: Callable[[Answered], None],
        again: Callable[[Process], None],
        problems: list[Exception],
    ) -> None:
        """Take one message of each shard that has one; shards that are done leave `busy`."""
        for one in self._ready(busy):
            try:
                told = one.line.recv()
            except (EOFError, OSError):
                if lost := self._lost(one):
                    problems.append(lost)
                if problems:
                    busy.remove(one)
                else:
                    again(one)
                continue
            if isinstance(told, Answered):
                hear(told)
                continue
            busy.remove(one)
            one.asked = False
            if isinstance(told, Failed):
                problems.append(told.problem)
            else:
                assert isinstance(told, Sent)
                one.retries, one.bytes = one.before[0] + told.retries, one.before[1] + told.bytes

    def _doubt(self, plan: Plan, epoch: int, delivery: Delivery) -> None:
        """A shard that died did not tell what became of the batches that it had opened: they are unknown."""
        told = {one.batch.id for one in delivery.answered}
        for row in self._job.ledger.batches(self._run.run_id):
            if row.status == "open" and row.batch_id not in told:
                batch = Batch(
                    plan.changes, *MODES[row.operation], self._run.run_id, epoch, row.first, row.last
                )
                delivery.answered.append(Answered(batch, Outcome(UNKNOWN), attempts=max(row.attempts, 1)))


def _sends(work: Work) -> Work:
    return replace(work, sends=True)


def _is_final(outcome: Outcome) -> bool:
    results = (outcome.default, *outcome.exceptions.values())
    return not any(one.kind in (Kind.UNKNOWN, Kind.RETRY) for one in results)


def _clipped(parts: Sequence[Phase], placed: Placed) -> Iterator[Phase]:
    """What a shard has of these rows."""
    for part in parts:
        for phase, rows in placed.rows.items():
            first = max(part.first, placed.first[phase])
            last = min(part.last, placed.first[phase] + rows - 1)
            if first <= last:
                yield replace(part, first=first, last=last)
